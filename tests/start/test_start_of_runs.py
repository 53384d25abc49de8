"""Whole runs that begin from weights: what they say, what they record, killed and resumed, and on two ranks."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dinoswap.build import build_model
from dinoswap.config.command_line import compose_config
from dinoswap.nn.weights.load import load_backbone
from dinoswap.nn.weights.save import exported
from dinoswap.run import metrics
from ranks import on_ranks, whole
from small_models import small_run
from train_processes import TrainProcess, tensor_files

SHORT = [
    *("recipe=smoke", "trainer.device=cpu", "trainer.eval_every=0", "tracker=none"),
    *("trainer.checkpoint_every=2", "evaluation.images=20", "model.drop_path=0.3"),
]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with the weights of another seed."""
    backbone = build_model(compose_config([*SHORT, "seed=5"])).student["backbone"]
    weights, metadata = exported(backbone)
    path = tmp_path_factory.mktemp("released") / "backbone.safetensors"
    save_file(weights, path, metadata)
    return path


def finished(overrides: list[str], results: Path) -> TrainProcess:
    run = TrainProcess(overrides, results)
    assert run.wait() == 0, run.output
    return run


def test_a_killed_run_ends_in_the_same_state_and_is_trained_for_longer(released: Path, tmp_path: Path) -> None:
    steps = [*SHORT, "trainer.max_steps=4"]
    begun = [*steps, "start=weights", f"start.path={released}", "start.freeze_backbone=3"]
    whole_run = finished(begun, tmp_path / "whole")
    killed = TrainProcess(begun, tmp_path / "killed", kill_at_sync=4)  # just after the first checkpoint's rename
    assert killed.wait() == -9
    resumed = finished(begun, tmp_path / "killed")
    assert "resumed after step 2" in resumed.output
    last = "checkpoints/step-00000004"
    assert tensor_files(resumed.folder / last) == tensor_files(whole_run.folder / last)

    record = metrics.load_record(whole_run.folder / "run.json")
    assert record["origin"][0] == f"student.backbone: the weights of {released}"
    assert record["origin"] == metrics.load_record(resumed.folder / "run.json")["origin"]
    assert f"student.backbone: the weights of {released}" in (whole_run.folder / "log.txt").read_text()

    again = finished(begun, tmp_path / "whole")
    hint = f"start=run start.path={whole_run.folder} trainer.max_steps=... trains what it has learnt for longer"
    assert f"is complete: nothing is left to do; {hint}" in again.output
    more = TrainProcess([*begun, "trainer.max_steps=6"], tmp_path / "whole")
    assert more.wait() == 0, more.output
    assert f"differs from {whole_run.folder.parent.name} in trainer.max_steps and begins anew; {hint}" in more.output
    longer = finished([*steps, "start=run", f"start.path={whole_run.folder}"], tmp_path / "longer")
    assert "student.dino_head: taken" in metrics.load_record(longer.folder / "run.json")["origin"]


def trained(overrides: list[str], rank: int = 0) -> list[dict[str, Any]]:
    """All weights, whole, before and after a step."""
    trainer, batches = small_run(overrides)
    found = []
    for step in range(2):
        found.append({name: whole(value).clone() for name, value in trainer.model.state_dict().items()})
        trainer.step(step + 1, batches(step + 1))
    return found


@pytest.mark.parametrize("spread", ["ddp", "fsdp2"])
def test_two_ranks_begin_as_one_process(spread: str, released: Path, tmp_path: Path) -> None:
    begun = ["start=weights", f"start.path={released}", "crops.global_size=48", "objectives.koleo.gather=true"]
    alone = trained(begun)
    state = load_backbone(released).state
    assert torch.equal(alone[0]["student.backbone.cls_token"], state["cls_token"])
    for rank in on_ranks(partial(trained, [*begun, f"distributed={spread}"]), tmp_path):
        assert all(torch.equal(value, alone[0][name]) for name, value in rank[0].items())
        for name, value in rank[1].items():
            torch.testing.assert_close(value, alone[1][name], rtol=1e-5, atol=1e-5, msg=name)
