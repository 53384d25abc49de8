"""A table of the report as Markdown and as LaTeX. As HTML it is a macro of the page's template."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{MINUS SIGN}": "$-$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\n": " ",
}
LATEX_PACKAGES = ("array", "booktabs", "graphicx")
LATEX_LINE = 40
"""Characters of a column that LaTeX does not break into lines; about 6 cm."""


@dataclass(frozen=True)
class Table:
    """A table of texts. `words` names the columns that hold no numbers and are sorted as text."""

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str] = ()


def markdown_text(text: str) -> str:
    """Escapes a text so that Markdown shows it as it is: no markup, no HTML, no end of a table cell."""
    text = re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return " ".join(text.split())


def markdown(table: Table) -> str:
    """Returns a table in Markdown, numbers to the right."""

    def line(entries: Iterable[str], shown: Callable[[str], str] = markdown_text) -> str:
        return f"| {' | '.join(map(shown, entries))} |"

    rule = line(["---" if column in table.words else "---:" for column in table.columns], str)
    return "\n".join([line(table.columns), rule, *map(line, table.rows)]) + "\n"


def latex_text(text: str) -> str:
    """Escapes a text so that LaTeX shows it as it is."""
    return "".join(LATEX.get(character, character) for character in text)


def latex(table: Table) -> str:
    """Returns the table as LaTeX, which needs the packages in LATEX_PACKAGES. Long texts are broken into lines; a table
    that is still wider than the text is made smaller."""

    def line(entries: Iterable[str]) -> str:
        return f"{' & '.join(map(latex_text, entries))} \\\\"

    form = "".join(_alignment(table, number) for number in range(len(table.columns)))
    label = re.sub(r"\W+", "-", table.name)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{latex_text(table.caption)}.}}",
            f"\\label{{tab:{label}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            f"\\begin{{tabular}}{{{form}}}",
            r"\toprule",
            line(table.columns),
            r"\midrule",
            *map(line, table.rows),
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _alignment(table: Table, column: int) -> str:
    """Returns how LaTeX sets a column: numbers to the right, words to the left, long ones as paragraphs."""
    if table.columns[column] not in table.words:
        return "r"
    longest = max((len(row[column]) for row in table.rows), default=0)
    return "l" if longest <= LATEX_LINE else r">{\raggedright\arraybackslash}p{6cm}"
