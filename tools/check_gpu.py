"""Does a run on this machine's GPU do what it does on the CPU, and how fast? The first thing to run where there is one.

    python tools/check_gpu.py -o FOLDER                         # all checks, in five to ten minutes on one GPU
    python tools/check_gpu.py -o FOLDER --checks parity waits --presets official
    python tools/check_gpu.py -o FOLDER --parity /data/fixtures # other folders official, legacy, dinov3, da3
    python tools/check_gpu.py -o FOLDER --device cpu            # tries the script where there is no GPU, on less

parity   the fixtures of tools/check_parity.py, without TF32: what is beyond the tolerance of a CPU is listed, ten times
         beyond it fails
waits    two steps, then ten in which torch raises where the host waits for the GPU; copying the batch is a part of each
losses   twenty steps of recipe=smoke against the CPU's, in fp32, bf16 and bf16_params, each against its tolerance;
         without dropout, whose draws differ between devices
ranks    two ranks on this GPU by gloo, and one by NCCL, with DDP and with FSDP2, against one process
compile  trainer.compile=true and cudagraphs against eager steps: losses, graphs, whether later steps make more, seconds
resume   a run of recipe=smoke that is killed (kill -9) after its first checkpoint and continued, against one that is
         not, with torch's deterministic algorithms and without; what README.md may promise follows from it
speed    images per second and peak memory of ViT-S/16, B/16 and L/14 in bf16 at the largest batch that fits, eager and
         compiled, and what tools/plan.py says of them; of recipe=smoke on a CPU

No network is needed. What matters most comes first, speed last. Each check has a time limit; one that fails, hangs or
crashes does not stop the others. After each FOLDER/check_gpu.json, with every number, and FOLDER/README.md are written.
The exit status is 1 where one failed.
"""

import argparse
import gc
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from dinoswap.config.explain import presets
from dinoswap.distributed.environment import expand_segments
from dinoswap.files.writing import write_atomically
from dinoswap.run.provenance import in_words, measured_on
from dinoswap.trainer import resolve_device
from gpu_checks.fixtures import FOLDER, KINDS, parity
from gpu_checks.numbers import Check, Numbers
from gpu_checks.page import page, terminal_table
from gpu_checks.ranks import SPREADS, ranks
from gpu_checks.resume import resume
from gpu_checks.speed import compared_with_plan, in_table, speed, subjects
from gpu_checks.steps import compiled_steps, losses, waits
from gpu_checks.worker import Worker

PRESETS = tuple(presets())
CHECKS = {
    "parity": Check(parity, lambda _: [*KINDS], 90),
    "waits": Check(waits, lambda _: PRESETS, 40),
    "losses": Check(losses, lambda _: PRESETS, 60),
    "ranks": Check(ranks, lambda _: [f"{backend} {spread}" for backend in ("gloo", "nccl") for spread in SPREADS], 60),
    "compile": Check(compiled_steps, lambda _: ("true", "cudagraphs"), 120),
    "resume": Check(resume, lambda device: PRESETS if device.type == "cuda" else PRESETS[:1], 90),
    "speed": Check(speed, subjects, 90),
}
"""In the order in which they are worth the most."""
OF_PRESETS = ("waits", "losses", "resume")
PATIENCE = 10
"""So many times the limits on a CPU, which may be slow or shared: they are against what hangs."""
START_SECONDS, PLAN_SECONDS = 90, 60


def checked(check: str, subject: str, device: str) -> Numbers:
    """What a check found; where it raised, that is why it failed."""
    gc.collect()  # models of the check before
    if device != "cpu":
        torch.cuda.empty_cache()
    try:
        return CHECKS[check].run(subject, torch.device(device))
    except Exception as error:  # whatever it is: the other checks go on
        return {"failed": f"{type(error).__name__}: {error}"}


def planned(row: Numbers, gpu: str | None) -> Numbers:
    try:
        return compared_with_plan(row, gpu)
    except Exception as error:
        return {"failed": f"its plan: {type(error).__name__}: {error}"}


def described(device: str) -> Numbers:
    """The machine, and the GPU by name and memory."""
    if device == "cpu":
        return measured_on()
    properties = torch.cuda.get_device_properties(device)
    return {**measured_on(), "gpu": properties.name, "gpu_memory_bytes": properties.total_memory}


def work(function: str, *arguments: Any) -> Numbers:
    """What a worker does: one of these functions. This process has no context on the GPU, which would take memory."""
    expand_segments()
    return {"checked": checked, "planned": planned, "described": described}[function](*arguments)


def indexed(device: torch.device) -> torch.device:
    """The device by its number, which ranks need."""
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def run(arguments: argparse.Namespace, device: torch.device, command: str) -> list[Numbers]:
    """The rows of all checks; the report is written after each."""
    patience = 1 if device.type == "cuda" else PATIENCE
    rows: list[Numbers] = []
    arguments.output.mkdir(parents=True, exist_ok=True)
    with Worker(work) as worker:
        machine = {**measured_on(), **worker(patience * START_SECONDS, "described", str(device))}
        gpu = in_table(machine.get("gpu", ""), machine.get("gpu_memory_bytes", 0))
        report: Numbers = {"command": command, "device": str(device), "machine": machine, "rows": rows}
        for name in arguments.checks:
            check = CHECKS[name]
            for subject in check.subjects(device):
                if name in OF_PRESETS and subject not in arguments.presets:
                    continue
                began = time.perf_counter()
                found = worker(patience * check.seconds, "checked", name, subject, str(device))
                row = {"check": name, "of": subject, "failed": "", **found}
                if name == "speed" and not row["failed"]:
                    row |= worker(patience * PLAN_SECONDS, "planned", row, gpu)
                rows.append(row | {"seconds": round(time.perf_counter() - began, 1)})
                print(f"{name} {subject}: {row['failed'] or row.get('skipped') or 'done'}", file=sys.stderr, flush=True)
                write_atomically(arguments.output / "check_gpu.json", json.dumps(report, indent=1) + "\n")
                write_atomically(arguments.output / "README.md", page(report))
    Console().print(terminal_table(rows), in_words(machine), machine.get("gpu", ""))
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of check_gpu.json and README.md")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--parity", type=Path, help="folder of the folders of fixtures (default: tests/parity)")
    arguments = parser.parse_args(argv)
    try:
        device = indexed(resolve_device(arguments.device))
    except ValueError as error:
        parser.error(str(error))
    if arguments.parity:
        os.environ[FOLDER] = str(arguments.parity)
    command = shlex.join(["python", "tools/check_gpu.py", *(sys.argv[1:] if argv is None else argv)])
    return int(any(row["failed"] for row in run(arguments, device, command)))


if __name__ == "__main__":
    sys.exit(main())
