"""The tables of the report, each made once and shown as HTML, Markdown and LaTeX (markup.py)."""

from collections import Counter
from collections.abc import Sequence

from dinoswap.studies.over_training import Course
from dinoswap.studies.report.analysis import Analysis, Result
from dinoswap.studies.report.collect import OUTCOMES, SHOWN, Run
from dinoswap.studies.report.courses import of
from dinoswap.studies.report.markup import Table
from dinoswap.studies.report.words import between, interval, number, over_all_looks, probability
from dinoswap.studies.statistics import Decision, Effect, Estimate


def effects(result: Result, than: str) -> Table:
    """Returns the table of the effects on one metric; `than` is what they are measured against."""
    last = "tested against" if result.factorial else "p (sign flip)"
    tests = ["p", "p (Holm)", "p (TOST, Holm)"]
    looked = any(decision.effect.look for decision in result.decisions)
    over = ["over all looks"] if looked else []
    columns = ["effect", "difference", *over, "verdict", *tests, last, "seeds", "seeds needed"]
    rows = [_effect(decision, looked) for decision in result.decisions]
    caption = f"Effects on {result.metric.name}, against {than}, with 95 % intervals"
    return Table(f"effects {result.metric.name}", caption, columns, rows, ["effect", "verdict", "tested against"])


def _effect(decision: Decision, looked: bool) -> list[str]:
    effect = decision.effect
    last = probability(effect.p_sign_flip) if isinstance(effect, Effect) else _against(effect)
    tests = (effect.p, decision.p_adjusted, decision.p_equivalent_adjusted)
    probabilities = [probability(value) if effect.tested else "-" for value in tests]
    needed = decision.seeds_for_smallest
    numbers = [*probabilities, last, str(len(effect.seeds)), str(needed or "-")]
    over = [f"{over_all_looks(effect) or '-'}{f' ({effect.look.words})' if effect.look else ''}"] if looked else []
    return [effect.name, interval(effect) or "-", *over, decision.kind, *numbers]


def _against(estimate: Estimate) -> str:
    """Returns what an estimate was tested against, as in 'seed x effect, pooled (14 df)', or '-' where it was not."""
    if not estimate.tested:
        return "-"
    return estimate.error.words if estimate.error else f"its spread over the seeds ({estimate.df} df)"


def interactions(result: Result) -> Table:
    """Returns the table of the interactions of two factors."""
    aliases = result.factorial.aliases if result.factorial else {}
    rows = []
    for decision in result.interactions:
        name, difference = decision.effect.name, interval(decision.effect) or "-"
        adjusted, others = probability(decision.p_adjusted), _aliased(aliases.get(name, {}))
        rows.append([name, difference, decision.kind, adjusted, _against(decision.effect), others])
    columns = ["interaction", "difference", "verdict", "p (Holm)", "tested against", "cannot be told from"]
    caption = f"Two-factor interactions on {result.metric.name}: how much one effect changes when the other is switched"
    return Table(f"interactions {result.metric.name}", caption, columns, rows, [columns[0], "verdict", *columns[-2:]])


def aliased_effects(result: Result) -> Table:
    """Returns the table of the main effects that share their estimate with other effects."""
    main = {decision.effect.name for decision in result.decisions}
    aliases = result.factorial.aliases if result.factorial else {}
    rows = [[name, _aliased(others)] for name, others in aliases.items() if name in main]
    columns = ["effect", "cannot be told from"]
    return Table("aliases", "Main effects that are aliased: each number is that of the sum", columns, rows, columns)


def _aliased(others: dict[str, float]) -> str:
    """Returns, in words, which effects an estimate contains besides its own, each with its weight; "-" for none."""
    return ", ".join(name if weight == 1 else f"{number(weight, 3)} ({name})" for name, weight in others.items()) or "-"


def attribution(result: Result) -> Table:
    """Returns the table of the shares of the gap, and last the gap itself."""
    shapley = result.attribution
    columns = ["factor", "share of the gap", "verdict", "p (Holm)", "tested against", "bootstrap interval", "rests on"]
    rows = []
    for share in [*result.shares, *([result.gap] if result.gap else [])]:
        name = share.effect.name
        spread = between(*shapley.bootstrap[name]) if shapley and name in shapley.bootstrap else "-"
        clear = shapley is None or shapley.clear.get(name, True)
        rests = "what was measured" if clear else "unmeasured interactions being zero"
        tested = [share.kind, probability(share.p_adjusted), _against(share.effect)]
        rows.append([name, interval(share.effect) or "-", *tested, spread, rests])
    words = ["factor", "verdict", "tested against", "rests on"]
    caption = f"Attribution of the gap in {result.metric.name} (Shapley values)"
    return Table(f"attribution {result.metric.name}", caption, columns, rows, words)


