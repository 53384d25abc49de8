"""Finds the file with a teacher's weights."""

from pathlib import Path

from dinoswap.files.weights import WEIGHTS, weights_in


def weight_file(place: str, name: str = "ckpt_path") -> Path:
    """Returns the file at `place`, or `model.safetensors` in that folder. Raises ValueError where there is none; `name`
    is the config key in the message."""
    path = weights_in(Path(place))
    if not path.is_file():
        raise ValueError(f"{name}={place}: no such file; give {WEIGHTS}, or the folder that it lies in")
    return path
