"""Writes files that are complete or not there at all."""

import contextlib
import os
import socket
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
