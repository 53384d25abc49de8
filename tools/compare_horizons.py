"""How early studies would have said what they say at their end: signs, order, rank correlation and verdicts by horizon.

    python tools/compare_horizons.py results/reference/studies/*/report.json -o results/reference/verdicts

A horizon is an evaluation in the loop, of which each study has its own: of those within a third, half and two thirds of
a run the last is taken. The end is the last evaluation in the loop, not the final one, which is of more images. Effects
are those of the reports, one family for each metric; nothing is trained or evaluated here.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from dinoswap.config.exit_codes import EXIT_USAGE
from dinoswap.config.schema import ConfigError
from dinoswap.files.writing import write_atomically
from dinoswap.studies.over_training import Agreement, Count, Course
from dinoswap.studies.report.courses import of
from dinoswap.studies.report.effects_frame import analysis_of
from dinoswap.studies.report.markup import Table, markdown
from dinoswap.studies.report.words import number

SHARES = (Fraction(1, 3), Fraction(1, 2), Fraction(2, 3))

COUNTS: dict[str, Callable[[Agreement], Count]] = {
    "signs": lambda agreement: agreement.sign,
    "signs that are clear at the end": lambda agreement: agreement.clear_sign,
    "pairs in order": lambda agreement: agreement.order,
    "pairs that are clear at the end": lambda agreement: agreement.clear_order,
    "verdicts": lambda agreement: agreement.verdict,
}
"""What is counted at a horizon, by the heading of its column."""


class Early(NamedTuple):
    """What a study says on a metric at its last horizon within a share of the run."""

    study: str
    course: Course
    share: Fraction
    step: int
    agreement: Agreement


def earlier(study: str, courses: Iterable[Course]) -> list[Early]:
    """Returns what is said on each metric within each share of a run; nothing for a share within which no horizon lies,
    or the end, which says nothing of itself."""
    found = []
    for course in courses:
        for share in SHARES:
            horizon = course.within(float(share))
            if horizon is not None and horizon is not course.end:
                with_end = course.agreements[course.horizons.index(horizon)]
                found.append(Early(study, course, share, horizon.step, with_end))
    return found


def total(counts: Iterable[Count]) -> Count:
    """Returns the sum of counts, of which there is at least one."""
    same, possible = zip(*counts, strict=True)
    return Count(sum(same), sum(possible))


def each_study(found: Sequence[Early]) -> str:
    """Returns the table of a row for each study and share."""
    rows = []
    for early in found:
        counts = [of(count(early.agreement)) for count in COUNTS.values()]
        step = f"{early.step} of {early.course.steps}"
        rows.append([early.study, str(early.share), step, *counts, number(early.agreement.spearman, 2)])
    columns = ["study", "within", "step", *COUNTS, "rank correlation"]
    return markdown(Table("studies", "", columns, rows, ["study"]))


def all_studies(found: Sequence[Early]) -> str:
    """Returns the table of a row for each metric and share, over all studies that have them."""
    rows = []
    for metric in dict.fromkeys(early.course.metric.name for early in found):
        for share in SHARES:
            own = [early.agreement for early in found if (early.course.metric.name, early.share) == (metric, share)]
            if own:
                counts = [of(total(count(agreement) for agreement in own)) for count in COUNTS.values()]
                rows.append([metric, str(share), str(len(own)), *counts])
    return markdown(Table("metrics", "", ["metric", "within", "studies", *COUNTS], rows, ["metric"]))


TEXT = """# How early is it known?

What {studies} studies would have said earlier in their runs, against what the same runs said at their last evaluation
in the loop. A sign is clear at the end where the interval leaves out 0, an order where two intervals do not overlap.
Verdicts are after Holm's correction at that step. A study without an evaluation in the loop within a share of the run
has no row for it. An earlier step of a long run is not the end of a short one, whose schedules would have ended there.

## On the metric that decides, study by study

{each}
## On every metric, over the studies

Effects of one study share their reference and their seeds: the counts are of fewer independent findings than they seem.

{every}
Command: `{command}`
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and returns the exit status: EXIT_USAGE, with a message, for a file that is no report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT.JSON", help="of studies")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of horizons.md")
    arguments = parser.parse_args(argv)
    try:
        analyses = [analysis_of(path, []) for path in arguments.reports]
    except ConfigError as error:
        print(f"compare_horizons: {error}", file=sys.stderr)
        return EXIT_USAGE
    names = [analysis.study.name for analysis in analyses]
    folders = [path.parent.name for path in arguments.reports]
    found = [
        earlier(name if names.count(name) == 1 else f"{name} in {folder}", analysis.courses)
        for name, folder, analysis in zip(names, folders, analyses, strict=True)
    ]
    deciding = [
        early
        for analysis, of_study in zip(analyses, found, strict=True)
        for early in of_study
        if early.course.metric.name == analysis.study.metrics[0].name
    ]
    text = TEXT.format(
        studies=len(analyses),
        each=each_study(deciding),
        every=all_studies([early for of_study in found for early in of_study]),
        command=f"python tools/compare_horizons.py {shlex.join(sys.argv[1:] if argv is None else argv)}",
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.out / "horizons.md", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
