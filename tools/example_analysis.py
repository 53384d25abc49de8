"""An analysis of your own in a page of pandas: how soon does each arm reach an accuracy, and what does it end with?

    python tools/example_analysis.py results/runs/demo --accuracy 55

An arm is a configuration (a run id), named by the overrides that it does not share with all others. Arms are paired by
seed: with one seed they share data order, crops, masks and initial weights, so differences are taken seed by seed.
"""

import argparse
import shlex
from pathlib import Path

import pandas as pd

from dinoswap.studies.runs import load_curves, load_runs

METRIC = "eval/knn_top1"


def arm_names(runs: pd.DataFrame) -> pd.Series:
    """Returns, for each run id, the overrides that not all runs have, without the seed."""
    overrides = runs.drop_duplicates("run_id").set_index("run_id")["overrides"].map(shlex.split)
    shared = set.intersection(*map(set, overrides))
    own = overrides.map(lambda words: [word for word in words if word not in shared and not word.startswith("seed=")])
    return own.map(" ".join)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="results/runs/<study>")
    parser.add_argument("--accuracy", type=float, default=55.0, help="top-1 of k-NN, in percent")
    arguments = parser.parse_args()

    runs = load_runs(arguments.runs).query("status == 'completed'")
    final = runs.pivot(index="seed", columns="run_id", values=f"metric.{METRIC}")

    curves = load_curves(arguments.runs, names=[METRIC])
    reached = curves[curves["value"] >= arguments.accuracy].groupby(["run_id", "seed"])["step"].min()
    steps = reached.unstack("run_id").reindex(index=final.index, columns=final.columns).where(final.notna())

    best = final.mean().idxmax()
    table = pd.DataFrame(
        {
            "seeds": final.count(),
            "mean": final.mean(),
            "std": final.std(),
            "against the best": final.sub(final[best], axis=0).mean(),
            f"seeds that reach {arguments.accuracy:g}": steps.count(),
            "steps until then": steps.median(),
            "images/s": runs.groupby("run_id")["images_per_second"].mean(),
        }
    )
    print(table.rename(index=arm_names(runs)).sort_values("mean", ascending=False).round(2).to_string())


if __name__ == "__main__":
    main()
