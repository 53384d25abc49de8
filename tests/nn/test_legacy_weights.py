"""Legacy checkpoints: converted networks compute the stored outputs, come back exactly; what does not fit is named."""

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dinoswap.nn.legacy_weights import from_legacy, read_legacy, to_legacy
from dinoswap.nn.vit import VisionTransformer
from fixtures import LEGACY
from legacy_checkpoint import PARTS, TOKENS, TRAINING, checkpoint, networks
from options import build_head
from parity.legacy_networks import scenarios


def model(prototypes: int = 32) -> nn.ModuleDict:
    """Networks of the fixture's shapes under the names that they have in a training."""

    def network() -> dict[str, nn.Module]:
        backbone = VisionTransformer(32, 8, embed_dim=48, depth=3, num_heads=3, ffn="swiglu", registers=4)
        heads = {name: build_head(48, 64, hidden_dim=32, bottleneck_dim=16) for name in ("dino_head", "ibot_head")}
        return {"backbone": backbone, **heads}

    student = {**network(), **({"prototype_bank": nn.Linear(48, prototypes)} if prototypes else {})}
    return nn.ModuleDict({"student": nn.ModuleDict(student), "teacher": nn.ModuleDict(network())})


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_converted_networks_compute_the_legacy_outputs() -> None:
    """Tokens of masked and packed calls and logits of both heads, of student and teacher: all that the file holds."""
    rows = [row for check in scenarios(LEGACY / "vit_legacy.npz").values() for row in check()]
    assert len(rows) == len(TOKENS.keys("student/")) + len(TOKENS.keys("teacher/")) + 3
    assert [row.name for row in rows if not row.passed] == []


def test_names_are_those_of_a_training() -> None:
    for prototypes in (32, 0):
        ours = model(prototypes)
        ours.load_state_dict(from_legacy({k: v for k, v in networks().items() if prototypes or k != "prototype_bank"}))
        if prototypes:
            bank = ours["student"]["prototype_bank"]
            assert torch.equal(bank.weight, TRAINING["init/bank/proto_layer.weight"])
            assert torch.equal(bank.bias, TRAINING["init/bank/proto_layer.bias"])


def test_round_trip_is_exact() -> None:
    theirs = networks()
    back = to_legacy(from_legacy(theirs))
    assert back.keys() == theirs.keys() == set(PARTS.values())
    assert all(same(back[part], theirs[part]) for part in theirs)
    ours = model().state_dict()
    assert same(from_legacy(to_legacy(ours)), ours)


def test_wrapper_may_be_missing() -> None:
    bare = {part: {key.removeprefix("module."): v for key, v in state.items()} for part, state in networks().items()}
    assert same(from_legacy(bare), from_legacy(networks()))


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_one_network_is_enough(network: str) -> None:
    ours = from_legacy({network: networks()[network]})
    assert same(ours, {k: v for k, v in from_legacy(networks()).items() if k.startswith(network) and "bank" not in k})


Change = dict[str, Tensor | None]


def changed(state: dict[str, Tensor], change: Change) -> dict[str, Tensor]:
    return {key: value for key, value in (state | change).items() if value is not None}


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("teacher", {"module.backbone.mask_token": None}, "teacher: missing backbone.mask_token; a legacy network has"),
        ("student", {"module.classhead.mlp.1.running_mean": torch.ones(2)}, "unknown classhead.mlp.1.running_mean"),
        (
            "student",
            {"module.backbone.blocks.4.gamma_1": torch.ones(48)},
            r"missing backbone.blocks.3.gamma_1.* and \d+",
        ),
        ("prototype_bank", {"module.proto_layer.bias": None}, "prototype_bank: missing proto_layer.bias"),
    ],
)
def test_parameters_that_do_not_fit_are_named(part: str, change: Change, words: str) -> None:
    theirs = networks()
    with pytest.raises(ValueError, match=words):
        from_legacy({**theirs, part: changed(theirs[part], change)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"student.ibot_head.mlp.4.bias": None}, "student: missing student.ibot_head.mlp.4.bias; a legacy network has"),
        ({"teacher.backbone.blocks.0.mlp.fc1.bias": torch.ones(2)}, "unknown teacher.backbone.blocks.0.mlp.fc1.bias"),
        ({"student.prototype_bank.scale": torch.ones(2)}, "prototype_bank: unknown student.prototype_bank.scale"),
        ({"objectives.dino.targets.center": torch.ones(2)}, "objectives: unknown objectives.dino.targets.center"),
    ],
)
def test_weights_of_ours_that_do_not_fit_are_named(change: Change, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_legacy(changed(model().state_dict(), change))


@pytest.mark.parametrize("found", [{"state_dict": {}, "epoch": 3}, {"prototype_bank": {}, "epoch": 3}])
def test_other_layouts_are_named(found: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"neither student nor teacher among its entries \(epoch, "):
        from_legacy(found)
    with pytest.raises(ValueError, match="student: holds a int"):
        from_legacy({"student": 3})


def test_a_whole_checkpoint_is_read(tmp_path: Path) -> None:
    """Its arguments and the NumPy values in it are not tensors, and are passed over."""
    torch.save(checkpoint(), tmp_path / "checkpoint.pth")
    found = read_legacy(tmp_path / "checkpoint.pth")
    assert found.keys() == checkpoint().keys()
    assert found["iteration"] == 7
    assert same(from_legacy(found), from_legacy(networks()))


def test_names_of_older_numpy(tmp_path: Path) -> None:
    """Up to version 1.26 its modules had no underscore."""
    torch.save(checkpoint(), tmp_path / "new.pth")
    with zipfile.ZipFile(tmp_path / "new.pth") as new, zipfile.ZipFile(tmp_path / "old.pth", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        assert b"numpy.core.multiarray" in old.read("new/data.pkl")
    assert same(from_legacy(read_legacy(tmp_path / "old.pth")), from_legacy(networks()))


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_reading_never_executes_code(tmp_path: Path) -> None:
    torch.save({**checkpoint(), "args": Payload(tmp_path / "executed")}, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match="not a whole file of tensors alone"):
        read_legacy(tmp_path / "checkpoint.pth")
    assert not (tmp_path / "executed").exists()
