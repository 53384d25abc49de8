"""weight_decay=all_groups: the schedule reaches backbone and heads, and of each what is regularised."""

import pytest
import torch
from torch import nn

from dinoswap.nn.vit import VisionTransformer
from dinoswap.optim.param_groups import apply_schedules, parameter_groups
from dinoswap.weight_decay.all_groups import AllGroups
from options import build_head


class NoDecay:
    def multiplier(self, name: str, depth: int) -> float:
        return 1.0


@pytest.mark.parametrize("module", ["backbone", "dino_head", "projector"])
def test_every_module_follows_the_one_schedule(module: str) -> None:
    assert AllGroups().schedule(module) == "weight_decay"


def test_what_the_optimiser_gets() -> None:
    with torch.device("meta"):
        backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, registers=1)
        student = nn.ModuleDict({"backbone": backbone, "dino_head": build_head(16, 8, 8, 4)})
    groups = parameter_groups(student, NoDecay(), AllGroups())
    apply_schedules(groups, {"lr": 0.5, "last_layer_lr": 0.25, "weight_decay": 0.3})
    decays = {name: group["weight_decay"] for group in groups for name in group["names"]}
    free = {name for name, value in decays.items() if value == 0}
    assert {value for name, value in decays.items() if name not in free} == {0.3}
    assert free == {n for n in decays if n.endswith(".bias") or "norm" in n or "gamma" in n}
    for decayed in ("cls_token", "pos_embed", "mask_token", "register_tokens", "patch_embed.proj.weight"):
        assert decays[f"backbone.{decayed}"] == 0.3
    assert decays["dino_head.last_layer.weight_g"] == 0.3
