"""Waiting for what another rank does on its own, however long that takes.

A collective gives up after the timeout of its group, and cannot tell a rank that fits a classifier for an hour from one
that hangs. So while a rank works, a thread of it takes part in small reductions, "has everybody finished?", in a group
of their own: the other ranks learn at once when its process dies, after the timeout when it is stopped or its node is
lost, and else wait.
"""

import contextlib
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

SHORTEST, LONGEST = 0.001, 0.5
"""Seconds between two reductions: short at first, as most work is, then twice as long each time."""

_groups: WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = WeakKeyDictionary()
"""By the process group of a run, with which they end."""


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """All ranks enter and leave together. Inside, each does what it has to do, without a collective in which another
    takes no part. What is raised inside is passed on at once, without waiting for the others."""
    group, finished, errors = _group(), threading.Event(), list[RuntimeError]()
    asking = threading.Thread(target=_ask, args=(group, finished, errors), daemon=True)
    asking.start()
    try:
        yield
    finally:
        finished.set()
    asking.join()
    if errors:
        raise errors[0]


def _ask(group: dist.ProcessGroup, finished: threading.Event, errors: list[RuntimeError]) -> None:
    pause = SHORTEST
    try:
        while True:
            finished.wait(pause)
            everybody = torch.tensor(finished.is_set(), dtype=torch.uint8)
            dist.all_reduce(everybody, dist.ReduceOp.MIN, group)
            if everybody:
                return
            pause = min(2 * pause, LONGEST)
    except RuntimeError as error:
        errors.append(error)


def _group() -> dist.ProcessGroup:
    """Between the hosts, with the timeout of the run's own group."""
    whole = dist.group.WORLD
    assert whole is not None
    if whole not in _groups:
        timeout: timedelta = whole._get_backend(torch.device("cpu")).options._timeout
        _groups[whole] = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout))
    return _groups[whole]
