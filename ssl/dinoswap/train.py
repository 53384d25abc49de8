"""`dinoswap-train`: one run from the command line, alone or as a job of a Hydra multirun.

The help, a mistake in the arguments and the driver of a multirun do without torch, which takes seconds to import.
"""

import sys

import hydra
from omegaconf import DictConfig

from dinoswap.command_line import EXIT_USAGE, check_arguments
from dinoswap.configuration import VERSION_BASE, config_dir
from dinoswap.schema import ConfigError


@hydra.main(version_base=VERSION_BASE, config_path=str(config_dir()), config_name="train")
def _hydra_main(cfg: DictConfig) -> float | None:
    from dinoswap.job import run_job

    return run_job(cfg)


def main() -> None:
    """The console script."""
    try:
        check_arguments(sys.argv[1:])
    except ConfigError as error:
        print(f"dinoswap-train: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    _hydra_main()


if __name__ == "__main__":
    main()
