"""From runs to what the report says: the declared family of effects of each metric, and the answer in a sentence.

| design | the family | besides |
|---|---|---|
| one_at_a_time, leave_one_out, explicit | each cell against the first, paired by seed | |
| factorial, fractional | main effects, averaged over the other factors | interactions, attribution of a gap |

The first are tested against their spread over the seeds, the second against seed x effect, or the residual (strata.py).
Every family is corrected for its own size; so is the one of each metric. The first metric decides, also on which arms
need no more seeds: where a study is analysed after several numbers of them, see statistics/in_turn.py. Where every run
collapsed, diverged or failed, or all have one value, nothing is tested, and the answer says so first.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path

import pandas as pd

from dinoswap.studies.estimates import crossed_effects, effect_against, options_of
from dinoswap.studies.over_training import Course, course
from dinoswap.studies.report.collect import OUTCOMES, Collected, Run, collect
from dinoswap.studies.report.prices import Prices, prices
from dinoswap.studies.report.words import counted, interval, listed, over_all_looks
from dinoswap.studies.statistics import (
    Attribution,
    Decision,
    Effect,
    Estimate,
    Factorial,
    Look,
    Outcomes,
    attribute,
    distinct,
    family,
    judge_in_turn,
    seeds_used,
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
    decided_after: Mapping[str, int] = field(default_factory=dict)  # effect -> seeds of the look that decided it


@dataclass(frozen=True)
class Analysis:
    """The results of a study by metric, first that of the metric that decides; none while no run has ended."""

    collected: Collected
    results: list[Result]
    courses: list[Course]  # of the metrics that are measured in the loop, in the order of the results

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

    @cached_property
    def prices(self) -> Prices | None:
        """What effects and cells cost, on the metric that decides; None while there are no results."""
        if not self.results:
            return None
        result = self.results[0]
        return prices(self.collected, result.outcomes, result.decisions, result.metric)

    @property
    def unfinished(self) -> list[Run]:
        """The runs that have no outcome yet and are still wanted: not those of cells on which all is decided."""
        of_cells = self.seeds_wanted(self.study.seeds)
        return [run for run in self.collected.runs if not run.ended and run.entry.seed in of_cells[run.entry.cell]]

    def seeds_wanted(self, seeds: list[int]) -> dict[str, list[int]]:
        """Returns those of the seeds of which each cell's runs are wanted."""
        cells = [cell.name for cell in self.collected.design.cells]
        return seeds_wanted(cells, seeds, self.results[0]) if self.results else dict.fromkeys(cells, seeds)

    @property
    def answer(self) -> str:
        """The answer in a sentence, after what went wrong and before what is missing."""
        runs, pending = self.collected.runs, len(self.unfinished)
        if not self.results:
            return f"Nothing can be said yet: none of {counted(len(runs), 'run')} has ended."
        missing = f" {pending} of {counted(len(runs), 'run')} have no outcome yet; this may change." if pending else ""
        result = self.results[0]
        missing = _looks(self.study, result) + missing
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
    results: list[Result] = []
    for metric in metrics:
        outcomes = judged = collected.outcomes(metric)
        if results:  # no metric is judged by seeds that the first was not
            of_cells = seeds_wanted(list(cells), collected.study.seeds, results[0])
            rows = zip(outcomes["cell"], outcomes["seed"], strict=True)
            judged = outcomes[[seed in of_cells[cell] for cell, seed in rows]]
        result = judge(collected.study, cells, judged, metric, collected.seen)
        results.append(replace(result, outcomes=outcomes))
    return Analysis(collected, results, _courses(collected, cells) if results else [])


def _courses(collected: Collected, cells: Mapping[str, Mapping[str, str]]) -> list[Course]:
    """Returns the effects over training on each metric that was measured in the loop, of all seeds that a cell has."""
    if collected.in_loop is None or collected.in_loop.empty:
        return []
    study, statuses = collected.study, {(run.entry.cell, run.entry.seed): run.status for run in collected.runs}
    steps = min(run.record["steps"] for run in collected.valued)
    courses = [course(study, cells, statuses, collected.in_loop, metric, steps) for metric in study.metrics]
    return [measured for measured in courses if measured]


def judge(
    study: Study,
    cells: Mapping[str, Mapping[str, str]],
    outcomes: pd.DataFrame,
    metric: Metric,
    seen: Mapping[str, Collection[int]] | None = None,
) -> Result:
    """Returns every verdict on one metric. `outcomes` has the columns cell, seed, status and value; the first of the
    cells is the reference. `seen`: see Collected."""
    void, seen = nothing_to_say(outcomes, metric), seen or {}
    ended = {cell: _ended(outcomes[outcomes["cell"] == cell]) for cell in cells}
    if study.design in ("factorial", "fractional"):
        return _judge_crossed(study, cells, outcomes, metric, frozenset.intersection(*ended.values()), seen, void)
    first, *others = cells

    def estimate(cell: str, seeds: Collection[int]) -> Effect:
        shown = outcomes[(outcomes["cell"] == first) | outcomes["seed"].isin(seeds)]
        return effect_against(first, cell, shown, metric)

    both = {cell: ended[first] & ended[cell] for cell in others}
    judgement = judge_in_turn(estimate, both, study.seeds, study.plan, seen)
    return Result(metric, outcomes, judgement.decisions, note=void, decided_after=judgement.decided_after)


