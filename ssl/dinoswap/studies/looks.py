"""When a study is looked at: the looks that its file plans, and the record of those that were taken.

    seeds: {looks: [3, 6, 12], spending: obrien_fleming}     analysed after 3, 6 and 12 seeds

A look shows effects, whoever has seen them may stop, and so each costs some certainty: a planned one what its spending
function says (statistics/boundaries.py), any other the use of an interval that holds at all times (repeated.py). The
record is results/runs/<study>/looks.jsonl, a line for each analysis of the runs: when, by which plan, and the seeds
that had ended of each cell, which is named by its run_id.
"""

import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from dinoswap.config.schema import ConfigError, construct
from dinoswap.files.reading import parse_object, read_lines

Spending = Literal["obrien_fleming", "pocock"]
RECORD = "looks.jsonl"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Looks:
    """The numbers of seeds after which a study is analysed, and how its error rate is spent on them."""

    counts: tuple[int, ...]
    spending: Spending = "obrien_fleming"

    def planned(self, ended: Collection[int], seeds: Sequence[int]) -> bool:
        """Returns whether the seeds that have ended are, of the study's seeds, those of a planned look."""
        return len(ended) in self.counts and set(ended) == set(seeds[: len(ended)])


@dataclass(frozen=True, kw_only=True)
class _Keys:
    looks: list[int]
    spending: Spending = "obrien_fleming"

    def __post_init__(self) -> None:
        rising = all(later > earlier for earlier, later in zip(self.looks, self.looks[1:], strict=False))
        if not self.looks or self.looks[0] < 2 or not rising:
            raise ValueError(f"looks={self.looks}: must be rising numbers of seeds from 2 on, as in [3, 6, 12]")


def read_looks(section: Mapping[str, Any]) -> Looks:
    """Returns the plan that `seeds` of a study file describes. Raises ConfigError for looks that are not rising numbers
    from 2 on, and for an unknown spending function."""
    keys = construct(_Keys, section, "seeds")
    return Looks(tuple(keys.looks), keys.spending)


# --- the record -------------------------------------------------------------------------------------------------------

Ended = Mapping[str, Collection[int]]
"""run_id -> the seeds that have ended."""


def record_look(root: Path, plan: Looks, ended: Ended) -> None:
    """Adds a look to the record in `root`, results/runs/<study>. Where that cannot be written it logs a warning: later
    reports will not know of this one."""
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "looks": plan.counts,
        "spending": plan.spending,
        "ended": {run_id: sorted(seeds) for run_id, seeds in ended.items()},
    }
    try:
        with (root / RECORD).open("a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        _log.warning("%s: this look is not recorded: %s", root / RECORD, error.strerror)


def recorded_looks(root: Path) -> list[tuple[Looks, Ended]]:
    """Returns the plan and the ended seeds of each look in the record. Raises ConfigError for a line that is no look:
    to leave it out would make a look free."""
    if not (root / RECORD).exists():
        return []
    found: list[tuple[Looks, Ended]] = []
    for number, line in enumerate(read_lines(root / RECORD), start=1):
        try:
            content = parse_object(line)
            ended = {run_id: [int(seed) for seed in seeds] for run_id, seeds in content["ended"].items()}
            found.append((Looks(tuple(content["looks"]), content["spending"]), ended))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{root / RECORD}: line {number} is no look: {error}; correct it, or remove it"
            ) from error
    return found


def unplanned_counts(
    recorded: Iterable[tuple[Looks, Ended]], plan: Looks, run_ids: Collection[str], seeds: Sequence[int]
) -> list[int]:
    """Returns the numbers of seeds at which an effect of these cells was seen when that was not planned, from 2 on, as
    one seed shows no effect. Looks by another plan than that of now were not."""
    counts = set()
    for of_then, ended in recorded:
        if all(run_id in ended for run_id in run_ids):
            common = set(seeds).intersection(*(ended[run_id] for run_id in run_ids))
            if len(common) > 1 and not (of_then == plan and plan.planned(common, seeds)):
                counts.add(len(common))
    return sorted(counts)
