"""What each switch costs: FLOPs per image, images per second and peak memory of every switch beside its preset.

    python tools/benchmark_axes.py -o results/reference/axes/cost
    python tools/benchmark_axes.py -o cost --presets legacy --switches forward=unified masking=block

FLOPs are counted for ViT-S/16 at 2 x 224 + 8 x 96. Rates and memory are measured with `recipe=demo`: each switch in a
process of its own, its steps and those of its preset in turn, so that a machine whose clock or neighbours change moves
both; the ratio is the median over the turns. Memory is what building and training adds to a process that has imported
everything. Nothing else should run on the machine. Writes cost.json and cost.md after each row; called again, it goes
on with the rows that are missing.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmark import SETTINGS, peak_memory, timed_step
from dinoswap.build import build_pipeline, build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.config.configuration import flatten
from dinoswap.config.facts import build_source
from dinoswap.data.steps import Pipeline
from dinoswap.files.writing import write_atomically
from dinoswap.run.flops import step_flops
from dinoswap.run.provenance import in_words, measured_on
from dinoswap.trainer import Trainer
from dinoswap.values import Batch
from switches import Switch, switches, typed

FLOPS_BATCH = 4  # images: masks are drawn over a batch, so its masked share is not that of one image
BATCHES = 4
COMMON = ["recipe=demo", "data.workers=0"]


def arms(presets: Sequence[str]) -> Iterator[tuple[str, Switch]]:
    """Yields each preset by itself, and then with every switch that changes its config."""
    yield from ((preset, ()) for preset in presets)
    for preset in presets:
        plain = resolved(f"preset={preset}")
        yield from ((preset, switch) for switch in switches() if resolved(f"preset={preset}", *switch) != plain)


def resolved(*overrides: str) -> dict[str, object]:
    """Returns the config by key, without what is mounted for an objective that does not exist."""
    config = compose_config([*COMMON, *overrides])
    config["objectives"] = {name: section for name, section in config["objectives"].items() if "_target_" in section}
    return flatten(config)


class Arm:
    """A trainer, and batches of its own pipeline on its device."""

    def __init__(self, overrides: list[str]) -> None:
        cfg = compose_config(overrides)
        self.trainer: Trainer = build_trainer(cfg)
        self.first = cfg["trainer"]["max_steps"] // 2  # a term whose weight rises from 0 computes nothing before
        self.dataset = build_pipeline(cfg, self.trainer.model)(build_source(cfg).train())
        mean, std = (torch.tensor(cfg["data"][key], device=self.trainer.device) for key in ("mean", "std"))
        began = time.perf_counter()
        batches = [self.dataset[index] for index in range(BATCHES)]
        self.data_seconds = (time.perf_counter() - began) / BATCHES / batches[0].images
        self.batches: list[Batch] = [batch.to(self.trainer.device).normalised(mean, std) for batch in batches]

    def seconds(self, step: int) -> float:
        """Returns the seconds of one step; steps take turns through the batches."""
        return timed_step(self.trainer, self.first + step, self.batches[step % BATCHES])


def measure(own: list[str], base: list[str], turns: int) -> dict[str, Any]:
    """Returns the numbers of one row: an arm with the overrides `own`, timed in turns with the preset, whose overrides
    are `base`."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    arm = Arm([*COMMON, *own])
    for step in range(3):
        arm.seconds(step)
    memory = peak_memory(arm.trainer.device)
    preset = Arm([*COMMON, *base])
    preset.seconds(0)
    pairs = [(arm.seconds(turn), preset.seconds(turn)) for turn in range(turns)]
    ratios = sorted(theirs / ours for ours, theirs in pairs)
    return {
        "flops_per_image": flops_per_image(own),
        "images_per_second": arm.batches[0].images / statistics.median(ours for ours, _ in pairs),
        "rate_ratio": statistics.median(ratios),
        "rate_ratio_quartiles": [ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]],
        "memory_bytes": memory - (before if arm.trainer.device.type == "cpu" else 0),
        "data_seconds_per_image_and_core": arm.data_seconds,
    }


