"""Every arm of a study beside its reference, at each checkpoint of a trajectory: angles, norms, targets and losses.

The same images are given to both, and what both draw is drawn alike, so that an arm that changes nothing has an angle
of 0. The floor is the angle between the reference's gradient on these batches and on as many others: what a difference
of batches does. An angle far below it may still matter, as it has the same sign at every step while that of batches
averages out.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from dinoswap.config.schema import ConfigError
from dinoswap.studies.design import Cell
from dinoswap.studies.twins.arm import Arm

Measure = Literal["gradient", "update"]
MEASURES: tuple[Measure, ...] = ("gradient", "update")
BACKBONE = "backbone"
"""The part that holds all parameters of the backbone."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Turn:
    """How one part of an arm's gradient, or update, lies to the reference's: the angle in degrees, the ratio of their
    norms, and the angle between the reference's own on two sets of batches. nan where one of them is zero."""

    step: int
    arm: str
    measure: Measure
    part: str
    angle: float
    ratio: float
    floor: float


@dataclass(frozen=True)
class Apart:
    """How far an arm's loss term, or the targets of an objective, are from the reference's at a step: the mean total
    variation of targets (0 equal, 1 disjoint), the difference of terms. None where the two cannot be compared."""

    step: int
    arm: str
    name: str
    reference: float | None
    value: float | None


@dataclass
class Comparison:
    """What was computed along the trajectory. By arm, `own` names the parameters that the reference has not, or has in
    another shape, `fresh` the networks that begin with initial weights at checkpoints, and `refused` says why an arm
    cannot begin from the reference's weights at all."""

    steps: list[int]
    arms: list[str]
    batches: int
    turns: list[Turn] = field(default_factory=list)
    targets: list[Apart] = field(default_factory=list)
    terms: list[Apart] = field(default_factory=list)
    own: dict[str, list[str]] = field(default_factory=dict)
    fresh: dict[str, list[str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def angles(self, arm: str, measure: Measure, part: str = BACKBONE) -> list[Turn]:
        """Returns the turns of one part of an arm, by step."""
        return [turn for turn in self.turns if (turn.arm, turn.measure, turn.part) == (arm, measure, part)]

    def middle(self, arm: str, measure: Measure) -> float:
        """Returns the median over the steps of the angle of an arm's backbone, 0 where none is known."""
        return median([turn.angle for turn in self.angles(arm, measure) if math.isfinite(turn.angle)] or [0.0])


def compare(
    cells: Sequence[Cell],
    seed: int,
    checkpoints: Mapping[int, Path | None],
    batches: int,
    tell: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Returns every cell beside the first, at each checkpoint (step -> folder, None for initial weights), on so many
    batches of the same images. `tell` is given a name before an arm is computed."""
    comparison = Comparison(list(checkpoints), [cell.name for cell in cells[1:]], batches)
    for step, checkpoint in checkpoints.items():
        tell(f"step {step}, {cells[0].name}")
        arm = Arm(cells[0].overrides, seed, checkpoint)
        first = max(min(step, arm.steps - batches), 0)
        paired, others = range(first, first + batches), range(first + batches, first + 2 * batches)
        reference, floor = arm.gradient(paired, first), arm.gradient(others, first)
        targets = arm.targets(first)
        updates = {"gradient": reference.tensors, "update": arm.update(paired)}
        floors = {"gradient": floor.tensors, "update": Arm(cells[0].overrides, seed, checkpoint).update(others)}
        for cell in cells[1:]:
            tell(f"step {step}, {cell.name}")
            try:
                arm = Arm(cell.overrides, seed, checkpoint)
            except ConfigError as error:
                if checkpoint is None:
                    raise
                comparison.refused[cell.name] = str(error)
                continue
            gradient, own_targets = arm.gradient(paired, first), arm.targets(first)
            computed = {"gradient": gradient.tensors, "update": arm.update(paired)}
            for measure in MEASURES:
                rows = turned(updates[measure], computed[measure], floors[measure])
                comparison.turns += [Turn(step, cell.name, measure, part, *row) for part, row in rows.items()]
            comparison.targets += _targets_apart(step, cell.name, targets, own_targets)
            names = dict.fromkeys([*reference.terms, *gradient.terms])
            sides = (reference.terms, gradient.terms)
            comparison.terms += [Apart(step, cell.name, name, *(side.get(name) for side in sides)) for name in names]
            of_both, of_arm = updates["update"], computed["update"]
            comparison.own[cell.name] = [name for name in of_arm if not _comparable(of_both, of_arm, name)]
            comparison.fresh[cell.name] = arm.fresh
    return comparison


def turned(reference: Tensors, arm: Tensors, other: Tensors) -> dict[str, tuple[float, float, float]]:
    """Returns for each part (angle, ratio of norms, floor) of what both have in one shape; `other` is the reference's
    on other batches."""
    parts: dict[str, list[str]] = {}
    for name in reference:
        if _comparable(reference, arm, name):
            for part in parts_of(name):
                parts.setdefault(part, []).append(name)
    rows = {}
    for part, names in parts.items():
        sides = [_flat(side, names) for side in (reference, arm, other)]
        lengths = [float(side.norm()) for side in sides]
        ratio = lengths[1] / lengths[0] if lengths[0] else math.nan
        rows[part] = (angle(sides[0], sides[1]), ratio, angle(sides[0], sides[2]))
    return rows


def parts_of(name: str) -> tuple[str, ...]:
    """Returns the parts that a parameter of the student belongs to: its module, and in the backbone the whole and a
    block, the embedding or the norm."""
    module, _, rest = name.partition(".")
    if module != BACKBONE:
        return (module,)
    if block := re.match(r"blocks\.(\d+)\.", rest):
        return (BACKBONE, f"block {int(block[1]) + 1}")
    return (BACKBONE, "norm" if "norm" in rest else "embedding")


def angle(a: Tensor, b: Tensor) -> float:
    """Returns the angle between two vectors in degrees, nan where one is zero. It is computed from the sum and the
    difference of unit vectors (Kahan 2006), as an arc cosine loses what is below a hundredth of a degree."""
    lengths = a.norm(), b.norm()
    if not all(lengths):
        return math.nan
    u, v = a / lengths[0], b / lengths[1]
    return math.degrees(2 * math.atan2(float((u - v).norm()), float((u + v).norm())))


def _flat(tensors: Tensors, names: Sequence[str]) -> Tensor:
    return torch.cat([tensors[name].flatten().double() for name in names if name in tensors])


def _comparable(reference: Tensors, arm: Tensors, name: str) -> bool:
    return name in reference and name in arm and reference[name].shape == arm[name].shape


def _targets_apart(step: int, arm: str, reference: Tensors, own: Tensors) -> list[Apart]:
    """Returns how far targets of the same rows are apart."""
    apart = []
    for name in dict.fromkeys([*reference, *own]):
        comparable = _comparable(reference, own, name)
        distance = float((reference[name] - own[name]).abs().sum(-1).mean() / 2) if comparable else None
        apart.append(Apart(step, arm, name, 0.0 if comparable else None, distance))
    return apart
