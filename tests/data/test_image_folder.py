import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from data_fakes import encoded, picture

from dinoswap.data import image_folder
from dinoswap.data.decoding import CorruptImage, Decoding
from dinoswap.data.image_folder import list_images
from options import open_source

open_folder = partial(open_source, "image_folder")


def write(root, files):
    for name, row in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(row)))
    return str(root)


def rows(images):
    """Which `picture` each image is."""
    pixels = [images.load(i)[0, 0] for i in range(len(images))]
    return [int(p[0]) + 256 * int(p[1]) for p in pixels]


def test_train_and_val_with_classes(tmp_path):
    path = write(
        tmp_path,
        {"train/dog/b.png": 1, "train/dog/deep/a.PNG": 2, "train/cat/z.png": 3, "Val/dog/x.png": 4, "Val/cat/y.png": 5},
    )
    (tmp_path / "train/dog/notes.txt").write_text("no image")
    (tmp_path / "train/dog/._b.png").write_text("left by another system")
    source = open_folder(path)
    train, test = source.split("train"), source.split("test")
    assert rows(train) == [3, 1, 2] and train.labels.tolist() == [0, 1, 1]
    assert rows(test) == [5, 4] and test.labels.tolist() == [0, 1]
    assert list(train.classes) == list(test.classes) == ["cat", "dog"]
    assert train.name(0) == str(tmp_path / "train/cat/z.png") and train.blocks == [3]


def test_classes_without_parts(tmp_path):
    source = open_folder(write(tmp_path, {"b/1.png": 1, "a/2.png": 2}))
    assert rows(source.split("train")) == [2, 1]
    assert source.split("train").labels.tolist() == [0, 1] and source.split("test") is None


def test_flat_and_mixed_folders_are_unlabelled(tmp_path):
    flat = open_folder(write(tmp_path, {"2.png": 2, "10.png": 1}))
    assert rows(flat.split("train")) == [1, 2]
    assert flat.split("train").labels is None and flat.split("test") is None
    assert flat.remarks == []
    mixed = open_folder(write(tmp_path, {"a/3.png": 3}))
    assert sorted(rows(mixed.train())) == [1, 2, 3] and mixed.train().labels is None
    (remark,) = mixed.remarks  # it is said that the labels are gone, and why
    assert re.search(
        "labels of the train part are not used: 2 of its 3 images lie in no class folder, e.g. 10.png", remark
    )


def test_a_link_to_a_folder_is_followed(tmp_path):
    write(tmp_path / "elsewhere", {"1.png": 1})
    (tmp_path / "data").mkdir()
    (tmp_path / "data/class").symlink_to(tmp_path / "elsewhere")
    assert rows(open_folder(str(tmp_path / "data")).split("train")) == [1]


def test_test_part_without_labels_is_none_and_test_comes_before_val(tmp_path):
    path = write(tmp_path, {"train/a/1.png": 1, "test/2.png": 2, "val/a/3.png": 3})
    assert rows(open_folder(path).split("test")) == [3]
    write(tmp_path, {"test/a/2.png": 2})
    (tmp_path / "test/2.png").unlink()
    assert rows(open_folder(path).split("test")) == [2]


def test_one_image_and_broken_files(tmp_path):
    images = open_folder(write(tmp_path, {"1.png": 1})).split("train")
    np.testing.assert_array_equal(images.load(0), picture(1))
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(CorruptImage, match=r"1.png: no bytes"):
        images.load(0)
    (tmp_path / "1.png").unlink()
    with pytest.raises(CorruptImage, match=r"1.png: No such file"):
        images.load(0)


