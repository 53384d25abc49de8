"""Reading the parity fixtures: numbers that the official or the legacy code produced (README.md of each folder)."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

OFFICIAL = Path(__file__).parent / "parity" / "official"
LEGACY = Path(__file__).parent / "parity" / "legacy"
DA3 = Path(__file__).parent / "parity" / "da3"
DINOV3 = Path(__file__).parent / "parity" / "dinov3"
IBOT = Path(__file__).parent / "parity" / "ibot"


@cache
def load_json(name: str, folder: Path = OFFICIAL) -> Any:
    return json.loads((folder / name).read_text())


class Fixture:
    """An npz whose float16 images come as float32, as its README asks."""

    def __init__(self, name: str, folder: Path = OFFICIAL) -> None:
        self.file = np.load(folder / name, allow_pickle=False)
        self.meta = json.loads(str(self.file["meta_json"]))

    def __getitem__(self, key: str) -> Tensor:
        array = self.file[key]
        return torch.from_numpy(array.astype(np.float32) if array.dtype == np.float16 else array)

    def keys(self, prefix: str = "") -> list[str]:
        return [key for key in self.file.files if key.startswith(prefix)]
