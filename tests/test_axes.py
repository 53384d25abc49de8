"""The axes together: presets take all switches, every pair of options trains, and two arms share what they can."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from axis_arms import AXES, OPTIONS, PAIRWISE, PRESETS, Arm, PairwiseArm, differing_keys, pairs_of, teacher_of
from dinoswap.config.command_line import chosen_options, compose_config
from dinoswap.config.configuration import flatten
from dinoswap.config.settings import check
from dinoswap.optim.param_groups import Group
from renew_golden import PAIRS
from switches import DETAILS, Switch, switches, typed

SWITCHES = list(switches())
COMPARED = [preset for preset in PRESETS if preset != "aligned"]  # which has no option that the others lack


# --- preset, command line ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def composed() -> dict[tuple[str, Switch], dict[str, object]]:
    """The flat config of every preset with every switch, each of them accepted."""
    configs = {}
    for preset in COMPARED:
        for switch in [(), *SWITCHES]:
            config = compose_config(["recipe=smoke", f"preset={preset}", *switch])
            check(config)
            configs[preset, switch] = flatten(config)
    return configs


def test_every_switch_changes_a_preset(composed: dict[tuple[str, Switch], dict[str, object]]) -> None:
    for switch in SWITCHES:
        assert any(composed[preset, switch] != composed[preset, ()] for preset in COMPARED), switch


def test_a_switch_changes_its_axis_alone(composed: dict[tuple[str, Switch], dict[str, object]]) -> None:
    """What a group's option changes lies in that group's place of the config."""
    places = {axis: axis.partition("@")[2] or axis for axis in AXES if axis != "details"}
    places |= {axis: f"objectives.{axis}" for axis in ("clustering", "gram")}
    before = composed["legacy", ()]
    for (preset, switch), after in composed.items():
        place = places.get(switch[0].partition("=")[0]) if switch and preset == "legacy" else None
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert place is None or all(key.startswith(place) for key in changed), (switch, changed)


@pytest.mark.parametrize("details", ["legacy", "dinov3"])
def test_details_can_be_changed_one_by_one(details: str, composed: dict[tuple[str, Switch], dict[str, object]]) -> None:
    """Every key that the option changes."""
    official, legacy = composed["official", ()], composed["official", (f"details={details}",)]
    changed = {key for key in official.keys() | legacy.keys() if official.get(key) != legacy.get(key)}
    alone = set()
    for switch in DETAILS:
        single = composed["official", switch]
        alone |= {key for key in changed if single.get(key) == legacy.get(key) != official.get(key)}
    assert alone == changed


def test_the_later_wins() -> None:
    def masking(*overrides: str) -> str:
        return chosen_options(overrides)["masking"]

    assert masking() == "block"
    assert masking("preset=legacy") == "bernoulli"
    assert masking("preset=legacy", "masking=block_exact") == "block_exact"
    assert masking("masking=block_exact", "preset=legacy") == "block_exact"


# --- every pair -------------------------------------------------------------------------------------------------------


def test_the_arms_cover_every_pair() -> None:
    covered = set().union(*(pairs_of(arm) for arm in PAIRWISE))
    expected = math.comb(sum(map(len, OPTIONS.values())), 2) - sum(math.comb(len(o), 2) for o in OPTIONS.values())
    assert len(covered) == expected


@pytest.fixture(scope="module")
def golden() -> dict[str, list[float]]:
    """Overrides of an arm -> the losses of its two steps. Where this fails and the change is meant: make golden."""
    lines = [line.split(" ", 2) for line in PAIRS.read_text().splitlines()]
    return {overrides: [float(first), float(second)] for first, second, overrides in lines}


@pytest.mark.parametrize("choices", PAIRWISE, ids=lambda choices: ",".join(choices.values()))
def test_every_pair_of_options_trains(choices: dict[str, str], golden: dict[str, list[float]]) -> None:
    arm = PairwiseArm(choices)
    clip, without, losses = arm.trainer.clip, [], []

    def recorded(groups: list[Group]) -> dict[str, Tensor]:
        without.append({n for g in groups for n, p in zip(g["names"], g["params"], strict=True) if p.grad is None})
        return clip(groups)

    arm.trainer.clip = recorded
    before = arm.weights()
    for step in range(2):
        logs = arm.step(step)
        assert all(value.isfinite() for value in logs.values()), logs
        assert logs["nonfinite"] == 0
        losses.append(float(logs["loss"]))
    np.testing.assert_allclose(losses, golden[" ".join(arm.overrides)], rtol=1e-4)
    assert without == [set(), set()]
    moved = {name for name, value in arm.weights().items() if not torch.equal(value, before[name])}
    trained = {f"student.{name}" for name, p in arm.trainer.model.student.named_parameters() if p.requires_grad}
    assert trained <= moved


# --- pairing ----------------------------------------------------------------------------------------------------------

# What two arms of one seed share although they differ by a switch. `crops` are globals and locals.
OPTIMISATION = {"crops", "mask", "weights", "losses"}
OBJECTIVE = {"crops", "mask", "weights"}
SHARED = {
    "weight_decay=": OPTIMISATION,
    "layer_decay=": OPTIMISATION,
    "optimizer.": OPTIMISATION,
    "schedule": OPTIMISATION,
    "heads.dino_head.weight_norm": OBJECTIVE,
    "heads.": OPTIMISATION,
    "model.mask_token_std": {"crops", "mask", "weights"},
    "model.token_std": {"crops", "mask", "weights"},
    "objectives.koleo.": OBJECTIVE,
    "targets@": OBJECTIVE,
    "model.residual_dropout": OBJECTIVE,
    "model.layerscale": OBJECTIVE,
    "model.registers": {"crops", "mask", "heads"},
    "model.ffn": {"crops", "mask", "heads"},
    "details=": {"crops", "mask", "heads"},
    "reduction@": OBJECTIVE,
    "clustering=": OBJECTIVE,
    "da3=": OBJECTIVE,
    "gram=": OBJECTIVE,
    "position=": {"crops", "mask", "weights"},
    "resolution=": {"weights"},
    "masking=": {"crops", "weights"},
    "forward=": {"crops", "weights"},
    "augmentation=": {"mask", "weights"},
}
CHANGED_WEIGHTS = {
    "model.layerscale": (".gamma",),
    "model.mask_token_std": ("mask_token",),
    "model.token_std": ("cls_token", "register_tokens"),
}


@pytest.fixture(scope="module")
def bases() -> dict[str, Arm]:
    return {preset: Arm(f"preset={preset}") for preset in COMPARED}


@pytest.mark.parametrize("switch", SWITCHES, ids=typed)
def test_two_arms_share_what_they_can(switch: Switch, bases: dict[str, Arm]) -> None:
    key = next(key for key in SHARED if switch[0].startswith(key))
    compared = 0
    for preset, base in bases.items():
        if compared and preset not in ("official", "legacy"):
            break  # it is for what changes neither of these
        arm = Arm(f"preset={preset}", *switch, *teacher_of(switch[0].removeprefix("da3=")))
        if differing_keys(arm, base):
            compared += 1
            check_shared(base, arm, SHARED[key], CHANGED_WEIGHTS.get(key, ()))
    assert compared


def check_shared(base: Arm, arm: Arm, shared: set[str], changed: tuple[str, ...]) -> None:
    one, other = base.raw_batch(3), arm.raw_batch(3)
    assert torch.equal(one.indices, other.indices)
    if "crops" in shared:
        assert torch.equal(one.global_crops, other.global_crops)
        assert torch.equal(one.local_crops, other.local_crops)
    if "mask" in shared:
        assert torch.equal(one.mask, other.mask)
    a, b = base.weights(), arm.weights()
    common = [name for name in a.keys() & b.keys() if "weights" in shared or "_head." in name]
    assert len(common) > 10
    for name in common:
        assert torch.equal(a[name], b[name]) or name.endswith(changed), name
    if "losses" in shared:
        terms = [loss_terms(each, one.normalised(torch.zeros(3), torch.ones(3))) for each in (base, arm)]
        assert terms[0] == terms[1]


def loss_terms(arm: Arm, batch: object) -> dict[str, float]:
    """Of the model as it is, in eval mode, so that no centre moves and nothing is dropped."""
    arm.trainer.model.eval()
    loss, terms = arm.trainer.model(batch, arm.trainer.schedules.at(0))
    arm.trainer.model.train()
    return {"loss": float(loss.detach()), **{name: float(value) for name, value in terms.items()}}
