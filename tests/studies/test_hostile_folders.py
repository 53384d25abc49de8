"""Run folders that nobody would write, among good ones: each is passed over with a reason, and everything else stands.

What a folder may hold instead of a run: files of other types and sizes, pipes, devices, links that lead nowhere, JSON
and YAML that take a reader's memory or stack, values that no run has.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_study import write_runs, write_study

from dinoswap.studies.design import make_design
from dinoswap.studies.ledger import Entry, entries, run_statuses
from dinoswap.studies.report import write_report
from dinoswap.studies.report.collect import collect
from dinoswap.studies.report.markup import markdown_text
from dinoswap.studies.runs import read_curves, read_runs
from dinoswap.studies.status import rows
from fake_runs import record, write_run
from small_models import load_tool

Spoil = Callable[[Path], Any]
GOOD = "0123456789"
HUGE = "1" + "0" * 400
MAPS = "a0: &a0 {x: 1}\n" + "\n".join(
    f"a{i}: &a{i} {{{', '.join(f'k{j}: *a{i - 1}' for j in range(9))}}}" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "\n".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))
"""Eleven lines that stand for 9^11 values."""


def with_fields(**fields: Any) -> Spoil:
    """run.json with these fields in place of its own."""

    def spoil(folder: Path) -> None:
        path = folder / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return spoil


def with_text(name: str, content: str | bytes) -> Spoil:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def instead(name: str, make: Callable[[Path], Any]) -> Spoil:
    """Something else in the place of the file."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return spoil


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


def itself(path: Path) -> None:
    path.symlink_to(path.name)


def deep(depth: int) -> str:
    return "[" * depth + "]" * depth


