"""Computes SHA-256 of files that are too large to be read more often than needed, such as weights.

A computed digest is kept in the user's cache folder, with the size, the modification and change times and the inode of
the file. Another file in its place, or the same one written anew, is read again.
"""

import hashlib
import json
import os
import time
from pathlib import Path

from dinoswap.files.writing import write_atomically

LARGE = 32 * 2**20
"""The size in bytes from which on the digest of a file is cached."""
SETTLED_SECONDS = 2.0
"""The age in seconds from which on the digest of a file is cached. A file that was written just now can be written
again without a change of its modification time, whose resolution is limited."""


def sha256(path: Path) -> str:
    """Returns the hexadecimal digest of a file. Raises OSError when the file cannot be read."""
    status = path.stat()
    stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    place = _place(path)
    if status.st_size >= LARGE and (record := _read(place)) and record.get("stamp") == stamp:
        return str(record["sha256"])
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if status.st_size >= LARGE and time.time() - status.st_mtime > SETTLED_SECONDS:
        _write(place, {"path": str(path.resolve()), "stamp": stamp, "sha256": digest})
    return digest


def _place(path: Path) -> Path:
    """Returns the cache file of the digest of `path`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.blake2b(os.fsencode(path.resolve()), digest_size=16).hexdigest()
    return cache / "dinoswap" / "digests" / f"{name}.json"


def _read(place: Path) -> dict[str, object]:
    """Returns the record in a cache file, or an empty one when there is none that can be read."""
    try:
        record = json.loads(place.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write(place: Path, record: dict[str, object]) -> None:
    """Writes a record to a cache file, or does nothing when the cache folder cannot be written."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, json.dumps(record) + "\n")
    except OSError:
        return
