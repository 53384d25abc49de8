"""A run from its first step, or its last checkpoint, to its last: data, steps, evaluations, checkpoints, signals."""

import logging
import math
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoswap import checkpoint
from dinoswap.data.corrupt import CorruptLog
from dinoswap.data.steps import StepDataset, loader
from dinoswap.distributed import any_rank, barrier, is_main, rank, world_size
from dinoswap.evaluation.evaluator import Evaluation, Evaluator
from dinoswap.evaluation.visualise import curves_figure
from dinoswap.metrics import MetricsLog, RunRecord, Status, TensorBoard, read
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nonfinite import KEPT_REPLAYS
from dinoswap.preemption import Preemption
from dinoswap.progress import Display
from dinoswap.trainer import Trainer, TrainerSettings
from dinoswap.values import Batch

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

    def save(self, metrics: MetricsLog) -> None:
        """Checkpoint after the steps done so far, once."""
        if self.steps == self.saved_step:
            return
        self.trainer.guard.resolve()
        metrics.sync()
        if is_main():
            state, keep = self.trainer.state_dict(), self.settings.keep_checkpoints
            checkpoint.save(self.checkpoints, self.steps, state, config=self.config, keep=keep)
        barrier()
        self.saved_step, self.saved_at = self.steps, time.monotonic()
        self.write_record()

    def save_replay(self, step: int, batches: Sequence[Batch]) -> Path:
        """Batch and state of non-finite step `step`, counted from 0, for `tools/replay.py`; each rank its own."""
        folder = self.folder / ("nonfinite" if is_main() else f"nonfinite.rank{rank()}")
        state = {"batches": [batch.tensors() for batch in batches], "trainer": self.trainer.state_dict()}
        return checkpoint.save(folder, step + 1, state, config=self.config, keep=KEPT_REPLAYS)

    def resume(self) -> int:
        """Load the newest valid checkpoint, if there is one; the number of steps done."""
        found = checkpoint.newest(self.checkpoints, _log.warning)
        if found is None:
            return 0
        checkpoint.require_same_config(found, self.config)
        self.trainer.load_state_dict(found.state)
        self.steps = self.saved_step = found.step
        _log.info("resumed after step %d from %s", found.step, found.path)
        return found.step

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
        if not is_main():
            return
        if status == "running":
            record.write()
        else:
            record.finish(status, error)

    def train(self) -> Evaluation:
        """All steps and evaluations that are left. Raises Preempted, Diverged, TooManyCorrupt, CheckpointError."""
        start = self.resume()
        metrics = MetricsLog(self.folder / "metrics.jsonl")
        metrics.truncate_from(start + 1 if start else 0)
        board = TensorBoard(self.folder / "tensorboard", start + 1) if self.settings.tensorboard and is_main() else None
        self.write_record()
        with Preemption() as preemption, self.display:
            session = _Session(self, metrics, board)
            try:
                if start == 0 and self.settings.eval_every:
                    session.evaluate(0)
                for step, batches, waited in self._steps(start):
                    logs = self.trainer.step(step, batches)
                    self.steps = step + 1
                    session.after_step(self.steps, logs, waited)
                    self._stop_if_asked(preemption, metrics)
                self.save(metrics)
                return session.finish()
            finally:
                metrics.close()
                if board is not None:
                    board.close()

    def _steps(self, start: int) -> Iterator[tuple[int, list[Batch], float]]:
        """(step, its micro-batches on the device, seconds waited for them)."""
        stop, accumulate, device = self.settings.max_steps, self.settings.accumulate, self.trainer.device
        mean, std = self.evaluator.mean, self.evaluator.std
        if start == stop:
            return
        batches = iter(loader(self.dataset, start, stop, self.workers, device.type == "cuda"))
        for step in range(start, stop):
            began = time.perf_counter()
            loaded = [next(batches) for _ in range(accumulate)]
            waited = time.perf_counter() - began
            for batch in loaded:
                self.corrupt.add(batch.corrupt)
            yield step, [batch.to(device).normalised(mean, std) for batch in loaded], waited

    def _stop_if_asked(self, preemption: Preemption, metrics: MetricsLog) -> None:
        """Every rank saves the same step, whichever of them got the signal."""
        if self.steps == self.settings.max_steps or not any_rank(preemption.requested is not None, self.trainer.device):
            return
        self.save(metrics)
        reason = f"{preemption.requested or 'a signal to another rank'}: saved after step {self.steps}"
        self.write_record("preempted", reason)
        _log.info("%s; the same command continues this run", reason)
        preemption.forward()
        raise Preempted(reason)


