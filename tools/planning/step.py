"""One training step on paper: its FLOPs and live bytes, from shapes alone.

FLOPs are those of the package's own counter (dinoswap.run.flops). Memory is that of a forward and a backward pass over
fake tensors (torch's FakeTensorMode): every operator, autograd and autocast see the shapes and types of the real step
and nothing is computed, while each storage is noted from its birth to its death. So what autograd saves, its largest
temporaries, and when gradients come to life, are followed and not modelled.

Fake tensors are on the CPU, whose autocast makes the same copies of weights as CUDA's. A plan for a GPU has torch's
fused attention, which saves queries, keys, values, output and one number per row.
Not seen: what a kernel allocates for itself, an allocator's rounding, a process's own memory (on a GPU its context, the
workspaces of cuBLAS and the buffers of NCCL).
"""

import contextlib
import copy
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dinoswap.model import SelfDistillation
from dinoswap.nn import attention, vit
from dinoswap.nn.precision import parameters_in
from dinoswap.run.flops import step_flops
from dinoswap.trainer import AUTOCAST, PARAMETERS
from dinoswap.values import Batch, Hyper
from planning.networks import frozen_networks, prototypes, units, with_checkpointing

WEIGHT_CASTS = "copies of weights in half precision"
WEIGHT_PRODUCTS = "folded weights"
GRADIENTS = "gradients"
LOGITS = "K-sized logits and targets"
ACTIVATIONS = "activations"
TEMPORARIES = "backward temporaries"
KINDS = (GRADIENTS, WEIGHT_CASTS, WEIGHT_PRODUCTS, LOGITS, ACTIVATIONS, TEMPORARIES)
"""What a storage born in a step is. The recomputed block of activation checkpointing counts as a temporary."""
STATE = "state"


@dataclass(frozen=True)
class Flops:
    """The FLOPs of one micro-batch: those of the algorithm as published, those that checkpointing computes again, and,
    of the former, those of frozen networks by objective, which may have a precision of their own."""

    algorithm: float
    recomputed: float
    frozen: Mapping[str, float]


def mean_flops(
    model: SelfDistillation, batches: Sequence[Batch], shares: Sequence[float], hyper: Hyper, checkpointing: bool
) -> Flops:
    """Returns the mean FLOPs of micro-batches of several sizes, each in its share of the steps."""
    counts = [flops(model, batch, hyper, checkpointing) for batch in batches]
    return Flops(
        fmean([count.algorithm for count in counts], shares),
        fmean([count.recomputed for count in counts], shares),
        {name: fmean([count.frozen[name] for count in counts], shares) for name in counts[0].frozen},
    )


def flops(model: SelfDistillation, batch: Batch, hyper: Hyper, checkpointing: bool) -> Flops:
    """Returns the FLOPs of one micro-batch."""
    algorithm = step_flops(with_checkpointing(model, False), batch, hyper)
    again = step_flops(with_checkpointing(model, True), batch, hyper) - algorithm if checkpointing else 0
    return Flops(algorithm, again, frozen_flops(model, batch, hyper))


def frozen_flops(model: SelfDistillation, batch: Batch, hyper: Hyper) -> dict[str, float]:
    """Returns the FLOPs of the forward passes of frozen networks, by objective."""
    flops = dict.fromkeys(frozen_networks(model), 0.0)
    if not flops:
        return {}  # a forward pass takes seconds where a network is large
    counter = FlopCounterMode(display=False)

    def counting(name: str, sign: int) -> Any:
        def hook(*_: Any) -> None:
            flops[name] += sign * counter.get_total_flops()

        return hook

    handles = []
    for name, frozen in frozen_networks(model).items():
        for network in frozen:
            handles.append(network.register_forward_pre_hook(counting(name, -1)))
            handles.append(network.register_forward_hook(counting(name, 1)))
    with torch.no_grad(), counter:
        model(batch, hyper)
    for handle in handles:
        handle.remove()
    return flops


