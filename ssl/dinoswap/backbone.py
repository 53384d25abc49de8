"""A backbone to compute features with, read from a run, a checkpoint or a weight file: `dinoswap.load_backbone`."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from dinoswap.build import initial_backbone
from dinoswap.config.schema import ConfigError
from dinoswap.config.sections import loading_settings
from dinoswap.config.settings import check
from dinoswap.evaluation.features import default_resize
from dinoswap.nn.vit import Tokens, VisionTransformer
from dinoswap.nn.weights.layout import infer_architecture
from dinoswap.nn.weights.load import load_backbone
from dinoswap.nn.weights.written import explicit_arguments
from dinoswap.run.record import read_record
from dinoswap.run.subject import Subject

NETWORKS = ("teacher", "student")


class Backbone(nn.Module):
    """A backbone with what has to be known to use it.

    `config` describes it in plain values: the arguments of the network `network`, `mean` and `std` that pixels in
    0 .. 1 are normalised by, `size`, the side in pixels of the crops that it was made for, and its `source`. `notes`
    are sentences on what the file does not say, and on what else a user may not expect.
    """

    def __init__(self, network: VisionTransformer, beside: dict[str, Any], notes: Sequence[str] = ()) -> None:
        """`beside` is what `config` has beside the arguments of the network."""
        super().__init__()
        self.network = network
        explicit = explicit_arguments(network)
        inferred = infer_architecture(network.state_dict(), explicit["num_heads"], tuple(explicit["img_size"]))
        self.config: dict[str, Any] = {**inferred, **explicit, **beside}
        self.notes = list(notes)

    def forward(self, images: Tensor) -> Tokens:
        """Returns the tokens of normalised images [b, 3, H, W], sides multiples of the patch size, after the final
        norm: `cls` [b, D], `registers` [b, R, D] and `patch` [b, N, D], row by row. Raises ValueError for another
        size."""
        tokens: Tokens = self.network(images)
        return tokens

    def intermediate_tokens(self, images: Tensor, blocks: Sequence[int], norm: bool = True) -> list[Tokens]:
        """Returns the tokens of images [b, 3, H, W] after each of these blocks (-1: the last), with or without the
        final norm. Raises ValueError for a block that does not exist."""
        return self.network.intermediate_tokens(images, blocks, norm)

    @property
    def transform(self) -> v2.Compose:
        """The transform of a PIL image, or of uint8 pixels [3, H, W], to what `forward` takes, float32
        [3, size, size]: the shorter side resized, the centre cropped, normalised, as evaluations do."""
        size = self.config["size"]
        return v2.Compose(
            [
                v2.ToImage(),
                v2.RGB(),
                v2.Resize(default_resize(size), v2.InterpolationMode.BICUBIC, antialias=True),
                v2.CenterCrop(size),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(self.config["mean"], self.config["std"]),
            ]
        )


def read(path: str | Path, network: str = "teacher", num_heads: int | None = None) -> Backbone:
    """Returns the backbone at `path`, as `dinoswap.load_backbone` does, and leaves it to the caller to tell its notes.
    Raises ConfigError where there is none, CheckpointError for a damaged checkpoint, and ValueError for a file of
    anything but the weights of one backbone."""
    if network not in NETWORKS:
        raise ConfigError(f"network={network!r}: use {' or '.join(NETWORKS)}")
    subject = Subject.find(Path(path))
    if subject.run is None:
        return _of_file(subject, network, num_heads).eval()
    if num_heads is not None:
        raise ConfigError(f"num_heads={num_heads}: is of weight files; the config of {path} says it, leave it out")
    return _of_run(subject, subject.run / "run.json", network).eval()


def load(path: str | Path, network: str, num_heads: int | None) -> Backbone:
    """Returns the backbone at `path`, and warns of each of its notes."""
    backbone = read(path, network, num_heads)
    for note in backbone.notes:
        warnings.warn(f"{path}: {note}", stacklevel=3)
    return backbone


def _of_run(subject: Subject, record: Path, network: str) -> Backbone:
    """Returns the backbone of a run's teacher or student."""
    check(subject.config)
    checkpoint, prefix = subject.checkpoint, f"{network}.backbone."
    backbone, loading = initial_backbone(subject.config), loading_settings(subject.config)
    weights = checkpoint.state["model"]
    backbone.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    )
    run_id = read_record(record)[0].get("run_id") if record.is_file() else None
    beside = {
        "mean": list(loading.mean),
        "std": list(loading.std),
        "size": subject.config["crops"]["global_size"],
        "source": f"{network} of {'a run' if run_id is None else f'run {run_id}'} after {checkpoint.step} steps",
    }
    return Backbone(backbone, beside | ({} if run_id is None else {"run_id": run_id}))


def _of_file(subject: Subject, network: str, num_heads: int | None) -> Backbone:
    """Returns the backbone in a weight file."""
    if network != NETWORKS[0]:
        raise ConfigError(f"network={network}: {subject.path} holds one network; give a run folder")
    weights, data = load_backbone(subject.path, num_heads), subject.config["data"]
    beside = {"mean": list(data["mean"]), "std": list(data["std"]), "size": weights.crop, "source": subject.path.name}
    assumed_of_images = [
        f"{name} {beside[name]}" for name in ("mean", "std", "size") if name not in weights.preparation
    ]
    assumed = ", ".join([*weights.assumed, *assumed_of_images])
    notes = [*weights.notes, *([f"does not say, so as in published models: {assumed}"] if assumed else [])]
    return Backbone(weights.network(), beside, notes)
