"""`dinoswap-ablate`: plan, run and follow a study of ablations/, and report what it found."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from dinoswap import __version__
from dinoswap.config.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_RESUMABLE, EXIT_USAGE
from dinoswap.config.first_check import require_writable
from dinoswap.config.schema import ConfigError
from dinoswap.config.streams import STREAMS
from dinoswap.files.checkpoint_folder import CheckpointError
from dinoswap.run.run_folder import followed
from dinoswap.studies.design import Design, make_design
from dinoswap.studies.ledger import STARTED_UNASKED, UNDER_WAY, Entry, State, entries, read_json, run_statuses
from dinoswap.studies.measurable import require_measurable
from dinoswap.studies.overrides import combined, is_hydra_override
from dinoswap.studies.status import rows, show, summary
from dinoswap.studies.study import Study, read_study

WIDTH = 160
"""Columns of a table that is not printed to a terminal."""
RERUN: tuple[State, ...] = ("failed", "diverged", "killed")
ENDED: tuple[State, ...] = ("completed", "failed", "diverged")
"""The states that are outcomes: of a look all runs have one."""

DESCRIPTION = """\
plan     the cells, what is done and missing, what it will cost, what it can detect, how short its runs may be
run      start what is missing or was stopped, and wait; Ctrl-C stops local runs and leaves cluster jobs alone;
         with planned looks, arms that are decided are not run on
status   where each run stands
evaluate measure what completed runs did not, as 'metric=[...]' asks for now
report   tables, plots, HTML; of a report.json in place of STUDY: the same runs, judged again
twins    what each arm would do at the reference's weights: gradients, updates, targets and losses on the same batches
noise    what makes two runs of the reference differ, by random stream; with --arm what pairing by each takes away

Overrides change all runs (recipe=smoke), the study (seeds=5), or how runs are launched:
  dinoswap-ablate run forward_masking hydra.launcher.processes=4
  dinoswap-ablate run forward_masking hydra/launcher=slurm hydra.launcher.partition=gpu
Exit status: 0 all done, 2 the arguments are wrong, 75 stopped or still under way, 1 some runs did not complete."""


def parser() -> argparse.ArgumentParser:
    argument_parser = argparse.ArgumentParser(
        prog="dinoswap-ablate",
        usage="%(prog)s COMMAND STUDY [override ...] [options]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    argument_parser.add_argument("--version", action="version", version=f"dinoswap {__version__}")
    argument_parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of those above")
    argument_parser.add_argument("study", metavar="STUDY", help="a name in ablations/, or a path")
    argument_parser.add_argument("overrides", nargs="*", metavar="override", help="key=value")
    argument_parser.add_argument(
        "--rerun",
        action="append",
        choices=RERUN,
        default=[],
        metavar="STATE",
        help=f"run: {', '.join(RERUN)} ones too",
    )
    argument_parser.add_argument(
        "--probe", action="store_true", help="plan: time some steps of cells that were never run"
    )
    argument_parser.add_argument("--sd", type=float, help="plan: sd of the difference of two runs of one seed")
    argument_parser.add_argument("--noise", metavar="FILE", type=Path, help="plan: takes it from a noise.json")
    argument_parser.add_argument("--once", action="store_true", help="status: print it and end")
    argument_parser.add_argument(
        "--from", dest="run", type=Path, help="twins: a run with checkpoints; else one is trained"
    )
    argument_parser.add_argument(
        "--batches", type=int, default=8, help="twins: batches of each gradient, steps of each update"
    )
    argument_parser.add_argument(
        "--report", type=Path, metavar="FILE", help="twins: a report.json, whose effects stand beside"
    )
    argument_parser.add_argument("--arm", metavar="CELL", help="noise: a second arm, which is run with the same seeds")
    argument_parser.add_argument(
        "--levels", type=int, default=5, help="noise: seeds of a stream, a prime; its square is run"
    )
    argument_parser.add_argument("--streams", help="noise: those that vary, as in init,order; all are")
    argument_parser.add_argument(
        "--bases", type=int, default=1, help="noise: runs from which one stream at a time is varied"
    )
    argument_parser.add_argument("--threads", type=int, help="noise: repeats runs with so many threads, as local jobs")
    argument_parser.add_argument("-o", "--out", type=Path, help="report, twins, noise: their folder")
    return argument_parser


def main() -> None:
    """Runs one command of the console script and exits with its status, or with EXIT_USAGE and a message for a
    ConfigError."""
    try:
        arguments = parser().parse_intermixed_args()
        sys.exit(COMMANDS[arguments.command](arguments))
    except ConfigError as error:
        print(f"dinoswap-ablate: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


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


def plan(arguments: argparse.Namespace) -> int:
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


def run(arguments: argparse.Namespace) -> int:
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


def status(arguments: argparse.Namespace) -> int:
    """Shows where each run stands and returns the exit status."""
    study, _, entries = read_design(arguments)
    metric = study.metrics[0].name
    show(lambda: rows(entries, metric), study.name, once=arguments.once, console=console())
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
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


def report(arguments: argparse.Namespace) -> int:
    """Writes the report and returns the exit status. Prints the report's path and, last, the answer in a sentence."""
    from dinoswap.studies.report import write_again, write_report

    path = Path(arguments.study)
    if path.suffix == ".json":
        if arguments.overrides:
            raise ConfigError(f"{' '.join(arguments.overrides)}: a report.json is of one study; leave overrides out")
        page = write_again(path, arguments.out or path.parent)
    else:
        study, _, entries = read_design(arguments)
        root = entries[0].folder.parents[1]  # results/runs/<study>/<run_id>/seed<k>
        page = write_report(study, root, arguments.out or root.parents[1] / "reports" / study.name)
    print(page)
    print(read_json(page.with_name("report.json"))["answer"])
    return 0


