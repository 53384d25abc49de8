"""What a frozen teacher costs: its forward pass as a share of the training step.

    python tools/benchmark_teacher.py -o results/reference/da3/cost
    python tools/benchmark_teacher.py --teachers small -- recipe=vits16 data.batch_size=8

For each variant of Depth Anything 3 (random weights: they cost the same) the step with `da3=enabled`, and its teacher's
forward on the crops that have a masked token, as in training, and on all mask-carrying crops. The three are timed in
turn, medians are shown. The student is ViT-S/16 at 2 x 224 + 8 x 96 unless overrides say otherwise. Nothing else
should run on the machine. Writes teacher.json and README.md.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from benchmark import BATCHES, SETTINGS, Cells, markdown_table, rich_table, synchronise, timed_step
from dinoswap.build import build_pipeline, build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.config.facts import build_source
from dinoswap.config.settings import check
from dinoswap.da3.enabled import MaskedImageDistillation, grid_of
from dinoswap.files.writing import write_atomically
from dinoswap.run.provenance import in_words, measured_on
from dinoswap.values import Batch


def measure(overrides: list[str], turns: int) -> dict[str, Any]:
    """Returns the median seconds of a step and of the teacher's forward pass on masked and on all crops."""
    cfg = compose_config(overrides)
    check(cfg)
    trainer = build_trainer(cfg)
    dataset = build_pipeline(cfg, trainer.model)(build_source(cfg).train())
    mean, std = (torch.tensor(cfg["data"][key], device=trainer.device) for key in ("mean", "std"))
    batches = [dataset[index].to(trainer.device).normalised(mean, std) for index in range(BATCHES)]
    objective = cast(MaskedImageDistillation, trainer.model.objectives["da3"])
    grid = grid_of(trainer.model.student, batches[0].patch_crops)

    def forward(batch: Batch) -> float:
        synchronise(trainer.device)
        began = time.perf_counter()
        objective.masked_targets(batch, grid)
        synchronise(trainer.device)
        return time.perf_counter() - began

    times: dict[str, list[float]] = {"step": [], "masked": [], "all": []}
    for turn in range(turns + 1):
        batch = batches[turn % BATCHES]
        every = replace(batch, mask=torch.ones_like(batch.mask), masked_crops=torch.arange(batch.mask[..., 0].numel()))
        durations = {"step": timed_step(trainer, turn, batch), "masked": forward(batch), "all": forward(every)}
        if turn:  # the first one warms up
            for name, seconds in durations.items():
                times[name].append(seconds)
    crops = [len(batch.masked_crops) for batch in batches]
    return {
        "teacher": objective.teacher.network.identity,
        "overrides": overrides,
        "crops": batches[0].mask[..., 0].numel(),
        "masked_crops": statistics.mean(crops),
        "seconds": {name: statistics.median(values) for name, values in times.items()},
        "ranges": {name: [min(values), max(values)] for name, values in times.items()},
    }


def cells(rows: list[dict[str, Any]]) -> Cells:
    """Returns the table of the rows. The share without selection is what it would be if every mask-carrying crop were
    sent."""
    header = [
        "teacher",
        "s / step",
        "masked crops",
        "s for them",
        "share of step",
        "s for all crops",
        "share without selection",
    ]
    table = [header]
    for row in rows:
        step, masked, every = (row["seconds"][name] for name in ("step", "masked", "all"))
        table.append(
            [
                row["teacher"], f"{step:.3f}", f"{row['masked_crops']:.1f} of {row['crops']}", f"{masked:.3f}",
                f"{masked / step:.1%}", f"{every:.3f}", f"{every / (step - masked + every):.1%}",
            ]
        )  # fmt: skip
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="of the student (default: ViT-S/16, batch 4, bf16)")
    parser.add_argument("--teachers", nargs="+", default=["small", "base", "mono"], help="variants of DA3")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path, help="folder for teacher.json and README.md")
    arguments = parser.parse_args()
    student = arguments.overrides or SETTINGS["vits16"]
    teachers = [f"da3.teacher.variant={variant}" for variant in arguments.teachers]
    rows = [measure([*student, "da3=enabled", teacher], arguments.turns) for teacher in teachers]
    table = cells(rows)
    Console(width=None if sys.stdout.isatty() else 160).print(rich_table(table))
    if arguments.output:
        machine = measured_on()
        command = f"`python tools/benchmark_teacher.py {' '.join(sys.argv[1:])}`"
        words = (
            f"# The frozen teacher's share of a training step\n\n{command} on {in_words(machine)}.\n"
            "The student is ViT-S/16 (2 x 224 + 8 x 96, batch 4, bf16), the "
            "teacher runs in float32 on 196 x 196 pixels.\nOnly crops with a masked token are sent to it.\n\n"
        )
        arguments.output.mkdir(parents=True, exist_ok=True)
        write_atomically(
            arguments.output / "teacher.json", json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n"
        )
        write_atomically(arguments.output / "README.md", words + markdown_table(table) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
