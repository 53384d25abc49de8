"""Does work in a thread beside the training, such as writing a checkpoint.

The ranks agree on the work in a group of its own, so that its collectives do not mix with those of a step. Whether the
work has ended is known to each rank alone, so no rank asks: it waits.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from dinoswap.distributed import on_all, world_size
from dinoswap.distributed.side_groups import side_group

T = TypeVar("T")


class OnAll(Protocol):
    """Defines `on_all` within the group of the work."""

    def __call__(self, work: Callable[[], T]) -> list[T]: ...


class Background:
    """Does one piece of work at a time."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[OnAll], Any]) -> None:
        """Begins `work(on_all)`, once the work before has ended. It takes part in no collective but those of `on_all`.
        All ranks call this function together. Raises what the work before raised."""
        self.wait()
        group = side_group("background") if world_size() > 1 else None
        job = partial(work, partial(on_all, group=group))
        self._thread = threading.Thread(target=self._do, args=(job,), name="background", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits until the work has ended. Raises what it raised, once."""
        if self._thread is None:
            return
        self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is not None:
            raise error

    def _do(self, job: Callable[[], Any]) -> None:
        """Calls `job`, and keeps what it raises for `wait`."""
        try:
            job()
        except BaseException as error:  # whatever it is: `wait` raises it
            self._error = error
