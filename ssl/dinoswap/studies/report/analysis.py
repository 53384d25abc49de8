"""From runs to what the report says: the declared family of effects of each metric, and the answer in a sentence.

| design | the family | besides |
|---|---|---|
| one_at_a_time, leave_one_out, explicit | each cell against the first, paired by seed | |
| factorial, fractional | main effects, averaged over the other factors | interactions, attribution of a gap |

The first are tested against their spread over the seeds, the second against seed x effect, or the residual (strata.py).
Every family is corrected for its own size; so is the one of each metric, of which the first decides. Where every run
collapsed, diverged or failed, or all have one value, nothing is tested, and the answer says so first.
"""

from collections.abc import Iterable, Mapping, Sequence
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
    distinct,
    factorial,
    family,
    paired_effect,
)
from dinoswap.studies.statistics.outcomes import FAILURES
from dinoswap.studies.study import Levels, Metric, Study

NAMED_CELLS = 3
"""Cells with failing runs that the answer names; of more it gives the number."""


@dataclass(frozen=True)
class Result:
    """The verdicts on one metric: `decisions` on the declared family, `shares` on the values of the attribution, `gap`
    on the whole gap that is attributed."""

    metric: Metric
    outcomes: pd.DataFrame  # cell, seed, status, value
    decisions: list[Decision]
    factorial: Factorial | None = None
    interactions: Sequence[Decision] = ()
    attribution: Attribution | None = None
    shares: Sequence[Decision] = ()
    gap: Decision | None = None
    note: str = ""  # why nothing can be said, or why there is no attribution


@dataclass(frozen=True)
class Analysis:
    """The results of a study by metric, first that of the metric that decides; none while no run has ended."""

    collected: Collected
    results: list[Result]

    @property
    def study(self) -> Study:
        """The study that was analysed."""
        return self.collected.study

    @property
    def crossed(self) -> bool:
        """Whether effects are averages over the levels of other factors."""
        return self.study.design in ("factorial", "fractional")

    @property
    def reference(self) -> str:
        """What the differences are measured against, in words."""
        return "each factor's first level" if self.crossed else self.collected.design.reference.name

    @property
    def unfinished(self) -> list[Run]:
        """The runs without an outcome."""
        return [run for run in self.collected.runs if not run.ended]

    @property
    def answer(self) -> str:
        """The answer in a sentence, after what went wrong and before what is missing."""
        runs, pending = self.collected.runs, len(self.unfinished)
        if not self.results:
            return f"Nothing can be said yet: none of {counted(len(runs), 'run')} has ended."
        missing = f" {pending} of {counted(len(runs), 'run')} have no outcome yet; this may change." if pending else ""
        result = self.results[0]
        void = nothing_to_say(result.outcomes, result.metric)
        if void:
            return f"{void[0].upper()}{void[1:]}: nothing can be said.{missing}"
        seeds = max((len(decision.effect.seeds) for decision in result.decisions), default=0)
        over = "averaged over the levels of the other factors" if self.crossed else f"against {self.reference}"
        findings = "; ".join([*_clauses(result), *_gap_clause(result)])
        lead = _failed(result.outcomes)
        return f"{lead}On {result.metric.name}, {over}, with {counted(seeds, 'seed')}: {findings}.{missing}"


def analyse(study: Study, root: Path) -> Analysis:
    """Returns the analysis of a study whose runs are below `root`, results/runs/<study>. Raises ConfigError for a study
    whose cells do not compose."""
    return analyse_collected(collect(study, root))


def analyse_collected(collected: Collected) -> Analysis:
    """Returns the results of the runs of a study, by metric."""
    metrics = collected.study.metrics if collected.ended else []
    cells = {cell.name: cell.levels for cell in collected.design.cells}
    results = [judge(collected.study, cells, collected.outcomes(metric), metric) for metric in metrics]
    return Analysis(collected, results)


def judge(study: Study, cells: Mapping[str, Mapping[str, str]], outcomes: pd.DataFrame, metric: Metric) -> Result:
    """Returns every verdict on one metric. `outcomes` has the columns cell, seed, status and value; the first of the
    cells is the reference."""
    void = nothing_to_say(outcomes, metric)
    if study.design not in ("factorial", "fractional"):
        return Result(metric, outcomes, family(_against_first(cells, outcomes, metric)), note=void)
    if not outcomes["value"].notna().any():
        return Result(metric, outcomes, [], note=void)
    criteria: dict[str, Any] = {"smallest_effect": metric.smallest_effect, "higher_is_better": metric.higher_is_better}
    effects = factorial(outcomes, cells, study.factors, **criteria)
    decisions = family(effects.main)
    if void:
        return Result(metric, outcomes, decisions, effects, note=void)
    interactions = family(effects.interactions)
    start, end = corners(study)
    try:
        shares = attribute(outcomes, cells, study.factors, start, end, **criteria)
    except ValueError as error:
        return Result(metric, outcomes, decisions, effects, interactions, note=str(error))
    (gap,) = family([shares.gap])
    return Result(metric, outcomes, decisions, effects, interactions, shares, family(shares.values), gap)


