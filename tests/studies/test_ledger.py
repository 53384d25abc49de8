"""What a study consists of, and where its runs stand, against folders, locks and a squeue that the test makes."""

import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import construct
from dinoswap.config.sections import RunSettings
from dinoswap.files.lock import exclusive
from dinoswap.run.run_folder import planned_folder, planned_id
from dinoswap.studies.design import make_design
from dinoswap.studies.ledger import Entry, claim, claimed, entries, queued_jobs, read_json, run_statuses
from dinoswap.studies.study import read_study

STUDY = """# Which masking?
base: [recipe=smoke, results_dir=out]
factors: {masking: [block, bernoulli]}
design: one_at_a_time
seeds: [3, 5]
metrics: {eval/knn_top1: 1.0}
"""
SQUEUE = """#!/bin/sh
echo "$@" >>{folder}/asked
{answer}
"""
_fork = multiprocessing.get_context("fork")


def runs_of(folder: Path, *overrides: str) -> list[Entry]:
    path = folder / "mine.yaml"
    path.write_text(STUDY)
    study = read_study(path, overrides)
    return entries(study, make_design(study, check=False).cells)


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a squeue with this answer, shell commands, in front of any other; where it notes what it is asked."""

    def install(answer: str) -> Path:
        command = tmp_path / "bin" / "squeue"
        command.parent.mkdir(exist_ok=True)
        command.write_text(SQUEUE.format(folder=tmp_path, answer=answer))
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
        return tmp_path / "asked"

    return install


def write_record(folder: Path, **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"run_id": "x", **fields}))
    return folder


def test_every_cell_with_every_seed_under_the_name_that_its_command_gives(tmp_path: Path) -> None:
    found = runs_of(tmp_path)
    assert [(entry.cell, entry.seed) for entry in found] == [
        (cell, seed) for cell in ("reference", "masking=bernoulli") for seed in (3, 5)
    ]
    assert len({entry.folder for entry in found}) == 4
    for entry in found:
        config = compose_config(entry.overrides)
        assert entry.folder == Path("out/runs") / planned_folder(config)
        assert entry.run_id == planned_id(config)
        assert entry.config == config
        assert entry.folder.parts[2] == "mine"


@pytest.mark.parametrize("name", ["20240501", "2024_05_01", "null", "1e5", "true", "étude", "a.b"])
def test_a_study_may_be_called_what_yaml_reads_as_something_else(name: str, tmp_path: Path) -> None:
    """Its runs take its name as text, and are where it looks for them."""
    path = tmp_path / f"{name}.yaml"
    path.write_text(STUDY)
    study = read_study(path)
    first = entries(study, make_design(study, check=False).cells)[0]
    config = compose_config(first.overrides)
    settings = {field.name: config[field.name] for field in dataclasses.fields(RunSettings)}
    assert construct(RunSettings, settings, "").study == name
    assert first.folder == Path("out/runs") / planned_folder(config)
    assert first.folder.parts[2] == name


def test_a_changed_base_is_other_runs_and_where_they_lie_is_not(tmp_path: Path) -> None:
    before = [entry.run_id for entry in runs_of(tmp_path)]
    assert [entry.run_id for entry in runs_of(tmp_path, "results_dir=elsewhere", "data.workers=1")] == before
    assert not {entry.run_id for entry in runs_of(tmp_path, "trainer.max_steps=11")} & set(before)


@pytest.mark.parametrize("status", ["completed", "preempted", "failed", "diverged"])
def test_what_the_record_says(status: str, tmp_path: Path) -> None:
    (found,) = run_statuses([write_record(tmp_path / "run", status=status, error="one line\nand another")])
    assert found.state == status
    assert found.note == ("" if status == "completed" else "one line")
    assert found.record["run_id"] == "x"


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (None, ""),
        ("", "run.json: not the record of a run: Expecting value"),
        ("{", "run.json: not the record of a run: Expecting property"),
        ("[1]", "run.json: not the record of a run: not an object but [1]"),
        ('{"status": "lost"}', "run.json: status is 'lost'"),
    ],
)
def test_without_a_record_it_is_missing(content: str | None, note: str, tmp_path: Path) -> None:
    """What is there and cannot be read is told: a run that is started there would be refused."""
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    (found,) = run_statuses([tmp_path])
    assert found.state == "missing"
    assert found.note.startswith(note)
    assert bool(found.note) == bool(note)


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """A file in its place, and a link to itself: no permission stops root, who runs tests."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    found = run_statuses([tmp_path / "file", tmp_path / "loop", tmp_path / "nothing"])
    assert [each.words for each in found] == [
        "missing: run.json: Not a directory",
        "missing: run.json: Too many levels of symbolic links",
        "missing",
    ]


def hold(folder: Path) -> None:
    with exclusive(folder):
        (folder / "held").touch()
        time.sleep(60)


@pytest.mark.parametrize("status", ["running", "preempted", "failed"])
def test_running_is_who_has_the_lock_and_killed_who_has_lost_it(status: str, tmp_path: Path) -> None:
    """A run that goes on after it was preempted, or failed, says so before its record does."""
    write_record(tmp_path, status=status, error="why")
    process = _fork.Process(target=hold, args=(tmp_path,))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    (found,) = run_statuses([tmp_path])
    assert found.state == "running"
    assert f"process {process.pid} on" in found.note
    process.kill()
    process.join()
    (found,) = run_statuses([tmp_path])
    assert found.state == ("killed" if status == "running" else status)
    if status == "running":
        assert "no process has it; last heard of 20" in found.note


def test_squeue_is_asked_once_for_what_is_not_complete(squeue: Callable[[str], Path], tmp_path: Path) -> None:
    asked = squeue("echo 17_1; echo 17_3; echo 99")
    claims = {"completed": "17_0", "running": "17_1", "preempted": "17_2", "failed": "17_3", "missing": "18"}
    for status, job in claims.items():
        folder = tmp_path / status if status == "missing" else write_record(tmp_path / status, status=status)
        claim(folder, job, tmp_path / f"{job}.out")
        assert claimed(folder) == job
    found = run_statuses([tmp_path / status for status in claims])
    assert [each.state for each in found] == ["completed", "queued", "preempted", "queued", "missing"]
    assert found[1].note == "SLURM job 17_1"
    assert found[4].note == f"SLURM job 18 ended before the run began, see {tmp_path}/18.out"
    assert [line.split()[-1] for line in asked.read_text().splitlines()] == ["--jobs=17,18"]


def test_without_jobs_squeue_is_not_asked(squeue: Callable[[str], Path], tmp_path: Path) -> None:
    asked = squeue("exit 1")
    run_statuses([tmp_path / "a", write_record(tmp_path / "b", status="running")])
    assert queued_jobs([]) == set()
    assert not asked.exists()


@pytest.mark.parametrize(
    ("answer", "there"),
    [
        ("echo 17_1", {"17_1"}),
        ("true", set()),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", set()),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", {"17_1", "18"}),
    ],
)
def test_a_silent_controller_loses_no_job(
    answer: str, there: set[str], squeue: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    squeue(answer)
    assert queued_jobs(["17_1", "18"]) == there
    assert ("Unable to contact" in caplog.text) == (len(there) == 2)


def test_no_squeue_at_all_loses_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queued_jobs(["17_1"]) == {"17_1"}
    assert "taken to be still there" in caplog.text


def test_a_claim_names_job_and_log(tmp_path: Path) -> None:
    claim(tmp_path / "run", "17_1", tmp_path / "log")
    found = read_json(tmp_path / "run" / "job.json")
    assert (found["job"], found["log"]) == ("17_1", str(tmp_path / "log"))
