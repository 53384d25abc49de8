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
from dinoswap.studies.costs import place_of
from dinoswap.studies.design import Design
from dinoswap.studies.ledger import Entry, RunStatus, record_of
from dinoswap.studies.overrides import combined, quoted
from dinoswap.studies.statistics import (
    detectable_difference,
    detectable_effects,
    factorial,
    operating_characteristics,
    seeds_for_effects,
    seeds_needed,
)
from dinoswap.studies.status import tail
from dinoswap.studies.study import Metric, Study

ALPHA = 0.05
"""The error rate of a whole family of verdicts."""
PROBE_STEPS = 10
PROBE_SECONDS = 300
TO_COME = ("missing", "queued", "running", "preempted", "killed")
PROBED = ("trainer.log_every=1", "trainer.eval_every=0", "tracker=none", "study=probe")


@dataclass(frozen=True)
class Cost:
    """The cost of one whole run, in core-hours or with `gpu` in GPU-hours, and where the number is from."""

    hours: float
    gpu: bool
    source: str


@dataclass(frozen=True)
class Spread:
    """The standard deviation of the difference between two runs of one seed, and in words where the number is from."""

    sd: float
    source: str


def cost(record: Mapping[str, Any], source: str) -> Cost | None:
    """Returns the cost that the record of a completed run states; None for other runs, or where it states none."""
    hours = record.get("cost", {}).get("core_or_gpu_hours")
    if record.get("status") != "completed" or hours is None:
        return None
    return Cost(hours, bool((record.get("hardware") or {}).get("gpus")), source)


def costs(entries: Sequence[Entry], probing: bool = False) -> dict[str, Cost]:
    """Returns the cost of one run of each cell; a cell of which nothing is known is left out.

    With `probing`, cells of which no run has finished are timed for some steps. Raises ConfigError as `probe` does.
    """
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
    """Returns the mean cost of all finished runs of this config, a copied folder counted once; None without any."""
    records = {}
    for path in sorted(entry.folder.parents[2].glob(f"*/{entry.run_id}/seed*/run.json")):
        record, _ = record_of(path.parent)
        records[record.get("study"), record.get("seed"), record.get("started") or path] = record
    return mean([known for record in records.values() if (known := cost(record, "finished runs"))], "finished runs")


def mean(samples: Sequence[Cost], source: str) -> Cost | None:
    """Returns the mean of these costs, which are from `source`; None without any."""
    if not samples:
        return None
    return Cost(float(np.mean([sample.hours for sample in samples])), samples[0].gpu, source)


def probe(entry: Entry) -> Cost:
    """Returns the cost of a run by training some of its steps in a temporary folder.

    The rate is that after the warm-up, and evaluations are not included. Raises ConfigError when no step is trained in
    PROBE_SECONDS.
    """
    with tempfile.TemporaryDirectory() as results:
        lines = combined(entry.overrides, PROBED, [f"results_dir={quoted(results)}"])
        command = [sys.executable, "-m", "dinoswap.train", *lines]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            end = time.monotonic() + PROBE_SECONDS
            while process.poll() is None and time.monotonic() < end and len(_logged_steps(results)) <= PROBE_STEPS:
                time.sleep(0.2)
        finally:
            process.terminate()
            output, _ = process.communicate()
        rates = [line["images_per_second"] for line in _logged_steps(results) if line["images_per_second"]]
        records = [record_of(path.parent)[0] for path in Path(results).rglob("run.json")]
    if not rates:
        raise ConfigError(f"--probe: cell {entry.cell} trains no step in {PROBE_SECONDS} s: {output.strip()[-500:]}")
    hardware = records[0]["hardware"]
    images = entry.config["trainer"]["max_steps"] * entry.config["data"]["batch_size"]
    hours = images / rates[-1] / 3600 * (1 if hardware["gpus"] else hardware["threads"])
    return Cost(hours, bool(hardware["gpus"]), "a probe, without evaluations")


def _logged_steps(results: str) -> list[dict[str, Any]]:
    """Returns the last lines with a speed in each metrics.jsonl below the folder `results`."""
    return [line for path in Path(results).rglob("metrics.jsonl") for line in tail(path) if "images_per_second" in line]


