"""Finds the file with a network's weights, also in a folder of the Hugging Face hub, and reads what stands beside them.

Large networks are in several files there, with an index that lists them: it is the weight file then, and its parts hold
the tensors. Nothing here imports torch, which takes seconds, so that a command can say what it will do before.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dinoswap.files.digest import sha256

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Names of the weight file in every such folder, and of the index of its parts where there are several."""
CONFIG, PREPARATION = "config.json", "preprocessor_config.json"
"""Names of the files that lie beside it: the network, and how images are prepared for it."""


def weights_in(path: Path) -> Path:
    """Returns `model.safetensors` in the folder `path`, or the index of its parts where that alone is there, and `path`
    itself where it is no folder."""
    if not path.is_dir():
        return path
    single, index = path / WEIGHTS, path / INDEX
    return index if index.is_file() and not single.is_file() else single


def weight_file(place: str, key: str = "ckpt_path") -> Path:
    """Returns the weight file at `place`, see `weights_in`. Raises ValueError where there is none, or a part of it is
    missing; `key` is the config key in the message."""
    path = weights_in(Path(place))
    if not path.is_file():
        raise ValueError(f"{key}={place}: no such file; give {WEIGHTS}, or the folder that it lies in")
    try:
        parts_of(path)
    except ValueError as error:
        raise ValueError(f"{key}={place}: {error}") from error
    return path


def parts_of(path: Path) -> list[Path]:
    """Returns the files that the tensors of a weight file are in: itself, or the parts that an index lists. Raises
    ValueError as `part_of_tensors` does."""
    return sorted(set(part_of_tensors(path).values())) if path.name == INDEX else [path]


def part_of_tensors(index: Path) -> dict[str, Path]:
    """Returns the file that each tensor is in, by its name, as an index says. Raises ValueError where it cannot be
    read, and where it lists a file that is missing, of another format, or outside of its folder."""
    named = json_beside(index, INDEX).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise ValueError(f"{index}: has no weight_map, from tensors to files; give it as it was written")
    for name in sorted(set(named.values())):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{index}: lists {name}, which is outside of its folder; give it as it was written")
        if not name.endswith(".safetensors"):
            raise ValueError(f"{index}: lists {name}, which is no safetensors file; write the model again")
        if not (index.parent / name).is_file():
            raise ValueError(f"{index}: lists {name}, which is missing; put it beside the others")
    return {tensor: index.parent / name for tensor, name in named.items()}


def digest_of(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a weight file: that of its bytes or, of an index, one of all parts, whatever
    their names and order. Raises OSError or ValueError where one cannot be read."""
    digests = [sha256(part) for part in parts_of(path)]
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest() if path.name == INDEX else digests[0]


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
    metadata, processor = metadata_of(path), json_beside(path, PREPARATION) if path.name in (WEIGHTS, INDEX) else {}
    crop = processor.get("crop_size") or processor.get("size") or {}
    sides = (crop.get("height"), crop.get("width")) if isinstance(crop, dict) else (crop, crop)
    preparation = {
        "mean": metadata.get("mean", processor.get("image_mean")),
        "std": metadata.get("std", processor.get("image_std")),
        "size": metadata.get("img_size", sides if all(sides) else None),
    }
    return {name: value for name, value in preparation.items() if value is not None}


def _value(text: str) -> Any:
    """Returns a value of metadata, which is JSON or else text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
