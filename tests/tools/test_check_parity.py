"""tools/check_parity.py on the fixtures, on copies with one number changed, and on scenarios it has never seen."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fixtures import OFFICIAL
from small_models import load_tool

TOOLS = Path(__file__).parents[2] / "tools"
Arrays = dict[str, Any]
Check = Callable[..., tuple[int, str]]

NPZ = ("losses_dinov2", "head_dinov2", "vit_dinov2", "droppath", "train_step_dinov2", "train_step_dinov2_f64")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "check_parity.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Check]:
    """(exit status, last line) of a call in this process."""
    monkeypatch.syspath_prepend(str(TOOLS))
    main = load_tool("check_parity").main

    def call(*arguments: str | Path) -> tuple[int, str]:
        status = main([str(argument) for argument in arguments])
        return status, (capsys.readouterr().out.strip().splitlines() or [""])[-1]

    yield call
    torch.use_deterministic_algorithms(False)


def changed(folder: Path, name: str, change: Callable[[Arrays], Arrays]) -> Path:
    """A folder with a copy of one npz."""
    arrays = dict(np.load(OFFICIAL / name, allow_pickle=False))
    np.savez(folder / name, **change(arrays))
    return folder


def test_every_stored_array_is_looked_at(check: Check, read: set[tuple[str, str]]) -> None:
    """Of the files and sections that are dinov2's, but for the padding bound and the count of a collate."""
    assert check("official", "--dir", OFFICIAL)[0] == 0
    for name in (
        "losses_dinov2",
        "head_dinov2",
        "vit_dinov2",
        "droppath",
        "train_step_dinov2",
        "train_step_dinov2_f64",
    ):
        keys = {key for key in np.load(OFFICIAL / f"{name}.npz").files if "v3" not in key}
        unread = keys - {key for file, key in read if file == name}
        assert {key.split("/")[-1] for key in unread} <= {"upperbound", "n_masked_patches"}, name


def add(key: str, amount: float) -> Callable[[Arrays], Arrays]:
    """Adds to the largest entry, which no rounding explains."""

    def change(arrays: Arrays) -> Arrays:
        array = arrays[key].copy()
        array[np.unravel_index(np.abs(array).argmax(), array.shape)] += amount
        return {**arrays, key: array}

    return change


@pytest.mark.parametrize(
    ("file", "key", "amount"),
    [
        ("train_step_dinov2", "sk_sep/after3/student/dino_head.mlp.0.weight", 1e-4),
        ("train_step_dinov2", "sk_sep/after1/teacher/backbone.blocks.1.norm2.bias", 1e-4),
        ("train_step_dinov2", "sk_sep/init/student/backbone.pos_embed", 1e-3),
        ("train_step_dinov2", "sk_sep/it1/loss_dict/koleo_loss", 1e-4),
        ("train_step_dinov2", "sk_sep/it2/grad_norm/backbone.mask_token", 1e-4),
        ("train_step_dinov2", "sk_sep/it0/grad/ibot_head.mlp.4.bias", 1e-4),
        ("train_step_dinov2", "sk_sep/it0/ibot_teacher_probs", 1e-4),
        ("train_step_dinov2", "sk_sep/sched/teacher_temp", 1e-9),
        ("train_step_dinov2", "sk_sep/after3/adam_v/backbone.cls_token", 1e-3),
        ("train_step_dinov2", "batch1/masks_weight", 1e-4),
        ("vit_dinov2", "list_local/x_norm_patchtokens", 1e-4),
        ("vit_dinov2", "posinterp_offset0_aa/24x40", 1e-4),
        ("vit_dinov2", "grad/full/register_tokens", 1e-4),
        ("head_dinov2", "v2_nlayers2/grad_x", 1e-4),
        ("losses_dinov2", "ibot/centering/it2/center_used", 1e-4),
        ("losses_dinov2", "koleo/grad", 1e-3),
    ],
)
def test_a_changed_number_fails(file: str, key: str, amount: float, check: Check, tmp_path: Path) -> None:
    folder = changed(tmp_path, f"{file}.npz", add(key, amount))
    scenario = ["--scenario", "sk_sep"] if file.startswith("train_step") else []
    status, last = check("official", "--dir", folder, *scenario)
    assert status == 1
    assert last.endswith("FAIL")


def test_a_changed_weight_fails_in_a_process_of_its_own(tmp_path: Path) -> None:
    folder = changed(tmp_path, "train_step_dinov2.npz", add("sk_shared/after1/student/backbone.norm.weight", 1e-4))
    done = run("official", "--dir", folder, "--scenario", "sk_shared", "--name", "train_step_dinov2")
    assert done.returncode == 1
    assert done.stdout.strip().endswith("FAIL")
    assert "backbone.norm.weight" in done.stdout


def edited(folder: Path, name: str, edit: Callable[[Any], None]) -> Path:
    content = json.loads((OFFICIAL / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))
    return folder


