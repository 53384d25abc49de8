"""The teacher's backbone of a run as a file for other libraries, in the layout of dinov2's published weights.

    python tools/export.py results/runs/single/1a2b3c4d5e/seed0 --format safetensors

`safetensors` and `torch` (a .pth of tensors alone) hold the same flat state dict, which dinov2's own models, this
package's VisionTransformer and dinoswap-eval load. The metadata of a safetensors file says what tensors cannot: the
number of heads and how positions are resampled, so that dinoswap-eval judges the very network of the run.
"""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save
from torch import Tensor

from dinoswap.build import initial_backbone
from dinoswap.config.schema import ConfigError
from dinoswap.config.settings import check
from dinoswap.evaluate import Subject
from dinoswap.files.writing import write_atomically
from dinoswap.nn.block import Block
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights import dinov2
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


def describe(backbone: VisionTransformer) -> str:
    """What the file does not say about itself."""
    first = cast(Block, backbone.blocks[0])
    rows, columns = backbone.grid
    return (
        f"width {backbone.embed_dim}, depth {len(backbone.blocks)}, {first.attn.num_heads} heads, "
        f"{backbone.prefix - 1} registers, patches of {backbone.patch_size} px, positions {rows} x {columns}, "
        f"interpolate_offset {backbone.interpolate_offset}, interpolate_antialias {backbone.interpolate_antialias}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder (its newest checkpoint) or checkpoint folder")
    parser.add_argument("--format", choices=list(FORMATS), default="safetensors")
    parser.add_argument(
        "--block-chunks",
        type=int,
        default=0,
        metavar="N",
        help="name blocks as in a dinov2 model with block_chunks=N (0: plainly)",
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: RUN/backbone.safetensors or .pth")
    arguments = parser.parse_args(argv)
    suffix, encode = FORMATS[arguments.format]
    try:
        subject = Subject.find(arguments.run)
        backbone = teacher_backbone(subject)
        out = arguments.out or (subject.run or Path()) / f"backbone{suffix}"
        weights = dinov2.export(backbone, arguments.block_chunks)
        write_atomically(out, encode(weights, dinov2.metadata(backbone)))
    except (ConfigError, CheckpointError, ValueError, OSError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(f"{out}: {describe(backbone)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
