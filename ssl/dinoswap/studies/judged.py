"""Finished runs that are judged by metrics which they did not measure themselves, from their last checkpoints.

What is found is added to run.json, which every reader of runs reads: nothing that the run recorded is changed. The
field `judged` there says of each such evaluation when it was made, what it added, by which settings and versions.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoswap.config.facts import DataFacts, build_source
from dinoswap.config.measured import build_metrics
from dinoswap.config.sections import OF_METRICS
from dinoswap.config.typed_paths import key_of
from dinoswap.evaluate import check_evaluation, with_overrides
from dinoswap.files.lock import exclusive
from dinoswap.files.writing import write_atomically
from dinoswap.metric.base import DenseMetric
from dinoswap.run import provenance
from dinoswap.run.metrics import load_record
from dinoswap.run.subject import config_of, newest

if TYPE_CHECKING:  # this imports torch, which a refused command does without
    from dinoswap.evaluation.evaluator import Evaluation

SIZES = "evaluation.more_sizes"


def is_of_judging(override: str) -> bool:
    """Tells whether an override says what is measured, or what it is measured on."""
    key = key_of(override)
    return key in (SIZES, *OF_METRICS) or key.startswith(tuple(f"evaluation.{group}." for group in OF_METRICS))


def judge(folder: Path, evaluation: Mapping[str, Any], overrides: Sequence[str]) -> list[str]:
    """Evaluates the completed run in `folder` by those families that its study asks for and run.json lacks, and returns
    the names of the numbers that were added. `evaluation` is this section in the study, which `overrides` change.

    Raises ConfigError for an override that is refused, CheckpointError without a whole checkpoint, Held where another
    process has the run, OSError where its files cannot be read or written, and ValueError where the images or the
    checkpoint are not those of the run's end.
    """
    config = with_overrides({**config_of(folder)[0], "evaluation": evaluation}, overrides)
    check_evaluation(config, of_weights=False)
    record = load_record(folder / "run.json")
    families = unmeasured(config, record["metrics"])
    if not families:
        return []
    from dinoswap.run.judge import judge_run

    source, trained = build_source(config), newest(folder)
    if trained.step != record["steps"]:
        raise ValueError(f"{folder}: its last whole checkpoint is of step {trained.step}, not {record['steps']}")
    if DataFacts.of(config, source).fingerprint != record["data"].get("fingerprint"):
        raise ValueError(f"{folder}: data.path={config['data'].get('path')} has other images than the run was made on")
    only = {family: config["evaluation"]["metric"][family] for family in families}
    first = next(iter(build_metrics(config)[families[0]].scores))
    config = {
        **config,
        "evaluation": {**config["evaluation"], "metric": only},
        "objective_metric": f"eval/{first}",  # which has to be measured
    }
    with exclusive(folder):
        return add(folder, judge_run(config, source, trained, "teacher", folder / "evaluation"), config)


def unmeasured(config: Mapping[str, Any], recorded: Collection[str]) -> list[str]:
    """Returns the families of a config of whose numbers, at each size that is asked for, none are recorded."""
    names = [name.removeprefix("eval/") for name in recorded if name.startswith("eval/")]
    families = []
    for family, metric in build_metrics(config).items():
        known = [name for name in names if name.partition("/")[0] in metric.scores]
        sizes = config["evaluation"]["more_sizes"] if isinstance(metric, DenseMetric) else ()
        if not known or not all(any(name.endswith(f"/{size}") for name in known) for size in sizes):
            families.append(family)
    return families


def add(folder: Path, evaluation: "Evaluation", config: Mapping[str, Any]) -> list[str]:
    """Adds to run.json the numbers that it lacks, and to the folder the pictures that it lacks, and returns the names
    of the numbers."""
    from dinoswap.files.pictures import save_png

    path = folder / "run.json"
    record = load_record(path)
    new = {name: value for name, value in evaluation.metrics.items() if name not in record["metrics"]}
    record["metrics"] |= {name: value if math.isfinite(value) else None for name, value in new.items()}
    judgement = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "names": list(new),
        "evaluation": config["evaluation"],
        "versions": provenance.versions(),
    }
    record["judged"] = [*record.get("judged", []), judgement]
    (folder / "pictures").mkdir(exist_ok=True)
    for name, picture in evaluation.pictures.items():
        if not (place := folder / "pictures" / f"{name}.png").exists():
            save_png(place, picture)
    write_atomically(path, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return list(new)
