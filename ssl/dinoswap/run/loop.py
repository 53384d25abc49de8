"""A run from its first step, or its last checkpoint, to its last: data, steps, evaluations, checkpoints, signals."""

import logging
import math
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
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
from dinoswap.data.workers import require_shared_memory
from dinoswap.distributed import any_rank, is_main, on_main, rank, world_size
from dinoswap.distributed.preemption import Preemption, StopAsked
from dinoswap.evaluation.evaluator import Evaluation, Evaluator
from dinoswap.files.lock import require_sole_writer
from dinoswap.nn.precision import emulation_notice
from dinoswap.nn.vit import VisionTransformer
from dinoswap.objectives.base import Objective
from dinoswap.optim.nonfinite import KEPT_REPLAYS
from dinoswap.run import checkpoint
from dinoswap.run.journal import Journal
from dinoswap.run.metrics import RunRecord, Status, lines_up_to
from dinoswap.run.progress import Display
from dinoswap.trainer import Trainer
from dinoswap.values import Batch

LOGGED = "lines_of_metrics"
"""In a checkpoint's state: how many lines metrics.jsonl had."""

_log = logging.getLogger(__name__)


class Preempted(Exception):
    """A signal asked the run to end; the state is saved and the same command continues it."""


@dataclass
class Run:
    """One run and its folder. `config` holds what decides the result: a checkpoint written under another one is
    refused."""

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
    random_init: VisionTransformer
    steps: int = field(default=0, init=False)  # done
    saved_step: int = field(default=-1, init=False)
    began: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self.trainer.guard.keep = self.save_replay
        self.display = Display(self.settings.max_steps, self.dataset.batch_size)
        self.saved_at = self.began
        self.hours_before = self.record.cost.get("core_or_gpu_hours", 0.0)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def save(self, journal: Journal) -> None:
        """Checkpoint after the steps done so far, once."""
        if self.steps == self.saved_step:
            return
        on_main(lambda: require_sole_writer(self.folder))
        self.trainer.guard.resolve()
        journal.sync()
        state, keep = {**self.trainer.state_dict(), LOGGED: journal.lines}, self.settings.keep_checkpoints
        step, config = self.steps, self.config
        checkpoint.save(self.checkpoints, step, state, config=config, keep=keep, shared=True)
        self.saved_step, self.saved_at = self.steps, time.monotonic()
        self.write_record()

    def save_replay(self, step: int, batches: Sequence[Batch]) -> Path:
        """Batch and state of non-finite step `step`, counted from 0, for `tools/replay.py`; each rank its own."""
        folder = self.folder / ("nonfinite" if is_main() else f"nonfinite.rank{rank()}")
        state = {"batches": [batch.tensors() for batch in batches], "trainer": self.trainer.state_dict()}
        return checkpoint.save(folder, step + 1, state, config=self.config, keep=KEPT_REPLAYS)

    def resume(self) -> int:
        """Load the newest intact checkpoint, if there is one; the number of steps done. Raises CheckpointError where
        there are some and none can be read."""
        path = on_main(lambda: checkpoint.newest_intact(self.checkpoints, _log.warning))
        if path is None:
            if self.record.steps:
                _log.warning("none of the %d steps done before was saved: beginning at step 0", self.record.steps)
            return 0
        found = checkpoint.read(path, like=self.trainer.sharded_like(), verify=False)
        checkpoint.require_same_config(found, self.config)
        on_main(lambda: checkpoint.set_aside_later(self.checkpoints, found.step))
        on_main(lambda: self._note_lost_lines(found))
        self.trainer.load_state_dict(found.state)
        self.steps = self.saved_step = found.step
        _log.info("resumed after step %d from %s", found.step, found.path)
        return found.step

    def _note_lost_lines(self, found: checkpoint.Checkpoint) -> None:
        """The weights are what they were, so the run can go on; that its curves have a gap is said, here and wherever
        the run is read."""
        path, logged = self.folder / "metrics.jsonl", found.state.get(LOGGED, 0)
        there = lines_up_to(path, found.step)
        if there < logged:
            note = f"{path.name} had {there} of the {logged} lines logged up to step {found.step} when the run resumed"
            self.record.notes.append(f"{note}: its curves have a gap")
            _log.warning("%s: %s", self.folder, self.record.notes[-1])

    def write_record(self, status: Status = "running", error: str | None = None) -> None:
        """run.json with its counters brought up to date. Hours are those of every process that worked on the run."""
        record, device = self.record, self.trainer.device
        units = world_size() * (1 if device.type == "cuda" else torch.get_num_threads())
        record.steps = self.steps
        record.cost["core_or_gpu_hours"] = self.hours_before + (time.monotonic() - self.began) / 3600 * units
        record.cost["peak_memory_bytes"] = max(peak_memory(device), record.cost.get("peak_memory_bytes", 0))
        rate = self.display.mean_images_per_second
        if math.isfinite(rate):  # else what an earlier process measured stands
            record.throughput = {"images_per_second": rate}
        if status == "running":
            record.write()
        else:
            record.finish(status, error)

    def train(self) -> Evaluation:
        """All steps and evaluations that are left. Raises Preempted, Diverged, TooManyCorrupt, CheckpointError."""
        self.inventory.tell(_log)
        start = self.resume()
        objectives, board = list(self.trainer.model.objectives), self.settings.tensorboard
        warm_up = int(self.trainer.schedules["lr"].values.argmax())
        journal = Journal(self.folder, self.display, objectives, done=start, warm_up=warm_up, tensorboard=board)
        self.write_record()
        with Preemption() as preemption, self.display, journal:
            self.evaluator.preemption = preemption
            try:
                return self._train(start, journal, preemption)
            except StopAsked:
                self._stop(journal, preemption)

    def _train(self, start: int, journal: Journal, preemption: Preemption) -> Evaluation:
        """The same from step `start`. Raises StopAsked where all ranks can save: after a step, or in an evaluation."""
        if start == 0:
            self._introduce()
        due = is_due(self.settings.eval_every, start) and start < self.settings.max_steps
        if due and not on_main(lambda: journal.has_evaluation(start)):  # a run may have been stopped in it
            self._evaluate(journal)
        for step, batches, waited in self._steps(start):
            logs = self.trainer.step(step, batches)
            self.steps = step + 1
            self.display.update(self.steps, waited)
            self._after_step(journal, logs, preemption)
        self.save(journal)
        return self._finish(journal)

    def _steps(self, start: int) -> Iterator[tuple[int, list[Batch], float]]:
        """(step, its micro-batches on the device, seconds waited for them)."""
        stop, accumulate, device = self.settings.max_steps, self.settings.accumulate, self.trainer.device
        mean, std = self.evaluator.mean, self.evaluator.std
        if start == stop:
            return
        if self.workers:
            require_shared_memory(self._probe, self.workers)
        batches = iter(loader(self.dataset, start, stop, self.workers, device.type == "cuda"))
        for step in range(start, stop):
            began = time.perf_counter()
            loaded = [next(batches) for _ in range(accumulate)]
            waited = time.perf_counter() - began
            for batch in loaded:
                self.corrupt.add(batch.corrupt)
            yield step, [batch.to(device).normalised(mean, std) for batch in loaded], waited

    def _after_step(self, journal: Journal, logs: Mapping[str, Tensor], preemption: Preemption) -> None:
        """The logs, an evaluation and a checkpoint, each where it is due; the end, where a signal asked for it.

        Steps are the same on all ranks. A signal to any of them is one to all, and of their clocks only the first
        rank's counts, so that all save the same step.
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
        """The state saved, the launcher told."""
        self.save(journal)
        reason = f"{preemption.requested or 'a signal to another rank'}: saved after step {self.steps}"
        self.write_record("preempted", reason)
        _log.info("%s; the same command continues this run", reason)
        preemption.forward()
        raise Preempted(reason)

    def _introduce(self) -> None:
        """What there is to say before the first step, by the device and by the objectives, in the log."""
        objectives = self.trainer.model.objectives
        if emulated := emulation_notice("trainer.precision", self.trainer.dtype, self.trainer.device):
            _log.warning(emulated)
        for name, objective in objectives.items():
            for sentence in cast(Objective, objective).notices():
                _log.warning("%s: %s", name, sentence)
        if not any(objective.checks_first_batch for objective in objectives.values()):
            return  # and no batch is made
        probe = self._probe.to(self.trainer.device).normalised(self.evaluator.mean, self.evaluator.std)
        for sentence in self.trainer.check_first_batch(probe):
            _log.info(sentence)

    @cached_property
    def _probe(self) -> Batch:
        """The batch of the first step: the same for every evaluation."""
        return self.dataset[0]

    def _evaluate(self, journal: Journal) -> None:
        """k-NN and diagnostics on held-out images; the record is brought up to date."""
        model, hyper = self.trainer.model, self.trainer.schedules.at(max(self.steps - 1, 0))
        self.trainer.guard.resolve()
        with self.display.paused("evaluating"):
            found = self.evaluator.in_loop(model, hyper, self._probe)
            self._record(journal, found)
        self.display.report(self.steps, found.metrics)

    def _finish(self, journal: Journal) -> Evaluation:
        """The final evaluation."""
        model, hyper = self.trainer.model, self.trainer.schedules.at(self.steps - 1)
        with self.display.paused("final evaluation"):
            found = self.evaluator.final(model.teacher["backbone"], self.random_init)
            self.evaluator.diagnose_objectives(found, model, hyper, self._probe)
            self._record(journal, found)
            journal.save_pictures(found)
        self.display.report(self.steps, found.metrics)
        self.write_record("completed")
        return found

    def _record(self, journal: Journal, found: Evaluation) -> None:
        journal.evaluated(self.steps, found)
        self.corrupt.note(found.corrupt)
        self.record.metrics |= found.metrics
        self.write_record()


def is_due(every: int, step: int) -> bool:
    """Whether `step` is one of every `every` steps; 0 is never."""
    return every > 0 and step % every == 0


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
