"""Recipes of DINOv3 against the numbers of the official runs that they are: one of ViT-L/16, three stages of the 7B."""

from typing import Any

import pytest

from dinoswap.build import build_model, build_objectives, build_schedules
from dinoswap.config.command_line import compose_config
from dinoswap.config.first_check import first_check
from dinoswap.config.schema import ConfigError
from dinoswap.config.sections import build_resolution, step_sizes
from dinoswap.config.settings import check
from fixtures import DINOV3, load_json

RECIPES = {
    "recipe_vitl_im1k_lin834": ["recipe=vitl16_dinov3"],
    "recipe_vit7b16_pretrain": ["recipe=vit7b16", "schedule=piecewise"],
    "recipe_vit7b16_gram_anchor": ["recipe=vit7b16_gram", "schedule=piecewise", "gram=snapshot"],
    "recipe_vit7b16_high_res_adapt": [
        "recipe=vit7b16_high_res", "schedule=piecewise", "gram=snapshot", "resolution=mixed"
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_official_run(name: str) -> None:
    case = load_json("schedules_dinov3.json", DINOV3)[name]
    cfg = compose_config(["preset=dinov3", *RECIPES[name]])
    check(cfg)
    official, optim = case["config"], case["config"]["optim"]
    assert cfg["data"]["batch_size"] == official["batch_size_per_gpu"] * official["world_size"]
    assert cfg["trainer"]["max_steps"] == case["total"]
    assert cfg["optimizer"]["betas"] == [optim["adamw_beta1"], optim["adamw_beta2"]]
    assert cfg["optimizer"]["clip_grad"] == optim["clip_grad"]
    assert cfg["layer_decay"]["rate"] == optim["layerwise_decay"]
    assert cfg["layer_decay"]["patch_embed_lr_mult"] == optim["patch_embed_lr_mult"]
    schedules = {**build_schedules(cfg)}
    for objective in build_objectives(cfg).values():
        schedules |= objective.schedules(case["total"])
    names = {"lr", "last_layer_lr", "weight_decay", "momentum", "teacher_temp", "dino_local_weight", "gram_weight"}
    for ours in names & case.keys():
        assert [schedules[ours][step] for step in case["steps"]] == pytest.approx(case[ours], rel=1e-12, abs=1e-15)
    assert ("gram_weight" in schedules) == ("gram_weight" in case) == official["gram"]["use_loss"]
    if official["gram"]["use_loss"]:
        copied = [step - 1 for step in range(case["total"]) if schedules["gram_refresh"][step]]
        assert copied == case.get("gram_updates_after_iteration", [])
        section = cfg["objectives"]["gram"]
        assert (section["normalise"], section["per_image"]) == (
            official["gram"]["normalized"],
            official["gram"]["img_level"],
        )
        assert (section["tokens"], section["negatives"]) == (official["gram"]["tokens_used"], "keep")
        assert section["resize"] == official["gram"]["global_teacher_resize_method"]


def test_crops_of_the_7b_are_the_official_ones() -> None:
    """Pixels of global crops, local crops, and those of the Gram teacher. 176 are 168, which cannot be cut into patches
    of 16."""
    gram, high_res = (compose_config(["preset=dinov3", *RECIPES[name]]) for name in list(RECIPES)[2:])

    def crops(cfg: dict[str, Any]) -> list[tuple[float, ...]]:
        scale = cfg["objectives"]["gram"]["crop_scale"]
        return [(entry.global_size, entry.local_size, scale * entry.global_size) for entry in step_sizes(cfg)]

    assert crops(gram) == [(256, 112, 512)]
    assert crops(high_res) == [(512, 112, 768), (768, 112, 1152), (768, 176, 1152), (768, 224, 1152), (768, 336, 1152)]
    drawn = load_json("resolution_dinov3.json", DINOV3)["high_res"]
    resolution = build_resolution(high_res)
    assert high_res["resolution"]["ratios"] == drawn["ratios"]
    assert [resolution.index(0, step) for step in range(50)] == drawn["indices"][:50]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe=vit7b16_gram", "schedule=piecewise"], r"objectives\.gram: the recipe is not made for this option"),
        (["recipe=vit7b16_gram", "gram=snapshot"], r"schedule\.base_lr=None: must be a number"),
        (["recipe=vit7b16_high_res", "gram=snapshot", "schedule=piecewise"], "resolution: the recipe is not made"),
        (["recipe=vit7b16_high_res", "schedule=piecewise", "resolution=mixed"], r"objectives\.gram: the recipe is not"),
    ],
)
def test_a_stage_without_what_makes_it_is_refused(overrides: list[str], message: str) -> None:
    cfg = compose_config(["preset=dinov3", *overrides])
    with pytest.raises(ConfigError, match=message):
        first_check(cfg)
        build_objectives(cfg)


def test_a_stage_needs_the_weights_of_its_first_gram_teacher() -> None:
    """Its size is that of recipe=smoke, so that it is built."""
    cfg = compose_config(["preset=dinov3", "recipe=smoke", "gram=snapshot", "trainer.device=cpu"])
    stage = compose_config(["preset=dinov3", *RECIPES["recipe_vit7b16_gram_anchor"]])
    cfg["objectives"]["gram"] = stage["objectives"]["gram"]
    with pytest.raises(ConfigError, match=r"objectives\.gram\.path=to-be-given: no such file"):
        build_model(cfg)


def test_what_the_7b_says_to_other_options_is_left_out() -> None:
    overrides = ["recipe=vit7b16", "preset=legacy", "schedule=piecewise", "position=rope"]
    cfg = compose_config(overrides)
    first_check(cfg)
    assert (cfg["position"]["rescale"], "rate" in cfg["layer_decay"]) == (2.0, False)
    assert compose_config([*overrides, "position.rescale=null"])["position"]["rescale"] is None


def test_the_7b_has_no_cosine() -> None:
    cfg = compose_config(["recipe=vit7b16", "preset=dinov3"])
    with pytest.raises(ConfigError, match=r"schedule\.base_lr=None: must be a number"):
        first_check(cfg)
