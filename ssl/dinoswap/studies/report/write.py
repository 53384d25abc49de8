"""The files of a report.

report.html holds everything: no other file and no network is needed. Beside it report.md with its PNGs in figures/,
tables.tex, the figures as SVG, and report.json with every number, from which it can be made again.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from dinoswap.files.writing import write_atomically
from dinoswap.studies.looks import record_look
from dinoswap.studies.report import price_tables, tables
from dinoswap.studies.report.analysis import Analysis, analyse, analyse_collected
from dinoswap.studies.report.canvas import Plot
from dinoswap.studies.report.definitions import DEFINITIONS
from dinoswap.studies.report.markup import LATEX_PACKAGES, latex, markdown, markdown_text
from dinoswap.studies.report.numbers import as_json
from dinoswap.studies.report.page import Page, Section, make_page
from dinoswap.studies.report.rows import drawn_before, read_rows
from dinoswap.studies.study import Study
from dinoswap.web import rendered

FIGURES = "figures"


def write_report(study: Study, root: Path, out: Path) -> Path:
    """Writes the report of the runs below `root`, results/runs/<study>, into the folder `out`, and returns the path of
    report.html. Figures of an earlier report in `out` that this one does not have are deleted. Raises ConfigError for a
    study whose cells do not compose."""
    return _write(look(study, root), {}, out)


def look(study: Study, root: Path) -> Analysis:
    """Returns the analysis of the runs below `root`, and records that it was made where it shows any effects."""
    analysis = analyse(study, root)
    if analysis.results:
        record_look(root, study.plan, analysis.collected.ended_seeds)
    return analysis


def write_again(report: Path, out: Path) -> Path:
    """Writes a report of the rows of a report.json, with the figures of learning curves that lie beside it, into the
    folder `out`, and returns the path of report.html. Raises ConfigError for a file that is no report.json."""
    return _write(analyse_collected(read_rows(report)), drawn_before(report.parent), out)


def _write(analysis: Analysis, drawn: Mapping[str, Plot], out: Path) -> Path:
    """Writes the report in all formats into `out`, deletes figures that it no longer shows, and returns the path of its
    page."""
    page = make_page(analysis, drawn)
    (out / FIGURES).mkdir(parents=True, exist_ok=True)
    stale = _figures(out / "report.md") - {plot.name for plot in page.plots}
    for plot in page.plots:
        write_atomically(out / FIGURES / f"{plot.name}.png", plot.png)
        write_atomically(out / FIGURES / f"{plot.name}.svg", plot.svg)
    write_atomically(out / "report.json", as_json(analysis))
    write_atomically(out / "report.md", as_markdown(page))
    write_atomically(out / "tables.tex", as_latex(analysis))
    write_atomically(out / "report.html", as_html(page))
    for name in stale:
        for suffix in ("png", "svg"):
            (out / FIGURES / f"{name}.{suffix}").unlink(missing_ok=True)
    return out / "report.html"


def _figures(report: Path) -> set[str]:
    """Returns the figures that a report.md shows: the folder may hold others, which are not the report's."""
    return set(re.findall(rf"\]\({FIGURES}/([\w-]+)\.png\)", report.read_text())) if report.exists() else set()


def as_html(page: Page, definitions: Mapping[str, str] = DEFINITIONS) -> str:
    """Returns the page as HTML. Text from configs and runs is escaped; in the plots, which are SVG, it already is."""
    return rendered(Path(__file__).with_name("report.html.jinja"), page=page, definitions=definitions)


def as_markdown(page: Page, definitions: Mapping[str, str] = DEFINITIONS) -> str:
    """Returns the page as Markdown, with the plots as links to their files."""
    parts = [
        f"# {markdown_text(page.question)}",
        f"**{markdown_text(page.answer)}**",
        *map(markdown_text, page.warnings),
    ]
    for section in page.sections:
        parts += _section(section)
    parts += ["## Definitions", *(f"**{term}.** {markdown_text(meaning)}" for term, meaning in definitions.items())]
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> list[str]:
    """Returns the parts of a section as Markdown."""
    parts = [f"## {section.title}", *map(markdown_text, section.text)]
    parts += [f"```\n{section.code}\n```"] if section.code else []
    for plot in section.plots:
        parts.append(f"![{markdown_text(plot.alt)}]({FIGURES}/{plot.name}.png)\n\n*{markdown_text(plot.caption)}*")
    parts += [f"**{markdown_text(table.caption)}**\n\n{markdown(table)}" for table in section.tables]
    return parts + (["\n".join(f"- {markdown_text(item)}" for item in section.items)] if section.items else [])


def as_latex(analysis: Analysis) -> str:
    """Returns the tables that go into a paper as LaTeX."""
    prices = price_tables.of_prices(analysis, analysis.prices) if analysis.prices else [price_tables.cells(analysis)]
    chosen = [*prices, tables.failures(analysis)]
    for result in analysis.results:
        chosen.append(tables.effects(result, analysis.reference))
        chosen += [tables.interactions(result)] if result.interactions else []
        chosen += [tables.attribution(result)] if result.attribution else []
    chosen += [tables.over_training(analysis.courses)] if analysis.courses else []
    return f"% \\usepackage{{{','.join(LATEX_PACKAGES)}}}\n\n" + "\n".join(map(latex, chosen))
