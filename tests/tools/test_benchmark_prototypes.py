"""tools/benchmark_prototypes.py: both forms are the same step, and ours needs at most half of the memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from small_models import load_tool

pytestmark = pytest.mark.slow

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_prototypes.py"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_forms_have_one_gradient(precision: str) -> None:
    step = load_tool("benchmark_prototypes").Step(20, 50, 8, precision, torch.device("cpu"))
    gradients = []
    for form in ("official", "ours"):
        step.seconds(form)
        gradients.append([step.features.grad, *(p.grad for p in step.student.parameters())])
    for official, ours in zip(*gradients, strict=True):
        tolerance = 1e-5 if precision == "fp32" else 1e-2
        torch.testing.assert_close(ours, official, rtol=tolerance, atol=tolerance * float(official.abs().max()))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the highest memory is read from /proc")
def test_peak_memory_is_at_most_half_of_the_official_forms(tmp_path: Path) -> None:
    """In fp32, where less is saved than in bf16. The last layer's weights are a part too, small with features this
    narrow."""
    sizes = ["--rows=256", "--prototypes=65536", "--dim=16", "--rounds=1", "--steps=1", "--precisions=fp32"]
    subprocess.run([sys.executable, TOOL, *sizes, "-o", tmp_path], check=True, capture_output=True)
    official, ours = json.loads((tmp_path / "prototypes.json").read_text())["rows"]
    assert (official["form"], ours["form"]) == ("official", "ours")
    assert ours["memory_bytes"] <= official["memory_bytes"] / 2
    assert (tmp_path / "README.md").read_text().count("\n| ") == 3
