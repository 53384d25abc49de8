"""No tracker costs a run a step: one that hangs, fails or is slow."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dinoswap.run import trackers
from dinoswap.run.metrics import RunRecord
from dinoswap.run.trackers import MOST_CALLS, Trackers, tracked_run
from dinoswap.tracker.base import Status, TrackedRun, Tracker

PICTURE = np.zeros((2, 2, 3), np.uint8)


class Listed(Tracker):
    """Lists its calls. The `at`th does `fault` first, or does not return before `gate` is open."""

    def __init__(self, at: int = -1, fault: type[BaseException] | None = None) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.threads: set[str] = set()
        self.at, self.fault, self.abandoned = at, fault, 0
        self.gate = threading.Event()

    def _call(self, *call: object) -> None:
        self.threads.add(threading.current_thread().name)
        if len(self.calls) == self.at:
            if self.fault:
                raise self.fault("no route to host")
            self.gate.wait()
        self.calls.append(call)

    def start(self, run: TrackedRun, first_step: int) -> None:
        self._call("start", run.name, first_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._call("scalars", step, dict(values))

    def picture(self, step: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        self._call("picture", step, name)

    def close(self, status: Status) -> None:
        self._call("close", status)

    def abandon(self) -> None:
        self.abandoned += 1


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    messages: list[str] = []
    with caplog.at_level(logging.WARNING, "dinoswap"):
        yield messages
        messages += [record.getMessage() for record in caplog.records]


def described(folder: Path) -> TrackedRun:
    choices = {"preset": "official", "masking": "bernoulli", "weight_decay": "all_groups", "distributed": "ddp"}
    overrides = ["weight_decay=all_groups", "masking=block", "masking=bernoulli", "~objectives.koleo", "seed=3"]
    overrides += ["data.workers=0", "tracker=wandb", "tracker.wandb.code=true", "distributed=ddp", "optimizer.eps=1"]
    identity = {"optimizer.eps": 1, "objectives.koleo": None, "masking": "BernoulliMasking"}
    record = RunRecord(
        folder / "run.json", "1a2b3c", "mine", 3, choices, overrides, started="2026-01-02T03:04:05+00:00",
        identity=identity,
    )  # fmt: skip
    return tracked_run({"results_dir": folder, "objective_metric": "eval/knn_top1", "seed": 3}, folder, record)


def told(folder: Path, **by_name: Tracker) -> Trackers:
    made = Trackers(by_name, described(folder))
    made.start(1)
    return made


def log(made: Trackers, steps: int) -> float:
    """Seconds that this takes."""
    begun = time.perf_counter()
    for step in range(1, steps + 1):
        made.scalars(step, {"loss": float(step)})
    return time.perf_counter() - begun


def test_what_a_run_is_called_and_what_is_said_of_it(tmp_path: Path) -> None:
    run = described(tmp_path)
    assert run.name == "official masking=bernoulli '~objectives.koleo' optimizer.eps=1 seed 3"
    assert run.key == "mine-1a2b3c-seed3-20260102T030405"
    assert run.hparams == {
        "preset": "official",
        "masking": "bernoulli",
        "weight_decay": "all_groups",
        "optimizer.eps": 1,
        "objectives.koleo": None,
        "seed": 3,
    }
    assert "seed: 3\n" in run.config


def test_each_tracker_gets_all_in_order_in_a_thread_of_its_own(tmp_path: Path, warnings: list[str]) -> None:
    first, second = Listed(), Listed()
    made = told(tmp_path, first=first, second=second)
    log(made, 2)
    made.picture(2, "crops", PICTURE)
    made.close("preempted")
    scalars = [("scalars", step, {"loss": float(step)}) for step in (1, 2)]
    assert first.calls[0][0] == "start"
    assert first.calls[1:] == [*scalars, ("picture", 2, "crops"), ("close", "preempted")] == second.calls[1:]
    assert (first.threads, second.threads) == ({"tracker first"}, {"tracker second"})
    assert warnings == []


@pytest.mark.parametrize("at", [0, 1, 3])
def test_one_that_hangs_is_not_waited_for(at: int, tmp_path: Path, caplog: pytest.LogCaptureFixture,
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(trackers, "CLOSE_SECONDS", 0.3)
    hanging, other = Listed(at), Listed()
    made = told(tmp_path, hanging=hanging, other=other)
    assert log(made, MOST_CALLS // 2) < 1
    begun = time.perf_counter()
    made.close("completed")
    assert time.perf_counter() - begun < 1
    assert other.calls[-1] == ("close", "completed")
    assert (len(hanging.calls), hanging.abandoned) == (at, 1)
    (record,) = caplog.records
    missing = MOST_CALLS // 2 + 2 - at  # with start and close
    assert record.getMessage() == (
        "tracker hanging is off: it is too slow, or does not answer; "
        f"{missing} of the calls so far were not delivered; metrics.jsonl has all"
    )
    hanging.gate.set()
    hanging_thread = next(each for each in threading.enumerate() if each.name == "tracker hanging")
    hanging_thread.join(1)
    assert len(hanging.calls) == at + 1  # nothing is called after it has been given up
    assert len(caplog.records) == 1


@pytest.mark.parametrize("fault", [ConnectionError, SystemExit])
@pytest.mark.parametrize("at", [0, 2])
def test_one_that_fails_is_off(at: int, fault: type[BaseException], tmp_path: Path,
                               caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    failing, other = Listed(at, fault), Listed()
    made = told(tmp_path, failing=failing, other=other)
    log(made, 10)
    made.close("completed")
    assert len(other.calls) == 12
    assert (len(failing.calls), failing.abandoned) == (at, 1)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"tracker failing is off: {fault.__name__}: no route to host; ")


def test_of_what_is_too_slow_the_oldest_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slow = Listed(0)
    made = told(tmp_path, slow=slow)
    log(made, MOST_CALLS + 5)
    threading.Timer(0.1, slow.gate.set).start()
    made.close("completed")
    assert slow.calls[0][0] == "start"
    assert [call[1] for call in slow.calls[1:-1]] == list(range(7, MOST_CALLS + 6))  # the last call is close
    assert caplog.records[-1].getMessage() == "tracker slow was too slow for 6 calls; metrics.jsonl has all"
