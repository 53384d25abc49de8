"""`dinoswap-ablate twins`: what the arms of a study compute at the same weights."""

import argparse
import sys
from pathlib import Path

from rich.progress import Progress

from dinoswap.config.schema import ConfigError
from dinoswap.studies.commands.base import console, page_folder, read_design
from dinoswap.studies.overrides import combined, is_hydra_override

SUMMARY = "what each arm would do at the reference's weights: gradients, updates, targets, losses on the same batches"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--from", dest="run", type=Path, help="a run with checkpoints; else one is trained")
    parser.add_argument("--batches", type=int, default=8, help="batches of each gradient, steps of each update")
    parser.add_argument("--report", type=Path, metavar="FILE", help="a report.json, whose effects stand beside")
    parser.add_argument("-o", "--out", type=Path, help="folder of the page")


def execute(arguments: argparse.Namespace) -> int:
    """Compares what each arm computes at the reference's weights and returns the exit status. Prints the page's path
    and, last, the answer."""
    from dinoswap.studies.twins.trajectory import checkpoints, require_one_start, train_trajectory, trajectory_of

    if arguments.batches < 1:
        raise ConfigError(f"--batches {arguments.batches}: at least one batch is needed")
    study, design, runs = read_design(arguments, check=True)
    require_one_start(study)
    entry = trajectory_of(study, design.reference)
    run = arguments.run or train_trajectory(
        entry, combined(study.launcher, filter(is_hydra_override, arguments.overrides))
    )
    steps = checkpoints(run)

    from dinoswap.studies.twins.compare import compare
    from dinoswap.studies.twins.page import make_page, measured_effects, write_page

    if arguments.report:
        measured_effects(arguments.report)  # which is refused before anything is computed
    with Progress(console=console(), disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task("", total=(len(steps) + 1) * len(design.cells))

        def tell(name: str) -> None:
            progress.update(bar, description=name, advance=1)
            if progress.disable:
                print(name, flush=True)

        comparison = compare(design.cells, entry.seed, {0: None, **steps}, arguments.batches, tell)
    after = ", ".join(map(str, steps))
    source = f"The weights are the initial ones of seed {entry.seed}, and those of {run} after {after} steps."
    out = page_folder(arguments, study, runs, "twins")
    page = make_page(study.name, comparison, source, arguments.report)
    print(write_page(comparison, page, {"run": str(run), "seed": entry.seed}, out))
    print(page.answer)
    return 0
