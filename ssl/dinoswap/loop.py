"""A run from its first step, or its last checkpoint, to its last: data, steps, evaluations, checkpoints, signals."""

import logging
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoswap import checkpoint
from dinoswap.data.corrupt import CorruptLog
from dinoswap.data.steps import StepDataset, loader
from dinoswap.distributed import any_rank, is_main, world_size
from dinoswap.evaluation.evaluator import Evaluator
from dinoswap.metrics import MetricsLog, RunRecord, TensorBoard
from dinoswap.preemption import Preemption
from dinoswap.progress import Display
from dinoswap.trainer import Trainer, TrainerSettings
from dinoswap.values import Batch

_log = logging.getLogger(__name__)


class Preempted(Exception):
    """A signal asked the run to end; the state is saved and the same command continues it."""


@dataclass
class Run:
    """One run and its folder. `config` is what a checkpoint must have been written under to be resumed."""

    folder: Path
    config: Mapping[str, Any]
    trainer: Trainer
    settings: TrainerSettings
    dataset: StepDataset
    evaluator: Evaluator
    corrupt: CorruptLog
    record: RunRecord
    mean: Tensor
    std: Tensor
    _saved: int = field(default=-1, init=False)
    _saved_at: float = field(default_factory=time.monotonic, init=False)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    # --- state ----------------------------------------------------------------------------------------------------------

    def save(self, step: int, metrics: MetricsLog) -> None:
        """Checkpoint after `step` steps, once."""
        if step == self._saved:
            return
        self.trainer.guard.resolve()
        metrics.sync()
        state = self.trainer.state_dict()
        checkpoint.save(self.checkpoints, step, state, config=self.config, keep=self.settings.keep_checkpoints)
        self._saved, self._saved_at = step, time.monotonic()

    def save_replay(self, step: int, batches: Sequence[Batch]) -> Path:
        """Batch and state of a non-finite step, for `tools/replay.py`."""
        state = {"batches": [batch.tensors() for batch in batches], "trainer": self.trainer.state_dict()}
        return checkpoint.save(self.folder / "nonfinite", step, state, config=self.config, keep=3)

    def resume(self) -> int:
        """Load the newest valid checkpoint, if there is one; the number of steps done."""
        found = checkpoint.newest(self.checkpoints, _log.warning)
        if found is None:
            return 0
        checkpoint.require_same_config(found, self.config)
        self.trainer.load_state_dict(found.state)
        self._saved = found.step
        _log.info("resumed after step %d from %s", found.step, found.path)
        return found.step

    # --- the loop -------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """All steps and evaluations that are left. Raises Preempted, Diverged, TooManyCorrupt, CheckpointError."""
        start = self.resume()
        metrics = MetricsLog(self.folder / "metrics.jsonl")
        metrics.truncate_from(start + 1 if start else 0)
        board = TensorBoard(self.folder / "tensorboard", start + 1) if self.settings.tensorboard and is_main() else None
        display = Display(self.settings.max_steps, self.dataset.batch_size, first_step=start)
        with Preemption() as preemption, display:
            session = _Session(self, metrics, board, display)
            try:
                if start == 0:
                    session.evaluate(0)
                for step, batches, waited in self._steps(start):
                    session.after_step(step + 1, self.trainer.step(step, batches), waited)
                    self._stop_if_asked(step + 1, preemption, metrics)
                self.save(self.settings.max_steps, metrics)
                session.finish()
            finally:
                metrics.close()
                if board is not None:
                    board.close()

    def _steps(self, start: int) -> Iterator[tuple[int, list[Batch], float]]:
        """(step, its micro-batches on the device, seconds waited for them)."""
        stop, accumulate = self.settings.max_steps, self.settings.accumulate
        if start >= stop:
            return
        device = self.trainer.device
        pinned = device.type == "cuda"
        batches = iter(loader(self.dataset, start, stop, int(self.config["data"]["workers"]), pinned))
        for step in range(start, stop):
            began = time.monotonic()
            loaded = [next(batches) for _ in range(accumulate)]
            waited = time.monotonic() - began
            for batch in loaded:
                self.corrupt.add(batch.corrupt)
            yield step, [batch.to(device).normalised(self.mean, self.std) for batch in loaded], waited

    def _stop_if_asked(self, step: int, preemption: Preemption, metrics: MetricsLog) -> None:
        """Every rank saves the same step, whichever of them got the signal."""
        if not any_rank(preemption.requested is not None, self.trainer.device):
            return
        self.save(step, metrics)
        self.record.steps = step
        self.record.finish("preempted", f"{preemption.requested} after step {step}")
        _log.info("%s: saved after step %d; the same command continues this run", preemption.requested, step)
        preemption.forward()
        raise Preempted(preemption.requested)


