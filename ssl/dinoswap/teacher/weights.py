"""Finds the file with a teacher's weights."""

from pathlib import Path

WEIGHTS = "model.safetensors"
"""Name of the weight file in every folder of the Hugging Face hub."""


def weight_file(ckpt_path: str) -> Path:
    """Returns the file at `ckpt_path`, or `model.safetensors` in that folder. Raises ValueError where there is none."""
    path = Path(ckpt_path)
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        raise ValueError(f"ckpt_path={ckpt_path}: no such file; give {WEIGHTS}, or the folder that it lies in")
    return path
