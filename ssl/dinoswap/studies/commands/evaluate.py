"""`dinoswap-ablate evaluate`: judges the completed runs of a study by further metrics."""

import argparse
import sys

from dinoswap.config.exit_codes import EXIT_FAILED
from dinoswap.config.schema import ConfigError
from dinoswap.files.checkpoint_folder import CheckpointError
from dinoswap.run.run_folder import followed
from dinoswap.studies.commands.base import read_design
from dinoswap.studies.ledger import run_statuses

SUMMARY = "measure what completed runs did not, as 'metric=[...]' asks for now"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds none."""


def execute(arguments: argparse.Namespace) -> int:
    """Judges completed runs by further metrics and returns the exit status."""
    from dinoswap.studies.judged import is_of_judging, judge

    judging = [line for line in arguments.overrides if is_of_judging(line)]
    arguments.overrides = [line for line in arguments.overrides if line not in judging]  # the others name the runs
    _, _, entries = read_design(arguments)
    failed = False
    for entry, run_status in zip(entries, run_statuses([entry.folder for entry in entries]), strict=True):
        if run_status.state != "completed":
            print(f"{entry.name}: {run_status.state}")
            continue
        try:
            added = judge(followed(entry.folder), entry.config["evaluation"], judging)
        except ConfigError:
            raise
        except (CheckpointError, ValueError, OSError) as error:
            failed = True
            print(f"{entry.name}: {error}", file=sys.stderr)
        else:
            print(f"{entry.name}: {f'{len(added)} numbers added' if added else 'has been measured'}", flush=True)
    return EXIT_FAILED if failed else 0