def hours_left(entry: Entry, status: RunStatus, run_cost: Cost) -> float:
    """Returns the hours that a run still takes, 0 for one that is not run any more."""
    if status.state not in TO_COME:
        return 0.0
    done: float = (status.record.get("steps") or 0) / entry.config["trainer"]["max_steps"]
    return run_cost.hours * max(0.0, 1 - done)


# --- what can be detected ---------------------------------------------------------------------------------------------


def value_of(record: Mapping[str, Any], metric: Metric) -> float | None:
    """Returns a metric, or a cost that a study may name, of a completed run; None of another run, or if it is
    missing."""
    if record.get("status") != "completed":
        return None
    section, key = place_of(metric.name)
    value: float | None = record.get(section, {}).get(key)
    return value


def spread(entries: Sequence[Entry], statuses: Sequence[RunStatus], metric: Metric) -> tuple[float, int] | None:
    """Returns the standard deviation of the difference between two cells of one seed, pooled over all cells against the
    first, and its degrees of freedom; None without two seeds that both cells have finished."""
    values: dict[str, dict[int, float]] = {}
    for entry, status in zip(entries, statuses, strict=True):
        if (value := value_of(status.record, metric)) is not None and math.isfinite(value):
            values.setdefault(entry.cell, {})[entry.seed] = value
    reference = values.get(entries[0].cell, {})
    squares, df = 0.0, 0
    for cell, by_seed in values.items():
        shared = sorted(by_seed.keys() & reference.keys())
        if cell != entries[0].cell and len(shared) > 1:
            differences = np.array([by_seed[seed] - reference[seed] for seed in shared])
            squares += float(((differences - differences.mean()) ** 2).sum())
            df += len(shared) - 1
    return (math.sqrt(squares / df), df) if df and math.isfinite(squares) else None


def spread_of(
    study: Study, design: Design, entries: Sequence[Entry], statuses: Sequence[RunStatus], metric: Metric
) -> tuple[float, int] | None:
    """Returns the standard deviation of the difference between two runs of one seed, and its degrees of freedom.

    In a crossed design it follows from the mean square that main effects are tested against, which includes how they
    vary between seeds; otherwise it is that of `spread`. None where the finished runs do not show it.
    """
    if not crossed(study):
        return spread(entries, statuses, metric)
    rows = [
        (entry.cell, entry.seed, "completed", value)
        for entry, status in zip(entries, statuses, strict=True)
        if (value := value_of(status.record, metric)) is not None and math.isfinite(value)
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
    """Returns whether the effects of the study are averages over the levels of other factors."""
    return study.design in ("factorial", "fractional")


def comparisons(study: Study, design: Design) -> int:
    """Returns how many effects of one metric share its alpha (Holm)."""
    if crossed(study):
        return sum(len(levels) - 1 for levels in study.factors.values())
    return max(len(design.cells) - 1, 1)


def detectable(study: Study, design: Design, sd: float, seed_sd: float = 0.0) -> dict[str, float]:
    """Returns, by comparison, the smallest difference that is detected at 80 % power with the study's seeds, where it
    has to stand out from the whole family. `sd` is the standard deviation of the difference between two runs of one
    seed, `seed_sd` that of effects between seeds in crossed designs."""
    seeds, alpha = len(study.seeds), ALPHA / comparisons(study, design)
    if crossed(study):
        levels = [cell.levels for cell in design.cells]
        return detectable_effects(levels, study.factors, seeds, sd, alpha, seed_sd=seed_sd)
    return {"any cell against the first": detectable_difference(sd, seeds, alpha)}


def seeds_expected(study: Study, design: Design, sd: float) -> dict[float, float]:
    """Returns the mean number of seeds of an arm that is compared with the first cell, until a planned look decides on
    it, by its true difference: none, and the smallest of interest and twice that. `sd` is as in `detectable`."""
    margin, alpha = study.metrics[0].smallest_effect, ALPHA / comparisons(study, design)
    return {
        times * margin: operating_characteristics(study.plan, times * margin / sd, margin / sd, alpha).seeds
        for times in (0, 1, 2)
    }


def seeds_that_detect(study: Study, design: Design, sd: float, difference: float) -> int | None:
    """Returns the number of seeds with which every comparison detects such a difference; None where no number does."""
    alpha = ALPHA / comparisons(study, design)
    if crossed(study):
        return seeds_for_effects([cell.levels for cell in design.cells], study.factors, sd, difference, alpha)
    return seeds_needed(sd, difference, alpha)
