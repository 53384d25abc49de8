"""Handing jobs to SLURM: what it refuses, what it cannot answer for the moment, and jobs that never get to a step.

The commands of SLURM are shell scripts here; tests/studies/test_slurm.py has a real one.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dinoswap.config.schema import ConfigError
from dinoswap.studies import submit
from dinoswap.studies.ledger import run_statuses
from dinoswap.studies.run_folders import RunReader
from dinoswap.studies.tuning.crew import launcher_settings
from hydra_plugins.dinoswap_launchers.slurm import SlurmLauncher

LIMITS = "MaxArraySize            = 4\nMaxJobCount             = 9"
Script = Callable[[str, str], None]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Puts a command, by its name and what it prints, before those of the system."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def put(name: str, printed: str) -> None:
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ncat <<'END'\n{printed}\nEND\n")
        (tmp_path / "bin" / name).chmod(0o755)

    return put


class Executor:
    """submitit's, before an sbatch that takes arrays of so many elements; `answers` are what it says first."""

    def __init__(self, largest: int = 10**6, answers: Sequence[str] = ()) -> None:
        self.largest, self.answers = largest, list(answers)
        self.arrays: list[list[int]] = []
        self.parallel: list[int] = []

    def update_parameters(self, slurm_array_parallelism: int) -> None:
        self.parallel.append(slurm_array_parallelism)

    def map_array(self, task: Callable[..., Any], numbers: Sequence[int]) -> list[str]:
        if self.answers:
            raise RuntimeError(f"sbatch: error: {self.answers.pop(0)}")
        if len(numbers) > self.largest:
            raise RuntimeError("sbatch: error: Batch job submission failed: Invalid job array specification")
        self.arrays.append(list(numbers))
        return [f"{len(self.arrays)}_{place}" for place in range(len(numbers))]


def submitted(executor: Executor, count: int) -> list[str]:
    return list(submit.submitted(executor, print, [(number,) for number in range(count)], parallel=7))


def test_more_jobs_than_an_array_takes_are_several_arrays(script: Script) -> None:
    script("scontrol", LIMITS)
    executor = Executor(largest=4)
    assert submitted(executor, 9) == [f"{a}_{i}" for a, n in ((1, 4), (2, 4), (3, 1)) for i in range(n)]
    assert executor.arrays == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
    assert executor.parallel == [2]  # three arrays at a time share the 7
    few = Executor(largest=4)
    submitted(few, 4)
    assert (few.arrays, few.parallel) == ([[0, 1, 2, 3]], [])


def test_where_the_limit_is_not_known_arrays_are_halved(script: Script) -> None:
    script("scontrol", "")
    executor = Executor(largest=3)
    assert len(submitted(executor, 10)) == 10
    assert [number for array in executor.arrays for number in array] == list(range(10))
    assert max(map(len, executor.arrays)) <= 3


def test_more_jobs_than_slurm_holds_are_refused_before_any_is_sent(script: Script) -> None:
    script("scontrol", LIMITS)
    executor = Executor()
    with pytest.raises(ConfigError, match=r"10 jobs, and this SLURM holds 9 at most \(MaxJobCount\); .* fewer seeds"):
        submitted(executor, 10)
    assert executor.arrays == []


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("invalid partition specified: nowhere", "; hydra.launcher.partition is one of debug, gpu$"),
        ("Job violates accounting/QOS policy (job submit limit)", "; ask for less: .* hydra.launcher.qos"),
        ("Invalid account", "sbatch: error: Invalid account$"),
    ],
)
def test_what_sbatch_refuses_comes_with_a_remedy(said: str, remedy: str, script: Script) -> None:
    script("scontrol", "")
    script("sinfo", "gpu\ndebug\ngpu")
    with pytest.raises(ConfigError, match=remedy) as caught:
        submitted(Executor(answers=[said]), 3)
    assert said in str(caught.value)


