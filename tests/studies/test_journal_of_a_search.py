"""Optuna's journal, cut, filled and left locked as a full disk, a power cut and a killed worker leave it."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage

from dinoswap.config.schema import ConfigError
from dinoswap.studies.tuning.journal import Lock, open_journal, repair
from dinoswap.studies.tuning.trials import storage

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
_fork = multiprocessing.get_context("fork")


def study_in(folder: Path) -> optuna.Study:
    return optuna.create_study(study_name="mine", storage=storage(folder), load_if_exists=True)


def tell(study: optuna.Study, value: float) -> None:
    study.tell(study.ask({"x": FloatDistribution(0, 1)}), value)


def values(folder: Path) -> list[float | None]:
    return [trial.value for trial in study_in(folder).trials]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Path]:
    """Of two trials."""
    study = study_in(tmp_path)
    tell(study, 1.0)
    tell(study, 2.0)
    yield tmp_path / "journal.log"
    assert values(tmp_path)[:2] == [1.0, 2.0]


LAST = (
    b'{"op_code":6,"worker_id":"w","trial_id":1,"state":1,"values":[7.0],"datetime_complete":"2026-01-01T00:00:00"}\n'
)
HALF = LAST[: len(LAST) // 2]
TAILS = {
    "half a line": HALF,
    "half a line and its end": HALF + b"\n",
    "zeros": bytes(100),
    "zeros and an end": bytes(5000) + b"\n",
    "garbage": b"\xff\xfe\n{}\n[]\n5\n",
    "half a line, then a whole one": HALF + b"\n" + LAST,
    "half a line, and a whole one right after it": HALF + LAST,
    "a line of 100,000 letters": b'{"op_code":' + b"x" * 100_000,
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS.keys())
def test_what_was_not_written_whole_is_cut_off_and_told(
    tail: bytes, journal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The search goes on from what was whole; the journal as it was lies beside it."""
    whole = journal.read_bytes()
    journal.write_bytes(whole + tail)
    study = study_in(journal.parent)
    assert journal.read_bytes().startswith(whole + LAST if LAST in tail else whole)
    assert f"{journal}: a line was not written whole" in caplog.text
    assert journal.with_name("journal.log.damaged-1").read_bytes() == whole + tail
    tell(study, 3.0)
    assert values(journal.parent) == [1.0, 2.0, 3.0]


def test_damage_that_a_worker_leaves_while_others_go_on(journal: Path) -> None:
    """Who gets the lock next cuts it off before it writes: its own entry is not glued to the half one."""
    study, other = study_in(journal.parent), study_in(journal.parent)
    for tail, value in ((HALF, 3.0), (bytes(10), 4.0), (HALF + b"\n", 5.0)):
        with journal.open("ab") as file:
            file.write(tail)
        tell(study, value)
        assert [trial.value for trial in other.trials][-1] == value
    assert values(journal.parent) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert len(list(journal.parent.glob("journal.log.damaged-*"))) == 3


def test_a_whole_journal_is_left_alone(journal: Path) -> None:
    before = journal.stat()
    repair(journal)
    study_in(journal.parent)
    assert not journal.with_name("journal.log.damaged-1").exists()
    assert journal.stat().st_ino == before.st_ino


def hold(path: Path) -> None:
    Lock(path).acquire()
    path.with_name("held").touch()
    time.sleep(60)


def test_the_lock_of_a_killed_worker_is_waited_for_by_nobody(journal: Path) -> None:
    """Nor is a lock file that an earlier version left."""
    journal.with_name("journal.log.lock").touch()
    process = _fork.Process(target=hold, args=(journal,))
    process.start()
    while not journal.with_name("held").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    began = time.monotonic()
    tell(study_in(journal.parent), 3.0)
    assert time.monotonic() - began < 10  # Optuna's own lock takes 30 s, each time


@pytest.mark.parametrize("what", ["folder", "pipe", "another file", "another operation"])
def test_what_is_no_journal_is_refused_in_a_line(what: str, tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "another file":
        path.write_text('{"op_code":4,"worker_id":"w"}\n')
    else:
        path.write_text('{"op_code":99,"worker_id":"w"}\n')
    with pytest.raises(ConfigError) as refused:
        storage(tmp_path)
    assert str(refused.value).startswith(f"{path}: is not the journal of a search (")
    assert "move it away" in str(refused.value)


def test_workers_at_once_lose_nothing(tmp_path: Path) -> None:
    """Four processes, 50 entries each."""
    open_journal(tmp_path / "journal.log")

    def write(worker: int) -> None:
        backend = open_journal(tmp_path / "journal.log")
        for number in range(50):
            backend.append_logs([{"op_code": 10, "worker_id": f"{worker}-{number}"}])

    processes = [_fork.Process(target=write, args=(worker,)) for worker in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    logs = list(open_journal(tmp_path / "journal.log").read_logs(0))
    assert {log["worker_id"] for log in logs} == {f"{worker}-{number}" for worker in range(4) for number in range(50)}
    assert len(logs) == 200
    JournalStorage(open_journal(tmp_path / "journal.log"))
