"""Picks the images that are evaluated where not all of them are."""

import numpy as np
from numpy.typing import NDArray

from dinoswap import rng


def eval_rows(total: int, limit: int | None = None) -> NDArray[np.int64]:
    """Returns the rows that are evaluated, ascending int64 [n]: all of them, or the same `limit` of them in every run.
    Raises ValueError for a limit below 1."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: at least one image is needed; use None for all of them")
    if limit is None or limit >= total:
        return np.arange(total)
    # The seed is fixed: runs with different seeds are compared on the same images.
    return np.sort(rng.numpy_generator(0, "evaluation/rows", total).permutation(total)[:limit])
