"""load_runs and load_curves: what the folders say, whatever is there, and a cache that is not believed too much."""

import json
import math
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from dinoswap.config.configuration import flatten
from dinoswap.studies import run_folders
from dinoswap.studies.runs import CACHE, load_curves, load_runs, read_curves, read_runs
from fake_runs import LONG_AGO, record, write_record, write_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two studies; the runs differ in options, in numbers, and in which keys they have."""
    root = tmp_path / "results" / "runs"
    write_run(root / "mine" / "a" / "seed0", run_id="a")
    write_run(
        root / "mine" / "a" / "seed1", run_id="a", seed=1, metrics={"eval/knn_top1": 62, "eval/linear_top1": 70.5}
    )
    write_run(root / "mine" / "b" / "seed0", {"schedule.base_lr": 0.5, "da3.loss_weight": 2}, run_id="b",
              choices={"masking": "bernoulli", "reduction@objectives.ibot.reduction": "per_token"})  # fmt: skip
    write_run(
        root / "single" / "c" / "seed3", run_id="c", seed=3, study="single", status="failed", error="OSError: full"
    )
    return root


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_row_is_what_the_folder_says(root: Path) -> None:
    frame = load_runs(root)
    assert [tuple(row) for row in frame[["study", "run_id", "seed"]].to_numpy()] == [
        ("mine", "a", 0), ("mine", "a", 1), ("mine", "b", 0), ("single", "c", 3),
    ]  # fmt: skip
    row = frame.iloc[2]
    assert row["choice.masking"] == "bernoulli"
    assert row["choice.reduction@objectives.ibot.reduction"] == "per_token"
    assert (row["config.schedule.base_lr"], row["config.da3.loss_weight"]) == (0.5, 2)
    assert frame["config.da3.loss_weight"].isna().tolist() == [True, True, False, True]
    assert frame["config.schedule.base_lr"].tolist() == [0.004, 0.004, 0.5, 0.004]
    assert frame["metric.eval/knn_top1"].tolist() == [61.25, 62, 61.25, 61.25]
    assert frame["metric.eval/rankme"].isna().all()
    assert frame["metric.eval/linear_top1"].isna().tolist() == [True, False, True, True]
    assert (row["images_per_second"], row["cost.flops_per_image"], row["steps"], row["restarts"]) == (50.5, 1e9, 10, 1)
    assert row["ended"] - row["started"] == pd.Timedelta(hours=1)
    assert (row["overrides"], row["hardware"], row["dirty"]) == ("recipe=smoke 'data.path=/a b'", "EPYC", False)
    assert row["path"] == str(root / "mine" / "b" / "seed0")
    assert frame["error"].tolist()[3] == "OSError: full"


def test_the_columns_are_the_documented_ones(root: Path) -> None:
    """Numbers of the config that do not vary are not among them, nor the seed again."""
    assert list(load_runs(root)) == [
        "run_id", "study", "seed", "status", "choice.masking", "choice.preset",
        "choice.reduction@objectives.ibot.reduction",
        "config.da3.loss_weight", "config.schedule.base_lr",
        "metric.eval/knn_top1", "metric.eval/linear_top1", "metric.eval/rankme", "images_per_second",
        "cost.core_or_gpu_hours", "cost.flops_per_image", "cost.peak_memory_bytes",
        "steps", "restarts", "started", "ended", "error", "commit", "dirty", "hardware", "overrides", "path",
    ]  # fmt: skip


@pytest.mark.parametrize("below", [".", "runs", "runs/mine", "runs/mine/a", "runs/mine/a/seed1"])
def test_any_folder_above_the_runs_will_do(root: Path, below: str) -> None:
    folder = root.parent / below
    expected = {str(path.parent) for path in folder.rglob("run.json")}
    assert set(load_runs(folder)["path"]) == expected
    assert len(expected) >= 1


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="results/runs"):
        load_runs(tmp_path / "nowhere")
    assert len(load_runs(tmp_path)) == 0
    assert {"run_id", "study", "seed", "status", "images_per_second"} <= set(load_runs(tmp_path))
    assert list(load_curves(tmp_path)) == ["run_id", "seed", "step", "name", "value"]


def test_numbers_are_those_of_the_config(root: Path) -> None:
    """Every leaf of the YAML that is a number, read by another parser."""
    row = run_folders.RunReader().read(root / "mine" / "b" / "seed0")
    assert row is not None
    leaves = flatten(OmegaConf.to_container(OmegaConf.load(root / "mine" / "b" / "seed0" / "config.yaml")))
    numbers = {f"config.{k}": v for k, v in leaves.items() if type(v) in (int, float) and k != "seed"}
    assert {key: value for key, value in row.items() if key.startswith("config.")} == numbers
    assert len(numbers) > 40


# --- folders in any state ---------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_passed_over_and_told(root: Path) -> None:
    whole = json.dumps(record())
    damaged = {
        "half": (whole[: len(whole) // 2], "run.json: "),
        "empty file": ("", "run.json: "),
        "list": ("[1, 2]", "run.json: not the record of a run"),
        "foreign": ('{"run_id": 7, "seed": 0, "status": "x"}', "run_id is 7"),
        "no seed": (record(seed=None), "seed is None"),
        "odd seed": (record(seed=2**70), f"seed is {2**70}"),
        "huge": (whole.replace("61.25", "1" + "0" * 400), "run.json: "),
    }
    for name, (content, _) in damaged.items():
        write_run(root / "mine" / name / "seed0")
        write_record(root / "mine" / name / "seed0", content)
    (root / "mine" / "binary" / "seed0").mkdir(parents=True)
    (root / "mine" / "binary" / "seed0" / "run.json").write_bytes(b"\xff\xfe\x00")
    (root / "mine" / "bare" / "seed0").mkdir(parents=True)
    (root / "photos" / "cats").mkdir(parents=True)
    (root / "photos" / "cats" / "1.jpg").touch()
    (root / "mine" / ".submitit" / "1").mkdir(parents=True)
    (root / "mine" / "gone").symlink_to(root / "nowhere")
    for cache in (True, True, False):
        loaded = read_runs(root, cache)
        assert set(loaded.frame["run_id"]) == {"a", "b", "c"}
        reasons = {str(each.path.relative_to(root)): each.reason for each in loaded.passed_over}
        assert reasons.pop("photos/cats") == "no run.json"
        assert reasons.pop("mine/bare/seed0") == "empty"
        assert "can't decode" in reasons.pop("mine/binary/seed0")
        assert reasons.keys() == {f"mine/{name}/seed0" for name in damaged}
        for name, (_, reason) in damaged.items():
            assert reason in reasons[f"mine/{name}/seed0"], name


def test_a_record_of_another_version_gives_what_it_has(root: Path) -> None:
    write_run(root / "old" / "d" / "seed0")
    write_record(root / "old" / "d" / "seed0", {"run_id": "d", "seed": 0, "status": "running", "new_field": [1]})
    odd = record(
        run_id="e", steps="many", git="none", metrics=[1], cost={"flops_per_image": "?", "x": True}, error="\udcff"
    )
    write_run(root / "old" / "e" / "seed0")
    write_record(root / "old" / "e" / "seed0", odd)
    for _ in range(2):  # from the folders, from the cache
        frame = load_runs(root).set_index("run_id").loc[["d", "e"]]
        assert frame["study"].tolist() == ["single", "mine"]
        assert frame["metric.eval/knn_top1"].isna().all()
        assert frame["cost.flops_per_image"].isna().all()
        assert frame["steps"].isna().all()
        assert frame["commit"].isna().all()
        assert frame["error"].tolist()[1] == "?"


def test_a_run_without_a_readable_config_is_a_row_without_its_numbers(root: Path) -> None:
    for text in (None, "a: [", "- 1", "\x00"):
        folder = write_run(root / "mine" / "x" / "seed0", {"schedule.base_lr": 9}, run_id="x")
        path = folder / "config.yaml"
        path.unlink() if text is None else path.write_text(text)
        for _ in range(2):
            loaded = read_runs(root)
            assert math.isnan(loaded.frame.set_index("run_id").loc["x", "config.schedule.base_lr"])
            assert [each.path for each in loaded.passed_over] == [path]
            assert "its numbers are missing" in loaded.passed_over[0].reason


# --- each run once ----------------------------------------------------------------------------------------------------


def test_a_link_or_a_copy_does_not_count_a_run_twice(root: Path) -> None:
    """Links to a run, a study and the root, above and beside; copies under another name, of which one is older."""
    expected = load_runs(root).drop(columns="path")
    (root / "mine" / "a" / "latest").symlink_to("seed1")
    (root / "latest").symlink_to("mine")
    (root / "loop").symlink_to(".")
    shutil.copytree(root / "mine" / "b", root / "copies" / "b")
    shutil.copytree(root / "single" / "c", root / "0 before the others" / "c")
    write_record(root / "copies" / "b" / "seed0", record(run_id="b", steps=3))
    for cache in (True, True, False):
        loaded = read_runs(root, cache)
        pd.testing.assert_frame_equal(loaded.frame.drop(columns="path"), expected)
        assert {str(each.path.relative_to(root)): each.reason for each in loaded.passed_over} == {
            "mine/a/latest": f"is {root / 'mine/a/seed1'} again",
            "latest": f"is {root / 'mine'} again",
            "loop": f"is {root} again",
            "copies/b/seed0": f"is a copy of {root / 'mine/b/seed0'}",
            "0 before the others/c/seed3": f"is a copy of {root / 'single/c/seed3'}",
        }
        assert set(loaded.frame["path"]) == {str(path.parent) for path in root.glob("[ms]*/?/seed*/run.json")}
    assert len(load_curves(root)) == 4


def test_a_run_that_was_moved_and_linked_and_one_that_was_done_twice(root: Path) -> None:
    """The link stands for what lies elsewhere; another beginning is another run."""
    (root / "mine").rename(root.parent.parent / "elsewhere")
    (root / "mine").symlink_to(root.parent.parent / "elsewhere")
    write_run(root / "again" / "c" / "seed3", run_id="c", seed=3, study="single", started="2026-02-02T00:00:00+00:00")
    loaded = read_runs(root)
    assert loaded.frame["run_id"].tolist() == ["a", "a", "b", "c", "c"]
    assert loaded.passed_over == []


# --- cache ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The run.json that are opened."""
    opened: list[Path] = []
    read = run_folders.read_record
    monkeypatch.setattr(run_folders, "read_record", lambda path: opened.append(path) or read(path))
    return opened


