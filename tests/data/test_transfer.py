"""The copy of a batch and the step that reads it are ordered by the device's streams, never by the host."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from test_steps import assert_equal, dataset
from torch import Tensor

from dinoswap.data.transfer import Transfer

DEVICE = torch.device("meta")  # whose tensors are copied without a kernel


class Streams:
    """Stands for torch.cuda: notes what is asked of its streams, in order. A stream is its name."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now, self.asked = "computing", list[tuple[str, ...]]()

        def to(tensor: Tensor, device: torch.device, *, non_blocking: bool) -> Tensor:
            assert non_blocking
            self.asked.append(("copy", self.now))
            return torch.empty_like(tensor, device=device)

        patch.setattr(torch.Tensor, "to", to)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, on: self.asked.append(("kept for", on.name)))

    def Stream(self, device: torch.device) -> "Stream":
        return Stream("beside", self)

    def current_stream(self, device: torch.device) -> "Stream":
        return Stream(self.now, self)

    @contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        before, self.now = self.now, stream.name
        yield
        self.now = before


class Stream:
    def __init__(self, name: str, streams: Streams) -> None:
        self.name, self.streams = name, streams

    def wait_stream(self, other: "Stream") -> None:
        self.streams.asked.append((self.name, "waits for", other.name))

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name}: the host waits, or the streams are ordered otherwise")


def test_a_batch_is_copied_beside_the_step_and_kept_until_it_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    streams, batch = Streams(monkeypatch), dataset()[0]
    copied = Transfer(DEVICE, streams).copy(batch)
    tensors = len(batch.tensors())
    assert streams.asked == [
        *[("copy", "beside")] * tensors,
        ("computing", "waits for", "beside"),
        *[("kept for", "computing")] * tensors,
    ]
    assert streams.now == "computing"
    assert all(tensor.device == DEVICE for tensor in copied.tensors().values())


def test_a_device_without_streams_has_the_same_batch() -> None:
    for step, accumulate in product(range(2), (1, 2)):
        batch = dataset(accumulate=accumulate)[step]
        assert_equal(Transfer(torch.device("cpu")).copy(batch), batch)
