"""The base class of all frozen teachers, and the settings that one is built from.

A teacher maps whole images to patch tokens; the tokens of an image never depend on its batch mates. A backend is a
module with a function `build(settings) -> Teacher`.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Backend = Literal["native", "package", "dinov2", "timm"]
TokenPart = Literal["full", "local", "global"]
Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """The settings of a teacher. `variant` None is read off the weights, `layer` None is the last block, and
    `num_heads` None means 64 channels per head.

    `ckpt_path` "" builds a network with random weights. `token_part` and `normalise_halves` are for tokens that
    concatenate two halves, as Depth Anything 3's do.
    """

    backend: Backend = "native"
    variant: str | None = None
    ckpt_path: str = ""
    num_heads: int | None = None
    layer: int | None = None
    token_part: TokenPart = "full"
    normalise_halves: bool = False


class Teacher(nn.Module):
    """A network from images [N, 3, H, W] in units of `std` around `mean` (pixels in 0..1), H and W multiples of
    `patch_size`, to tokens [N, P, embed_dim] in row-major order: P = H / patch_size * W / patch_size. Calling it raises
    ValueError for other sizes."""

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

    def forward(self, images: Tensor) -> Tensor:
        """Returns the tokens [N, P, embed_dim] of images [N, 3, H, W]."""
        raise NotImplementedError
