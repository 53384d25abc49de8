"""A device that is the CPU and pretends to be another one. Its tensors have values, and refuse those of the CPU, as
those of a GPU do. It has the name of torch's meta device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE, CPU = torch.device("meta"), torch.device("cpu")
COPIES = ("_to_copy", "copy_", "copy")
READS = ("_local_scalar_dense", "equal")


class DevicesMixed(AssertionError):
    """An operation on tensors of both devices."""


class Pretended(Tensor):
    """A tensor on the device, around the one on the CPU that it stands for."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        layout: dict[str, Any] = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, held.size(), **layout, dtype=held.dtype, device=DEVICE)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Gives the device, on which tensors can be made within the context."""
    knows_all_devices = patch("torch.optim.adam._device_dtype_check_for_fused")
    with knows_all_devices, _Making():
        yield DEVICE


class _Making(TorchDispatchMode):
    """Sees operations that have no tensor of the device yet, those that make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, target = func.overloadpacket.__name__, kwargs.get("device")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_device = any(isinstance(tensor, Pretended) for tensor in tensors)
    if not on_device and target in (None, CPU):
        return func(*args, **kwargs)
    others = [list(tensor.shape) for tensor in tensors if tensor.ndim and not isinstance(tensor, Pretended)]
    if others and name not in COPIES:
        raise DevicesMixed(f"{func} of tensors on both devices, {others} on the CPU")
    held_args, held_kwargs = tree_map(lambda x: x.held if isinstance(x, Pretended) else x, (args, kwargs))
    result = func(*held_args, **(held_kwargs | ({} if target is None else {"device": CPU})))
    if name in READS:
        return result
    if target == CPU:
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, result)  # never the memory of the device
    result = tree_map(lambda x: Pretended(x) if isinstance(x, Tensor) else x, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if on_device else result
