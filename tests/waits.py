"""A training step in which nothing makes the host wait for its device, where torch's meta device stands for a GPU.

Tensors on the meta device have shapes and no values, so code runs as it would on a GPU and costs next to nothing. The
modes see each operation of a step, its backward pass included, and refuse

 - reading values: .item(), float(), bool(), `if tensor`, .cpu(), .tolist(), torch.equal;
 - results whose shape depends on values: nonzero, masked_select, unique, an index or an assignment by a bool mask,
   repeat_interleave without output_size;
 - copies from the host: tensors made of Python's numbers, an index by a list or by a tensor on the CPU, .to(device)
   and copy_ of a tensor on the CPU. A GPU waits for them unless the memory is pinned, and a step has none such.

They do not see what happens within a kernel (some of a GPU's, as those of linear algebra, wait by themselves), within
a collective, in a step under autocast, which the meta device does not have, or in code that asks for `is_cuda`. For
these there is `tools/check_gpu.py`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("meta")
MASKED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
COPIES = ("_to_copy", "copy_", "copy")
OF_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
SOURCES = Path(torch.__file__).parent, Path(__file__)


class HostWaits(AssertionError):
    """An operation for which the host would wait."""


@contextmanager
def no_waits() -> Iterator[list[Path]]:
    """Raises HostWaits at the first operation for which the host would wait. Copies of single values to the host that
    it does not wait for are read later: they give 0, and the files of the code that asks for them are yielded."""
    late: list[Path] = []
    knows_all_devices = patch("torch.optim.adam._device_dtype_check_for_fused")  # the fused AdamW runs on meta as well
    with knows_all_devices, _NoNumbers(), _NoWaits(late):
        yield late


class _NoNumbers(TorchFunctionMode):
    """Refuses tensors and indices of Python's numbers, which the meta device makes without an operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        copied = func in OF_NUMBERS and result.device == DEVICE and not isinstance(args[-1], Tensor)
        if copied or (func in INDEXING and args[0].device == DEVICE and _has_list(args[1])):
            raise HostWaits(f"{func.__name__} copies Python's numbers to the device")
        return result


class _NoWaits(TorchDispatchMode):
    """Refuses operations."""

    def __init__(self, late: list[Path]) -> None:
        super().__init__()
        self.late = late

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        target = kwargs.get("device")
        if any(tensor.device == DEVICE for tensor in tensors) or target == DEVICE:
            name = func.overloadpacket.__name__
            if name == "_to_copy" and target == torch.device("cpu") and kwargs.get("non_blocking"):
                self.late.append(_asked_by())
                return torch.zeros_like(tensors[0], device=target)
            if reason := _reason(func, name, tensors, kwargs):
                raise HostWaits(f"{func} {reason}")
        return func(*args, **kwargs)


def _reason(func: Any, name: str, tensors: list[Tensor], kwargs: dict[str, Any]) -> str:
    """Why the host would wait, "" where it would not."""
    if name in MASKED:  # the index of a slice is static, although the operation is tagged
        masks = [tensor for tensor in tensors[1:] if tensor.dtype in (torch.bool, torch.uint8)]
        if masks and tensors[0].dtype not in (torch.bool, torch.uint8):
            return "needs the number of elements in a mask"
    elif torch.Tag.dynamic_output_shape in func.tags and kwargs.get("output_size") is None:
        return "has a result whose shape depends on values"
    if torch.Tag.data_dependent_output in func.tags:
        return "reads values"
    if name in COPIES and kwargs.get("device") == torch.device("cpu"):
        return "copies to the host"
    if any(tensor.device != DEVICE and (tensor.ndim or name in COPIES) for tensor in tensors):
        return "copies from the host"
    return ""


def _has_list(index: Any) -> bool:
    return any(isinstance(part, list) for part in (index if isinstance(index, tuple) else (index,)))


def _asked_by() -> Path:
    """The file of the code that asked for the operation."""
    frame = sys._getframe(1)
    while any(Path(frame.f_code.co_filename).is_relative_to(source) for source in SOURCES) and frame.f_back:
        frame = frame.f_back
    return Path(frame.f_code.co_filename)
