"""The table that compares the accuracies of a network with those of its baselines, on the same split."""

from collections.abc import Mapping

from rich.table import Table

Results = Mapping[str, Mapping[str, float]]
"""Scores in per cent by row (trained, random init, raw pixels, ...) and then by name. A network's names carry the kind
of its features, "cls/knn_top1"; a baseline without tokens has "knn_top1" alone, which then stands for every kind."""

COLUMNS = {
    "k-NN CLS": ("cls", "knn_top1"),
    "k-NN patch mean": ("patch_mean", "knn_top1"),
    "linear CLS": ("cls", "linear_top1"),
    "linear patch mean": ("patch_mean", "linear_top1"),
}


def cell(scores: Mapping[str, float], column: str) -> float | None:
    """Returns the score of one row in one of COLUMNS, None where it was not computed."""
    kind, metric = COLUMNS[column]
    return scores.get(f"{kind}/{metric}", scores.get(metric))


def summary_table(results: Results, title: str = "top-1 accuracy, %") -> Table:
    """Returns a table with a row per entry of `results` and a column per entry of COLUMNS that any row has. The best of
    each column is bold."""
    table = Table(title=title)
    table.add_column("features")
    known = {c: [v for row in results.values() if (v := cell(row, c)) is not None] for c in COLUMNS}
    columns = [column for column in COLUMNS if known[column]]
    for column in columns:
        table.add_column(column, justify="right")
    for name, scores in results.items():
        table.add_row(name, *(_text(cell(scores, column), known[column]) for column in columns))
    return table


def _text(value: float | None, known: list[float]) -> str:
    if value is None:
        return "-"
    return f"[bold]{value:.1f}[/bold]" if value == max(known) else f"{value:.1f}"
