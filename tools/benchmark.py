"""How fast a training step is, phase by phase, against the machine's own matrix-multiply peak.

    python tools/benchmark.py     # ViT-S/16 (2x224 + 8x96, batch 4) and width 192, fp32 and bf16
    python tools/benchmark.py vits16 width192 demo --compile -o results/reference/benchmark

A setting is a name below, or any name followed by config overrides. Each timed step follows a measurement of the
matrix-multiply peak, so that a machine whose clock or neighbours change moves both; the share of peak is the median of
these pairs. Whole steps and phases are timed apart: a phase ends with a device synchronisation, a whole step does not.
FLOPs are those of the published algorithm (dinoswap.run.flops), so that shares can be compared between
implementations. Nothing else should run on the machine.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dinoswap.build import build_pipeline, build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.config.facts import build_source
from dinoswap.config.settings import check
from dinoswap.files.writing import write_atomically
from dinoswap.nn.precision import EMULATED, slowdown
from dinoswap.run.flops import step_flops
from dinoswap.run.provenance import in_words, measured_on
from dinoswap.trainer import PRODUCTS, Trainer, resolve_device
from dinoswap.values import Batch

COMMON = ["model.registers=4", "model.layerscale=0.1", "model.drop_path=0", "trainer.max_steps=1000"]
SETTINGS = {
    "vits16": [
        "recipe=vits16", "data.batch_size=4", "data.tile=64", "data.stride=64",
        "heads.dino_head.prototypes=4096", "heads.ibot_head.prototypes=4096", *COMMON,
    ],
    "width192": [
        "recipe=demo", "data.batch_size=32", "model.embed_dim=192", "model.depth=12", "model.num_heads=3",
        "model.patch_size=4", "crops.global_size=32", "crops.local_size=16", "crops.local_number=6", *COMMON,
        *(f"heads.{head}_head.{key}" for head in ("dino", "ibot")
          for key in ("prototypes=1024", "hidden_dim=1024", "bottleneck_dim=256")),
    ],
    "demo": ["recipe=demo"],
}  # fmt: skip
BATCHES = 4


def synchronise(device: torch.device) -> None:
    """Waits until a GPU has done all that it was given; elsewhere it does nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_peak(device: torch.device, dtype: torch.dtype, size: int = 2048, seconds: float = 0.3) -> float:
    """Returns the median FLOP/s of a square matrix product."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    rates = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rates) < 5:
        began = time.perf_counter()
        a @ b
        synchronise(device)
        rates.append(2 * size**3 / (time.perf_counter() - began))
    return statistics.median(rates)


class Phases:
    """Seconds per phase of the steps run inside `recording`."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.seconds: dict[str, float] = defaultdict(float)

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that adds the seconds it takes to those of phase `name`."""

        def timed(*arguments: Any, **keywords: Any) -> Any:
            synchronise(self.trainer.device)
            began = time.perf_counter()
            result = function(*arguments, **keywords)
            synchronise(self.trainer.device)
            self.seconds[name] += time.perf_counter() - began
            return result

        return timed

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Wraps the function of each phase within the context, so that its seconds are added up."""
        trainer, model = self.trainer, self.trainer.model
        places = [
            (model.plan, "teacher", "teacher"),
            (model.plan, "student", "student"),
            (torch.Tensor, "backward", "backward"),
            (trainer, "clip", "clip"),
            (trainer.optimizer, "step", "optimiser"),
            (trainer.ema, "update", "EMA"),
            *((objective, "forward", "heads and losses") for objective in model.objectives.values()),
        ]
        originals = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
        for owner, name, phase in places:
            setattr(owner, name, self._timed(phase, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)


def measure(overrides: list[str], steps: int) -> dict[str, Any]:
    """Returns the numbers of one row: a setting at one precision."""
    cfg = compose_config(overrides)
    check(cfg)
    trainer = build_trainer(cfg)
    dataset = build_pipeline(cfg, trainer.model)(build_source(cfg).train())
    began = time.perf_counter()
    batches = [dataset[index] for index in range(BATCHES)]
    data_seconds = (time.perf_counter() - began) / BATCHES
    mean, std = (torch.tensor(cfg["data"][key], device=trainer.device) for key in ("mean", "std"))
    on_device = [batch.to(trainer.device).normalised(mean, std) for batch in batches]
    images = batches[0].images
    flops = statistics.mean(step_flops(trainer.model, batch, trainer.schedules.final()) for batch in batches)
    precision = cfg["trainer"]["precision"]
    dtype = PRODUCTS.get(precision, torch.float32)
    for step in range(2):
        trainer.step(step, [on_device[step % BATCHES]])
    peaks, times = [], []
    for step in range(steps):
        peaks.append(matmul_peak(trainer.device, dtype))
        times.append(timed_step(trainer, step, on_device[step % BATCHES]))
    phases = Phases(trainer)
    with phases.recording():
        for step in range(BATCHES):
            timed_step(trainer, step, on_device[step])
    seconds = statistics.median(times)
    shares = [flops / time_ / peak for time_, peak in zip(times, peaks, strict=True)]
    return {
        "precision": precision,
        "images_per_step": images,
        "seconds_per_step": seconds,
        "seconds_range": [min(times), max(times)],
        "images_per_second": images / seconds,
        "flops_per_step": flops,
        "matmul_peak_flops": statistics.median(peaks),
        "share_of_peak": statistics.median(shares),
        "share_of_peak_range": [min(shares), max(shares)],
        "data_seconds_per_image_and_core": data_seconds / images,
        "phases_seconds": {name: value / BATCHES for name, value in phases.seconds.items()},
        "peak_memory_bytes": peak_memory(trainer.device),
    }


def alone(overrides: list[str], steps: int) -> dict[str, Any]:
    """Returns what `measure` returns in a process of its own, whose peak memory is then the setting's."""
    threads = torch.get_num_threads()
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        return pool.submit(measure, overrides, steps).result()


def timed_step(trainer: Trainer, step: int, batch: Batch) -> float:
    """Returns the seconds that a training step takes."""
    synchronise(trainer.device)
    began = time.perf_counter()
    trainer.step(step, [batch])
    synchronise(trainer.device)
    return time.perf_counter() - began


def native_precisions() -> list[str]:
    """Returns fp32, and bf16 unless this device emulates it, which would take hours."""
    emulated = slowdown(torch.bfloat16, resolve_device("auto")) >= EMULATED
    return ["fp32"] if emulated else ["fp32", "bf16"]


def peak_memory(device: torch.device) -> int:
    """Returns the largest number of bytes that were allocated on a GPU, or that this process had in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


Cells = list[list[str]]
"""A table: its header and its rows."""
DESCRIBED = ["setting", "precision", "compile"]


def described(row: dict[str, Any]) -> list[str]:
    """Returns the first cells of a measurement's row, under `DESCRIBED`."""
    return [row["setting"], row["precision"], "yes" if "trainer.compile=true" in row["overrides"] else "no"]


def step_cells(rows: list[dict[str, Any]]) -> Cells:
    """Returns the table of speed and memory of each measurement."""
    header = [*DESCRIBED, "s / step", "images / s", "GFLOP", "peak GFLOP/s"]
    header += ["share of peak (range)", "memory MiB", "data ms / image"]
    return [header] + [
        [
            *described(row),
            f"{row['seconds_per_step']:.3f}", f"{row['images_per_second']:.2f}",
            f"{row['flops_per_step'] / 1e9:.1f}", f"{row['matmul_peak_flops'] / 1e9:.0f}",
            "{:.1%} ({:.0%}-{:.0%})".format(row["share_of_peak"], *row["share_of_peak_range"]),
            f"{row['peak_memory_bytes'] / 2**20:.0f}", f"{row['data_seconds_per_image_and_core'] * 1e3:.2f}",
        ]
        for row in rows
    ]  # fmt: skip


def phase_cells(rows: list[dict[str, Any]]) -> Cells:
    """Returns the table of milliseconds by phase of each measurement."""
    names = list(dict.fromkeys(name for row in rows for name in row["phases_seconds"]))
    cells = [[*DESCRIBED, *(f"{name}, ms" for name in names)]]
    for row in rows:
        times = [f"{row['phases_seconds'].get(name, 0) * 1e3:.0f}" for name in names]
        cells.append([*described(row), *times])
    return cells


def rich_table(cells: Cells) -> Table:
    """Returns a table as it is printed to a terminal."""
    result = Table(*cells[0])
    for row in cells[1:]:
        result.add_row(*row)
    return result


def markdown(tables: list[Cells], machine: dict[str, Any]) -> str:
    """Returns the README.md of these tables, measured on this machine."""
    parts = [
        "# Speed of a training step\n",
        f"`python tools/benchmark.py {' '.join(sys.argv[1:])}` on {in_words(machine)}.\n"
        "FLOPs are those of the published algorithm, the peak is that of a 2048^3 matrix product measured before each\n"
        "step; the share of peak is the median over steps.",
    ]
    parts += [f"\n{markdown_table(cells)}" for cells in tables]
    return "\n".join(parts) + "\n"


def markdown_table(cells: Cells) -> str:
    """Returns a table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|---" * len(cells[0]) + "|", *lines[1:]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", nargs="*", help=f"{', '.join(SETTINGS)}, or NAME override ...")
    parser.add_argument(
        "--precision",
        nargs="+",
        choices=["fp32", *PRODUCTS],
        help="default: fp32, and bf16 where the device has instructions for it",
    )
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each row")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--compile", action="store_true", help="each row with torch.compile of the blocks as well")
    parser.add_argument("-o", "--output", type=Path, help="folder for benchmark.json and README.md")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    own = [word for word in arguments.setting if "=" in word]
    names = [word for word in arguments.setting if "=" not in word] or ([] if own else ["vits16", "width192"])
    rows = []
    for name in names or ["custom"]:
        for precision in arguments.precision or native_precisions():
            for compiled in (["trainer.compile=true"], []) if arguments.compile else ([],):
                overrides = [*SETTINGS.get(name, []), *own, *compiled, f"trainer.precision={precision}"]
                rows.append({"setting": name, "overrides": overrides, **alone(overrides, arguments.steps)})
            print(
                json.dumps({key: rows[-1][key] for key in ("setting", "precision", "share_of_peak")}), file=sys.stderr
            )
    console = Console(width=None if sys.stdout.isatty() else 160)
    tables = [step_cells(rows), phase_cells(rows)]
    console.print(*(rich_table(cells) for cells in tables))
    if arguments.output:
        machine = measured_on()
        arguments.output.mkdir(parents=True, exist_ok=True)
        report = json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n"
        write_atomically(arguments.output / "benchmark.json", report)
        write_atomically(arguments.output / "README.md", markdown(tables, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
