"""What stands for a frozen teacher where a run is only checked: a teacher's weights may be on other machines."""

from torch import Tensor

from dinoswap.teacher.base import Teacher


class StandIn(Teacher):
    """A teacher of which only width and patch size are known. Calling it raises NotImplementedError."""

    def __init__(self, *, ckpt_path: str, embed_dim: int, patch_size: int) -> None:
        """`ckpt_path` is not read."""
        super().__init__(
            embed_dim=embed_dim, patch_size=patch_size, identity=f"a stand-in for {ckpt_path}", notice="no teacher"
        )

    def forward(self, images: Tensor) -> Tensor:
        raise NotImplementedError
