"""SHA-256 of files that are too large to be read more often than needed, such as weights.

What has been computed is kept in the user's cache folder, with the size, the times of change and the inode of the file
it was computed of: another file in its place, or the same one written anew, is read again.
"""

import hashlib
import json
import os
import time
from pathlib import Path

from dinoswap.files.writing import write_atomically

LARGE = 32 * 2**20
"""Bytes from which on a digest is remembered."""
SETTLED_SECONDS = 2.0
"""A file that was written just now can be written again within what its clock tells apart."""


def sha256(path: Path) -> str:
    """In hexadecimal. Raises OSError where the file cannot be read."""
    status = path.stat()
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    place = _place(path)
    if status.st_size >= LARGE and (known := _read(place)) and known.get("stamp") == stamp:
        return str(known["sha256"])
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if status.st_size >= LARGE and time.time() - status.st_mtime > SETTLED_SECONDS:
        _write(place, {"path": str(path.resolve()), "stamp": stamp, "sha256": found})
    return found


def _place(path: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=16).hexdigest()
    return cache / "dinoswap" / "digests" / f"{name}.json"


def _read(place: Path) -> dict[str, object]:
    """Empty where nothing is known."""
    try:
        known = json.loads(place.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(place: Path, known: dict[str, object]) -> None:
    """Without a folder to write to nothing is remembered."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, json.dumps(known) + "\n")
    except OSError:
        return
