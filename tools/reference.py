"""Turn the finished runs of one study into a committed reference: a table, a curve, and where they come from.

    python tools/reference.py results/runs/demo -o results/reference/demo

Writes README.md, curve.png, summary.json, and with --pictures those of the first seed: leave them out where the images
are not ours to publish. All runs must be seeds of one
configuration.
"""

import argparse
import json
import shlex
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dinoswap.config.command_line import compose_config
from dinoswap.config.measured import build_metrics
from dinoswap.evaluation.summary import columns_of
from dinoswap.files.writing import write_atomically
from dinoswap.run.metrics import load_record, read
from dinoswap.run.provenance import in_words

ROWS = {
    "trained": "eval",
    "random init": "baseline/random_init",
    "raw pixels": "baseline/raw_pixels",
    "colour histogram": "baseline/colour_histogram",
}
COLUMNS = columns_of(build_metrics(compose_config()).values())


def load(folder: Path) -> list[dict[str, Any]]:
    """Returns the completed runs below `folder`, by seed. Exits where there are none, or several configurations."""
    runs = []
    for path in sorted(folder.glob("*/seed*/run.json")):
        record = load_record(path)
        if record["status"] == "completed":
            runs.append(record | {"folder": path.parent, "curve": read(path.parent / "metrics.jsonl")})
    if not runs:
        raise SystemExit(f"reference: no completed run in {folder}")
    if len({run["run_id"] for run in runs}) > 1:
        raise SystemExit(f"reference: {folder} holds several configurations; name one of {folder}/*")
    return sorted(runs, key=lambda run: run["seed"])


def values(runs: list[dict[str, Any]], row: str, column: str) -> list[float]:
    """Returns the values of a column in all runs, by the first of its names that all have; none where no name is."""
    for name in COLUMNS[column].names:
        per_run = [run["metrics"].get(f"{ROWS[row]}/{name}") for run in runs]
        if None not in per_run:
            return per_run
    return []


def text(numbers: list[float]) -> str:
    """Returns mean and standard deviation of numbers in words, "-" for none."""
    if not numbers:
        return "-"
    spread = f" ± {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.1f}{spread}"


def markdown(runs: list[dict[str, Any]], title: str) -> str:
    """Returns the README.md on these runs of one configuration."""
    first = runs[0]
    minutes = [run["cost"].get("training_seconds", 0) / 60 for run in runs]
    lines = [
        f"# {title}",
        "",
        "| top-1, % | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
        *(f"| {row} | " + " | ".join(text(values(runs, row, column)) for column in COLUMNS) + " |" for row in ROWS),
        "",
        f"{seeds([run['seed'] for run in runs])}. A baseline without "
        "tokens has one number per classifier. The curve's points before the last are taken on a fixed subset "
        "(`evaluation.in_loop_images`), the last on all images.",
        "",
        "![k-NN accuracy over training](curve.png)",
        "",
        f"- command: `dinoswap-train {command(first['overrides'])} seed=...`",
        f"- run id {first['run_id']}, commit {(first['git'] or {}).get('sha', 'unknown')[:10]}",
        f"- {in_words({**first['hardware'], 'torch': first['versions']['torch']})}; "
        f"{statistics.mean(run['throughput']['images_per_second'] for run in runs):.0f} images/s"
        + (f"; {statistics.mean(minutes):.1f} minutes of training a run" if all(minutes) else ""),
        f"- made by `python tools/reference.py {shlex.join(sys.argv[1:])}`",
        "",
    ]
    return "\n".join(lines)


def seeds(numbers: list[int]) -> str:
    """Returns in words which seeds the numbers are of."""
    over = ", ".join(map(str, numbers))
    return f"Mean ± standard deviation over seeds {over}" if len(numbers) > 1 else f"Seed {over} alone"


def command(overrides: list[str]) -> str:
    """Returns the overrides that matter elsewhere: without the seed, and of paths the last part."""
    kept = [override for override in overrides if not override.startswith(("seed=", "results_dir="))]
    return " ".join(
        f"data.path={Path(override.partition('=')[2]).name}" if override.startswith("data.path=") else override
        for override in kept
    )


def curve(runs: list[dict[str, Any]], path: Path) -> None:
    """Draws the in-loop k-NN of each seed over steps, beside the final evaluation's baselines."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        points = [(row["step"], row["eval/knn_top1"]) for row in run["curve"] if "eval/knn_top1" in row]
        axes.plot(*zip(*points, strict=True), marker=".", label=f"seed {run['seed']}")
    for index, row in enumerate(name for name in ROWS if name != "trained"):
        level = statistics.mean(values(runs, row, "k-NN CLS"))
        axes.axhline(level, linestyle="--", linewidth=1, color=f"C{index + len(runs)}", label=row)
    axes.set(xlabel="step", ylabel="k-NN top-1, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="results/runs/<study>")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--title", default="Reference")
    parser.add_argument("--pictures", action="store_true", help="with crops.png, pca.png, accuracy.png")
    arguments = parser.parse_args()
    runs = load(arguments.runs)
    arguments.out.mkdir(parents=True, exist_ok=True)
    curve(runs, arguments.out / "curve.png")
    write_atomically(arguments.out / "README.md", markdown(runs, arguments.title))
    summary = {row: {column: values(runs, row, column) for column in COLUMNS} for row in ROWS}
    write_atomically(arguments.out / "summary.json", json.dumps(summary, indent=2) + "\n")
    for name in ("pca.png", "crops.png", "accuracy.png"):
        if arguments.pictures and (runs[0]["folder"] / "pictures" / name).exists():
            shutil.copyfile(runs[0]["folder"] / "pictures" / name, arguments.out / name)
    print(f"{arguments.out}/README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
