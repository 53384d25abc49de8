"""`dinoswap-ablate noise`: what makes two runs of a study differ."""

import argparse
from pathlib import Path

from dinoswap.config.schema import ConfigError
from dinoswap.config.streams import STREAMS
from dinoswap.studies.commands import run
from dinoswap.studies.commands.base import page_folder, read_design

SUMMARY = "what makes two runs of the reference differ, by random stream; with --arm what pairing by each takes away"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command, and those of `run`, since it starts runs."""
    run.add_options(parser)
    parser.add_argument("--arm", metavar="CELL", help="a second arm, which is run with the same seeds")
    parser.add_argument("--levels", type=int, default=5, help="seeds of a stream, a prime; its square is run")
    parser.add_argument("--streams", help="those that vary, as in init,order; all are")
    parser.add_argument("--bases", type=int, default=1, help="runs from which one stream at a time is varied")
    parser.add_argument("--threads", type=int, help="repeat runs with so many threads, as local jobs")
    parser.add_argument("-o", "--out", type=Path, help="folder of the page")


def execute(arguments: argparse.Namespace) -> int:
    """Measures what makes two runs differ and returns the exit status. Prints the page's path and, last, the answer."""
    from dinoswap.studies.noise.array import NoiseDesign
    from dinoswap.studies.noise.numbers import Noise, as_json
    from dinoswap.studies.noise.page import make_page, write_page
    from dinoswap.studies.noise.runs import (
        analysed,
        measured_metrics,
        noise_runs,
        require_other_threads,
        unused_streams,
    )

    streams = arguments.streams.split(",") if arguments.streams else STREAMS
    planned = NoiseDesign(arguments.levels, streams, arguments.bases)
    study, design, entries = read_design(arguments, check=True)
    if not (metrics := measured_metrics(study)):
        raise ConfigError(f"{study.path}: metrics: all are costs of a run, which no stream decides")
    cells = [design.reference, *([design.cell(arguments.arm)] if arguments.arm else [])]
    runs = noise_runs(study, cells, planned, arguments.threads)
    run.start(study, runs.entries, arguments)
    if failed := run.conclude(runs.entries):
        return failed
    if arguments.threads:
        require_other_threads(runs, arguments.threads)
        repeated = list(runs.other_threads.values())
        run.start(study, repeated, arguments, f"hydra.launcher.threads={arguments.threads}")
        if failed := run.conclude(repeated):
            return failed
    unused = unused_streams(runs, metrics)
    results = [Noise(metric.name, *analysed(runs, metric, unused)) for metric in metrics]
    out = page_folder(arguments, study, entries, "noise")
    page = make_page(study.name, planned, results, unused)
    print(write_page(page, as_json(study.name, runs, arguments.threads, results, unused), out))
    print(page.answer)
    return 0
