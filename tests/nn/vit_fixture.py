"""The small network of the fixture vit_dinov2.npz, with the official weights."""

from typing import Any

import torch
from torch import Tensor

from dinoswap.nn.vit import Tokens, VisionTransformer
from fixtures import Fixture

VIT = Fixture("vit_dinov2.npz")
NAMES = {"cls": "x_norm_clstoken", "registers": "x_norm_regtokens", "patch": "x_norm_patchtokens"}


def official(dtype: torch.dtype = torch.float32, **changes: Any) -> VisionTransformer:
    numbers = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "registers": 2}
    backbone = VisionTransformer(**{**numbers, "layerscale": 0.1, **changes})
    backbone.load_state_dict({key.removeprefix("sd/"): VIT[key] for key in VIT.keys("sd/")})
    return backbone.to(dtype)


def crops(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor | None]]:
    """The two entries of the list call: masked global crops and local crops."""
    return [VIT["in/x32"].to(dtype), VIT["in/x16"].to(dtype)], [VIT["in/masks"], None]


def error(tokens: Tokens, group: str, fixture: Fixture = VIT) -> float:
    """Largest difference to the fixture's tokens of this group, in units of their largest value (which is above 1)."""
    stored = {ours: f"{group}/{theirs}" for ours, theirs in NAMES.items() if f"{group}/{theirs}" in fixture.file.files}
    assert stored, f"no tokens named {group} in the fixture"
    pairs = [(getattr(tokens, ours), fixture[key]) for ours, key in stored.items()]
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
