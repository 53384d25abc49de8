"""What all commands of `dinoswap-ablate` share: arguments, the study that these name, where pages are written."""

import argparse
import sys
from pathlib import Path
from typing import Protocol

from rich.console import Console

from dinoswap.studies.design import Design, make_design
from dinoswap.studies.ledger import Entry, entries
from dinoswap.studies.overrides import is_hydra_override
from dinoswap.studies.study import Study, read_study

WIDTH = 160
"""Columns of a table that is not printed to a terminal."""


class Command(Protocol):
    """The module of a command."""

    SUMMARY: str
    """What it does, in a line or two."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Adds the options that the command has beside STUDY and overrides."""

    def execute(self, arguments: argparse.Namespace) -> int:
        """Does what it does and returns the exit status. Raises ConfigError for what a user has to mend."""


def add_study(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that all commands have: STUDY and overrides."""
    parser.add_argument("study", metavar="STUDY", help="a name in ablations/, or a path")
    parser.add_argument("overrides", nargs="*", metavar="override", help="key=value")


def read_design(arguments: argparse.Namespace, *, check: bool = False) -> tuple[Study, Design, list[Entry]]:
    """Returns the study, its design and one entry per run.

    With `check` the trainer has accepted every cell, for which torch is imported. Raises ConfigError for a study, an
    override or a cell that is refused.
    """
    study = read_study(arguments.study, [line for line in arguments.overrides if not is_hydra_override(line)])
    design = make_design(study, check=check)
    return study, design, entries(study, design.cells)


def console() -> Console:
    """Returns the console to print to, of WIDTH columns where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else WIDTH)


def page_folder(arguments: argparse.Namespace, study: Study, runs: list[Entry], *parts: str) -> Path:
    """Returns the folder to write a page into: --out, or results/reports/<study>/<parts> beside results/runs."""
    root = runs[0].folder.parents[1]  # results/runs/<study>/<run_id>/seed<k>
    out: Path | None = arguments.out
    return out or root.parents[1].joinpath("reports", study.name, *parts)
