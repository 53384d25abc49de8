"""clustering=separate: a pass of the student over the mask-carrying crops, without their masks."""

from dataclasses import replace

import pytest
import torch
from clustering_contexts import clustering, clustering_context
from torch import nn

from contexts import Softmax, random
from dinoswap.clustering.separate import Separate
from dinoswap.nn.vit import VisionTransformer
from dinoswap.reduction.per_token import PerToken

CARRIES = {1: "extra_crops", 2: "global_crops"}


@pytest.mark.parametrize("carriers", [1, 2], ids=["extra", "globals"])
def test_every_token_of_the_unmasked_pass_learns(carriers: int) -> None:
    """Over the crops that carry the mask, crop-major: the extra one where there is one."""
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, registers=2)
    crops = random(carriers, 3, 3, 32, 32, dtype=torch.float32)
    hidden = random(carriers, 3, 16, seed=1) > 0
    none = torch.full((*hidden.shape, 16), torch.nan)  # no features of another pass are read
    given = clustering_context(none, none, hidden, nn.Identity())
    given = replace(given, batch=replace(given.batch, **{CARRIES[carriers]: crops}))
    given.student["backbone"] = backbone
    tokens, mask, positions = clustering("separate", Softmax(), PerToken()).select(given)
    row = 0
    for crop in crops:
        for image in crop:
            expected = backbone(image.unsqueeze(0)).patch[0]
            torch.testing.assert_close(tokens[row : row + 16], expected, rtol=1e-5, atol=1e-5)
            row += 16
    assert row == len(tokens)
    assert mask.shape == hidden.shape
    assert mask.all()
    assert positions.tolist() == list(range(row))
    tokens.sum().backward()
    assert backbone.patch_embed.proj.weight.grad is not None


def test_no_student_tokens_are_asked_of_the_plan() -> None:
    assert not Separate.reads_student_patches
    assert Separate.reads_teacher_patches
