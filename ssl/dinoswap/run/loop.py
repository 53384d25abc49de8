"""The loop of a run, from its first step or its last checkpoint on: data, steps, evaluations, checkpoints, signals."""

import logging
import math
import resource
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from dinoswap.config.sections import TrainerSettings
from dinoswap.data.corrupt import CorruptLog
from dinoswap.data.inventory import Inventory
from dinoswap.data.steps import StepDataset, loader
from dinoswap.data.transfer import Transfer
from dinoswap.data.workers import require_shared_memory
from dinoswap.distributed import any_rank, is_main, on_main, world_size
from dinoswap.distributed.preemption import Preemption, StopAsked
from dinoswap.evaluation.evaluator import Evaluation, Evaluator
from dinoswap.files.lock import require_sole_writer
from dinoswap.nn.precision import emulation_notice
from dinoswap.nn.vit import VisionTransformer
from dinoswap.objectives.base import Objective
from dinoswap.optim.nonfinite import KEPT_REPLAYS
from dinoswap.run import checkpoint
from dinoswap.run.index import renew_above
from dinoswap.run.journal import Journal
from dinoswap.run.metrics import RunRecord, lines_up_to
from dinoswap.run.progress import Display
from dinoswap.run.trackers import Trackers
from dinoswap.tracker.base import Status
from dinoswap.trainer import Trainer
from dinoswap.values import Batch

LOGGED = "lines_of_metrics"
"""Key in a checkpoint's state of the number of lines that metrics.jsonl had."""
RANKS = "ranks"
"""Key in the state before a non-finite step of the number of ranks that made it."""

_log = logging.getLogger(__name__)


class Preempted(Exception):
    """A signal asked the run to end; the state is saved and the same command continues it."""


