"""All runs of a folder as tables: runs.parquet and runs.csv, a row each; curves.parquet and curves.csv, their logs.

    python tools/aggregate.py results/runs -o tables
    python tools/aggregate.py results/runs/demo --names loss eval/knn_top1

The columns are those of `load_runs` and `load_curves` (ssl/dinoswap/studies/runs.py). In the CSV files, text that
readers take for a number, a formula or nothing (0012345678, =1+1, null) begins with an apostrophe, which
frame["run_id"].str.removeprefix("'") takes off again.

Prints what was read, what was passed over and why. Exit status 1 without a run.
"""

import argparse
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pandas as pd

from dinoswap.files.writing import write_atomically
from dinoswap.run.find_runs import PassedOver
from dinoswap.studies.csv_text import as_csv
from dinoswap.studies.runs import read_curves, read_runs

SHOWN = 20
"""Lines about what was passed over."""


def write(frame: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Writes a frame as Parquet and as CSV into `folder`, and returns the paths of both."""
    paths = [folder / f"{name}.parquet", folder / f"{name}.csv"]
    content = BytesIO()
    frame.to_parquet(content, index=False)
    for path, data in zip(paths, (content.getvalue(), as_csv(frame)), strict=True):
        write_atomically(path, data)
    return paths


def summary(runs: pd.DataFrame) -> list[str]:
    """Returns a line for each study: how many configurations and runs it has, and how these ended."""
    lines = []
    for study, own in runs.groupby("study"):
        states = ", ".join(f"{count} {status}" for status, count in own["status"].value_counts().items())
        lines.append(f"  {study}: {own['run_id'].nunique()} configurations, {len(own)} runs: {states}")
    return lines


def skipped_lines(passed_over: Sequence[PassedOver]) -> list[str]:
    """Returns the lines on the first `SHOWN` folders that were passed over, and one on how many more there are."""
    lines = [f"  {skipped.line}" for skipped in passed_over[:SHOWN]]
    more = len(passed_over) - SHOWN
    return [*lines, f"  and {more} more"] if more > 0 else lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, metavar="RUNS_DIR", help="results/runs, or the folder of one study")
    parser.add_argument("-o", "--output", type=Path, help="folder of the tables (RUNS_DIR)")
    parser.add_argument("--names", nargs="+", help="only these curves")
    parser.add_argument("--no-curves", action="store_true", help="the runs alone")
    parser.add_argument("--no-cache", action="store_true", help="read every folder anew, and leave no cache")
    options = parser.parse_args(arguments)
    try:
        runs = read_runs(options.runs, cache=not options.no_cache)
        curves = None if options.no_curves else read_curves(runs.frame, options.names)
        output = options.output or options.runs
        output.mkdir(parents=True, exist_ok=True)
        written = write(runs.frame, output, "runs")
        written += write(curves.frame, output, "curves") if curves else []
    except OSError as error:
        print(f"aggregate: {error}", file=sys.stderr)
        return 1
    print(f"{len(runs.frame)} runs in {options.runs}", *summary(runs.frame), sep="\n")
    passed_over = runs.passed_over + (curves.passed_over if curves else [])
    if passed_over:
        print(f"passed over: {len(passed_over)}", *skipped_lines(passed_over), sep="\n")
    print(f"written: {', '.join(map(str, written))}")
    return 0 if len(runs.frame) else 1


if __name__ == "__main__":
    sys.exit(main())
