"""All tensors of a checkpoint, whole, in one safetensors file, whichever ranks wrote them.

    python tools/consolidate.py results/runs/single/1a2b3c4d5e/seed0 -o tensors.safetensors

Names are '/'-joined: model/<name> (student, teacher, objectives), optimizer/<name>/<moment>.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from dinoswap.config.schema import ConfigError
from dinoswap.files.writing import write_atomically
from dinoswap.run.checkpoint import CheckpointError, named_tensors
from dinoswap.run.subject import Subject


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder (its newest checkpoint) or checkpoint folder")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", required=True)
    arguments = parser.parse_args(argv)
    try:
        checkpoint = Subject.find(arguments.run).checkpoint
        tensors = named_tensors(checkpoint.state)
        write_atomically(arguments.out, save(tensors))
    except (ConfigError, CheckpointError, OSError) as error:
        print(f"consolidate: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(f"{arguments.out}: {len(tensors)} tensors after {checkpoint.step} steps")
    return 0


if __name__ == "__main__":
    sys.exit(main())
