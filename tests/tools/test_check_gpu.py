"""tools/check_gpu.py, tried on the CPU: each check says what it found, and none stops the others."""

import json
from pathlib import Path

import pytest
import torch

from small_models import load_tool

CPU = torch.device("cpu")


def test_a_check_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load_tool("check_gpu")

    def broken(preset: str, device: torch.device) -> dict[str, object]:
        raise RuntimeError("no kernel image")

    monkeypatch.setitem(tool.CHECKS, "losses", broken)
    chosen = ["--checks", "losses", "waits", "speed", "--presets", "official"]
    monkeypatch.setattr("sys.argv", ["check_gpu.py", "-o", str(tmp_path), "--device", "cpu", *chosen])
    assert tool.main() == 1
    losses, waits, speed = json.loads((tmp_path / "check_gpu.json").read_text())["rows"]
    assert losses["failed"] == "RuntimeError: no kernel image"
    assert "only a GPU" in waits["skipped"]
    assert not speed["failed"]
    assert speed["images per second"] > 0


def test_losses_are_compared_in_each_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load_tool("check_gpu")
    monkeypatch.setattr(tool, "STEPS", 3)
    monkeypatch.setattr(tool, "TOLERANCES", {"fp32": 0.0, "bf16": 0.0})
    found = tool.checked("losses", "official", CPU)
    assert found["fp32"] == found["of the CPU"]  # it is the same device
    assert 0 < found["difference in bf16"] < 0.02
    assert found["failed"].startswith("bf16 differs by")


def test_a_value_that_is_not_finite_holds_no_tolerance() -> None:
    difference = load_tool("check_gpu").largest_difference([1.0, float("nan")], [1.0, 1.0])
    assert not difference <= 1e9
