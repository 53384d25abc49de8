"""How far features are from those of other codes: weights of theirs read by us, and weights of ours read by them.

    python tools/feature_differences.py -o results/reference/features

Small networks with random weights, in float32, on images of the size that the network is for, of another size, and of
unequal sides. A difference is the largest of all tokens behind the final norm, in units of the largest magnitude.
Official codes are not installed: their tokens are those in tests/parity. Writes features.json and README.md.
"""

import argparse
import importlib.metadata
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dinoswap.files.writing import write_atomically
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.load import load_backbone
from dinoswap.run.provenance import in_words, measured_on
from parity import libraries
from parity.libraries import Features
from parity.rows import Fixture

FIXTURES = Path(__file__).parents[1] / "tests" / "parity"
LIBRARIES = ("timm", "transformers", "onnxruntime")
GOAL = 1e-5
Size = tuple[int, int]
OF_32: list[Size] = [(32, 32), (64, 64), (48, 24)]
OF_64: list[Size] = [(64, 64), (112, 112), (64, 96)]
OF_224: list[Size] = [(224, 224), (112, 112), (224, 160)]
"""The size that a network is for, another one, and one of unequal sides."""


@dataclass(frozen=True)
class Pair:
    """A network in two codes. `build` writes its files into an empty folder, and returns the features of both, ours
    first."""

    network: str
    layout: str  # of the file in between
    sizes: Sequence[Size]
    build: Callable[[Path], tuple[Features, Features]]
    images: Callable[[Size], Tensor] = libraries.images

    @torch.no_grad()
    def differences(self) -> dict[str, float]:
        """Returns the difference of the features by size of the images. The networks are the same every time."""
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = self.build(Path(folder))
            return {
                in_pixels(size): difference(*(network(self.images(size)) for network in (ours, theirs)))
                for size in self.sizes
            }


def difference(computed: Tensor, expected: Tensor) -> float:
    """Returns the largest difference in units of the largest magnitude."""
    return float((computed - expected).abs().max() / expected.abs().max())


def in_pixels(size: Size) -> str:
    """Returns a size in pixels as it stands in the table."""
    return f"{size[0]} x {size[1]}"


def suffix_of(arguments: Mapping[str, Any]) -> str:
    """Returns the arguments as they follow the name of a model in a table: ", name=value" for each."""
    return "".join(f", {name}={value}" for name, value in arguments.items())


# --- theirs, which we read --------------------------------------------------------------------------------------------


TOKENS = ("x_norm_clstoken", "x_norm_regtokens", "x_storage_tokens", "x_norm_patchtokens")
IN_FIXTURES = {"single32": "in/x32", "single16": "in/x16", "single_rect": "in/xrect_24x40"}


def stored_pair(
    network: str,
    layout: str,
    state: Mapping[str, Tensor],
    stated: dict[str, str],
    samples: Sequence[tuple[Tensor, Tensor]],
) -> Pair:
    """Returns the pair of an official code whose weights and tokens were stored: `samples` are images, each with the
    tokens [B, T, D] that the code computed of them. `stated` is what the metadata of the file says."""
    images = {(crops.shape[2], crops.shape[3]): crops for crops, _ in samples}
    tokens = {(crops.shape[2], crops.shape[3]): expected for crops, expected in samples}

    def build(folder: Path) -> tuple[Features, Features]:
        save_file(dict(state), folder / "weights.safetensors", stated)
        backbone = load_backbone(folder / "weights.safetensors").network().eval()
        return libraries.ours(backbone), lambda crops: tokens[crops.shape[2], crops.shape[3]]

    return Pair(network, layout, list(images), build, images.__getitem__)


def of_official_codes() -> list[Pair]:
    """Returns the pairs of the official codes, whose weights and tokens are in the fixtures."""
    pairs = []
    resampled = {"num_heads": "3", "interpolate_offset": "0.1", "interpolate_antialias": "false"}
    for code, folder, stated in (("dinov2", "official", resampled), ("dinov3", "dinov3", {"norm_eps": "1e-6"})):
        file = Fixture(FIXTURES / folder / f"vit_{code}.npz")
        samples = []
        for section, images in IN_FIXTURES.items():
            tokens = [file[key] for name in TOKENS if (key := f"{section}/{name}") in file]
            tokens[0] = tokens[0][:, None]  # [B, D] -> [B, 1, D]
            samples.append((file[images], torch.cat(tokens, dim=1)))
        name = f"facebookresearch/{code} @ {file.meta['commits'][code][:7]}"
        pairs.append(stored_pair(name, code, file.below("sd/"), stated, samples))
    file = Fixture(FIXTURES / "ibot" / "vit_ibot.npz")
    for code, name in (("dino", "facebookresearch/dino @ 04c0ad9"), ("ibot", "bytedance/ibot @ c24f870")):
        samples = [(file[f"in/{size}"], file[f"{code}/{size}"]) for size in ("32x32", "48x48", "24x40")]
        pairs.append(stored_pair(name, code, file.below(f"{code}/sd/"), {"num_heads": "2"}, samples))
    return pairs


