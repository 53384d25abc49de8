"""Training from a run: what fits into another configuration is taken, the rest is fresh, and all of it is listed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dinoswap.build import build_model, build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.config.facts import weight_facts
from dinoswap.config.identity import identity
from dinoswap.config.schema import ConfigError
from dinoswap.files.checkpoint_folder import CheckpointError
from dinoswap.model import SelfDistillation
from dinoswap.run import checkpoint
from dinoswap.run.run_folder import planned_id
from run_folders import write_run
from small_models import CENTERING

SMALL = ["recipe=smoke", "trainer.device=cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_run(folder, *CENTERING, "clustering=masked")
    return folder


def config(run: Path, *overrides: str) -> dict[str, Any]:
    return compose_config([*SMALL, "start=run", f"start.path={run}", *overrides])


def model_from(run: Path, *overrides: str) -> SelfDistillation:
    return build_model(config(run, *overrides))


def saved(run: Path) -> dict[str, torch.Tensor]:
    return checkpoint.read(run / "checkpoints" / "step-00000001").state["model"]


def assert_taken(model: SelfDistillation, run: Path, *but: str) -> None:
    """Bit for bit: all that student, teacher and objectives hold, except what begins with one of `but`."""
    state, wanted = model.state_dict(), saved(run)
    for name, value in state.items():
        if not name.startswith(but):
            assert torch.equal(value, wanted[name]), name


def test_the_same_configuration_takes_all(run: Path) -> None:
    """Of the newest checkpoint: student, teacher and centres, each its own."""
    model = model_from(run, *CENTERING, "clustering=masked")
    assert_taken(model, run)
    assert model.origin == [
        *("student.backbone: taken", "student.dino_head: taken", "student.ibot_head: taken"),
        *("student.prototype_bank: taken", "teacher.backbone: taken", "teacher.dino_head: taken"),
        *("teacher.ibot_head: taken", "objectives.dino: taken", "objectives.ibot: taken"),
    ]
    state = saved(run)
    assert not torch.equal(state["student.backbone.cls_token"], state["teacher.backbone.cls_token"])
    assert state["objectives.dino.targets.center"].any()


def test_other_crops_resample_the_table(run: Path) -> None:
    model, before = model_from(run, "crops.global_size=48"), build_model(compose_config(SMALL))
    for place in ("student", "teacher"):
        assert f"{place}.backbone: taken, its position table resampled from 16 to 36 patches" in model.origin
        backbone = getattr(before, place)["backbone"]
        backbone.pos_embed.data = saved(run)[f"{place}.backbone.pos_embed"]
        assert torch.equal(getattr(model, place)["backbone"].pos_embed, backbone.positions((6, 6)))
    assert_taken(model, run, "student.backbone.pos_embed", "teacher.backbone.pos_embed")


def test_what_is_new_is_fresh_and_what_is_gone_is_left(run: Path) -> None:
    """Fresh is what the seed gives; a centre of another head's logits means nothing."""
    overrides = [*CENTERING, "da3=enabled", "da3.teacher.variant=small", "da3.projector_hidden_dim=16"]
    overrides += ["heads.ibot_head.hidden_dim=48", "gram=snapshot"]
    model, seeded = model_from(run, *overrides), build_model(compose_config([*SMALL, *overrides]))
    fresh = ("student.ibot_head", "teacher.ibot_head", "student.da3_projector", "objectives.gram", "objectives.ibot")
    assert_taken(model, run, *fresh)
    for name, value in seeded.state_dict().items():
        if name.startswith(("student.ibot_head", "teacher.ibot_head", "student.da3_projector")):
            assert torch.equal(model.state_dict()[name], value), name
    lines = dict(line.split(": ", 1) for line in model.origin)
    assert lines["student.ibot_head"].startswith("fresh, as in the run mlp.0.bias is [64], not [48], ")
    assert lines["student.da3_projector"] == "fresh, as the run has none"
    assert lines["objectives.ibot"] == "fresh, as teacher.ibot_head is"
    assert lines["objectives.gram"] == "fresh, as the run has none"
    assert lines["student.prototype_bank"] == "left out, as this run has none"
    copied = model.objectives["gram"].backbone.state_dict()  # of the teacher as it was taken
    assert all(torch.equal(value, saved(run)[f"teacher.backbone.{name}"]) for name, value in copied.items())


