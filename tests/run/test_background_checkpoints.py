"""Checkpoints that are written while the training goes on: the state as it was, in turn, errors told later."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from dinoswap.run import checkpoint
from dinoswap.run.host_copies import HostCopies


def held_back(patch: pytest.MonkeyPatch) -> threading.Event:
    """No file is written before this event."""
    may_write, write_new = threading.Event(), checkpoint.write_new

    def write(*arguments: Any) -> Any:
        assert may_write.wait(60)
        return write_new(*arguments)

    patch.setattr(checkpoint, "write_new", write)
    return may_write


def test_what_is_written_is_the_state_when_save_was_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"weight": torch.arange(6.0).view(2, 3).T, "steps": [1]}
    with checkpoint.Writer() as writer:
        may_write = held_back(monkeypatch)
        path = writer.save(tmp_path, 1, state, config={}, keep=2)
        state["weight"].zero_()
        state["steps"].append(2)
        assert not path.exists()
        may_write.set()
    found = checkpoint.read(path).state
    assert found["weight"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert found["steps"] == [1]


def test_one_after_the_other_from_the_same_memory(tmp_path: Path) -> None:
    steps = range(1, 6)
    with checkpoint.Writer() as writer:
        for step in steps:
            writer.save(tmp_path, step, {"weight": torch.full((100_000,), float(step))}, config={}, keep=9)
    for step in steps:
        weight = checkpoint.read(tmp_path / f"step-{step:08d}").state["weight"]
        assert torch.equal(weight, torch.full((100_000,), float(step)))


def test_the_memory_of_copies_is_used_again() -> None:
    copies, tensor = HostCopies(), torch.ones(3)
    first = copies.take({"a": tensor, "b": torch.zeros(2)})
    second = copies.take({"a": tensor * 2, "b": torch.zeros(3)})
    assert second["a"].data_ptr() == first["a"].data_ptr() != tensor.data_ptr()
    assert (second["a"].tolist(), second["b"].tolist()) == ([2, 2, 2], [0, 0, 0])


def test_a_refusal_is_told_once_at_the_next_save_or_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer, state = checkpoint.Writer(), {"weight": torch.zeros(3)}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        writer.save(tmp_path, 1, state, config={}, keep=2)
        with pytest.raises(checkpoint.CheckpointError, match=r"step-00000001 could .*No space left"):
            writer.save(tmp_path, 2, state, config={}, keep=2)
        writer.wait()
        with pytest.raises(checkpoint.CheckpointError, match="step-00000003 could not be written"), writer:
            writer.save(tmp_path, 3, state, config={}, keep=2)
        with pytest.raises(ValueError, match="the reason"), writer:
            writer.save(tmp_path, 4, state, config={}, keep=2)
            raise ValueError("the reason")
    assert "step-00000004 could not be written" in caplog.text
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="another"), writer:
        path = writer.save(tmp_path, 5, state, config={}, keep=2)
        raise ValueError("another")
    assert checkpoint.read(path).step == 5  # it was waited for


def test_ctrl_c_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_write = held_back(monkeypatch)
    writer = checkpoint.Writer()
    with pytest.raises(KeyboardInterrupt), writer:
        writer.save(tmp_path, 1, {}, config={}, keep=2)
        raise KeyboardInterrupt
    may_write.set()
    writer.wait()


def full(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
