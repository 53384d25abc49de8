"""Parameter groups against the official table of a ViT-S/14 with both heads, and their bookkeeping."""

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from dinoswap.nn.vit import VisionTransformer, vit
from dinoswap.optim.param_groups import Group, apply_schedules, parameter_groups
from dinoswap.weight_decay.all_groups import AllGroups
from fixtures import load_json
from options import build_head, build_option

layerwise = partial(build_option, "layer_decay/layerwise")

CASES = {name: case for name, case in load_json("param_groups.json").items() if name.startswith("dinov2")}
SIZES = {"vits14": "small", "vitl14": "large"}


def official_student(case: str) -> nn.ModuleDict:
    """The published network, without memory."""
    with torch.device("meta"):
        backbone = vit(SIZES[case.split("_")[1]], img_size=224, patch_size=14, registers=4)  # type: ignore[arg-type]
        heads = {name: build_head(backbone.embed_dim, *sizes) for name, sizes in head_sizes(case).items()}
    return nn.ModuleDict({"backbone": backbone, **heads})


def head_sizes(case: str) -> dict[str, tuple[int, int, int]]:
    """Prototypes, hidden and bottleneck width of the listed heads."""
    shapes = {name: fields["shape"] for name, fields in CASES[case]["params"].items()}
    names = [name for name in ("dino_head", "ibot_head") if f"{name}.last_layer.weight_v" in shapes]
    return {
        name: (
            shapes[f"{name}.last_layer.weight_v"][0],
            shapes[f"{name}.mlp.0.weight"][0],
            shapes[f"{name}.last_layer.weight_v"][1],
        )
        for name in names
    }


def by_name(groups: list[Group]) -> dict[str, tuple[Group, torch.Tensor]]:
    return {n: (group, p) for group in groups for n, p in zip(group["names"], group["params"], strict=True)}


@pytest.mark.parametrize("case", CASES)
def test_table_is_the_official_one(case: str) -> None:
    settings, listed = CASES[case]["settings"], CASES[case]["params"]
    decay = layerwise(rate=settings["layerwise_decay"], patch_embed_lr_mult=settings["patch_embed_lr_mult"])
    ours = by_name(parameter_groups(official_student(case), decay, AllGroups()))
    for name, fields in listed.items():
        group, parameter = ours[re.sub(r"blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)]
        for field in ("lr_multiplier", "wd_multiplier", "is_last_layer"):
            assert group[field] == fields[field], (name, field)
        assert list(parameter.shape) == fields["shape"], name
    if case.endswith("unchunked"):
        assert set(listed) == set(ours)
    if case.endswith("nonunit"):  # it lists all that differ from 1
        assert {n for n, (group, _) in ours.items() if group["lr_multiplier"] != 1} == set(listed)


def small_student() -> nn.ModuleDict:
    backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    return nn.ModuleDict({"backbone": backbone, "dino_head": build_head(16, 8, 8, 4)})


def test_every_trainable_parameter_is_in_one_group() -> None:
    student = small_student()
    student["dino_head"].last_layer.weight_g.requires_grad_(False)  # type: ignore[union-attr]
    groups = parameter_groups(student, layerwise(), AllGroups())
    listed = [name for group in groups for name in group["names"]]
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    assert sorted(listed) == sorted(trained)
    assert all(parameter is trained[name] for name, (_, parameter) in by_name(groups).items())


def test_groups_are_as_few_as_their_fields_allow() -> None:
    """Per layer one for weights and one for biases, norms and gammas; the patch embedding's weight and bias apart."""
    groups = parameter_groups(small_student(), layerwise(), AllGroups())
    keys = [(g["module"], g["lr_multiplier"], g["wd_multiplier"], g["is_last_layer"]) for g in groups]
    assert len(keys) == len(set(keys)) == (1 + 2) + 2 * 2 + 1 + 3  # embeddings, blocks, norm, head


def test_schedules_are_multiplied_and_the_last_layer_follows_its_own() -> None:
    groups = parameter_groups(small_student(), layerwise(rate=0.5), AllGroups())
    apply_schedules(groups, {"lr": 8.0, "last_layer_lr": 0.0, "weight_decay": 0.1, "teacher_temp": 1.0})
    wanted: dict[str, tuple[Any, Any]] = {
        "backbone.cls_token": (8 * 0.5**3, 0.1),
        "backbone.patch_embed.proj.weight": (8 * 0.5**3 * 0.2, 0.1),
        "backbone.blocks.1.mlp.fc1.weight": (8 * 0.5, 0.1),
        "backbone.norm.weight": (8.0, 0.0),
        "dino_head.mlp.0.bias": (8.0, 0.0),
        "dino_head.last_layer.weight_v": (0.0, 0.1),
    }
    found = by_name(groups)
    for name, (lr, decay) in wanted.items():
        assert found[name][0]["lr"] == pytest.approx(lr), name
        assert found[name][0]["weight_decay"] == pytest.approx(decay), name