def test_a_fingerprint_is_of_the_images_and_not_of_their_place(tmp_path):
    files = {f"{name}/{number}.png": number for name in "ab" for number in range(3)}
    here, there = (open_folder(write(tmp_path / name, files)) for name in ("here", "far/there"))
    assert here.fingerprint() == there.fingerprint() == here.fingerprint()
    (tmp_path / "far/there/b/1.png").write_bytes(encoded(picture(7)))
    assert open_folder(str(tmp_path / "far/there")).fingerprint() != here.fingerprint()  # another picture
    write(tmp_path / "far/there", {"b/1.png": 1})
    (tmp_path / "far/there/b/1.png").rename(tmp_path / "far/there/a/1b.png")
    assert open_folder(str(tmp_path / "far/there")).fingerprint() != here.fingerprint()  # another class
    write(tmp_path / "here", {"b/3.png": 3})
    assert open_folder(str(tmp_path / "here")).fingerprint() != here.fingerprint()  # one more


def test_a_fingerprint_reads_so_many_images_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "SAMPLE", 4)
    source = open_folder(write(tmp_path, {f"{number:02}.png": number for number in range(20)}))
    before = source.fingerprint()
    read = []
    monkeypatch.setattr(type(source.train()), "encoded", lambda self, row: read.append(row) or b"")
    source.fingerprint()
    assert len(set(read)) == len(read) == 4
    monkeypatch.undo()
    monkeypatch.setattr(image_folder, "SAMPLE", 4)
    (tmp_path / f"{read[0]:02}.png").unlink()
    assert source.fingerprint() != before  # a file that has gone since is another set


def test_keys_that_decide_what_is_decoded(tmp_path):
    levels = np.full((3, 3), 4095, dtype=np.uint16)
    (tmp_path / "scan.png").write_bytes(encoded(levels))
    assert open_folder(str(tmp_path)).train().load(0).max() == 16
    window = Decoding(range_16bit=(0, 4095), max_pixels=9)
    assert open_folder(str(tmp_path), decoding=window).train().load(0).min() == 255
    with pytest.raises(CorruptImage, match=r"scan.png: .*9 pixels.* data\.max_pixels"):
        open_folder(str(tmp_path), decoding=Decoding(max_pixels=8)).train().load(0)


# --- which files ------------------------------------------------------------------------------------------------------


def test_files_come_in_the_order_of_a_sorted_walk(tmp_path):
    names = ["b.png", "a/c.png", "a/b/z.png", "a/b.png", "a-b/1.png", "B/2.png", "c/é.png", "c/d/e/f.png"]
    write(tmp_path, dict.fromkeys(names, 1))
    expected = []
    for folder, folders, files in os.walk(tmp_path):
        folders.sort()
        expected += [str((Path(folder) / name).relative_to(tmp_path)) for name in sorted(files)]
    assert list_images(tmp_path) == expected
    (tmp_path / "0").symlink_to(tmp_path / "a/b")  # sorts first, and is met last
    (tmp_path / "a/a").symlink_to(write(tmp_path.with_name("elsewhere"), {"q.png": 2}))
    assert list_images(tmp_path) == [*expected[:1], "B/2.png", "a/b.png", "a/c.png", "a/a/q.png", *expected[4:]]


def test_loops_of_links_end_and_each_image_counts_once(tmp_path):
    write(tmp_path, {"train/a/1.png": 1, "train/b/2.png": 2, "test/a/3.png": 3, "test/b/4.png": 4})
    for link, target in {"train/a/up": "..", "train/b/self": ".", "train/out": "../..", "train/a/b": "../b"}.items():
        (tmp_path / link).symlink_to(target)
    (tmp_path / "train/b/a").symlink_to("../a")
    (tmp_path / "test/root").symlink_to("/")
    source = open_folder(str(tmp_path))
    assert rows(source.train()) == [1, 2] and rows(source.test()) == [3, 4]
    assert source.ignored == {"linked folder": 6}