class _Session:
    """What happens between two steps: logging, evaluation, checkpoints."""

    def __init__(self, run: Run, metrics: MetricsLog, board: TensorBoard | None) -> None:
        self.run, self.metrics, self.board = run, metrics, board
        self.settings, self.display = run.settings, run.display

    @cached_property
    def warmed_up(self) -> int:
        """Steps after which a verdict is worth reading: an untrained network looks collapsed."""
        return int(self.run.trainer.schedules["lr"].values.argmax())

    @cached_property
    def probe(self) -> Batch:
        """The batch of the first step: the same for every evaluation."""
        return self.run.dataset[0]

    def after_step(self, step: int, logs: Mapping[str, Tensor], waited: float) -> None:
        settings = self.settings
        self.display.update(step, waited)
        if step % settings.log_every == 0 or step in (1, settings.max_steps):
            self.log(step, logs)
        if settings.eval_every and step % settings.eval_every == 0 and step < settings.max_steps:
            self.evaluate(step)
        due = settings.checkpoint_every and step % settings.checkpoint_every == 0
        minutes = (time.monotonic() - self.run.saved_at) / 60
        if due or 0 < settings.checkpoint_minutes <= minutes:
            self.run.save(self.metrics)

    def log(self, step: int, logs: Mapping[str, Tensor]) -> None:
        """One transfer from the device for all scalars of the step."""
        numbers = torch.stack([value.float() for value in logs.values()]).tolist()
        values = dict(zip(logs, numbers, strict=True))
        hyper = self.run.trainer.schedules.at(step - 1)
        self._write(step, {**values, **hyper, "images_per_second": self.display.images_per_second})
        shown = {name: value for name, value in values.items() if name == "loss" or self._is_term(name)}
        self.display.report(step, shown)

    def _is_term(self, name: str) -> bool:
        """Whether a logged value is `objective/term`."""
        return name.split("/")[0] in self.run.trainer.model.objectives

    def evaluate(self, step: int) -> None:
        """k-NN and diagnostics on held-out images; the record is brought up to date."""
        trainer = self.run.trainer
        trainer.guard.resolve()
        with self.display.paused("evaluating"):
            found = self.run.evaluator.in_loop(trainer.model, trainer.schedules.at(max(step - 1, 0)), self.probe)
            self._record(step, found)
        self.display.report(step, found.metrics)

    def finish(self) -> Evaluation:
        """The final evaluation."""
        step, trainer = self.settings.max_steps, self.run.trainer
        with self.display.paused("final evaluation"):
            found = self.run.evaluator.final(trainer.model.teacher["backbone"], self.run.random_init)
            hyper = trainer.schedules.at(step - 1)
            self.run.evaluator.diagnose_targets(found, trainer.model, hyper, self.probe)
            self._record(step, found)
            self._pictures(found)
        self.display.report(step, found.metrics)
        self.run.write_record("completed")
        return found

    def _pictures(self, found: Evaluation) -> None:
        rows = read(self.metrics.path)
        terms = [name for name in rows[-2] if self._is_term(name)]
        split = {tuple(name.split("/")): value for name, value in found.metrics.items()}
        baselines = {name[1]: value for name, value in split.items() if (name[0], name[-1]) == ("baseline", "knn_top1")}
        found.pictures["curves"] = curves_figure(rows, terms, baselines=baselines)
        if is_main():
            found.save_pictures(self.run.folder / "pictures")

    def _record(self, step: int, found: Evaluation) -> None:
        evaluated = any(row["step"] == step and "loss" not in row for row in read(self.metrics.path))
        if not evaluated:  # as it is when a run is resumed that was stopped just after its final evaluation
            self._write(step, found.metrics)
        for name, picture in found.pictures.items():
            if self.board is not None:
                self.board.picture(step, name, picture)
        if found.warning and step > self.warmed_up:
            _log.warning("step %d: %s", step, found.warning)
        self.run.record.metrics |= found.metrics
        self.run.write_record()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if is_main():
            self.metrics.log(step, values)
        if self.board is not None:
            self.board.scalars(step, values)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
