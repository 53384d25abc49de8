"""FLOPs against the published counts of the official algorithm for two settings (matrix products + attention)."""

import pytest
import torch

from dinoswap.forward.unified import Unified
from dinoswap.model import SelfDistillation
from dinoswap.nn.vit import vit
from dinoswap.reduction.per_sample import PerSample
from dinoswap.run.flops import step_flops
from dinoswap.values import Batch
from options import build_head, build_objective, build_option


def batch(images: int, size: int, local_size: int, locals_: int, patches: int, masked: int) -> Batch:
    return Batch(
        global_crops=torch.zeros(2, images, 3, size, size, dtype=torch.uint8),
        local_crops=torch.zeros(locals_, images, 3, local_size, local_size, dtype=torch.uint8),
        extra_crops=torch.zeros(0, images, 3, size, size, dtype=torch.uint8),
        mask=torch.zeros(2, images, patches, dtype=torch.bool),
        masked_indices=torch.arange(masked),
        masked_crops=torch.arange(0),
        indices=torch.arange(images),
    )


@pytest.mark.parametrize(
    ("size", "pixels", "patch", "head", "shapes", "gflop"),
    [
        # ViT-S/16, batch 4, 2x224 + 8x96, K 4096, 273 masked: 460.4 of dense layers and 26.8 of attention
        ("small", 224, 16, (4096, 2048, 256), (4, 224, 96, 8, 196, 273), 460.4 + 26.8),
        # width 192, depth 12, patch 4, batch 32, 2x32 + 6x16, K 1024, 615 masked
        ("tiny", 32, 4, (1024, 1024, 256), (32, 32, 16, 6, 64, 615), 327.9 + 13.6),
    ],
)
def test_counts_equal_the_published_ones(
    size: str, pixels: int, patch: int, head: tuple[int, int, int], shapes: tuple[int, ...], gflop: float
) -> None:
    backbone = vit(size, img_size=pixels, patch_size=patch, registers=4, layerscale=0.1)  # type: ignore[arg-type]
    student = {"backbone": backbone}
    student |= {f"{name}_head": build_head(backbone.embed_dim, *head) for name in ("dino", "ibot")}
    objectives = {
        "dino": build_objective("dino", targets=build_option("targets/sinkhorn")),
        "ibot": build_objective("ibot", targets=build_option("targets/sinkhorn"), reduction=PerSample()),
        "koleo": build_objective("koleo"),
    }
    model = SelfDistillation(student, objectives, Unified())
    hyper = {"teacher_temp": 0.04, "dino_local_weight": 1.0}
    assert step_flops(model, batch(*shapes), hyper) / 1e9 == pytest.approx(gflop, rel=5e-4)
    pruned = step_flops(model, batch(*shapes), hyper, pruned=True)
    assert 0.93 < pruned / 1e9 / gflop < 0.96  # one block of twelve, for the rows that no loss reads