def test_only_what_changed_is_read_again(root: Path, reads: list[Path]) -> None:
    first = load_runs(root)
    assert len(reads) == 4
    reads.clear()
    pd.testing.assert_frame_equal(load_runs(root), first)
    assert reads == []
    write_record(root / "mine" / "a" / "seed0", record(run_id="a", status="diverged"), LONG_AGO + 1)
    write_run(root / "mine" / "n" / "seed0", run_id="n", metrics={"eval/new": 1.5})
    shutil.rmtree(root / "single")
    second = load_runs(root)
    assert reads == [root / "mine" / "a" / "seed0" / "run.json", root / "mine" / "n" / "seed0" / "run.json"]
    pd.testing.assert_frame_equal(second, load_runs(root, cache=False))
    assert second["status"].tolist() == ["diverged", "completed", "completed", "completed"]
    reads.clear()
    pd.testing.assert_frame_equal(load_runs(root), second)
    assert reads == []


def test_a_change_of_the_same_length_and_time_is_seen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that is as young as the clock is coarse: its next version could carry the same stamp."""
    folder, now = root / "mine" / "a" / "seed0", LONG_AGO + 100
    monkeypatch.setattr(time, "time_ns", lambda: (now + 1) * 10**9)
    for steps in (10, 11, 12):
        write_record(folder, record(run_id="a", steps=steps), now)
        assert load_runs(root)["steps"].tolist()[0] == steps


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "other format", "folder", "none"])
def test_a_damaged_cache_is_not_believed(root: Path, damage: str, reads: list[Path]) -> None:
    expected = load_runs(root)
    cache = root / CACHE
    content = cache.read_bytes()
    if damage == "truncated":
        cache.write_bytes(content[:-100])
    elif damage == "flipped":
        for place in range(100, len(content) // 2, 64):
            content = content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]
        cache.write_bytes(content)
    elif damage == "text":
        cache.write_text("not Parquet")
    elif damage == "other format":
        pq.write_table(pa.table({"path": ["mine/a/seed0"], "steps": [99]}), cache)
    else:
        cache.unlink()
    if damage == "folder":
        cache.mkdir()
    reads.clear()
    pd.testing.assert_frame_equal(load_runs(root), expected)
    assert len(reads) == 4
    reads.clear()
    pd.testing.assert_frame_equal(load_runs(root), expected)
    assert len(reads) == (4 if damage == "folder" else 0)


def test_a_folder_that_cannot_be_written_to_is_not_cached(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run as root, whom no permission stops: the disk refuses in its place."""

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dinoswap.studies.runs.write_atomically", refused)
    assert len(load_runs(root)) == len(load_runs(root)) == 4
    assert not (root / CACHE).exists()
    assert sorted(path.name for path in root.iterdir()) == ["mine", "single"]