def _judge_crossed(
    study: Study,
    cells: Mapping[str, Mapping[str, str]],
    outcomes: pd.DataFrame,
    metric: Metric,
    ended: frozenset[int],
    seen: Mapping[str, Collection[int]],
    void: str,
) -> Result:
    plan, options = study.plan, options_of(metric)

    @cache
    def effects_of(seeds: tuple[int, ...]) -> Factorial | None:
        return crossed_effects(study, cells, outcomes[outcomes["seed"].isin(seeds)], metric)

    def estimate(name: str, seeds: Sequence[int]) -> Estimate:
        effects = effects_of(tuple(seeds))
        if effects is None:
            return Estimate(name=name, mean=math.nan, se=math.nan, df=0, seeds=(), **options)
        return next(effect for effect in effects.main if effect.name == name)

    of_all_seeds = effects_of(tuple(study.seeds))
    if of_all_seeds is None:
        return Result(metric, outcomes, [], note=void)
    names = [effect.name for effect in of_all_seeds.main]
    by_effect = {name: [count for counts in seen.values() for count in counts] for name in names}
    judgement = judge_in_turn(estimate, dict.fromkeys(names, ended), study.seeds, plan, by_effect)
    if judgement.looks:
        seeds, look = seeds_used(ended, study.seeds, plan), next(iter(judgement.looks.values()))
    else:
        count = max(judgement.decided_after.values())
        seeds, look = study.seeds[:count], Look(plan, plan.counts.index(count), planned=True)
    effects = effects_of(tuple(seeds))
    if effects is None:
        return Result(metric, outcomes, judgement.decisions, note="no run of the planned seeds has a value")
    result = Result(metric, outcomes, judgement.decisions, effects, note=void, decided_after=judgement.decided_after)
    if void:
        return result
    interactions = family([replace(effect, look=look) for effect in effects.interactions])
    start, end = corners(study)
    try:
        shares = attribute(outcomes[outcomes["seed"].isin(seeds)], cells, study.factors, start, end, **options)
    except ValueError as error:
        return replace(result, interactions=interactions, note=str(error))
    (gap,) = family([replace(shares.gap, look=look)])
    values = family([replace(value, look=look) for value in shares.values])
    return replace(result, interactions=interactions, attribution=shares, shares=values, gap=gap)


def _ended(of_cell: pd.DataFrame) -> frozenset[int]:
    return frozenset(int(seed) for seed in of_cell.loc[of_cell["status"].isin(OUTCOMES), "seed"])


def seeds_wanted(cells: Sequence[str], seeds: list[int], result: Result) -> dict[str, list[int]]:
    """Returns those of the seeds of which each cell's runs are wanted: all, or those of the look that decided on the
    cell. The first cell, and those of a crossed design, go on as long as anything is undecided."""
    names = [decision.effect.name for decision in result.decisions]
    counts = [result.decided_after.get(name, len(seeds)) for name in names] or [len(seeds)]
    own = dict(zip(names, counts, strict=False))
    return {cell: seeds[: own.get(cell, max(counts))] for cell in cells}


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
        name, difference = decision.effect.name, over_all_looks(decision.effect) or "without a number"
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


def _looks(study: Study, result: Result) -> str:
    """Returns, in sentences, at which looks the verdicts were made; an empty text where there is only one to make."""
    counts, said = study.plan.counts, []
    by_count: dict[int, list[str]] = {}
    for name, count in result.decided_after.items():
        by_count.setdefault(count, []).append(name)
    said += [f"Decided after {count} seeds: {listed(names)}." for count, names in by_count.items()]
    looks = {d.effect.look for d in result.decisions if d.effect.look and d.effect.name not in result.decided_after}
    said += sorted(f"This is {look.words}." for look in looks if look.planned)
    if any(not look.planned for look in looks):
        planned = listed([str(count) for count in counts])
        said.append(
            f"What was not decided at a planned look (after {planned} seeds) is judged by intervals that hold at any "
            "number of seeds."
        )
    return "".join(f" {sentence}" for sentence in said)


def _gap_clause(result: Result) -> list[str]:
    """Returns a clause on the shares of the attributed gap that can be told from nothing; none where the gap cannot."""
    if result.gap is None or result.gap.kind not in ("better", "worse"):
        return []
    effects = [share.effect for share in result.shares if share.kind in ("better", "worse")]
    shares = listed([f"{effect.name} accounts for {interval(effect)}" for effect in effects]) or "no share can be told"
    return [f"of the whole gap of {interval(result.gap.effect)} {shares}"]
