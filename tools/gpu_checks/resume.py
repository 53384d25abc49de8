"""A run that is killed after its first checkpoint and continued, against one that is not, with torch's deterministic
algorithms and without."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from dinoswap.run.metrics import read
from gpu_checks.numbers import Numbers, beyond, largest_difference

RESUMED = 1e-3
"""The largest relative difference of a loss: sums by atomic additions have no order."""
KILLED = [
    "trainer.max_steps=60", "trainer.checkpoint_every=20", "trainer.eval_every=0", "metric=[knn]", "tracker=none",
    "evaluation.images=50",
]  # fmt: skip
PLAIN, DETERMINISTIC = "as it is", "deterministic"
TRAIN = {
    PLAIN: "from dinoswap.train import main; main()",
    # It warns of an operation that has no such algorithm, instead of ending the run
    DETERMINISTIC: "import torch; torch.use_deterministic_algorithms(True, warn_only=True); "
    "from dinoswap.train import main; main()",
}
WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
"""Without which cuBLAS has no deterministic products."""
UNORDERED = "does not have a deterministic implementation"


def resume(preset: str, device: torch.device) -> Numbers:
    overrides = ["recipe=smoke", f"preset={preset}", f"trainer.device={device}", *KILLED]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        result = dict(zip(TRAIN, pool.map(partial(survived, overrides, Path(folder)), TRAIN), strict=True))
    failed = "".join(beyond(f"losses, {mode},", values["losses"], RESUMED) for mode, values in result.items())
    numbers = {f"{name}, {mode}": value for mode, values in result.items() for name, value in values.items()}
    return {**numbers, "failed": failed}


def survived(overrides: Sequence[str], folder: Path, mode: str) -> dict[str, Any]:
    """How far losses and weights of a killed run are from those of one that is not, and whether their bits differ."""
    whole, killed = folder / mode / "whole", folder / mode / "killed"
    with training(overrides, whole, mode) as other:
        with training(overrides, killed, mode) as run:
            while run.poll() is None and not list(killed.rglob("step-*/meta.json")):
                time.sleep(0.01)
            run.send_signal(signal.SIGKILL)
            if run.wait() != -signal.SIGKILL:
                raise RuntimeError(f"it ended before it could be killed: {output(killed)}")
        done = len(logged(killed))
        with training(overrides, killed, mode) as run:
            for process, results in ((run, killed), (other, whole)):
                if process.wait():
                    raise RuntimeError(f"exit status {process.returncode}: {output(results)}")
    losses, expected = logged(killed), logged(whole)
    ours, theirs = weights(killed), weights(whole)
    warned = [line.split(UNORDERED)[0].split() for line in output(whole, last=10**6).splitlines() if UNORDERED in line]
    return {
        "killed after step": done,
        "losses": largest_difference(losses, expected),
        "weights": max(float((ours[name] - value).abs().max()) for name, value in theirs.items()),
        "same bits": losses == expected and all(torch.equal(ours[name], value) for name, value in theirs.items()),
        "operations without order": sorted({words[-1] for words in warned if words}),
    }


@contextmanager
def training(overrides: Sequence[str], results: Path, mode: str) -> Iterator[subprocess.Popen[bytes]]:
    """`dinoswap-train` in a process of its own, which does not outlive the context."""
    results.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", TRAIN[mode], *overrides, f"results_dir={results}"]
    environment = os.environ | (WORKSPACE if mode == DETERMINISTIC else {})
    with (
        (results / "output.txt").open("ab") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment) as run,
    ):
        try:
            yield run
        finally:
            run.kill()


def output(results: Path, last: int = 2000) -> str:
    return (results / "output.txt").read_text()[-last:]


def logged(results: Path) -> list[float]:
    """The losses of the only run below."""
    (path,) = results.rglob("metrics.jsonl")
    return [row["loss"] for row in read(path) if "loss" in row]


def weights(results: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint of the only run below, moments included."""
    last = max(results.rglob("step-*"))
    tensors = [load_file(file) for file in sorted(last.glob("*.safetensors"))]
    return {name: value.double() for part in tensors for name, value in part.items()}


def promise(rows: Sequence[Numbers]) -> str:
    """What can be said of runs on this device, for the guarantees in README.md; "" where nothing was tried."""
    if not rows:
        return ""
    if failed := [row["of"] for row in rows if row["failed"]]:
        return f"Nothing can be promised of a killed run: it failed for {', '.join(failed)}."
    same = {mode: all(row[f"same bits, {mode}"] for row in rows) for mode in TRAIN}
    furthest = max(row[f"losses, {PLAIN}"] for row in rows)
    if same[PLAIN]:
        return "After `kill -9` the same command ends in the same bits."
    away = f"After `kill -9` the same command ends with losses within {furthest:.0e} of those of a run that went on"
    if same[DETERMINISTIC]:
        setting = "=".join(*WORKSPACE.items())
        return f"{away}, and in the same bits with torch.use_deterministic_algorithms and {setting}."
    return f"{away}; not in the same bits, with deterministic algorithms neither."
