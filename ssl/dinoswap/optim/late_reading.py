"""Reads values of the device on the host without waiting for it: the copy is begun at once and read a step later."""

import torch
from torch import Tensor


class LateReading:
    """A copy of a tensor on the host. It is the one way in which a training step reads values; `value` is for later,
    when the device has been given more to do."""

    def __init__(self, tensor: Tensor) -> None:
        self._on_host = tensor.detach().to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def value(self) -> Tensor:
        """Returns the copy. The host waits only where the device has not come so far."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._on_host
