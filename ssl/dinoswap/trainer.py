"""The training step and the state that it changes. It is independent of the options of all groups."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dinoswap.config.sections import Precision, TrainerSettings
from dinoswap.distributed import all_reduce_max, rank, world_size
from dinoswap.distributed.environment import local_device
from dinoswap.distributed.sharding import sharded_modules
from dinoswap.model import SelfDistillation
from dinoswap.nn.compiled import replayed_step
from dinoswap.nn.precision import parameters_in
from dinoswap.optim.ema import EMA
from dinoswap.optim.nonfinite import NonFiniteGuard
from dinoswap.optim.param_groups import Group, apply_schedules, drop_frozen_gradients
from dinoswap.optim.schedules import Schedules
from dinoswap.optim.state import MOMENTS, load_optimizer_state, named_parameters, optimizer_state
from dinoswap.rng import seed_torch
from dinoswap.values import Batch, Hyper

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The types that operations of a step are cast to one by one."""
PARAMETERS = {"bf16_params": torch.bfloat16}
"""The types that a step has its parameters in, and so all that it computes, but for what is wider by itself: statistics
of norms, softmax, losses, targets."""
PRODUCTS = AUTOCAST | PARAMETERS
"""The types that matrix products are computed in, where that is not float32."""
Clip = Callable[[list[Group]], dict[str, Tensor]]


