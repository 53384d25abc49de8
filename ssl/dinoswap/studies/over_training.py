"""What a study would have said earlier: its effects at every evaluation in the loop that all of its runs share.

At each step they are estimated, tested and corrected as at the end (estimates.py), over the same runs: one that
diverged or failed has no value at any step. Where a study is looked at more than once, they are nevertheless of all
seeds that a cell has, with the intervals and p of one analysis: nothing is decided by them. Evaluations in the loop are
of `evaluation.in_loop_images`, the final one is of all images, so that steps compare with the last evaluation in the
loop, which is called the end here, and never with the final one. A step of a long run is not the end of a short one,
whose schedules would have ended there.
"""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from dinoswap.studies.estimates import declared_effects
from dinoswap.studies.statistics import Decision, Estimate, family
from dinoswap.studies.statistics.estimate import Array
from dinoswap.studies.statistics.outcomes import WITH_VALUE
from dinoswap.studies.study import Metric, Study

Run = tuple[str, int]
"""The cell and the seed of a run."""
COLUMNS = ["cell", "seed", "step", "name", "value"]


class Count(NamedTuple):
    """How many agree, of how many that could."""

    same: int
    of: int

    @property
    def all_agree(self) -> bool:
        """Whether none differs."""
        return self.same == self.of


@dataclass(frozen=True)
class Horizon:
    """The verdicts at one step, in the order of the report's."""

    step: int
    decisions: Sequence[Decision]

    @property
    def effects(self) -> list[Estimate]:
        """The effects that the verdicts are on."""
        return [decision.effect for decision in self.decisions]


@dataclass(frozen=True)
class Agreement:
    """How far one step agrees with the end. An effect is clear where its interval at the end leaves out 0, the order of
    two where their intervals there do not overlap."""

    sign: Count  # of effects
    order: Count  # of pairs of effects
    clear_sign: Count
    clear_order: Count
    spearman: float  # of all effects; nan where there are fewer than two, or all are equal
    verdict: Count


@dataclass(frozen=True)
class Course:
    """The effects on one metric at each step, of which there is at least one. `steps` are those of a whole run."""

    metric: Metric
    steps: int
    horizons: Sequence[Horizon]

    @property
    def at(self) -> list[int]:
        """The steps."""
        return [horizon.step for horizon in self.horizons]

    @property
    def end(self) -> Horizon:
        """The verdicts at the last evaluation in the loop."""
        return self.horizons[-1]

    @cached_property
    def agreements(self) -> list[Agreement]:
        """How far each horizon agrees with the end."""
        return [agreement(horizon, self.end) for horizon in self.horizons]

    def share(self, step: int) -> float:
        """Returns a step as a share of a whole run."""
        return step / self.steps

    def within(self, share: float) -> Horizon | None:
        """Returns the last horizon in this share of a run that is after a step of training, or None."""
        inside = [horizon for horizon in self.horizons if 0 < horizon.step <= share * self.steps]
        return inside[-1] if inside else None

    def seen(self, index: int) -> list[int]:
        """Returns the steps at which the interval of an effect leaves out 0."""
        return [horizon.step for horizon in self.horizons if side(horizon.effects[index])]

    def appears(self, index: int) -> int | None:
        """Returns the first step from which the interval of an effect leaves out 0 on the same side until the end, or
        None where it does not at the end."""
        sides = [side(horizon.effects[index]) for horizon in self.horizons]
        lasting = list(itertools.takewhile(lambda of_step: of_step == sides[-1], reversed(sides)))
        return self.horizons[-len(lasting)].step if sides[-1] else None

    @property
    def soonest(self) -> Horizon | None:
        """The first horizon after a step of training from which every clear sign and order is that of the end; None
        where no effect is clear, which leaves nothing to agree with."""
        if not self.agreements[-1].clear_sign.of:
            return None
        pairs = reversed(list(zip(self.horizons, self.agreements, strict=True)))
        agreeing = itertools.takewhile(lambda pair: _clear_agree(pair[1]) and pair[0].step > 0, pairs)
        return min((horizon for horizon, _ in agreeing), key=lambda horizon: horizon.step, default=None)

    @property
    def how_short(self) -> str:
        """A clause on how short a run may be, empty where nothing is known."""
        soonest, known = self.soonest, self.agreements[-1]
        if soonest is None:
            return ""
        effects = f"same sign ({known.clear_sign.of} of {known.sign.of} effects)"
        pairs = f"same order ({known.clear_order.of} of {known.order.of} pairs)" if known.clear_order.of else ""
        what = f"the {effects} and the {pairs}" if pairs else f"the {effects}"
        if soonest is self.end:
            return (
                f"before the last evaluation in the loop, after step {soonest.step} of {self.steps}, not all that "
                f"intervals tell there has {what}"
            )
        return (
            f"from step {soonest.step} of {self.steps} on ({self.share(soonest.step):.0%} of a run) all that intervals "
            f"tell at the last evaluation in the loop has {what}"
        )


