"""W&B: its own files, written offline; and a server that does not answer."""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tracked import HPARAMS, tracked_run, wandb_files, wandb_records, wandb_rows

from dinoswap.run import trackers
from dinoswap.run.trackers import Trackers
from dinoswap.tracker.wandb import CONFIG, WandbTracker


def services() -> list[str]:
    """The processes of wandb that this one has started."""
    commands = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            commands += [folder.name] if parent == str(os.getpid()) and "wandb" in (folder / "comm").read_text() else []
        except OSError:
            continue  # it has ended
    return commands


def warned(caplog: pytest.LogCaptureFixture) -> str:
    """Our only warning."""
    (record,) = (record for record in caplog.records if record.name == trackers.__name__)
    return record.getMessage()


def offline(**changes: object) -> WandbTracker:
    values = {"project": "mine", "entity": None, "mode": "offline", "code": False}
    return WandbTracker(**{**values, **changes})  # type: ignore[arg-type]


def test_a_continued_run_is_the_same_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tracked_run(tmp_path / "run")
    run.folder.mkdir()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    streams = sys.stdout, sys.stderr
    for first in (1, 40):
        tracker = offline()
        tracker.load()
        tracker.start(run, first)
        for step in range(first, 40):  # more than a block of the file holds
            tracker.scalars(step, {f"value/{name}": step / 7 + name for name in range(30)})
        tracker.scalars(39, {"eval/knn_top1": 40.5})
        tracker.picture(39, "crops", np.zeros((4, 6, 3), np.uint8))
        tracker.close("completed" if first > 1 else "preempted")
        assert services() == []
    assert (sys.stdout, sys.stderr) == streams
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    before, after = wandb_files(run.folder)
    rows = [row for row in wandb_rows(before) if "crops" not in row]
    assert rows == [
        *({"step": step} | {f"value/{name}": step / 7 + name for name in range(30)} for step in range(1, 40)),
        {"step": 39, "eval/knn_top1": 40.5},
    ]
    for path, status in ((before, 1), (after, 0)):
        records = {record.WhichOneof("record_type"): record for record in wandb_records(path)}
        begun = records["run"].run
        assert (begun.run_id, begun.display_name, begun.run_group) == (run.key, run.name, run.study)
        config = {item.key: json.loads(item.value_json) for item in begun.config.update}
        assert {key: config[key] for key in HPARAMS} == HPARAMS
        assert begun.git.commit == ""
        assert records["exit"].exit.exit_code == status
        assert (path.parent / "files" / CONFIG).read_text() == run.config
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.fixture
def silent_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """It takes connections, and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield


def test_a_server_that_does_not_answer_is_left_alone(
    silent_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.5)
    made = Trackers({"wandb": offline(mode="online")}, tracked_run(tmp_path))
    made.start(1)
    until = time.monotonic() + 20
    while not services() and time.monotonic() < until:
        time.sleep(0.05)
    made.scalars(1, {"loss": 1.0})
    made.close("preempted")
    for thread in threading.enumerate():
        if thread.name == "tracker wandb":
            thread.join(10)
    assert services() == []
    assert "tracker wandb is off" in warned(caplog)
    assert "WANDB_SERVICE" not in os.environ


def test_without_a_key_it_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    made = Trackers({"wandb": offline(mode="online")}, tracked_run(tmp_path))
    made.start(1)
    made.close("completed")
    assert "No API key configured" in warned(caplog)
    assert services() == []
