"""`dinoswap-tune`: search for the best values of a study's keys, with Optuna, and tell what they are worth.

Started again, a search goes on; started on several machines that share the results folder, it is worked on by all.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dinoswap import __version__
from dinoswap.config.exit_codes import EXIT_FAILED, EXIT_RESUMABLE, EXIT_USAGE
from dinoswap.config.schema import ConfigError
from dinoswap.studies.composer import Composer
from dinoswap.studies.measurable import require_measurable
from dinoswap.studies.overrides import combined, is_hydra_override

if TYPE_CHECKING:
    import optuna

    from dinoswap.studies.tuning.definition import Tuning


EXAMPLES = """examples:
  dinoswap-tune tune_da3 da3.ckpt_path=DA3-SMALL/model.safetensors
  dinoswap-tune tune_lr workers=4 hydra.launcher.gpus=[0,1,2,3]
  dinoswap-tune tune_lr workers=16 hydra/launcher=slurm hydra.launcher.partition=gpu
  dinoswap-tune tune_lr --storage postgresql+psycopg://user@host/optuna    # hundreds of workers
  dinoswap-tune tune_lr trials=80                                  # a total: goes on to 80

The same command goes on with a search. Its runs are in results/runs/STUDY, and in tune/ there report.md,
trials.csv and Optuna's journal.log. To watch it in a browser, after pip install optuna-dashboard:
  optuna-dashboard results/runs/STUDY/tune/journal.log

Exit status: 0 done, 2 the arguments are wrong, 75 interrupted and resumable, 1 failed, as half of the trials."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dinoswap-tune",
        description="Search the `space` of a study in ablations/ with Optuna. Each trial is an ordinary run, which\n"
        "`dinoswap-train` repeats with its overrides; the best are run with fresh seeds, against the base.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dinoswap {__version__}")
    parser.add_argument("study", metavar="STUDY", help="name of a study in ablations/, or the path of its file")
    parser.add_argument("overrides", nargs="*", help="of the study's keys (trials=), its base, or hydra.launcher")
    parser.add_argument("--report", action="store_true", help="only tell what has been found so far")
    parser.add_argument("--rerun-failed", action="store_true", help="run the trials that failed once more")
    parser.add_argument("--storage", metavar="URL", help="a data base for the trials, in place of the journal")
    return parser


def tune(arguments: argparse.Namespace) -> int:
    """Searches, or only reports with --report, and returns the exit status. Raises ConfigError for wrong arguments."""
    from dinoswap.studies.tuning.definition import read_tuning

    tuning = read_tuning(arguments.study, [line for line in arguments.overrides if not is_hydra_override(line)])
    hydra_overrides = combined(tuning.launcher, filter(is_hydra_override, arguments.overrides))
    try:
        from dinoswap.studies.tuning import crew, report, trials
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ConfigError("there is no Optuna here: pip install 'dinoswap[tune]'") from error
    if not arguments.report:
        require_buildable(tuning)
        require_measurable(tuning.config(), (objective.name for objective in tuning.objectives))
    study = trials.open_study(tuning, arguments.storage)
    if arguments.rerun_failed:
        trials.retry_failed(study)
    if not arguments.report:
        try:
            crew.work(tuning, arguments.storage, hydra_overrides, Teller(study, tuning))
        except crew.Interrupted as signal:
            print(f"dinoswap-tune: {signal}; the same command goes on", file=sys.stderr)
            return EXIT_RESUMABLE
    print(report.write_report(study, tuning))
    print(tuning.folder / "report.md")
    if arguments.report:
        return 0
    if failed := trials.mostly_failed(study):
        print(f"dinoswap-tune: {failed}; --rerun-failed runs them once more", file=sys.stderr)
    return 0 if trials.done(study, tuning) and not failed else EXIT_FAILED


def require_buildable(tuning: "Tuning") -> None:
    """Raises ConfigError where no run can be built of the base, or of it with one key at one of the values that it has
    to accept."""
    compose = Composer(check=True)
    compose(tuning.overrides())
    for key, parameter in tuning.parameters.items():
        for value in parameter.examples:
            compose(tuning.overrides({key: value}))


class Teller:
    """Prints a line for each trial that has ended since it was last called."""

    def __init__(self, study: "optuna.Study", tuning: "Tuning") -> None:
        from dinoswap.studies.tuning import report, trials

        self.study, self.tuning, self.report, self.trials = study, tuning, report, trials
        self.reported = {trial.number for trial in self.ended()}

    def ended(self) -> list["optuna.trial.FrozenTrial"]:
        return self.trials.finished(self.study.get_trials(deepcopy=False))

    def __call__(self) -> None:
        shown = self.report.shown
        for trial in (trial for trial in self.ended() if trial.number not in self.reported):
            self.reported.add(trial.number)
            values = ", ".join(map(shown, trial.values or []))
            settings = " ".join(f"{key}={shown(value)}" for key, value in trial.params.items())
            count = f"{len(self.reported)}/{self.tuning.trials}"
            print(f"{count} trial {trial.number} {self.report.ending(trial)} {values} {settings}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the console script and returns its exit status: EXIT_USAGE, with a message, for a ConfigError."""
    try:
        return tune(parser().parse_intermixed_args(argv))
    except ConfigError as error:
        print(f"dinoswap-tune: {error}", file=sys.stderr)
        return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main())
