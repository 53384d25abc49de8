"""The runs of a noise budget, as entries of the ledger, and the values that they measured."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from dinoswap.config.schema import ConfigError
from dinoswap.config.streams import StreamSeeds
from dinoswap.run.run_folder import planned_id
from dinoswap.studies.costs import COSTS
from dinoswap.studies.design import Cell
from dinoswap.studies.forecast import value_of
from dinoswap.studies.ledger import Entry, entries, record_of
from dinoswap.studies.noise.array import NoiseDesign, words
from dinoswap.studies.noise.budget import Budget, Pairing, budget, pairing
from dinoswap.studies.noise.components import Floats
from dinoswap.studies.overrides import combined
from dinoswap.studies.study import Metric, Study

Runs = Mapping[StreamSeeds, Entry]


@dataclass(frozen=True)
class NoiseRuns:
    """The runs by arm, the reference first, and those of the reference with another number of threads, none where that
    is not measured. They lie in study folders of their own beside that of the study."""

    design: NoiseDesign
    arms: Mapping[str, Runs]
    other_threads: Runs

    @property
    def entries(self) -> list[Entry]:
        """All runs but those with another number of threads."""
        return [entry for runs in self.arms.values() for entry in runs.values()]


def noise_runs(study: Study, cells: Sequence[Cell], design: NoiseDesign, threads: int | None) -> NoiseRuns:
    """Returns the runs that measure the noise of the first cell, and the crossed ones of a second, with the same
    seeds. Raises ConfigError for a second cell that is the first, and for threads below 1."""
    reference, *others = cells
    if reference in others:
        raise ConfigError(f"--arm {reference.name}: is the reference, which is run anyway; name another cell")
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads {threads}: must be at least 1")
    name = f"{study.name}_noise"
    arms = {reference.name: _runs(study, name, reference, design.all_runs())}
    arms |= {cell.name: _runs(study, name, cell, design.crossed()) for cell in others}
    repeated = [design.base(seed) for seed in range(design.levels)] if threads else []
    return NoiseRuns(design, arms, _runs(study, f"{name}_{threads}_threads", reference, repeated))


def _runs(study: Study, name: str, cell: Cell, combinations: Sequence[StreamSeeds]) -> Runs:
    """Returns a run of the cell for each of these seeds, in the study folder `name`. `seed` is 0 in all of them: no
    stream has it."""
    runs = {}
    for seeds in combinations:
        lines = [f"stream_seeds.{stream}={seed}" for stream, seed in asdict(seeds).items()]
        config = {**cell.config, "stream_seeds": asdict(seeds)}
        overrides = tuple(combined(cell.overrides, lines))
        named = replace(
            cell, name=f"{cell.name}, {words(seeds)},", overrides=overrides, config=config, run_id=planned_id(config)
        )
        (runs[seeds],) = entries(replace(study, name=name, seeds=[0]), [named])
    return runs


def require_other_threads(runs: NoiseRuns, threads: int) -> None:
    """Raises ConfigError where the completed runs have the number of threads that others should be compared with."""
    first = next(iter(runs.arms.values()))
    counts = {record_of(entry.folder)[0].get("hardware", {}).get("threads") for entry in first.values()}
    if threads in counts:
        raise ConfigError(f"--threads {threads}: the runs themselves have {threads}; give another number")


# --- what they measured -----------------------------------------------------------------------------------------------


def measured_metrics(study: Study) -> list[Metric]:
    """Returns the metrics of a study that are no cost of a run."""
    return [metric for metric in study.metrics if metric.name not in COSTS]


def unused_streams(runs: NoiseRuns, metrics: Sequence[Metric]) -> list[str]:
    """Returns the streams that the reference draws nothing from, as stochastic depth of rate 0 does: runs in which one
    of them varies alone have the same values in all metrics. None is known where no stream varied alone, or where
    runs have the same values whichever stream varies."""
    design, of_reference = runs.design, next(iter(runs.arms.values()))
    unused = [
        stream
        for stream in design.streams
        if not any(np.ptp(_values(of_reference, row, metric)) for row in design.alone(stream) for metric in metrics)
    ]
    return unused if len(unused) < len(design.streams) else []


def analysed(runs: NoiseRuns, metric: Metric, unused: Sequence[str]) -> tuple[list[Budget], Pairing | None]:
    """Returns the budget of each arm in one metric, and what pairing two arms does. `unused` are streams that the
    reference is known to draw nothing from: they have no share of its variance and of pairing, and their degrees of
    freedom are the residual's. Raises ConfigError where a run did not measure the metric."""
    design = runs.design
    used = [stream for stream in design.streams if stream not in unused]
    array = design.array[:, [design.streams.index(stream) for stream in used]]
    crossed = {arm: _values(of_arm, design.crossed(), metric) for arm, of_arm in runs.arms.items()}
    reference, *others = runs.arms
    of_reference = runs.arms[reference]
    alone = {
        stream: np.stack([_values(of_reference, row, metric) for row in design.alone(stream)])
        for stream in used
        if design.bases
    }
    threads = None
    if repeated := list(runs.other_threads):
        both = (of_reference, runs.other_threads)
        threads = np.column_stack([_values(of_both, repeated, metric) for of_both in both])
    budgets = [budget(reference, used, array, crossed[reference], alone, threads)]
    budgets += [budget(arm, design.streams, design.array, crossed[arm]) for arm in others]
    if not others:
        return budgets, None
    values = np.column_stack([crossed[others[0]], crossed[reference]])
    return budgets, pairing(others[0], reference, used, array, values)


def _values(runs: Runs, combinations: Sequence[StreamSeeds], metric: Metric) -> Floats:
    """Returns the metric of the runs with these seeds."""
    values = []
    for seeds in combinations:
        value = value_of(record_of(runs[seeds].folder)[0], metric)
        if value is None or not np.isfinite(value):
            raise ConfigError(
                f"{metric.name}: {runs[seeds].name} has no finite value, and the analysis needs all of them; see "
                f"{runs[seeds].folder}"
            )
        values.append(value)
    return np.array(values)
