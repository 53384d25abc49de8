import gzip
import os
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from dinoswap.data import torchvision as torchvision_module
from dinoswap.data.images import CorruptImage
from dinoswap.files.lock import exclusive, holder
from options import build_option


def open_torchvision(name: str, path: str, **changes: Any) -> Any:
    return build_option("data/torchvision", name=name, path=path, **changes)


def write_mnist(root, part, count):
    """The files of FashionMNIST, with random images and labels."""
    rng = np.random.default_rng(count)
    images, labels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), rng.integers(0, 10, count, dtype=np.uint8)
    folder = root / "FashionMNIST/raw"
    folder.mkdir(parents=True, exist_ok=True)
    for kind, magic, array in (("images-idx3", 0x803, images), ("labels-idx1", 0x801, labels)):
        header = b"".join(number.to_bytes(4, "big") for number in (magic, *array.shape))
        (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
        (folder / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    return images, labels


def test_a_class_with_the_argument_train(tmp_path):
    images, labels = write_mnist(tmp_path, "train", 6)
    test_images, test_labels = write_mnist(tmp_path, "t10k", 3)
    source = open_torchvision("FashionMNIST", str(tmp_path))
    for part, pixels, numbers in (("train", images, labels), ("test", test_images, test_labels)):
        split = source.split(part)
        assert split.labels.tolist() == numbers.tolist() and split.classes[0] == "T-shirt/top"
        for row in range(len(numbers)):
            np.testing.assert_array_equal(split.load(row), np.stack([pixels[row]] * 3, axis=2))
    assert source.split("train").name(2) == "FashionMNIST#2"


def test_a_class_with_neither_argument_has_a_training_part_only(tmp_path):
    source = open_torchvision("FakeData", str(tmp_path))
    assert len(source.split("train")) == 1000 and source.split("test") is None
    assert source.split("train").load(3).shape == (224, 224, 3)


class SplitData(datasets.VisionDataset):
    """A class with the argument `split`."""

    def __init__(self, root, split="train", download=False):
        super().__init__(root)
        if split not in ("train", "val"):
            raise ValueError(f"Unknown value '{split}' for argument split.")
        self._labels = [0, 1, 1] if split == "train" else [1]

    def __getitem__(self, row):
        if row == 2:
            raise OSError("image file is truncated")
        return Image.new("RGB", (2, 3), (row, 0, 0)), self._labels[row]

    def __len__(self):
        return len(self._labels)


def test_a_class_with_the_argument_split(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "SplitData", SplitData, raising=False)
    source = open_torchvision("SplitData", str(tmp_path), test_split="val")
    assert source.split("train").labels.tolist() == [0, 1, 1] and source.split("test").labels.tolist() == [1]
    assert open_torchvision("SplitData", str(tmp_path), test_split=None).split("test") is None
    with pytest.raises(ValueError, match=r"Unknown value 'test'.*data.test_split"):
        open_torchvision("SplitData", str(tmp_path)).split("test")
    with pytest.raises(CorruptImage, match="SplitData#2: OSError: image file is truncated"):
        source.split("train").load(2)


def test_one_process_at_a_time_downloads(tmp_path, monkeypatch):
    class Downloading(SplitData):
        def __init__(self, root, split="train", download=False):
            held.append(holder(tmp_path / "root"))
            super().__init__(root, split)

    held = []
    monkeypatch.setattr(datasets, "Downloading", Downloading, raising=False)
    open_torchvision("Downloading", str(tmp_path / "root"), download=True)
    open_torchvision("Downloading", str(tmp_path / "root"))
    assert held[0].startswith(f"process {os.getpid()}") and held[1] is None
    monkeypatch.setattr(torchvision_module, "_PATIENCE", 0.05)
    with exclusive(tmp_path / "root"), pytest.raises(ValueError, match=r"Downloading.*is in use by process"):
        open_torchvision("Downloading", str(tmp_path / "root"), download=True)
    (tmp_path / "file").touch()  # no folder can be made below it
    assert open_torchvision("Downloading", str(tmp_path / "file/root"), download=True).train().labels.tolist() == [
        0,
        1,
        1,
    ]


class TensorData(SplitData):
    def __getitem__(self, row):
        return torch.zeros(3), self._labels[row]


class FailingData(SplitData):
    """A constructor that fails as classes of torchvision do: for a package that is missing, a damaged file, ..."""

    error: Exception

    def __init__(self, root, split="train"):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [ModuleNotFoundError("No module named 'scipy'"), KeyError("images"), EOFError(), AssertionError(), OSError("x\ny")],
    ids=repr,
)
def test_whatever_a_constructor_raises_is_a_line(tmp_path, monkeypatch, error):
    FailingData.error = error
    monkeypatch.setattr(datasets, "FailingData", FailingData, raising=False)
    with pytest.raises(ValueError, match=rf"FailingData\(.*{type(error).__name__}.*See data.path") as raised:
        open_torchvision("FailingData", str(tmp_path))
    assert "\n" not in str(raised.value)
    FailingData.error = MemoryError()
    with pytest.raises(MemoryError):
        open_torchvision("FailingData", str(tmp_path))


def test_a_class_of_no_images_is_refused_and_dropped_labels_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "TensorData", TensorData, raising=False)
    with pytest.raises(ValueError, match=r"data.name=TensorData: gives Tensor, not PIL images"):
        open_torchvision("TensorData", str(tmp_path))
    monkeypatch.setattr(datasets, "SplitData", SplitData, raising=False)
    for labels, word in (([0, -1, 2], "1 of 3 images lack one.*SplitData#1"), ([0, [1, 2], 2], r"one is \[1, 2\]")):
        monkeypatch.setattr(SplitData, "targets", labels, raising=False)
        source = open_torchvision("SplitData", str(tmp_path))
        assert source.train().labels is None and source.train().labels is None
        assert len(source.remarks) == 1 and re.search(word, source.remarks[0])
    monkeypatch.setattr(SplitData, "targets", list(np.arange(3)), raising=False)
    assert open_torchvision("SplitData", str(tmp_path)).train().labels.tolist() == [0, 1, 2]


def test_the_fingerprint_is_of_pixels_and_labels_not_of_the_place(tmp_path):
    def fingerprint(folder, seed_of_images):
        write_mnist(tmp_path / folder, "train", seed_of_images)
        write_mnist(tmp_path / folder, "t10k", 3)
        return open_torchvision("FashionMNIST", str(tmp_path / folder)).fingerprint()

    first = fingerprint("a", 6)
    assert fingerprint("b/c", 6) == first and fingerprint("a", 7) != first
    labels = tmp_path / "b/c/FashionMNIST/raw/train-labels-idx1-ubyte"
    data = bytearray(labels.read_bytes())
    data[-1] ^= 1
    labels.write_bytes(data)
    assert open_torchvision("FashionMNIST", str(tmp_path / "b/c")).fingerprint() != first


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"data.name=CIFAR11: no class of torchvision.datasets; CIFAR10\?"):
        open_torchvision("CIFAR11", str(tmp_path))
    with pytest.raises(ValueError, match=r"CIFAR10.*download=True.*data.download"):
        open_torchvision("CIFAR10", str(tmp_path))
    with pytest.raises(ValueError, match="cannot download FakeData"):
        open_torchvision("FakeData", str(tmp_path), download=True)
