"""`dinoswap-ablate run`: starts the runs of a study that are missing, look by look."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dinoswap.config.exit_codes import EXIT_FAILED, EXIT_RESUMABLE
from dinoswap.config.first_check import require_writable
from dinoswap.config.measured import family_of
from dinoswap.studies.commands.base import read_design
from dinoswap.studies.ledger import STARTED_UNASKED, UNDER_WAY, Entry, State, run_statuses
from dinoswap.studies.measurable import require_measurable
from dinoswap.studies.overrides import combined, is_hydra_override
from dinoswap.studies.status import summary
from dinoswap.studies.study import Study

RERUN: tuple[State, ...] = ("failed", "diverged", "killed")
ENDED: tuple[State, ...] = ("completed", "failed", "diverged")
"""The states that are outcomes: of a look all runs have one."""

SUMMARY = (
    "start what is missing or was stopped, and wait; Ctrl-C stops local runs and leaves cluster jobs alone; "
    "with planned looks, arms that are decided are not run on"
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "--rerun",
        action="append",
        choices=RERUN,
        default=[],
        metavar="STATE",
        help=f"{', '.join(RERUN)}: run those too; may be given again",
    )


def execute(arguments: argparse.Namespace) -> int:
    """Starts what is missing or was stopped, waits, and returns the exit status.

    Of a study with planned looks it is first the seeds of the first look, and after each look those of the next, of
    cells that are not decided. How the runs ended is read from their folders, whatever the launcher reports.
    """
    study, _, runs = read_design(arguments, check=True)
    going = {entry.cell: study.seeds for entry in runs}
    for count in study.plan.counts:
        of_look = study.seeds[:count]
        selected = [entry for entry in runs if entry.seed in of_look and entry.seed in going[entry.cell]]
        start(study, selected, arguments)
        states = {run_status.state for run_status in run_statuses([entry.folder for entry in selected])}
        if count == len(study.seeds) or not states <= {*ENDED}:
            break
        going = going_on(study, count, runs[0].folder.parents[1])
        if all(len(seeds) <= count for seeds in going.values()):
            break
    if words := lacking(study, selected):
        print(f"{words}: dinoswap-ablate evaluate {study.arguments}")
    return conclude(selected)


def start(study: Study, selected: Sequence[Entry], arguments: argparse.Namespace, *launcher: str) -> None:
    """Starts those of the runs that are missing or were stopped, and waits for them. `launcher` are further overrides
    of how they are launched."""
    from dinoswap.studies.launch import launch

    states = [run_status.state for run_status in run_statuses([entry.folder for entry in selected])]
    chosen = (*STARTED_UNASKED, *UNDER_WAY, *arguments.rerun)  # jobs in a cluster's queue are waited for
    starting = [entry for entry, state in zip(selected, states, strict=True) if state in chosen]
    print(summary(states), flush=True)
    if starting:
        require_writable(starting[0].config)
        require_measurable(dict(starting[0].config), (metric.name for metric in study.metrics))
        launch(starting, combined(study.launcher, filter(is_hydra_override, arguments.overrides), launcher))


def going_on(study: Study, count: int, root: Path) -> dict[str, list[int]]:
    """Takes the planned look after so many seeds, prints what it says, and returns the seeds that each cell still
    wants: no others where the look has decided on it."""
    from dinoswap.studies.report import look  # pandas and scipy

    analysis = look(replace(study, seeds=study.seeds[:count]), root)
    print(analysis.answer, flush=True)
    return analysis.seeds_wanted(study.seeds)


def lacking(study: Study, entries: Sequence[Entry]) -> str:
    """Returns how many completed runs lack which metrics of the study, as runs do that completed before it asked for
    them; empty where none does, or `evaluate` could add none."""
    from dinoswap.studies.judged import unmeasured  # torch

    families = {metric.name: family_of(metric.name) for metric in study.metrics}
    statuses = run_statuses([entry.folder for entry in entries])
    by_run = [
        {*unmeasured(entry.config, status.record["metrics"])} & {*families.values()}
        for entry, status in zip(entries, statuses, strict=True)
        if status.state == "completed"
    ]
    names = [name for name, family in families.items() if any(family in of_run for of_run in by_run)]
    return f"{sum(map(bool, by_run))} completed runs did not measure {', '.join(names)}" if names else ""


def conclude(entries: list[Entry]) -> int:
    """Prints which runs did not complete and how to run them again, and returns the exit status."""
    statuses = run_statuses([entry.folder for entry in entries])
    states = {run_status.state for run_status in statuses} - {"completed"}
    print(summary(run_status.state for run_status in statuses))
    for entry, run_status in zip(entries, statuses, strict=True):
        if run_status.state in states:
            print(f"{entry.name}: {run_status.words} ({entry.folder})")
    if again := " ".join(f"--rerun {state}" for state in RERUN if state in states):
        print(f"to run these again: {again}")
    if states <= {*UNDER_WAY}:
        return EXIT_RESUMABLE if states else 0
    return EXIT_FAILED