@dataclass
class Run:
    """One run and its folder. `config` holds what decides the result: a checkpoint that was written under another
    config is refused."""

    folder: Path
    config: Mapping[str, Any]
    trainer: Trainer
    settings: TrainerSettings
    dataset: StepDataset
    workers: int
    evaluator: Evaluator
    corrupt: CorruptLog
    inventory: Inventory
    record: RunRecord
    trackers: Trackers
    random_init: VisionTransformer
    steps: int = field(default=0, init=False)  # done
    saved_step: int = field(default=-1, init=False)
    began: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self.trainer.guard.keep = self.save_replay
        self.writer = checkpoint.Writer()
        self.display = Display(self.settings.max_steps, self.dataset.batch_size)
        self.saved_at = self.began
        self.hours_before = self.record.cost.get("core_or_gpu_hours", 0.0)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def save(self, journal: Journal) -> None:
        """Begins to save a checkpoint after the steps done so far, unless one was begun already. Raises CheckpointError
        where the one before could not be written, Held where another process has taken the folder, and Diverged."""
        if self.steps == self.saved_step:
            return
        on_main(lambda: require_sole_writer(self.folder))
        self.trainer.guard.resolve()
        journal.sync()
        state, keep = {**self.trainer.state_dict(), LOGGED: journal.lines}, self.settings.keep_checkpoints
        self.writer.save(self.checkpoints, self.steps, state, config=self.config, keep=keep)
        self.saved_step, self.saved_at = self.steps, time.monotonic()
        self.write_record()

    def save_replay(self, step: int) -> Path:
        """Begins to save the state before the non-finite step `step`, counted from 0, for `tools/replay.py`, and
        returns the folder. The step's number and the number of ranks say what its batches were."""
        state = {**self.trainer.state_dict(), RANKS: world_size()}
        return self.writer.save(self.folder / "nonfinite", step + 1, state, config=self.config, keep=KEPT_REPLAYS)

    def resume(self) -> int:
        """Loads the newest intact checkpoint, if there is one, and returns the number of steps done. Raises
        CheckpointError where there are checkpoints and none can be read, ValueError where it has another config."""
        on_main(lambda: checkpoint.complete(self.checkpoints))
        path = checkpoint.newest_intact(self.checkpoints, _log.warning)
        if path is None:
            if self.record.steps:
                _log.warning("none of the %d steps done before was saved: beginning at step 0", self.record.steps)
            return 0
        saved = checkpoint.read(path, like=self.trainer.sharded_like(), verify=False)
        checkpoint.require_same_config(saved, self.config)
        on_main(lambda: checkpoint.set_aside_later(self.checkpoints, saved.step))
        on_main(lambda: self._note_lost_lines(saved))
        self.trainer.load_state_dict(saved.state)
        self.steps = self.saved_step = saved.step
        _log.info("resumed after step %d from %s", saved.step, saved.path)
        return saved.step

    def _note_lost_lines(self, saved: checkpoint.Checkpoint) -> None:
        """Notes in the log and in run.json where metrics.jsonl has lost lines, so that the curves have a gap. The run
        can continue, as the weights are complete."""
        path, logged = self.folder / "metrics.jsonl", saved.state.get(LOGGED, 0)
        present = lines_up_to(path, saved.step)
        if present < logged:
            note = (
                f"{path.name} had {present} of the {logged} lines logged up to step {saved.step} when the run resumed"
            )
            self.record.notes.append(f"{note}: its curves have a gap")
            _log.warning("%s: %s", self.folder, self.record.notes[-1])

    def write_record(self, status: Status = "running", error: str | None = None) -> None:
        """Updates the counters of run.json and writes it. Hours are summed over all processes of the run."""
        record, device = self.record, self.trainer.device
        units = world_size() * (1 if device.type == "cuda" else torch.get_num_threads())
        record.steps = self.steps
        record.cost["core_or_gpu_hours"] = self.hours_before + (time.monotonic() - self.began) / 3600 * units
        record.cost["peak_memory_bytes"] = max(peak_memory(device), record.cost.get("peak_memory_bytes", 0))
        rate = self.display.mean_images_per_second
        if math.isfinite(rate):  # otherwise the rate that an earlier process measured is kept
            record.throughput = {"images_per_second": rate}
        if status == "running":
            record.write()
        else:
            record.finish(status, error)

    def renew_index(self) -> None:
        """Brings the page of all runs up to date. Only the main process does."""
        if is_main():
            renew_above(self.record)

    def train(self) -> Evaluation:
        """Runs all steps and evaluations that are left and returns the final evaluation. Raises Preempted, Diverged,
        TooManyCorrupt, CheckpointError."""
        self.inventory.tell(_log)
        start = self.resume()
        objectives, warm_up = list(self.trainer.model.objectives), self.trainer.schedules["lr"].peak
        journal = Journal(self.folder, self.display, objectives, self.trackers, done=start, warm_up=warm_up)
        self.trackers.start(start + 1)
        self.write_record()
        self.renew_index()
        with Preemption() as preemption, self.display, journal, self.writer:
            self.evaluator.preemption = preemption
            try:
                return self._train(start, journal, preemption)
            except StopAsked:
                self._stop(journal, preemption)

    def _train(self, start: int, journal: Journal, preemption: Preemption) -> Evaluation:
        """Trains from step `start` and returns the final evaluation. Raises StopAsked, after a signal, at a point where
        all ranks can save: after a step or in an evaluation."""
        if start == 0:
            self._introduce()
        due = is_due(self.settings.eval_every, start) and start < self.settings.max_steps
        if due and not on_main(lambda: journal.has_evaluation(start)):  # a run may have been stopped in it
            self._evaluate(journal)
        for step, batches, waited in self._steps(start):
            logs = self.trainer.step(step, batches)
            journal.write_logged()  # of the step before, now that the device has work
            self.steps = step + 1
            self.display.update(self.steps, waited)
            self._after_step(journal, logs, preemption)
        self.save(journal)
        return self._finish(journal)

    def _steps(self, start: int) -> Iterator[tuple[int, list[Batch], float]]:
        """Yields (step, its normalised micro-batches on the device, seconds waited for them)."""
        stop, accumulate, device = self.settings.max_steps, self.settings.accumulate, self.trainer.device
        mean, std = self.evaluator.mean, self.evaluator.std
        if start == stop:
            return
        if self.workers:
            require_shared_memory(self.probes, self.workers)
        batches = iter(loader(self.dataset, start, stop, self.workers, device.type == "cuda"))
        transfer = Transfer(device)
        for step in range(start, stop):
            start_time = time.perf_counter()
            micro_batches = [next(batches) for _ in range(accumulate)]
            waited = time.perf_counter() - start_time
            for batch in micro_batches:
                self.corrupt.add(batch.corrupt)
            yield step, [transfer.copy(batch).normalised(mean, std) for batch in micro_batches], waited

    def _after_step(self, journal: Journal, logs: Mapping[str, Tensor], preemption: Preemption) -> None:
        """Logs, evaluates and saves a checkpoint, each where it is due. Raises StopAsked where a signal asked for it.

        All ranks are at the same step. A signal to any rank counts for all, and only the first rank's clock is read, so
        that all save the same step.
        """
        settings, step = self.settings, self.steps
        if is_due(settings.log_every, step) or step in (1, settings.max_steps):
            journal.log(step, logs, self.trainer.schedules.at(step - 1))
        if is_due(settings.eval_every, step) and step < settings.max_steps:
            self._evaluate(journal)
        stop, by_clock = any_rank(preemption.requested is not None, is_main() and self._is_due_by_clock())
        if is_due(settings.checkpoint_every, step) or by_clock:
            self.save(journal)
        if stop:
            raise StopAsked

    def _is_due_by_clock(self) -> bool:
        minutes = (time.monotonic() - self.saved_at) / 60
        return 0 < self.settings.checkpoint_minutes <= minutes

    def _stop(self, journal: Journal, preemption: Preemption) -> NoReturn:
        """Saves the state, records why the run ends, forwards the signal to the launcher, and raises Preempted."""
        self.save(journal)
        self.writer.wait()
        reason = f"{preemption.requested or 'a signal to another rank'}: saved after step {self.steps}"
        self.write_record("preempted", reason)
        _log.info("%s; the same command continues this run", reason)
        preemption.forward()
        raise Preempted(reason)

    def _introduce(self) -> None:
        """Logs what networks begin with, and what device and objectives have to report before the first step."""
        objectives = self.trainer.model.objectives
        for line in self.trainer.model.origin:
            _log.info(line)
        if emulated := emulation_notice("trainer.precision", self.trainer.dtype, self.trainer.device):
            _log.warning(emulated)
        for name, objective in objectives.items():
            for sentence in cast(Objective, objective).notices():
                _log.warning("%s: %s", name, sentence)
        if not any(objective.checks_first_batch for objective in objectives.values()):
            return  # before a batch is made, which takes time
        for probe in self.probes:
            on_device = probe.to(self.trainer.device).normalised(self.evaluator.mean, self.evaluator.std)
            for sentence in self.trainer.check_first_batch(on_device):
                _log.info(sentence)

    @cached_property
    def probes(self) -> list[Batch]:
        """The first batch as each pipeline of the data set makes it."""
        return [self.dataset.made_by(pipeline, 0) for pipeline in self.dataset.pipelines]

    @property
    def _probe(self) -> Batch:
        """The batch of the first step, which every evaluation uses for its diagnostics."""
        return self.probes[self.dataset.choose(0)]

    def _evaluate(self, journal: Journal) -> None:
        """Evaluates by k-NN and diagnostics on held-out images, and records the result."""
        model, hyper = self.trainer.model, self.trainer.schedules.at(max(self.steps - 1, 0))
        self.trainer.guard.resolve()
        with self.display.paused("evaluating"):
            evaluation = self.evaluator.in_loop(model, hyper, self._probe)
            self._record(journal, evaluation)
        self.display.evaluated(self.steps, evaluation.headline)

    def _finish(self, journal: Journal) -> Evaluation:
        """Runs the final evaluation, records it, marks the run as completed, and returns the evaluation."""
        model, hyper = self.trainer.model, self.trainer.schedules.at(self.steps - 1)
        with self.display.paused("final evaluation"):
            evaluation = self.evaluator.final(model.teacher["backbone"], self.random_init)
            self.evaluator.diagnose_objectives(evaluation, model, hyper, self._probe)
            self._record(journal, evaluation)
            journal.save_pictures(evaluation)
        self.display.evaluated(self.steps, evaluation.headline)
        self.writer.wait()
        self.write_record("completed")
        return evaluation

    def _record(self, journal: Journal, evaluation: Evaluation) -> None:
        journal.evaluated(self.steps, evaluation)
        self.corrupt.note(evaluation.corrupt)
        self.record.metrics |= evaluation.metrics
        self.write_record()
        self.renew_index()


def is_due(every: int, step: int) -> bool:
    """Whether `step` is a multiple of `every`; never where `every` is 0."""
    return every > 0 and step % every == 0


def peak_memory(device: torch.device) -> int:
    """Returns the peak memory in bytes: of the GPU's allocator, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
