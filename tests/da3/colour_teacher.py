"""A teacher that can be computed by hand: the token of a patch is the mean colour of its pixels."""

import torch
from torch import Tensor
from torch.nn import functional

from dinoswap.teacher.base import IMAGENET_MEAN, IMAGENET_STD, Teacher, Triple


class ColourTeacher(Teacher):
    def __init__(self, patch_size: int = 8, mean: Triple = IMAGENET_MEAN, std: Triple = IMAGENET_STD) -> None:
        super().__init__(embed_dim=3, patch_size=patch_size, identity="colours", notice="a test", mean=mean, std=std)
        self.gain = torch.nn.Parameter(torch.ones(3))
        self.seen: list[torch.Size] = []  # shapes of the images that it was given

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.shape)
        planes = functional.avg_pool2d(images, self.patch_size) * self.gain[:, None, None]
        return planes.flatten(2).transpose(1, 2)  # [N, 3, h, w] -> [N, h w, 3]
