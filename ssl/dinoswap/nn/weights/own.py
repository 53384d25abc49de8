"""Our own layout: the names of `vit`, and in the metadata all that tensors do not show."""

from dinoswap.nn.weights.files import WeightFile
from dinoswap.nn.weights.layout import Named


def knows(file: WeightFile) -> bool:
    """Tells whether the metadata says that the names are these."""
    return file.own


def read(file: WeightFile) -> Named:
    """Returns the tensors as they are."""
    return Named(dict(file.tensors), dict(file.stated))
