"""noise.json: the numbers of a noise budget, and what the plan of a study reads from them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dinoswap.config.schema import ConfigError
from dinoswap.files.reading import RECORD_BYTES, parse_object, read_small
from dinoswap.studies.forecast import Spread
from dinoswap.studies.ledger import record_of
from dinoswap.studies.noise.budget import Budget, Pairing
from dinoswap.studies.noise.runs import NoiseRuns


@dataclass(frozen=True)
class Noise:
    """The noise of one metric: the budget of each arm, the reference's first, and what pairing two arms does."""

    metric: str
    budgets: Sequence[Budget]
    pairing: Pairing | None

    @property
    def difference_sd(self) -> float:
        """The standard deviation of the difference between two runs of one seed: measured where two arms were, else
        that of two runs that share nothing."""
        return self.pairing.sd.value if self.pairing else math.sqrt(2) * self.budgets[0].sd.value


def as_json(study: str, runs: NoiseRuns, threads: int | None, results: Sequence[Noise], unused: Sequence[str]) -> str:
    """Returns the content of noise.json: the design, the streams that the reference draws nothing from, the numbers by
    metric, and the values of all runs."""
    design = runs.design
    content = {
        "study": study,
        "levels": design.levels,
        "streams": list(design.streams),
        "bases": design.bases,
        "threads": threads,
        "unused": list(unused),
        "metrics": {noise.metric: {**asdict(noise), "difference_sd": noise.difference_sd} for noise in results},
        "runs": [
            {"arm": arm, "seeds": asdict(seeds), "threads": count, "values": _values(entry.folder, results)}
            for arm, count, of_arm in [
                *((arm, None, of_arm) for arm, of_arm in runs.arms.items()),
                (next(iter(runs.arms)), threads, runs.other_threads),
            ]
            for seeds, entry in of_arm.items()
        ],
    }
    return json.dumps(_finite(content), allow_nan=False) + "\n"


def _values(folder: Path, results: Sequence[Noise]) -> dict[str, float | None]:
    """Returns the values of a run by metric."""
    metrics = record_of(folder)[0].get("metrics", {})
    return {noise.metric: metrics.get(noise.metric) for noise in results}


def _finite(value: Any) -> Any:
    """Returns the value with None for numbers that are not finite, which JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def difference_of(path: Path, metric: str) -> Spread:
    """Returns the standard deviation of the difference between two runs of one seed that a noise.json knows of a
    metric. Raises ConfigError for a file that is none, or that does not know it."""
    try:
        metrics = parse_object(read_small(path, RECORD_BYTES))["metrics"]
        known = ", ".join(metrics)
        measured = metrics.get(metric, {})
        sd, pairing = measured.get("difference_sd"), measured.get("pairing")
        words = f"{pairing['arm']} against {pairing['reference']}" if pairing else "as if pairing took nothing away"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"--noise {path}: is no noise.json ({type(error).__name__}: {error})") from error
    if not sd:
        raise ConfigError(f"--noise {path}: knows no spread of {metric}, the metric that decides; of: {known}")
    return Spread(float(sd), f"from {path}, {words}")
