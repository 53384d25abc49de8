"""Reading the parity fixtures: numbers that the official code produced (tests/parity/official/README.md)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

OFFICIAL = Path(__file__).parent / "parity" / "official"


@cache
def load_json(name: str) -> Any:
    return json.loads((OFFICIAL / name).read_text())


class Fixture:
    """An npz whose float16 images come as float32, as its README asks."""

    def __init__(self, name: str) -> None:
        self.file = np.load(OFFICIAL / name, allow_pickle=False)
        self.meta = json.loads(str(self.file["meta_json"]))

    def __getitem__(self, key: str) -> Tensor:
        array = self.file[key]
        return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array)

    def keys(self, prefix: str = "") -> list[str]:
        return [key for key in self.file.files if key.startswith(prefix)]
