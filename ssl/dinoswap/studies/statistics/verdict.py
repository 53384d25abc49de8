"""A family of effects, declared before it was run, and what may be said of each of them.

Differences: Holm's step-down procedure (1979) over the p of the t test of every effect in the family, so that the
chance of any false finding is at most alpha. Holm does not run over the sign-flip p: that cannot be below 2 / 2^n, so
7 effects could not have a finding with fewer than 9 seeds, however large they are. The price is that differences are
taken to be normal; the exact p stands beside each effect for those who would rather not. The difference of two equal
arms is at least symmetric, which suffices in practice: simulated A/A studies of 1 and 7 arms with uniform, exponential,
coarse or now and then collapsing metrics find a difference in at most 5.5 %. The exception is a metric of two modes far
apart, each taken by half of the runs: 11 % for 7 arms and 3 seeds, below 5.5 % from 5 seeds on.

Failures: the exact test of an effect's failure rates joins the same family, but only if as many failures could have
reached alpha (six pairs of which one side failed). What never can be a finding need not be paid for (Tarone 1990).
An arm of which every run failed, while the reference has others, is said to fail: a count, not an inference.

What does not vary is not tested: networks that all collapsed score alike, and would be equivalent with certainty.

Equivalence: Holm over the TOST p against the smallest effect of interest, a family of its own. What is both different
from zero and equivalent is called equivalent: it is real, and smaller than what matters.

Of a study that is looked at several times all of these p are those that hold over the looks (repeated.py), and what is
decided at a planned look stays so: see in_turn.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dinoswap.studies.statistics.estimate import Estimate
from dinoswap.studies.statistics.power import seeds_needed

Kind = Literal[
    "better",
    "worse",
    "better because fewer runs fail",
    "worse because more runs fail",
    "equivalent",
    "not distinguishable",
    "fails",
    "not tested",
    "no estimate",
]


@dataclass(frozen=True)
class Decision:
    """The verdict on one effect.

    The p are adjusted by Holm; that of failures is 1 where it did not join the family. `size` is how many p Holm went
    over for differences: one per effect, and those of failures that joined.
    """

    effect: Estimate
    kind: Kind
    p_adjusted: float
    p_equivalent_adjusted: float
    p_failures_adjusted: float
    size: int
    alpha: float
    power: float

    @property
    def seeds_for_smallest(self) -> int | None:
        """The number of seeds that find the smallest effect of interest with `power` at alpha / size, if sd is what it
        seems."""
        return self._seeds(self.effect.smallest_effect)

    @property
    def seeds_for_seen(self) -> int | None:
        """The number of seeds that find an effect as large as the one estimated."""
        return self._seeds(abs(self.effect.mean))

    def _seeds(self, difference: float | None) -> int | None:
        """Returns the number of seeds that find this difference, None where that cannot be told."""
        effect = self.effect
        if not effect.tested or not difference:
            return None
        lost = effect.df_per_seed * len(effect.seeds) - effect.df
        alpha = self.alpha / self.size
        return seeds_needed(effect.sd, difference, alpha, self.power, df_per_seed=effect.df_per_seed, parameters=lost)

    @property
    def words(self) -> str:
        """The verdict as a sentence, without the effect's name."""
        return f"{self.kind}: {self._finding()}{self._failures()}"

    def _finding(self) -> str:
        """Returns the estimate with its interval and tests in words."""
        effect = self.effect
        if self.kind == "fails":
            return "no run has a value" if not effect.arm.values else "every run fails"
        if not effect.tested:
            finding = f"{effect.mean:+.3g}; " if self.kind == "not tested" and math.isfinite(effect.mean) else ""
            return finding + (effect.note or "fewer than two seeds have a value on both sides")
        finding = f"{effect.mean:+.3g} [{effect.low:+.3g}, {effect.high:+.3g}], p = {effect.p:.2g}"
        if effect.look:
            lasting = effect.lasting
            finding += f"; {effect.look.words}: [{lasting.low:+.3g}, {lasting.high:+.3g}], p = {lasting.p:.2g}"
        finding += f" ({self.p_adjusted:.2g} after Holm over {self.size})" if self.size > 1 else ""
        finding += f", against {effect.error.words}" if effect.error else ""
        if self.kind == "equivalent":
            real = ", real but smaller than what matters" if self.p_adjusted <= self.alpha else ""
            p = f"TOST p = {self.p_equivalent_adjusted:.2g}"
            return f"{finding}, within {effect.smallest_effect:g} of zero ({p}){real}"
        return f"{finding}{self._needed()}" if self.kind == "not distinguishable" else finding

    def _needed(self) -> str:
        """Returns, as the end of a sentence, how many seeds would find an effect; "" where that cannot be told."""
        requirements = [
            (self.seeds_for_smallest, "the smallest of interest"),
            (self.seeds_for_seen, "one as large as seen"),
        ]
        named = " and ".join(f"{seeds} seeds to find {what}" for seeds, what in requirements if seeds)
        return f"; at {self.power:.0%} power it takes about {named}" if named else ""

    def _failures(self) -> str:
        """Returns, as the end of a sentence, how many runs fail on both sides; "" where none does."""
        effect = self.effect
        if not (effect.arm.failures or effect.reference.failures):
            return ""
        p = f"exact p = {effect.failures.p:.2g}, smallest possible {effect.failures.floor:.2g}"
        return f"; runs that fail: {effect.arm.words}, reference {effect.reference.words} ({p})"


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns the adjusted p in the order given: those that are at most alpha are rejected."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return [float(value) for value in adjusted]


def family(effects: Sequence[Estimate], alpha: float = 0.05, power: float = 0.8) -> list[Decision]:
    """Returns a decision on each effect, in the order given. `power` is that of the numbers of seeds in the words."""
    joining = [index for index, effect in enumerate(effects) if _of_failures(effect, effect.failures.floor) <= alpha]
    of_failures = [_of_failures(effects[index], effects[index].failures.p) for index in joining]
    adjusted = holm([effect.lasting.p for effect in effects] + of_failures)
    failures = dict(zip(joining, adjusted[len(effects) :], strict=True))
    equivalent = holm([effect.lasting.p_equivalent for effect in effects])
    decisions = []
    for index, effect in enumerate(effects):
        p = (adjusted[index], equivalent[index], failures.get(index, 1.0))
        decisions.append(Decision(effect, _kind(effect, *p, alpha), *p, len(adjusted), alpha, power))
    return decisions


def _of_failures(effect: Estimate, p: float) -> float:
    """Returns what a p of the effect's failures is over all looks."""
    return effect.look.p_of_failures(p) if effect.look else p


def _kind(effect: Estimate, p: float, p_equivalent: float, p_failures: float, alpha: float) -> Kind:
    """Returns the verdict on an effect: by failures first, then by equivalence, then by the difference."""
    if p_failures <= alpha:
        return "worse because more runs fail" if effect.failures.excess > 0 else "better because fewer runs fail"
    if effect.arm.all_fail and not effect.reference.all_fail and effect.reference.values:
        return "fails"
    if not effect.tested:
        return "not tested" if effect.df else "no estimate"
    if p_equivalent <= alpha:
        return "equivalent"
    if p <= alpha:
        return "better" if (effect.mean > 0) == effect.higher_is_better else "worse"
    return "not distinguishable"
