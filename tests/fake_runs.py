"""Run folders as a trainer leaves them, without one."""

import json
import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dinoswap.config.command_line import compose_config

_CONFIG = compose_config(["recipe=smoke"])
LONG_AGO = 1_600_000_000
"""So that a run.json has settled and may be cached."""


def record(**changed: Any) -> dict[str, Any]:
    """A run.json's content."""
    fields = {
        "run_id": "0123456789", "study": "mine", "seed": 0, "choices": {"masking": "block", "preset": "official"},
        "overrides": ["recipe=smoke", "data.path=/a b"], "status": "completed", "error": None,
        "git": {"sha": "f" * 40, "dirty": False}, "versions": {"torch": "2.9"},
        "hardware": {"cpu": "EPYC", "gpus": []}, "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T04:04:05+00:00",
        "steps": 10, "restarts": 1, "throughput": {"images_per_second": 50.5},
        "cost": {"flops_per_image": 1e9, "core_or_gpu_hours": 0.5, "peak_memory_bytes": 7},
        "metrics": {"eval/knn_top1": 61.25, "eval/rankme": None},
    }  # fmt: skip
    return fields | changed


def write_run(
    folder: Path, config: dict[str, float] | None = None, lines: list[str] | None = None, **changed: Any
) -> Path:
    """`config` sets dotted keys of a smoke run's config; `lines` are those of metrics.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = OmegaConf.create(dict(_CONFIG))
    for key, value in {"seed": changed.get("seed", 0), **(config or {})}.items():
        OmegaConf.update(whole, key, value, force_add=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(whole))
    (folder / "metrics.jsonl").write_text("\n".join(lines or ['{"step": 1, "loss": 2.5}', ""]))
    (folder / "checkpoints").mkdir(exist_ok=True)
    write_record(folder, record(**changed))
    return folder


def write_record(folder: Path, content: Any, when: int = LONG_AGO) -> None:
    """As the trainer does: readers see the old record or the new one."""
    written = folder / ".run.json.tmp"
    written.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
    os.utime(written, (when, when))
    written.replace(folder / "run.json")
