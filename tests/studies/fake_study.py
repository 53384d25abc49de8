"""A study whose runs were never trained: run folders with values that the test decides."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dinoswap.run.metrics import MetricsLog, RunRecord
from dinoswap.studies.design import make_design
from dinoswap.studies.ledger import Entry, entries
from dinoswap.studies.study import Study, read_study

SOUND = {"eval/feature_std": 0.8, "eval/rankme": 60.0, "eval/rankme_max": 192.0, "eval/mean_cosine": 0.2}
COLLAPSED = {"eval/feature_std": 0.01, "eval/rankme": 1.1, "eval/rankme_max": 192.0, "eval/mean_cosine": 0.99}
COLLAPSED_VALUE = 5.0
CIRCUMSTANCES: dict[str, Any] = {
    "git": {"sha": "0123456789abcdef", "dirty": False},
    "versions": {"python": "3.11.9", "torch": "2.9.1"},
    "hardware": {"cpu": "EPYC", "cores": 2, "threads": 2, "ranks": 1, "gpus": []},
    "started": "2026-01-02T03:00:00+00:00",
    "restarts": 1,
}
Ending = float | str | None
"""Of a run: its value, or the status that it ended with (`collapsed`: completed so); None if it was never started."""


def write_study(folder: Path, text: str) -> Study:
    path = folder / "ablations" / "study.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return read_study(path)


def write_runs(study: Study, root: Path, ending: Callable[[Mapping[str, str], int], Ending], **changed: Any) -> None:
    """`ending(levels, seed)` of each run. `changed`: fields of run.json."""
    cells = make_design(study, check=False).cells
    levels = {cell.name: cell.levels for cell in cells}
    for entry in entries(study, cells):
        how = ending(levels[entry.cell], entry.seed)
        if how is not None:
            _write_run(root / entry.run_id / f"seed{entry.seed}", study, entry, how, CIRCUMSTANCES | changed)


def _write_run(folder: Path, study: Study, entry: Entry, how: float | str, circumstances: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    metric, ended = study.metrics[0].name, isinstance(how, float) or how == "collapsed"
    value = how if isinstance(how, float) else COLLAPSED_VALUE
    log = MetricsLog(folder / "metrics.jsonl")
    for step in range(1, 11 if ended else 5):
        log.log(step, {"loss": 8 / (step + entry.seed), "lr": 1e-3})
        if step % 2 == 0:
            log.log(step, {metric: value * step / 10})
    log.close()
    cost = {"flops_per_image": 2e9, "core_or_gpu_hours": 0.5, "peak_memory_bytes": 2**30}
    throughput = {"images_per_second": 50.0 + entry.seed}
    path, choices = folder / "run.json", {"masking": "block"}
    record = RunRecord(path, entry.run_id, study.name, entry.seed, choices, entry.overrides, **circumstances)
    record.steps, record.cost, record.throughput = step, cost, throughput
    if ended:
        record.metrics = {metric: value, **(SOUND if isinstance(how, float) else COLLAPSED)}
        record.finish("completed")
    else:
        record.finish(how, f"{how}: loss is nan after step {step}\nand a second line")  # type: ignore[arg-type]
