"""A study judged look by look: what was decided at a planned look is decided, whatever came later.

At each planned look, those effects of which all runs of that many first seeds have ended are judged by the boundaries,
together with what was decided before, as one family (Holm). What is decided there, different or equivalent, keeps its
estimate and verdict of that look, whether or not more of its seeds were run. The rest is judged as it is now: at a
planned look, or else by the test that holds at all times, as is all that was ever seen when that was not planned.
A study with one planned look that was looked at then, and not before, is judged as if there were no looks.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dinoswap.studies.looks import Looks
from dinoswap.studies.statistics.estimate import Estimate
from dinoswap.studies.statistics.repeated import Look
from dinoswap.studies.statistics.verdict import Decision, family

UNDECIDED = ("not distinguishable", "fails", "not tested", "no estimate")


@dataclass(frozen=True)
class InTurn:
    """The decision on each effect, in the order given; of those that were decided at a planned look the number of
    seeds of it; how the others are looked at now."""

    decisions: list[Decision]
    decided_after: dict[str, int]
    looks: dict[str, Look | None]


def judge_in_turn(
    estimate: Callable[[str, Sequence[int]], Estimate],
    ended: Mapping[str, Collection[int]],
    seeds: Sequence[int],
    plan: Looks,
    seen: Mapping[str, Collection[int]],
) -> InTurn:
    """Returns the verdicts on the effects that `ended` names, each with the seeds of which all of its runs have ended.

    `estimate(name, seeds)` is an effect as those of its runs show it that have ended and have these seeds. `seen` holds
    the numbers of seeds at which an effect was looked at without a plan.
    """
    decided: dict[str, Decision] = {}
    after: dict[str, int] = {}
    for number, count in enumerate(plan.counts[:-1]):
        first = list(seeds[:count])
        here = [
            name
            for name, of_it in ended.items()
            if name not in decided and set(first) <= set(of_it) and all(n > count for n in seen.get(name, ()))
        ]
        look = Look(plan, number, planned=True)
        effects = [
            decided[name].effect
            if name in decided
            else replace(estimate(name, first if name in here else []), look=look)
            for name in ended
        ]
        judged = dict(zip(ended, family(effects), strict=True)) if here else {}
        for name in here:
            if judged[name].kind not in UNDECIDED:
                decided[name], after[name] = judged[name], count
    now = {name: _look(of_it, seeds, plan, seen.get(name, ())) for name, of_it in ended.items() if name not in decided}
    effects = [
        decided[name].effect
        if name in decided
        else replace(estimate(name, seeds_used(ended[name], seeds, plan)), look=now[name])
        for name in ended
    ]
    decisions = [decided.get(name, decision) for name, decision in zip(ended, family(effects), strict=True)]
    return InTurn(decisions, after, now)


def seeds_used(ended: Collection[int], seeds: Sequence[int], plan: Looks) -> list[int]:
    """Returns the seeds that a look at an effect is about: those of a planned look, or all, also where not all runs of
    a seed have ended."""
    return list(seeds[: len(ended)]) if plan.planned(ended, seeds) else list(seeds)


def _look(ended: Collection[int], seeds: Sequence[int], plan: Looks, seen: Collection[int]) -> Look | None:
    """Returns how an effect of which these seeds have ended is looked at; None for the only look of a plan."""
    count = len(ended)
    earlier = [n for n in seen if n <= count]
    if plan.planned(ended, seeds) and not earlier:
        return Look(plan, plan.counts.index(count), planned=True) if len(plan.counts) > 1 else None
    return Look(plan, sum(planned < min([count, *earlier]) for planned in plan.counts), planned=False)
