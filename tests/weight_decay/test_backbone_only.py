"""weight_decay=backbone_only against the weight decay that each group of the legacy optimiser really had."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from dinoswap.layer_decay.uniform import Uniform
from dinoswap.nn.vit import VisionTransformer
from dinoswap.optim.param_groups import apply_schedules, parameter_groups
from dinoswap.weight_decay.all_groups import AllGroups
from dinoswap.weight_decay.backbone_only import BackboneOnly
from fixtures import LEGACY, load_json
from options import build_head, build_option

TABLE = load_json("optim_legacy.json", LEGACY)
ORDER = ("backbone", "dino_head", "ibot_head")  # of the legacy groups: regularised, not regularised, of each module


def small_student() -> nn.ModuleDict:
    with torch.device("meta"):
        backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2)
        return nn.ModuleDict({"backbone": backbone, **{name: build_head(16, 8, 8, 4) for name in ORDER[1:]}})


@pytest.mark.parametrize(("option", "commit"), [(BackboneOnly(), "67f6a87"), (AllGroups(), "6f23b3b")])
def test_decay_of_every_group_over_the_schedule_is_the_legacy_one(
    option: AllGroups | BackboneOnly, commit: str
) -> None:
    config = TABLE["schedules"]["legacy_small_as_parity_dinov2_small"]["config"]
    warmup, total = config["warmup_iterations"], config["total_iterations"]
    schedules = build_option("schedule/cosine", weight_decay_warmup=warmup).schedules(total, batch_size=64)
    groups = parameter_groups(small_student(), Uniform(), option)
    legacy = TABLE["wd_by_group_over_schedule"][f"at_{commit}"]
    for step in range(total):
        apply_schedules(groups, schedules.at(step))
        for index, module in enumerate(ORDER):
            for bare, wanted in enumerate(legacy[2 * index : 2 * index + 2]):
                own = [g for g in groups if g["module"] == module and g["wd_multiplier"] == 1 - bare]
                assert own
                assert all(g["weight_decay"] == pytest.approx(wanted[step], abs=1e-15) for g in own)


def test_equals_all_groups_on_a_backbone_alone() -> None:
    student = nn.ModuleDict({"backbone": small_student()["backbone"]})
    of_both = [parameter_groups(student, Uniform(), option) for option in (AllGroups(), BackboneOnly())]
    assert all(
        a["wd_schedule"] == b["wd_schedule"] for groups in zip(*of_both, strict=True) for a, b in pairwise(groups)
    )
