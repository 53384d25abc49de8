"""Data files by their paths: which part a path says, and what is found where."""

import os
from pathlib import Path

import pytest

from dinoswap.data.filesystem import by_part, find_files, part_of

SAYS = {
    "train": "train Train TRAIN training train_set trainset TrainSet train0 train-00000-of-00002.parquet split=train "
    "cats_train trainval trainImages imagenet-train-{000..127}.tar traindata",
    "test": "test TEST testing test_set testset testSet test0.parquet split=test eval "
    "evaluation-0.tar cats_test MRITest.parquet train_test test-train holdout evalset testimages",
    "validation": "val valid validation dev valset devset dev-0.parquet imagenet_val_003.tar Validation2 set_val",
    None: "latest contest attest trained restrain data label=1 0000.parquet cats a évaluations value device "
    "interval protest x.tar détest",
}


@pytest.mark.parametrize(("name", "part"), [(name, part) for part, names in SAYS.items() for name in names.split()])
def test_what_a_component_of_a_path_says(name: str, part: str | None) -> None:
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train/0.parquet", "test/cats/0.parquet"),
        ("split=train/label=1/0.parquet", "split=test/label=1/0.parquet"),
        ("test_run/train/0.parquet", "test_run/test/0.parquet"),
        ("train/0.parquet", "train/test/0.parquet"),
        ("train/0.parquet", "test/train/0.parquet"),
        ("train/0.parquet", "a/test/b/train-0.parquet"),
        ("cats/0.parquet", "dogs/testing/deep/er/0.parquet"),
        ("train-0.tar", "evaluation-0.tar"),
    ],
)
@pytest.mark.parametrize("root", ["/data", "/test/run", "test"])
def test_a_test_file_is_recognised_by_any_component(train: str, test: str, root: str) -> None:
    files = [Path(root, train), Path(root, test)]
    assert by_part(files) == {"train": files[:1], "test": files[1:]}


def test_the_nearest_component_decides_between_training_and_validation() -> None:
    files = [Path("a/train/val-0.tar"), Path("a/val/train-0.tar"), Path("a/0.tar"), Path("a/val/x/0.tar")]
    assert by_part(files) == {"validation": [files[0], files[3]], "train": [files[1], files[2]]}


def test_a_lone_file_and_relative_beside_absolute_paths() -> None:
    assert by_part([Path("test/test-0.tar")]) == {"train": [Path("test/test-0.tar")]}
    files = [Path("train-0.tar"), Path("/elsewhere/test-0.tar")]
    assert by_part(files) == {"train": files[:1], "test": files[1:]}


# --- files at a path --------------------------------------------------------------------------------------------------


def found(root: Path, path: str = "", **how: str) -> list[str]:
    return [str(file.relative_to(root)) for file in find_files(f"{root}/{path}", (".tar",), **how).files]


def touch(root: Path, names: str) -> None:
    for name in names.split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_files_of_the_suffix_sorted_and_everything_else_counted(tmp_path: Path) -> None:
    touch(tmp_path, "b/1.tar b/0.TAR a.tar c.tar.gz ._a.tar .hidden/d.tar notes a.tar.index x.tar/in.tar")
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "gone.tar").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self.tar").symlink_to(tmp_path / "self.tar")
    assert found(tmp_path) == ["a.tar", "b/0.TAR", "b/1.tar", "x.tar/in.tar"]
    assert find_files(str(tmp_path), (".tar",)).ignored == {
        ".gz": 1,
        "hidden file": 1,
        "hidden folder": 1,
        "file without a suffix": 1,
        "no regular file": 1,
        "dangling link": 2,
    }


def test_links_are_followed_once_and_after_what_is_real(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(tmp_path, "root/train/0.tar root/test/1.tar elsewhere/2.tar elsewhere/deep/3.tar")
    (root / "train/loop").symlink_to(root)
    (root / "again").symlink_to(root / "test")  # before test in the alphabet: it would be trained on
    (root / "all.tar").symlink_to(root / "test/1.tar")
    os.link(root / "train/0.tar", root / "train/same.tar")
    (root / "far").symlink_to(tmp_path / "elsewhere")
    (root / "further").symlink_to(tmp_path / "elsewhere/deep")
    assert found(root) == ["far/2.tar", "far/deep/3.tar", "test/1.tar", "train/0.tar"]
    assert find_files(str(root), (".tar",)).ignored == {"link to what was found before": 5}


def test_patterns(tmp_path: Path) -> None:
    touch(tmp_path, "a-000.tar a-001.tar a-002.tar b.tar sub/c.tar {x}.tar a.json")
    assert found(tmp_path, "a-{001..002}.tar") == ["a-001.tar", "a-002.tar"]
    assert found(tmp_path, "{b,a-000}.tar") == ["b.tar", "a-000.tar"]
    assert found(tmp_path, "*") == ["a-000.tar", "a-001.tar", "a-002.tar", "b.tar", "sub/c.tar", "{x}.tar"]
    assert found(tmp_path, "{x}.tar") == ["{x}.tar"]
    assert [file.name for file in find_files(f"{tmp_path}/a.json", (".tar",)).files] == ["a.json"]  # as it was given


def test_what_is_not_found_is_said_with_what_was_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "z/x.tar.gz z/y.tgz z/.z.tar")
    with pytest.raises(ValueError, match=r"data.path=.*/z: nothing found.*ignored: 1 hidden file, 1 .gz, 1 .tgz"):
        find_files(f"{tmp_path}/z", (".tar",))
    for path in (f"{tmp_path}/{{a", "~nobody-of-this-name/x.tar"):
        with pytest.raises(ValueError, match=r"data.test_path="):
            find_files(path, (".tar",), key="data.test_path")
