"""What a new run has to do with those that are there: it may be one of them on other images, or nearly one of them.

Their run.json has the identity that their name is a hash of. Runs written before it had one are passed over.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dinoswap.config.facts import IMAGES, RANKS, WEIGHTS
from dinoswap.config.identity import same
from dinoswap.config.schema import ConfigError
from dinoswap.files.reading import RECORD_BYTES, parse_object, read_small

FEW = 4
"""Keys in which a configuration may differ that is nearly the same."""
WORDS = {IMAGES: "the images", WEIGHTS: "the weights of da3.ckpt_path", RANKS: "the number of ranks"}

Identity = Mapping[str, Any]


def require_same_images(study: Path, seed: int, own: Identity, data: Mapping[str, Any]) -> None:
    """Raises ConfigError when the run was begun on other images: when the folder of a study, or of all single runs, has
    one with a checkpoint to go on from, not completed, that is the same but for the images at the same path."""
    for folder, record in recorded(study, f"*/seed{seed}"):
        before = record.get("data")
        if (
            isinstance(before, Mapping)
            and before.get("path") == data["path"]
            and record.get("status") != "completed"
            and differing(own, record["identity"]) == [IMAGES]
            and any((folder / "checkpoints").glob("step-*"))
        ):
            other = ", but not the same ones" if _counted(before) == _counted(data) else ""
            raise ConfigError(
                f"data.path={data['path']}: this run was begun on {_counted(before)}, and there are {_counted(data)} "
                f"now{other}. Put them back to go on with it; or begin anew: give the new data a name, study=..., or "
                f"remove {folder}"
            )


def _counted(data: Mapping[str, Any]) -> str:
    return f"{data.get('images')} images ({data.get('test_images') or 0} for testing)"


def nearest(study: Path, own: Identity) -> str | None:
    """'differs from 727b5eed41 in trainer.max_steps': of the runs that are there the one that differs in the fewest
    keys, the latest of several; None where none is near."""
    found: dict[str, tuple[int, str, list[str]]] = {}
    for folder, record in recorded(study, "*/seed*"):
        keys = differing(own, record["identity"])
        if folder.parent.name not in found and 0 < len(keys) <= FEW:
            found[folder.parent.name] = (-len(keys), str(record.get("started")), keys)
    if not found:
        return None
    name, (_, _, keys) = max(found.items(), key=lambda item: item[1])
    return f"differs from {name} in {', '.join(WORDS.get(key, key) for key in keys)}"


def recorded(study: Path, pattern: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Run folders and their records, as far as these hold an identity."""
    for path in sorted(study.glob(f"{pattern}/run.json")):
        try:
            record = parse_object(read_small(path, RECORD_BYTES))
        except (OSError, ValueError):
            continue
        if isinstance(record.get("identity"), dict):
            yield path.parent, record


def differing(one: Identity, other: Identity) -> list[str]:
    """The keys that only one has, or that have another value; not those of an option where the option is another."""
    keys = sorted(key for key in {*one, *other} if not same(one.get(key, "(default)"), other.get(key, "(default)")))
    return [key for key in keys if not any(key.startswith(f"{option}.") for option in keys)]
