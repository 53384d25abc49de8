"""Files that are complete or not there at all, also after a power failure."""

import os
from pathlib import Path
from typing import Any

import pytest

from dinoswap.files.writing import write_atomically


def test_the_content_is_on_the_disk_before_it_has_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, events = tmp_path / "run.json", list[tuple[str, int, int]]()

    def noting(name: str, status: Any) -> None:
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda file, *to: (events.append((name, *status(file))), real(file, *to))[1])

    for name, stat in (("fsync", os.fstat), ("replace", os.stat)):
        noting(name, lambda file, stat=stat: (stat(file).st_ino, stat(file).st_size))
    write_atomically(path, "content")
    assert events == [("fsync", inode := path.stat().st_ino, 7), ("replace", inode, 7)]
