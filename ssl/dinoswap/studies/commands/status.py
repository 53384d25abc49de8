"""`dinoswap-ablate status`: where the runs of a study stand."""

import argparse

from dinoswap.studies.commands.base import console, read_design
from dinoswap.studies.status import rows, show

SUMMARY = "where each run stands"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--once", action="store_true", help="print it and end")


def execute(arguments: argparse.Namespace) -> int:
    """Shows where each run stands and returns the exit status."""
    study, _, entries = read_design(arguments)
    metric = study.metrics[0].name
    show(lambda: rows(entries, metric), study.name, once=arguments.once, console=console())
    return 0
