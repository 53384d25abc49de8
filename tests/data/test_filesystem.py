"""Data files by their paths: which part a path says, and what is found where."""

from pathlib import Path

import pytest

from dinoswap.data.filesystem import by_part, part_of

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
