"""How runs ended. Failures (collapsed, diverged, failed) are outcomes too: they are counted and tested, never dropped.

Their rates are compared by tests that are exact at any number of runs, two-sided, conditional on what says nothing of
the difference: McNemar's for arms paired by seed (conditional on the number of pairs of which exactly one failed),
Fisher's for groups of runs that are not paired (conditional on the number of failures).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import numpy.typing as npt
import pandas as pd

ROUNDING = 1e-12
"""A spread below this share of the values themselves is that of floating point, not of the runs."""
WITH_VALUE = ("completed", "collapsed")
WITHOUT_VALUE = ("diverged", "failed")
PENDING = ("missing", "queued", "running", "preempted", "killed")
FAILURES = ("collapsed", "diverged", "failed")


@dataclass(frozen=True)
class Outcomes:
    """How many runs of one arm have an outcome, and how many of them failed in which way."""

    runs: int = 0
    collapsed: int = 0
    diverged: int = 0
    failed: int = 0

    @classmethod
    def count(cls, frame: pd.DataFrame) -> "Outcomes":
        statuses = frame["status"].tolist()
        return cls(len(statuses), *map(statuses.count, FAILURES))

    @property
    def failures(self) -> int:
        """Runs that collapsed, diverged or failed."""
        return self.collapsed + self.diverged + self.failed

    @property
    def values(self) -> int:
        """Runs that have a value."""
        return self.runs - self.diverged - self.failed

    @property
    def words(self) -> str:
        """The failures in words, as in '2 diverged and 1 collapsed of 5' or '0 of 5'."""
        counts = {status: getattr(self, status) for status in ("diverged", "failed", "collapsed")}
        named = " and ".join(f"{count} {status}" for status, count in counts.items() if count)
        return f"{named or '0'} of {self.runs}"

    @property
    def all_fail(self) -> bool:
        """Whether there are runs and all of them failed."""
        return 0 < self.runs == self.failures


@dataclass(frozen=True)
class FailureTest:
    """An exact test of two failure rates: `floor` is the smallest p that as many failures can give, `excess` the arm's
    rate less the reference's."""

    p: float = 1.0
    floor: float = 1.0
    excess: float = 0.0


def with_outcome(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows that have an outcome, with nan as the value of runs that failed without one. Raises ValueError
    for missing columns, unknown statuses, a run that is there twice, and a completed run without a finite value."""
    absent = {"seed", "status", "value"} - set(frame.columns)
    if absent:
        raise ValueError(f"outcomes: columns {', '.join(sorted(absent))} are missing; has {', '.join(frame.columns)}")
    unknown = set(frame["status"]) - {*WITH_VALUE, *WITHOUT_VALUE, *PENDING}
    if unknown:
        known = ", ".join((*WITH_VALUE, *WITHOUT_VALUE, *PENDING))
        raise ValueError(f"status={', '.join(sorted(map(str, unknown)))}: must be one of {known}")
    frame = frame[~frame["status"].isin(PENDING)]
    valued = frame["status"].isin(WITH_VALUE)
    values = frame["value"].astype(float).where(valued)
    keys = [name for name in ("cell", "seed") if name in frame]
    _refuse(frame[frame.duplicated(keys)], "there is more than one run of this cell and seed; keep one")
    _refuse(frame[valued & ~np.isfinite(values)], "completed without a finite value; evaluate it, or call it failed")
    return frame.assign(value=values)


def distinct(values: npt.ArrayLike) -> bool:
    """Returns whether at least two of the values are finite and differ by more than floating point does."""
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    return len(known) > 1 and float(np.ptp(known)) > ROUNDING * float(np.abs(known).max())


def why_untested(reference: pd.DataFrame, arm: pd.DataFrame) -> str:
    """Returns why two sides, frames with outcomes, cannot be compared by a test however many runs they have, or an
    empty text if they can.

    The score of a network that collapsed says nothing of its recipe, and values that do not vary tell no error.
    """
    sides = {"reference": reference, "arm": arm}
    counts = {name: Outcomes.count(frame) for name, frame in sides.items()}
    if all(count.all_fail for count in counts.values()):
        return f"every run of both sides fails ({counts['arm'].words}, reference {counts['reference'].words})"
    for name, frame in sides.items():
        values = frame["value"].dropna()
        if counts[name].all_fail:
            return f"every run of the {name} fails ({counts[name].words})"
        if len(values) > 1 and not distinct(values):
            return f"every run of the {name} has the value {values.iloc[0]:g}"
    return ""


def mcnemar(reference: pd.DataFrame, arm: pd.DataFrame) -> FailureTest:
    """Returns McNemar's test of the failures in two frames with outcomes, over the seeds that both have."""
    sides = (frame.set_index("seed")["status"].isin(FAILURES) for frame in (reference, arm))
    both = pd.concat(sides, axis=1, join="inner").to_numpy(dtype=int)  # [seeds, (reference, arm)]
    only_reference, only_arm = (int((both[:, i] > both[:, 1 - i]).sum()) for i in (0, 1))
    return mcnemar_counts(only_reference, only_arm, len(both))


def mcnemar_counts(only_reference: int, only_arm: int, pairs: int) -> FailureTest:
    """Returns McNemar's test from the number of pairs in which only the reference or only the arm failed."""
    discordant = only_reference + only_arm
    weights = [comb(discordant, count) for count in range(discordant + 1)]
    return _exact(weights, only_arm, (only_arm - only_reference) / max(pairs, 1))


def fisher(reference: Outcomes, arm: Outcomes) -> FailureTest:
    """Returns Fisher's exact test of the failures of two groups of runs that are not paired."""
    if not (reference.runs and arm.runs):
        return FailureTest()
    failures = reference.failures + arm.failures
    lowest, highest = max(0, failures - reference.runs), min(failures, arm.runs)
    counts = range(lowest, highest + 1)
    weights = [comb(arm.runs, count) * comb(reference.runs, failures - count) for count in counts]
    excess = arm.failures / arm.runs - reference.failures / reference.runs
    return _exact(weights, arm.failures - lowest, excess)


def _exact(weights: Sequence[int], observed: int, excess: float) -> FailureTest:
    """Returns an exact test where `weights[x]` is proportional to the probability of x: p is that of all x which are no
    likelier than the observed one."""
    total = sum(weights)
    limits = (weights[observed], min(weights))
    p, floor = (sum(weight for weight in weights if weight <= limit) / total for limit in limits)
    return FailureTest(p, floor, excess)


def _refuse(rows: pd.DataFrame, problem: str) -> None:
    """Raises ValueError, which names the first of the rows, where there are any."""
    if len(rows):
        row = rows.iloc[0]
        raise ValueError(f"cell={row.get('cell', '?')}, seed={row['seed']}: {problem}")
