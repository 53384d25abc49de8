"""The effects of a study over training as a pandas frame, a row for each metric, effect and step.

| column | what |
|---|---|
| study, effect, metric | the effect as the report names it: an arm's cell, or factor=level of a crossed design |
| step, share | the evaluation in the loop, as a step and as a share of a run's steps; the final one is not among them |
| difference, low, high | the mean difference and its 95 % interval, in the metric's unit; NaN where there is none |
| se, df | the standard error and degrees of freedom of the test |
| p, p_holm, verdict | of the t test, after Holm over the effects of the metric at that step, and what is said of it |
| seeds | how many seeds the difference rests on |
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dinoswap.config.schema import ConfigError
from dinoswap.studies.design import make_design
from dinoswap.studies.ledger import entries
from dinoswap.studies.over_training import Course
from dinoswap.studies.report.analysis import Analysis, analyse_collected
from dinoswap.studies.report.rows import read_rows
from dinoswap.studies.report.write import look
from dinoswap.studies.study import read_study

TYPES = {
    **dict.fromkeys(("study", "effect", "metric", "verdict"), "string"),
    **dict.fromkeys(("step", "df", "seeds"), "int64"),
    **dict.fromkeys(("share", "difference", "low", "high", "se", "p", "p_holm"), "float64"),
}
ORDER = [
    *("study", "effect", "metric", "step", "share", "difference", "low", "high"),
    *("se", "df", "p", "p_holm", "verdict", "seeds"),
]


def load_effects(study: str | Path, overrides: Sequence[str] = ()) -> pd.DataFrame:
    """Returns the effects of a study at every evaluation in the loop that all runs share, by the statistics of its
    report. The columns are those of this module's docstring; there is no row where no run has ended, or none measured
    anything on the way.

    `study` is a name in ablations/, a path, or a report.json, which needs no run folders; `overrides` are those of the
    command line. Effects of run folders are recorded as a look at the study, as those of a report are. Where a study is
    looked at more than once, these are nevertheless of all seeds that a cell has, with the intervals and p of one
    analysis. Raises ConfigError for a study, an override or a report.json that is refused.
    """
    analysis = analysis_of(study, overrides)
    rows = [row for course in analysis.courses for row in _rows(analysis.study.name, course)]
    return pd.DataFrame(rows, columns=ORDER).astype(TYPES)


def analysis_of(study: str | Path, overrides: Sequence[str]) -> Analysis:
    """Returns the analysis of a study, or of the rows of a report.json."""
    if Path(study).suffix == ".json":
        if overrides:
            raise ConfigError(f"{' '.join(overrides)}: a report.json is of one study; leave overrides out")
        return analyse_collected(read_rows(Path(study)))
    declared = read_study(study, overrides)
    return look(declared, entries(declared, make_design(declared, check=False).cells)[0].folder.parents[1])


def _rows(study: str, course: Course) -> list[tuple[object, ...]]:
    """Returns the rows of one metric, in the order of effects and steps."""
    return [
        (
            *(study, effect.name, course.metric.name, horizon.step, course.share(horizon.step)),
            *(effect.mean, effect.low, effect.high, effect.se, effect.df),
            *(effect.p, decision.p_adjusted, decision.kind, len(effect.seeds)),
        )
        for index in range(len(course.end.decisions))
        for horizon in course.horizons
        for decision in [horizon.decisions[index]]
        for effect in [decision.effect]
    ]
