"""Data: sources of images, their order, and the batch of a step as a function of its number.

A source (one module per option of the config group `data`) is built from the config and gives `Images` by
`split("train")` and `split("test")`. `Order` says which image stands at which position, `StepDataset` makes the
batch of a micro-step, `loader` runs it in worker processes, `CorruptLog` keeps the list of undecodable images.
"""

from dinoswap.data.corrupt import CorruptLog, TooManyCorrupt
from dinoswap.data.images import CorruptImage, Images, ImageSource
from dinoswap.data.order import Order
from dinoswap.data.steps import StepDataset, loader

__all__ = ["CorruptImage", "CorruptLog", "ImageSource", "Images", "Order", "StepDataset", "TooManyCorrupt", "loader"]
