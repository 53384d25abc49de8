import numpy as np
import pytest
from data_fakes import encoded, picture

from dinoswap.data import image_folder
from dinoswap.data.decoding import CorruptImage, Decoding
from dinoswap.data.image_folder import ImageFolderData


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
    source = ImageFolderData(path)
    train, test = source.split("train"), source.split("test")
    assert rows(train) == [3, 1, 2] and train.labels.tolist() == [0, 1, 1]
    assert rows(test) == [5, 4] and test.labels.tolist() == [0, 1]
    assert list(train.classes) == list(test.classes) == ["cat", "dog"]
    assert train.name(0) == str(tmp_path / "train/cat/z.png") and train.blocks == [3]


def test_classes_without_parts(tmp_path):
    source = ImageFolderData(write(tmp_path, {"b/1.png": 1, "a/2.png": 2}))
    assert rows(source.split("train")) == [2, 1]
    assert source.split("train").labels.tolist() == [0, 1] and source.split("test") is None


def test_flat_and_mixed_folders_are_unlabelled(tmp_path):
    flat = ImageFolderData(write(tmp_path, {"2.png": 2, "10.png": 1}))
    assert rows(flat.split("train")) == [1, 2]
    assert flat.split("train").labels is None and flat.split("test") is None
    mixed = ImageFolderData(write(tmp_path, {"a/3.png": 3})).split("train")
    assert sorted(rows(mixed)) == [1, 2, 3] and mixed.labels is None


def test_a_link_to_a_folder_is_followed(tmp_path):
    write(tmp_path / "elsewhere", {"1.png": 1})
    (tmp_path / "data").mkdir()
    (tmp_path / "data/class").symlink_to(tmp_path / "elsewhere")
    assert rows(ImageFolderData(str(tmp_path / "data")).split("train")) == [1]


def test_test_part_without_labels_is_none_and_test_comes_before_val(tmp_path):
    path = write(tmp_path, {"train/a/1.png": 1, "test/2.png": 2, "val/a/3.png": 3})
    assert rows(ImageFolderData(path).split("test")) == [3]
    write(tmp_path, {"test/a/2.png": 2})
    (tmp_path / "test/2.png").unlink()
    assert rows(ImageFolderData(path).split("test")) == [2]


def test_one_image_and_broken_files(tmp_path):
    images = ImageFolderData(write(tmp_path, {"1.png": 1})).split("train")
    np.testing.assert_array_equal(images.load(0), picture(1))
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(CorruptImage, match=r"1.png: no bytes"):
        images.load(0)
    (tmp_path / "1.png").unlink()
    with pytest.raises(CorruptImage, match=r"1.png: No such file"):
        images.load(0)


def test_a_fingerprint_is_of_the_images_and_not_of_their_place(tmp_path):
    files = {f"{name}/{number}.png": number for name in "ab" for number in range(3)}
    here, there = (ImageFolderData(write(tmp_path / name, files)) for name in ("here", "far/there"))
    assert here.fingerprint() == there.fingerprint() == here.fingerprint()
    (tmp_path / "far/there/b/1.png").write_bytes(encoded(picture(7)))
    assert ImageFolderData(str(tmp_path / "far/there")).fingerprint() != here.fingerprint()  # another picture
    write(tmp_path / "far/there", {"b/1.png": 1})
    (tmp_path / "far/there/b/1.png").rename(tmp_path / "far/there/a/1b.png")
    assert ImageFolderData(str(tmp_path / "far/there")).fingerprint() != here.fingerprint()  # another class
    write(tmp_path / "here", {"b/3.png": 3})
    assert ImageFolderData(str(tmp_path / "here")).fingerprint() != here.fingerprint()  # one more


def test_a_fingerprint_reads_so_many_images_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "SAMPLE", 4)
    source = ImageFolderData(write(tmp_path, {f"{number:02}.png": number for number in range(20)}))
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
    assert ImageFolderData(str(tmp_path)).train().load(0).max() == 16
    window = Decoding(range_16bit=(0, 4095), max_pixels=9)
    assert ImageFolderData(str(tmp_path), decoding=window).train().load(0).min() == 255
    with pytest.raises(CorruptImage, match=r"scan.png: .*9 pixels.* data\.max_pixels"):
        ImageFolderData(str(tmp_path), decoding=Decoding(max_pixels=8)).train().load(0)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"data.path=.*nowhere: no such folder"):
        ImageFolderData(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"data.path=.*: no images below .*; looked for .jpg"):
        ImageFolderData(str(tmp_path))
    path = write(tmp_path, {"test/a/1.png": 1})
    with pytest.raises(ValueError, match=r"holds \['test'\] but no folder train"):
        ImageFolderData(path)
    write(tmp_path, {"train/a/1.png": 1, "test/b/1.png": 1})
    with pytest.raises(ValueError, match=r"classes \['b'\] do not occur"):
        ImageFolderData(path).split("test")
    vehicles = write(tmp_path / "vehicles", {"train/1.png": 1, "plane/1.png": 1})
    with pytest.raises(ValueError, match=r"train beside \['plane'\]: is it the training part or a class"):
        ImageFolderData(vehicles)
