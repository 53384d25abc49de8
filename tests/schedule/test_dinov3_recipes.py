"""recipe=vitl16_dinov3 and vit7b16 against the numbers of the official runs that they are."""

import pytest

from dinoswap.build import build_schedules
from dinoswap.config.command_line import compose_config
from dinoswap.config.first_check import first_check
from dinoswap.config.schema import ConfigError
from dinoswap.config.settings import check
from fixtures import DINOV3, load_json

RECIPES = {
    "recipe_vitl_im1k_lin834": ["recipe=vitl16_dinov3"],
    "recipe_vit7b16_pretrain": ["recipe=vit7b16", "schedule=piecewise"],
}


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
    schedules = build_schedules(cfg)
    for ours in ("lr", "last_layer_lr", "weight_decay", "momentum", "teacher_temp"):
        assert [schedules[ours][step] for step in case["steps"]] == pytest.approx(case[ours], rel=1e-12, abs=1e-15)


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