def test_a_folder_or_file_that_is_linked_twice_counts_once(tmp_path):
    write(tmp_path, {"real/1.png": 1, "real/2.png": 2})
    (tmp_path / "alias").symlink_to("real")
    (tmp_path / "real/1 again.png").symlink_to("1.png")
    os.link(tmp_path / "real/2.png", tmp_path / "real/2 again.png")
    source = open_folder(str(tmp_path))
    assert source.train().files.tolist() == [b"real/1.png", b"real/2 again.png"]
    assert list(source.train().classes) == ["real"]
    assert source.ignored == {"linked folder": 1, "repeated link": 2}


def test_nothing_of_the_test_part_is_trained_on_through_a_link(tmp_path):
    write(tmp_path, {"train/a/1.png": 1, "test/a/2.png": 2, "test/a/3.png": 3})
    (tmp_path / "train/a/2.png").symlink_to("../../test/a/2.png")
    (tmp_path / "train/a/more").symlink_to("../../test/a")
    source = open_folder(str(tmp_path))
    assert rows(source.train()) == [1] and rows(source.test()) == [2, 3]
    assert source.ignored == {"repeated link": 3}


def test_parts_may_be_made_of_links_into_one_pool(tmp_path):
    pool = write(tmp_path, {f"pool/{number}.png": number for number in range(4)})
    for number, part in enumerate(["train/a", "train/b", "test/a", "test/b"]):
        (tmp_path / part).mkdir(parents=True)
        (tmp_path / part / "x.png").symlink_to(f"../../pool/{number}.png")
    source = open_folder(pool)
    assert rows(source.train()) == [0, 1] and rows(source.test()) == [2, 3]
    assert source.ignored == {"repeated link": 4} and source.remarks == []


def test_what_is_no_regular_file_is_left_out_and_counted(tmp_path):
    write(tmp_path, {"a/1.png": 1, "a/.hidden.png": 2, "a/.cache/3.png": 3, "a/x.png/4.png": 4})
    os.mkfifo(tmp_path / "a/pipe.png")
    (tmp_path / "a/nowhere.png").symlink_to("nowhere")
    (tmp_path / "a/itself.png").symlink_to("itself.png")
    (tmp_path / "a/pipe2.png").symlink_to("pipe.png")
    for name in ("photo.heic", "photo.HEIC", "film.mp4", "README"):
        (tmp_path / "a" / name).touch()
    source = open_folder(str(tmp_path))
    assert rows(source.train()) == [1, 4]
    assert source.ignored == {
        "hidden file": 1, "hidden folder": 1, "special file": 2, "broken link": 2,
        ".heic": 2, ".mp4": 1, "file without extension": 1,
    }  # fmt: skip


def test_extensions_of_all_formats_that_pil_decodes(tmp_path):
    write(tmp_path, dict.fromkeys(["1.jfif", "2.JPE", "3.jp2", "4.tga", "5.PNG", "6.apng"], 1))
    assert len(list_images(tmp_path)) == 6
    (tmp_path / "7.eps").write_bytes(b"%!PS")
    assert len(list_images(tmp_path)) == 6


# --- parts and classes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"), ("Train", "TEST"), ("train", "dev"), ("train", "eval"), ("train_set", "test_set"),
        ("images/train", "images/test"), ("data/images/Train", "data/images/val"), ("train2017", "val2017"),
        ("split=train", "split=test"), ("images/trainset", "images/holdout"),
    ],
)  # fmt: skip
def test_parts_are_recognised_at_any_depth(tmp_path, train, test):
    files = {f"{train}/cat/1.png": 1, f"{train}/dog/deep/2.png": 2, f"{test}/cat/3.png": 3, f"{test}/dog/4.png": 4}
    source = open_folder(write(tmp_path, files))
    for part, expected in (("train", [1, 2]), ("test", [3, 4])):
        images = source.split(part)
        assert rows(images) == expected and images.labels.tolist() == [0, 1]
        assert list(images.classes) == ["cat", "dog"]


