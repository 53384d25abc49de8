"""Finds the nearest neighbours of a few images among the features in Parquet files, of which one is in memory at a
time."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyarrow import parquet


@dataclass(frozen=True)
class Neighbour:
    """One of the images most similar to a query."""

    similarity: float  # cosine
    row: int  # of the data set
    name: str
    label: int | None


def nearest(files: Iterable[Path], kind: str, queries: NDArray[np.float32], count: int) -> list[list[Neighbour]]:
    """Returns for each of the queries [q, D] the `count` images whose vectors in the column `kind` have the largest
    cosine similarity with it, most similar first, the first of equal ones first; fewer where there are fewer images.
    `files` have the columns row, name, label and `kind`."""
    directions = _directions(queries)
    neighbours: list[list[Neighbour]] = [[] for _ in queries]
    for file in files:
        table = parquet.read_table(file, columns=["row", "name", "label", kind])
        vectors = table[kind].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        for place, similarity in enumerate(directions @ _directions(vectors).T):  # [q, D] x [D, n] -> [q, n]
            largest = np.argsort(-similarity, kind="stable")[:count]
            rows = table.select(["row", "name", "label"]).take(largest).to_pylist()
            candidates = [Neighbour(float(value), **row) for value, row in zip(similarity[largest], rows, strict=True)]
            neighbours[place] = sorted(neighbours[place] + candidates, key=lambda neighbour: -neighbour.similarity)[
                :count
            ]
    return neighbours


def _directions(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns vectors [n, D] at length 1, and one of zeros as it is."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    directions: NDArray[np.float64] = vectors / np.where(lengths > 0, lengths, 1)
    return directions