def _clear_agree(with_end: Agreement) -> bool:
    """Returns whether every clear sign and order is that of the end."""
    return with_end.clear_sign.all_agree and with_end.clear_order.all_agree


def shared_evaluations(curves: pd.DataFrame, ends: Mapping[Run, int | None], names: Collection[str]) -> pd.DataFrame:
    """Returns what all runs that have a value measured in the loop at the same steps: the rows of `curves` (cell,
    seed, step, name, value) with these names.

    `ends` has the steps of each of those runs, after which the final evaluation was made.
    """
    keys = zip(curves["cell"], curves["seed"], strict=True)
    last = pd.Series([ends.get((str(cell), int(seed))) or 0 for cell, seed in keys], index=curves.index, dtype="int64")
    in_loop = curves[curves["name"].isin(names) & (curves["step"] < last)][COLUMNS]
    in_loop = in_loop.drop_duplicates(["cell", "seed", "step", "name"], keep="last")
    runs = in_loop.groupby(["name", "step"])["value"].transform("size")
    return in_loop[runs == len(ends)].reset_index(drop=True)


def course(
    study: Study,
    cells: Mapping[str, Mapping[str, str]],
    statuses: Mapping[Run, str],
    shared: pd.DataFrame,
    metric: Metric,
    steps: int,
) -> Course | None:
    """Returns the effects on a metric at each step of `shared`, the frame of `shared_evaluations`; None where it has
    none of this metric. `statuses` are those of all runs, as in a frame of outcomes; a run that reports no finite
    value at a step has failed there. `steps` are those of a whole run."""
    horizons = []
    for step, values in shared[shared["name"] == metric.name].groupby("step"):
        by_run = dict(zip(zip(values["cell"], values["seed"], strict=True), values["value"], strict=True))
        rows = [(*run, *_outcome(status, by_run.get(run, math.nan))) for run, status in statuses.items()]
        outcomes = pd.DataFrame(rows, columns=["cell", "seed", "status", "value"]).astype({"value": float})
        if decisions := family(declared_effects(study, cells, outcomes, metric)):
            horizons.append(Horizon(int(step), decisions))
    return Course(metric, steps, horizons) if horizons else None


def _outcome(status: str, value: float) -> tuple[str, float]:
    """Returns status and value of a run at a step, from its status at the end."""
    if status not in WITH_VALUE:
        return status, math.nan
    return (status, value) if math.isfinite(value) else ("failed", math.nan)


def side(effect: Estimate) -> int:
    """Returns 1 or -1 for the side of 0 on which the whole interval of an effect lies, 0 where it holds 0 or there is
    none."""
    return int(effect.low > 0) - int(effect.high < 0)  # False where they are nan


def agreement(horizon: Horizon, end: Horizon) -> Agreement:
    """Returns how far a horizon agrees with the end, over the effects that have a number at both."""
    both = [
        (then, now)
        for then, now in zip(horizon.effects, end.effects, strict=True)
        if math.isfinite(then.mean) and math.isfinite(now.mean)
    ]
    then, now = np.array([[effect.mean for effect in pair] for pair in both]).reshape(-1, 2).T
    low, high = np.array([[last.low, last.high] for _, last in both]).reshape(-1, 2).T
    first, second = np.triu_indices(len(both), 1)
    same_sign = np.sign(then) == np.sign(now)
    same_order = np.sign(then[first] - then[second]) == np.sign(now[first] - now[second])
    clear, apart = (low > 0) | (high < 0), (low[first] > high[second]) | (high[first] < low[second])
    verdicts = [early.kind == late.kind for early, late in zip(horizon.decisions, end.decisions, strict=True)]
    return Agreement(
        sign=_count(same_sign),
        order=_count(same_order),
        clear_sign=_count(same_sign[clear]),
        clear_order=_count(same_order[apart]),
        spearman=spearman(then, now),
        verdict=_count(verdicts),
    )


def _count(same: Collection[bool] | npt.NDArray[np.bool_]) -> Count:
    """Returns how many of these comparisons agree."""
    return Count(sum(map(bool, same)), len(same))


def spearman(then: Array, now: Array) -> float:
    """Returns the correlation of the ranks of two sequences [n], nan where n is below 2 or one does not vary."""
    ranks = [pd.Series(values, dtype=float).rank().to_numpy() for values in (then, now)]
    if len(then) < 2 or not all(np.ptp(ranked) for ranked in ranks):
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])