HOSTILE: dict[str, tuple[Spoil, str]] = {
    "gpus are a number": (with_fields(hardware={"gpus": 5, "cpu": "x"}), "hardware.gpus is 5: not a list of texts"),
    "hardware is a list": (with_fields(hardware=[[1]]), "hardware is [[1]]: not a section"),
    "steps beyond 64 bits": (with_fields(steps=2**63), "steps is 9223372036854775808"),
    "steps are text": (with_fields(steps="many", restarts=-1), "steps is 'many'"),
    "seed beyond 64 bits": (with_fields(seed=2**70), f"seed is {2**70}"),
    "seed is true": (with_fields(seed=True), "seed is True"),
    "no run_id": (with_fields(run_id=None), "run_id is None"),
    "status is a list": (with_fields(status=[]), "status is []"),
    "metrics are null": (with_fields(metrics=None), "metrics is None: not a section"),
    "metrics are a list": (with_fields(metrics=[1], cost="?"), "metrics is [1]: not a section"),
    "a metric is a section": (with_fields(metrics={"eval/knn_top1": {"a": 1}}), "metrics.eval/knn_top1 is {'a': 1}"),
    "a metric of 1e200": (with_fields(metrics={"eval/knn_top1": 1e200}), "metrics.eval/knn_top1 is 1e+200: out of"),
    "3000 metrics": (with_fields(metrics={f"m{i}": i for i in range(3000)}), "metrics is {'m0': 0"),
    "a long name": (with_fields(metrics={"m" * 10**6: 1}), "not a section"),
    "ended is no date": (with_fields(ended="yesterday"), "ended is 'yesterday'"),
    "ended after the last date": (with_fields(ended="9999-12-31T23:59:59-14:00"), "ended is '9999-12-31T23:59:59-14:"),
    "overrides are numbers": (with_fields(overrides=[1, None]), "overrides is [1, None]: not a list of texts"),
    "choices are sections": (with_fields(choices={"masking": {"a": []}}), "choices.masking is {'a': []}: not text"),
    "a number of 401 digits": (with_text("run.json", f'{{"metrics": {{"x": {HUGE}}}}}'), "a number of 401 digits"),
    "deep": (with_text("run.json", deep(10**5)), "nested too deep"),
    "half of a deep one": (with_text("run.json", "[" * 10**6), "nested too deep"),
    "a record that is not UTF-8": (with_text("run.json", b'{"run_id": "\xff"}'), "can't decode byte 0xff"),
    "a folder for the record": (instead("run.json", Path.mkdir), "not a regular file"),
    "a pipe for the record": (instead("run.json", os.mkfifo), "not a regular file"),
    "zeros for the record": (instead("run.json", zeros), "not a regular file"),
    "a terabyte": (instead("run.json", sparse), "1,099,511,627,776 bytes, more than 16,777,216"),
    "a link to itself": (instead("run.json", itself), "Too many levels of symbolic links"),
    "YAML of maps of maps": (with_text("config.yaml", MAPS), "its numbers are missing: has YAML aliases"),
    "YAML of merged maps": (with_text("config.yaml", MERGES), "its numbers are missing: has YAML aliases"),
    "deep YAML": (with_text("config.yaml", f"a: {deep(5000)}"), "its numbers are missing: "),
    "YAML with a number of 401 digits": (with_text("config.yaml", f"a: {HUGE}"), "its numbers are missing: "),
    "YAML with no date": (with_text("config.yaml", "a: 2026-77-77"), "its numbers are missing: "),
    "a pipe for the config": (instead("config.yaml", os.mkfifo), "its numbers are missing: not a regular file"),
    "zeros for the config": (instead("config.yaml", zeros), "its numbers are missing: not a regular file"),
    "a pipe for the curves": (instead("metrics.jsonl", os.mkfifo), "metrics.jsonl: not a regular file"),
    "a folder for the curves": (instead("metrics.jsonl", Path.mkdir), "metrics.jsonl: not a regular file"),
    "zeros without a line": (instead("metrics.jsonl", sparse), "a line has more than 1,048,576 bytes"),
    "lines of all kinds": (
        with_text("metrics.jsonl", f'5\n{deep(10**5)}\n{{"step": {2**63}}}\n{{"step": 1, "x": {HUGE}}}\n'
                  '{"step": -1}\n{"loss": 1}\n{"step": 1, "loss": "low"}\n{"step": 1, "\\ud800": 2}\n'),
        "7 lines cannot be read",
    ),
}  # fmt: skip
HARMLESS: dict[str, Spoil] = {
    "an error with half a character": with_fields(error="OSError: \udcff.png"),
    "dates without a zone": with_fields(started="2026-01-02T03:04:05", ended="2026-01-02T03:04"),
    "entropies of 1e99": with_fields(metrics={f"eval/{n}": 1e99 for n in ("target_entropy_max", "rankme_max")}),
    "a pipe for the lock": instead(".lock", os.mkfifo),
    "a folder for the lock": instead(".lock", Path.mkdir),
    "a pipe for the job": instead("job.json", os.mkfifo),
    "a job that is a list": with_text("job.json", '[{"job": 1}]'),
}
"""Without a reason: nothing of the frame is missing."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good run, and one that the test spoils."""
    root = tmp_path_factory.mktemp("written") / "mine"
    write_run(root / GOOD / "seed0")
    shutil.copytree(root / GOOD / "seed0", root / "hostile" / "seed1")
    with_fields(run_id="hostile", seed=1)(root / "hostile" / "seed1")
    return root


