"""Copies batches to the device of a run, on a GPU beside the steps that it computes.

The host gives the device a step and goes on, so when it takes the next batch the device has most of that step before
it. A copy that stood behind the step in the same stream would begin only when the step is over.
"""

from typing import Any

import torch

from dinoswap.values import Batch


class Transfer:
    """Copies batches to `device`, on a GPU on a stream of its own. `streams` is the module of torch that has the
    streams of the device; None for a device without any, on which the copy is an operation like all others."""

    def __init__(self, device: torch.device, streams: Any = None) -> None:
        self._device = device
        self._streams = torch.cuda if streams is None and device.type == "cuda" else streams
        self.beside = None if self._streams is None else self._streams.Stream(device)

    def copy(self, batch: Batch) -> Batch:
        """Returns the batch on the device. The copy from pinned memory has begun; the host does not wait for it, what
        it gives the current stream from now on does."""
        if self.beside is None:
            return batch.to(self._device)
        with self._streams.stream(self.beside):
            arriving = batch.to(self._device)
        computing = self._streams.current_stream(self._device)
        computing.wait_stream(self.beside)
        for tensor in arriving.tensors().values():
            tensor.record_stream(computing)  # its memory is for the next copy only when the step has read it
        return arriving