def test_columns_go_with_the_last_run_that_had_them(root: Path) -> None:
    """Not those that a run has without a value, as eval/rankme."""
    assert "choice.reduction@objectives.ibot.reduction" in load_runs(root)
    write_record(root / "mine" / "b" / "seed0", record(run_id="b"), LONG_AGO + 1)
    shutil.rmtree(root / "mine" / "a" / "seed1")  # which alone has eval/linear_top1
    for _ in range(2):  # the second time with the cache that the first one wrote
        frame = load_runs(root)
        assert [name for name in frame if name.startswith("choice.")] == ["choice.masking", "choice.preset"]
        assert [name for name in frame if name.startswith("metric.")] == ["metric.eval/knn_top1", "metric.eval/rankme"]
        pd.testing.assert_frame_equal(frame, load_runs(root, cache=False))


def test_two_writers_of_one_cache(root: Path) -> None:
    """Threads that load over and over while a run goes on; whatever they leave behind is not wrong."""
    failed: list[BaseException] = []

    def load() -> None:
        try:
            for _ in range(15):
                assert len(load_runs(root)) == 4
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(40):
        write_record(root / "mine" / "b" / "seed0", record(run_id="b", steps=turn), LONG_AGO + turn)
    for thread in threads:
        thread.join()
    assert not failed
    pd.testing.assert_frame_equal(load_runs(root), load_runs(root, cache=False))


