"""Waits for what another rank does on its own, however long that takes.

A collective gives up after the timeout of its group, and cannot tell a rank that fits a classifier for an hour from one
that hangs. So while a rank works, a thread of it takes part in small reductions, "has every rank finished?", in a group
of their own. The other ranks learn at once when its process dies, after the timeout when it is stopped or its node is
lost, and otherwise wait.
"""

import contextlib
import threading
from collections.abc import Iterator

import torch
import torch.distributed as dist

from dinoswap.distributed.side_groups import side_group

SHORTEST, LONGEST = 0.001, 0.5
"""Seconds between two reductions. They begin short, as most work is, and double each time."""


@contextlib.contextmanager
def patience(group: dist.ProcessGroup | None = None) -> Iterator[None]:
    """Waits, when the context is left, until all ranks have left it; all enter it together. Inside, each rank does its
    own work, without a collective in which another rank takes no part. An exception that is raised inside is passed on
    at once, without waiting for the others. The reductions go through `group`, by default one for all that the main
    thread waits for. Raises RuntimeError when a reduction fails."""
    group, finished, errors = group or side_group("patience"), threading.Event(), list[RuntimeError]()
    thread = threading.Thread(target=_reduce_until_finished, args=(group, finished, errors), daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
    thread.join()
    if errors:
        raise errors[0]


def _reduce_until_finished(group: dist.ProcessGroup, finished: threading.Event, errors: list[RuntimeError]) -> None:
    """Reduces whether this rank has finished, again and again until all have. A RuntimeError of a collective is
    appended to `errors`."""
    pause = SHORTEST
    try:
        while True:
            finished.wait(pause)
            all_finished = torch.tensor(finished.is_set(), dtype=torch.uint8)
            dist.all_reduce(all_finished, dist.ReduceOp.MIN, group)
            if all_finished:
                return
            pause = min(2 * pause, LONGEST)
    except RuntimeError as error:
        errors.append(error)