def test_an_sbatch_that_gets_no_answer_is_called_again(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    script("scontrol", "")
    monkeypatch.setattr(submit, "WAITS", (0.001, 0.002))
    silent = ["Socket timed out on send/recv operation", "Unable to contact slurm controller (connect failure)"]
    assert submitted(Executor(answers=silent), 2) == ["1_0", "1_1"]
    with pytest.raises(ConfigError, match=r"Socket timed out.*the controller does not answer: give the same command"):
        submitted(executor := Executor(answers=silent * 5), 2)
    assert len(executor.answers) == 10 - 3


@pytest.mark.parametrize(("minutes", "delay"), [(1, 60), (2, 120), (1, 600)])
def test_a_limit_that_is_over_before_the_signal_is_refused(minutes: int, delay: int) -> None:
    settings = {"timeout_min": minutes, "signal_delay_s": delay}
    with pytest.raises(ConfigError, match=f"timeout_min={minutes}: .*signal_delay_s={delay} .*{minutes * 60} seconds"):
        submit.executor(settings)
    submit.require_time(settings | {"signal_delay_s": minutes * 60 - 1})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"requeue": True}),
        (["hydra.launcher.additional_parameters={begin: now+1hour}"], {"requeue": True, "begin": "now+1hour"}),
        (["+hydra.launcher.additional_parameters.begin=now"], {"requeue": True, "begin": "now"}),
        (["hydra.launcher.additional_parameters={requeue: false}"], {"requeue": False}),
    ],
)
def test_anything_that_sbatch_knows_can_be_given(
    overrides: list[str], expected: dict[str, Any], tmp_path: Path, script: Script
) -> None:
    for command in ("sbatch", "srun"):
        script(command, "")
    settings = composed_launcher(["hydra/launcher=slurm", *overrides]) | {"submitit_folder": str(tmp_path)}
    assert submit.executor(settings)._executor.parameters["additional_parameters"] == expected


def composed_launcher(overrides: list[str]) -> dict[str, Any]:
    class AnyStudy:
        name = "any"

        def overrides(self) -> list[str]:
            return []

    return launcher_settings(AnyStudy(), overrides)  # type: ignore[arg-type]


# --- a job that is told to stop before it has done a step -------------------------------------------------------------


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmLauncher:
    """One that has run into its limit of 5 minutes."""
    made = SlurmLauncher(poll_seconds=1, check_code=False, timeout_min=5, signal_delay_s=30)
    made.folders = {3: tmp_path / "study" / "1a2b3c" / "seed7"}
    monkeypatch.setattr(submit, "age", lambda: 270.0)
    monkeypatch.setattr(os, "_exit", lambda status: (_ for _ in ()).throw(SystemExit(status)))
    return made


def told(job: SlurmLauncher) -> SlurmLauncher:
    """What is queued again."""
    queued: SlurmLauncher = job.checkpoint(["a=b"], "hydra.sweep.dir", 3, "id", {}).function
    return queued


def steps(job: SlurmLauncher, number: int) -> None:
    job.folders[3].mkdir(parents=True, exist_ok=True)
    record = {"run_id": "1a2b3c", "study": "study", "seed": 7, "status": "running", "steps": number}
    (job.folders[3] / "run.json").write_text(json.dumps(record))


def test_two_turns_without_a_step_end_as_failed(job: SlurmLauncher, capsys: pytest.CaptureFixture[str]) -> None:
    again = told(job)
    with pytest.raises(SystemExit, match="1"):
        told(again)
    (found,) = run_statuses([job.folders[3]])
    reason = "the limit of 5 min, less 30 s, is shorter than a start and a step take: no step was done in two"
    assert found.state == "failed"
    assert found.note.startswith(reason)
    assert reason in capsys.readouterr().out
    row = RunReader().read(job.folders[3])
    assert row is not None
    assert (row["run_id"], row["seed"], row["status"]) == ("1a2b3c", 7, "failed")


def test_a_step_in_a_turn_is_enough(job: SlurmLauncher) -> None:
    for number in range(1, 9):
        job.done = number // 2  # a step in every second turn
        steps(job, (number + 1) // 2)
        job = told(job)


def test_preemption_is_not_counted(job: SlurmLauncher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "age", lambda: 100.0)
    for _ in range(5):
        job = told(job)
    assert job.idle_turns == 0


def test_the_age_of_a_process() -> None:
    boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    begun = int(Path("/proc/self/stat").read_text().rsplit(") ", 1)[1].split()[19]) / 100
    assert submit.age() == pytest.approx(boot - begun, abs=1)