def over_training(courses: Sequence[Course]) -> Table:
    """Returns the table of how far the effects at each evaluation in the loop agree with those at the last one."""
    columns = ["metric", "step", "of a run", "same sign", "same order", "rank correlation"]
    columns += ["clear: same sign", "clear: same order", "same verdict"]
    rows = []
    for course in courses:
        for step, with_end in zip(course.at, course.agreements, strict=True):
            counts = [of(count) for count in (with_end.clear_sign, with_end.clear_order, with_end.verdict)]
            correlation = number(with_end.spearman, 2)
            place = [course.metric.name, str(step), f"{course.share(step):.0%}"]
            rows.append([*place, of(with_end.sign), of(with_end.order), correlation, *counts])
    caption = "Effects at each evaluation in the loop that are as at the last one: signs, order of pairs, verdicts"
    return Table("over training", caption, columns, rows, ["metric"])


def failures(analysis: Analysis) -> Table:
    """Returns the table of how the runs of each cell ended, with the diagnostics of those that were evaluated."""
    columns = ["cell", *OUTCOMES, "pending", *(name.removeprefix("eval/") for name in SHOWN), "what was said"]
    rows = []
    for cell in analysis.collected.design.cells:
        runs = analysis.collected.of_cell(cell.name)
        counts = Counter(run.status for run in runs)
        pending = sum(not run.ended for run in runs)
        shown = [number(analysis.collected.diagnostics.get(cell.name, {}).get(name), 3) for name in SHOWN]
        notes = "; ".join(dict.fromkeys(run.note for run in runs if run.ended and run.note)) or "-"
        rows.append([cell.name, *(str(counts[status]) for status in OUTCOMES), str(pending), *shown, notes])
    caption = "How runs ended. Collapsed, diverged and failed runs are outcomes and are counted as such"
    return Table("failures", caption, columns, rows, ["cell", "what was said"])


def run_table(analysis: Analysis) -> Table:
    """Returns the table of every run that was started."""
    metric = analysis.study.metrics[0].name
    words = ["cell", "run", "status", "commit", "started (UTC)", "hardware"]
    spent = ["wall hours", "core/GPU-hours", "restarts"]
    columns = ["cell", "seed", "run", "status", metric, "commit", "started (UTC)", *spent, "hardware"]
    rows = [_run(run, metric) for run in analysis.collected.runs if run.record]
    return Table("runs", "Every run that was started", columns, rows, words)


def _run(run: Run, metric: str) -> list[str]:
    """Returns the cells of a run's row in the table of runs."""
    identity = [run.entry.cell, str(run.entry.seed), run.entry.run_id, run.status]
    started = str(run.record.get("started") or "-").replace("T", " ").removesuffix("+00:00")
    spent = [number(run.wall_hours, 3), number(run.value("cost.core_or_gpu_hours"), 3)]
    restarts = str(run.record.get("restarts", "-"))
    return [*identity, number(run.value(metric)), run.commit or "-", started, *spent, restarts, run.hardware or "-"]


def unfinished(analysis: Analysis) -> Table:
    """Returns the table of the runs without an outcome."""
    rows = [[run.entry.cell, str(run.entry.seed), run.status, run.note or "-"] for run in analysis.unfinished]
    columns = ["cell", "seed", "state", "what is known"]
    return Table("missing", "Runs without an outcome", columns, rows, ["cell", "state", "what is known"])


def levels(analysis: Analysis) -> Table:
    """Returns the table of the levels of each factor with their overrides."""
    rows = [
        [factor, level, " ".join(overrides) or "(as in the base)"]
        for factor, options in analysis.study.factors.items()
        for level, overrides in options.items()
    ]
    columns = ["factor", "level", "overrides"]
    return Table("levels", "What is varied; the first level of a factor is its reference", columns, rows, columns)


def differing(analysis: Analysis) -> Table:
    """Returns the table of the keys in which cells differ, with their values and the cells that have them."""
    rows = []
    for key, values in analysis.collected.differing.items():
        where: dict[str, list[str]] = {}
        for index, value in enumerate(values, start=1):
            where.setdefault(value, []).append(str(index))
        rows.append([key, "; ".join(f"{value} in {', '.join(cells)}" for value, cells in where.items())])
    columns = ["key", "values, and the cells that have them"]
    return Table("configs", "Keys of the config that are not the same in all cells", columns, rows, columns)


def commands(analysis: Analysis) -> Table:
    """Returns the table of the command of each run."""
    rows = [[run.entry.cell, str(run.entry.seed), run.command] for run in analysis.collected.runs]
    return Table("commands", "The command of each run", ["cell", "seed", "command"], rows, ["cell", "command"])
