"""The report as sections of sentences, plots and tables, before it is HTML or Markdown."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dinoswap.config.measured import family_of
from dinoswap.studies.report import curves, figures, pictures, price_plots, price_tables, price_words, tables
from dinoswap.studies.report.analysis import Analysis, Result, corners
from dinoswap.studies.report.canvas import Plot
from dinoswap.studies.report.courses import summary
from dinoswap.studies.report.markup import Table
from dinoswap.studies.report.words import counted, listed
from dinoswap.studies.study import Study

PAIRED = "Each difference is tested against its own spread over the seeds (a paired t test)."
AGAINST_SEEDS = (
    "Each effect is tested against how much effects vary between seeds (seed x effect, pooled over all effects of the "
    "metric) or the residual, and never less than its own variation between seeds: the tables say which of the three "
    "was the largest. Shares of a gap and interactions are tested in the same way, the gap itself by a paired t test."
)

LOOKED = (
    "The study is looked at more than once: verdicts, and the p after Holm, are those of the intervals over all looks. "
    "What was decided at a planned look is shown as it was then."
)

LOOP_WITH_LOOP = (
    "The same estimates, errors and corrections as above, at each evaluation in the loop that all runs share. Those "
    "are of fewer images than the final one: they are compared with the last evaluation in the loop, called the end "
    "here, and not with the effects above. A run that is planned to be short is not the beginning of a long one, as "
    "its schedules end with it. Nothing is corrected for the number of steps."
)
LOOKED_IN_LOOP = (
    "The study is looked at more than once: effects over training are nevertheless of all seeds that a cell has, and "
    "their intervals and p are those of one analysis. They decide nothing."
)
NOT_IN_LOOP = (
    "There is nothing to show: no metric of this study was measured before the end of training at a step that all runs "
    "share. trainer.eval_every sets how often runs are evaluated in the loop, evaluation.metric what is measured there."
)
OLD_JSON = (
    "There is nothing to show: this page is made again from a report.json that does not hold what runs measured in the "
    "loop. A report from the run folders does."
)


@dataclass(frozen=True)
class Section:
    """A section of the report, with its parts in the order in which they are shown."""

    id: str
    title: str
    text: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    code: str = ""
    items: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    study: str
    question: str
    answer: str
    as_of: str
    warnings: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=list)

    @property
    def plots(self) -> list[Plot]:
        """All plots of the page, in their order."""
        return [plot for section in self.sections for plot in section.plots]


def make_page(analysis: Analysis, drawn: Mapping[str, Plot] | None = None) -> Page:
    """Returns the page of an analysis. `drawn` holds figures of an earlier report, which stand in where there are no
    curves to draw."""
    study, collected = analysis.study, analysis.collected
    ended = [str(run.record["ended"]) for run in collected.runs if run.record.get("ended")]
    sections = [*(_of_results(analysis, drawn or {}) if analysis.results else []), *_of_runs(analysis)]
    as_of = max(ended, default="").replace("T", " ").replace("+00:00", " UTC")
    return Page(study.name, study.question, analysis.answer, as_of, _warnings(analysis), sections)


# --- what was found ---------------------------------------------------------------------------------------------------


def _of_results(analysis: Analysis, drawn: Mapping[str, Plot]) -> Iterable[Section]:
    """Yields the sections that show what the study found, of which the first are on effects."""
    collected, results = analysis.collected, analysis.results
    yield _effects(analysis)
    if analysis.crossed:
        yield _attribution(analysis)
        yield _interactions(results)
    cells = [cell.name for cell in collected.design.cells]
    if results[0].outcomes["value"].notna().any():
        yield Section("seeds", "Run by run", [], [figures.paired_seeds(results[0].outcomes, cells, results[0].metric)])
    yield _learning(analysis, drawn)
    yield _over_training(analysis)
    yield from _pictures(analysis, drawn)
    yield from _cost(analysis)
    yield Section("failures", "Collapsed, diverged and failed runs", [], [], [tables.failures(analysis)])


def _effects(analysis: Analysis) -> Section:
    """Returns the section on the effects on every metric."""
    plots: list[Plot] = []
    shown: list[Table] = []
    for number, result in enumerate(analysis.results, start=1):
        title, than = f"Effects on {result.metric.name}", analysis.reference
        valued = result.outcomes["value"].notna().any()
        if not result.decisions or not (valued or number == 1):
            continue
        if valued:
            plots.append(figures.forest(result.decisions, result.metric, f"effects-{number}", title, than))
        shown.append(tables.effects(result, than))
        aliased = tables.aliased_effects(result)
        shown += [aliased] if aliased.rows else []
    text = [
        "Points are mean differences, lines their 95 % intervals; an arrow stands where one goes on. Grey is what "
        "would be too small to matter. Verdicts are corrected for the number of effects on a metric, intervals are "
        f"not. The first metric, {analysis.study.metrics[0].name}, decides.",
        AGAINST_SEEDS if analysis.crossed else PAIRED,
        *([LOOKED] if any(decision.effect.look for decision in analysis.results[0].decisions) else []),
    ]
    words = [f"{decision.effect.name}: {decision.words}." for decision in analysis.results[0].decisions]
    return Section("effects", "Effects", text, plots, shown, items=words)


def _attribution(analysis: Analysis) -> Section:
    """Returns the section on which factor has which share of the difference between the corners of the design."""
    result = analysis.results[0]
    if result.attribution is None:
        return Section("attribution", "Attribution", [f"There is none: {result.note}."])
    start, end = (", ".join(f"{factor}={level}" for factor, level in cell.items()) for cell in corners(analysis.study))
    text = [f"From {start} to {end}."]
    plot = figures.waterfall(result.attribution, result.shares, result.metric)
    shown = [tables.attribution(other) for other in analysis.results if other.attribution]
    return Section("attribution", "Attribution", text, [plot], shown)


def _interactions(results: Sequence[Result]) -> Section:
    """Returns the section on interactions of two factors."""
    first = results[0]
    plots = []
    if first.interactions:
        than = "what the two effects add up to"
        plots = [figures.forest(first.interactions, first.metric, "interactions", "Two-factor interactions", than)]
    shown = [tables.interactions(result) for result in results if result.interactions]
    return Section("interactions", "Interactions", [], plots, shown)


def _learning(analysis: Analysis, drawn: Mapping[str, Plot]) -> Section:
    """Returns the section with the learning curves, redrawn where curves were collected and as `drawn` earlier
    otherwise."""
    coloured, metric = _coloured(analysis), analysis.study.metrics[0].name
    panels = [(metric, "curve-metric", f"{metric} while training"), ("loss", "curve-loss", "The loss while training")]
    plots = []
    for name, plot, title in panels:
        curve = curves.learning_curves(analysis.collected, name, coloured, plot, title)
        plots += [curve] if curve else [replace(drawn[plot], title=title)] if plot in drawn else []
    text = ["Losses of different objectives are not comparable: a lower one is not a better network."]
    return Section("curves", "Learning curves", text, plots)


def _over_training(analysis: Analysis) -> Section:
    """Returns the section on the effects at each evaluation in the loop, or on why there is none."""
    courses = analysis.courses
    if not courses:
        why = OLD_JSON if analysis.collected.in_loop is None else NOT_IN_LOOP
        return Section("over-training", "Effects over training", [why])
    plots = [
        curves.effect_curves(course, analysis.reference, f"over-training-{number}")
        for number, course in enumerate(courses, start=1)
    ]
    decides = analysis.study.metrics[0].name
    unmeasured = (
        [] if courses[0].metric.name == decides else [f"{decides}, which decides, is not measured in the loop."]
    )
    looked = [LOOKED_IN_LOOP] if analysis.study.looks else []
    text = [LOOP_WITH_LOOP, *looked, *unmeasured, summary(courses[0])]
    words = [summary(course) for course in courses[1:]]
    return Section("over-training", "Effects over training", text, plots, [tables.over_training(courses)], items=words)


def _pictures(analysis: Analysis, drawn: Mapping[str, Plot]) -> Iterable[Section]:
    """Yields a section where runs have drawn pictures of patch tokens."""
    again = [replace(plot, title=pictures.title(name)) for name, plot in drawn.items() if pictures.is_picture(name)]
    plots = pictures.pictures(analysis.collected, _coloured(analysis)) or again
    if plots:
        text = ["Pictures of the runs themselves: numbers compare cells, these show what a number means."]
        yield Section("pictures", "What patch tokens tell", text, plots)


def _cost(analysis: Analysis) -> Iterable[Section]:
    """Yields the section on what effects and cells cost, where there are results."""
    prices = analysis.prices
    if prices:
        effects = price_plots.effects_against_time(prices, analysis.reference)
        cells = price_plots.cells_against_costs(analysis.collected, prices)
        plots = [plot for plot in (effects, cells) if plot]
        shown = price_tables.of_prices(analysis, prices)
        yield Section("cost", "Quality against cost", price_words.sentences(analysis, prices), plots, shown)


def _coloured(analysis: Analysis) -> list[str]:
    """Returns the cells that have a colour in learning curves, and pictures: the reference, then the other corner of a
    crossed design (and all cells where they are few), or the cells with the largest effects."""
    design = analysis.collected.design
    if analysis.crossed:
        _, end = corners(analysis.study)
        corner = [cell.name for cell in design.cells if cell.levels == end]
        few = [cell.name for cell in design.cells] if len(design.cells) <= curves.COLOURED else []
        return [design.reference.name, *corner, *few]
    effects = [decision.effect for decision in analysis.results[0].decisions]
    largest = sorted(effects, key=lambda effect: -abs(effect.mean) if math.isfinite(effect.mean) else 0.0)
    return [design.reference.name, *(effect.name for effect in largest[: curves.COLOURED - 1])]


# --- what was run -----------------------------------------------------------------------------------------------------


def _of_runs(analysis: Analysis) -> Iterable[Section]:
    """Yields the sections on the runs: what was run, what is missing, and how to run it again."""
    collected = analysis.collected
    yield Section("runs", "What was run", _circumstances(analysis), [], _run_tables(analysis))
    missing = tables.unfinished(analysis)
    text = [] if missing.rows else ["Nothing: every run of the study has an outcome."]
    if collected.unasked:
        text.append(
            f"Not used: {counted(len(collected.unasked), 'run')} of this study's folder whose config or seed the study "
            f"does not ask for now: {listed(collected.unasked)}."
        )
    tables_of_it = [missing] if missing.rows else []
    text += ["Not read, or not wholly:"] if collected.passed_over else []
    yield Section("missing", "What is missing", text, [], tables_of_it, items=collected.passed_over)
    reproduction = [
        "The first command does what is missing, the second writes this page from the run folders; every number is in "
        "report.json beside it. A single run, and with it its value, is repeated by its own command."
    ]
    yield Section(
        "repeat", "How to repeat each number", reproduction, [], [tables.commands(analysis)], _commands(analysis)
    )


def _run_tables(analysis: Analysis) -> list[Table]:
    """Returns the tables on the cells and the runs, without empty ones."""
    run_tables = [tables.levels(analysis), tables.differing(analysis), tables.run_table(analysis)]
    return [table for table in run_tables if table.rows]


def _circumstances(analysis: Analysis) -> list[str]:
    """Returns paragraphs on the design and on what the runs have in common, and what they cost together."""
    study, runs = analysis.study, analysis.collected.runs
    text = [
        f"Design: {study.design}, {counted(len(analysis.collected.design.cells), 'cell')}, seeds "
        f"{listed([str(seed) for seed in study.seeds])}{_planned(study)}. Base of all runs: {' '.join(study.base)}.",
        *analysis.collected.design.notes,
    ]
    facts = {"Commit": [run.commit for run in runs], "Hardware": [run.hardware for run in runs]}
    for name, values in {**facts, "Versions": [run.versions for run in runs]}.items():
        different = list(dict.fromkeys(value for value in values if value))
        text += [f"{name}: {'; '.join(different)}."] if different else []
    hours = [run.value("cost.core_or_gpu_hours") for run in runs]
    known = [value for value in hours if value == value]
    return [*text, f"All runs together: {sum(known):.3g} core- or GPU-hours."] if known else text


def _planned(study: Study) -> str:
    """Returns when the study is to be looked at, where that is more than once."""
    if study.looks is None:
        return ""
    return f", looked at after {listed([str(count) for count in study.looks.counts])} of them ({study.looks.spending})"


def _commands(analysis: Analysis) -> str:
    """Returns the commands that repeat the study and its report."""
    study = analysis.study
    commits = {run.commit for run in analysis.collected.runs if run.commit}
    checkout = [f"git checkout {commit}" for commit in commits if len(commits) == 1 and "+" not in commit]
    commands = [f"dinoswap-ablate {command} {study.arguments}" for command in ("run", "report")]
    return "\n".join([*checkout, *commands])


# --- what to beware of ------------------------------------------------------------------------------------------------


def _warnings(analysis: Analysis) -> list[str]:
    """Returns sentences on what makes the runs hard to compare."""
    runs = analysis.collected.ended
    warnings = []
    commits = sorted({run.commit for run in runs if run.commit})
    if len(commits) > 1:
        warnings.append(f"The runs are of different commits: {listed(commits)}.")
    if any("+" in commit for commit in commits):
        warnings.append("Some runs were made with changes that are in no commit: their commits do not repeat them.")
    if len({run.versions for run in runs}) > 1:
        warnings.append("The runs were made with different versions of packages: see 'What was run'.")
    if len({run.hardware for run in runs}) > 1:
        warnings.append("The runs were made on different hardware: their images per second do not compare.")
    if len(analysis.study.seeds) == 1:
        warnings.append("There is one seed: differences are shown, but nothing tells them from noise.")
    for result in analysis.results:
        measured = {(row.cell, row.seed) for row in result.outcomes.itertuples() if row.status != "missing"}
        silent = [run for run in runs if (run.entry.cell, run.entry.seed) not in measured]
        if silent:
            said = f"{counted(len(silent), 'completed run')} did not report {result.metric.name}"
            remedy = f"; measure it by `dinoswap-ablate evaluate {analysis.study.arguments}`"
            warnings.append(f"{said}{remedy if family_of(result.metric.name) else ''}.")
    return warnings
