"""The axes together: every preset takes every flip, every pair of options trains, and two arms share what they can."""

import itertools
import math
import random
from collections.abc import Iterator

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from axis_arms import FLIPS, PRESETS, Arm, differing_keys
from dinoswap.config.command_line import chosen_options
from dinoswap.config.configuration import VERSION_BASE, config_dir, flatten, plain
from dinoswap.config.explain import options, presets
from dinoswap.config.settings import check
from dinoswap.optim.param_groups import Group
from fixtures import DA3

AXES = list(presets()["official"])
OPTIONS = {axis: [option.name for option in options(axis)] for axis in AXES}


# --- preset, flip, command line ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def composed() -> dict[tuple[str, str], dict[str, object]]:
    """The flat config of every preset with every flip, each of them accepted."""
    configs = {}
    with initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
        for preset, flip in itertools.product(PRESETS, ["none", *FLIPS]):
            config = plain(compose("train", ["recipe=smoke", f"preset={preset}", f"flip={flip}"]))
            check(config)
            configs[preset, flip] = flatten(config)
    return configs


def test_every_flip_changes_a_preset(composed: dict[tuple[str, str], dict[str, object]]) -> None:
    for flip in FLIPS:
        assert any(composed[preset, flip] != composed[preset, "none"] for preset in PRESETS), flip


def test_a_flip_changes_its_axis_alone(composed: dict[tuple[str, str], dict[str, object]]) -> None:
    """What a flip that names a group's option changes lies in that group's place of the config."""
    places = {axis.partition("@")[0]: axis.partition("@")[2] or axis for axis in AXES if not axis.startswith("reduc")}
    places["clustering"] = "objectives.clustering"
    for flip in FLIPS:
        group = next((group for group in places if flip.startswith(f"{group}_")), "details")
        if group == "details" or flip.startswith("reduction"):
            continue
        before, after = composed["legacy", "none"], composed["legacy", flip]
        changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        assert all(key.startswith(places[group]) for key in changed), (flip, changed)


def test_the_later_wins() -> None:
    def masking(*overrides: str) -> str:
        return chosen_options(overrides)["masking"]

    assert masking() == "block"
    assert masking("preset=legacy") == "bernoulli"
    assert masking("preset=legacy", "flip=masking_block_exact") == "block_exact"
    assert masking("preset=legacy", "flip=masking_block_exact", "masking=inverse_block") == "inverse_block"
    assert masking("masking=inverse_block", "flip=masking_block_exact", "preset=legacy") == "inverse_block"


# --- every pair -------------------------------------------------------------------------------------------------------


Pairs = set[frozenset[tuple[str, str]]]


def pairs_of(arm: dict[str, str]) -> Pairs:
    return {frozenset(pair) for pair in itertools.combinations(arm.items(), 2)}


def covering_arms(options: dict[str, list[str]], seed: int = 0) -> Iterator[dict[str, str]]:
    """Choices for every axis, such that each pair of options of two axes occurs: greedy, of some random candidates."""
    generator = random.Random(seed)
    left: Pairs = set()
    for a, b in itertools.combinations(options, 2):
        left |= {frozenset([(a, x), (b, y)]) for x, y in itertools.product(options[a], options[b])}
    while left:
        first = dict(generator.choice(sorted(sorted(pair) for pair in left)))
        candidates = [{axis: generator.choice(found) for axis, found in options.items()} | first for _ in range(50)]
        covers = [left & pairs_of(arm) for arm in candidates]
        best = max(range(len(covers)), key=lambda index: len(covers[index]))
        left -= covers[best]
        yield candidates[best]


ARMS = list(covering_arms(OPTIONS))


def test_the_arms_cover_every_pair() -> None:
    covered = set().union(*(pairs_of(arm) for arm in ARMS))
    expected = math.comb(sum(map(len, OPTIONS.values())), 2) - sum(math.comb(len(o), 2) for o in OPTIONS.values())
    assert len(covered) == expected


def teacher_of(option: str) -> list[str]:
    """A small one."""
    return [f"da3.ckpt_path={DA3 / 'da3_tiny.safetensors'}", "da3.projector_hidden_dim=32"] * (option == "enabled")


