"""Finds the file with a network's weights, also in a folder of the Hugging Face hub."""

from pathlib import Path

WEIGHTS = "model.safetensors"
"""Name of the weight file in every such folder."""


def weights_in(path: Path) -> Path:
    """Returns `model.safetensors` in the folder `path`, and `path` itself where it is no folder."""
    return path / WEIGHTS if path.is_dir() else path


def weight_file(place: str, key: str = "ckpt_path") -> Path:
    """Returns the weight file at `place`, see `weights_in`. Raises ValueError where there is none; `key` is the config
    key in the message."""
    path = weights_in(Path(place))
    if not path.is_file():
        raise ValueError(f"{key}={place}: no such file; give {WEIGHTS}, or the folder that it lies in")
    return path
