"""The folder of a run: results_dir/runs/<study or "single">/<run_id>/seed<k>.

A launcher or the plan of a study names the folder of a run before it begins, by the same function as the run itself.
It may not know all that the run will know, such as images that are only on the nodes, or the number of ranks. It then
names a folder by what it knows, and the run, once it has named its own folder, writes a pointer into that one.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.types import RunMode

from dinoswap.config.configuration import flatten
from dinoswap.config.facts import PATHS_OF_WEIGHTS, RANKS, DataFacts, data_facts, facts
from dinoswap.config.first_check import require_writable
from dinoswap.config.identity import identity, run_id
from dinoswap.config.sections import with_its_backbone
from dinoswap.files.reading import RECORD_BYTES, parse_object, read_small
from dinoswap.files.writing import write_atomically

HARMLESS = "."
"""Value of hydra.run.dir and hydra.sweep.subdir in train.yaml, as Hydra needs a folder before a run can be named."""
POINTER = "elsewhere.json"
"""Name of the pointer file in the folder planned for a run that has another one: `{"folder": relative path}`."""
PLACE = "DINOSWAP_RUN_PLACE"
"""Environment variable of a launched job: the folder where its launcher looks for the run."""
NAMED_BY_TEXT = ("data.path", "data.test_path", *PATHS_OF_WEIGHTS.values())
AS_WRITTEN = " as written"
"""Suffix of the keys in `NAMED_BY_TEXT` where a path stands for images or weights that cannot be read here."""

_log = logging.getLogger(__name__)
_logged_reasons: set[str] = set()


def runs_root(config: Mapping[str, Any]) -> Path:
    """Returns the folder of all studies. Raises ConfigError where nothing can be written."""
    require_writable(config)
    return Path(config["results_dir"]) / "runs"


def folder_of(config: Mapping[str, Any], name: str, hydra: Any) -> Path:
    """Returns the absolute folder of the run `name`; `hydra` is the node `hydra` of its config. hydra.run.dir, or
    hydra.sweep.dir and subdir, decide where the user has given them."""
    multirun = hydra.mode == RunMode.MULTIRUN
    given = str(hydra.sweep.subdir if multirun else hydra.run.dir)
    if given != HARMLESS:
        return Path(hydra.sweep.dir, given).absolute() if multirun else Path(given).absolute()
    root = runs_root(config)
    return ((Path(hydra.sweep.dir) if multirun else root) / relative_folder(config, name)).absolute()


def relative_folder(config: Mapping[str, Any], name: str) -> Path:
    """Returns the folder of a run below `runs_root`: <study or "single">/<name>/seed<k>."""
    return Path(str(config["study"] or "single"), name, f"seed{config['seed']}")


def own_identity(config: Mapping[str, Any], data: DataFacts, ranks: int = 1) -> dict[str, Any]:
    """Returns all that decides the result of a run but its seed, by dotted key."""
    return dict(sorted({**identity(config), **facts(config, data, ranks)}.items()))


def planned_id(config: Mapping[str, Any], ranks: int = 1) -> str:
    """Returns the run_id of a run that has not begun, as far as it is known here."""
    return run_id(planned_identity(config, ranks))


def planned_identity(config: Mapping[str, Any], ranks: int = 1) -> dict[str, Any]:
    """Returns the identity of a run that has not begun. Where images or weights cannot be read here, the paths in
    `NAMED_BY_TEXT` stand for them, and the reason is logged once."""
    try:
        return own_identity(with_its_backbone(config), data_facts(config), ranks)
    except Exception as error:  # any error of a reader: the run raises it too, or has what is missing here
        if (reason := " ".join(str(error).split())) not in _logged_reasons:
            _logged_reasons.add(reason)
            _log.warning("%s: the run is named when it begins", reason)
    written = flatten(config)
    return identity(config) | {f"{key}{AS_WRITTEN}": written[key] for key in NAMED_BY_TEXT if written.get(key)}


def planned_folder(config: Mapping[str, Any], ranks: int = 1) -> Path:
    """Returns the folder, below `runs_root`, of a run that has not begun."""
    return relative_folder(config, planned_id(config, ranks))


# --- pointers ---------------------------------------------------------------------------------------------------------


def followed(place: Path) -> Path:
    """Returns the folder of the run that was planned at `place`: `place` itself or the folder its pointer names."""
    try:
        pointer = parse_object(read_small(place / POINTER, RECORD_BYTES))
        return Path(os.path.normpath(place / pointer["folder"]))
    except (OSError, ValueError, LookupError, TypeError):
        return place


def write_pointers(config: Mapping[str, Any], folder: Path, run_identity: Mapping[str, Any]) -> None:
    """Writes pointers to `folder`, which has the run of `run_identity`, where else it is looked for: by its launcher,
    and by its study, which does not know the number of ranks and names the run as one of a single rank."""
    if place := os.environ.get(PLACE):
        point(Path(place), folder)
    if RANKS in run_identity and config["study"] and folder.parent.name == run_id(run_identity):
        single_rank = {key: value for key, value in run_identity.items() if key != RANKS}
        planned = folder.parents[1] / run_id(single_rank) / folder.name
        if not (planned / "run.json").exists():
            point(planned, folder)
    (folder / POINTER).unlink(missing_ok=True)


def point(place: Path, folder: Path) -> None:
    """Writes a pointer at `place` to the run in `folder`. It replaces the run.json of a job that could not begin there,
    and copies job.json, the claim of the SLURM job, to `folder`."""
    if place.resolve() == folder.resolve():
        return
    place.mkdir(parents=True, exist_ok=True)
    (place / "run.json").unlink(missing_ok=True)
    if (claim := place / "job.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "job.json", claim.read_text())
    relative = os.path.relpath(folder, place)
    write_atomically(place / POINTER, json.dumps({"folder": relative}) + "\n")
