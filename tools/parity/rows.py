"""A row of the parity table, how two arrays are compared, and how a fixture file is read."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

EXACT = 0.0
SCHEDULE = 1e-15
FORWARD = 2e-6  # float32 activations, losses and probabilities, relative to max(1, |value|)
GRADIENT = 2e-5  # float32 gradients, relative to the largest of their tensor


@dataclass
class Row:
    """One compared quantity. `tolerance` bounds `error`: absolute, or relative to a scale where one was given."""

    name: str
    absolute: float
    relative: float
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance  # false for NaN


DRAWN = "its draws are those of the CPU's generator"
"""Why a scenario is left out on another device."""

Scenarios = dict[str, Callable[[], Iterator[Row]]]
"""What a fixture file offers, by name; each computes its rows when called."""


def compare(name: str, ours: Any, theirs: Any, tolerance: float, scale: float | None = None) -> Row:
    """Largest difference of two arrays. With `scale` the error is relative to max(scale, |theirs|)."""
    a, b = (np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=np.float64) for x in (ours, theirs))
    if a.shape != b.shape:
        return Row(f"{name} (shapes {a.shape}, {b.shape})", np.inf, np.inf, np.inf, tolerance)
    if a.size == 0:
        return Row(name, 0.0, 0.0, 0.0, tolerance)
    difference = np.abs(a - b)
    relative = float((difference / np.maximum(np.abs(b), 1e-12)).max())
    error = difference if scale is None else difference / np.maximum(np.abs(b), scale)
    return Row(name, float(difference.max()), relative, float(error.max()), tolerance)


def compare_gradient(name: str, ours: Tensor | None, theirs: Tensor, tolerance: float = GRADIENT) -> Row:
    """Relative to the tensor's largest entry; a gradient that does not exist is one of zeros."""
    ours = torch.zeros_like(theirs) if ours is None else ours
    return compare(name, ours, theirs, tolerance, scale=max(float(theirs.abs().max()), 1e-12))


def worst_of(label: str, rows: Iterable[Row]) -> Iterator[Row]:
    """One row for many tensors: the worst, which it names. None for none."""
    rows = list(rows)
    if rows:
        worst = max(rows, key=lambda row: np.inf if np.isnan(row.error) else row.error)
        yield replace(worst, name=f"{label} of {len(rows)} tensors ({worst.name})")


def is_left_out(path: Path, scenario: str, reasons: Mapping[str, bool]) -> bool:
    """Whether one of the reasons not to compare a scenario applies; it is printed then."""
    for reason in (reason for reason, applies in reasons.items() if applies):
        print(f"{path.stem}:{scenario}: left out: {reason}", file=sys.stderr)
    return any(reasons.values())


def plain_name(name: str) -> str:
    """A parameter's name without the chunk index that a model built with block_chunks puts in."""
    return re.sub(r"blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)


def draws_otherwise() -> bool:
    """Whether the generator of torch's default device makes other draws of a seed than that of the CPU, with which
    fixtures were made."""
    return torch.get_default_device().type != "cpu"


def placed(array: np.ndarray) -> Tensor:
    """An array as a tensor on torch's default device."""
    return torch.from_numpy(array).to(torch.get_default_device())


class Fixture:
    """An npz with its meta data. Tensors are placed on torch's default device."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = np.load(path, allow_pickle=False)
        self.meta: dict[str, Any] = json.loads(str(self.file["meta_json"]))

    def __contains__(self, key: str) -> bool:
        return key in self.file.files

    def __getitem__(self, key: str) -> Tensor:
        """Images, stored as float16, come as float32."""
        array = np.asarray(self.file[key])
        return placed(array.astype(np.float32) if array.dtype == np.float16 else array)

    def below(self, prefix: str) -> dict[str, Tensor]:
        """What is stored under a prefix, by the rest of its name."""
        return {key.removeprefix(prefix): self[key] for key in self.file.files if key.startswith(prefix)}
