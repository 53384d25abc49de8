"""Copies tensors into the memory of the host, where they stay as they are while the training changes the originals."""

from collections.abc import Mapping

import torch
from torch import Tensor


class HostCopies:
    """One copy of each tensor, contiguous and on the CPU. Its memory is used again by the next copy.

    For tensors of a GPU the memory is pinned: the GPU copies after what it has been given before and before what it is
    given later, and the host waits for nothing.
    """

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}
        self._copied: torch.cuda.Event | None = None

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the copies, which take the place of those before. They hold the values once `wait` returns."""
        before, self._copies = self._copies, {}
        for name, tensor in tensors.items():
            room = before.get(name)
            if room is None or (room.shape, room.dtype) != (tensor.shape, tensor.dtype):
                room = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._copies[name] = room.copy_(tensor, non_blocking=tensor.is_cuda)
        device = next((tensor.device for tensor in tensors.values() if tensor.is_cuda), None)
        self._copied = None if device is None else torch.cuda.current_stream(device).record_event()
        return self._copies

    def wait(self) -> None:
        """Waits until the GPU has made the copies. Any thread may call it."""
        if self._copied is not None:
            with torch.cuda.device(self._copied.device):  # a thread would else begin to use the first GPU
                self._copied.synchronize()
