"""tools/check_parity.py on the legacy fixtures, on copies with one number changed, and on scenarios that it has not
seen: one of another name, and those of which some numbers are another scenario's, because both share their source."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures import LEGACY

TOOLS = Path(__file__).parents[2] / "tools"
Arrays = dict[str, Any]
Check = Callable[..., tuple[int, str]]

BASE = "train_step_legacy"
NOT_OURS = re.compile(
    "/bank_grad_after_student_backward/|/grad/clustering/bank_|/grad/arrangement/teacher"  # thrown away there, cut here
    "|/zero_masked/(arrangement|koleo_proto)"  # constants there, defined here
    "|/cluster_entropy|/cluster_usage_std|/logged/(lr|wd|clustering_entropy)"  # logged alone; lr and wd are group 0's
)


def test_our_code_passes_and_looks_at_every_stored_array(check: Check, read: set[tuple[str, str]]) -> None:
    status, last = check("legacy", LEGACY)
    assert status == 0, last
    assert re.fullmatch(r"parity: \d+ quantities, worst \d\.\de-\d\d, PASS", last)
    assert int(last.split()[1]) > 700
    for path in LEGACY.glob("[!a]*.npz"):  # augment_legacy.npz is another test's
        unread = [key for key in np.load(path).files if (path.stem, key) not in read and not NOT_OURS.search(key)]
        assert unread == [], path.stem


def test_the_masks_pass(check: Check) -> None:
    assert check("masks", LEGACY)[0] == 0


# --- copies -----------------------------------------------------------------------------------------------------------


def arrays_of(name: str, of: str = "") -> Arrays:
    """Those that belong to one scenario, or to all."""
    file = np.load(LEGACY / f"{name}.npz", allow_pickle=False)
    others = ("legacy_", "fixed_")
    return {key: file[key] for key in file.files if key.startswith(of) or not key.startswith(others)}


def link_base(folder: Path) -> None:
    """The file with initial weights, batches and arguments."""
    (folder / f"{BASE}.npz").symlink_to(LEGACY / f"{BASE}.npz")


@pytest.mark.parametrize(
    ("name", "key", "amount"),
    [
        (BASE, "legacy_visible/it1/loss/clustering", 1e-4),
        (BASE, "legacy_visible/it2/loss/student_total", 1e-4),
        (BASE, "legacy_visible/it0/grad_norm_clipped/backbone.norm.bias", 1e-4),
        (BASE, "legacy_visible/it2/student_group_wd", 1e-9),
        (BASE, "legacy_visible/it1/proto_group_lr", 1e-9),
        (BASE, "legacy_visible/it1/cluster_mask", -1),
        (BASE, "sched/proto_lr", 1e-9),
        (BASE, "init/bank/proto_layer.bias", 1e-2),
        (BASE, "batch0/global_3", 1.0),
        (f"{BASE}_f64", "legacy_visible/it2/arrangement", 1e-5),
        (f"{BASE}_f64", "legacy_visible/after3/bank/proto_layer.weight", 1e-4),
        (f"{BASE}_visible", "it0/cluster_targets", 1e-4),
        (f"{BASE}_visible", "it2/bank_grad_at_step/proto_layer.weight", 1e-2),
        (f"{BASE}_visible", "after3/student/patchhead.last_layer.weight_v", 1e-4),
        (f"{BASE}_visible", "after1/teacher/backbone.blocks.1.gamma_1", 1e-4),
        (f"{BASE}_visible", "after3/adam_step/patchhead.last_layer.weight_v", 1),
    ],
)
def test_a_changed_number_fails(name: str, key: str, amount: float, check: Check, tmp_path: Path) -> None:
    """The largest entry is changed, which no rounding explains."""
    arrays = arrays_of(name, of="legacy_visible")
    array = arrays[key].astype(np.float64)
    array[np.unravel_index(np.abs(array).argmax(), array.shape)] += amount
    arrays[key] = array.astype(arrays[key].dtype)
    if name != BASE:
        link_base(tmp_path)
    np.savez(tmp_path / f"{name}.npz", **arrays)
    status, last = check("legacy", tmp_path, name=name, scenario="legacy_visible")
    assert status == 1
    assert last.endswith("FAIL")


@pytest.mark.parametrize(
    "option",
    [
        "objectives.koleo.over_crops=sum",
        "optimizer.clip=per_module",
        "schedule.freeze_by=zero_lr",
        "heads.dino_head.train_weight_g=true",
    ],
)
def test_a_preset_with_another_option_fails(option: str, check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    from parity import legacy_run  # found once `check` has put it on the path

    monkeypatch.setitem(legacy_run.COMMITS, "67f6a87", [option])
    assert check("legacy", LEGACY, name=BASE, scenario="legacy_off")[0] == 1


@pytest.mark.parametrize(
    ("scenario", "path", "value"),
    [
        ("legacy_nowarmup", ["schedules", "legacy_nowarmup", "teacher_temp", 7], 0.05),
        (
            "legacy_warmup_longer_than_run",
            ["schedules", "legacy_warmup_longer_than_run", "config", "warmup_iterations"],
            6,
        ),
        ("wd_by_group_over_schedule", ["wd_by_group_over_schedule", "at_67f6a87", 2, 30], 0.04),
        ("lr_scaling", ["lr_scaling", "examples", "2048"], 0.016),
        ("groups_67f6a87_norm_last_layer_True", ["groups_67f6a87_norm_last_layer_True", "groups", 1, "names", 3], "x"),
        ("groups_67f6a87_norm_last_layer_False", ["groups_67f6a87_norm_last_layer_False", "not_in_any_group"], ["x"]),
        ("layer_decay_c3e4786 depth24_rate0.9", ["layer_decay_c3e4786", "depth24_rate0.9", "rate"], 0.95),
        ("layer_decay_comparison 12", ["layer_decay_comparison", "12", "rows", 0, "official_rule", 0], 0.25),
    ],
)
def test_a_changed_table_fails(scenario: str, path: list[Any], value: Any, check: Check, tmp_path: Path) -> None:
    content = json.loads((LEGACY / "optim_legacy.json").read_text())
    *parents, last = path
    parent = content
    for key in parents:
        parent = parent[key]
    parent[last] = value
    (tmp_path / "optim_legacy.json").write_text(json.dumps(content))
    assert check("legacy", tmp_path, scenario=scenario)[0] == 1


# --- scenarios never seen ---------------------------------------------------------------------------------------------


def save(folder: Path, scenario: str, arrays: Arrays, **meta: Any) -> str:
    """As a file of its own; its name."""
    name = f"train_step_{scenario}"
    meta = {"dtype": "float32", "scenario": scenario, **meta}
    np.savez(folder / f"{name}.npz", **arrays, meta_json=np.array(json.dumps(meta)))
    return name


def stored_of(scenario: str) -> Arrays:
    """All that two files hold of a scenario, without its name."""
    both = arrays_of(BASE, of=scenario) | arrays_of(f"train_step_{scenario}")
    return {key.removeprefix(f"{scenario}/"): array for key, array in both.items() if key != "meta_json"}


def test_a_scenario_of_another_name_in_one_file(check: Check, tmp_path: Path) -> None:
    meta = json.loads(str(np.load(LEGACY / f"{BASE}_visible.npz")["meta_json"]))
    described = {key: meta[key] for key in ("args", "commit", "clustering")}
    name = save(tmp_path, "legacy_never_seen", stored_of("legacy_visible"), **described)
    status, last = check("legacy", tmp_path, name=name)
    assert status == 0
    assert int(last.split()[1]) > 70


HEADS = r"(it0/grad|it0/grad_norm|after1/student|after1/teacher)/(class|patch)head\..*"  # clustering has none
TARGETS = r"it0/(dino|ibot)_teacher_probs|it0/loss/(dino|ibot|koleo)"
BANK = r"it0/cluster_targets|it0/loss/(arrangement|koleo_proto)|(it0/bank_grad_at_step|after1/bank)/.*"


@pytest.mark.parametrize(
    ("scenario", "source", "shared"),
    [
        ("legacy_separate", "legacy_visible", f"{HEADS}|{TARGETS}|{BANK}"),
        ("fixed_masked", "fixed_off", f"{HEADS}|{TARGETS}"),
    ],
)
def test_scenarios_whose_first_step_shares_numbers(
    scenario: str, source: str, shared: str, check: Check, tmp_path: Path
) -> None:
    """The modes of clustering differ in what its first term does to the backbone."""
    link_base(tmp_path)
    arrays = {key: array for key, array in stored_of(source).items() if re.fullmatch(shared, key)}
    name = save(tmp_path, scenario, arrays)
    status, last = check("legacy", tmp_path, name=name)
    assert status == 0
    assert int(last.split()[1]) > 10


def test_a_commit_that_never_trained_is_refused(check: Check, tmp_path: Path) -> None:
    name = save(tmp_path, "legacy_other", stored_of("legacy_off"), args={}, commit="e949a64")
    with pytest.raises(ValueError, match="commit e949a64, not of 67f6a87 or b23df50"):
        check("legacy", tmp_path, name=name)
