"""What the tests of the forward plans share: a network whose masks matter, and features made crop by crop."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from dinoswap.model import ForwardPlan
from dinoswap.nn.vit import Tokens, VisionTransformer
from dinoswap.values import Batch, masked_positions
from small_models import small_batch

IMAGES = 3


def small_backbone() -> VisionTransformer:
    """Its mask token differs from zero and its class token from image to image."""
    torch.manual_seed(0)
    network = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, registers=2, layerscale=0.5
    )
    nn.init.normal_(network.mask_token)
    return network.double().eval()


def batch(masked_crops: int, extra_crops: int = 0, masked: bool = True, local: int = 2) -> Batch:
    """P = `masked_crops`; with `masked` False nothing is hidden."""
    made = small_batch(0, images=IMAGES)
    extra = torch.randn(extra_crops, IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mask = made.mask[:masked_crops] & masked
    return replace(
        made,
        global_crops=made.global_crops.double(),
        local_crops=made.local_crops[:local].double(),
        extra_crops=extra.double(),
        mask=mask,
        **masked_positions(mask),
    )


def one_by_one(crops: Tensor, call: Callable[[Tensor, int, int], Tokens]) -> tuple[Tensor, Tensor]:
    """Class [C, B, D] and patch tokens [C, B, N, D] of crops [C, B, 3, h, w], a call for each."""
    tokens = [[call(crops[c, b, None], c, b) for b in range(crops.shape[1])] for c in range(crops.shape[0])]
    cls = torch.stack([torch.cat([t.cls for t in row]) for row in tokens])
    patch = torch.stack([torch.cat([t.patch for t in row if t.patch is not None]) for row in tokens])
    return cls, patch


def assert_close(a: Tensor | None, b: Tensor | None) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@torch.no_grad()
def check_second_pass(plan: ForwardPlan, backbone: VisionTransformer) -> None:
    """CLS features come of unmasked crops in both networks; patch features of the crops that carry the mask, which
    hides from the student alone."""
    b = batch(plan.masked_crops, plan.extra_crops)
    student, teacher = plan.student(backbone, b, True), plan.teacher(backbone, b, True)
    cls, _ = one_by_one(b.global_crops, lambda crop, c, i: backbone(crop))
    local, _ = one_by_one(b.local_crops, lambda crop, c, i: backbone(crop))
    _, hidden = one_by_one(b.patch_crops, lambda crop, c, i: backbone(crop, b.mask[c, i, None]))
    _, seen = one_by_one(b.patch_crops, lambda crop, c, i: backbone(crop))
    for features, patch in ((student, hidden), (teacher, seen)):
        assert_close(features.global_cls, cls)
        assert_close(features.patch, patch)
        assert_close(features.masked_patch, patch[b.mask])
    assert_close(student.local_cls, local)
    assert teacher.local_cls.shape == (0, IMAGES, 16)


@torch.no_grad()
def check_few_rows(plan: ForwardPlan, backbone: VisionTransformer, local: int) -> None:
    """Asking for the masked rows gives what asking for all tokens gives."""
    b = batch(plan.masked_crops, plan.extra_crops, local=local)
    for network in (plan.student, plan.teacher):
        few, full = network(backbone, b, False), network(backbone, b, True)
        assert few.patch is None
        assert_close(few.global_cls, full.global_cls)
        assert_close(few.local_cls, full.local_cls)
        assert_close(few.masked_patch, full.masked_patch)
