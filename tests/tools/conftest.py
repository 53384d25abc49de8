"""tools/check_parity.py as its tests call it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from small_models import load_tool


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str]]]:
    """(exit status, last line) of a call in this process: check(kind, folder, name=..., scenario=...)."""
    main = load_tool("check_parity").main

    def call(kind: str, folder: Path, **options: str) -> tuple[int, str]:
        status = main([kind, "--dir", str(folder), *(f"--{name}={value}" for name, value in options.items())])
        return status, (capsys.readouterr().out.strip().splitlines() or [""])[-1]

    yield call
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Grows by (name of the file, key) with each array that is read of an npz."""
    found: set[tuple[str, str]] = set()
    original = np.lib.npyio.NpzFile.__getitem__

    def noted(self: Any, key: str) -> Any:
        found.add((Path(self.zip.filename or self.fid.name).stem, key))
        return original(self, key)

    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", noted)
    return found
