"""The data sets of torchvision, by class name.

The parts are chosen by the constructor's own argument: `train` (True, False) or `split`. A class with neither, such
as FakeData, has a training part only.
"""

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets

from dinoswap.data.images import Images, ImageSource, Labels, Pixels, corrupt_if_undecodable, to_rgb
from dinoswap.distributed import barrier, is_main


class TorchvisionData(ImageSource):
    """`name`: a class of torchvision.datasets, e.g. CIFAR10; `path`: its `root`.

    `train_split` and `test_split` are values of its argument `split`, where it has one; test_split None: no test part.
    Raises ValueError for an unknown class and when its files are not there.
    """

    def __init__(
        self,
        name: str,
        path: str,
        download: bool = False,
        train_split: str = "train",
        test_split: str | None = "test",
    ) -> None:
        kind = getattr(datasets, name, None)
        if not (isinstance(kind, type) and issubclass(kind, datasets.VisionDataset)):
            near = difflib.get_close_matches(name, datasets.__all__, n=1)
            raise ValueError(f"data.name={name}: no class of torchvision.datasets" + f"; {near[0]}?" * len(near))
        self.kind = kind
        self.arguments = inspect.signature(kind).parameters.keys()
        if download and "download" not in self.arguments:
            raise ValueError(f"data.download=true: torchvision cannot download {name}; put its files at {path}")
        self.given: dict[str, Any] = {"root": path, "download": download}
        self.splits = {"train": train_split, "test": test_split}
        self._train = self._open("train")

    def train(self) -> Images:
        return self._train

    def test(self) -> Images | None:
        if not self.arguments & {"train", "split"} or ("train" not in self.arguments and self.splits["test"] is None):
            return None
        images = self._open("test")
        return images if images.labels is not None else None

    def _open(self, part: str) -> "TorchvisionImages":
        given = {**self.given, "train": part == "train", "split": self.splits[part]}
        arguments = {key: value for key, value in given.items() if key in self.arguments}
        if not is_main():
            barrier()  # the main process downloads first
        try:
            dataset = self.kind(**arguments)
        except (RuntimeError, FileNotFoundError, ValueError) as error:
            raise ValueError(
                f"torchvision.datasets.{self.kind.__name__}({arguments}): {error}. "
                "See data.path, data.download, data.train_split, data.test_split"
            ) from error
        finally:
            if is_main():
                barrier()
        return TorchvisionImages(dataset)


class TorchvisionImages(Images):
    """A map-style data set of (PIL image, target)."""

    def __init__(self, dataset: Any) -> None:
        if len(dataset) == 0:
            raise ValueError(f"{dataset}: no images")
        self.dataset = dataset
        self.labels = _labels(dataset)
        self.classes: Sequence[str] | None = getattr(dataset, "classes", None)
        self.blocks = [len(dataset)]

    def __len__(self) -> int:
        return len(self.dataset)

    def load(self, row: int) -> Pixels:
        with corrupt_if_undecodable(self.name(row)):
            image = self.dataset[row][0]
        if not isinstance(image, Image.Image):
            raise TypeError(f"{type(self.dataset).__name__} gives {type(image).__name__}, not PIL images")
        with corrupt_if_undecodable(self.name(row)):
            return to_rgb(image)

    def name(self, row: int) -> str:
        return f"{type(self.dataset).__name__}#{row}"


def _labels(dataset: Any) -> Labels | None:
    """int64 [rows] from the list that the class keeps, under one of its usual names; None when there is none."""
    kept = (getattr(dataset, name, None) for name in ("targets", "labels", "_labels", "y"))
    values = next((v for v in kept if v is not None), None)
    if values is None:
        values = [target for _, target in getattr(dataset, "_samples", ())]
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(values) != len(dataset) or not all(isinstance(v, int) and v >= 0 for v in values):
        return None
    return np.array(values, dtype=np.int64)
