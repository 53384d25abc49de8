"""Does a run on this machine's GPU do what it does on the CPU, and does nothing in a step wait for it? A few minutes.

    python tools/check_gpu.py -o FOLDER                         # all checks of all presets
    python tools/check_gpu.py -o FOLDER --checks waits losses --presets official
    python tools/check_gpu.py -o FOLDER --device cpu            # tries the script where there is no GPU

waits    two steps, then ten in which torch raises where the host waits for the GPU; copying the batch is a part of each
losses   twenty steps of recipe=smoke against the CPU's, in fp32, bf16 and bf16_params, each against its tolerance;
         without dropout, whose draws differ between devices
resume   a run of recipe=smoke that is killed after its first checkpoint, and continued, against one that is not
speed    images per second and peak memory of steps of recipe=vits16 with 64 images; of recipe=smoke on a CPU

A check that fails does not stop the others. Prints a table and writes FOLDER/check_gpu.json, with every number. The
exit status is 1 where one failed.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dinoswap.build import build_pipeline, build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.config.explain import presets
from dinoswap.config.facts import build_source
from dinoswap.files.writing import write_atomically
from dinoswap.run.loop import peak_memory
from dinoswap.run.metrics import read
from dinoswap.run.provenance import in_words, measured_on
from dinoswap.trainer import resolve_device
from dinoswap.values import Batch

Numbers = dict[str, Any]
"""What a check measured. `failed` says in words what is wrong, "" nothing; `skipped` why it did not run."""

STEPS = 20
TOLERANCES = {"fp32": 1e-3, "bf16": 2e-2, "bf16_params": 3e-2}
"""The largest relative difference of a loss to that of the CPU in float32. bf16 has 8 bits."""
RESUMED = 1e-3
"""Likewise, of a continued run to one that was not killed: sums by atomic additions have no order."""
WITHOUT_DRAWS = ["model.drop_path=0", "model.residual_dropout=0"]
KILLED = [
    "trainer.max_steps=60", "trainer.checkpoint_every=20", "trainer.eval_every=0", "metric=[knn]", "tracker=none",
    "evaluation.images=50",
]  # fmt: skip
SPEED = {
    "cuda": ["recipe=vits16", "data.batch_size=64", "data.workers=0", "data.tile=64", "data.stride=64"],
    "cpu": ["recipe=smoke"],
}


class Steps:
    """The trainer of some overrides and its batches, in pinned memory where it has a GPU."""

    def __init__(self, device: torch.device, *overrides: str, batches: int) -> None:
        config = compose_config([*overrides, f"trainer.device={device}"])
        self.device, self.trainer = device, build_trainer(config)
        dataset = build_pipeline(config, self.trainer.model)(build_source(config).train())
        self.mean, self.std = (torch.tensor(config["data"][key], device=device) for key in ("mean", "std"))
        made = [dataset[step] for step in range(batches)]
        self.batches: list[Batch] = [batch.pin_memory() for batch in made] if device.type == "cuda" else made

    def step(self, step: int) -> torch.Tensor:
        """The loss."""
        batch = self.batches[step % len(self.batches)].to(self.device).normalised(self.mean, self.std)
        return self.trainer.step(step, [batch])["loss"]

    def losses(self, steps: int) -> list[float]:
        return torch.stack([self.step(step) for step in range(steps)]).tolist()


def waits(preset: str, device: torch.device) -> Numbers:
    if device.type != "cuda":
        return {"skipped": "only a GPU is waited for; tests/test_no_waits.py looks for what would wait without one"}
    drop_path = [] if preset == "legacy" else ["model.drop_path=0.3"]  # which has dropout of another kind
    steps = Steps(device, "recipe=smoke", f"preset={preset}", "trainer.precision=bf16", *drop_path, batches=4)
    steps.losses(2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2, 12):
            steps.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"steps": 10}


def losses(preset: str, device: torch.device) -> Numbers:
    overrides = ["recipe=smoke", f"preset={preset}", f"trainer.max_steps={STEPS}", "data.batch_size=4", *WITHOUT_DRAWS]
    expected = Steps(torch.device("cpu"), *overrides, batches=STEPS).losses(STEPS)
    numbers: Numbers = {"of the CPU": expected, "failed": ""}
    for precision, tolerance in TOLERANCES.items():
        found = Steps(device, *overrides, f"trainer.precision={precision}", batches=STEPS).losses(STEPS)
        difference = largest_difference(found, expected)
        numbers |= {precision: found, f"difference in {precision}": difference}
        if not difference <= tolerance:
            numbers["failed"] += f"{precision} differs by {difference:.1e}, more than {tolerance:.0e}; "
    return numbers


def resume(preset: str, device: torch.device) -> Numbers:
    overrides = ["recipe=smoke", f"preset={preset}", f"trainer.device={device}", *KILLED]
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        train_to_the_end(overrides, whole)
        with training(overrides, killed) as run:
            while run.poll() is None and not list(killed.rglob("step-*/meta.json")):
                time.sleep(0.01)
            run.send_signal(signal.SIGKILL)
            if run.wait() != -signal.SIGKILL:
                return {"failed": f"it ended before it could be killed: {output(killed)}"}
        done = len(logged(killed))
        train_to_the_end(overrides, killed)
        expected, found = logged(whole), logged(killed)
    difference = largest_difference(found, expected)
    failed = "" if difference <= RESUMED else f"losses differ by {difference:.1e}, more than {RESUMED:.0e}"
    return {"killed after step": done, "difference": difference, "same bits": found == expected, "failed": failed}


def speed(preset: str, device: torch.device) -> Numbers:
    steps = Steps(device, *SPEED[device.type], f"preset={preset}", batches=1)
    steps.losses(3)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    steps.losses(10)  # the last line of which reads them, and so waits
    seconds = (time.perf_counter() - began) / 10
    return {"images per second": steps.batches[0].images / seconds, "peak MiB": peak_memory(device) / 2**20}


CHECKS: dict[str, Callable[[str, torch.device], Numbers]] = {
    "waits": waits, "losses": losses, "resume": resume, "speed": speed,
}  # fmt: skip


def largest_difference(found: list[float], expected: list[float]) -> float:
    """Relative to what is expected; NaN, which no tolerance holds, where a value is not finite."""
    ours, theirs = (torch.tensor(values, dtype=torch.float64) for values in (found, expected))
    return float(((ours - theirs) / theirs).abs().max())


@contextmanager
def training(overrides: list[str], results: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`dinoswap-train` in a process of its own, which does not outlive the context."""
    results.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "dinoswap.train", *overrides, f"results_dir={results}"]
    with (results / "output.txt").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as run:
        try:
            yield run
        finally:
            run.kill()


