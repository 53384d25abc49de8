"""The numbers of the codes that presets stand for, as this device computes them: by tools/check_parity.py."""

import os
from pathlib import Path

import torch

from check_parity import rows_of
from gpu_checks.numbers import Numbers

FOLDER = "DINOSWAP_PARITY"
"""Environment variable with the folder of folders of fixtures, of which those in the tests are the default."""
KINDS = {"official": "losses_dinov2", "legacy": "losses_legacy", "dinov3": "losses_dinov3", "da3": "da3_tiny_io"}
"""Each kind, and the file of it that a CPU compares: all others are what its own tests do."""
ALLOWED, EXACT = 10.0, 1e-6
"""A GPU adds in another order: what is off by more than the CPU's tolerance is listed, and failed where it is off by so
many times of it. What is equal on a CPU may be off by `EXACT`."""


def parity(kind: str, device: torch.device) -> Numbers:
    folder = Path(os.environ.get(FOLDER, Path(__file__).parents[2] / "tests" / "parity")) / kind
    on_cpu = device.type == "cpu"
    rows = list(rows_of(kind, folder, KINDS[kind] if on_cpu else None, device=device))
    if not rows:
        return {"skipped": f"no fixture in {folder}"}
    larger = sorted((row for row in rows if not row.passed), key=lambda row: -row.error)
    allowed = {row.name: row.tolerance if on_cpu else max(ALLOWED * row.tolerance, EXACT) for row in larger}
    failed = [row for row in larger if not row.error <= allowed[row.name]]
    worst = max(row.error for row in rows)
    return {
        "quantities": len(rows),
        "largest error": worst,
        "beyond the CPU's tolerance": len(larger),
        "larger": [f"{row.name}: {row.error:.1e}, tolerance {row.tolerance:.0e}" for row in larger],
        "failed": "; ".join(f"{row.name} is off by {row.error:.1e}, allowed {allowed[row.name]:.0e}" for row in failed),
    }
