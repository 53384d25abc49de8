"""What a study consists of, and where each of its runs stands.

The run folders are the ledger, and there is no other: results_dir/runs/<study>/<run_id>/seed<k>, where run_id is a hash
of the config, so that what has been run is found again and a changed config is another run. What is not in run.json is
asked of the system: whether a process holds the folder's lock, whether SLURM still has the job (job.json).
"""

import json
import logging
import os
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from dinoswap.files.lock import holder
from dinoswap.files.reading import RECORD_BYTES, parse_object, read_small
from dinoswap.files.writing import write_atomically
from dinoswap.run.record import Record, read_record
from dinoswap.run.run_folder import followed, relative_folder, runs_root
from dinoswap.studies.design import Cell
from dinoswap.studies.overrides import as_text
from dinoswap.studies.study import Study

State = Literal["missing", "queued", "running", "completed", "preempted", "failed", "diverged", "killed"]
STATES: tuple[State, ...] = get_args(State)
STARTED_UNASKED: tuple[State, ...] = ("missing", "preempted")
"""What `dinoswap-ablate run` starts without being asked: the others are done, under way, or ended in a way that may
come again."""
UNDER_WAY: tuple[State, ...] = ("queued", "running")
BUSY: tuple[State, ...] = (*UNDER_WAY, "completed")
"""What no launcher starts again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run that a study asks for. `overrides` are those of its whole command line."""

    cell: str
    seed: int
    overrides: list[str]
    config: Mapping[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        """The cell and the seed."""
        return f"{self.cell} seed {self.seed}"

    @property
    def run_id(self) -> str:
        """The run id, which is the name of the folder that the run's folder is in."""
        return self.folder.parent.name


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands. `note` is the first line of its error, says who runs it, or is empty; `record` is its
    run.json, empty without one."""

    state: State
    note: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """The state with its note."""
        return f"{self.state}: {self.note}" if self.note else self.state


def entries(study: Study, cells: Iterable[Cell]) -> list[Entry]:
    """Returns the runs of these cells, cell by cell, each with all seeds of the study."""
    runs = []
    for cell in cells:
        for seed in study.seeds:
            config = {**cell.config, "study": study.name, "seed": seed}
            folder = followed(runs_root(config) / relative_folder(config, cell.run_id))
            overrides = [*cell.overrides, f"study={as_text(study.name)}", f"seed={seed}"]
            runs.append(Entry(cell=cell.name, seed=seed, overrides=overrides, config=config, folder=folder))
    return runs


# --- where they stand -------------------------------------------------------------------------------------------------


def run_statuses(folders: Sequence[Path]) -> list[RunStatus]:
    """Returns where the run of each folder stands. A folder need not exist, and may point to another one."""
    folders = [followed(folder) for folder in folders]
    unfinished = [folder for folder in folders if record_of(folder)[0].get("status") != "completed"]
    claims = {folder: submitted for folder in unfinished if (submitted := read_json(folder / "job.json")).get("job")}
    queued = queued_jobs(str(submitted["job"]) for submitted in claims.values())
    return [_run_status(folder, claims.get(folder, {}), queued) for folder in folders]


def _run_status(folder: Path, claim: Mapping[str, Any], queued: Collection[str]) -> RunStatus:
    """Returns where the run in `folder` stands, by its lock, its record and the job in its `claim`, which waits or runs
    if it is `queued`."""
    try:
        lock_holder = holder(folder)
    except OSError as error:
        return RunStatus("missing", f"cannot be read: {error.strerror}")
    record, fault = record_of(folder)  # after the lock: whoever releases it has written the record
    status, job = record.get("status"), claim.get("job")
    if status == "completed":
        return RunStatus("completed", fault, record)
    if lock_holder is not None:
        return RunStatus("running", lock_holder, record)
    if job in queued:
        return RunStatus("queued", f"SLURM job {job}", record)
    if status not in STATES:
        never = f"SLURM job {job} ended before the run began, see {claim.get('log')}" if job else ""
        return RunStatus("missing", fault or never)
    if status == "running":
        return RunStatus("killed", f"no process has it; last heard of {_last_write(folder)}", record)
    return RunStatus(status, str(record.get("error") or fault).partition("\n")[0], record)


def _last_write(folder: Path) -> str:
    """Returns, in words, when run.json or metrics.jsonl were last written."""
    times = []
    for name in ("run.json", "metrics.jsonl"):
        with suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return f"{datetime.fromtimestamp(max(times), UTC):%Y-%m-%d %H:%M:%S} UTC" if times else "an unknown time"


def record_of(folder: Path) -> tuple[Record, str]:
    """Returns run.json and, in words, what is wrong with it. Both are empty where there is none; the record is empty
    where it cannot be read."""
    try:
        record, faults = read_record(folder / "run.json")
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        return {}, f"run.json: {error.strerror}"
    except ValueError as error:
        return {}, f"run.json: not the record of a run: {error}"
    if record.get("status") not in STATES:
        faults.append(f"status is {record.get('status')!r}")
    return record, f"run.json: {'; '.join(faults)}" if faults else ""


def read_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file, or an empty one where the file is missing, unreadable or holds no object."""
    try:
        return parse_object(read_small(path, RECORD_BYTES))
    except (OSError, ValueError):
        return {}


# --- SLURM ------------------------------------------------------------------------------------------------------------


def claim(folder: Path, job: str, log: Path) -> None:
    """Records in the run folder (job.json) that a SLURM job will run it, and where the job's output goes."""
    folder.mkdir(parents=True, exist_ok=True)
    submitted = datetime.now(UTC).isoformat(timespec="seconds")
    write_atomically(folder / "job.json", json.dumps({"job": job, "submitted": submitted, "log": str(log)}) + "\n")


def claimed(folder: Path) -> str:
    """Returns the SLURM job that was last submitted for this run, or an empty text."""
    return str(read_json(folder / "job.json").get("job", ""))


def queued_jobs(jobs: Iterable[str]) -> set[str]:
    """Returns those of the jobs that wait or run, by squeue, which every SLURM has. When squeue does not answer it
    returns all of them, with a warning: what might still run must not be started again."""
    job_ids = set(jobs)
    if not job_ids:
        return set()
    masters = ",".join(sorted({job.split("_")[0] for job in job_ids}))
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={masters}"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=60, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        done = subprocess.CompletedProcess(command, 1, "", str(error))
    if done.returncode and "Invalid job id" not in done.stderr:
        _log.warning("%s; SLURM jobs are taken to be still there", done.stderr.strip())
        return job_ids
    return job_ids & set(done.stdout.split())
