"""Reads image files in a zip file by offset: nothing is unpacked, and forked workers share no open file.

The directory at the end of the file says for each member where it is, how long it is, how it is packed, and its CRC-32.
Members that are stored or deflated are read; folders inside the zip file mean what they mean on a disk.
"""

import stat
import zipfile
import zlib
from collections import Counter
from pathlib import Path

from dinoswap.data.decoding import CorruptImage, Decoding, extensions
from dinoswap.data.file_tree import suffix_of

_LOCAL_HEADER = 30  # bytes, then a name and extra fields whose lengths stand at 26 and 28
_ENCRYPTED = 0x1


class ZipFiles:
    """Lists the image members of the zip file `root`: `files` are their names, sorted; `ignored` counts all other
    members, by kind. Raises ValueError for a file that is no zip file, or a damaged one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ignored: Counter[str] = Counter()
        self._members: dict[str, zipfile.ZipInfo] = {}
        try:
            with zipfile.ZipFile(root) as archive:
                members = archive.infolist()
        except (OSError, MemoryError):
            raise
        except Exception as error:  # zipfile lets what its parsing meets through
            raise ValueError(f"is no zip file, or a damaged one ({error}): copy it again, or give a folder") from error
        for member in members:
            if not member.is_dir() and self._readable(member):
                self.ignored["member that another one replaces"] += member.filename in self._members
                self._members[member.filename] = member
        self.ignored = +self.ignored
        self.files = sorted(self._members)

    def _readable(self, member: zipfile.ZipInfo) -> bool:
        """Tells whether a member is an image that can be read; if not, it is counted."""
        suffix = suffix_of(member.filename.rpartition("/")[2])
        if any(name.startswith((".", "__MACOSX")) for name in member.filename.split("/")):
            kind = "hidden file"
        elif stat.S_ISLNK(member.external_attr >> 16):
            kind = "link"
        elif suffix not in extensions():
            kind = suffix or "file without extension"
        elif member.flag_bits & _ENCRYPTED:
            kind = "encrypted file"
        elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            kind = f"file packed by method {member.compress_type}"
        else:
            return True
        self.ignored[kind] += 1
        return False

    def name(self, file: str) -> str:
        return f"{self.root}#{file}"

    def size(self, file: str) -> int:
        return self._members[file].file_size

    def checksum(self, file: str) -> bytes | None:
        """Returns the size and the CRC-32 of a member."""
        member = self._members[file]
        return f"{member.file_size} {member.CRC:08x}".encode()

    def read(self, file: str, decoding: Decoding) -> bytes:
        """Returns the bytes of a member. Raises CorruptImage when it is too large, or its bytes do not match the
        directory."""
        member = self._members[file]
        if member.file_size > decoding.most_bytes:
            raise CorruptImage(self.name(file), f"{member.file_size} bytes; data.max_pixels sets the limit")
        if member.header_offset < 0:
            raise CorruptImage(self.name(file), "the directory of the zip file is damaged")
        with self.root.open("rb") as archive:
            archive.seek(member.header_offset)
            header = archive.read(_LOCAL_HEADER)
            lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            archive.seek(member.header_offset + _LOCAL_HEADER + lengths)
            data = archive.read(member.compress_size)
        if member.compress_type == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.file_size + 1)
            except zlib.error as error:
                raise CorruptImage(self.name(file), str(error)) from error
        if len(data) != member.file_size or zlib.crc32(data) != member.CRC:
            raise CorruptImage(self.name(file), "damaged in the zip file: its checksum is another one")
        return data
