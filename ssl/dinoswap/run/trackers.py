"""Tells trackers of a run. A tracker may talk to a server, which may hang, fail or be slow: no step waits for it, and
no error of it ends a run."""

import contextlib
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import OmegaConf

from dinoswap.config.identity import is_volatile
from dinoswap.distributed import is_main
from dinoswap.run.metrics import RunRecord
from dinoswap.run.naming import readable_name
from dinoswap.tracker.base import CLOSE_SECONDS, Status, TrackedRun, Tracker

MOST_CALLS = 1000
"""Calls that wait for a tracker at most. Before another one is added, the oldest is dropped."""

_log = logging.getLogger(__name__)


def tracked_run(cfg: Mapping[str, Any], folder: Path, record: RunRecord) -> TrackedRun:
    """Describes the run of a config and its record to trackers."""
    options = {group: option for group, option in record.choices.items() if not is_volatile(group)}
    begun = re.sub(r"\W", "", record.started.partition("+")[0])  # in UTC
    return TrackedRun(
        name=readable_name(record.choices, record.overrides, record.seed),
        key=f"{record.study}-{record.run_id}-seed{record.seed}-{begun}",
        run_id=record.run_id,
        study=record.study,
        seed=record.seed,
        folder=folder,
        results=Path(cfg["results_dir"]).absolute(),
        config=OmegaConf.to_yaml(OmegaConf.create(dict(cfg))),
        hparams={**record.identity, **options, "seed": record.seed},
        objective=cfg["objective_metric"],
    )


class Trackers:
    """The trackers of one run, by name, each with a thread of its own. Only the main process has any."""

    def __init__(self, trackers: Mapping[str, Tracker], run: TrackedRun) -> None:
        self._trackers, self._run = dict(trackers) if is_main() else {}, run
        self._deliveries: list[Delivery] = []
        for tracker in self._trackers.values():
            tracker.load()

    def start(self, first_step: int) -> None:
        """Begins to track; `first_step` is the first that is trained from now on."""
        self._deliveries = [Delivery(name, tracker, self._run, first_step) for name, tracker in self._trackers.items()]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers by name."""
        for delivery in self._deliveries:
            delivery.put(partial(delivery.tracker.scalars, step, dict(values)))

    def picture(self, step: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        """Adds a picture, uint8 [H, W, 3]."""
        for delivery in self._deliveries:
            delivery.put(partial(delivery.tracker.picture, step, name, image))

    def close(self, status: Status) -> None:
        """Tells all that the run has ended, and waits for them, CLOSE_SECONDS at most."""
        until = time.monotonic() + CLOSE_SECONDS
        for delivery in self._deliveries:
            delivery.end(status)
        with contextlib.ExitStack() as all_of_them:  # whatever one of them raises
            for delivery in self._deliveries:
                all_of_them.callback(delivery.wait, until)


class Delivery:
    """Calls one tracker from a thread of its own, in order. After an exception the tracker is off for the rest of the
    run. What was not delivered, and why, is logged."""

    def __init__(self, name: str, tracker: Tracker, run: TrackedRun, first_step: int) -> None:
        self.name, self.tracker = name, tracker
        self._calls: deque[Callable[[], None]] = deque(maxlen=MOST_CALLS)
        self._changed = threading.Condition()
        self._dropped = 0
        self._on, self._ended = True, False  # ended: nothing follows what is queued
        self._thread = threading.Thread(target=self._deliver, args=(run, first_step), name=f"tracker {name}")
        self._thread.daemon = True  # one that hangs does not hold the end of the process
        self._thread.start()

    def put(self, call: Callable[[], None]) -> None:
        """Adds a call of the tracker, and returns at once."""
        with self._changed:
            if self._on:
                self._dropped += len(self._calls) == MOST_CALLS
                self._calls.append(call)  # the oldest makes room for it
                self._changed.notify()

    def end(self, status: Status) -> None:
        """Adds the last call, which closes the tracker, and returns at once."""
        with self._changed:
            self.put(partial(self.tracker.close, status))
            self._ended = True

    def wait(self, until: float) -> None:
        """Waits for the last call until the time `until` of the monotonic clock, or Ctrl-C; then the tracker is left
        alone."""
        try:
            self._thread.join(max(until - time.monotonic(), 0))
        finally:
            if self._thread.is_alive():
                self._switch_off("it is too slow, or does not answer")
                self._abandon()
        if self._dropped and self._on:
            _log.warning("tracker %s was too slow for %d calls; %s", self.name, self._dropped, self.tracker.remedy())

    def _deliver(self, run: TrackedRun, first_step: int) -> None:
        """Starts the tracker and makes its calls until the last one. What it raises switches the tracker off."""
        try:
            self.tracker.start(run, first_step)
            while call := self._next():
                call()
        except (Exception, SystemExit) as error:  # wandb may leave by the latter
            self._switch_off(" ".join(f"{type(error).__name__}: {error}".split()))
        if not self._on:  # which it may have been before this call returned
            self._abandon()

    def _next(self) -> Callable[[], None] | None:
        """Waits for the next call and returns it; None after the last one."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._ended)
            return self._calls.popleft() if self._calls else None

    def _switch_off(self, reason: str) -> None:
        """Drops all calls, and logs once what was not delivered."""
        with self._changed:
            was_on, self._on = self._on, False
            missing = len(self._calls) + self._dropped + 1  # with the one that has not returned
            self._calls.clear()
        if was_on:
            notice = f"is off: {reason}; {missing} of the calls so far were not delivered"
            _log.warning("tracker %s %s; %s", self.name, notice, self.tracker.remedy())

    def _abandon(self) -> None:
        """Lets the tracker go; what it raises then is ignored."""
        with contextlib.suppress(Exception):
            self.tracker.abandon()
