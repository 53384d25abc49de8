"""Forms groups of all ranks beside the one of the run, whose collectives do not mix with those of a training step."""

from datetime import timedelta
from typing import cast
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

_groups: WeakKeyDictionary[dist.ProcessGroup, dict[str, dist.ProcessGroup]] = WeakKeyDictionary()
"""The groups by what they are for, by the process group of the run, with which they end."""


def side_group(purpose: str) -> dist.ProcessGroup:
    """Returns the group for `purpose`, over gloo and with the timeout of the run's own group. All ranks call it
    together, as the first call forms the group."""
    world = dist.group.WORLD
    assert world is not None
    groups = _groups.setdefault(world, {})
    if purpose not in groups:
        timeout: timedelta = world._get_backend(torch.device("cpu")).options._timeout
        groups[purpose] = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=timeout))
    return groups[purpose]
