"""A run from its first step, or its last checkpoint, to its last: data, steps, evaluations, checkpoints, signals."""

import logging
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
from dinoswap.distributed import any_rank, barrier, is_main
from dinoswap.evaluation.evaluator import Evaluation, Evaluator
from dinoswap.evaluation.visualise import curves_figure
from dinoswap.metrics import MetricsLog, RunRecord, TensorBoard, read
from dinoswap.nn.vit import VisionTransformer
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
    saved_step: int = field(default=-1, init=False)
    saved_at: float = field(default_factory=time.monotonic, init=False)

    def __post_init__(self) -> None:
        self.trainer.guard.keep = self.save_replay

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    # --- state ----------------------------------------------------------------------------------------------------------

    def save(self, step: int, metrics: MetricsLog) -> None:
        """Checkpoint after `step` steps, once."""
        if step == self.saved_step:
            return
        self.trainer.guard.resolve()
        metrics.sync()
        if is_main():
            state, keep = self.trainer.state_dict(), self.settings.keep_checkpoints
            checkpoint.save(self.checkpoints, step, state, config=self.config, keep=keep)
        barrier()
        self.saved_step, self.saved_at = step, time.monotonic()

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
        self.saved_step = found.step
        _log.info("resumed after step %d from %s", found.step, found.path)
        return found.step

    # --- the loop -------------------------------------------------------------------------------------------------------

    def train(self) -> Evaluation:
        """All steps and evaluations that are left. Raises Preempted, Diverged, TooManyCorrupt, CheckpointError."""
        start = self.resume()
        metrics = MetricsLog(self.folder / "metrics.jsonl")
        metrics.truncate_from(start + 1 if start else 0)
        board = TensorBoard(self.folder / "tensorboard", start + 1) if self.settings.tensorboard and is_main() else None
        display = Display(self.settings.max_steps, self.dataset.batch_size)
        with Preemption() as preemption, display:
            session = _Session(self, metrics, board, display)
            try:
                if start == 0 and self.settings.eval_every:
                    session.evaluate(0)
                for step, batches, waited in self._steps(start):
                    session.after_step(step + 1, self.trainer.step(step, batches), waited)
                    self._stop_if_asked(step + 1, preemption, metrics)
                self.save(self.settings.max_steps, metrics)
                return session.finish()
            finally:
                metrics.close()
                if board is not None:
                    board.close()

    def _steps(self, start: int) -> Iterator[tuple[int, list[Batch], float]]:
        """(step, its micro-batches on the device, seconds waited for them)."""
        stop, accumulate, device = self.settings.max_steps, self.settings.accumulate, self.trainer.device
        if start == stop:
            return
        batches = iter(loader(self.dataset, start, stop, self.workers, device.type == "cuda"))
        for step in range(start, stop):
            began = time.perf_counter()
            loaded = [next(batches) for _ in range(accumulate)]
            waited = time.perf_counter() - began
            for batch in loaded:
                self.corrupt.add(batch.corrupt)
            yield step, [batch.to(device).normalised(self.evaluator.mean, self.evaluator.std) for batch in loaded], waited

    def _stop_if_asked(self, step: int, preemption: Preemption, metrics: MetricsLog) -> None:
        """Every rank saves the same step, whichever of them got the signal."""
        if step == self.settings.max_steps or not any_rank(preemption.requested is not None, self.trainer.device):
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
        self.settings = run.settings

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
            self.run.save(step, self.metrics)

    def log(self, step: int, logs: Mapping[str, Tensor]) -> None:
        """One transfer from the device for all scalars of the step."""
        numbers = torch.stack([value.float() for value in logs.values()]).tolist()
        values = dict(zip(logs, numbers, strict=True)) | self.run.trainer.schedules.at(step - 1)
        self._write(step, {**values, "images_per_second": self.display.images_per_second})
        self.display.report(step, {name: values[name] for name in logs if "/" in name and "grad" not in name or name == "loss"})

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
            quick = self.run.evaluator.in_loop(trainer.model, trainer.schedules.at(step - 1), self.probe)
            found = self.run.evaluator.final(trainer.model.teacher["backbone"], self.run.random_init)
            found.metrics = quick.metrics | found.metrics
            found.pictures |= {"crops": quick.pictures["crops"]}
            found.warning = "; ".join(w for w in (quick.warning, found.warning) if w) or None
            self._record(step, found)
            self._pictures(found)
        self.display.report(step, found.metrics)
        self.run.record.finish("completed")
        return found

    def _pictures(self, found: Evaluation) -> None:
        rows = [row for row in read(self.metrics.path)]
        terms = [name for name in rows[-2] if name.split("/")[0] in self.run.trainer.model.objectives]
        baselines = {k.split("/")[1]: v for k, v in found.metrics.items() if k.startswith("baseline/") and k.endswith("/knn_top1")}
        found.pictures["curves"] = curves_figure(rows, terms, baselines=baselines)
        if is_main():
            found.save_pictures(self.run.folder / "pictures")

    def _record(self, step: int, found: Evaluation) -> None:
        evaluated = any(row["step"] == step and "eval/rankme" in row for row in read(self.metrics.path))
        if not evaluated:  # as it is when a run is resumed that was stopped just after its final evaluation
            self._write(step, found.metrics)
        for name, picture in found.pictures.items():
            if self.board is not None:
                self.board.picture(step, name, picture)
        if found.warning and step > self.warmed_up:
            _log.warning("step %d: %s", step, found.warning)
        record, device = self.run.record, self.run.trainer.device
        record.steps = step
        record.metrics = {**record.metrics, **found.metrics}
        record.throughput = {"images_per_second": self.display.mean_images_per_second}
        record.cost = {**record.cost, "peak_memory_bytes": peak_memory(device)}
        if is_main():
            record.write()

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