@dataclass
class Life:
    """The storages of one step in the order in which they came and went."""

    sizes: list[int] = field(default_factory=list)  # bytes of each storage
    kinds: list[str] = field(default_factory=list)
    events: list[tuple[int, int]] = field(default_factory=list)  # (storage, 1 born or -1 dead)
    calls: Counter[str] = field(default_factory=Counter)  # forward calls of each block and network

    def peak(self, scale: Mapping[str, float]) -> dict[str, int]:
        """Returns the bytes by kind at the moment when their sum, each kind times its `scale` (1 where none is given),
        is largest. Gradients that are complete, at the optimiser's step, are one of these moments."""
        factors = [scale.get(kind, 1.0) for kind in self.kinds]
        now, most, moment = 0.0, -1.0, 0
        for index, (storage, sign) in enumerate(self.events):
            now += sign * self.sizes[storage] * factors[storage]
            if now > most:
                most, moment = now, index
        at = dict.fromkeys(KINDS, 0.0)
        for storage, sign in self.events[: moment + 1]:
            at[self.kinds[storage]] += sign * self.sizes[storage] * factors[storage]
        return {kind: round(value) for kind, value in at.items()}

    def most(self, kind: str) -> int:
        """Returns the largest number of bytes of one kind at any moment."""
        return self.peak({other: float(other == kind) for other in KINDS})[kind]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every storage that an operator makes."""

    def __init__(self, prototypes: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.life = Life()
        self.prototypes = prototypes
        self.backward = False
        self._places: dict[int, int] = {}  # address of a live storage -> its number, -1 for state
        self._weights: dict[int, bool] = {}  # address of weights and what is made of weights alone -> is a parameter

    def know(self, tensor: Tensor, is_parameter: bool = False) -> None:
        """Notes a tensor that outlives the step, which then counts as state."""
        address = tensor.untyped_storage()._cdata
        self._places[address] = -1
        if is_parameter:
            self._weights[address] = True

    def number(self, tensor: Tensor) -> int:
        """Returns the number of a tensor's storage, -1 for state."""
        return self._places[tensor.untyped_storage()._cdata]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [tensor for tensor in tree_leaves((args, kwargs or {})) if isinstance(tensor, Tensor)]
        sources = [self._weights.get(tensor.untyped_storage()._cdata) for tensor in inputs]
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor, func, sources)
        return out

    def _note(self, tensor: Tensor, func: Any, sources: Sequence[bool | None]) -> None:
        """Notes that a tensor's storage lives from now on, with its kind: by its shape, and by whether `sources` are
        all weights."""
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._places or not size:
            return
        number = len(self.life.sizes)
        self._places[address] = number
        of_weights = bool(sources) and None not in sources
        if of_weights:
            self._weights[address] = False
            cast_of_parameter = func is torch.ops.aten._to_copy.default and sources == [True]
            kind = WEIGHT_CASTS if cast_of_parameter else WEIGHT_PRODUCTS
        elif tensor.ndim and tensor.shape[-1] in self.prototypes:
            kind = LOGITS
        else:
            kind = TEMPORARIES if self.backward else ACTIVATIONS
        self.life.sizes.append(size)
        self.life.kinds.append(kind)
        self.life.events.append((number, 1))
        weakref.finalize(storage, self._end, address, number).atexit = False

    def _end(self, address: int, number: int) -> None:
        """Notes that storage `number` at an address has been freed."""
        self.life.events.append((number, -1))
        self._places.pop(address, None)
        self._weights.pop(address, None)


def live_bytes(
    model: SelfDistillation, batch: Batch, hyper: Hyper, precision: str, *, gpu: bool, accumulate: int = 1
) -> Life:
    """Returns the storages that computing the gradients of one step makes. Weights, moments and the batch itself are
    state and not among them."""
    counts = {prototypes(network) for network in model.student.values()} - {0}
    shadow = copy.deepcopy(model)
    recorder = _Recorder(counts)
    with FakeTensorMode(allow_non_fake_inputs=True):
        shadow.to_empty(device="cpu")
        inputs = batch.map(lambda tensor: torch.empty_like(tensor, device="cpu"))
        for network in (shadow, *frozen_networks(shadow).values()):
            for parameter in network.parameters():
                recorder.know(parameter, is_parameter=True)
            for buffer in network.buffers():
                recorder.know(buffer)
        for tensor in inputs.tensors().values():
            recorder.know(tensor)
        with recorder, _counted_calls(shadow, recorder.life.calls), _as_on(gpu):
            for _ in range(min(accumulate, 2)):  # a third micro-batch is like the second
                recorder.backward = False
                recorder.life.calls.clear()
                with _parameters(precision, shadow):
                    with _autocast(precision):
                        loss, terms = shadow(inputs, hyper)
                    recorder.backward = True
                    loss.backward()
                del loss, terms
        for parameter in shadow.parameters():
            if parameter.grad is not None:
                recorder.life.kinds[recorder.number(parameter.grad)] = GRADIENTS
    return recorder.life


def _autocast(precision: str) -> contextlib.AbstractContextManager[None]:
    """Returns the context with the autocast of a precision, which does nothing where it has none."""
    return torch.autocast("cpu", dtype=AUTOCAST[precision]) if precision in AUTOCAST else contextlib.nullcontext()


def _parameters(precision: str, model: SelfDistillation) -> contextlib.AbstractContextManager[None]:
    """Returns the context with copies of the parameters in the type of a precision, which does nothing where it has
    none."""
    return parameters_in(PARAMETERS[precision], model) if precision in PARAMETERS else contextlib.nullcontext()


@contextlib.contextmanager
def _as_on(gpu: bool) -> Iterator[None]:
    """Has attention and packs of crops computed as on a GPU within the context, whatever the precision; with `gpu`
    False as they are here."""
    if not gpu:
        yield
        return
    with mock.patch.object(attention, "attend", attention.fused), mock.patch.object(vit, "packs_all", lambda _: True):
        yield


@contextlib.contextmanager
def _counted_calls(model: SelfDistillation, calls: Counter[str]) -> Iterator[None]:
    """Counts the forward calls of each unit within the context, without those that recompute."""

    def note(name: str) -> Any:
        def hook(*_: Any) -> None:
            if not torch._C._current_graph_task_id() >= 0:  # -1 outside a backward pass
                calls[name] += 1

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in units(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
