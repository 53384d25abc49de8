"""`dinoswap-export`: writes the backbone of a run, of a checkpoint or of a weight file for other libraries.

`safetensors` is our own layout, with everything that tensors do not show in the metadata, which every network has. The
other formats are those of a code that has such networks. What a format cannot express is refused; what its library
computes a little differently is refused too, unless it is asked for.
"""

import argparse
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoswap import __version__
from dinoswap.config.exit_codes import EXIT_FAILED, EXIT_USAGE
from dinoswap.config.schema import ConfigError
from dinoswap.files.checkpoint_folder import CheckpointError
from dinoswap.files.weights import CONFIG, INDEX, PREPARATION, WEIGHTS, weights_in
from dinoswap.files.writing import write_atomically
from dinoswap.run.subject import config_of

if TYPE_CHECKING:  # these import torch, which the help and a refused command do without
    from torch import Tensor

    from dinoswap.backbone import Backbone

BESIDE = ("mean", "std", "run_id", "source")
"""What the metadata of a safetensors file says beside the network, as far as it is known."""


@dataclass(frozen=True)
class Written:
    """What a format writes: the content of its file, or of each file in its folder by name. `differs` are sentences on
    what the library computes in another way, `says` on how it is used."""

    content: bytes | Mapping[str, bytes | str]
    says: list[str]
    differs: list[str] = field(default_factory=list)


def safetensors(backbone: "Backbone", out: Path, block_chunks: int) -> Written:
    """Returns our own layout."""
    from dinoswap.nn.weights.save import own

    weights, metadata = own(backbone.network, _beside(backbone))
    return Written(_encoded(out, weights, metadata), [f"dinoswap.load_backbone({str(out)!r})"])


def official(layout: str) -> "Format":
    """Returns the format of an official code, `layout` dinov2 or dinov3."""

    def write(backbone: "Backbone", out: Path, block_chunks: int) -> Written:
        from dinoswap.nn.weights.save import exported, in_metadata

        positions = {"dinov2": "a table of positions", "dinov3": "rotary positions"}
        has = "dinov3" if backbone.network.pos_embed is None else "dinov2"
        if has != layout:
            raise ValueError(f"--format {layout}: its models have {positions[layout]}, this network {positions[has]}")
        weights, metadata = exported(backbone.network, block_chunks)
        metadata |= in_metadata(_beside(backbone))
        unseen = {name: value for name, value in metadata.items() if name not in ("format", *BESIDE)}
        says = "its tensors do not show " + ", ".join(f"{name} {value}" for name, value in unseen.items())
        return Written(_encoded(out, weights, metadata), [says])

    return write


def timm(backbone: "Backbone", out: Path, block_chunks: int) -> Written:
    """Returns timm's layout, and says with which arguments timm builds the network."""
    from dinoswap.nn.weights import timm
    from dinoswap.nn.weights.save import in_metadata
    from dinoswap.nn.weights.written import explicit_arguments

    metadata = in_metadata(
        explicit_arguments(backbone.network) | _beside(backbone)
    )  # for whom reads it again; timm does not
    weights, call = timm.export(backbone.network)
    images = f"of images normalised by mean={tuple(backbone.config['mean'])}, std={tuple(backbone.config['std'])}"
    says = [f'{call}, checkpoint_path="{out}")', images]
    return Written(_encoded(out, weights, metadata), says, timm.differs(backbone.network))


def huggingface(backbone: "Backbone", out: Path, block_chunks: int) -> Written:
    """Returns a folder for transformers' AutoModel and AutoImageProcessor."""
    from safetensors.torch import save

    from dinoswap.evaluation.features import default_resize
    from dinoswap.nn.weights import transformers

    weights, config = transformers.export(backbone.network)
    size = backbone.config["size"]
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": default_resize(size)},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": backbone.config["mean"],
        "image_std": backbone.config["std"],
    }
    content: dict[str, bytes | str] = {
        CONFIG: json.dumps(config, indent=2) + "\n",
        PREPARATION: json.dumps(processor, indent=2) + "\n",
        WEIGHTS: save(weights, {"format": "pt"}),
    }
    says = [f'transformers.AutoModel.from_pretrained("{out}")', f'AutoImageProcessor.from_pretrained("{out}")']
    return Written(content, says, transformers.differs(backbone.network))