class _Session:
    """What happens between two steps: logging, evaluation, checkpoints."""

    def __init__(self, run: Run, metrics: MetricsLog, board: TensorBoard | None, display: Display) -> None:
        self.run, self.metrics, self.board, self.display = run, metrics, board, display

    def after_step(self, step: int, logs: Mapping[str, Tensor], waited: float) -> None:
        settings = self.run.settings
        self.display.update(step, waited)
        if step % settings.log_every == 0 or step in (1, settings.max_steps):
            self.log(step, logs)
        if settings.eval_every and step % settings.eval_every == 0 and step < settings.max_steps:
            self.evaluate(step)
        due = settings.checkpoint_every and step % settings.checkpoint_every == 0
        minutes = (time.monotonic() - self.run._saved_at) / 60
        if due or 0 < settings.checkpoint_minutes <= minutes:
            self.run.save(step, self.metrics)

    def log(self, step: int, logs: Mapping[str, Tensor]) -> None:
        """One transfer from the device for all scalars of the step."""
        names = list(logs)
        values = dict(zip(names, torch.stack([logs[name].float() for name in names]).tolist(), strict=True))
        values |= self.run.trainer.schedules.at(step - 1)
        values["images_per_second"] = self.display.images_per_second
        self._write(step, values)
        self.display.report(step, values)

    def evaluate(self, step: int) -> None:
        """k-NN and diagnostics on the held-out images; the record is brought up to date."""
        with self.display.pause():
            hyper = self.run.trainer.schedules.at(max(step - 1, 0))
            result = self.run.evaluator.in_loop(self.run.trainer.model, hyper)
            self._write(step, result.metrics)
            for name, picture in result.pictures.items():
                if self.board is not None:
                    self.board.picture(step, name, picture)
            self._update_record(step, result.metrics)
            if result.verdict:
                _log.warning("step %d: %s", step, result.verdict)
        self.display.report(step, result.metrics)

    def finish(self) -> None:
        """The final evaluation and the run's record."""
        step = self.run.settings.max_steps
        with self.display.pause():
            result = self.run.evaluator.final(self.run.trainer.model, self.run.trainer.schedules.at(step - 1))
            result.save_pictures(self.run.folder / "pictures")
            self.metrics.truncate_evaluation(step)
            self._write(step, result.metrics)
            self._update_record(step, result.metrics)
        self.run.record.finish("completed")

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if is_main():
            self.metrics.log(step, values)
        if self.board is not None:
            self.board.scalars(step, values)

    def _update_record(self, step: int, metrics: Mapping[str, float]) -> None:
        record = self.run.record
        record.steps = step
        record.metrics = {**record.metrics, **metrics}
        record.throughput = {"images_per_second": self.display.images_per_second}
        hours = self.display.training_seconds / 3600 * _processors(self.run.trainer.device)
        record.cost = {**record.cost, "core_or_gpu_hours": hours, "peak_memory_bytes": _peak_memory(self.run.trainer.device)}
        if is_main():
            record.write()


def _processors(device: torch.device) -> int:
    """GPUs of this run, or cores of this process."""
    return world_size() if device.type == "cuda" else torch.get_num_threads() * world_size()


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
