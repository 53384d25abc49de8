"""Zip files of images are read as the folders that they were made of."""

import multiprocessing
import zipfile
from functools import partial

import numpy as np
import pytest
from data_fakes import encoded, picture
from test_image_folder import rows, write

from dinoswap.data.decoding import CorruptImage, Decoding
from options import open_source

open_folder = partial(open_source, "image_folder")

NAMES = ["train/cat/1.png", "train/cat/é.png", "train/dog/3.png", "val/cat/4.png", "val/dog/5.png"]


def zipped(folder, path, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return str(path)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "d", {name: number for number, name in enumerate(NAMES)})
    return tmp_path / "d"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_file_holds_what_its_folder_holds(folder, tmp_path, method):
    source, expected = open_folder(zipped(folder, tmp_path / "x.zip", method)), open_folder(str(folder))
    for part in ("train", "test"):
        images, on_disk = source.split(part), expected.split(part)
        assert rows(images) == rows(on_disk) and images.labels.tolist() == on_disk.labels.tolist()
        assert images.files.tolist() == on_disk.files.tolist() and images.classes == on_disk.classes
    assert source.train().name(1) == f"{tmp_path}/x.zip#train/cat/é.png"


def test_what_is_left_out_is_counted(tmp_path):
    link = zipfile.ZipInfo("a/link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("a/1.png", "a/._1.png", "__MACOSX/a/1.png", "a/notes.txt", "a/README"):
            archive.writestr(name, encoded(picture(1)))
        archive.writestr(link, "1.png")
        archive.writestr("a/2.png", encoded(picture(2)), zipfile.ZIP_BZIP2)
    source = open_folder(str(tmp_path / "x.zip"))
    assert rows(source.train()) == [1]
    assert source.ignored == {
        "hidden file": 2, ".txt": 1, "file without extension": 1, "link": 1, "file packed by method 12": 1,
    }  # fmt: skip


def test_forked_processes_read_side_by_side(tmp_path):
    write(tmp_path / "d", {f"{number}.png": number for number in range(40)})
    images = open_folder(zipped(tmp_path / "d", tmp_path / "x.zip")).train()
    expected = rows(images)

    def read(queue):
        queue.put([rows(images) == expected for _ in range(5)])

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=read, args=(queue,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert all(all(queue.get(timeout=60)) for _ in workers)
    for worker in workers:
        worker.join()


def test_a_damaged_member_is_a_corrupt_image(tmp_path):
    write(tmp_path / "d", {"1.png": 1, "2.png": 2})
    for method, reason in ((zipfile.ZIP_STORED, "checksum"), (zipfile.ZIP_DEFLATED, r"checksum|decompress")):
        path = tmp_path / f"{method}.zip"
        zipped(tmp_path / "d", path, method)
        whole = path.read_bytes()
        path.write_bytes(whole[:60] + bytes([whole[60] ^ 255]) + whole[61:])
        images = open_folder(str(path)).train()
        with pytest.raises(CorruptImage, match=rf"{method}.zip#1.png: .*({reason})"):
            images.load(0)
        np.testing.assert_array_equal(images.load(1), picture(2))


def test_a_member_that_unpacks_to_more_than_an_image_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(2**25))
    images = open_folder(str(tmp_path / "x.zip"), decoding=Decoding(max_pixels=1000)).train()
    with pytest.raises(CorruptImage, match=r"x.zip#bomb.png: 33554432 bytes; data\.max_pixels"):
        images.load(0)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", None, "cut"])
def test_damaged_zip_files_are_refused_in_one_line(folder, tmp_path, content):
    path = tmp_path / "x.zip"
    zipped(folder, path)
    whole = path.read_bytes()
    garbage = whole[:-60] + bytes(range(60))
    path.write_bytes({None: garbage, "cut": whole[: len(whole) // 2]}.get(content, content))
    with pytest.raises(
        ValueError, match=rf"^data\.path={path}: is no zip file, or a damaged one .*copy it again"
    ) as caught:
        open_folder(str(path))
    assert "\n" not in str(caught.value)


def test_random_damage_is_refused_or_read(folder, tmp_path):
    path = tmp_path / "x.zip"
    zipped(folder, path)
    whole, rng = np.frombuffer(path.read_bytes(), np.uint8), np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        damaged = whole.copy()
        damaged[rng.integers(len(whole) - 500, len(whole), 2)] = rng.integers(0, 256, 2)  # its directory
        path.write_bytes(damaged.tobytes())
        try:
            images = open_folder(str(path)).train()
        except ValueError:
            outcomes.add("refused")
            continue
        for row in range(len(images)):
            try:
                images.load(row)
                outcomes.add("read")
            except CorruptImage:
                outcomes.add("corrupt")
    assert outcomes == {"refused", "read", "corrupt"}


def test_the_fingerprint_is_of_all_members_without_reading_them(folder, tmp_path):
    first = open_folder(zipped(folder, tmp_path / "x.zip", zipfile.ZIP_STORED)).fingerprint()
    assert open_folder(zipped(folder, tmp_path / "y.zip")).fingerprint() == first
    (folder / "train/dog/3.png").write_bytes(encoded(picture(77)))
    assert open_folder(zipped(folder, tmp_path / "z.zip")).fingerprint() != first


def test_a_zip_without_images(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(ValueError, match=r"no images of a format that PIL decodes; found 1 .txt"):
        open_folder(str(tmp_path / "x.zip"))