def of_timm(name: str, arguments: dict[str, Any], sizes: Sequence[Size]) -> Pair:
    """Returns the pair of a network of timm and ours with its weights."""

    def build(folder: Path) -> tuple[Features, Features]:
        theirs = libraries.of_timm(name, arguments, folder / "timm.safetensors")
        return libraries.ours(load_backbone(folder / "timm.safetensors").network().eval()), theirs

    return Pair(f"timm {name}", "timm", sizes, build)


def of_transformers(model: str, changes: dict[str, Any], sizes: Sequence[Size]) -> Pair:
    """Returns the pair of a model of transformers and ours with its weights."""

    def build(folder: Path) -> tuple[Features, Features]:
        theirs = libraries.features_of(libraries.folder_of_transformers(model, changes, folder))
        return libraries.ours(load_backbone(folder).network().eval()), theirs

    beside = {name: value for name, value in changes.items() if name not in libraries.SMALL}
    return Pair(f"transformers {model}Model{suffix_of(beside)}", "transformers", sizes, build)


def read_by_us() -> list[Pair]:
    """Returns all pairs in which we read weights of another code."""
    return [
        *of_official_codes(),
        *(of_timm(*model, OF_224) for model in libraries.TIMM_ROTARY),
        *(of_timm(*model, OF_64) for model in libraries.TIMM_WITH_TABLE),
        *(of_transformers(*model, OF_64) for model in libraries.TRANSFORMERS_ROTARY),
        *(of_transformers(*model, OF_64) for model in libraries.TRANSFORMERS_WITH_TABLE),
    ]


# --- ours, which they read --------------------------------------------------------------------------------------------


def exported(layout: str, name: str, changes: list[str], any_size: bool) -> Pair:
    """Returns the pair of a network of ours and the library that reads its export."""

    def build(folder: Path) -> tuple[Features, Features]:
        backbone = libraries.configured_file(changes, folder / "ours.safetensors")
        out = folder / {"timm": "timm.safetensors", "huggingface": "folder", "onnx": "graph.onnx"}[layout]
        return libraries.ours(backbone), libraries.read_by_library(folder / "ours.safetensors", layout, out)

    return Pair(f"{name}: {' '.join(changes)}", layout, OF_32 if any_size else OF_32[:1], build)


def in_official_layout(layout: str, model: str, arguments: dict[str, Any], ours: dict[str, Any]) -> Pair:
    """Returns the pair of a network of ours and timm, which reads its export by the filter of official files."""

    def build(folder: Path) -> tuple[Features, Features]:
        backbone = libraries.own_file(VisionTransformer(**ours), folder / "ours.safetensors")
        libraries.exported(folder / "ours.safetensors", layout, folder / "official.pth")
        tensors = torch.load(folder / "official.pth", weights_only=True)
        return libraries.ours(backbone), libraries.read_by_timm(layout, tensors, model, arguments)

    sizes = OF_64 if layout == "dinov2" else OF_224
    return Pair(f"for timm {model}, by its filter of official files", layout, sizes, build)


def written_by_us() -> list[Pair]:
    """Returns all pairs in which another code reads weights of ours."""
    layouts = ("timm", "huggingface", "onnx")
    return [
        *(in_official_layout(*model) for model in libraries.OFFICIAL_LAYOUTS),
        *(exported(layout, *network) for layout in layouts for network in libraries.WRITTEN),
    ]


# --- the page ---------------------------------------------------------------------------------------------------------

PAIRS: dict[str, Callable[[], list[Pair]]] = {
    "Weights of theirs, read by us": read_by_us,
    "Weights of ours, read by them": written_by_us,
}


def measure(pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Returns the differences of each pair as a row of features.json."""
    return [{"network": pair.network, "layout": pair.layout, "differences": pair.differences()} for pair in pairs]


def page(measured: Mapping[str, Any]) -> str:
    """Returns the README.md of what features.json holds."""
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    largest = max(
        value for rows in measured["tables"].values() for row in rows for value in row["differences"].values()
    )
    lines = [
        "# Features of other codes",
        "",
        f"`{measured['command']}` on {in_words(measured['machine'])}, {versions}.",
        "Small networks with random weights, in float32, on images of the size that the network is for, of another",
        "one, and of unequal sides: the largest difference of tokens behind the final norm, in units of the largest",
        f"magnitude. The largest of all is {largest:.1e}; the goal is {GOAL:.0e}. Where a cell is empty the library",
        "takes no such images or computes them differently, which `dinoswap-export` says and refuses unless asked for.",
    ]
    for title, rows in measured["tables"].items():
        lines += [
            "",
            f"## {title}",
            "",
            "| network | layout | its size | another | unequal sides |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            cells = [f"{value:.1e} ({size})" for size, value in row["differences"].items()]
            cells += [""] * (3 - len(cells))
            lines.append(f"| {row['network']} | {row['layout']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for features.json and README.md")
    arguments = parser.parse_args(argv)
    measured = {
        "command": shlex.join(["python", "tools/feature_differences.py", *(sys.argv[1:] if argv is None else argv)]),
        "machine": measured_on(),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "tables": {title: measure(pairs()) for title, pairs in PAIRS.items()},
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.output / "features.json", json.dumps(measured, indent=2) + "\n")
    write_atomically(arguments.output / "README.md", page(measured))
    print(page(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
