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
"""Side of the square matrices that are multiplied to measure it: on a CPU without bf16 instructions 256 takes a third
of a second in all, where 1024 would take twenty."""
FEWEST_PRODUCTS, MOST_PRODUCTS = 3, 12
"""So many products are measured: more than the fewest only while a format looks emulated."""


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
    bf16. Other work on the machine prolongs single products, so the shortest of three counts, and of up to twelve
    while `dtype` looks emulated."""
    matrices = {kind: _matrix_of_ones(kind, device) for kind in (dtype, torch.float32)}
    seconds: dict[torch.dtype, list[float]] = {kind: [] for kind in matrices}
    for matrix in matrices.values():
        _product_seconds(matrix)  # warms up
    for products in range(1, MOST_PRODUCTS + 1):
        for kind, matrix in matrices.items():
            seconds[kind].append(_product_seconds(matrix))
        ratio = min(seconds[dtype]) / min(seconds[torch.float32])
        if products >= FEWEST_PRODUCTS and ratio < EMULATED:
            break
    return ratio


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


def _matrix_of_ones(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns the square matrix whose product with itself is measured on a device."""
    side = SIDE.get(device.type, SIDE["cpu"])
    return torch.ones(side, side, device=device, dtype=dtype)


def _product_seconds(matrix: Tensor) -> float:
    """Returns the seconds that a square matrix times itself takes."""
    began = time.perf_counter()
    product = matrix @ matrix
    product[0, 0].item()  # waits for the device
    return time.perf_counter() - began
