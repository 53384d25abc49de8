"""A checkpoint of the legacy trainer as a file of ours, or with --reverse weights of ours as one that it loads.

    python tools/convert_legacy.py checkpoint.pth -o converted.safetensors
    python tools/convert_legacy.py converted.safetensors --reverse -o checkpoint.pth
    python tools/convert_legacy.py results/runs/single/1a2b3c4d5e/seed0 --reverse -o checkpoint.pth

Student, teacher and prototype bank are converted, every parameter exactly; optimisers, arguments and generator states
are left out. Names in the file of ours are those of a run's checkpoint, and dinoswap-eval judges the teacher in it.

Equal weights compute equal features of square crops in both codes. Of other crops they do not: there the legacy code
resamples the position table with the factors of height and width swapped, and takes it as it is whenever the number of
patches agrees (crops of 64 x 16 pixels with a table for 32 x 32). Ours resamples to the crop's own grid.
"""

import argparse
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from dinoswap.config.schema import ConfigError
from dinoswap.files.writing import write_atomically
from dinoswap.nn.legacy_weights import BANK, NETWORKS, from_legacy, read_legacy, to_legacy
from dinoswap.nn.weights.files import read_weights
from dinoswap.run.checkpoint import CheckpointError
from dinoswap.run.subject import Subject


def forward(source: Path) -> tuple[bytes, Iterable[str]]:
    """Returns the content of the file of ours to write, and the entries of the legacy checkpoint `source` that are not
    in it."""
    checkpoint = read_legacy(source)
    return save(from_legacy(checkpoint)), checkpoint.keys() - {*NETWORKS, BANK}


def reverse(source: Path) -> tuple[bytes, Iterable[str]]:
    """Returns the content of the legacy checkpoint to write, and the entries of `source` that are not in it: a file of
    ours, a run folder, or a checkpoint in one."""
    state = read_weights(source) if source.is_file() else Subject.find(source).checkpoint.state["model"]
    networks = {
        name: value for name, value in state.items() if name.startswith(tuple(f"{network}." for network in NETWORKS))
    }
    buffer = io.BytesIO()
    torch.save(to_legacy(networks), buffer)
    return buffer.getvalue(), state.keys() - networks.keys()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="legacy .pth; with --reverse, a file or run of ours"
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", required=True, help=".safetensors; with --reverse .pth"
    )
    parser.add_argument("--reverse", action="store_true", help="from ours to legacy")
    arguments = parser.parse_args(argv)
    convert, suffix = (reverse, ".pth") if arguments.reverse else (forward, ".safetensors")
    if arguments.out.suffix != suffix:
        parser.error(f"--out {arguments.out}: the file's format is {suffix}; name it so")
    try:
        content, left_out = convert(arguments.source)
        write_atomically(arguments.out, content)
    except (ConfigError, CheckpointError, ValueError, OSError) as error:
        print(f"convert_legacy: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(f"{arguments.out}: written; left out: {', '.join(sorted(left_out)) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
