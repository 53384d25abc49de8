"""What effects over training say, in sentences: when they appear, whether they last, and what a third tells."""

from dinoswap.studies.over_training import Count, Course
from dinoswap.studies.report.words import listed, number

EARLY = 1 / 3
"""The share of a run after which the verdicts are compared with those of the end."""


def summary(course: Course) -> str:
    """Returns the sentences on one metric."""
    short = f" {course.how_short[0].upper()}{course.how_short[1:]}." if course.how_short else ""
    return f"{appearing(course)} {at_a_third(course)}{short}"


def appearing(course: Course) -> str:
    """Returns a sentence on the step from which each effect's interval leaves out 0."""
    lasting: dict[int, list[str]] = {}
    passing, never = [], []
    for index, effect in enumerate(course.end.effects):
        step = course.appears(index)
        if step is not None:
            lasting.setdefault(step, []).append(effect.name)
        elif course.seen(index):
            passing.append(effect.name)
        else:
            never.append(effect.name)
    clauses = [
        f"from step {step} ({course.share(step):.0%}) to the end for {listed(lasting[step])}"
        for step in sorted(lasting)
    ]
    clauses += [f"at some step, but not to the end, for {listed(passing)}"] if passing else []
    clauses += [f"at no step for {listed(never)}"] if never else []
    return f"On {course.metric.name}, over {course.steps} steps, the interval leaves out 0 {'; '.join(clauses)}."


def at_a_third(course: Course) -> str:
    """Returns sentences on what the last evaluation within a third of the run says of the end."""
    early = course.within(EARLY)
    if early is None:
        return "No evaluation after a step of training is within a third of a run."
    if early is course.end:
        return f"The last evaluation in the loop, after step {early.step}, is within a third of a run: none is later."
    with_end = course.agreements[course.horizons.index(early)]
    others = [
        f"{then.effect.name} ({then.kind}, at the end {now.kind})"
        for then, now in zip(early.decisions, course.end.decisions, strict=True)
        if then.kind != now.kind
    ]
    order = f", the order of {of(with_end.order)} pairs" if with_end.order.of else ""
    ranks = f", with a rank correlation of {number(with_end.spearman, 2)}" if with_end.order.of else ""
    return (
        f"Within a third of the run, after step {early.step}, {of(with_end.verdict)} verdicts are those of the end"
        f"{f', not those on {listed(others)}' if others else ''}; so are the signs of {of(with_end.sign)} effects"
        f"{order}{ranks}."
    )


def of(count: Count) -> str:
    """Returns a count as '3 of 8', or '-' where nothing could be compared."""
    return f"{count.same} of {count.of}" if count.of else "-"
