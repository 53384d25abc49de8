"""The runs of a study side by side: accuracies beside their baselines, speed, and where the pictures are.

    python tools/side_by_side.py results/runs/demo

One seed of each says little about which is better: that is what studies are for.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dinoswap.metrics import load_record

METRICS = {
    "k-NN CLS": "knn_top1",
    "k-NN patch": "knn_patch_top1",
    "linear CLS": "linear_top1",
    "linear patch": "linear_patch_top1",
}
BASELINES = {
    "random init": "baseline/random_init",
    "raw pixels": "baseline/raw_pixels",
    "colour histogram": "baseline/colour_histogram",
}


def percent(metrics: dict[str, float], prefix: str) -> list[str]:
    found = [
        metrics.get(f"{prefix}/{metric}", metrics.get(f"{prefix}/{metric.replace('_patch', '')}"))
        for metric in METRICS.values()
    ]
    return ["-" if value is None else f"{value:.1f}" for value in found]


def table(records: list[dict[str, Any]]) -> Table:
    """A row per run, then its random initialisation; what needs no network once, at the end."""
    result = Table(
        "preset", "flip", "seed", "steps", "features", *METRICS, "images/s", "GFLOP/image", title="top-1 accuracy, %"
    )
    for record in records:
        who = [record["choices"]["preset"], record["choices"]["flip"], str(record["seed"]), str(record["steps"])]
        rate, flops = record["throughput"].get("images_per_second"), record["cost"].get("flops_per_image")
        cost = ["-" if rate is None else f"{rate:.0f}", "-" if flops is None else f"{flops / 1e9:.2f}"]
        metrics = record["metrics"]
        result.add_row(*who, "trained", *percent(metrics, "eval"), *cost)
        result.add_row(*[""] * 4, "random init", *percent(metrics, BASELINES["random init"]), "", "", end_section=True)
    for name, prefix in list(BASELINES.items())[1:]:
        result.add_row(*[""] * 4, name, *percent(records[0]["metrics"], prefix), "", "")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="results/runs/<study>")
    paths = sorted(parser.parse_args().runs.glob("*/seed*/run.json"))
    records = {path.parent: load_record(path) for path in paths}
    done = {folder: record for folder, record in records.items() if record["status"] == "completed"}
    for folder in records.keys() - done.keys():
        print(f"left out, {records[folder]['status']}: {folder}", file=sys.stderr)
    if not done:
        print("side_by_side: no completed run in this folder", file=sys.stderr)
        return 1
    done = dict(sorted(done.items(), key=lambda item: item[1]["started"]))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(list(done.values())))
    for folder, record in done.items():
        console.print(f"{record['choices']['preset']}: pictures in {folder / 'pictures'}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
