"""Files of iBOT and DINO v1 give the tokens that their code computes, as backbones and as checkpoints of trainings."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinoswap.nn.weights.load import Weights, load_backbone
from fixtures import IBOT, Fixture

TOKENS = Fixture("vit_ibot.npz", IBOT)
SIZES = ["32x32", "24x40", "48x48"]
MASK_TOKEN = "there is no mask token: that of masked images is zero"
LAYERSCALE = "there is no LayerScale: the blocks have none"


def state(network: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{network}/sd/"): TOKENS[key] for key in TOKENS.keys(f"{network}/sd/")}


def prefixed(prefix: str, tensors: dict[str, Tensor], shift: float = 0.0) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value + shift for name, value in tensors.items()}


def training(network: str) -> dict[str, Any]:
    """As their trainings save: the networks within their wrappers, beside heads, optimiser and arguments."""
    student = prefixed("module.backbone.", state(network), 1.0) | {"module.head.mlp.0.bias": torch.zeros(3)}
    teacher = prefixed("backbone.", state(network)) | {"head.mlp.0.bias": torch.zeros(3)}
    moments = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    args = argparse.Namespace(arch="vit_small")
    return {"student": student, "teacher": teacher, "optimizer": moments, "epoch": 3, "args": args}


def loaded(content: dict[str, Any], folder: Path) -> Weights:
    torch.save(content, folder / "checkpoint.pth")
    return load_backbone(folder / "checkpoint.pth", TOKENS.meta["numbers"]["num_heads"])


@pytest.mark.parametrize("network", ["ibot", "dino"])
@torch.no_grad()
def test_tokens_are_those_of_their_code(network: str, tmp_path: Path) -> None:
    weights = loaded(state(network), tmp_path)
    assert weights.assumed == ["interpolate_offset 0.1", "interpolate_antialias False"]
    assert weights.notes == ([MASK_TOKEN, LAYERSCALE] if network == "dino" else [])
    backbone = weights.network().eval()
    for size in SIZES:
        tokens, expected = backbone(TOKENS[f"in/{size}"]), TOKENS[f"{network}/{size}"]
        torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(tokens.patch, expected[:, 1:], rtol=0, atol=1e-5)
    if network == "ibot":
        masked = backbone(TOKENS["in/32x32"], TOKENS["in/mask"]).patch
        torch.testing.assert_close(masked, TOKENS["ibot/masked"][:, 1:], rtol=0, atol=1e-5)


WRAPPED: dict[str, dict[str, Any]] = {
    "training": training("ibot"),
    "released teacher": {"state_dict": state("ibot")},
    "compiled": prefixed("_orig_mod.", state("ibot")),
    "compiled, then parallel": prefixed("module._orig_mod.backbone.", state("ibot")),
    "parallel, then compiled": {"teacher": prefixed("backbone._orig_mod.module.", state("ibot"))},
    "one dict": prefixed("student.module.backbone.", state("ibot"), 1.0)
    | prefixed("teacher.module.backbone.", state("ibot")),
    "teacher within": {"model": {"teacher": prefixed("backbone.", state("ibot"))}},
    "compiled blocks": {name.replace(".norm1.", "._orig_mod.norm1."): value for name, value in state("ibot").items()},
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_whatever_wraps_it(wrapped: str, tmp_path: Path) -> None:
    found, expected = loaded(WRAPPED[wrapped], tmp_path), loaded(state("ibot"), tmp_path)
    assert found.notes == []
    assert all(torch.equal(found.state[name], value) for name, value in expected.state.items())


def test_a_student_alone_is_read_and_said(tmp_path: Path) -> None:
    found = loaded({"student": training("ibot")["student"]}, tmp_path)
    assert found.notes == ["holds a student and no teacher: the student's backbone is read"]
    assert torch.equal(found.state["cls_token"], state("ibot")["cls_token"] + 1)


def test_which_of_two_backbones_is_meant_is_not_guessed(tmp_path: Path) -> None:
    two = prefixed("backbone.", state("ibot")) | prefixed("model.", state("ibot"))
    with pytest.raises(ValueError, match=r"holds several backbones \(backbone\., model\.\); give a file with one"):
        loaded(two, tmp_path)


def test_a_mean_of_patches_in_place_of_the_class_token_is_another_network(tmp_path: Path) -> None:
    pooled = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: value
              for name, value in state("ibot").items()}  # fmt: skip
    with pytest.raises(ValueError, match=r"missing norm.weight.*unexpected fc_norm.weight"):
        loaded(pooled, tmp_path)
