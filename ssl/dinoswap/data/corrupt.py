"""Bookkeeping of images that could not be decoded: a list in the run folder and a budget."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from dinoswap.data.images import Images
from dinoswap.distributed import rank
from dinoswap.files.writing import write_atomically

_SHOWN = 20


class TooManyCorrupt(Exception):
    """The data set is too broken to train on; the message lists the images."""


class CorruptLog:
    """Keeps `corrupt.txt` of a run: a line "name <tab> reason" per image, in the order found.

    Lines from before a resume are kept and count, and no image is listed twice. Every rank writes a file of its
    own (`corrupt.rank1.txt`, ...), since each sees other images; the budget counts all of them. `images` are those
    trained on; `others`, that evaluations meet beside them, are listed and count as well.
    """

    def __init__(self, folder: Path, images: Images, max_corrupt_fraction: float, others: int = 0) -> None:
        if not 0 <= max_corrupt_fraction <= 1:
            raise ValueError(f"data.max_corrupt_fraction={max_corrupt_fraction}: it is a share of the images, 0 to 1")
        self.folder = folder
        self.path = folder / (f"corrupt.rank{rank()}.txt" if rank() else "corrupt.txt")
        self.images = images
        self.count = len(images) + others
        self.budget = max_corrupt_fraction * self.count
        self.reasons = _read(self.path) if self.path.exists() else {}

    def add(self, corrupt: Iterable[tuple[int, str]]) -> None:
        """(row, reason) of images that were replaced. Raises TooManyCorrupt beyond the budget."""
        found = {self.images.name(row): reason for row, reason in corrupt}
        if not found:
            return
        self.note(found)
        listed: dict[str, str] = {}
        for path in sorted(self.folder.glob("corrupt*.txt")):
            listed |= _read(path)
        if len(listed) > self.budget:
            raise TooManyCorrupt(self._verdict(listed))

    def note(self, corrupt: Mapping[str, str]) -> None:
        """Lists images by name, with the reason; whether they are too many is decided when the training meets one."""
        found = {_one_line(name): _one_line(reason) for name, reason in corrupt.items()}
        if not found.keys() <= self.reasons.keys():
            self.reasons |= found
            lines = [f"{name}\t{reason}\n" for name, reason in self.reasons.items()]
            write_atomically(self.path, "".join(lines).encode())

    def _verdict(self, listed: dict[str, str]) -> str:
        lines = [f"  {name}: {reason}" for name, reason in listed.items()]
        more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        verdict = (
            f"{len(lines)} of {self.count} images could not be decoded, more than data.max_corrupt_fraction "
            f"allows ({self.budget:g}). Raise it, or repair the images and delete {self.folder}/corrupt*.txt:"
        )
        return "\n".join([verdict, *lines[:_SHOWN], *more])


def _read(path: Path) -> dict[str, str]:
    """A line without a tab, which somebody else wrote, is a name without a reason."""
    parts = (line.partition("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {name: reason for name, _, reason in parts if name}


def _one_line(text: str) -> str:
    """Without line breaks, and in UTF-8 also where a file name is not."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())
