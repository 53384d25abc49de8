"""Lets the families that read features of whole images measure a network and its baselines, row by row of the table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from dinoswap.evaluation.baselines import BASELINES, STANDARDISED, standardise
from dinoswap.evaluation.features import Extracted
from dinoswap.evaluation.summary import Results
from dinoswap.metric.base import WHOLE, ImageMetric, Part

TRAINED, RANDOM = "trained", "random init"
"""Names of rows of the table: the network, and the same network with its initial weights."""


def measure(
    metrics: Sequence[ImageMetric], train: Extracted | None, test: Extracted
) -> tuple[dict[str, dict[str, float]], list[str | None]]:
    """Returns the scores by row of the table and then by name, and what each family finds wrong with the network.
    Without training features there is one row, of the families that need no labels."""
    results: dict[str, dict[str, float]] = {row: {} for row in (test.features if train is not None else (TRAINED,))}
    warnings = []
    if train is not None:
        train, test = standardised(train, test)
    for metric in metrics:
        for row, scores in results.items():
            if not is_measured(metric, row, labelled=train is not None):
                continue
            memory = _part(train, row, metric) if train is not None and metric.supervised else None
            values = metric.measure(memory, _part(test, row, metric))
            metric.require_described(values)
            scores |= values
            warnings += [metric.verdict(values)] if row == TRAINED else []
    return results, warnings


def is_measured(metric: ImageMetric, row: str, labelled: bool) -> bool:
    """Tells whether a family is measured on a row of the table: one that needs no labels on the network alone, others
    on all rows, but on baselines only where the family has a number for whole images."""
    if not metric.supervised:
        return row == TRAINED
    return labelled and (row not in BASELINES or any(score.of_whole for score in metric.scores.values()))


def standardised(train: Extracted, test: Extracted) -> tuple[Extracted, Extracted]:
    """Returns both with the features of the baselines that are to be standardised replaced by standardised ones."""
    pairs = {
        row: standardise(train.features[row][WHOLE], test.features[row][WHOLE])
        for row in STANDARDISED
        if row in train.features
    }
    parts = [
        replace(part, features={**part.features, **{row: {WHOLE: pair[place]} for row, pair in pairs.items()}})
        for place, part in enumerate((train, test))
    ]
    return parts[0], parts[1]


def _part(extracted: Extracted, row: str, metric: ImageMetric) -> Part:
    """Returns the features of one row that a family reads, with the labels."""
    kinds = (WHOLE,) if row in BASELINES else metric.reads
    return Part({kind: extracted.features[row][kind] for kind in kinds}, extracted.labels)


def whole(read: Callable[[Tensor], Tensor], images: Tensor) -> Mapping[str, Tensor]:
    """Returns the features of a baseline as a reader gives them, by kind."""
    return {WHOLE: read(images)}


def named(results: Results) -> dict[str, float]:
    """Returns all scores by their full names: `eval/knn_top1` of the network, `baseline/raw_pixels/knn_top1` of
    others."""
    return {
        f"{'eval' if row == TRAINED else 'baseline/' + row.replace(' ', '_')}/{name}": score
        for row, scores in results.items()
        for name, score in scores.items()
    }
