"""`python -m dinoswap.run.index [results/runs]`: writes index.html, the page of all runs, as runs do themselves."""

import argparse
import sys
from pathlib import Path

from dinoswap.run.index import renew


def main() -> int:
    """Writes the page, prints its path and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dinoswap.run.index", description="Writes the page of all runs.")
    parser.add_argument("runs", type=Path, nargs="?", default=Path("results/runs"), metavar="RUNS_DIR")
    root = parser.parse_args().runs
    try:
        print(renew(root))
    except OSError as error:
        print(f"dinoswap.run.index: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