def twins(arguments: argparse.Namespace) -> int:
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
    root = runs[0].folder.parents[1]
    out = arguments.out or root.parents[1] / "reports" / study.name / "twins"
    page = make_page(study.name, comparison, source, arguments.report)
    print(write_page(comparison, page, {"run": str(run), "seed": entry.seed}, out))
    print(page.answer)
    return 0


def noise(arguments: argparse.Namespace) -> int:
    """Measures what makes two runs differ and returns the exit status. Prints the page's path and, last, the answer."""
    from dinoswap.studies.noise.array import NoiseDesign
    from dinoswap.studies.noise.numbers import Noise, as_json
    from dinoswap.studies.noise.page import make_page, write_page
    from dinoswap.studies.noise.runs import analysed, measured_metrics, noise_runs, require_other_threads

    streams = arguments.streams.split(",") if arguments.streams else STREAMS
    planned = NoiseDesign(arguments.levels, streams, arguments.bases)
    study, design, entries = read_design(arguments, check=True)
    if not (metrics := measured_metrics(study)):
        raise ConfigError(f"{study.path}: metrics: all are costs of a run, which no stream decides")
    cells = [design.reference, *([design.cell(arguments.arm)] if arguments.arm else [])]
    runs = noise_runs(study, cells, planned, arguments.threads)
    start(study, runs.entries, arguments)
    if failed := conclude(runs.entries):
        return failed
    if arguments.threads:
        require_other_threads(runs, arguments.threads)
        repeated = list(runs.other_threads.values())
        start(study, repeated, arguments, f"hydra.launcher.threads={arguments.threads}")
        if failed := conclude(repeated):
            return failed
    results = [Noise(metric.name, *analysed(runs, metric)) for metric in metrics]
    root = entries[0].folder.parents[1]
    out = arguments.out or root.parents[1] / "reports" / study.name / "noise"
    page = make_page(study.name, planned, results)
    print(write_page(page, as_json(study.name, runs, arguments.threads, results), out))
    print(page.answer)
    return 0


COMMANDS = {
    "plan": plan,
    "run": run,
    "status": status,
    "evaluate": evaluate,
    "report": report,
    "twins": twins,
    "noise": noise,
}


if __name__ == "__main__":
    main()
