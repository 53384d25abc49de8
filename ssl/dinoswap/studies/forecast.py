"""What a study will cost and what it can show, before it is run.

Cost is that of finished runs of the same config, in any study; else of a probe: some steps of the run, timed; else of
the study's other cells. The smallest difference it can detect needs the spread of differences between two runs that
share a seed: what finished runs show, or a guess.
"""

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dinoswap.config.schema import ConfigError
from dinoswap.studies.design import Design
from dinoswap.studies.ledger import Entry, Found, record_of
from dinoswap.studies.overrides import combined, quoted
from dinoswap.studies.statistics import (
    detectable_difference,
    detectable_effects,
    factorial,
    seeds_for_effects,
    seeds_needed,
)
from dinoswap.studies.status import tail
from dinoswap.studies.study import COSTS, Metric, Study

ALPHA = 0.05
"""Of a family of verdicts."""
PROBE_STEPS = 10
PROBE_SECONDS = 300
TO_COME = ("missing", "queued", "running", "preempted", "killed")
PROBED = ("trainer.log_every=1", "trainer.eval_every=0", "trainer.tensorboard=false", "study=probe")


@dataclass(frozen=True)
class Cost:
    """Of one whole run, in core- or GPU-hours, and where the number is from."""

    hours: float
    gpu: bool
    source: str


def cost(record: Mapping[str, Any], source: str) -> Cost | None:
    """Of a finished run."""
    hours = record.get("cost", {}).get("core_or_gpu_hours")
    if record.get("status") != "completed" or hours is None:
        return None
    return Cost(hours, bool((record.get("hardware") or {}).get("gpus")), source)


def costs(entries: Sequence[Entry], probing: bool = False) -> dict[str, Cost]:
    """By cell; a cell of which nothing is known is not in it. `probing`: run some steps of those never run before."""
    firsts = {entry.cell: entry for entry in reversed(entries)}
    known = {cell: measured for cell, entry in firsts.items() if (measured := measure(entry))}
    others = mean(list(known.values()), "other cells")
    for cell, entry in firsts.items():
        if cell not in known and probing:
            known[cell] = probe(entry)
        elif cell not in known and others is not None:
            known[cell] = others
    return known


def measure(entry: Entry) -> Cost | None:
    """From all finished runs of this config, a copied folder not counted again."""
    once = {}
    for path in sorted(entry.folder.parents[2].glob(f"*/{entry.run_id}/seed*/run.json")):
        record, _ = record_of(path.parent)
        once[record.get("study"), record.get("seed"), record.get("started") or path] = record
    return mean([found for record in once.values() if (found := cost(record, "finished runs"))], "finished runs")


def mean(found: Sequence[Cost], source: str) -> Cost | None:
    if not found:
        return None
    return Cost(float(np.mean([each.hours for each in found])), found[0].gpu, source)


def probe(entry: Entry) -> Cost:
    """Train some steps, timed without those that warm up; evaluations are not in it. Raises ConfigError."""
    with tempfile.TemporaryDirectory() as results:
        lines = combined(entry.overrides, PROBED, [f"results_dir={quoted(results)}"])
        command = [sys.executable, "-m", "dinoswap.train", *lines]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            end = time.monotonic() + PROBE_SECONDS
            while process.poll() is None and time.monotonic() < end and len(_logged(results)) <= PROBE_STEPS:
                time.sleep(0.2)
        finally:
            process.terminate()
            output, _ = process.communicate()
        rates = [line["images_per_second"] for line in _logged(results) if line["images_per_second"]]
        records = [record_of(path.parent)[0] for path in Path(results).rglob("run.json")]
    if not rates:
        raise ConfigError(f"--probe: cell {entry.cell} trains no step in {PROBE_SECONDS} s: {output.strip()[-500:]}")
    hardware = records[0]["hardware"]
    images = entry.config["trainer"]["max_steps"] * entry.config["data"]["batch_size"]
    hours = images / rates[-1] / 3600 * (1 if hardware["gpus"] else hardware["threads"])
    return Cost(hours, bool(hardware["gpus"]), "a probe, without evaluations")


def _logged(results: str) -> list[dict[str, Any]]:
    return [line for path in Path(results).rglob("metrics.jsonl") for line in tail(path) if "images_per_second" in line]