def onnx(backbone: "Backbone", out: Path, block_chunks: int) -> Written:
    """Returns an ONNX graph, which onnxruntime has been seen to compute."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"--format onnx: needs {error.name}; pip install 'dinoswap[export]'") from error
    from dinoswap.nn import onnx_graph
    from dinoswap.nn.weights.written import rounded_rotation

    network, patch = backbone.network, backbone.network.patch_size
    if onnx_graph.any_size(network):
        size = f"of any size up to {onnx_graph.LARGEST}, in multiples of {patch}"
    else:
        height, width = (side * patch for side in network.grid)
        size = f"of {height} x {width} alone, as model.interpolate_offset is not 0"
    outputs = ", ".join(onnx_graph.Graph(network).outputs)
    says = [f"images [b, 3, H, W] {size}, to {outputs}; checked by onnxruntime"]
    differs = [] if network.pos_embed is not None else rounded_rotation(network)
    return Written(onnx_graph.export(network), says, differs)


Format = Callable[["Backbone", Path, int], Written]
FORMATS: dict[str, tuple[str, Format]] = {  # name -> name of the file or folder, what writes it
    "safetensors": ("backbone.safetensors", safetensors),
    "dinov2": ("backbone.pth", official("dinov2")),
    "dinov3": ("backbone.pth", official("dinov3")),
    "timm": ("backbone-timm.safetensors", timm),
    "huggingface": ("backbone-huggingface", huggingface),
    "onnx": ("backbone.onnx", onnx),
}


def _beside(backbone: "Backbone") -> dict[str, Any]:
    """Returns what the metadata says beside the network."""
    return {name: backbone.config[name] for name in BESIDE if name in backbone.config}


def _encoded(out: Path, weights: "dict[str, Tensor]", metadata: dict[str, str]) -> bytes:
    """Returns the content of a file of tensors, as the end of its name says. Raises ConfigError for another end."""
    if out.suffix == ".safetensors":
        from safetensors.torch import save

        return save(weights, metadata)
    if out.suffix != ".pth":
        raise ConfigError(f"-o {out}: its name has to end in .safetensors or .pth")
    import torch

    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


# --- the command line -------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="dinoswap-export",
        description="The backbone of a run or of a weight file as a file for other libraries.",
        epilog="examples: dinoswap-export results/runs/single/1a2b3c4d5e/seed0 --format huggingface\n"
        "          dinoswap-export dinov2_vits14_pretrain.pth --format timm -o vits14.safetensors",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dinoswap {__version__}")
    parser.add_argument("what", metavar="RUN_OR_FILE", type=Path, help="run, checkpoint, weight file, or folder of one")
    parser.add_argument("--format", choices=list(FORMATS), default="safetensors", help="(safetensors, our own)")
    parser.add_argument("--network", choices=["teacher", "student"], default="teacher", help="of a run (teacher)")
    parser.add_argument("--heads", type=int, metavar="N", help="attention heads of a weight file (its width / 64)")
    parser.add_argument("--block-chunks", type=int, default=0, metavar="N", help="names of a dinov2 model with N (0)")
    parser.add_argument("--allow-differences", action="store_true", help="where a library computes nearly the same")
    parser.add_argument("-o", "--out", type=Path, help="file, or folder of huggingface (in RUN, else here)")
    return parser


def export(arguments: argparse.Namespace) -> None:
    """Writes what the command line asks for and prints how it is used. Raises ConfigError for what the user has to
    change or to allow, and ValueError for a network that the format cannot express."""
    _, run = config_of(arguments.what)
    name, write = FORMATS[arguments.format]
    out = arguments.out or (run or Path()) / name
    places = (out, out / WEIGHTS, out / INDEX)
    if run is None and weights_in(arguments.what).resolve() in map(Path.resolve, places):
        raise ConfigError(f"{out}: is what is to be read; give another place, -o OUT")
    if arguments.block_chunks and arguments.format != "dinov2":
        raise ConfigError(f"--block-chunks {arguments.block_chunks}: is of --format dinov2 alone; leave it out")
    from dinoswap.backbone import read

    backbone = read(arguments.what, arguments.network, arguments.heads)
    for note in backbone.notes:
        print(f"{arguments.what}: {note}", file=sys.stderr)
    written = write(backbone, out, arguments.block_chunks)
    if written.differs and not arguments.allow_differences:
        raise ConfigError(f"{'; '.join(written.differs)}. To write it all the same, add --allow-differences")
    for sentence in written.differs:
        print(f"{out}: {sentence}", file=sys.stderr)
    if isinstance(written.content, Mapping):
        out.mkdir(exist_ok=True)
    files = written.content if isinstance(written.content, Mapping) else {"": written.content}
    for file, content in files.items():
        write_atomically(out / file, content)
    network = backbone.network
    print(
        f"{out}: {backbone.config['source']}: width {network.embed_dim}, depth {len(network.blocks)}, "
        f"{network.prefix - 1} registers, patches of {network.patch_size} px"
    )
    for sentence in written.says:
        print(f"  {sentence}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the console script and returns its exit status: 2 for what the user has to change, 1 for what failed, else
    0."""
    arguments: Any = parser().parse_args(argv)
    try:
        export(arguments)
    except (ConfigError, CheckpointError, ValueError, OSError) as error:
        print(f"dinoswap-export: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
