"""Records images that could not be decoded, in a list in the run folder, and limits how many there may be."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from dinoswap.data.images import Images
from dinoswap.distributed import rank
from dinoswap.files.writing import write_atomically

_SHOWN = 20


class TooManyCorrupt(Exception):
    """Raised when too many images cannot be decoded to train on the data set; the message lists them."""


class CorruptLog:
    """Keeps `corrupt.txt` of a run: a line "name <tab> reason" per image, in the order in which they were met.

    Lines from before a resume are kept and count, and no image is listed twice. Every rank writes a file of its own
    (`corrupt.rank1.txt`, ...), since each reads other images; the budget counts all files. `images` are those trained
    on; `others` is the number of images that only evaluations read, which are listed and count as well. Raises
    ValueError when `max_corrupt_fraction` is not between 0 and 1.
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
        """Lists images that were replaced, given as (row, reason). Raises TooManyCorrupt when the images listed by all
        ranks exceed the budget."""
        reasons = {self.images.name(row): reason for row, reason in corrupt}
        if not reasons:
            return
        self.note(reasons)
        listed: dict[str, str] = {}
        for path in sorted(self.folder.glob("corrupt*.txt")):
            listed |= _read(path)
        if len(listed) > self.budget:
            raise TooManyCorrupt(self._verdict(listed))

    def note(self, corrupt: Mapping[str, str]) -> None:
        """Lists images by name, with the reason. The budget is not checked here but by `add`, when training meets the
        next one."""
        reasons = {_one_line(name): _one_line(reason) for name, reason in corrupt.items()}
        if not reasons.keys() <= self.reasons.keys():
            self.reasons |= reasons
            lines = [f"{name}\t{reason}\n" for name, reason in self.reasons.items()]
            write_atomically(self.path, "".join(lines).encode())

    def _verdict(self, listed: dict[str, str]) -> str:
        """Returns the message of TooManyCorrupt."""
        lines = [f"  {name}: {reason}" for name, reason in listed.items()]
        more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
        verdict = (
            f"{len(lines)} of {self.count} images could not be decoded, more than data.max_corrupt_fraction "
            f"allows ({self.budget:g}). Raise it, or repair the images and delete {self.folder}/corrupt*.txt:"
        )
        return "\n".join([verdict, *lines[:_SHOWN], *more])


def _read(path: Path) -> dict[str, str]:
    """Returns the reason of each image in a list. A line without a tab, which somebody else wrote, is a name without a
    reason."""
    parts = (line.partition("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {name: reason for name, _, reason in parts if name}


def _one_line(text: str) -> str:
    """Returns the text without line breaks, and as valid UTF-8 also when it holds a file name that is not."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())
