"""What the losses of K = 65536 prototypes and more need: peak memory and time of one head-and-loss step.

    python tools/benchmark_prototypes.py -o results/reference/prototypes
    git archive REVISION ssl | tar x -C earlier
    python tools/benchmark_prototypes.py --earlier earlier/ssl --prototypes 262144 --rows 500 --precisions bf16

One step: bottleneck features of teacher and student -> last layers -> Sinkhorn-Knopp targets -> cross-entropy ->
backward to the student's features and its last layer. `official` is the form of dinov2/loss/ibot_patch_loss.py of
facebookresearch/dinov2 @ b8931f7, written out below; `ours` is the iBOT objective, `earlier` that of another revision.
Each measurement is a process of its own, one form after the other in every round; ratios are medians over the rounds.
Memory is what the step adds at its highest to a process that holds features and layers. Nothing else should run on the
machine. Writes prototypes.json and README.md.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from benchmark import Cells, markdown_table, rich_table, synchronise
from dinoswap.files.writing import write_atomically
from dinoswap.nn.projection_head import Prototypes
from dinoswap.objectives.base import Context
from dinoswap.objectives.ibot import IBOT
from dinoswap.run.provenance import in_words, measured_on
from dinoswap.targets.sinkhorn import SinkhornKnopp
from dinoswap.values import Batch, Features, masked_positions

TEACHER_TEMP, STUDENT_TEMP, ITERATIONS = 0.07, 0.1, 3
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@torch.no_grad()
def official_targets(logits: Tensor) -> Tensor:
    """Returns the targets of `sinkhorn_knopp_teacher` for logits [M, K], on one rank."""
    q = torch.exp(logits.float() / TEACHER_TEMP).t()
    prototypes, rows = q.shape
    q /= q.sum()
    for _ in range(ITERATIONS):
        q /= q.sum(dim=1, keepdim=True)
        q /= prototypes
        q /= q.sum(dim=0, keepdim=True)
        q /= rows
    q *= rows
    return q.t()


class Step:
    """Features [M, D] and last layers, and the step in both forms."""

    def __init__(self, rows: int, prototypes: int, dim: int, precision: str, device: torch.device) -> None:
        torch.manual_seed(0)
        layer = Prototypes(dim, prototypes, train_weight_g=True).to(device)
        self.student = nn.ModuleDict({"ibot_head": layer})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.features, self.teacher_features = (
            functional.normalize(torch.randn(rows, dim, device=device), dim=-1) for _ in range(2)
        )
        self.features.requires_grad_()
        self.autocast = torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")
        self.device = device

    def seconds(self, form: str) -> float:
        """Returns the seconds of one step in this form."""
        self.student.zero_grad()
        self.features.grad = None
        synchronise(self.device)
        began = time.perf_counter()
        self.official() if form == "official" else self.ours()
        synchronise(self.device)
        return time.perf_counter() - began

    def official(self) -> None:
        """Computes loss and gradients as `forward_backward` of the official code does, where the student's logits and
        the targets live until the end of the step. Autocast on CUDA widens what log_softmax is given."""
        with self.autocast:
            with torch.no_grad():
                targets = official_targets(self.teacher["ibot_head"](self.teacher_features))
            logits = self.student["ibot_head"](self.features)
            losses = -torch.sum(targets * functional.log_softmax((logits / STUDENT_TEMP).float(), dim=-1), dim=-1)
        losses.mean().backward()

    def ours(self) -> None:
        """Computes loss and gradients by the objective `IBOT`."""
        mask = torch.ones(1, 1, len(self.features), dtype=torch.bool)
        nothing = self.features.new_empty(0)
        batch = Batch(nothing, nothing, nothing, mask, **masked_positions(mask), indices=torch.arange(1))
        objective = IBOT(
            SinkhornKnopp(iterations=ITERATIONS),
            lambda losses, *_: losses.mean(),
            head="ibot_head",
            loss_weight=1.0,
            student_temp=STUDENT_TEMP,
            pad_masked=None,
        )
        student, teacher = (Features(nothing, nothing, patches) for patches in (self.features, self.teacher_features))
        context = Context(batch, {"teacher_temp": TEACHER_TEMP}, student, teacher, self.student, self.teacher)
        with self.autocast:
            loss = objective(context)["masked"]
        loss.backward()


def highest_memory(device: torch.device) -> int:
    """Returns the largest number of bytes that this program had so far. `getrusage` would count those of its parent,
    which it was before it was itself."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def measure(form: str, device: torch.device, steps: int, **sizes: Any) -> dict[str, float]:
    """Returns the peak memory of the first step, and the median seconds of those after it."""
    Step(16, 64, 8, sizes["precision"], device).seconds(form)  # what is made once: threads, buffers of kernels
    step = Step(device=device, **sizes)
    before = highest_memory(device)
    step.seconds(form)
    memory = highest_memory(device) - before
    return {"memory_bytes": memory, "seconds": statistics.median(step.seconds(form) for _ in range(steps))}