def left(entry: Entry, at: Found, whole: Cost) -> float:
    """Hours that a run still takes."""
    if at.state not in TO_COME:
        return 0.0
    done: float = (at.record.get("steps") or 0) / entry.config["trainer"]["max_steps"]
    return whole.hours * max(0.0, 1 - done)


# --- what can be detected ---------------------------------------------------------------------------------------------


def value_of(record: Mapping[str, Any], metric: Metric) -> float | None:
    """Of a finished run; a metric or one of the costs that a study may name."""
    if record.get("status") != "completed":
        return None
    section, _, name = metric.column.rpartition(".") if metric.name in COSTS else ("metrics", "", metric.name)
    value: float | None = record.get(section or "throughput", {}).get(name)
    return value


def spread(entries: Sequence[Entry], found: Sequence[Found], metric: Metric) -> tuple[float, int] | None:
    """Standard deviation of the difference between two cells of one seed, pooled over all cells against the first, and
    its degrees of freedom. None without two seeds that both cells have finished."""
    values: dict[str, dict[int, float]] = {}
    for entry, at in zip(entries, found, strict=True):
        if (value := value_of(at.record, metric)) is not None and math.isfinite(value):
            values.setdefault(entry.cell, {})[entry.seed] = value
    reference = values.get(entries[0].cell, {})
    squares, df = 0.0, 0
    for cell, of_seed in values.items():
        shared = sorted(of_seed.keys() & reference.keys())
        if cell != entries[0].cell and len(shared) > 1:
            differences = np.array([of_seed[seed] - reference[seed] for seed in shared])
            squares += float(((differences - differences.mean()) ** 2).sum())
            df += len(shared) - 1
    return (math.sqrt(squares / df), df) if df and math.isfinite(squares) else None


def spread_of(
    study: Study, design: Design, entries: Sequence[Entry], found: Sequence[Found], metric: Metric
) -> tuple[float, int] | None:
    """As `spread`; of a crossed design what its main effects are tested against, which holds how they vary by seed."""
    if not crossed(study):
        return spread(entries, found, metric)
    rows = [
        (entry.cell, entry.seed, "completed", value)
        for entry, at in zip(entries, found, strict=True)
        if (value := value_of(at.record, metric)) is not None and math.isfinite(value)
    ]
    if not rows:
        return None
    outcomes = pd.DataFrame(rows, columns=["cell", "seed", "status", "value"])
    effects = factorial(outcomes, {cell.name: cell.levels for cell in design.cells}, study.factors)
    known = [effect.error for effect in effects.main if effect.error]
    if not known:
        return None
    largest = max((known[0].stratum, known[0].residual), key=lambda square: square.value if square.df else 0.0)
    return (math.sqrt(2 * largest.value), known[0].df) if largest.value > 0 else None


def crossed(study: Study) -> bool:
    """Whether effects are averages over the levels of other factors."""
    return study.design in ("factorial", "fractional")


def comparisons(study: Study, design: Design) -> int:
    """How many effects of one metric share its alpha (Holm)."""
    if crossed(study):
        return sum(len(levels) - 1 for levels in study.factors.values())
    return max(len(design.cells) - 1, 1)


def detectable(study: Study, design: Design, sd: float, seed_sd: float = 0.0) -> dict[str, float]:
    """The smallest difference that each comparison of the design detects at 80 % power, given the study's seeds, where
    it has to stand out from the whole family. `seed_sd`: of effects between seeds, beside `sd`, in crossed designs."""
    seeds, alpha = len(study.seeds), ALPHA / comparisons(study, design)
    if crossed(study):
        levels = [cell.levels for cell in design.cells]
        return detectable_effects(levels, study.factors, seeds, sd, alpha, seed_sd=seed_sd)
    return {"any cell against the first": detectable_difference(sd, seeds, alpha)}


def seeds_that_detect(study: Study, design: Design, sd: float, difference: float) -> int | None:
    """Seeds at which every comparison of the design detects such a difference; None where no number does."""
    alpha = ALPHA / comparisons(study, design)
    if crossed(study):
        return seeds_for_effects([cell.levels for cell in design.cells], study.factors, sd, difference, alpha)
    return seeds_needed(sd, difference, alpha)
