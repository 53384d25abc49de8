"""Whether angles between gradients tell the effects that were measured: rank correlations over several studies.

    python tools/compare_angles.py results/reference/studies/from_official ... -o results/reference/verdicts

Each folder is a study's, with its report.json and twins/twins.json, of `dinoswap-ablate twins`. Arms are ranked within
their study, by the middle over the run of the backbone's angle and by the size of the effect; the correlation over all
studies is that of these ranks, and its p that of permutations within studies. Nothing is trained or evaluated here.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from dinoswap.config.exit_codes import EXIT_USAGE
from dinoswap.config.schema import ConfigError
from dinoswap.files.writing import write_atomically
from dinoswap.studies.report.markup import Table, markdown
from dinoswap.studies.report.words import between, number, signed
from dinoswap.studies.twins.compare import MEASURES, Comparison, Measure
from dinoswap.studies.twins.page import measured_effects, read_comparison

PERMUTATIONS = 9999
LEAST_ARMS = 3
"""Of fewer arms no study tells an order."""


class Twins(NamedTuple):
    """A study's arms at its reference's weights, and by metric and arm the effects that were measured."""

    name: str
    comparison: Comparison
    effects: dict[str, dict[str, dict[str, float]]]

    def arms(self, metric: str) -> list[str]:
        """Returns the arms that have both an angle and an effect on the metric."""
        return [arm for arm in self.comparison.arms if arm in self.effects.get(metric, {})]

    def ranked(self, metric: str, measure: Measure) -> tuple[Sequence[float], Sequence[float]]:
        """Returns the angles of the arms and the sizes of their effects on the metric."""
        arms = self.arms(metric)
        angles = [self.comparison.middle(arm, measure) for arm in arms]
        return angles, [abs(self.effects[metric][arm]["mean"]) for arm in arms]


def correlation_within(groups: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[float, float]:
    """Returns the correlation of the ranks that two sequences have within each group, and its two-sided p by drawn
    permutations within groups. Ranks are divided by the length of their group, so that small ones count for less; of
    one group it is Spearman's. Groups of fewer than LEAST_ARMS are left out; (nan, nan) where none is left, or all
    values of a side are equal."""
    sides = [_centred(first, second) for first, second in groups if len(first) >= LEAST_ARMS]
    scale = np.sqrt(np.prod([sum(float(side[of] @ side[of]) for side in sides) for of in (0, 1)]))
    if not scale:
        return float("nan"), float("nan")
    rho = sum(float(first @ second) for first, second in sides) / scale
    draws, found = np.random.default_rng(0), np.zeros(PERMUTATIONS)
    for first, second in sides:
        found += draws.permuted(np.tile(first, (PERMUTATIONS, 1)), axis=1) @ second / scale
    as_far = int((np.abs(found) >= abs(rho) - 1e-12).sum())
    return float(rho), (as_far + 1) / (PERMUTATIONS + 1)


def _centred(*values: Sequence[float]) -> list[np.ndarray]:
    return [(ranks - ranks.mean()) / len(ranks) for ranks in map(rankdata, values)]


def correlations(studies: Sequence[Twins], metric: str) -> list[str]:
    """Returns the cells of a row: arms, then rank correlation and p of gradients and of updates."""
    cells = [str(sum(len(study.arms(metric)) for study in studies))]
    for measure in MEASURES:
        rho, p = correlation_within([study.ranked(metric, measure) for study in studies])
        cells += [signed(rho), number(p, 2)]
    return cells


def of_arms(studies: Sequence[Twins], metric: str) -> str:
    """Returns the table of a row for each arm."""
    rows = []
    for study in studies:
        for arm in study.arms(metric):
            effect = study.effects[metric][arm]
            angles = [number(study.comparison.middle(arm, measure), 3) for measure in MEASURES]
            interval = between(effect["low"], effect["high"])
            rows.append([study.name, arm, *angles, signed(effect["mean"]), interval, initial(study.comparison, arm)])
    angles_of = [f"{measure}, degrees" for measure in MEASURES]
    columns = ["study", "arm", *angles_of, f"effect on {metric}", "interval", "initial weights"]
    return markdown(Table("arms", "", columns, rows, ["study", "arm", "initial weights"]))


def initial(comparison: Comparison, arm: str) -> str:
    """Returns what of an arm had initial weights at the checkpoints, in place of the reference's."""
    return "all, at step 0 alone" if arm in comparison.refused else ", ".join(comparison.fresh.get(arm, [])) or "-"


TEXT = """# Do angles tell the effects?

By how much the arms of {studies} turn the backbone's gradient, and its updates, at the weights of their
reference, beside the effects that were measured at the end of the studies. Arms are ranked within their study, by angle
and by the size of the effect whichever its sign; a study with fewer than {least} arms that have both is left out of the
correlations. Where the reference has no weights for an arm, initial ones turn the gradient too. p is that of
permutations within studies, and is not corrected for the number of metrics. Effects of one study share its reference,
so that their errors are not independent.

## On the metric that decides

{deciding}
{arms}
## On every metric, over the studies

{every}
Command: `{command}`
"""


def page(studies: Sequence[Twins], command: str) -> str:
    """Returns the page as Markdown. Raises ConfigError for studies without a common metric of quality."""
    metrics = [name for name in studies[0].effects if all(name in study.effects for study in studies)]
    quality = [name for name in metrics if name.startswith("eval/")]
    if not quality:
        names = ", ".join(study.name for study in studies)
        raise ConfigError(f"{names}: have effects on no common metric eval/...; compare them one by one")
    columns = ["arms", "gradient", "p", "update", "p"]
    rows = [[study.name, *correlations([study], quality[0])] for study in studies]
    rows.append(["all", *correlations(studies, quality[0])])
    deciding = Table("studies", "", ["study", *columns], rows, ["study"])
    every = Table(
        "metrics", "", ["metric", *columns], [[name, *correlations(studies, name)] for name in quality], ["metric"]
    )
    return TEXT.format(
        studies="a study" if len(studies) == 1 else f"{len(studies)} studies",
        least=LEAST_ARMS,
        deciding=markdown(deciding),
        arms=of_arms(studies, quality[0]),
        every=markdown(every),
        command=command,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and returns the exit status: EXIT_USAGE, with a message, for a folder without both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of studies")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of angles.md")
    arguments = parser.parse_args(argv)
    command = f"python tools/compare_angles.py {shlex.join(sys.argv[1:] if argv is None else argv)}"
    try:
        studies = [
            Twins(folder.name, read_comparison(folder / "twins/twins.json"), measured_effects(folder / "report.json"))
            for folder in arguments.folders
        ]
        text = page(studies, command)
    except ConfigError as error:
        print(f"compare_angles: {error}", file=sys.stderr)
        return EXIT_USAGE
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.out / "angles.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
