"""What a study's numbers say: pure functions over frames of outcomes, which know nothing of run folders.

A frame of outcomes has one row per run: `cell` (str), `seed` (int), `status` (str), `value` (float). A run that is
`completed` or `collapsed` (it ran to its end, and its evaluation says so) has a finite value; `diverged` and `failed`
are outcomes without one; `missing`, `queued`, `running`, `preempted` and `killed` are none yet. `cells` maps a cell's
name to {factor: level}, for every factor; `factors` maps a factor to its levels, of which the first is the reference.

    paired_effect(reference, arm, *, name="", smallest_effect=None, higher_is_better=True, confidence=0.95,
                  draws=100_000) -> Effect                    two frames of outcomes, of one cell each
    factorial(outcomes, cells, factors, *, interactions=True, smallest_effect=None, higher_is_better=True,
              confidence=0.95) -> Factorial                   .main, .interactions, .aliases, .inestimable, .sd, .df
    attribute(outcomes, cells, factors, start, end, *, smallest_effect=None, higher_is_better=True, confidence=0.95,
              draws=10_000) -> Attribution                    .values, .gap, .bootstrap, .per_seed, .model_gap, ...
    family(effects, alpha=0.05, power=0.8) -> list[Decision]  effects: whatever was declared to be one family,
                                                              [Effect, ...], Factorial.main or Attribution.values
    holm(p_values) -> list[float]                             adjusted, in the order given
    judge_in_turn(estimate, ended, seeds, plan, seen) -> InTurn           a family that is looked at more than once

    detectable_difference(sd, n, alpha=0.05, power=0.8) -> float         paired t test at n seeds
    seeds_needed(sd, difference, alpha=0.05, power=0.8) -> int           its inverse
    detectable_effects(cells, factors, seeds, sd, alpha=0.05, power=0.8, interactions=True, seed_sd=0.0)
                  -> {effect: float}                          main effects of a design that is run completely
    seeds_for_effects(cells, factors, sd, difference, alpha=0.05, power=0.8) -> int | None
    aliases(cells, factors, interactions=True) -> {effect: {other: weight}}   before anything is run

The `sd` that is given is that of the difference between two runs that share a seed; Factorial.sd, that of a single run,
is sqrt(2) times smaller. An Estimate (Effect is one) has `name, mean, se, df, low, high, p, p_equivalent, sd, seeds,
tested, reference, arm` (how the runs of both sides ended: `runs, collapsed, diverged, failed`), `failures` (`p, floor,
excess`), `note`, and in a crossed design `error`: the mean squares of which the largest is what it is tested against
(strata.py), and in a study that is looked at more than once `look` and `lasting`: p and interval that hold over all
looks. An Effect also has `differences, unpaired, p_sign_flip, p_floor, draws`. Where n seeds cannot give a number it
is nan, and p is 1. A Decision has `effect, kind, words, p_adjusted, p_equivalent_adjusted, p_failures_adjusted,
seeds_for_smallest, seeds_for_seen`.
"""

from dinoswap.studies.statistics.attribution import Attribution, attribute
from dinoswap.studies.statistics.effects import Effect, paired_effect
from dinoswap.studies.statistics.estimate import Error, Estimate, MeanSquare, MetricOptions
from dinoswap.studies.statistics.factorial import Factorial, aliases, detectable_effects, factorial, seeds_for_effects
from dinoswap.studies.statistics.in_turn import InTurn, judge_in_turn, seeds_used
from dinoswap.studies.statistics.outcomes import FailureTest, Outcomes, distinct
from dinoswap.studies.statistics.power import detectable_difference, seeds_needed
from dinoswap.studies.statistics.repeated import Look, OperatingCharacteristics, operating_characteristics
from dinoswap.studies.statistics.verdict import Decision, Kind, family, holm

__all__ = [
    "Attribution",
    "Decision",
    "Effect",
    "Error",
    "Estimate",
    "Factorial",
    "FailureTest",
    "InTurn",
    "Kind",
    "Look",
    "MeanSquare",
    "MetricOptions",
    "OperatingCharacteristics",
    "Outcomes",
    "aliases",
    "attribute",
    "detectable_difference",
    "detectable_effects",
    "distinct",
    "factorial",
    "family",
    "holm",
    "judge_in_turn",
    "operating_characteristics",
    "paired_effect",
    "seeds_for_effects",
    "seeds_needed",
    "seeds_used",
]