def _against_first(cells: Iterable[str], outcomes: pd.DataFrame, metric: Metric) -> list[Effect]:
    """Returns the effect of each cell but the first, paired by seed with the first."""
    first, *others = cells
    reference = outcomes[outcomes["cell"] == first]
    return [
        paired_effect(
            reference,
            outcomes[outcomes["cell"] == cell],
            name=cell,
            smallest_effect=metric.smallest_effect,
            higher_is_better=metric.higher_is_better,
        )
        for cell in others
    ]


def corners(study: Study) -> tuple[Levels, Levels]:
    """Returns the two cells between which a gap is attributed: every factor at its first level, and at its last."""
    return study.reference, {factor: list(levels)[-1] for factor, levels in study.factors.items()}


# --- the answer -------------------------------------------------------------------------------------------------------


def nothing_to_say(outcomes: pd.DataFrame, metric: Metric) -> str:
    """Returns why no verdict on this metric can mean anything, as in 'all 12 runs collapsed', or an empty text."""
    ended = outcomes[outcomes["status"].isin(OUTCOMES)]
    counts = Outcomes.count(ended)
    runs = f"all {len(ended)} runs" if len(ended) > 1 else "the one run that ended"
    if not len(ended):
        return f"no run reports {metric.name} yet"
    if counts.all_fail:
        same = [outcome for outcome in FAILURES if getattr(counts, outcome) == counts.runs]
        return f"{runs} {same[0]}" if same else f"{runs} collapsed, diverged or failed ({counts.words})"
    values = ended["value"].dropna()
    if len(values) > 1 and not distinct(values):
        return f"all {len(values)} runs have the same {metric.name}, {values.iloc[0]:g}"
    return ""


def _failed(outcomes: pd.DataFrame) -> str:
    """Returns '2 collapsed and 1 diverged of 12 runs, in masking=block (3 of 3). ', or an empty text without
    failures."""
    ended = outcomes[outcomes["status"].isin(OUTCOMES)]
    counts = Outcomes.count(ended)
    if not counts.failures:
        return ""
    by_cell = {str(cell): Outcomes.count(group) for cell, group in ended.groupby("cell", sort=False)}
    failing = [f"{cell} ({count.failures} of {count.runs})" for cell, count in by_cell.items() if count.failures]
    where = listed(failing) if len(failing) <= NAMED_CELLS else f"{len(failing)} of {len(by_cell)} cells"
    return f"{counts.words} runs, in {where}. "


def _clauses(result: Result) -> list[str]:
    """Returns the clauses of the answer: what is not tested and why, what differs with its numbers, then the other
    verdicts with the effects that they are on."""
    named: dict[str, list[str]] = {}
    untested: dict[str, list[str]] = {}
    clauses = []
    for decision in result.decisions:
        name, difference = decision.effect.name, interval(decision.effect) or "without a number"
        named.setdefault(decision.kind, []).append(name)
        if decision.kind == "not tested":
            untested.setdefault(decision.effect.note, []).append(name)
        if decision.kind.startswith(("better", "worse")):
            clauses.append(f"{name} is {decision.kind}, {difference}")
    not_tested = [
        f"{listed(names)} {'is' if len(names) == 1 else 'are'} not tested, as {why}" for why, names in untested.items()
    ]
    small, unsure = f"{result.metric.smallest_effect:g}", f"no distinguishable difference{_needed(result)}"
    for kind, singular, plural in (
        ("fails", "fails in every run", "fail in every run"),
        ("equivalent", f"makes no difference as large as {small}", f"make no difference as large as {small}"),
        ("not distinguishable", f"makes {unsure}", f"make {unsure}"),
        ("no estimate", "has no estimate yet", "have no estimate yet"),
    ):
        if kind in named:
            clauses.append(f"{listed(named[kind])} {singular if len(named[kind]) == 1 else plural}")
    return not_tested + clauses


def _needed(result: Result) -> str:
    """Returns, in words, how many seeds would find the smallest effect of interest, over the effects that cannot be
    told from none; an empty text where no number of seeds is known."""
    unsure = [decision for decision in result.decisions if decision.kind == "not distinguishable"]
    seeds = sorted(decision.seeds_for_smallest for decision in unsure if decision.seeds_for_smallest)
    if not seeds:
        return ""
    between = f"{seeds[0]}" if seeds[0] == seeds[-1] else f"{seeds[0]} to {seeds[-1]}"
    return f" (about {between} seeds would find one of {result.metric.smallest_effect:g})"


def _gap_clause(result: Result) -> list[str]:
    """Returns a clause on the shares of the attributed gap that can be told from nothing; none where the gap cannot."""
    if result.gap is None or result.gap.kind not in ("better", "worse"):
        return []
    effects = [share.effect for share in result.shares if share.kind in ("better", "worse")]
    shares = listed([f"{effect.name} accounts for {interval(effect)}" for effect in effects]) or "no share can be told"
    return [f"of the whole gap of {interval(result.gap.effect)} {shares}"]
