"""What the runs of a noise budget say of one metric: the variance of a run by stream, and what pairing takes away."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dinoswap.studies.noise.array import Ints
from dinoswap.studies.noise.components import Floats, Quantity, components, drawn_square, quantity


@dataclass(frozen=True)
class Budget:
    """The variance of one arm's runs. `sd` is the standard deviation of a run; all else are shares of its variance:
    `first_order` of each stream by itself, `interactions` of how streams meet, `total` of a stream where it alone
    varies, and `threads` of another number of threads with all seeds the same; None where it was not measured."""

    arm: str
    mean: float
    sd: Quantity
    first_order: dict[str, Quantity]
    interactions: Quantity
    total: dict[str, Quantity]
    threads: Quantity | None


@dataclass(frozen=True)
class Pairing:
    """What pairing two arms does to the variance of their difference. `saved` is the share of it, were no stream
    shared, that sharing one stream takes away, `saved_by_all` that of sharing all of them, whose interactions are then
    shared too. `sd` is the standard deviation of a difference that shares all, `unpaired_sd` of one that shares
    none."""

    arm: str
    reference: str
    saved: dict[str, Quantity]
    saved_by_all: Quantity
    sd: Quantity
    unpaired_sd: Quantity

    @property
    def helpful(self) -> list[str]:
        """The streams by which pairing clearly takes variance away."""
        return [stream for stream, share in self.saved.items() if share.low > 0]

    @property
    def harmful(self) -> list[str]:
        """The streams by which pairing clearly adds variance."""
        return [stream for stream, share in self.saved.items() if share.high < 0]


def budget(
    arm: str,
    streams: Sequence[str],
    array: Ints,
    crossed: Floats,
    alone: dict[str, Floats] | None = None,
    threads: Floats | None = None,
) -> Budget:
    """Returns the budget of an arm from the values of its `crossed` runs [levels^2], in the order of the orthogonal
    `array` [levels^2, streams], and of the runs in which one stream varies [bases, levels]. `threads` holds pairs of
    runs with the same seeds and other threads [pairs, 2]. Shares are nan where all runs have one value."""
    parts = components(crossed, array, "arm")
    variance, drawn_variance = parts.values.sum(), parts.draws.sum(axis=1)
    *first, interactions = _shares(parts.values, parts.draws, variance, drawn_variance, least=0.0)

    def share(square: float, df: int, purpose: str) -> Quantity:
        draws = drawn_square(square, df, purpose)[:, None]
        (of_variance,) = _shares(np.array([square]), draws, variance, drawn_variance, least=0.0)
        return of_variance

    total = {
        stream: share(float(values.var(axis=1, ddof=1).mean()), values.shape[0] * (values.shape[1] - 1), stream)
        for stream, values in (alone or {}).items()
    }
    of_threads = None
    if threads is not None:  # half the square of a difference of two runs estimates the variance of one
        of_threads = share(float(np.square(threads[:, 0] - threads[:, 1]).mean() / 2), len(threads), "threads")
    sd = quantity(np.sqrt(variance), np.sqrt(drawn_variance))
    first_order = dict(zip(streams, first, strict=True))
    return Budget(arm, float(crossed.mean()), sd, first_order, interactions, total, of_threads)


def pairing(arm: str, reference: str, streams: Sequence[str], array: Ints, values: Floats) -> Pairing:
    """Returns what pairing takes from the variance of a difference, from the values [levels^2, 2] of the arm's and the
    reference's runs, in the order of the orthogonal `array`. Sharing a stream takes away twice the covariance C that it
    gives them: of their sum it makes V + V' + 2 C, of their difference V + V' - 2 C. Intervals take the two to be
    independent, as they are for arms of equal variance; for others they are too wide."""
    total, difference = (
        components(values[:, 0] + sign * values[:, 1], array, name) for sign, name in ((1, "sum"), (-1, "difference"))
    )
    taken, drawn_taken = ((getattr(total, kind) - getattr(difference, kind)) / 2 for kind in ("values", "draws"))
    unpaired, drawn_unpaired = (total.values + difference.values).sum() / 2, (total.draws + difference.draws).sum(1) / 2
    saved = _shares(
        np.append(taken[:-1], taken.sum()),
        np.column_stack([drawn_taken[:, :-1], drawn_taken.sum(axis=1)]),
        unpaired,
        drawn_unpaired,
        least=-1.0,
    )
    return Pairing(
        arm,
        reference,
        saved=dict(zip(streams, saved[:-1], strict=True)),
        saved_by_all=saved[-1],
        sd=quantity(np.sqrt(difference.values.sum()), np.sqrt(difference.draws.sum(axis=1))),
        unpaired_sd=quantity(np.sqrt(unpaired), np.sqrt(drawn_unpaired)),
    )


def _shares(parts: Floats, draws: Floats, whole: float, drawn_whole: Floats, *, least: float) -> list[Quantity]:
    """Returns each of the parts [parts] as a share of the whole between `least` and 1, with the interval of its draws
    [DRAWS, parts]; nan where the whole is 0."""
    with np.errstate(invalid="ignore"):
        shares, drawn = parts / whole, draws / drawn_whole[:, None]
    return [quantity(share, of_share, least, 1.0) for share, of_share in zip(shares, drawn.T, strict=True)]
