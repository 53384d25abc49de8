"""From runs to what the report says: the declared family of effects of each metric, and the answer in a sentence.

| design | the family | besides |
|---|---|---|
| one_at_a_time, leave_one_out, explicit | each cell against the first, paired by seed | |
| factorial, fractional | main effects, averaged over the other factors | interactions, attribution of a gap |

Every family is corrected for its own size; so is the one of each metric, of which the first decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dinoswap.studies.report.collect import OUTCOMES, Collected, Run, collect
from dinoswap.studies.report.words import counted, interval, listed
from dinoswap.studies.statistics import (
    Attribution,
    Decision,
    Effect,
    Factorial,
    Outcomes,
    attribute,
    factorial,
    family,
    paired_effect,
)
from dinoswap.studies.study import Levels, Metric, Study


@dataclass(frozen=True)
class Result:
    """Of one metric. `decisions` are on the declared family, `shares` on the values of the attribution, `gap` on the
    whole of it."""

    metric: Metric
    outcomes: pd.DataFrame  # cell, seed, status, value
    decisions: list[Decision]
    factorial: Factorial | None = None
    interactions: Sequence[Decision] = ()
    attribution: Attribution | None = None
    shares: Sequence[Decision] = ()
    gap: Decision | None = None
    note: str = ""  # why there is no attribution


@dataclass(frozen=True)
class Analysis:
    """`results`: of each metric, the one that decides first; empty while no run has ended."""

    collected: Collected
    results: list[Result]

    @property
    def study(self) -> Study:
        return self.collected.study

    @property
    def crossed(self) -> bool:
        """Whether effects are averages over the levels of other factors."""
        return self.study.design in ("factorial", "fractional")

    @property
    def reference(self) -> str:
        """What the differences are to, in words."""
        return "each factor's first level" if self.crossed else self.collected.design.reference.name

    @property
    def unfinished(self) -> list[Run]:
        return [run for run in self.collected.runs if not run.ended]

    @property
    def answer(self) -> str:
        """In a sentence, or two when runs are missing."""
        runs, left = self.collected.runs, len(self.unfinished)
        if not self.results:
            return f"Nothing can be said yet: none of {counted(len(runs), 'run')} has ended."
        missing = f" {left} of {counted(len(runs), 'run')} have no outcome yet; this may change." if left else ""
        result = self.results[0]
        seeds = max((len(decision.effect.seeds) for decision in result.decisions), default=0)
        over = "averaged over the levels of the other factors" if self.crossed else f"against {self.reference}"
        found = "; ".join([*_clauses(result), *_gap_clause(result)])
        return f"On {result.metric.name}, {over}, with {counted(seeds, 'seed')}: {found}.{missing}"


def analyse(study: Study, root: Path) -> Analysis:
    """`root`: results/runs/<study>. Raises ConfigError for a study whose cells do not compose."""
    collected = collect(study, root)
    return Analysis(collected, [_result(collected, metric) for metric in study.metrics] if collected.ended else [])


def _result(collected: Collected, metric: Metric) -> Result:
    outcomes = collected.outcomes(metric)
    if collected.study.design not in ("factorial", "fractional"):
        return Result(metric, outcomes, family(_against_first(collected, outcomes, metric)))
    if not outcomes["value"].notna().any():
        return Result(metric, outcomes, [], note="no run has a value")
    levels, factors = {cell.name: cell.levels for cell in collected.design.cells}, collected.study.factors
    wanted: dict[str, Any] = {"smallest_effect": metric.smallest_effect, "higher_is_better": metric.higher_is_better}
    effects = factorial(outcomes, levels, factors, **wanted)
    decisions, interactions = family(effects.main), family(effects.interactions)
    start, end = corners(collected.study)
    try:
        shares = attribute(outcomes, levels, factors, start, end, **wanted)
    except ValueError as error:
        return Result(metric, outcomes, decisions, effects, interactions, note=str(error))
    (gap,) = family([shares.gap])
    return Result(metric, outcomes, decisions, effects, interactions, shares, family(shares.values), gap)


def _against_first(collected: Collected, outcomes: pd.DataFrame, metric: Metric) -> list[Effect]:
    first, *others = collected.design.cells
    reference = outcomes[outcomes["cell"] == first.name]
    return [
        paired_effect(
            reference,
            outcomes[outcomes["cell"] == cell.name],
            name=cell.name,
            smallest_effect=metric.smallest_effect,
            higher_is_better=metric.higher_is_better,
        )
        for cell in others
    ]


def corners(study: Study) -> tuple[Levels, Levels]:
    """Of an attribution: every factor at its first level, and at its last."""
    return study.reference, {factor: list(levels)[-1] for factor, levels in study.factors.items()}


# --- the answer -------------------------------------------------------------------------------------------------------


def _clauses(result: Result) -> list[str]:
    """What differs with its numbers, then the other verdicts with the names of what they are on."""
    named: dict[str, list[str]] = {}
    clauses = []
    if not result.outcomes["value"].notna().any():
        ended = result.outcomes[result.outcomes["status"].isin(OUTCOMES)]
        return [f"no run has a value ({Outcomes.count(ended).words})"]
    for decision in result.decisions:
        name, difference = decision.effect.name, interval(decision.effect) or "without a number"
        named.setdefault(decision.kind, []).append(name)
        if decision.kind.startswith(("better", "worse")):
            clauses.append(f"{name} is {decision.kind}, {difference}")
    small, unsure = f"{result.metric.smallest_effect:g}", f"no distinguishable difference{_needed(result)}"
    for kind, one, several in (
        ("fails", "fails in every run", "fail in every run"),
        ("equivalent", f"makes no difference as large as {small}", f"make no difference as large as {small}"),
        ("not distinguishable", f"makes {unsure}", f"make {unsure}"),
        ("no estimate", "has no estimate yet", "have no estimate yet"),
    ):
        if kind in named:
            clauses.append(f"{listed(named[kind])} {one if len(named[kind]) == 1 else several}")
    return clauses


def _needed(result: Result) -> str:
    """How many seeds would find the smallest effect of interest, over the effects that cannot be told from none."""
    left = [decision for decision in result.decisions if decision.kind == "not distinguishable"]
    seeds = sorted(decision.seeds_for_smallest for decision in left if decision.seeds_for_smallest)
    if not seeds:
        return ""
    between = f"{seeds[0]}" if seeds[0] == seeds[-1] else f"{seeds[0]} to {seeds[-1]}"
    return f" (about {between} seeds would find one of {result.metric.smallest_effect:g})"


def _gap_clause(result: Result) -> list[str]:
    """The shares of the attributed gap that can be told from nothing, if the gap can."""
    if result.gap is None or result.gap.kind not in ("better", "worse"):
        return []
    told = [share.effect for share in result.shares if share.kind in ("better", "worse")]
    shares = listed([f"{effect.name} accounts for {interval(effect)}" for effect in told]) or "no share can be told"
    return [f"of the whole gap of {interval(result.gap.effect)} {shares}"]
