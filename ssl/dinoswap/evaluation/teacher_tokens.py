"""Compares the student's tokens with those of a frozen teacher: by cosines, and in a picture of both.

The images are held out, and the mask is the same in every run, whatever masking the run itself uses.
"""

from typing import cast

import numpy as np
import torch
from matplotlib import colormaps
from torch import Tensor
from torch.nn import functional

from dinoswap.evaluation.visualise import mask_drawn, pca_rgb
from dinoswap.files.pictures import Picture, laid_out, resized
from dinoswap.model import SelfDistillation
from dinoswap.nn.vit import VisionTransformer
from dinoswap.objectives.base import Objective, TokenComparison
from dinoswap.rng import torch_generator
from dinoswap.values import normalise

HIDDEN = 0.4
"""Share of the patches that are hidden from the student in the masked half of the comparison."""


@torch.no_grad()
def compare_with_teachers(
    model: SelfDistillation, examples: Tensor, mean: Tensor, std: Tensor
) -> tuple[dict[str, float], dict[str, Picture]]:
    """Returns metrics and pictures for each objective with a frozen teacher: the mean cosine over all tokens of the
    unmasked images, and over the hidden tokens of the masked images. `examples` is uint8 [n, 3, H, W]; `mean` and `std`
    are [3]."""
    metrics: dict[str, float] = {}
    pictures: dict[str, Picture] = {}
    backbone = cast(VisionTransformer, model.student["backbone"])
    rows, columns = grid = backbone.patch_embed.grid(examples.shape[-2], examples.shape[-1])
    draws = torch.rand(len(examples), rows * columns, generator=torch_generator(0, "evaluation/mask"))
    mask = (draws < HIDDEN).to(mean.device)
    images = normalise(examples.to(mean.device), mean, std)
    for name, objective in model.objectives.items():
        comparison = cast(Objective, objective).compare_tokens(model.student, images, mask)
        if comparison is not None:
            clean, hidden = cosines(comparison)
            metrics |= {
                f"eval/{name}/cosine": clean.mean().item(),
                f"eval/{name}/cosine_masked": hidden[mask].mean().item(),
            }
            pictures[f"{name}_tokens"] = comparison_figure(examples, comparison, mask, grid)
    return metrics, pictures


def cosines(comparison: TokenComparison) -> list[Tensor]:
    """Returns the cosines [n, N] of the teacher's tokens with the student's tokens of the unmasked images, and with
    those of the masked images."""
    return [
        functional.cosine_similarity(comparison.teacher, part, dim=-1)
        for part in (comparison.student, comparison.masked)
    ]


def comparison_figure(
    images: Tensor, comparison: TokenComparison, mask: Tensor, grid: tuple[int, int], cell_size: int = 96
) -> Picture:
    """Returns a picture of a frozen teacher's tokens beside the student's, with a row per image: uint8 images
    [n, 3, H, W], mask bool [n, N].

    The colours are one PCA of all tokens, L2-normalised as in the loss; the maps are cosines from 0 (dark) to 1.
    """
    tokens = [
        functional.normalize(part, dim=-1) for part in (comparison.teacher, comparison.student, comparison.masked)
    ]
    teacher, student, masked = np.split(pca_rgb(torch.cat(tokens), grid), 3)
    viridis = colormaps["viridis"]
    maps = [viridis(torch.unflatten(part.cpu().clamp(0, 1), 1, grid).numpy())[..., :3] for part in cosines(comparison)]
    shown = images.permute(0, 2, 3, 1).cpu().numpy()
    hidden = torch.unflatten(mask.cpu(), 1, grid).numpy()
    size = cell_size, round(cell_size * shown.shape[2] / shown.shape[1])
    enlarged = [resized(image, *size) for image in shown]
    covered = [mask_drawn(*pair) for pair in zip(enlarged, hidden, strict=True)]
    drawn = {"teacher": teacher, "student": student, "cosine": maps[0], "masked": masked, "cosine masked": maps[1]}
    columns = {
        name: [resized((cell * 255).round().astype(np.uint8), *size) for cell in cells] for name, cells in drawn.items()
    }
    names = ["image", "teacher", "student", "cosine", "its input", "masked", "cosine masked"]
    return laid_out([({"image": enlarged, "its input": covered} | columns)[name] for name in names], names)
