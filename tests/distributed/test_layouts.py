"""A checkpoint does not know how many ranks wrote it, nor how the model was spread over them."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dinoswap import checkpoint
from dinoswap.distributed import all_reduce_mean, is_main
from ranks import on_ranks
from small_models import small_run

COMMON = ["preset=aligned", "objectives.koleo.gather=true"]
LAYOUTS = {"one": ("none", 1), "two, copies": ("ddp", 2), "two, shares": ("fsdp2", 2), "four, shares": ("fsdp2", 4)}
SAVED, STEPS = 3, 5


def work(spread: str, source: str | None, folder: Path, rank: int) -> dict[str, Any]:
    """Go on from the checkpoint in `source` to step STEPS, or begin; leaves one at `folder` after SAVED steps."""
    torch.set_num_threads(1)
    trainer, batches = small_run([*COMMON, f"distributed={spread}"])

    def train(first: int, last: int) -> list[float]:
        return [float(all_reduce_mean(trainer.step(step, batches(step))["loss"])) for step in range(first, last)]

    before: list[float] = []
    if source is None:
        before = train(0, SAVED)
    else:
        trainer.load_state_dict(checkpoint.read(Path(source) / f"step-{SAVED:08d}").state)
    checkpoint.save(folder, SAVED, trainer.state_dict(), config={}, keep=1, writes=is_main())
    return {"losses": before + train(SAVED, STEPS)}


def run(layout: str, source: Path | None, folder: Path) -> list[float]:
    spread, ranks = LAYOUTS[layout]
    job = partial(work, spread, None if source is None else str(source), folder / "checkpoints")
    if ranks == 1:
        return list(job(0)["losses"])
    folder.mkdir(parents=True, exist_ok=True)
    return list(on_ranks(job, folder, world_size=ranks, seconds=200)[0]["losses"])


def saved(folder: Path) -> bytes:
    return (folder / f"checkpoints/step-{SAVED:08d}/tensors.safetensors").read_bytes()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[float]]]:
    """Folder and losses of a run in each of two layouts that nothing happened to."""
    found = {}
    for layout in ("one", "two, shares"):
        folder = tmp_path_factory.mktemp("begun")
        found[layout] = folder, run(layout, None, folder)
    return found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("two, shares", "one"),
        ("two, shares", "four, shares"),
        ("two, shares", "two, copies"),
        ("two, shares", "two, shares"),
        ("one", "two, shares"),
    ],
)
def test_a_run_goes_on_in_another_layout(
    before: str, after: str, begun: dict[str, tuple[Path, list[float]]], tmp_path: Path
) -> None:
    """What it loads it would save again, to the last bit; the steps that follow are those of the first layout, to the
    last bit in the same one."""
    source, losses = begun[before]
    found = run(after, source / "checkpoints", tmp_path)
    assert saved(tmp_path) == saved(source)
    wanted = losses[SAVED:]
    assert found == (wanted if before == after else pytest.approx(wanted, rel=1e-5))


def test_it_is_one_file_that_safetensors_reads(begun: dict[str, tuple[Path, list[float]]]) -> None:
    """With whole tensors, those of one process."""
    shapes = []
    for folder, _ in begun.values():
        tensors = load_file(folder / f"checkpoints/step-{SAVED:08d}/tensors.safetensors")
        shapes.append({name: tensor.shape for name, tensor in tensors.items()})
    assert shapes[0] == shapes[1]
