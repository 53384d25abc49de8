"""Number formats: a context without autocast, one with parameters in half precision, and a measurement of emulated
formats."""

import contextlib
import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

EMULATED = 2.0
"""A format is called emulated where products take this many times as long as in float32."""
SIDE = {"cpu": 256, "cuda": 4096}
"""Side of the square matrices that are multiplied to measure it: on a CPU without bf16 instructions 256 takes a tenth
of a second, where 1024 would take seven."""


def full_precision(device_type: str) -> contextlib.AbstractContextManager[None]:
    """Returns a context with autocast off. It does nothing on the meta device, where FLOPs are counted without
    autocast."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else contextlib.nullcontext()


@contextlib.contextmanager
def parameters_in(dtype: torch.dtype, module: nn.Module) -> Iterator[None]:
    """Gives a module copies of its parameters in `dtype` within the context, for forward and backward passes. Gradients
    pass through them to the parameters themselves."""
    places = [
        (part, name, parameter)
        for part in module.modules()
        for name, parameter in part._parameters.items()
        if parameter is not None
    ]
    copies: dict[Tensor, Tensor] = {
        parameter: parameter.to(dtype) for parameter in dict.fromkeys(parameter for _, _, parameter in places)
    }
    for part, name, parameter in places:
        part._parameters[name] = copies[parameter]  # type: ignore[assignment]  # it is no leaf, as a Parameter would be
    try:
        yield
    finally:
        for part, name, parameter in places:
            part._parameters[name] = parameter


def slowdown(dtype: torch.dtype, device: torch.device) -> float:
    """Returns the time of a matrix product in `dtype` divided by that in float32: below 1 where the device has
    instructions for it, 100 and more where it converts each number, as CPUs without AVX512-BF16 or AMX do with
    bf16."""
    return _product_seconds(dtype, device) / _product_seconds(torch.float32, device)


def emulation_notice(key: str, dtype: torch.dtype | None, device: torch.device) -> str | None:
    """Returns a warning where the device emulates `dtype`, which the config key `key` chose, else None. A `dtype` of
    None is float32. The function measures the time of a few products."""
    times = 1.0 if dtype is None else slowdown(dtype, device)
    if times < EMULATED:
        return None
    name = str(dtype).removeprefix("torch.")
    return (
        f"{key}: this {device.type.upper()} has no instructions for {name}: a matrix product takes {times:.0f} times "
        f"as long as in float32; set {key}=fp32"
    )


def _product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """Returns the shortest time of three products in seconds, after one for warm-up."""
    side = SIDE.get(device.type, SIDE["cpu"])
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    return min([_timed_product(matrix) for _ in range(4)][1:])


def _timed_product(matrix: torch.Tensor) -> float:
    """Returns the seconds that a square matrix times itself takes."""
    began = time.perf_counter()
    product = matrix @ matrix
    product[0, 0].item()  # waits for the device
    return time.perf_counter() - began