def test_many_runs(tmp_path: Path, reads: list[Path]) -> None:
    """2,000 folders: 10,000 take five times as long. The bound is generous: the machine may be busy."""
    template = write_run(tmp_path / "template")
    for number in range(2000):
        folder = tmp_path / "runs" / f"study{number % 5}" / f"{number // 20:010x}" / f"seed{number % 4}-{number}"
        folder.mkdir(parents=True)
        os.link(template / "config.yaml", folder / "config.yaml")
        write_record(folder, record(run_id=f"{number // 20:010x}", seed=number, study=f"study{number % 5}"))
    began = time.perf_counter()
    cold = load_runs(tmp_path / "runs")
    halfway = time.perf_counter()
    warm = load_runs(tmp_path / "runs")
    assert halfway - began < 30
    assert time.perf_counter() - halfway < 10
    assert len(reads) == len(cold) == 2000
    pd.testing.assert_frame_equal(warm, cold)
    assert sorted(cold["seed"]) == list(range(2000))


# --- curves -----------------------------------------------------------------------------------------------------------


def test_curves_are_the_lines_of_the_logs(tmp_path: Path) -> None:
    lines = [
        '{"step": 0, "eval/knn_top1": 50}',
        '{"step": 1, "loss": 2.5, "lr": null}',
        '{"step": 2, "loss": 1e-3, "lr": 0.5}',
        "",
    ]
    write_run(tmp_path / "s" / "a" / "seed0", lines=lines, run_id="a")
    write_run(tmp_path / "s" / "b" / "seed4", lines=[*lines[:2], ""], run_id="b", seed=4)
    frame = load_curves(tmp_path)
    assert len(frame) == 8
    assert frame.pivot(index=["run_id", "seed"], columns=["name", "step"], values="value").loc[("a", 0)].to_dict() == {
        ("eval/knn_top1", 0): 50, ("loss", 1): 2.5, ("lr", 1): pytest.approx(math.nan, nan_ok=True),
        ("loss", 2): 0.001, ("lr", 2): 0.5,
    }  # fmt: skip
    only = load_curves(tmp_path, names=["loss", "unknown"])
    assert list(zip(only["run_id"], only["seed"], only["step"], only["value"], strict=True)) == [
        ("a", 0, 1, 2.5), ("a", 0, 2, 0.001), ("b", 4, 1, 2.5),
    ]  # fmt: skip


def test_curves_of_runs_that_go_on_or_are_damaged(tmp_path: Path) -> None:
    write_run(
        tmp_path / "s" / "going on" / "seed0", lines=['{"step": 1, "loss": 2}', '{"step": 2, "lo'], run_id="going"
    )
    write_run(
        tmp_path / "s" / "bad" / "seed0",
        lines=['{"step": 1, "loss": 3}', "\x00\x00", '{"loss": 1}', "7", ""],
        run_id="bad",
    )
    silent = write_run(tmp_path / "s" / "silent" / "seed0", run_id="silent")
    (silent / "metrics.jsonl").unlink()
    loaded = read_curves(load_runs(tmp_path))
    assert dict(zip(loaded.frame["run_id"], loaded.frame["value"], strict=True)) == {"bad": 3.0, "going": 2.0}
    assert {str(each.path.parent.parent.name): each.reason for each in loaded.passed_over} == {
        "bad": "3 lines cannot be read", "silent": "No such file or directory",
    }  # fmt: skip


def test_a_run_of_two_studies_has_one_curve(tmp_path: Path) -> None:
    """The same run, once as far as step 1 and once as far as step 3."""
    for study, steps in (("one", 1), ("two", 3), ("three", 2)):
        lines = [*(f'{{"step": {step}, "loss": {step}}}' for step in range(1, steps + 1)), ""]
        write_run(tmp_path / study / "a" / "seed0", lines=lines, run_id="a", study=study, steps=steps)
    assert len(load_runs(tmp_path)) == 3
    np.testing.assert_array_equal(load_curves(tmp_path)["step"], [1, 2, 3])
