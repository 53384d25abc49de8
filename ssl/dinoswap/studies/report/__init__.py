"""The report of a study: what its runs say, as one HTML file, Markdown, LaTeX, JSON and figures.

    write_report(study, Path("results/runs/masking"), Path("results/reports/masking"))    the path of report.html
    write_again(Path("results/reports/masking/report.json"), out)                         that, from a report's rows
    analyse(study, Path("results/runs/masking")).answer                                   in a sentence

runs -> collect.py, or report.json -> rows.py: how each ended, its values -> analysis.py: effects, verdicts, the answer
-> page.py: sections of sentences (courses.py), plots (figures.py, curves.py) and tables (tables.py) -> write.py: the
files. What effects and cells cost: prices.py, and price_words.py, price_plots.py, price_tables.py. As pandas frames:
effects_frame.py, effects over training; hours_frame.py, hours until runs have a value.
"""

from dinoswap.studies.report.analysis import Analysis, Result, analyse
from dinoswap.studies.report.write import look, write_again, write_report

__all__ = ["Analysis", "Result", "analyse", "look", "write_again", "write_report"]
