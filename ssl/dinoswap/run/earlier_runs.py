"""Compares a new run with those in the results folder: it may be one of them on other images, or nearly one of them.

A run.json holds the identity that the name of its run is a hash of. Runs of older versions without one are skipped.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dinoswap.config.facts import IMAGES, PATHS_OF_WEIGHTS, RANKS
from dinoswap.config.identity import same
from dinoswap.config.schema import ConfigError
from dinoswap.files.reading import RECORD_BYTES, parse_object, read_small

STEPS = "trainer.max_steps"
FEW = 4
"""Two runs are nearly the same when their identities differ in at most this many keys."""
WORDS = {IMAGES: "the images", RANKS: "the number of ranks"}
WORDS |= {key: f"the weights of {path}" for key, path in PATHS_OF_WEIGHTS.items()}

Identity = Mapping[str, Any]


def require_same_images(study: Path, seed: int, identity: Identity, data: Mapping[str, Any]) -> None:
    """Raises ConfigError when this run was begun on other images: when the folder `study` has a run of this seed that
    is not completed, has a checkpoint to continue from, and differs in nothing but the images at the same path.

    `identity` and `data` (path and counts of images) are those of the new run."""
    for folder, record in runs_with_identity(study, f"*/seed{seed}"):
        before = record.get("data")
        if (
            isinstance(before, Mapping)
            and before.get("path") == data["path"]
            and record.get("status") != "completed"
            and differing(identity, record["identity"]) == [IMAGES]
            and any((folder / "checkpoints").glob("step-*"))
        ):
            counts, counts_now = _image_counts(before), _image_counts(data)
            other = ", but not the same ones" if counts == counts_now else ""
            raise ConfigError(
                f"data.path={data['path']}: this run was begun on {counts}, and there are {counts_now} "
                f"now{other}. Put them back to go on with it; or begin anew: give the new data a name, study=..., or "
                f"remove {folder}"
            )


def _image_counts(data: Mapping[str, Any]) -> str:
    """Returns how many images a run had, in words."""
    return f"{data.get('images')} images ({data.get('test_images') or 0} for testing)"


def nearest(study: Path, identity: Identity) -> str | None:
    """Returns 'differs from 727b5eed41 in trainer.max_steps' for the run in the folder `study` that differs in the
    fewest keys from `identity`, the latest of several, and how a completed one is trained for longer, where steps are
    all that differs. Returns None where none differs in `FEW` keys or fewer."""
    nearby: dict[str, tuple[int, str, list[str], str]] = {}
    for folder, record in runs_with_identity(study, "*/seed*"):
        keys = differing(identity, record["identity"])
        if folder.parent.name not in nearby and 0 < len(keys) <= FEW:
            longer = keys == [STEPS] and record.get("status") == "completed"
            hint = f" and begins anew; {to_train_longer(folder)}" if longer else ""
            nearby[folder.parent.name] = (-len(keys), str(record.get("started")), keys, hint)
    if not nearby:
        return None
    name, (_, _, keys, hint) = max(nearby.items(), key=lambda item: item[1])
    return f"differs from {name} in {', '.join(WORDS.get(key, key) for key in keys)}{hint}"


def to_train_longer(folder: Path) -> str:
    """Returns how the completed run in `folder` is trained for longer."""
    return f"start=run start.path={folder} {STEPS}=... trains what it has learnt for longer"


def runs_with_identity(study: Path, pattern: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields the run folders that match `pattern`, with their records, as far as these hold an identity."""
    for path in sorted(study.glob(f"{pattern}/run.json")):
        try:
            record = parse_object(read_small(path, RECORD_BYTES))
        except (OSError, ValueError):
            continue
        if isinstance(record.get("identity"), dict):
            yield path.parent, record


def differing(one: Identity, other: Identity) -> list[str]:
    """Returns the keys, sorted, that only one of the two has or that have different values. Where the options of a
    group differ, the keys below them are left out."""
    keys = sorted(key for key in {*one, *other} if not same(one.get(key, "(default)"), other.get(key, "(default)")))
    return [key for key in keys if not any(key.startswith(f"{option}.") for option in keys)]
