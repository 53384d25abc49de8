"""A page that shows each axis to a person: README.md and a picture per axis.

    python tools/axes_page.py -o results/reference/axes

The same command makes the same bytes: nothing on the page depends on the date, the commit or the machine.
"""

import argparse
import sys
from pathlib import Path

from dinoswap.files import write_atomically
from pages import passes, views


def main():
    out = Path(sys.argv[1])
    out.mkdir(exist_ok=True, parents=True)
    parts = [views.augmentation(out), passes.forward(out)]
    write_atomically(out / "README.md", "\n".join(parts))


main()
