"""tools/check_parity.py on numbers of the official DINOv3 code, and on copies with one number changed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fixtures import DINOV3
from small_models import load_tool

Check = Callable[..., tuple[int, str]]
FILE, LOSSES = "train_step_dinov3", "losses_dinov3"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Check]:
    """(exit status, last line) of a call in this process."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    main = load_tool("check_parity").main

    def call(folder: Path, scenario: str | None, name: str = FILE) -> tuple[int, str]:
        chosen = ["--scenario", scenario] if scenario else []
        status = main(["dinov3", "--dir", str(folder), *chosen, "--name", name])
        return status, capsys.readouterr().out.strip().splitlines()[-1]

    yield call
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("scenario", "name"),
    [
        ("recipe", FILE), ("recipe", f"{FILE}_f64"), ("recipe_bf16_rope", FILE), ("key_bias", FILE),
        ("local_weight", FILE), ("local_weight", f"{FILE}_f64"), ("gram_ema", FILE), ("gram_ema", f"{FILE}_f64"),
        ("gram_snapshot", FILE), ("gram_snapshot", f"{FILE}_f64"), ("gram_unmasked", FILE), ("web", FILE),
    ],
)  # fmt: skip
def test_the_trainer_of_the_preset_makes_the_official_steps(scenario: str, name: str, check: Check) -> None:
    status, last = check(DINOV3, scenario, name)
    assert (status, last.endswith("PASS")) == (0, True), last
    assert int(last.split()[1]) >= 45


def test_the_official_order_of_crop_sizes(check: Check, tmp_path: Path) -> None:
    name = "resolution_dinov3"
    assert check(DINOV3, "high_res", name) == (0, "parity: 2 quantities, worst 0.0e+00, PASS")
    content = json.loads((DINOV3 / f"{name}.json").read_text())
    content["high_res"]["indices"][399] ^= 1
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert check(tmp_path, "high_res", name)[0] == 1


@pytest.mark.parametrize(
    ("scenario", "quantities"),
    [("dino", 16), ("ibot", 7), ("koleo", 8), ("gram", 26), ("gram_select", 11), ("two_ranks", 28)],
)
def test_losses_and_their_gradients_are_the_official_ones(scenario: str, quantities: int, check: Check) -> None:
    status, last = check(DINOV3, scenario, LOSSES)
    assert (status, last.endswith("PASS")) == (0, True), last
    assert int(last.split()[1]) == quantities


@pytest.mark.parametrize(
    ("scenario", "key"),
    [
        ("dino", "dino/loss_three_ignore_diag"), ("dino", "dino/grad_global_with_diag"),
        ("koleo", "koleo_distributed/topk2_grad"), ("gram", "gram/nonorm_removeneg_imglevelFalse_grad"),
        ("gram_select", "gram_select/resize_bilinear_antialias/teacher_patches"),
        ("two_ranks", "two_ranks/rank1/koleo_topk2_group_own_loss"),
    ],
)  # fmt: skip
def test_a_changed_loss_fails(scenario: str, key: str, check: Check, tmp_path: Path) -> None:
    arrays = dict(np.load(DINOV3 / f"{LOSSES}.npz", allow_pickle=False))
    np.savez(tmp_path / f"{LOSSES}.npz", **arrays | {key: arrays[key] * np.float32(1.0001)})
    assert check(tmp_path, scenario, LOSSES)[0] == 1


@pytest.mark.parametrize(
    ("key", "amount"),
    [("recipe/it1/loss_dict/dino_local_crops_loss", 1e-4), ("recipe/after3/student/backbone.storage_tokens", 1e-4)],
)
def test_a_changed_number_fails(key: str, amount: float, check: Check, tmp_path: Path) -> None:
    arrays = dict(np.load(DINOV3 / f"{FILE}.npz", allow_pickle=False))
    np.savez(tmp_path / f"{FILE}.npz", **arrays | {key: arrays[key] + np.float32(amount)})
    assert check(tmp_path, "recipe")[0] == 1


def test_the_schedules_of_all_recipes_and_a_changed_number(check: Check, tmp_path: Path) -> None:
    name = "schedules_dinov3"
    content = json.loads((DINOV3 / f"{name}.json").read_text())
    recipes = [recipe for recipe in content if recipe.startswith("recipe_")]
    assert len(recipes) == 4
    for recipe in recipes:
        status, last = check(DINOV3, recipe, name)
        assert (status, int(last.split()[1]) >= 5) == (0, True), last
    content["recipe_vit7b16_gram_anchor"]["gram_weight"][-1] += 1e-12
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert check(tmp_path, "recipe_vit7b16_gram_anchor", name)[0] == 1


