"""`dinoswap-ablate`: plan, run and follow a study of ablations/, and report what it found."""

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence

from dinoswap import __version__
from dinoswap.config.exit_codes import EXIT_INTERRUPTED, EXIT_USAGE
from dinoswap.config.schema import ConfigError
from dinoswap.studies.commands import evaluate, noise, plan, report, run, status, twins
from dinoswap.studies.commands.base import Command, add_study

PROGRAM = "dinoswap-ablate"
WIDTH = 110
"""Columns of the help."""
COMMANDS: Mapping[str, Command] = {
    "plan": plan,
    "run": run,
    "status": status,
    "evaluate": evaluate,
    "report": report,
    "twins": twins,
    "noise": noise,
}
OVERRIDES = f"""\
Overrides change all runs (recipe=smoke), the study (seeds=5), or how runs are launched:
  {PROGRAM} run forward_masking hydra.launcher.processes=4
  {PROGRAM} run forward_masking hydra/launcher=slurm hydra.launcher.partition=gpu"""
EXITS = (
    "Exit status: 0 all done, 2 the arguments are wrong, 75 stopped or still under way, 1 some runs did not complete."
)


def main() -> None:
    """Runs one command of the console script and exits with its status, or with EXIT_USAGE and a message for a
    ConfigError."""
    try:
        name, arguments = parse(sys.argv[1:])
        sys.exit(COMMANDS[name].execute(arguments))
    except ConfigError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def parse(arguments: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """Returns the name of the command, which comes first, and what is said to it. Exits with EXIT_USAGE and a message
    where that is not understood."""
    name = str(commands_parser().parse_args(arguments[:1]).command)
    command_parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {name}",
        usage="%(prog)s STUDY [override ...] [options]",
        description=f"{textwrap.fill(COMMANDS[name].SUMMARY, WIDTH)}\n\n{OVERRIDES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_study(command_parser)
    COMMANDS[name].add_options(command_parser)
    return name, command_parser.parse_intermixed_args(arguments[1:])


def commands_parser() -> argparse.ArgumentParser:
    """Returns the parser of the first argument, the command, whose help describes all of them."""
    summaries = [
        textwrap.fill(command.SUMMARY, WIDTH, initial_indent=f"{name:9}", subsequent_indent=" " * 9)
        for name, command in COMMANDS.items()
    ]
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage="%(prog)s COMMAND STUDY [override ...] [options]",
        description="\n".join([*summaries, "", OVERRIDES, EXITS]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dinoswap {__version__}")
    parser.add_argument(
        "command", metavar="COMMAND", choices=COMMANDS, help="one of those above; COMMAND --help has its options"
    )
    return parser


if __name__ == "__main__":
    main()
