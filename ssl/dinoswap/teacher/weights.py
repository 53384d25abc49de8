"""Finds the file with a teacher's weights."""

from pathlib import Path

WEIGHTS = "model.safetensors"
"""Name of the weight file in every folder of the Hugging Face hub."""


def weight_file(place: str, name: str = "ckpt_path") -> Path:
    """Returns the file at `place`, or `model.safetensors` in that folder. Raises ValueError where there is none; `name`
    is the config key in the message."""
    path = Path(place)
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{name}={place}: no such file; give {WEIGHTS}, or the folder that it lies in")
    return path