def test_what_no_option_stands_for_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    status = load_tool("check_parity").main(["dinov3", "--dir", str(DINOV3), "--name", FILE, "--scenario", "distil"])
    printed = capsys.readouterr().err
    torch.use_deterministic_algorithms(False)
    assert status == 2
    assert f"{FILE}:distil: left out: no option stands for distillation.enabled" in printed


@pytest.mark.parametrize(
    ("name", "quantities"),
    [
        ("vit_dinov3", 257), ("keys_dinov3", 40), ("param_groups_dinov3", 12), ("masking_dinov3", 36),
        ("augment_dinov3", 80),
    ],
)  # fmt: skip
def test_networks_files_groups_masks_and_crops_are_the_official_ones(name: str, quantities: int, check: Check) -> None:
    status, last = check(DINOV3, None, name)
    assert (status, last.endswith("PASS")) == (0, True), last
    assert int(last.split()[1]) == quantities


@pytest.mark.parametrize(
    ("scenario", "key"),
    [
        ("base", "single_rect/x_norm_patchtokens"),
        ("base", "intermediate32/block1_cls"),
        ("base", "grad/full/storage_tokens"),
        ("swiglu64", "variant/swiglu64/list_local/x_storage_tokens"),
        ("swiglu64", "variant/swiglu64/grad/norm/blocks.1.mlp.w2.weight"),
        ("rope_bf16", "variant/rope_bf16/single32/x_norm_clstoken"),
        ("rope train_all_bf16_seed7", "rope/train_all_bf16_seed7/periods"),
    ],
)
def test_a_changed_number_of_a_network_fails(scenario: str, key: str, check: Check, tmp_path: Path) -> None:
    arrays = dict(np.load(DINOV3 / "vit_dinov3.npz", allow_pickle=False))
    np.savez(tmp_path / "vit_dinov3.npz", **arrays | {key: arrays[key] * np.float32(1.001)})
    assert check(tmp_path, scenario, "vit_dinov3")[0] == 1


@pytest.mark.parametrize(
    ("scenario", "key"),
    [
        ("no_gram", "global_crops"), ("no_gram", "local_crops"), ("no_gram", "boxes_top_left_height_width"),
        ("no_gram", "flips"), ("gram_clean", "global_crops"), ("gram_clean", "gram_teacher_crops"),
        ("gram_same_size", "gram_teacher_crops"), ("no_flips", "boxes_top_left_height_width"),
    ],
)  # fmt: skip
def test_a_crop_that_is_a_level_or_a_pixel_off_fails(scenario: str, key: str, check: Check, tmp_path: Path) -> None:
    arrays, name = dict(np.load(DINOV3 / "augment_dinov3.npz", allow_pickle=False)), f"{scenario}/seed2/{key}"
    arrays[name][-1:] ^= True  # of the last crop: its levels or its box by one, or its flip
    np.savez(tmp_path / "augment_dinov3.npz", **arrays)
    assert check(tmp_path, scenario, "augment_dinov3")[0] == 1


def test_crops_that_cannot_be_compared_are_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    load_tool("check_parity").main(["dinov3", "--dir", str(DINOV3), "--name", "augment_dinov3"])
    printed = capsys.readouterr().err
    torch.use_deterministic_algorithms(False)
    for case, reason in {
        "locals_from_globals": "no option stands for local_crops_subset_of_global_crops",
        "gram_distorted_geometry": "no option stands for gram_teacher_no_distortions=false",
        "share_color_jitter_full": "torchvision drew its photometric changes",
    }.items():
        assert f"augment_dinov3:{case}: left out: {reason}" in printed


def lower(content: Any, *keys: Any) -> None:
    """Makes the number at `keys` smaller by one."""
    *path, last = keys
    for key in path:
        content = content[key]
    content[last] -= 1


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("keys_dinov3", ["models", "dinov3_vit7b16_lvd1689m", "num_heads"]),
        ("param_groups_dinov3", ["dinov3_vits_web", "params", "backbone.storage_tokens", "wd_multiplier"]),
        ("param_groups_dinov3", ["dinov3_vits_web", "params", "dino_head.last_layer.weight", "lr_multiplier"]),
        ("masking_dinov3", ["exact_draws", "dinov3", "48x48", "draws", 0, "next_random_random"]),
        ("masking_dinov3", ["collate", 3, "mask_counts", 2]),
    ],
)
def test_a_changed_number_of_a_table_fails(name: str, keys: list[Any], check: Check, tmp_path: Path) -> None:
    content = json.loads((DINOV3 / f"{name}.json").read_text())
    lower(content, *keys)
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert check(tmp_path, None, name)[0] == 1