def resolve_device(name: str) -> torch.device:
    """Returns the device; 'auto' is CUDA where there is a GPU, one for each process of a node, else the CPU. Raises
    ValueError for an unknown name and for CUDA without a GPU."""
    if name == "auto":
        return torch.device("cuda", local_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"trainer.device={name}: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"trainer.device={name}: this machine has no CUDA device; use trainer.device=auto or cpu")
    return device


def prepared_device(settings: TrainerSettings) -> torch.device:
    """Returns the device of `resolve_device`, and has this process compute float32 products and convolutions on it as
    trainer.matmul_precision says. torch by itself computes convolutions in TF32."""
    torch.set_float32_matmul_precision(settings.matmul_precision)
    torch.backends.cudnn.allow_tf32 = settings.matmul_precision == "high"
    return resolve_device(settings.device)


class Trainer:
    """Model, optimiser, schedules and EMA of one run."""

    def __init__(
        self,
        model: SelfDistillation,
        optimizer: torch.optim.Optimizer,
        schedules: Schedules,
        clip: Clip,
        *,
        precision: Precision,
        seed: int,
        device: torch.device,
        max_nonfinite_steps: int,
        called: nn.Module | None = None,
        shapes: SelfDistillation | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        """`called` is called instead of `model`: torch's DistributedDataParallel around it, for example. `shapes` is a
        copy of the whole model on the meta device, for counting FLOPs. With `cuda_graphs` steps replay those of
        modules that are compiled so."""
        self.model = model
        self.called = model if called is None else called
        self.shapes = model if shapes is None else shapes
        self.cuda_graphs = cuda_graphs
        self.optimizer = optimizer
        self.schedules = schedules
        self.clip = clip
        self.sharded = sharded_modules(model)
        self.ema = EMA(model.teacher, model.student)
        self.buffers = list(model.buffers())  # a forward pass may change them, such as centres
        self.dtype = PRODUCTS.get(precision)
        self.half_parameters = precision in PARAMETERS
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.seed = seed
        self.device = device
        self.guard = NonFiniteGuard(max_nonfinite_steps)

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """A context of autocast that computes products in the precision of the run."""
        return torch.autocast(self.device.type, dtype=self.dtype) if self.dtype else contextlib.nullcontext()

    def check_first_batch(self, batch: Batch) -> list[str]:
        """Returns the objectives' reports on a batch before the first step, see `SelfDistillation.check_first_batch`.
        Raises ValueError where one of them cannot train."""
        with self.autocast():
            return self.model.check_first_batch(batch, self.schedules.at(0))

    def step(self, step: int, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Makes one optimiser step over normalised micro-batches on the device. Returns the scalars to log, on the
        device. Raises Diverged for the step before, see `NonFiniteGuard.resolve`."""
        hyper = self.schedules.at(step)
        apply_schedules(self.optimizer.param_groups, hyper)
        self.model.begin_step(hyper)
        seed_torch(self.seed, "step", step, rank())  # stochastic depth draws from the default generators
        before = [buffer.clone() for buffer in self.buffers]
        with replayed_step() if self.cuda_graphs else contextlib.nullcontext():
            logs = self.gradients(batches, hyper)
        self.scaler.unscale_(self.optimizer)
        self._agree_on_overflow()
        norms = self.clip(self.optimizer.param_groups)
        drop_frozen_gradients(self.optimizer.param_groups, hyper)
        severity = self.guard.severity(logs["loss"], norms, self.scaler.scale(torch.ones((), device=self.device)))
        nonfinite = (severity > 0).float()
        after = [torch.where(nonfinite > 0, old, new) for old, new in zip(before, self.buffers, strict=True)]
        self._set_buffers(before)
        self.guard.resolve()  # of the step before, whose state is overwritten from here on
        self.guard.watch(step, severity)
        self.optimizer.found_inf = nonfinite  # type: ignore[attr-defined]  # the fused step is a no-op where it is 1
        self.optimizer.step()
        self.scaler.update()
        self.ema.update(hyper["momentum"], nonfinite)
        self._set_buffers(after)
        return {**logs, **{f"grad_norm/{name}": norm for name, norm in norms.items()}, "nonfinite": nonfinite}

    def gradients(self, batches: Sequence[Batch], hyper: Hyper) -> dict[str, Tensor]:
        """Computes the mean gradient of the micro-batches into the parameters and returns the means of the loss and of
        its terms."""
        self.optimizer.zero_grad(set_to_none=True)
        logs: dict[str, Tensor] = {}
        for number, batch in enumerate(batches, start=1):
            with self._exchange(last=number == len(batches)), self._parameters():
                with contextlib.nullcontext() if self.half_parameters else self.autocast():
                    loss, terms = self.called(batch, hyper)
                self.scaler.scale(loss / len(batches)).backward()
            for name, value in {"loss": loss.detach(), **terms}.items():
                logs[name] = logs.get(name, 0) + value / len(batches)
        for module in self.sharded:
            module.reshard()  # what is still gathered holds the weights from before the step
        return logs

    def _exchange(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """A context in which gradients are exchanged between ranks or not. Replicas (DDP) exchange them once, after the
        last micro-batch. Shards (FSDP2) exchange them after each: otherwise each rank would have to keep whole
        gradients."""
        wait: Callable[[], contextlib.AbstractContextManager[None]] | None = getattr(self.called, "no_sync", None)
        return contextlib.nullcontext() if last or wait is None else wait()

    def _parameters(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the parameters are those that a step computes with. Shards are gathered as such."""
        if self.sharded or not self.half_parameters or self.dtype is None:
            return contextlib.nullcontext()
        return parameters_in(self.dtype, self.model)

    def _agree_on_overflow(self) -> None:
        """Makes all ranks see an overflow on any of them. A single shard of a gradient may overflow, and the loss scale
        must stay the same on all ranks."""
        if self.scaler.is_enabled() and world_size() > 1:
            for found_inf in self.scaler._found_inf_per_device(self.optimizer).values():
                found_inf.copy_(all_reduce_max(found_inf))

    def _set_buffers(self, values: list[Tensor]) -> None:
        if self.buffers:  # torch refuses to copy none
            torch._foreach_copy_(self.buffers, values)

    def state_dict(self) -> dict[str, Any]:
        """Returns all state that a checkpoint holds: model, optimiser, loss scaler, count of non-finite steps."""
        return {
            "model": self.model.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "scaler": self.scaler.state_dict(),
            "nonfinite": self.guard.state_dict(),
        }

    def sharded_like(self) -> dict[str, Tensor]:
        """Returns tensors by the '/'-joined names of `state_dict`, sharded as those of the state are. Reading a
        checkpoint takes the layout of the shards from them."""
        moments = {
            f"optimizer/{name}/{moment}": parameter
            for name, parameter in named_parameters(self.optimizer).items()
            for moment in MOMENTS
        }
        return {**{f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}, **moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads a `state_dict` whose tensors are sharded where those of `sharded_like` are. Raises ValueError or
        RuntimeError where it does not fit."""
        self.model.load_state_dict(state["model"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(dict(state["scaler"]))
        self.guard.load_state_dict(state["nonfinite"])
