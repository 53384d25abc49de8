"""Writes files that are on the disk once a function returns."""

import contextlib
import hashlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replaces the content of a file, so that readers see the old content or the new one, never a part, also after a
    crash, and while processes of any node write the same file. Raises OSError when writing fails; then the old content
    and no temporary file are left."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # it must not hide the reason
            temporary.unlink(missing_ok=True)
        error.filename, error.filename2 = str(path), None  # of an open file the system says no name
        raise


def write_new(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, int | str]:
    """Writes a file that is not there yet and returns its size in bytes, `bytes`, and its SHA-256, `sha256`. They are
    those of the pieces, whatever the disk makes of them. Raises OSError when writing fails, and leaves what was
    written."""
    size, digest = 0, hashlib.sha256()
    with path.open("xb") as file:
        for piece in pieces:
            digest.update(piece)
            size += file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}
