"""Whole runs whose steps differ in the sizes of their crops, and one that is killed between two of them."""

import signal
from pathlib import Path

import pytest

from axis_arms import teacher_of
from dinoswap.run.metrics import load_record
from train_processes import TrainProcess, lines, tensor_files

SETTINGS = [
    *("recipe=smoke", "resolution=mixed", "resolution.global_sizes=[32,48]", "resolution.local_sizes=[8,16]"),
    *("trainer.max_steps=6", "trainer.checkpoint_every=2", "trainer.eval_every=3", "tracker=none"),
    *("evaluation.images=20", "evaluation.in_loop_images=20", "trainer.device=cpu"),
]
ARMS = {
    "dinov3": ["preset=dinov3", "position.rescale=2.0", "model.drop_path=0.2"],
    "official, distilled": ["preset=official", "trainer.accumulate=2", "da3=enabled", *teacher_of("enabled")],
}


@pytest.mark.parametrize("arm", ARMS)
def test_killed_it_continues_with_the_sizes_that_it_would_have_had(arm: str, tmp_path: Path) -> None:
    overrides = [*SETTINGS, *ARMS[arm]]
    undisturbed = TrainProcess(overrides, tmp_path / "undisturbed")
    assert undisturbed.wait() == 0, undisturbed.output
    killed = TrainProcess(overrides, tmp_path / "killed")
    killed.wait_for_step(3)
    assert killed.signal(signal.SIGKILL) == -signal.SIGKILL, killed.output
    continued = TrainProcess([*overrides, "data.workers=1"], tmp_path / "killed")
    assert continued.wait() == 0, continued.output
    assert "resumed after step" in continued.output
    assert lines(continued.folder) == lines(undisturbed.folder)
    last = "checkpoints/step-00000006"
    assert tensor_files(continued.folder / last) == tensor_files(undisturbed.folder / last)
    assert load_record(continued.folder / "run.json")["cost"]["flops_per_image"] > 0
    assert undisturbed.output.count("da3: teacher native") == (2 if "da3=enabled" in overrides else 0)
