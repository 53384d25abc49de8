"""dinoswap: one trainer for DINO / iBOT / DINOv2 / DINOv3 pre-training whose differences are config groups."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # this imports torch, which takes seconds
    from dinoswap.backbone import Backbone

__all__ = ["__version__", "load_backbone"]

__version__ = "0.1.0"


def load_backbone(path: str | Path, *, network: str = "teacher", num_heads: int | None = None) -> "Backbone":
    """Returns the backbone at `path`, in float32, on the CPU and in evaluation mode: that of a run folder or of a
    checkpoint in one, or of a weight file or a folder of the Hugging Face hub, of any layout that dinoswap reads.

    `network` is that of a run, teacher or student. `num_heads` overrides the number of heads of a weight file. Warns of
    what the file does not say, and what is assumed. Raises ConfigError where there is no such thing, CheckpointError
    for a damaged checkpoint, and ValueError for a file of anything but the weights of one backbone.

    >>> import dinoswap, PIL.Image, torch
    >>> backbone = dinoswap.load_backbone("backbone.safetensors")
    >>> image = PIL.Image.new("RGB", (64, 48))
    >>> with torch.no_grad():
    ...     tokens = backbone(backbone.transform(image)[None])
    >>> tokens.cls.shape, tokens.patch.shape
    (torch.Size([1, 32]), torch.Size([1, 16, 32]))
    >>> first, last = backbone.intermediate_tokens(torch.zeros(1, 3, 48, 32), blocks=[0, -1])
    >>> first.patch.shape
    torch.Size([1, 24, 32])
    >>> backbone.config["num_heads"], backbone.config["mean"]
    (2, [0.485, 0.456, 0.406])
    """
    from dinoswap.backbone import load

    return load(path, network, num_heads)