def test_a_frozen_copy_is_the_runs_unless_it_has_weights_of_its_own(tmp_path: Path) -> None:
    gram = ["gram=snapshot", "objectives.gram.refresh_every=4"]
    trainer = build_trainer(compose_config([*SMALL, *gram]))
    copied = trainer.model.objectives["gram"].backbone
    copied.cls_token += 1
    checkpoint.save(tmp_path / "run" / "checkpoints", 4, trainer.state_dict(), config={}, keep=1)
    held = copied.state_dict()
    taken = model_from(tmp_path / "run", *gram).objectives["gram"].backbone.state_dict()
    assert all(torch.equal(value, held[name]) for name, value in taken.items())
    own = {name: value + 1 for name, value in held.items()}
    save_file(own, tmp_path / "own.safetensors", {"num_heads": "2"})
    model = model_from(tmp_path / "run", *gram, f"objectives.gram.path={tmp_path / 'own.safetensors'}")
    assert torch.equal(model.objectives["gram"].backbone.cls_token, own["cls_token"])
    assert any(line.startswith("objectives.gram: fresh, as it has frozen weights of its own") for line in model.origin)


def test_a_checkpoint_of_the_run(run: Path, tmp_path: Path) -> None:
    """By its folder, also where it lies elsewhere; an earlier one is another start."""
    earlier = run / "checkpoints" / "step-00000000"
    assert not torch.equal(
        model_from(earlier).student["backbone"].cls_token, model_from(run).student["backbone"].cls_token
    )
    newest = shutil.copytree(run / "checkpoints" / "step-00000001", tmp_path / "a" / "b" / "step-00000001")
    moved = model_from(newest)
    assert "its run's config.yaml is not beside it" in moved.origin[0]
    assert_taken(moved, run, "objectives")
    assert weight_facts(config(newest)) == weight_facts(config(run)) != weight_facts(config(earlier))
    assert planned_id(config(newest)) == planned_id(config(run)) != planned_id(compose_config(SMALL))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.num_heads=4"], "is of another network than model.num_heads=4; give model.num_heads=2, or start.arch"),
        (["position=rope"], "is of another network than position=rope; give position=learned"),
        (["model.ffn=swiglu", "model.norm_eps=1e-5"], "give model.ffn=mlp model.norm_eps=1e-06"),
    ],
)
def test_another_network_is_refused(overrides: list[str], message: str, run: Path) -> None:
    """Also one that no tensor tells from the run's."""
    with pytest.raises(ConfigError) as refused:
        model_from(run, *overrides)
    assert message in str(refused.value)


def test_the_network_of_the_run_without_typing_it(run: Path) -> None:
    typed = config(run)
    other = ["recipe=demo", "model.registers=3", "crops.global_size=32", "crops.local_size=16"]
    taken = compose_config(["start=run", f"start.path={run}", "start.architecture=from_path", *other])
    assert {key: value for key, value in identity(taken).items() if key.startswith("model.")}.keys() <= {
        *identity(typed), "model.size",
    }  # fmt: skip
    assert "student.backbone: taken" in build_model(taken).origin


def test_a_run_that_cannot_be_read(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"start\.path=.*: neither a run with a checkpoint nor a checkpoint"):
        weight_facts(config(tmp_path))
    (tmp_path / "w.pth").touch()
    with pytest.raises(ConfigError, match=r"start\.path=.*w\.pth: is a file of weights, no run; choose start=weights"):
        weight_facts(config(tmp_path / "w.pth"))
    copied = shutil.copytree(run, tmp_path / "copied")
    damaged = next((copied / "checkpoints" / "step-00000001").glob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        model_from(copied)
    (copied / "config.yaml").write_text("model: 3")
    with pytest.raises(ConfigError, match=r"config\.yaml is not the config of a run"):
        model_from(copied)


def test_a_frozen_backbone(run: Path) -> None:
    trainer = build_trainer(config(run, "start.freeze_backbone=4"))
    assert trainer.schedules["backbone_lr"].values[:5].tolist() == [0, 0, 0, 0, trainer.schedules["lr"][4]]


def test_the_digest_is_of_all_files(run: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "copied")
    assert weight_facts(config(copied)) == weight_facts(config(run))
    meta = copied / "checkpoints" / "step-00000001" / "meta.json"
    content = json.loads(meta.read_text())
    content["files"]["state.json"]["sha256"] = "0" * 64
    meta.write_text(json.dumps(content))
    assert weight_facts(config(copied)) != weight_facts(config(run))
