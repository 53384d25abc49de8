"""The seeds of a run's random streams: `seed`, but for those that `stream_seeds` gives a seed of its own.

Draws are keyed by seed and purpose (rng.py), so streams that share a seed are independent of each other, and one that
gets another seed leaves the draws of all others as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dinoswap.config.schema import construct, require_section


@dataclass(frozen=True, kw_only=True)
class StreamSeeds:
    """Holds the seed of each stream. Raises ValueError for one that is negative.

    `init`: initial weights. `order`: which images a step has, which of them replace those that cannot be decoded, and
    the sizes of its crops. `augmentation`: crops and their colours. `masks`. `dropout`: stochastic depth and dropout.
    """

    init: int
    order: int
    augmentation: int
    masks: int
    dropout: int

    def __post_init__(self) -> None:
        for stream in STREAMS:
            if getattr(self, stream) < 0:
                raise ValueError(f"{stream}={getattr(self, stream)}: must be 0 or more, or null for that of the run")


STREAMS = tuple(field.name for field in fields(StreamSeeds))
"""The names of the streams."""


def stream_seeds(cfg: Mapping[str, Any]) -> StreamSeeds:
    """Returns the seeds of a config's streams. Raises ConfigError for an unknown stream and for a seed that is no whole
    number from 0 on."""
    section = cfg["stream_seeds"]
    require_section(section, "stream_seeds")
    seeds = {stream: cfg["seed"] if seed is None else seed for stream, seed in section.items()}
    return construct(StreamSeeds, seeds, "stream_seeds")
