"""Non-finite steps: caught on the device, reported one step later, kept with the state that they met, repeatable."""

import json
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import OmegaConf

from dinoswap.optim.nonfinite import KEPT_REPLAYS, Diverged, NonFiniteGuard
from dinoswap.run import checkpoint
from dinoswap.trainer import Trainer
from dinoswap.values import Batch
from small_models import CENTERING, composed, load_tool, small_batch, small_trainer, state_tensors

GOOD, OVERFLOW, BAD = torch.tensor(0.0), torch.tensor(1.0), torch.tensor(2.0)
UNSCALED, SCALED = torch.tensor(1.0), torch.tensor(2.0)
NORMS = {"backbone": torch.tensor(3.0), "dino_head": torch.tensor(4.0)}


def test_one_bad_value_is_enough() -> None:
    guard = NonFiniteGuard(3)
    for scale in (UNSCALED, SCALED):
        assert guard.severity(torch.tensor(1.5), NORMS, scale) == GOOD
        assert guard.severity(torch.tensor(3e38), {}, scale) == GOOD
    for bad in (torch.nan, torch.inf, -torch.inf):
        bad_norms = {**NORMS, "ibot_head": torch.tensor(bad)}
        assert guard.severity(torch.tensor(bad), NORMS, SCALED) == BAD
        assert guard.severity(torch.tensor(bad), bad_norms, SCALED) == BAD
        assert guard.severity(torch.tensor(1.5), bad_norms, UNSCALED) == BAD
        assert guard.severity(torch.tensor(1.5), bad_norms, SCALED) == OVERFLOW


def watch(guard: NonFiniteGuard, flags: Sequence[torch.Tensor], first: int = 0) -> None:
    for step, flag in enumerate(flags, start=first):
        guard.watch(step, [], flag)
        guard.resolve()


def test_the_limit_counts_steps_in_a_row() -> None:
    guard = NonFiniteGuard(3)
    watch(guard, [BAD, BAD, GOOD, BAD, OVERFLOW, BAD, OVERFLOW])
    assert (guard.in_a_row, guard.total) == (2, 4)
    guard.resolve()  # nothing is watched
    assert (guard.in_a_row, guard.total) == (2, 4)
    with pytest.raises(Diverged, match=r"step 8: .* last of 3 such steps in a row .*schedule.base_lr"):
        watch(guard, [BAD], first=7)


def test_the_count_survives_a_restart() -> None:
    before, after = NonFiniteGuard(3), NonFiniteGuard(3)
    watch(before, [GOOD, BAD, BAD])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    with pytest.raises(Diverged):
        watch(after, [BAD])


def test_the_first_few_are_kept_and_all_reported(caplog: pytest.LogCaptureFixture) -> None:
    guard, kept = NonFiniteGuard(100), []
    guard.keep = lambda step, batches: kept.append(step) or Path(f"kept-{step}")
    with caplog.at_level(logging.WARNING):
        watch(guard, [GOOD, BAD, BAD, GOOD, BAD, BAD])
    assert kept == [1, 2, 4]
    assert len(kept) == KEPT_REPLAYS
    reports = [r.getMessage() for r in caplog.records]
    assert [r.split(":")[0] for r in reports] == ["step 2", "step 3", "step 5", "step 6"]  # as in metrics.jsonl
    assert "kept-4" in reports[2]
    assert "kept" not in reports[3]


# --- replay -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tool() -> ModuleType:
    return load_tool("replay")


OVERRIDES = ["model.drop_path=0.3", *CENTERING]


def run_with(bad: Batch, folder: Path, precision: str) -> tuple[Trainer, dict[str, float], dict[str, torch.Tensor]]:
    """Two good steps, a bad one, a good one. The trainer, the logs of the bad step and the state that it met."""
    overrides = [*OVERRIDES, f"trainer.precision={precision}"]
    OmegaConf.save(composed(["recipe=smoke", *overrides]), folder / "config.yaml")
    trainer = small_trainer(*overrides)

    def keep(step: int, batches: Sequence[Batch]) -> Path:
        state = {"batches": [b.tensors() for b in batches], "trainer": trainer.state_dict()}
        return checkpoint.save(folder / "nonfinite", step + 1, state, config={}, keep=3)

    trainer.guard.keep = keep
    for step in (1, 2):
        trainer.step(step, [small_batch(step)])
    met = state_tensors(trainer)
    logs = trainer.step(3, [small_batch(3), bad])
    trainer.step(4, [small_batch(4)])
    return trainer, {name: float(value) for name, value in logs.items()}, met


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_non_finite_step_can_be_repeated_exactly(tool: ModuleType, precision: str, tmp_path: Path) -> None:
    bad = small_batch(9)
    bad.local_crops.mul_(1e30)  # finite, and the teacher, which sees no local crops, stays so
    trainer, logs, met = run_with(bad, tmp_path, precision)
    path = tmp_path / "nonfinite" / "step-00000004"
    kept = checkpoint.read(path).state["trainer"]["model"]
    assert all(torch.equal(kept[name], met[name]) for name in kept)
    assert not torch.equal(kept["student.backbone.cls_token"], trainer.model.student["backbone"].cls_token)
    assert not torch.equal(kept["objectives.dino.targets.center"], trainer.model.objectives["dino"].targets.center)

    replayed = tool.replay(path)
    assert replayed.step == 4
    assert replayed.logs["nonfinite"] == logs["nonfinite"] == 1
    assert math.isfinite(logs["dino/global"])
    assert math.isnan(logs["dino/local"])
    assert replayed.logs == pytest.approx(logs, rel=0, abs=0, nan_ok=True)
    assert replayed.origin.startswith("output of student.backbone.")


def test_replay_finds_a_bad_batch_and_prints(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = small_batch(9)
    bad.global_crops[1, 2, 0, 5, 5] = torch.nan
    run_with(bad, tmp_path, "fp32")
    monkeypatch.setattr(sys, "argv", ["replay.py", str(tmp_path / "nonfinite" / "step-00000004")])
    assert tool.main() == 0
    printed = capsys.readouterr().out
    assert "first value that is not finite: global_crops of micro-batch 1" in printed
    assert "dino/local" in printed
    assert "grad_norm/backbone" in printed


def test_replay_refuses_a_config_edited_by_hand(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = small_batch(9)
    bad.global_crops.mul_(torch.nan)
    run_with(bad, tmp_path, "fp32")
    config = OmegaConf.load(tmp_path / "config.yaml")
    config.crops.local_size = 15
    OmegaConf.save(config, tmp_path / "config.yaml")
    monkeypatch.setattr(sys, "argv", ["replay.py", str(tmp_path / "nonfinite" / "step-00000004")])
    assert tool.main() == 2
    assert "crops.local_size=15" in capsys.readouterr().err


def test_replay_of_nothing_says_so(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["replay.py", str(tmp_path / "step-00000004")])
    assert tool.main() == 2
    assert "step-00000004" in capsys.readouterr().err
