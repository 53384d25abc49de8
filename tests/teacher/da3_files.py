"""Official files in small: built, broken and refused."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from da3_fixture import FOLDER, MONO, TINY, arrays, description, weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from dinoswap.teacher.base import Teacher
from dinoswap.teacher.depth_anything.variants import VARIANTS
from options import build_option

File = dict[str, Tensor]
TINY_FILE = FOLDER / "da3_tiny.safetensors"
IMAGES = arrays("da3_tiny")["in_70x42"]


def build(path: Path | str, **settings: Any) -> Teacher:
    built: Teacher = build_option("teacher/native", ckpt_path=str(path), **settings)
    return built.requires_grad_(False).eval()


def tiny() -> File:
    return load_file(TINY_FILE)


def saved(folder: Path, tensors: File, config: Any = None) -> Path:
    """A folder as it is on the hub."""
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def nested(folder: Path) -> Path:
    """Both tiny networks in one file, with tensors of a head and of a camera decoder."""
    both = {VARIANTS["nested_giant"].prefix + name: value for name, value in weights("da3_tiny").items()}
    both |= {VARIANTS["nested_metric"].prefix + name: value for name, value in weights("da3_tiny_mono").items()}
    both |= {"model.da3.cam_dec.backbone.0.weight": torch.ones(2), "model.da3_metric.head.norm.weight": torch.ones(2)}
    net = description("da3_tiny")["official_like_config"]["config"]["net"]
    mono = description("da3_tiny_mono")["official_like_config"]["config"]["net"]
    config = {"anyview": {"net": net}, "metric": {"net": mono}}
    return saved(folder, both, {"model_name": "da3nested-giant-large", "config": config})


def as_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the fixtures' networks were released."""
    for names, spec in ((("small", "nested_giant"), TINY), (("mono", "metric", "nested_metric"), MONO)):
        for name in names:
            monkeypatch.setitem(VARIANTS, name, replace(VARIANTS[name], architecture=spec))


@contextmanager
def refused(*parts: str) -> Iterator[None]:
    with pytest.raises(ValueError) as caught:
        yield
    for part in parts:
        assert part in str(caught.value)
