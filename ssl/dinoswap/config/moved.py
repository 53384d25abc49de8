"""Knows the keys that have moved since they were introduced: what a run is called, and what an older config.yaml says,
speaks of the place where a key was first."""

from typing import Any

TEACHER = "da3.teacher"
_OF_TEACHERS = ("variant", "num_heads", "layer", "token_part", "normalise_halves")
MOVED = {"da3.backend": f"teacher@{TEACHER}", **{f"da3.{key}": f"{TEACHER}.{key}" for key in _OF_TEACHERS}}
"""The key that each was introduced as -> what is typed today."""
RETIRED = ("trainer.tensorboard",)
"""Keys that were introduced, and whose place the group `tracker` has taken."""
INTRODUCED_AS = {today.rpartition("@")[2]: first for first, today in MOVED.items()}
BACKENDS = {"NativeTeacher": "native", "PackageTeacher": "package", "Dinov2Teacher": "dinov2", "TimmTeacher": "timm"}
"""The class of a teacher -> the value of da3.backend that chose it."""


def as_introduced(key: str, value: Any) -> tuple[str, Any]:
    """Returns a key and its value as they were when the key was introduced: da3.teacher.variant as da3.variant, and the
    class of a teacher as the da3.backend that chose it."""
    if key == TEACHER and value not in BACKENDS:  # of a guest
        return key, value
    return INTRODUCED_AS.get(key, key), BACKENDS[value] if key == TEACHER else value