def train_to_the_end(overrides: list[str], results: Path) -> None:
    """Raises RuntimeError, with what the run printed, where it fails."""
    with training(overrides, results) as run:
        if run.wait():
            raise RuntimeError(f"exit status {run.returncode}: {output(results)}")


def output(results: Path) -> str:
    return (results / "output.txt").read_text()[-2000:]


def logged(results: Path) -> list[float]:
    """The losses of the only run below."""
    (path,) = results.rglob("metrics.jsonl")
    return [row["loss"] for row in read(path) if "loss" in row]


def checked(check: str, preset: str, device: torch.device) -> Numbers:
    """What a check found, with the time that it took; where it raised, that is why it failed."""
    began = time.perf_counter()
    try:
        numbers = CHECKS[check](preset, device)
    except Exception as error:  # whatever it is: the other checks go on
        numbers = {"failed": f"{type(error).__name__}: {error}"}
    seconds = round(time.perf_counter() - began, 1)
    return {"check": check, "preset": preset, "failed": "", **numbers, "seconds": seconds}


def table(rows: list[Numbers]) -> Table:
    made = Table("check", "preset", "", "found", "s")
    for row in rows:
        told = {key: value for key, value in row.items() if not isinstance(value, list) and key not in SHOWN_APART}
        verdict = "FAILED" if row["failed"] else "skipped" if "skipped" in row else "ok"
        found = row["failed"] or row.get("skipped") or ", ".join(f"{key} {shown(value)}" for key, value in told.items())
        made.add_row(row["check"], row["preset"], verdict, found, str(row["seconds"]))
    return made


SHOWN_APART = ("check", "preset", "failed", "seconds")


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of check_gpu.json")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--presets", nargs="+", choices=presets(), default=list(presets()))
    arguments = parser.parse_args()
    try:
        device = resolve_device(arguments.device)
    except ValueError as error:
        parser.error(str(error))
    machine = measured_on()
    if device.type == "cuda":
        machine["gpu"] = torch.cuda.get_device_name(device)
    rows: list[Numbers] = []
    for check in arguments.checks:
        for preset in arguments.presets:
            rows.append(checked(check, preset, device))
            print(f"{check} {preset}: {rows[-1]['failed'] or 'done'}", file=sys.stderr, flush=True)
            arguments.output.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"device": str(device), "machine": machine, "rows": rows}, indent=1)
            write_atomically(arguments.output / "check_gpu.json", text + "\n")
    Console().print(table(rows), in_words(machine), machine.get("gpu", ""))
    return int(any(row["failed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
