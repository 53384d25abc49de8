"""Writing files that are whole or not there at all."""

import contextlib
import os
from pathlib import Path


def write_atomically(path: Path, content: bytes | str) -> None:
    """Readers see the old content or the new one, never a part, also after a crash. A failed write leaves nothing."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
