"""The base class of all frozen teachers: whole images in, patch tokens out.

An option of the group `teacher` is a subclass. Its constructor takes its keys, and `ckpt_path`, which stands in the
section `da3`: the path of its weights, "" for random ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dinoswap.rng import seed_torch

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


class Teacher(nn.Module, ABC):
    """A network from images [N, 3, H, W] in units of `std` around `mean` (pixels in 0..1), H and W multiples of
    `patch_size`, to tokens [N, P, embed_dim] in row-major order: P = H / patch_size * W / patch_size. The tokens of an
    image never depend on its batch mates. Calling it raises ValueError for other sizes."""

    def __init__(
        self,
        *,
        embed_dim: int,
        patch_size: int,
        identity: str,
        notice: str,
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
    ) -> None:
        """`identity` distinguishes teachers (variant and hash of the weights). `notice` is logged before training: the
        licence of the weights, or that they are random."""
        super().__init__()
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        self.identity = identity
        self.notice = notice
        self.mean, self.std = mean, std

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Returns the tokens [N, P, embed_dim] of images [N, 3, H, W]."""


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Within the context, torch draws the same numbers on the CPU every time, so that random weights are the same in
    every run. Draws after it are as if nothing had been drawn within."""
    with torch.random.fork_rng(devices=[]):
        seed_torch(0, "init/da3_teacher")
        yield
