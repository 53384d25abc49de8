"""Non-finite steps: caught on the device, reported one step later, kept by number with the state that they met, and
repeatable."""

import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import OmegaConf

from dinoswap.optim.nonfinite import KEPT_REPLAYS, Diverged, NonFiniteGuard
from dinoswap.run import checkpoint
from dinoswap.run.loop import RANKS
from dinoswap.trainer import Trainer
from small_models import CENTERING, composed, load_tool, small_run, state_tensors

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
        guard.watch(step, flag)
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
    """Of those in a row, which meet the same state, the first."""
    guard, kept = NonFiniteGuard(100), []
    guard.keep = lambda step: kept.append(step) or Path(f"kept-{step}")
    with caplog.at_level(logging.WARNING):
        watch(guard, [GOOD, BAD, BAD, OVERFLOW, GOOD, BAD, GOOD, BAD])
    assert kept == [1, 5]
    assert guard.total == KEPT_REPLAYS + 1
    reports = [r.getMessage() for r in caplog.records]
    assert [r.split(":")[0] for r in reports] == ["step 2", "step 3", "step 6", "step 8"]  # as in metrics.jsonl
    assert [("kept" in report) for report in reports] == [True, False, True, False]


# --- replay -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tool() -> ModuleType:
    return load_tool("replay")


OVERRIDES = ["data.batch_size=8", "trainer.accumulate=2", *CENTERING]


def run_to_the_bad_step(
    folder: Path, spoil: Callable[[Trainer], object], *overrides: str
) -> tuple[Trainer, dict[str, float], dict[str, torch.Tensor]]:
    """Two good steps, one from the state that `spoil` leaves, one more. The trainer, the logs of the bad step and the
    state that it met."""
    overrides = (*OVERRIDES, *overrides)
    OmegaConf.save(composed(["recipe=smoke", "trainer.device=cpu", *overrides]), folder / "config.yaml")
    trainer, batches = small_run([*overrides])

    def keep(step: int) -> Path:
        return checkpoint.save(folder / "nonfinite", step + 1, {**trainer.state_dict(), RANKS: 1}, config={}, keep=3)

    trainer.guard.keep = keep
    for step in (1, 2):
        trainer.step(step, batches(step))
    spoil(trainer)
    met = state_tensors(trainer)
    logs = trainer.step(3, batches(3))
    trainer.step(4, batches(4))
    return trainer, {name: float(value) for name, value in logs.items()}, met


def make_huge(trainer: Trainer) -> None:
    """Finite, and the teacher is left alone."""
    with torch.no_grad():
        trainer.model.student["backbone"].norm.weight.fill_(3e38)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_non_finite_step_can_be_repeated_exactly(tool: ModuleType, precision: str, tmp_path: Path) -> None:
    """From the state and the number of the step."""
    own = [f"trainer.precision={precision}", "model.drop_path=0.3"]
    _, logs, met = run_to_the_bad_step(tmp_path, make_huge, *own)
    path = tmp_path / "nonfinite" / "step-00000004"
    kept = checkpoint.read(path).state["model"]
    assert all(torch.equal(kept[name], met[name]) for name in kept)

    replayed = tool.replay(path)
    assert replayed.step == 4
    assert replayed.logs["nonfinite"] == logs["nonfinite"] == 1
    assert math.isnan(logs["dino/local"])
    assert replayed.logs == pytest.approx(logs, rel=0, abs=0, nan_ok=True)
    assert replayed.origin.startswith("output of student.backbone.norm ")


def test_replay_finds_a_bad_weight_and_prints(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_to_the_bad_step(tmp_path, lambda trainer: trainer.model.student["backbone"].norm.weight.data.fill_(torch.nan))
    monkeypatch.setattr(sys, "argv", ["replay.py", str(tmp_path / "nonfinite" / "step-00000004")])
    assert tool.main() == 0
    printed = capsys.readouterr().out
    assert "first value that is not finite: weight student.backbone.norm.weight" in printed
    assert "dino/local" in printed
    assert "grad_norm/backbone" in printed


def test_the_images_of_each_rank_are_replayed(tool: ModuleType, tmp_path: Path) -> None:
    """Of a step of two ranks, which had half of them each."""
    trainer, _, _ = run_to_the_bad_step(tmp_path, make_huge)
    state = {**trainer.state_dict(), RANKS: 2}
    path = checkpoint.save(tmp_path / "nonfinite", 6, state, config={}, keep=3)
    _, batches = small_run(OVERRIDES)
    whole = torch.stack([batch.indices for batch in batches(5)]).view(2, 2, -1)  # micro-batches, ranks, images
    shares = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", lambda _, step, batches: shares.append((step, batches)) or {})
        for rank in range(2):
            tool.replay(path, rank)
    for rank, (step, batches_of_rank) in enumerate(shares):
        assert step == 5
        assert torch.equal(torch.stack([batch.indices for batch in batches_of_rank]), whole[:, rank])
    with pytest.raises(ValueError, match="--rank 2: the step had 2 ranks, from 0"):
        tool.replay(path, 2)
    with pytest.raises(ValueError, match="step-00000007: give a folder in RUN_FOLDER/nonfinite"):
        tool.replay(checkpoint.save(tmp_path / "checkpoints", 7, trainer.state_dict(), config={}, keep=1))


def test_replay_refuses_a_config_edited_by_hand(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_to_the_bad_step(tmp_path, make_huge)
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