def flip_a_bit(content: Any) -> None:
    draw = content["exact_draws"]["dinov2"]["14x14"]["draws"][3]
    first = draw["masks"][5]
    draw["masks"][5] = f"{int(first[0], 16) ^ 1:x}{first[1:]}"


def flip_a_collated_bit(content: Any) -> None:
    case = next(case for case in content["collate"] if case["version"] == "dinov2")
    case["masks"][0] = f"{int(case['masks'][0][0], 16) ^ 8:x}{case['masks'][0][1:]}"


@pytest.mark.parametrize("edit", [flip_a_bit, flip_a_collated_bit])
def test_a_flipped_mask_bit_fails(edit: Callable[[Any], None], check: Check, tmp_path: Path) -> None:
    assert check("masks", "--dir", edited(tmp_path, "masking.json", edit))[0] == 1


def other_multiplier(content: Any) -> None:
    content["dinov2_vitl14_depth24_selected"]["params"]["backbone.cls_token"]["lr_multiplier"] *= 0.9


def other_schedule(content: Any) -> None:
    content["dinov2_small"]["momentum"][7] += 1e-12


@pytest.mark.parametrize(
    ("name", "edit"), [("param_groups.json", other_multiplier), ("schedules.json", other_schedule)]
)
def test_a_changed_table_fails(name: str, edit: Callable[[Any], None], check: Check, tmp_path: Path) -> None:
    assert check("official", "--dir", edited(tmp_path, name, edit))[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [["--scenario", "none_such"], ["--name", "none_such"], ["--name", "vit_dinov2", "--scenario", "sk_sep"]],
)
def test_nothing_to_compare_is_status_2(arguments: list[str], check: Check) -> None:
    assert check("official", "--dir", OFFICIAL, *arguments)[0] == 2


def test_an_empty_folder_is_status_2(tmp_path: Path) -> None:
    done = run("masks", "--dir", tmp_path)
    assert done.returncode == 2
    assert "no fixture" in done.stderr


def renamed(arrays: Arrays, rename: Callable[[str], str]) -> Arrays:
    """Only the scenario sk_shared, with initial weights and batches of its own, under the name never_seen."""
    meta = json.loads(str(arrays["meta_json"]))
    meta["configs"] = {"never_seen": meta["configs"]["sk_shared"]}
    meta["optimizer_groups"] = {"never_seen": meta["optimizer_groups"]["sk_shared"]}
    for group in meta["optimizer_groups"]["never_seen"]:
        group["names"] = [rename(name) for name in group["names"]]
    kept = {key.replace("sk_shared/", "never_seen/"): a for key, a in arrays.items() if key.startswith("sk_shared/")}
    kept |= {key.replace("sk_sep/", "never_seen/"): a for key, a in arrays.items() if key.startswith("sk_sep/init/")}
    kept |= {f"never_seen/{key}": array for key, array in arrays.items() if key.startswith("batch")}
    return {**{rename(key): array for key, array in kept.items()}, "meta_json": np.array(json.dumps(meta))}


def chunked(name: str) -> str:
    """As a model built with block_chunks=2 names its blocks."""
    return re.sub(r"backbone\.blocks\.(\d+)\.", r"backbone.blocks.\1.\1.", name)


@pytest.mark.parametrize("rename", [str, chunked])
def test_a_scenario_never_seen_before(rename: Callable[[str], str], check: Check, tmp_path: Path) -> None:
    arrays = renamed(dict(np.load(OFFICIAL / "train_step_dinov2.npz", allow_pickle=False)), rename)
    np.savez(tmp_path / "train_step_dinov2_other.npz", **arrays)
    for scenario in ([], ["--scenario", "never_seen"]):
        status, last = check("official", "--dir", tmp_path, "--name", "train_step_dinov2_other", *scenario)
        assert status == 0
        quantities, full = int(last.split()[1]), check("official", "--dir", OFFICIAL, "--scenario", "sk_shared")[1]
        assert 2 * quantities > int(full.split()[1])  # the whole has a float64 twin


def test_a_scenario_beside_the_known_ones(check: Check, tmp_path: Path) -> None:
    """It has no initial weights of its own: those that the file stores are everybody's."""

    def extend(arrays: Arrays) -> Arrays:
        meta = json.loads(str(arrays["meta_json"]))
        meta["configs"]["another"] = meta["configs"]["center_sep"]
        more = {k.replace("center_sep/", "another/"): a for k, a in arrays.items() if k.startswith("center_sep/")}
        return {**arrays, **more, "meta_json": np.array(json.dumps(meta))}

    folder = changed(tmp_path, "train_step_dinov2.npz", extend)
    assert check("official", "--dir", folder, "--scenario", "another")[0] == 0
    shutil.copy(OFFICIAL / "train_step_dinov2_f64.npz", tmp_path)
    assert check("official", "--dir", folder, "--scenario", "sk_sep")[0] == 0
