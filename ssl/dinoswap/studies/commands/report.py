"""`dinoswap-ablate report`: what a study found."""

import argparse
from pathlib import Path

from dinoswap.config.schema import ConfigError
from dinoswap.studies.commands.base import page_folder, read_design
from dinoswap.studies.ledger import read_json

SUMMARY = "tables, plots, HTML; of a report.json in place of STUDY: the same runs, judged again"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("-o", "--out", type=Path, help="folder of the page")


def execute(arguments: argparse.Namespace) -> int:
    """Writes the report and returns the exit status. Prints the report's path and, last, the answer in a sentence."""
    from dinoswap.studies.report import write_again, write_report

    path = Path(arguments.study)
    if path.suffix == ".json":
        if arguments.overrides:
            raise ConfigError(f"{' '.join(arguments.overrides)}: a report.json is of one study; leave overrides out")
        page = write_again(path, arguments.out or path.parent)
    else:
        study, _, entries = read_design(arguments)
        page = write_report(study, entries[0].folder.parents[1], page_folder(arguments, study, entries))
    print(page)
    print(read_json(page.with_name("report.json"))["answer"])
    return 0
