"""Crops of all sizes as one pack, as on a GPU, compute what packs of one size do: tokens, gradients and draws."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dinoswap.nn import vit
from dinoswap.nn.vit import VisionTransformer
from dinoswap.position.rope import Rope

IMAGES, SIDES, PATCH = 4, (32, 16), 8
ROPE = Rope(base=100.0, periods=None, normalise="separate", shift=0.1, jitter=1.1, rescale=1.1, dtype="fp32")
ROWS = [torch.tensor([0, 3, 17, 40]), None]
VARIANTS: list[dict[str, Any]] = [
    {"drop_path": 0.5},
    {"residual_dropout": 0.4, "registers": 2},
    {"drop_path": 0.3, "ffn": "swiglu", "local_cls_norm": True, "layerscale": None},
    {"drop_path": 0.3, "activation_checkpointing": True, "key_bias": False, "position": ROPE},
]


def outcome(one_pack: bool, variant: dict[str, Any], rows: Any, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Tokens, gradients, and the generator's next number."""
    monkeypatch.setattr(vit, "packs_all", lambda device: one_pack)
    torch.manual_seed(0)
    network = VisionTransformer(img_size=32, patch_size=PATCH, embed_dim=16, depth=3, num_heads=2, **variant).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    crops = [torch.randn(IMAGES * (1 + i), 3, side, side, dtype=torch.float64) for i, side in enumerate(SIDES)]
    masks = [torch.rand(IMAGES, (SIDES[0] // PATCH) ** 2) < 0.4, None]
    tokens = network(crops, masks, rows, locals_from=1)
    found = [x for entry in tokens for x in entry if x is not None and x.numel()]
    sum((x * torch.randn_like(x)).sum() for x in found).backward()
    return [*found, *(p.grad for p in network.parameters() if p.grad is not None), torch.rand(1)]


@pytest.mark.parametrize("rows", [None, ROWS], ids=["all tokens", "rows"])
@pytest.mark.parametrize("variant", VARIANTS, ids=" ".join)
def test_one_pack_or_many(variant: dict[str, Any], rows: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one, many = (outcome(one_pack, variant, rows, monkeypatch) for one_pack in (True, False))
    assert len(one) == len(many) > 20
    for ours, theirs in zip(one, many, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=0, atol=1e-12 if "position" not in variant else 1e-5
        )  # rotations are float32
