"""Bookkeeping of images that could not be decoded: a list in the run folder and a budget."""

from collections.abc import Iterable
from pathlib import Path

from dinoswap.data.filesystem import write_atomically
from dinoswap.data.images import Images

_SHOWN = 20


class TooManyCorrupt(Exception):
    """The data set is too broken to train on; the message lists the images."""


class CorruptLog:
    """Keeps `corrupt.txt` of a run: a line "name <tab> reason" per image, in the order found.

    Lines already there (from before a resume) are kept and count, and no image is listed twice.
    """

    def __init__(self, folder: Path, images: Images, max_corrupt_fraction: float) -> None:
        if not 0 <= max_corrupt_fraction <= 1:
            raise ValueError(f"data.max_corrupt_fraction={max_corrupt_fraction}: it is a share of the images, 0 to 1")
        self.path = folder / "corrupt.txt"
        self.images = images
        self.budget = max_corrupt_fraction * len(images)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.reasons = dict(line.split("\t", 1) for line in lines)

    def add(self, corrupt: Iterable[tuple[int, str]]) -> None:
        """(row, reason) of images that were replaced. Raises TooManyCorrupt beyond the budget."""
        found = {_one_line(self.images.name(row)): _one_line(reason) for row, reason in corrupt}
        if found.keys() <= self.reasons.keys():
            return
        self.reasons |= found
        text = "".join(f"{name}\t{reason}\n" for name, reason in self.reasons.items())
        write_atomically(self.path, text.encode())
        if len(self.reasons) > self.budget:
            raise TooManyCorrupt(self._verdict())

    def _verdict(self) -> str:
        listed = [f"  {name}: {reason}" for name, reason in self.reasons.items()]
        more = [f"  and {len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else []
        return "\n".join(
            [
                f"{len(listed)} of {len(self.images)} images could not be decoded, more than "
                f"data.max_corrupt_fraction allows ({self.budget:g}). Repair or remove them, or raise the fraction. "
                f"All of them are in {self.path}:",
                *listed[:_SHOWN],
                *more,
            ]
        )


def _one_line(text: str) -> str:
    return " ".join(text.split())