@pytest.mark.parametrize("choices", ARMS, ids=lambda choices: ",".join(choices.values()))
def test_every_pair_of_options_trains(choices: dict[str, str]) -> None:
    arm = Arm(*(f"{axis}={option}" for axis, option in choices.items()), *teacher_of(choices["da3"]))
    clip, without = arm.trainer.clip, []

    def recorded(groups: list[Group]) -> dict[str, Tensor]:
        without.append({n for g in groups for n, p in zip(g["names"], g["params"], strict=True) if p.grad is None})
        return clip(groups)

    arm.trainer.clip = recorded
    before = arm.weights()
    for step in range(2):
        logs = arm.step(step)
        assert all(value.isfinite() for value in logs.values()), logs
        assert logs["nonfinite"] == 0
    assert without == [set(), set()]
    moved = {name for name, value in arm.weights().items() if not torch.equal(value, before[name])}
    trained = {f"student.{name}" for name, p in arm.trainer.model.student.named_parameters() if p.requires_grad}
    assert trained <= moved


# --- pairing ----------------------------------------------------------------------------------------------------------

# What two arms of one seed share although they differ by a flip. `crops` are globals and locals.
OPTIMISATION = {"crops", "mask", "weights", "losses"}
OBJECTIVE = {"crops", "mask", "weights"}
SHARED = {
    "weight_decay": OPTIMISATION,
    "layer_decay": OPTIMISATION,
    "details_clip": OPTIMISATION,
    "details_freeze": OPTIMISATION,
    "details_lr_scaling": OPTIMISATION,
    "details_weight_decay_warmup": OPTIMISATION,
    "details_teacher_temp": OPTIMISATION,
    "details_weight_g": OPTIMISATION,
    "details_mask_token": {"crops", "mask", "weights"},
    "details_koleo": OBJECTIVE,
    "details_dino_sinkhorn": OBJECTIVE,
    "details_prototype_sinkhorn": OBJECTIVE,
    "details_dropout": OBJECTIVE,
    "details_layerscale": OBJECTIVE,
    "details_registers": {"crops", "mask", "heads"},
    "details_ffn": {"crops", "mask", "heads"},
    "details_official": {"crops", "mask", "heads"},
    "details_legacy": {"crops", "mask", "heads"},
    "reduction": OBJECTIVE,
    "clustering": OBJECTIVE,
    "da3": OBJECTIVE,
    "masking": {"crops", "weights"},
    "forward": {"crops", "weights"},
    "augmentation": {"mask", "weights"},
}
CHANGED_WEIGHTS = {"details_layerscale": ".gamma", "details_mask_token": "mask_token"}


@pytest.fixture(scope="module")
def bases() -> dict[str, Arm]:
    return {preset: Arm(f"preset={preset}") for preset in ("official", "legacy")}


@pytest.mark.parametrize("flip", FLIPS)
def test_two_arms_share_what_they_can(flip: str, bases: dict[str, Arm]) -> None:
    key = next(key for key in SHARED if flip.startswith(key))
    compared = 0
    for preset, base in bases.items():
        arm = Arm(f"preset={preset}", f"flip={flip}", *teacher_of(flip.removeprefix("da3_")))
        if differing_keys(arm, base):
            compared += 1
            check_shared(base, arm, SHARED[key], CHANGED_WEIGHTS.get(key))
    assert compared


def check_shared(base: Arm, arm: Arm, shared: set[str], changed: str | None) -> None:
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
        assert torch.equal(a[name], b[name]) or (changed is not None and changed in name), name
    if "losses" in shared:
        terms = [loss_terms(each, one.normalised(torch.zeros(3), torch.ones(3))) for each in (base, arm)]
        assert terms[0] == terms[1]


def loss_terms(arm: Arm, batch: object) -> dict[str, float]:
    """Of the model as it is, in eval mode, so that no centre moves and nothing is dropped."""
    arm.trainer.model.eval()
    loss, terms = arm.trainer.model(batch, arm.trainer.schedules.at(0))
    arm.trainer.model.train()
    return {"loss": float(loss.detach()), **{name: float(value) for name, value in terms.items()}}
