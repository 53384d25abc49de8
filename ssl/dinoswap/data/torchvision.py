"""Reads the data sets of torchvision, by class name.

The parts are chosen by the constructor's own argument: `train` (True, False) or `split`. A class with neither, such as
FakeData, has a training part only.
"""

import difflib
import hashlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets

from dinoswap.data.decoding import DEFAULT, CorruptImage, Decoding, Pixels, corrupt_if_undecodable, to_rgb
from dinoswap.data.images import Images, ImageSource, Labels
from dinoswap.data.labels import complete
from dinoswap.files.lock import Held, exclusive
from dinoswap.rng import numpy_generator

_SAMPLED = 16
_PATIENCE = 3600.0  # seconds that a download of another process may take


class TorchvisionData(ImageSource):
    """Builds the class `name` of torchvision.datasets, e.g. CIFAR10, with `path` as its `root`.

    `train_split` and `test_split` are values of its argument `split`, if it has one; with test_split None there is no
    test part. Raises ValueError for an unknown class, when its constructor fails, and when its items are not images.
    """

    def __init__(
        self,
        *,
        name: str,
        path: str,
        download: bool,
        train_split: str,
        test_split: str | None,
        decoding: Decoding = DEFAULT,
    ) -> None:
        dataset_class = getattr(datasets, name, None)
        if not (isinstance(dataset_class, type) and issubclass(dataset_class, datasets.VisionDataset)):
            similar = difflib.get_close_matches(name, datasets.__all__, n=1)
            raise ValueError(f"data.name={name}: no class of torchvision.datasets" + f"; {similar[0]}?" * len(similar))
        self.kind, self.decoding = dataset_class, decoding
        self.arguments = inspect.signature(dataset_class).parameters.keys()
        if download and "download" not in self.arguments:
            raise ValueError(f"data.download=true: torchvision cannot download {name}; put its files at {path}")
        self.given: dict[str, Any] = {"root": path, "download": download}
        self.splits = {"train": train_split, "test": test_split}
        self._opened: dict[str, TorchvisionImages] = {}
        self._open("train")

    def train(self) -> Images:
        return self._open("train")

    def test(self) -> Images | None:
        if not self.arguments & {"train", "split"} or ("train" not in self.arguments and self.splits["test"] is None):
            return None
        images = self._open("test")
        return images if images.labels is not None else None

    def _open(self, part: str) -> "TorchvisionImages":
        """Returns the images of a part. They are opened once, so that remarks are made once. Raises ValueError when the
        constructor fails."""
        if part not in self._opened:
            arguments = {**self.given, "train": part == "train", "split": self.splits[part]}
            dataset = self._construct({key: value for key, value in arguments.items() if key in self.arguments})
            self._opened[part] = TorchvisionImages(dataset, self.decoding, self.remarks)
        return self._opened[part]

    def _construct(self, arguments: dict[str, Any]) -> Any:
        """Builds the torchvision data set. Raises ValueError, with the reason, when its constructor raises anything but
        MemoryError."""
        try:
            with _download_lock(Path(self.given["root"])) if self.given["download"] else nullcontext():
                return self.kind(**arguments)
        except MemoryError:
            raise
        except Exception as error:  # of files that are not there, damaged, or need a package or a connection
            reason = " ".join(f"{error}".split()) or "no reason given"
            raise ValueError(
                f"torchvision.datasets.{self.kind.__name__}({arguments}): {type(error).__name__}: {reason}. "
                "See data.path, data.download, data.train_split, data.test_split"
            ) from error


@contextmanager
def _download_lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time download into `folder`; the next one finds the files. It is a lock and no barrier,
    since a data set is also opened by one rank alone, and on every node of a job that shares no disk. Raises Held when
    another process holds the lock for too long."""
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder.expanduser(), _PATIENCE))
        except Held:
            raise
        except OSError:  # where nothing can be written, nothing is downloaded
            pass
        yield


class TorchvisionImages(Images):
    """Adapts a map-style data set of (PIL image, target) pairs. Raises ValueError when it is empty or its items are not
    images."""

    def __init__(self, dataset: Any, decoding: Decoding, remarks: list[str]) -> None:
        self.dataset, self.decoding = dataset, decoding
        self.kind = type(dataset).__name__
        if len(dataset) == 0:
            raise ValueError(f"torchvision.datasets.{self.kind}: no images")
        self._check_kind()
        self.labels = self._labels(remarks)
        self.classes: Sequence[str] | None = getattr(dataset, "classes", None)
        self.blocks = [len(dataset)]

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, row: int) -> Pixels:
        with corrupt_if_undecodable(self.name(row)):
            return to_rgb(self.dataset[row][0], self.decoding)

    def name(self, row: int) -> str:
        return f"{self.kind}#{row}"

    def fingerprint(self) -> str:
        """Returns a hexadecimal digest of the class, the number of images, the labels and a few fixed images.
        torchvision knows no names of images."""
        digest = hashlib.sha256(f"{self.kind} {len(self)}\n".encode())
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        for row in numpy_generator(0, "fingerprint").integers(len(self), size=_SAMPLED).tolist():
            try:
                pixels = self.load(row)
                digest.update(f"{row} {pixels.shape}\n".encode() + pixels.tobytes())
            except CorruptImage:
                digest.update(f"{row} corrupt\n".encode())
        return digest.hexdigest()

    def _check_kind(self) -> None:
        """Raises ValueError when the first item can be read and is not an image."""
        try:
            with corrupt_if_undecodable(self.name(0)):
                item = self.dataset[0]
        except CorruptImage:
            return
        image = item[0] if isinstance(item, tuple) and item else item
        if not isinstance(image, Image.Image):
            raise ValueError(
                f"data.name={self.kind}: gives {type(image).__name__}, not PIL images: choose a class of single images"
            )

    def _labels(self, remarks: list[str]) -> Labels | None:
        """Returns the labels, int64 [rows], that the data set keeps under one of its usual names; None, with a remark
        if there is something else, when that is no list of one whole number per image."""
        candidates = (getattr(self.dataset, name, None) for name in ("targets", "labels", "_labels", "y"))
        values = next((value for value in candidates if value is not None), None)
        if values is None:
            values = [target for _, target in getattr(self.dataset, "_samples", ())]
        values = values.tolist() if hasattr(values, "tolist") else list(values)
        not_integer = next((value for value in values if not isinstance(value, int | np.integer)), None)
        if len(values) != len(self.dataset) or not_integer is not None:
            if values:
                reason = f"one is {not_integer!r:.40}" if not_integer is not None else f"they are {len(values)}"
                remarks.append(
                    f"labels of {self.kind} are not used: {reason}, not a number for each of {len(self)} images"
                )
            return None
        labels: Labels = np.array(values, dtype=np.int64)
        return labels if complete(labels < 0, self.name, remarks) else None
