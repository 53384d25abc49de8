"""Shows the progress of a run: a live line on a terminal, plain lines elsewhere, and plain lines in log.txt.

All numbers are already on the host. `update` is called every step and costs microseconds; `report` is called when
numbers have been fetched from the device anyway. Plain lines go through `logging`, as those of all other modules.
"""

import logging
import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from rich import get_console
from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.progress_bar import ProgressBar
from rich.table import Table

from dinoswap.distributed import is_main, rank

WINDOW = 100  # steps over which rates are taken
REFRESH_SECONDS = 0.5

_log = logging.getLogger(__name__)


class Display:
    """Progress up to `total_steps` of `images_per_step` images each, over all ranks.

    A plain line is logged at the first report, then every `seconds`, at evaluations and at the end. A context
    manager: whatever happens inside, the terminal is left as it was found.
    """

    def __init__(
        self, total_steps: int, images_per_step: int, *, seconds: float = 20.0, console: Console | None = None
    ) -> None:
        console = console or get_console()
        self._live = Live(console=console, auto_refresh=False) if is_main() and _interactive(console) else None
        self._total, self._images, self._seconds = total_steps, images_per_step, seconds
        self._step = self._line_step = 0
        self._terms: dict[str, float] = {}
        self._headline = ""
        self._doing = ""
        self._waited = 0.0  # seconds in which the loop had no data
        self._paused = 0.0  # seconds that were not training
        self._marks: deque[tuple[int, float, float]] = deque(maxlen=WINDOW + 1)  # step, training seconds, waited
        self._first: tuple[int, float, float] | None = None
        self._last_line = self._last_refresh = -math.inf

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None and self._step != self._line_step:
            self._write_line()
        if self._live:
            self._live.update(self._renderable())
            self._live.stop()

    def update(self, step: int, data_wait_seconds: float) -> None:
        """Notes that `step` steps are done and that the loop waited `data_wait_seconds` for the data of the last
        one."""
        now = time.perf_counter()
        self._step = step
        self._waited += data_wait_seconds
        mark = (step, now - self._paused, self._waited)
        self._marks.append(mark)
        self._first = self._first or mark
        if now - self._last_line >= self._seconds and self._terms:
            self._write_line()
        if self._live and now - self._last_refresh >= REFRESH_SECONDS:
            self._refresh()

    def report(self, step: int, terms: Mapping[str, float]) -> None:
        """Shows these loss terms from now on."""
        first, self._step, self._terms = not self._terms, step, dict(terms)
        if first:
            self._write_line()

    def evaluated(self, step: int, headline: str) -> None:
        """Shows the headline of an evaluation from now on, as in "k-NN CLS 61.2"."""
        self._step, self._headline = step, headline
        self._write_line()

    @contextmanager
    def paused(self, doing: str) -> Iterator[None]:
        """Leaves the time within the context, in which work is done that is not training, such as an evaluation, out of
        the rates and the ETA; `doing` is shown meanwhile."""
        start = time.perf_counter()
        self._doing = doing
        self._refresh()
        try:
            yield
        finally:
            self._doing = ""
            self._paused += time.perf_counter() - start

    @property
    def images_per_second(self) -> float:
        """Images per second over the last `WINDOW` steps; NaN before the second step."""
        return self._rates(self._marks[0])[0] if self._marks else math.nan

    @property
    def mean_images_per_second(self) -> float:
        """Images per second since the end of the first step, which starts workers and compiles; NaN before the second
        step."""
        return self._rates(self._first)[0] if self._first else math.nan

    @property
    def data_wait_share(self) -> float:
        """Share of the time of the last steps in which the loop waited for data, 0..1; NaN before the second step."""
        return self._rates(self._marks[0])[1] if self._marks else math.nan

    def line(self) -> str:
        """Returns the progress line: step, loss terms, images per second, data wait, ETA, the last evaluation."""
        rate, wait = self.images_per_second, self.data_wait_share
        left = (self._total - self._step) * self._images / rate if rate > 0 else math.nan
        parts = [
            f"step {self._step}/{self._total}",
            "  ".join(f"{name} {value:.4g}" for name, value in self._terms.items()),
            f"{rate:.1f} images/s" if rate > 0 else "",
            f"data wait {wait:.0%}" if wait >= 0 else "",
            f"ETA {timedelta(seconds=round(left))}" if math.isfinite(left) else "",
            self._headline,
            self._doing,
        ]
        return " | ".join(part for part in parts if part)

    def _rates(self, since: tuple[int, float, float]) -> tuple[float, float]:
        """Returns images per second and the share of waiting, from the mark `since` to the last one."""
        steps, seconds, waited = (later - earlier for earlier, later in zip(since, self._marks[-1], strict=True))
        return (steps * self._images / seconds, waited / seconds) if seconds > 0 else (math.nan, math.nan)

    def _write_line(self) -> None:
        """Logs the present line, and notes when and at which step."""
        self._last_line, self._line_step = time.perf_counter(), self._step
        _log.info(self.line())

    def _refresh(self) -> None:
        """Draws the live line anew, if there is one."""
        if self._live:
            self._last_refresh = time.perf_counter()
            self._live.update(self._renderable(), refresh=True)

    def _renderable(self) -> Table:
        """Returns the progress bar and the line beside it."""
        row = Table.grid(padding=(0, 1))
        row.add_row(ProgressBar(total=self._total, completed=self._step, width=20), self.line())
        return row


class _LogFile(logging.FileHandler):
    """A log file whose disk errors are printed once and otherwise ignored: lines are lost, the run continues."""

    reported = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.reported:
            self.reported = True
            print(f"{self.baseFilename}: {error.strerror}: lines are lost", file=sys.stderr)


@contextmanager
def logging_to(path: Path, console: Console | None = None) -> Iterator[None]:
    """Has the package log to the file `path`, appended, and to standard output within the context.

    On a terminal the lines appear above the live line, without the plain progress lines. Of several ranks only the
    first prints; each other rank has a file of its own, log.rank1.txt, and is silent.
    """
    path = path if is_main() else path.with_suffix(f".rank{rank()}{path.suffix}")
    console = console or get_console()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _LogFile(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    screen: logging.Handler = logging.StreamHandler(sys.stdout) if is_main() else logging.NullHandler()
    if is_main() and _interactive(console):
        screen = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
        screen.addFilter(lambda record: record.name != __name__)
    package = logging.getLogger("dinoswap")
    before = package.level, package.propagate
    package.setLevel(logging.INFO)
    package.propagate = False  # Hydra's root handlers would print every line a second time
    for handler in (file, screen):
        package.addHandler(handler)
    try:
        yield
    finally:
        package.setLevel(before[0])
        package.propagate = before[1]
        for handler in (file, screen):
            package.removeHandler(handler)
        file.close()


def _interactive(console: Console) -> bool:
    """Tells whether `console` is a real terminal. Rich also takes FORCE_COLOR for one, but a log file should have no
    live line."""
    return console.file.isatty() and not console.is_dumb_terminal
