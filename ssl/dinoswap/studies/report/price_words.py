"""What effects and cells cost, in sentences."""

from dinoswap.studies.costs import COSTS
from dinoswap.studies.report.analysis import Analysis
from dinoswap.studies.report.prices import Prices
from dinoswap.studies.report.words import listed

RATIOS = (
    "The time per image is compared as a ratio: effects on its logarithm are estimated as those on the metric are, so "
    "that the interval is that of the ratio. Cheaper and dearer are those whose interval leaves out 0 %; nothing is "
    "corrected for the number of effects. Images per second are as they were measured: other work on the machine is in "
    "them."
)
RUNS_OF_THIS_LENGTH = (
    "Hours until a run has a value compare runs of this length: schedules end with the run, and a shorter one, whose "
    "schedules end sooner, may have the value sooner. They are of training alone, at the run's own images per second, "
    "without evaluations; curves are taken to be straight between two evaluations in the loop."
)
NOT_IN_LOOP = "Hours to a value are not known: {} was not measured in the loop at steps that all runs share."
OLD_JSON = (
    "Hours to a value are not known: this page is made again from a report.json that does not hold what "
    "runs measured in the loop, or how many images a step has. A report from the run folders does."
)


def sentences(analysis: Analysis, prices: Prices) -> list[str]:
    """Returns the paragraphs on what effects cost, which cells are on the front, and hours."""
    collected = analysis.collected
    is_held = collected.images_per_step and collected.in_loop is not None
    unknown = NOT_IN_LOOP.format(prices.metric.name) if is_held else OLD_JSON
    return [RATIOS, on_the_front(analysis, prices), RUNS_OF_THIS_LENGTH if prices.hours else unknown]


def on_the_front(analysis: Analysis, prices: Prices) -> str:
    """Returns sentences on the cells that no other cell beats, which are named once, and on those that are no
    candidates. Numbers are those of the table of cells."""
    numbers = {cell.name: number for number, cell in enumerate(analysis.collected.design.cells, start=1)}
    fronts = {
        cost: [cell for cell in numbers if cell in front and front[cell].on_front]
        for cost, front in prices.fronts.items()
    }
    (first, named), *others = fronts.items()
    if not named:
        sentence = (
            f"There is no front of {prices.metric.name} and {COSTS[first].title}: cells without failures share no seed."
        )
    else:
        cells = "; ".join(f"{numbers[cell]} ({cell})" for cell in named)
        sentence = (
            f"The front, cells that no other beats in both {prices.metric.name} and {COSTS[first].title}: {cells}."
        )
    for cost, on_it in others:
        shown = listed([str(numbers[cell]) for cell in on_it])
        sentence += f" With {COSTS[cost].title} instead: {shown}." if shown else ""
    failing = listed([str(numbers[cell]) for cell in prices.no_candidates])
    why = "as runs of theirs collapsed, diverged or failed, and the mean of the others would flatter them"
    return sentence + (f" No candidates, {why}: {failing}." if failing else "")