def test_part_folders_below_the_classes(tmp_path):
    names = ["bottle/train/good/1.png", "bottle/test/broken/2.png", "cable/train/good/3.png", "cable/test/bent/4.png"]
    source = open_folder(write(tmp_path, {f"mvtec/{name}": n for n, name in enumerate(names)}))
    assert list(source.train().classes) == ["bottle", "cable"]
    assert source.train().labels.tolist() == source.test().labels.tolist() == [0, 1]
    assert rows(source.train()) == [0, 2] and rows(source.test()) == [1, 3]


def test_words_of_parts_are_also_names_of_classes(tmp_path):
    names = ["train_station/a.png", "test tube/b.png", "cat/c.png"]
    files = {f"{part}/{name}": number for part in ("train", "val") for number, name in enumerate(names)}
    source = open_folder(write(tmp_path, files))
    assert list(source.train().classes) == ["cat", "test tube", "train_station"]
    assert len(source.train()) == len(source.test()) == 3
    trains = open_folder(write(tmp_path / "trains", {"bullet_train/1.png": 1, "tram/2.png": 2}))
    assert list(trains.train().classes) == ["bullet_train", "tram"] and trains.test() is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/test/1.png"], "train/test: says both train and test"),
        (["cat/1.png", "my_test/2.png"], r"holds \['my_test'\] beside \['cat'\] but no folder train"),
        (["cat/1.png", "cat/test/2.png"], r"holds \['cat/test'\] beside \['cat'\] but no folder train"),
        (["1.png", "train/2.png"], "holds train beside images: is it the training part or a class"),
    ],
)
def test_what_folders_do_not_say_clearly_is_asked(tmp_path, names, message):
    with pytest.raises(ValueError, match=rf"data\.path={tmp_path}: {message}"):
        open_folder(write(tmp_path, dict.fromkeys(names, 1)))


def test_images_in_no_part_are_left_out_and_told(tmp_path):
    source = open_folder(write(tmp_path, {"train/a/1.png": 1, "val/a/2.png": 2, "more/3.png": 3}))
    assert rows(source.train()) == [1] and rows(source.test()) == [2]
    assert source.ignored == {"image in no part": 1}
    assert "1 images, e.g. more/3.png, lie in no part, beside train and validation" in source.remarks[0]


def test_a_stray_image_takes_the_labels_and_is_named(tmp_path):
    files = {"train/a/1.png": 1, "train/b/2.png": 2, "train/preview.png": 3, "test/a/4.png": 4, "test/logo.png": 5}
    source = open_folder(write(tmp_path, files))
    assert source.train().labels is None and source.test() is None and len(source.train()) == 3
    assert [re.search("labels of the (train|test) part.* e.g. (.*)", r).groups() for r in source.remarks] == [
        ("train", "train/preview.png"), ("test", "test/logo.png"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["masks", "Annotations", "SegmentationClass", "ground_truth", "labels", "gt"])
def test_folders_of_what_is_no_photograph_are_told(tmp_path, name):
    source = open_folder(write(tmp_path, {f"{name}/1.png": 1, "images/2.png": 2}))
    assert (
        len(source.train()) == 2 and f"1 of 2 images lie in folders called {name} and are trained" in source.remarks[0]
    )
    assert open_folder(write(tmp_path / "b", {"ab/1.png": 1, "mask_of_zorro/2.png": 2})).remarks == []


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"data.path=.*nowhere: no such folder"):
        open_folder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"data.path=.*: no images of a format that PIL decodes; found nothing"):
        open_folder(str(tmp_path))
    path = write(tmp_path, {"test/a/1.png": 1})
    with pytest.raises(ValueError, match=r"holds \['test'\] but no folder train"):
        open_folder(path)
    write(tmp_path, {"train/a/1.png": 1, "test/b/1.png": 1})
    with pytest.raises(ValueError, match=r"classes \['b'\] do not occur"):
        open_folder(path)
    vehicles = write(tmp_path / "vehicles", {"train/1.png": 1, "plane/1.png": 1})
    with pytest.raises(ValueError, match=r"train beside \['plane'\]: is it the training part or a class"):
        open_folder(vehicles)
