"""Leaving autocast for computations that need float32."""

import contextlib

import torch


def full_precision(device_type: str) -> contextlib.AbstractContextManager[None]:
    """Autocast off, where there is autocast: not on the meta device, on which FLOPs are counted."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else contextlib.nullcontext()
