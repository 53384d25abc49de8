"""A checkpoint does not know how many ranks wrote it, nor how the model was spread over them."""

import json
from functools import partial
from operator import add
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dinoswap.config.command_line import compose_config
from dinoswap.distributed import all_reduce_mean
from dinoswap.distributed.sharding import own_share
from dinoswap.nn import block
from dinoswap.run import checkpoint
from ranks import on_ranks
from small_models import load_tool, small_run

COMMON = ["preset=aligned", "objectives.koleo.gather=true"]
LAYOUTS = {
    "one": (["distributed=none"], 1),
    "two, copies": (["distributed=ddp"], 2),
    "two, shares": (["distributed=fsdp2"], 2),
    "four, shares": (["distributed=fsdp2"], 4),
    "four, two replicas": (["distributed=fsdp2", "distributed.replicas=2"], 4),
}
SAVED, STEPS = 3, 5


def work(spread: list[str], source: str | None, folder: Path, rank: int) -> dict[str, Any]:
    """Go on from the checkpoint in `source` to step STEPS, or begin; leaves one at `folder` after SAVED steps."""
    torch.set_num_threads(1)
    trainer, batches = small_run([*COMMON, *spread])

    def train(first: int, last: int) -> list[float]:
        return [float(all_reduce_mean(trainer.step(step, batches(step))["loss"])) for step in range(first, last)]

    before: list[float] = []
    if source is None:
        before = train(0, SAVED)
    else:
        path = Path(source) / f"step-{SAVED:08d}"
        trainer.load_state_dict(checkpoint.read(path, like=trainer.sharded_like()).state)
    checkpoint.save(folder, SAVED, trainer.state_dict(), config={}, keep=1)
    return {"losses": before + train(SAVED, STEPS)}


def bytes_held(source: str, rank: int) -> int:
    """Of the state that is read from `source`, on this rank."""
    trainer, _ = small_run([*COMMON, "distributed=fsdp2"])
    state = checkpoint.read(Path(source), like=trainer.sharded_like()).state
    return sum(own_share(tensor).nbytes for tensor in checkpoint.named_tensors(state).values())


def run(layout: str, source: Path | None, folder: Path) -> list[float]:
    spread, ranks = LAYOUTS[layout]
    job = partial(work, spread, None if source is None else str(source), folder / "checkpoints")
    if ranks == 1:
        return list(job(0)["losses"])
    folder.mkdir(parents=True, exist_ok=True)
    return list(on_ranks(job, folder, world_size=ranks, seconds=200)[0]["losses"])


def put_together(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, each from the parts that are in the files of all ranks. No number is in two."""
    parts: dict[str, list[tuple[list[int], Tensor]]] = {}
    for path in (folder / f"checkpoints/step-{SAVED:08d}").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            places = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            for name, place in places.items():
                parts.setdefault(name, []).append((place["saved_offsets"], file.get_tensor(name)))
    found = {}
    for name, placed in parts.items():
        shape = [max(ends) for ends in zip(*(map(add, start, part.shape) for start, part in placed), strict=True)]
        found[name] = torch.zeros(shape, dtype=placed[0][1].dtype)
        assert sum(part.numel() for _, part in placed) == found[name].numel()
        for start, part in placed:
            found[name][tuple(slice(at, at + size) for at, size in zip(start, part.shape, strict=True))] = part
    return found


def assert_same_tensors(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


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
        ("two, shares", "four, two replicas"),
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
    assert_same_tensors(put_together(tmp_path), put_together(source))
    wanted = losses[SAVED:]
    assert found == (wanted if before == after else pytest.approx(wanted, rel=1e-5))


@pytest.mark.parametrize(("layout", "files"), [("one", 1), ("two, shares", 2)])
def test_it_is_read_whole_whoever_wrote_it(
    layout: str, files: int, begun: dict[str, tuple[Path, list[float]]], tmp_path: Path
) -> None:
    """By one process, and by any program as one file."""
    folder, _ = begun[layout]
    path = folder / f"checkpoints/step-{SAVED:08d}"
    assert len(list(path.glob("*.safetensors"))) == files
    wanted = put_together(folder)
    assert_same_tensors(checkpoint.named_tensors(checkpoint.read(path).state), wanted)
    (folder / "config.yaml").write_text(yaml.safe_dump(compose_config(["recipe=smoke"])))  # what makes it a run's
    assert load_tool("consolidate").main([str(path), "-o", str(tmp_path / "all.safetensors")]) == 0
    assert_same_tensors(load_file(tmp_path / "all.safetensors"), wanted)


def test_each_rank_writes_and_reads_its_share(begun: dict[str, tuple[Path, list[float]]], tmp_path: Path) -> None:
    """Of weights and moments alike: about half of the bytes, which nothing else of the state comes near."""
    folder, _ = begun["two, shares"]
    path = folder / f"checkpoints/step-{SAVED:08d}"
    sizes = [file.stat().st_size for file in path.glob("*.safetensors")]
    assert max(sizes) < 0.6 * sum(sizes)
    held = on_ranks(partial(bytes_held, str(path)), tmp_path, seconds=200)
    assert max(held) < 0.6 * sum(held)
    assert sum(held) == pytest.approx(sum(sizes), rel=0.1)


def dropped_samples(rank: int) -> list[list[int]]:
    """The samples that each stochastic-depth draw of a step keeps, on this rank."""
    torch.set_num_threads(1)
    trainer, batches = small_run(["preset=official", "model.drop_path=0.5", "distributed=ddp"])
    kept, draw = [], block.draw_subset

    def noted(*arguments: Any) -> tuple[Tensor, float]:
        chosen, weight = draw(*arguments)
        kept.append(chosen.tolist())
        return chosen, weight

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "draw_subset", noted)
        trainer.step(0, batches(0))
    return kept


def test_each_rank_drops_samples_of_its_own(tmp_path: Path) -> None:
    """Or the images at one place of all ranks' batches would share their fate in every layer."""
    first, second = on_ranks(dropped_samples, tmp_path)
    assert len(first) == len(second) > 4
    assert first != second
