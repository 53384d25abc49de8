"""Finds the file with a network's weights, also in a folder of the Hugging Face hub, and reads what stands beside them.

Nothing here imports torch, which takes seconds, so that a command can say what it will do before.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

WEIGHTS = "model.safetensors"
"""Name of the weight file in every such folder."""
CONFIG, PREPARATION = "config.json", "preprocessor_config.json"
"""Names of the files that lie beside it: the network, and how images are prepared for it."""


def weights_in(path: Path) -> Path:
    """Returns `model.safetensors` in the folder `path`, and `path` itself where it is no folder. Raises ValueError
    where the folder has its weights in several files."""
    if (path / f"{WEIGHTS}.index.json").is_file() and not (path / WEIGHTS).is_file():
        raise ValueError(
            f"{path}: has its weights in several files; write them as one: "
            "AutoModel.from_pretrained(FOLDER).save_pretrained(OTHER, max_shard_size='100GB')"
        )
    return path / WEIGHTS if path.is_dir() else path


def weight_file(place: str, key: str = "ckpt_path") -> Path:
    """Returns the weight file at `place`, see `weights_in`. Raises ValueError where there is none; `key` is the config
    key in the message."""
    path = weights_in(Path(place))
    if not path.is_file():
        raise ValueError(f"{key}={place}: no such file; give {WEIGHTS}, or the folder that it lies in")
    return path


def metadata_of(path: Path) -> dict[str, Any]:
    """Returns the metadata of a safetensors file with the values that are JSON as what they say, {} for another file.
    Raises ValueError where it cannot be read."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="np") as file:
            return {name: _value(text) for name, text in (file.metadata() or {}).items()}
    except SafetensorError as error:
        raise ValueError(f"{path}: its metadata cannot be read ({error}); export it again") from error


def json_beside(path: Path, name: str) -> dict[str, Any]:
    """Returns the content of the JSON file `name` beside a weight file, {} where there is none. Raises ValueError where
    it cannot be read."""
    beside = path.with_name(name)
    try:
        return dict(json.loads(beside.read_text())) if beside.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{beside}: cannot be read ({error}); give it as it was written") from error


def preparation_of(path: Path) -> dict[str, Any]:
    """Returns how images are prepared for the weights at `path`, as far as its metadata or, in a folder of the hub, the
    preprocessor_config.json says: `mean` and `std` of pixels in 0 .. 1, and `size`, the sides in pixels (H, W) of a
    crop. Raises ValueError where these cannot be read."""
    path = weights_in(path)
    metadata, processor = metadata_of(path), json_beside(path, PREPARATION) if path.name == WEIGHTS else {}
    crop = processor.get("crop_size") or processor.get("size") or {}
    sides = (crop.get("height"), crop.get("width")) if isinstance(crop, dict) else (crop, crop)
    said = {
        "mean": metadata.get("mean", processor.get("image_mean")),
        "std": metadata.get("std", processor.get("image_std")),
        "size": metadata.get("img_size", sides if all(sides) else None),
    }
    return {name: value for name, value in said.items() if value is not None}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
