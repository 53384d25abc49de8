"""Bookkeeping of images that could not be decoded: a list in the run folder and a budget."""

from collections.abc import Iterable
from pathlib import Path

from dinoswap.data.images import Images
from dinoswap.distributed import rank
from dinoswap.files import write_atomically

_SHOWN = 20


class TooManyCorrupt(Exception):
    """The data set is too broken to train on; the message lists the images."""


class CorruptLog:
    """Keeps `corrupt.txt` of a run: a line "name <tab> reason" per image, in the order found.

    Lines from before a resume are kept and count, and no image is listed twice. Every rank writes a file of its
    own (`corrupt.rank1.txt`, ...), since each sees other images; the budget counts all of them.
    """

    def __init__(self, folder: Path, images: Images, max_corrupt_fraction: float) -> None:
        if not 0 <= max_corrupt_fraction <= 1:
            raise ValueError(f"data.max_corrupt_fraction={max_corrupt_fraction}: it is a share of the images, 0 to 1")
        self.folder = folder
        self.path = folder / (f"corrupt.rank{rank()}.txt" if rank() else "corrupt.txt")
        self.images = images
        self.budget = max_corrupt_fraction * len(images)
        self.reasons = _read(self.path) if self.path.exists() else {}

    def add(self, corrupt: Iterable[tuple[int, str]]) -> None:
        """(row, reason) of images that were replaced. Raises TooManyCorrupt beyond the budget."""
        found = {_one_line(self.images.name(row)): _one_line(reason) for row, reason in corrupt}
        if not found:
            return
        if not found.keys() <= self.reasons.keys():
            self.reasons |= found
            lines = [f"{name}\t{reason}\n" for name, reason in self.reasons.items()]
            write_atomically(self.path, "".join(lines).encode())
        listed: dict[str, str] = {}
        for path in sorted(self.folder.glob("corrupt*.txt")):
            listed |= _read(path)
        if len(listed) > self.budget:
            raise TooManyCorrupt(self._verdict(listed))

    def _verdict(self, listed: dict[str, str]) -> str:
        lines = [f"  {name}: {reason}" for name, reason in listed.items()]
        more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        verdict = (
            f"{len(lines)} of {len(self.images)} images could not be decoded, more than data.max_corrupt_fraction "
            f"allows ({self.budget:g}). Raise it, or repair the images and delete {self.folder}/corrupt*.txt:"
        )
        return "\n".join([verdict, *lines[:_SHOWN], *more])


def _read(path: Path) -> dict[str, str]:
    return dict(line.split("\t", 1) for line in path.read_text(encoding="utf-8").splitlines())


def _one_line(text: str) -> str:
    """Without line breaks, and in UTF-8 also where a file name is not."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())
