"""The table of accuracies: a network beside its baselines, on the same split."""

from collections.abc import Iterable, Mapping

from rich.table import Table

from dinoswap.metric.base import Metric

Results = Mapping[str, Mapping[str, float]]
"""Scores by row (trained, random init, raw pixels, ...) and then by name, as in knn_top1."""
Columns = Mapping[str, tuple[str, ...]]
"""Heading -> the names of the scores that stand below it, of which a row has one: a baseline without tokens has another
name than a network."""


def columns_of(metrics: Iterable[Metric]) -> Columns:
    """Returns the columns of the table, in the order in which the families of metrics name them."""
    scores = [(name, score) for metric in metrics for name, score in metric.scores.items() if score.column]
    return {score.column: tuple(filter(None, (name, score.of_whole))) for name, score in scores}


def cell(scores: Mapping[str, float], names: Iterable[str]) -> float | None:
    """Returns the first of these scores that a row has, None where it has none."""
    return next((scores[name] for name in names if name in scores), None)


def summary_table(results: Results, columns: Columns, title: str = "top-1 accuracy, %") -> Table:
    """Returns a table with a row per entry of `results`, and those columns that any row has. The best of each column is
    bold."""
    table = Table(title=title)
    table.add_column("features")
    known = {c: [v for row in results.values() if (v := cell(row, columns[c])) is not None] for c in columns}
    filled = [column for column in columns if known[column]]
    for column in filled:
        table.add_column(column, justify="right")
    for name, scores in results.items():
        table.add_row(name, *(_text(cell(scores, columns[column]), known[column]) for column in filled))
    return table


def _text(value: float | None, known: list[float]) -> str:
    if value is None:
        return "-"
    return f"[bold]{value:.1f}[/bold]" if value == max(known) else f"{value:.1f}"
