"""A teacher without weights: the token of a patch is the mean colour of its pixels."""

from torch import Tensor
from torch.nn import functional

from dinoswap.teacher.base import Teacher


class ColourTeacher(Teacher):
    def __init__(self, ckpt_path: str, patch_size: int = 8) -> None:
        if ckpt_path:
            raise ValueError(f"ckpt_path={ckpt_path}: colours have no weights; leave it empty")
        super().__init__(
            embed_dim=3,
            patch_size=patch_size,
            identity=f"colours of {patch_size} pixels",
            notice="teacher: mean colours, which have no weights",
        )

    def forward(self, images: Tensor) -> Tensor:
        planes = functional.avg_pool2d(images, self.patch_size)
        return planes.flatten(2).transpose(1, 2)  # [N, 3, h, w] -> [N, h w, 3]