def alone(form: str, earlier: Path | None, options: list[str]) -> dict[str, float]:
    """Returns what `measure` returns in a process of its own; for the form `earlier` with the package in that
    folder."""
    environment = {**os.environ, **({"PYTHONPATH": str(earlier)} if form == "earlier" else {})}
    command = [sys.executable, __file__, "--measure", form, *options]
    measured: dict[str, float] = json.loads(subprocess.run(command, env=environment, check=True, stdout=-1).stdout)
    return measured


def measure_in_turns(forms: list[str], rounds: int, run: Callable[[str], dict[str, float]]) -> list[dict[str, Any]]:
    """Returns a row for each form, measured in turns; ratios are to the first form."""
    measurements = [{form: run(form) for form in forms} for _ in range(rounds)]
    rows = []
    for form in forms:
        row: dict[str, Any] = {"form": form}
        for key in ("memory_bytes", "seconds"):
            row[key] = statistics.median(measurement[form][key] for measurement in measurements)
            row[f"{key}_ratio"] = statistics.median(
                measurement[form][key] / measurement[forms[0]][key] for measurement in measurements
            )
        row["rounds"] = [measurement[form] for measurement in measurements]
        rows.append(row)
    return rows


def cells(rows: list[dict[str, Any]], matrix: int) -> Cells:
    """Returns the table of the rows; memory is also in multiples of `matrix`, the size of one float32 [M, K]."""
    header = ["precision", "form", "peak MiB", "in [M, K] of float32", "of official", "s / step", "of official"]
    return [header] + [
        [
            row["precision"], row["form"], f"{row['memory_bytes'] / 2**20:.0f}", f"{row['memory_bytes'] / matrix:.2f}",
            f"{row['memory_bytes_ratio']:.0%}", f"{row['seconds']:.2f}", f"{row['seconds_ratio']:.0%}",
        ]
        for row in rows
    ]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000, help="M, masked tokens")
    parser.add_argument("--prototypes", type=int, default=65536, help="K")
    parser.add_argument("--dim", type=int, default=256, help="width of the bottleneck")
    parser.add_argument("--precisions", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--earlier", type=Path, help="folder with the package `dinoswap` of another revision")
    parser.add_argument("-o", "--output", type=Path, help="folder for prototypes.json and README.md")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = {"rows": arguments.rows, "prototypes": arguments.prototypes, "dim": arguments.dim}
    if arguments.measure:
        measured = measure(
            arguments.measure, arguments.device, arguments.steps, precision=arguments.precisions[0], **sizes
        )
        print(json.dumps(measured))
        return 0
    forms = ["official", *(["earlier"] if arguments.earlier else []), "ours"]
    rows = []
    for precision in arguments.precisions:
        options = [*(f"--{name}={value}" for name, value in sizes.items()), f"--precisions={precision}"]
        options += [f"--device={arguments.device}", f"--steps={arguments.steps}"]
        of_forms = measure_in_turns(
            forms, arguments.rounds, lambda form, own=options: alone(form, arguments.earlier, own)
        )
        rows += [{"precision": precision, **row} for row in of_forms]
    matrix = arguments.rows * arguments.prototypes * 4
    table = cells(rows, matrix)
    Console(width=None if sys.stdout.isatty() else 160).print(rich_table(table))
    if arguments.output:
        machine = measured_on()
        words = (
            f"# Memory and time of the losses at K = {arguments.prototypes}\n\n"
            f"`python tools/benchmark_prototypes.py {' '.join(sys.argv[1:])}` on {in_words(machine)}.\n"
            f"Last layers, Sinkhorn-Knopp, cross-entropy and backward of {arguments.rows} masked tokens; a float32 "
            f"[M, K] is {matrix / 2**20:.0f} MiB.\n`official` is the form of facebookresearch/dinov2 @ b8931f7.\n\n"
        )
        arguments.output.mkdir(parents=True, exist_ok=True)
        report = json.dumps({"machine": machine, **sizes, "rows": rows}, indent=2) + "\n"
        write_atomically(arguments.output / "prototypes.json", report)
        write_atomically(arguments.output / "README.md", words + markdown_table(table) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