def flops_per_image(own: list[str]) -> float:
    """Returns the FLOPs of the published algorithm per image, of ViT-S/16 with these overrides."""
    arm = [word for word in SETTINGS["vits16"] if not word.startswith(("model.registers", "model.layerscale"))]
    bank = ["objectives.clustering.prototypes=4096"] if "clustering" in objectives(own) else []
    built = Arm([*arm, *own, *bank, f"data.batch_size={FLOPS_BATCH}"])
    hyper = built.trainer.schedules.final()

    def with_pipeline(pipeline: Pipeline) -> float:
        batches = (built.dataset.made_by(pipeline, index) for index in range(BATCHES))
        return statistics.mean(step_flops(built.trainer.model, batch, hyper) for batch in batches) / FLOPS_BATCH

    return sum(pipeline.share * with_pipeline(pipeline) for pipeline in built.dataset.pipelines)


def objectives(own: list[str]) -> set[str]:
    """Returns the names of the objectives that exist under these overrides."""
    return {name for name, section in compose_config([*COMMON, *own])["objectives"].items() if "_target_" in section}


def markdown(rows: list[dict[str, Any]], machine: dict[str, Any]) -> str:
    """Returns cost.md: a table for each preset, in which percentages are of the preset."""
    lines = []
    for preset in dict.fromkeys(row["preset"] for row in rows):
        own = [row for row in rows if row["preset"] == preset]
        base = next((row for row in own if not row["switch"]), own[0])
        lines += [
            f"\n## preset={preset}\n",
            "| switch | GFLOP / image (ViT-S/16) | | images / s (demo) | quartiles | memory MiB | data ms / image |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in own:
            low, high = row["rate_ratio_quartiles"]
            lines.append(
                f"| {row['switch'] or 'the preset'} | {row['flops_per_image'] / 1e9:.1f} "
                f"| {row['flops_per_image'] / base['flops_per_image']:.1%} | {row['rate_ratio']:.1%} "
                f"| {low:.0%} - {high:.0%} | {row['memory_bytes'] / 2**20:.0f} "
                f"| {row['data_seconds_per_image_and_core'] * 1e3:.2f} |"
            )
        lines.append(f"\n100 % are {base['images_per_second']:.0f} images / s.")
    head = [
        "# What each switch costs\n",
        f"Made by `python tools/benchmark_axes.py {' '.join(sys.argv[1:])}` on {in_words(machine)}.",
        "Percentages are of the preset in the first row; the rate is a median over turns of one step each.",
    ]
    return "\n".join(head + lines) + "\n"


def measured(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of an earlier, interrupted call on this machine; exits where they are of another one."""
    path = folder / "cost.json"
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    if report["machine"] != measured_on():
        sys.exit(f"{path} was measured on {report['machine']}, this is {measured_on()}: give another folder")
    rows: list[dict[str, Any]] = report["rows"]
    return rows


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows as cost.json and cost.md. It is called after each row, so that an interrupted table holds what
    was measured."""
    rows = sorted(rows, key=lambda row: (row["preset"] != "official", row["switch"]))
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"command": sys.argv[1:], "machine": measured_on(), "rows": rows}, indent=2)
    write_atomically(folder / "cost.json", text + "\n")
    write_atomically(folder / "cost.md", markdown(rows, measured_on()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of cost.json and cost.md")
    parser.add_argument("--presets", nargs="+", default=["official", "legacy"])
    parser.add_argument("--switches", nargs="+", help="only these")
    parser.add_argument("--turns", type=int, default=12, help="timed steps of each arm")
    arguments = parser.parse_args()
    rows = measured(arguments.output)
    done = {(row["preset"], row["switch"]) for row in rows}
    for preset, switch in arms(arguments.presets):
        words = typed(switch)
        if (preset, words) not in done and (not switch or words in (arguments.switches or [words])):
            base = [f"preset={preset}"]
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                row = pool.submit(measure, [*base, *switch], base, arguments.turns).result()
            rows.append({"preset": preset, "switch": words, **row})
            write(arguments.output, rows)
            print(
                f"{preset} {words}: rate {row['rate_ratio']:.1%}, {row['flops_per_image'] / 1e9:.1f} GFLOP",
                file=sys.stderr,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
