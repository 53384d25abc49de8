"""The table of results: a network beside its baselines, on the same split."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.table import Table

from dinoswap.metric.base import DenseMetric, Metric, Score

PER_CENT = "%"
Results = Mapping[str, Mapping[str, float]]
"""Scores by row (trained, random init, raw pixels, ...) and then by name, as in knn_top1."""


class Column(NamedTuple):
    """Names the scores that stand in a column, of which a row has one: a baseline without tokens has another name than
    a network. `score` describes the first."""

    names: tuple[str, ...]
    score: Score

    def text(self, value: float) -> str:
        """Returns a value as it is shown: to a tenth of a per cent, or to three digits."""
        return f"{value:.1f}" if self.score.unit == PER_CENT else f"{value:.3g}"


Columns = Mapping[str, Column]
"""Columns of the table by their heading."""


def columns_of(metrics: Iterable[Metric], more_sizes: Sequence[int] = ()) -> Columns:
    """Returns the columns of the table, in the order in which the families of metrics name them: those of patch tokens
    also at further sizes."""
    columns: dict[str, Column] = {}
    for metric in metrics:
        scores = [(name, score) for name, score in metric.scores.items() if score.column]
        columns |= {score.column: Column(tuple(filter(None, (name, score.of_whole))), score) for name, score in scores}
        for size in more_sizes if isinstance(metric, DenseMetric) else ():
            columns |= {f"{score.column} {size}": Column((at_size(name, size),), score) for name, score in scores}
    return columns


def at_size(name: str, size: int) -> str:
    """Returns the name of a number of patch tokens at a further size."""
    return f"{name}/{size}"


def cell(scores: Mapping[str, float], names: Iterable[str]) -> float | None:
    """Returns the first of these scores that a row has, None where it has none."""
    return next((scores[name] for name in names if name in scores), None)


def filled(results: Results, columns: Columns) -> Columns:
    """Returns the columns that any row has."""
    known = {name for scores in results.values() for name in scores}
    return {heading: column for heading, column in columns.items() if known.intersection(column.names)}


def percentages(columns: Columns) -> Columns:
    """Returns the columns in per cent, which one chart can show."""
    return {heading: column for heading, column in columns.items() if column.score.unit == PER_CENT}


def summary_table(results: Results, columns: Columns) -> Table:
    """Returns a table with a row per entry of `results`, and those columns that any row has. The best of each column is
    bold."""
    table = Table(title="frozen features; % where no unit is named")
    table.add_column("features")
    columns = filled(results, columns)
    for heading, column in columns.items():
        unit = "" if column.score.unit == PER_CENT else column.score.unit
        table.add_column(f"{heading}, {unit}" if unit else heading, justify="right")
    best = {heading: _best(results, column) for heading, column in columns.items()}
    for name, scores in results.items():
        table.add_row(
            name, *(_text(cell(scores, column.names), best[heading], column) for heading, column in columns.items())
        )
    return table


def _best(results: Results, column: Column) -> float | None:
    """Returns the best value in a column, None where neither high nor low ones are better."""
    known = [value for row in results.values() if (value := cell(row, column.names)) is not None]
    if column.score.better is None:
        return None
    return max(known) if column.score.better == "higher" else min(known)


def _text(value: float | None, best: float | None, column: Column) -> str:
    """Returns the text of a table's cell: bold for the best value of a column, "-" for none."""
    if value is None:
        return "-"
    return f"[bold]{column.text(value)}[/bold]" if value == best else column.text(value)
