"""What leads to a collective is decided for all ranks: none of them asks a clock or a signal of its own."""

import os
import signal
import time
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dinoswap.config.configuration import plain
from dinoswap.distributed import any_rank, is_main
from dinoswap.run import checkpoint, loop
from dinoswap.run.assemble import build_run
from dinoswap.run.loop import Preempted, Run
from dinoswap.run.metrics import RunRecord
from ranks import on_ranks
from small_models import composed

STEPS, MINUTES = 24, 0.1
SETTINGS = [
    *("recipe=smoke", "distributed=ddp", "trainer.precision=fp32", "tracker=none", "trainer.device=cpu"),
    *("trainer.checkpoint_every=0", "trainer.keep_checkpoints=100", "data.workers=0", "evaluation.images=20"),
    *("evaluation.in_loop_images=20", f"trainer.max_steps={STEPS}", f"trainer.checkpoint_minutes={MINUTES}"),
]


def small(folder: Path, *overrides: str) -> Run:
    """A run of the embedded images that is no job of Hydra."""
    record = RunRecord(folder / "run.json", "", "", 0, {}, [])
    return build_run(plain(composed([*SETTINGS, *overrides])), folder, lambda: record)


def saved_steps(patch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the steps of the checkpoints that this process takes part in."""
    steps, save = [], checkpoint.Writer.save

    def noted(writer: checkpoint.Writer, folder: Path, step: int, *args: Any, **how: Any) -> Path:
        steps.append(step)
        return save(writer, folder, step, *args, **how)

    patch.setattr(checkpoint.Writer, "save", noted)
    return steps


def clock(seconds: Iterator[float], patch: pytest.MonkeyPatch) -> None:
    """The loop's clock shows the next of `seconds` each time it is asked."""
    patch.setattr(loop, "time", types.SimpleNamespace(monotonic=partial(next, seconds), perf_counter=lambda: 0.0))


def ticking(by: float) -> Iterator[float]:
    now = time.monotonic()
    while True:
        yield now
        now += by


def train_by_the_clock(folder: Path, rank: int) -> dict[str, list[int]]:
    """The steps saved by a run to its end, by skew of the clocks: seconds for each time that rank 1 asks its own."""
    found = {}
    for seconds in (0.0, 1000.0):
        with pytest.MonkeyPatch.context() as patch:
            found[str(seconds)] = saved_steps(patch)
            clock(ticking(by=seconds if rank else 1.0), patch)
            small(folder / str(seconds)).train()
    return found


def stopped_by_a_signal(folder: Path, rank: int) -> tuple[list[int], str, str]:
    """The steps saved by a run of which rank 1 gets a signal in its third step, and what it says; and the folder in
    which it keeps a non-finite step."""
    with pytest.MonkeyPatch.context() as patch:
        steps, run = saved_steps(patch), small(folder / "signal", "trainer.checkpoint_minutes=0")
        step = run.trainer.step

        def signalled(number: int, batches: Any) -> Any:
            if rank == 1 and number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(number, batches)

        patch.setattr(run.trainer, "step", signalled)
        with pytest.raises(Preempted) as caught:
            run.train()
    saved, path = list(steps), run.save_replay(3)
    run.writer.wait()
    return saved, str(caught.value), str(path)


def everything(folder: Path, rank: int) -> dict[str, Any]:
    wishes = [any_rank(), any_rank(False, False), any_rank(rank == 1, False), any_rank(is_main(), rank == 1, False)]
    by_clock, stopped = train_by_the_clock(folder, rank), stopped_by_a_signal(folder, rank)
    return {"wishes": wishes, "by clock": by_clock, "stopped": stopped}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("decisions")
    return on_ranks(partial(everything, folder), folder, seconds=240)


def test_a_wish_of_one_rank_is_one_of_all(ranks: list[dict[str, Any]]) -> None:
    wanted = [[], [False, False], [True, False], [True, True, False]]
    assert [found["wishes"] for found in ranks] == [wanted, wanted]


def test_the_first_rank_s_clock_saves_on_all(ranks: list[dict[str, Any]]) -> None:
    """Rank 1's stands still in one run and is always due in the other. Rank 0's is asked once a step and a few times in
    a save, so that it saves every few steps."""
    first, other = (found["by clock"] for found in ranks)
    assert first == other
    assert first["0.0"] == first["1000.0"]
    assert 2 < len(first["0.0"]) < STEPS / 2
    assert first["0.0"][-1] == STEPS


def test_a_signal_to_one_rank_saves_once_on_all(ranks: list[dict[str, Any]]) -> None:
    first, other = (found["stopped"] for found in ranks)
    assert first[0] == other[0] == [3]
    assert other[1] == "SIGTERM: saved after step 3"
    assert first[1] == "a signal to another rank: saved after step 3"


def test_a_non_finite_step_is_kept_once(ranks: list[dict[str, Any]]) -> None:
    """By all ranks in one folder: the state before it, of which each writes a part, and how many ranks there were."""
    first, other = (Path(found["stopped"][2]) for found in ranks)
    assert first == other
    assert [path.name for path in first.parent.parent.glob("nonfinite*")] == ["nonfinite"]
    assert first.name == "step-00000004"
    sizes = [path.stat().st_size for path in first.glob("*.safetensors")]
    assert len(sizes) == 2
    assert max(sizes) < 0.6 * sum(sizes)
    saved = checkpoint.read(first.parents[1] / "checkpoints/step-00000003")
    kept = checkpoint.read(first)
    before, after = (checkpoint.named_tensors(found.state) for found in (saved, kept))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert kept.state[loop.RANKS] == 2
