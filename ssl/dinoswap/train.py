"""`dinoswap-train`: one run from the command line, alone or as a job of a Hydra multirun.

The help, a mistake in the arguments and the driver of a multirun do without torch, which takes seconds to import.
"""

import os
import sys
from collections.abc import Sequence

import hydra
from omegaconf import DictConfig
from rich.console import Console

from dinoswap import __version__
from dinoswap.config.command_line import check_arguments, chosen_options
from dinoswap.config.configuration import VERSION_BASE, config_dir
from dinoswap.config.exit_codes import EXIT_USAGE
from dinoswap.config.explain import explanation, help_text
from dinoswap.config.schema import ConfigError

EXPLAIN, VERSION = "--explain", "--version"
WIDTH = 180
"""Width in characters of a table that is not printed to a terminal."""


@hydra.main(version_base=VERSION_BASE, config_path=str(config_dir()), config_name="train")
def _hydra_main(cfg: DictConfig) -> float | None:
    """Runs the job of a composed config and returns its objective metric."""
    from dinoswap.run.job import run_job

    return run_job(cfg)


def main() -> None:
    """Runs the console script. A rank that exits with an error tells the others why, so that they do not wait."""
    try:
        _main()
    except SystemExit as end:
        if end.code and _one_of_several():
            from dinoswap.distributed.group import excuse

            excuse(str(end.__context__ or f"ended with status {end.code}, see its output"))
        raise


def _main() -> None:
    """Answers what needs no config, and otherwise lets Hydra compose one and run its job."""
    try:
        if EXPLAIN in sys.argv:
            explain([argument for argument in sys.argv[1:] if argument != EXPLAIN])
            return
        if VERSION in sys.argv:
            print(f"dinoswap {__version__}")
            return
        if not {"--help", "-h"}.isdisjoint(sys.argv):  # Hydra would list all groups first, which takes seconds
            print(help_text())
            return
        sys.argv[1:] = check_arguments(sys.argv[1:])  # Hydra reads them from there
    except ConfigError as error:
        print(f"dinoswap-train: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    _hydra_main()


def _one_of_several() -> bool:
    """Tells whether this process is one of several ranks, read from the environment to avoid importing torch."""
    return os.environ.get("WORLD_SIZE", os.environ.get("SLURM_STEP_NUM_TASKS", "1")) != "1"


def explain(overrides: Sequence[str]) -> None:
    """Prints what these overrides choose for each axis. Nothing is trained. Raises ConfigError for a wrong override."""
    Console(width=None if sys.stdout.isatty() else WIDTH).print(explanation(chosen_options(overrides)))


if __name__ == "__main__":
    main()
