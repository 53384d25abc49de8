"""Finds the file with a network's weights in a folder of the Hugging Face hub."""

from pathlib import Path

WEIGHTS = "model.safetensors"
"""Name of the weight file in every such folder."""


def weights_in(path: Path) -> Path:
    """Returns `model.safetensors` in the folder `path`, and `path` itself where it is no folder."""
    return path / WEIGHTS if path.is_dir() else path
