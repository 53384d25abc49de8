"""The teacher's backbone of a run as a file for other libraries, in the layout of DINOv2's or DINOv3's weights.

    python tools/export.py results/runs/single/1a2b3c4d5e/seed0 --format safetensors
    python tools/export.py weights/dinov3-vits16-of-transformers -o dinov3_vits16.safetensors

A network with a table of positions is written as dinov2's models are, one with rotary positions as dinov3's. A weight
file of another layout, or a folder of transformers, is written likewise. `safetensors` and `torch` (a .pth of tensors
alone) hold the same flat state dict, which these models, this package and dinoswap-eval load. The metadata of a
safetensors file says what tensors cannot, as the number of heads and the epsilon of the norms, so that dinoswap-eval
judges the very network of the run.
"""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from dinoswap.build import initial_backbone
from dinoswap.config.schema import ConfigError
from dinoswap.config.settings import check
from dinoswap.evaluate import Subject
from dinoswap.files.weights import weights_in
from dinoswap.files.writing import write_atomically
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.load import load_backbone
from dinoswap.nn.weights.save import exported
from dinoswap.run.checkpoint import CheckpointError

PREFIX = "teacher.backbone."


def torch_bytes(weights: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


FORMATS: dict[str, tuple[str, Callable[[dict[str, Tensor], dict[str, str]], bytes]]] = {
    "safetensors": (".safetensors", save),
    "torch": (".pth", lambda weights, metadata: torch_bytes(weights)),
}


def teacher_backbone(subject: Subject) -> VisionTransformer:
    weights = subject.checkpoint.state["model"]
    check(subject.config)
    backbone = initial_backbone(subject.config)
    backbone.load_state_dict({k.removeprefix(PREFIX): v for k, v in weights.items() if k.startswith(PREFIX)})
    return backbone


def backbone_at(path: Path) -> tuple[VisionTransformer, Path]:
    """The teacher's of a run or of a checkpoint in it, with the run's folder, or that of a weight file or a folder with
    one, with the working directory: where the export goes."""
    if not weights_in(path).is_file():
        subject = Subject.find(path)
        return teacher_backbone(subject), subject.run or Path()
    weights = load_backbone(path)
    assumed = f"does not say, so as in published models: {', '.join(weights.assumed)}"
    for note in [*weights.notes, *([assumed] if weights.assumed else [])]:
        print(f"{path}: {note}", file=sys.stderr)
    return weights.network(), Path()


def describe(backbone: VisionTransformer, metadata: dict[str, str]) -> str:
    """What the tensors show at a glance, and what they do not show."""
    unseen = ", ".join(f"{name} {value}" for name, value in metadata.items() if name != "format")
    return (
        f"width {backbone.embed_dim}, depth {len(backbone.blocks)}, {backbone.prefix - 1} registers, "
        f"patches of {backbone.patch_size} px, {unseen}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="run folder (its newest checkpoint), checkpoint folder, or weight file",
    )
    parser.add_argument("--format", choices=list(FORMATS), default="safetensors")
    parser.add_argument(
        "--block-chunks",
        type=int,
        default=0,
        metavar="N",
        help="name blocks as in a dinov2 model with block_chunks=N (0: plainly)",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE",
        help="default: RUN/backbone.safetensors or .pth, of a weight file in the working directory",
    )
    arguments = parser.parse_args(argv)
    suffix, encode = FORMATS[arguments.format]
    try:
        backbone, folder = backbone_at(arguments.run)
        out = arguments.out or folder / f"backbone{suffix}"
        if out.resolve() == weights_in(arguments.run).resolve():
            raise ConfigError(f"{out}: is the file to read; give another one, -o FILE")
        weights, metadata = exported(backbone, arguments.block_chunks)
        write_atomically(out, encode(weights, metadata))
    except (ConfigError, CheckpointError, ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(f"{out}: {describe(backbone, metadata)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
