"""The hours until runs have a value as a pandas frame, a row for each run and value.

| column | what |
|---|---|
| study, cell, seed, status | the run, and how it ended |
| metric, target | the metric and its value |
| step, hours | where the run's curve first has it, in steps and in core- or GPU-hours; infinite where it never has |
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dinoswap.config.schema import ConfigError
from dinoswap.studies.report.analysis import Analysis
from dinoswap.studies.report.effects_frame import analysis_of
from dinoswap.studies.report.prices import hours_per_step, loop_curves
from dinoswap.studies.study import Metric
from dinoswap.studies.time_to_value import hours_to

TYPES = {
    **dict.fromkeys(("study", "cell", "status", "metric"), "string"),
    "seed": "int64",
    **dict.fromkeys(("target", "step", "hours"), "float64"),
}
ORDER = ["study", "cell", "seed", "status", "metric", "target", "step", "hours"]


def load_hours(
    study: str | Path, targets: Sequence[float], overrides: Sequence[str] = (), metric: str | None = None
) -> pd.DataFrame:
    """Returns the hours of training until each run that ended has each of the targets, values of a metric of the study,
    without a name of the one that decides. The columns are those of this module's docstring; there is no row where no
    run has ended, the metric was not measured in the loop, or a report.json does not say how many images a step has.

    `study` is a name in ablations/, a path, or a report.json, which needs no run folders; `overrides` are those of the
    command line. Run folders are looked at as by a report. Raises ConfigError for a study, an override, a report.json
    or a metric that is refused.
    """
    analysis = analysis_of(study, overrides)
    chosen = _metric(analysis, metric)
    curves, per_step = loop_curves(analysis.collected, chosen), hours_per_step(analysis.collected)
    statuses = {(run.entry.cell, run.entry.seed): run.status for run in analysis.collected.runs}
    rows = []
    for target in targets if len(curves) else ():
        values = dict.fromkeys((seed for _, seed in per_step), target)
        for run, reached in hours_to(curves, per_step, values, chosen).items():
            rows.append((analysis.study.name, *run, statuses[run], chosen.name, target, *reached))
    return pd.DataFrame(rows, columns=ORDER).astype(TYPES)


def _metric(analysis: Analysis, name: str | None) -> Metric:
    """Returns the metric of a study by its name."""
    metrics = {metric.name: metric for metric in analysis.study.metrics}
    if name is not None and name not in metrics:
        raise ConfigError(f"metric={name}: is none of this study; choose one of {', '.join(metrics)}")
    return metrics[name] if name else analysis.study.metrics[0]
