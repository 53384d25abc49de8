"""Which seeds the runs have: an orthogonal array, in which all streams vary at once, and one stream at a time."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dinoswap.config.schema import ConfigError, nearest
from dinoswap.config.streams import STREAMS, StreamSeeds

Ints = NDArray[np.int64]


def orthogonal_array(levels: int, columns: int) -> Ints:
    """Returns an orthogonal array of strength 2 and index 1 (Bush 1952), int64 [levels^2, columns]: in any two columns
    each pair of levels occurs once, so that no two rows share more than one level. Row (a, b) has a + k b modulo
    `levels` in column k, and b in a last one. Raises ValueError for levels that are no prime, for which this is no such
    array, and for more than levels + 1 columns."""
    if not is_prime(levels):
        raise ValueError(f"levels={levels}: must be a prime")
    if columns > levels + 1:
        raise ValueError(f"columns={columns}: an array of {levels} levels has at most {levels + 1}")
    a, b = np.divmod(np.arange(levels**2), levels)
    return np.column_stack([*((a + k * b) % levels for k in range(levels)), b])[:, :columns]


def is_prime(number: int) -> bool:
    """Tells whether a number is a prime."""
    return number >= 2 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


@dataclass(frozen=True)
class NoiseDesign:
    """The seeds of the runs that measure a noise budget: each stream in `streams` has the seeds 0 to levels - 1, the
    others 0. `bases` is the number of runs from which one stream at a time is varied. Raises ConfigError for a number
    of levels that gives no residual, and for unknown streams."""

    levels: int = 5
    streams: Sequence[str] = STREAMS
    bases: int = 1

    def __post_init__(self) -> None:
        for stream in self.streams:
            if stream not in STREAMS:
                known = ", ".join(STREAMS)
                raise ConfigError(
                    f"--streams {stream}: there is no such stream.{nearest(stream, STREAMS)} Known: {known}."
                )
        if not self.streams or len(set(self.streams)) < len(self.streams):
            raise ConfigError(f"--streams {','.join(self.streams)}: name different streams, as in init,order")
        needed = max(len(self.streams), 3)
        if not is_prime(self.levels) or self.levels < needed:
            raise ConfigError(
                f"--levels {self.levels}: must be a prime of at least {needed}, for so many --streams: else no run is "
                "left for the residual"
            )
        if not 0 <= self.bases <= self.levels:
            raise ConfigError(f"--bases {self.bases}: must be 0 to {self.levels}, the number of levels")

    @property
    def array(self) -> Ints:
        """The seeds of the crossed runs, int64 [levels^2, streams]. In `levels` of them all streams have one seed."""
        return orthogonal_array(self.levels, len(self.streams))

    def crossed(self) -> list[StreamSeeds]:
        """Returns the seeds of the crossed runs, in the order of `array`."""
        return [self._seeds(dict(zip(self.streams, row, strict=True))) for row in self.array.tolist()]

    def base(self, seed: int) -> StreamSeeds:
        """Returns the crossed run in which all streams that vary have this seed, below `levels`."""
        return self._seeds(dict.fromkeys(self.streams, seed))

    def alone(self, stream: str) -> list[list[StreamSeeds]]:
        """Returns for each base the runs in which this stream has each of its seeds and all others that of the base."""
        seeds = range(self.levels)
        return [[replace(self.base(base), **{stream: seed}) for seed in seeds] for base in range(self.bases)]

    def all_runs(self) -> list[StreamSeeds]:
        """Returns the seeds of all runs of the reference, each once."""
        alone = [seeds for stream in self.streams for runs in self.alone(stream) for seeds in runs]
        return list(dict.fromkeys([*self.crossed(), *alone]))

    def _seeds(self, varied: dict[str, int]) -> StreamSeeds:
        return StreamSeeds(**(dict.fromkeys(STREAMS, 0) | varied))


def words(seeds: StreamSeeds) -> str:
    """Returns the seeds as in 'init 0, order 1'."""
    return ", ".join(f"{stream} {seed}" for stream, seed in asdict(seeds).items())
