"""Counter-based randomness: every draw is keyed by (seed, purpose, counters) and by nothing else.

A run that resumes at step n therefore needs no generator state, the number of workers and ranks cannot
change the data, and two arms of an ablation that share a seed share every draw that both of them make.
"""

import hashlib
import random
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # imported where it is used: most draws are NumPy's, and torch takes seconds to import
    import torch


def derive(seed: int, purpose: str, *counters: int) -> int:
    """Returns a 64-bit key for one purpose at one point of the run (BLAKE2b of the arguments)."""
    text = "/".join([str(seed), purpose, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def numpy_generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Returns a NumPy generator keyed by the arguments."""
    return np.random.Generator(np.random.Philox(derive(seed, purpose, *counters)))


def python_generator(seed: int, purpose: str, *counters: int) -> random.Random:
    """Returns a generator of Python's `random`, keyed by the arguments."""
    return random.Random(derive(seed, purpose, *counters))


def torch_generator(seed: int, purpose: str, *counters: int) -> "torch.Generator":
    """Returns a torch generator on the CPU, keyed by the arguments. Its `manual_seed` takes all 64 bits of the key."""
    import torch

    return torch.Generator().manual_seed(derive(seed, purpose, *counters))


def fixed_subset(total: int, limit: int | None = None) -> NDArray[np.int64]:
    """Returns numbers below `total`, ascending int64 [n]: all of them, or `limit` that are the same in every run, as
    runs with different seeds are evaluated on the same images. Raises ValueError for a limit below 1."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}: at least one image is needed; use None for all of them")
    if limit is None or limit >= total:
        return np.arange(total)
    return np.sort(numpy_generator(0, "evaluation/rows", total).permutation(total)[:limit])


def seed_torch(seed: int, purpose: str, *counters: int) -> None:
    """Seeds torch's default generators on all devices, for modules that draw from them, such as dropout."""
    import torch

    torch.manual_seed(derive(seed, purpose, *counters))
