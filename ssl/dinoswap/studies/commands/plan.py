"""`dinoswap-ablate plan`: what a study will cost and can detect, before it is run."""

import argparse
from pathlib import Path

from dinoswap.config.schema import ConfigError
from dinoswap.studies.commands.base import console, read_design

SUMMARY = "the cells, what is done and missing, what it will cost, what it can detect, how short its runs may be"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--probe", action="store_true", help="time some steps of cells that were never run")
    parser.add_argument("--sd", type=float, help="standard deviation of the difference of two runs of one seed")
    parser.add_argument("--noise", metavar="FILE", type=Path, help="take it from a noise.json")


def execute(arguments: argparse.Namespace) -> int:
    """Prints the plan of the study and returns the exit status."""
    from dinoswap.studies.forecast import Spread  # pandas and scipy
    from dinoswap.studies.noise.numbers import difference_of
    from dinoswap.studies.plan import show_plan

    study, design, entries = read_design(arguments)
    given = None if arguments.sd is None else Spread(arguments.sd, "as given")
    if arguments.noise:
        if given:
            raise ConfigError(f"--sd {arguments.sd}: --noise {arguments.noise} gives it as well; leave one out")
        given = difference_of(arguments.noise, study.metrics[0].name)
    show_plan(study, design, entries, console(), probing=arguments.probe, given=given)
    return 0
