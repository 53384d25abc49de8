"""Where a run lies: results_dir/runs/<study or "single">/<run_id>/seed<k>.

Whoever asks for a run before it begins (a launcher, the plan of a study) names its folder by the same function as the
run itself. What only the run will know is missing there: images that are on the nodes alone, or how many ranks there
are. The folder is then named by what is known, and the run, once it has named its own, leaves a pointer in it.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.types import RunMode

from dinoswap.config.configuration import flatten
from dinoswap.config.facts import RANKS, DataFacts, data_facts, facts
from dinoswap.config.first_check import require_writable
from dinoswap.config.identity import identity, run_id
from dinoswap.files.reading import RECORD_BYTES, parse_object, read_small
from dinoswap.files.writing import write_atomically

HARMLESS = "."
"""hydra.run.dir and hydra.sweep.subdir in train.yaml: Hydra wants a folder before anything is known of a run."""
POINTER = "elsewhere.json"
"""In the folder that a run was asked for under, where that is not its own: `{"folder": relative path}`."""
PLACE = "DINOSWAP_RUN_PLACE"
"""In the environment of a job that was launched: the folder where its launcher looks for the run."""
NAMED_BY_TEXT = ("data.path", "data.test_path", "da3.ckpt_path")
AS_WRITTEN = " as written"
"""What stands for images and weights that cannot be read here, and what is added to its name."""

_log = logging.getLogger(__name__)
_told: set[str] = set()


def runs_root(config: Mapping[str, Any]) -> Path:
    """The folder of all studies. Raises ConfigError where nothing can be written."""
    require_writable(config)
    return Path(config["results_dir"]) / "runs"


def folder_of(config: Mapping[str, Any], name: str, hydra: Any) -> Path:
    """Absolute: the folder of the run `name`, by the node `hydra` of its config. hydra.run.dir, or sweep.dir and
    subdir, count where the user has given them; Hydra's own folder is the one that it is started in."""
    multirun = hydra.mode == RunMode.MULTIRUN
    given = str(hydra.sweep.subdir if multirun else hydra.run.dir)
    if given != HARMLESS:
        return Path(hydra.sweep.dir, given).absolute() if multirun else Path(given).absolute()
    root = runs_root(config)
    return ((Path(hydra.sweep.dir) if multirun else root) / relative_folder(config, name)).absolute()


def relative_folder(config: Mapping[str, Any], name: str) -> Path:
    """<study or "single">/<name>/seed<k>."""
    return Path(str(config["study"] or "single"), name, f"seed{config['seed']}")


def own_identity(config: Mapping[str, Any], data: DataFacts, ranks: int = 1) -> dict[str, Any]:
    """All that decides the result of a run but its seed."""
    return dict(sorted({**identity(config), **facts(config, data, ranks)}.items()))


def planned_id(config: Mapping[str, Any], ranks: int = 1) -> str:
    return run_id(planned_identity(config, ranks))


def planned_identity(config: Mapping[str, Any], ranks: int = 1) -> dict[str, Any]:
    """Of a run that has not begun, as far as it is known here: its own where images and weights can be read."""
    try:
        return own_identity(config, data_facts(config), ranks)
    except Exception as error:  # whatever a reader raises; the run will raise it too, or has what is missing here
        if (reason := " ".join(str(error).split())) not in _told:
            _told.add(reason)
            _log.warning("%s: the run is named when it begins", reason)
    written = flatten(config)
    return identity(config) | {f"{key}{AS_WRITTEN}": written[key] for key in NAMED_BY_TEXT if written.get(key)}


def planned_folder(config: Mapping[str, Any], ranks: int = 1) -> Path:
    """Below `runs_root`."""
    return relative_folder(config, planned_id(config, ranks))


# --- pointers ---------------------------------------------------------------------------------------------------------


def followed(place: Path) -> Path:
    """The folder of the run that was asked for at `place`: itself, or where its pointer leads."""
    try:
        pointer = parse_object(read_small(place / POINTER, RECORD_BYTES))
        return Path(os.path.normpath(place / pointer["folder"]))
    except (OSError, ValueError, LookupError, TypeError):
        return place


def leave_word(config: Mapping[str, Any], folder: Path, own: Mapping[str, Any]) -> None:
    """That the run of identity `own` is in `folder`, wherever else it is looked for: by its launcher, and by its study,
    which does not know how many ranks there are and asks for one."""
    if place := os.environ.get(PLACE):
        point(Path(place), folder)
    if RANKS in own and config["study"] and folder.parent.name == run_id(own):
        alone = folder.parents[1] / run_id({key: own[key] for key in own if key != RANKS}) / folder.name
        if not (alone / "run.json").exists():
            point(alone, folder)
    (folder / POINTER).unlink(missing_ok=True)


def point(place: Path, folder: Path) -> None:
    """Leave word at `place` that the run is in `folder`; what a job left there that could not begin is superseded. The
    job that SLURM has for this run is the run's."""
    if place.resolve() == folder.resolve():
        return
    place.mkdir(parents=True, exist_ok=True)
    (place / "run.json").unlink(missing_ok=True)
    if (claim := place / "job.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "job.json", claim.read_text())
    relative = os.path.relpath(folder, place)
    write_atomically(place / POINTER, json.dumps({"folder": relative}) + "\n")
