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


@dataclass(frozen=True)
class Table:
    """`words`: columns that hold no numbers, and are sorted as text."""

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[str] = ()


def markdown_text(text: str) -> str:
    """Shown as it is: no markup, no HTML, no end of a cell."""
    text = re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    return " ".join(text.split())


def markdown(table: Table) -> str:
    def line(entries: Iterable[str], shown: Callable[[str], str] = markdown_text) -> str:
        return f"| {' | '.join(map(shown, entries))} |"

    rule = line(["---" if column in table.words else "---:" for column in table.columns], str)
    return "\n".join([line(table.columns), rule, *map(line, table.rows)]) + "\n"


def latex_text(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def latex(table: Table) -> str:
    """Needs \\usepackage{booktabs}."""

    def line(entries: Iterable[str]) -> str:
        return f"{' & '.join(map(latex_text, entries))} \\\\"

    form = "".join("l" if column in table.words else "r" for column in table.columns)
    label = re.sub(r"\W+", "-", table.name)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            f"\\caption{{{latex_text(table.caption)}.}}",
            f"\\label{{tab:{label}}}",
            f"\\begin{{tabular}}{{{form}}}",
            r"\toprule",
            line(table.columns),
            r"\midrule",
            *map(line, table.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