@pytest.mark.parametrize("name", [*HOSTILE, *HARMLESS])
def test_a_hostile_folder_is_passed_over_with_the_reason(name: str, written: Path, tmp_path: Path) -> None:
    """In the frame, the curves and the status; what is good in another folder is there."""
    root, hostile = tmp_path / "runs", tmp_path / "runs" / "mine" / "hostile" / "seed1"
    shutil.copytree(written, root / "mine")
    spoil, reason = HOSTILE[name] if name in HOSTILE else (HARMLESS[name], "")
    spoil(hostile)
    began = time.perf_counter()
    for _ in range(2):  # from the folders, from the cache
        loaded = read_runs(root)
        curves = read_curves(loaded.frame)
        assert loaded.frame.query("run_id == @GOOD")["metric.eval/knn_top1"].tolist() == [61.25]
        assert curves.frame.query("run_id == @GOOD")["value"].tolist() == [2.5]
        told = loaded.passed_over + curves.passed_over
        assert [reason in each.line for each in told] == [True] * len(told) == [True] * bool(reason)
        assert all(each.path.is_relative_to(hostile) and "\n" not in each.line for each in told)
    if name in HARMLESS:
        assert set(loaded.frame["run_id"]) == {GOOD, "hostile"}
    config = {"trainer": {"max_steps": 9}, "data": {"batch_size": 1}}
    (row,) = rows([Entry(cell="x", seed=1, overrides=[], config=config, folder=hostile)], "eval/knn_top1")
    assert row.state == "completed" or (row.state == "missing" and row.note.startswith("run.json: "))
    assert time.perf_counter() - began < 20


NAMES = [b"\xff\xfe", b"a\nb\x1b[31m", b"=cmd"]


def test_odd_names_of_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs"
    write_run(root / "mine" / GOOD / "seed0")
    for number, name in enumerate(NAMES):
        write_run(root / "mine" / os.fsdecode(name) / "seed0", run_id=f"odd{number}")
    (root / "mine" / "file").write_text("a file in the place of a folder")
    assert load_tool("aggregate").main([str(root), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "passed over: 1\n" in said
    assert "\\udcff\\udcfe/seed0: its name is not UTF-8" in said
    frame = pd.read_parquet(tmp_path / "out" / "runs.parquet")
    assert set(frame["run_id"]) == {GOOD, "odd1", "odd2"}


STUDY = """# Which masking?
base: [recipe=smoke]
factors: {masking: [block, bernoulli]}
design: one_at_a_time
seeds: %d
metrics: {eval/knn_top1: 1.0}
"""


def test_a_report_of_a_study_where_most_folders_are_hostile(tmp_path: Path) -> None:
    """All kinds at once: beside each run that has no value stands the reason."""
    spoils = {**HOSTILE, **{name: (spoil, "") for name, spoil in HARMLESS.items()}}
    study = write_study(tmp_path, STUDY % (len(spoils) // 2 + 4))
    root = tmp_path / "results" / "runs" / "study"
    write_runs(study, root, lambda levels, seed: 40.0 + 3 * (levels["masking"] == "block") + seed % 3)
    wanted = entries(study, make_design(study, check=False).cells)
    folders = [root / entry.run_id / f"seed{entry.seed}" for entry in wanted]
    for (spoil, _), folder in zip(spoils.values(), folders[3:], strict=False):
        spoil(folder)
    began = time.perf_counter()
    page = write_report(study, root, tmp_path / "report").with_name("report.md").read_text()
    assert time.perf_counter() - began < 60
    told = "\n".join(collect(study, root).passed_over)
    for (name, (_, reason)), folder in zip(spoils.items(), folders[3:], strict=False):
        (at,) = run_statuses([folder])
        assert reason in at.note or reason in told, name
        assert not at.note or at.state != "missing" or markdown_text(at.note) in page, name


def test_a_record_that_is_continued_has_what_can_be_read(tmp_path: Path) -> None:
    """A run goes on in a folder whose record is of another version."""
    from dinoswap.run.metrics import RunRecord, load_record

    path = write_run(tmp_path / "run") / "run.json"
    path.write_text(json.dumps({**record(), "restarts": "?", "cost": None, "steps": 7}))
    again = RunRecord.start(path, run_id=GOOD, study="mine", seed=0, choices={}, overrides=[])
    assert (again.restarts, again.steps, again.cost, again.metrics["eval/knn_top1"]) == (1, 7, {}, 61.25)
    for content in (b"\xff", b"[" * 10**6, b"5", b"{"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.json is not JSON \(.*\); delete it to start the record anew"):
            load_record(path)
