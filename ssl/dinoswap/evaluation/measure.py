"""Lets the families that read features of whole images measure a network and its baselines, row by row of the table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dinoswap.evaluation.baselines import BASELINES, STANDARDISED, standardise
from dinoswap.evaluation.features import Extracted
from dinoswap.evaluation.summary import Results
from dinoswap.metric.base import WHOLE, ImageMetric, Part

TRAINED, RANDOM = "trained", "random init"
"""Names of rows of the table: the network, and the same network with its initial weights."""
OnRanks = Callable[[ImageMetric, Callable[[], Mapping[str, float]]], Mapping[str, float]]
"""A function that calls the work of a family on the ranks that do it, and returns its result on all ranks."""


def measure(
    metrics: Sequence[ImageMetric], train: Extracted | None, test: Extracted, device: torch.device, on_ranks: OnRanks
) -> tuple[dict[str, dict[str, float]], list[str | None]]:
    """Returns the scores by row of the table and then by name, and what each family finds wrong with the network.
    Without training features there is one row, of the families that need no labels. All ranks call it together; the
    features of one row are put together at a time, and `device` is where families may compute."""
    results: dict[str, dict[str, float]] = {row: {} for row in (test.features if train is not None else (TRAINED,))}
    warnings = []
    for row, scores in results.items():
        measured = [metric for metric in metrics if is_measured(metric, row, labelled=train is not None)]
        known = train if any(metric.supervised for metric in measured) else None
        memory, queries = _parts(known, test, row, measured, device)
        for metric in measured:
            learnt = _read(memory, row, metric) if memory is not None and metric.supervised else None
            values = on_ranks(metric, partial(metric.measure, learnt, _read(queries, row, metric)))
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


def _parts(
    train: Extracted | None, test: Extracted, row: str, metrics: Sequence[ImageMetric], device: torch.device
) -> tuple[Part | None, Part]:
    """Returns all that these families read of a row, of all images: of train, where it is given, and of test."""
    kinds = dict.fromkeys(kind for metric in metrics for kind in _kinds(row, metric))
    queries = {kind: test.of_all(row, kind) for kind in kinds}
    if train is None:
        return None, Part(queries, test.labels, device)
    memory = {kind: train.of_all(row, kind) for kind in kinds}
    if row in STANDARDISED:
        memory[WHOLE], queries[WHOLE] = standardise(memory[WHOLE], queries[WHOLE])
    return Part(memory, train.labels, device), Part(queries, test.labels, device)


def _read(part: Part, row: str, metric: ImageMetric) -> Part:
    """Returns what one family reads of a row."""
    return replace(part, features={kind: part.features[kind] for kind in _kinds(row, metric)})


def _kinds(row: str, metric: ImageMetric) -> Sequence[str]:
    """Returns the kinds of features that a family reads of a row."""
    return (WHOLE,) if row in BASELINES else metric.reads


def baseline_features(read: Callable[[Tensor], Tensor], device: torch.device, images: Tensor) -> Mapping[str, Tensor]:
    """Returns the features of a baseline as a reader gives them, by kind. They are computed on `device`: a core takes
    milliseconds for an image, longer than a GPU does for the network."""
    return {WHOLE: read(images.to(device, non_blocking=True)).cpu()}


def named(results: Results) -> dict[str, float]:
    """Returns all scores by their full names: `eval/knn_top1` of the network, `baseline/raw_pixels/knn_top1` of
    others."""
    return {
        f"{'eval' if row == TRAINED else 'baseline/' + row.replace(' ', '_')}/{name}": score
        for row, scores in results.items()
        for name, score in scores.items()
    }
