"""The number formats that matrix products are computed in: leaving autocast, and what a format costs on a device."""

import contextlib
import time

import torch

EMULATED = 2.0
"""A format in which products take this many times as long as in float32 is not one that the device computes in."""
SIDE = {"cpu": 256, "cuda": 4096}
"""Of the square matrices that are multiplied to find out: on a CPU without bf16 instructions 256 takes a tenth of a
second, where 1024 would take seven."""


def full_precision(device_type: str) -> contextlib.AbstractContextManager[None]:
    """Autocast off, where there is autocast: not on the meta device, on which FLOPs are counted."""
    available = torch.amp.is_autocast_available(device_type)
    return torch.autocast(device_type, enabled=False) if available else contextlib.nullcontext()


def slowdown(dtype: torch.dtype, device: torch.device) -> float:
    """How many times as long as in float32 a matrix product takes in `dtype`: below 1 where the device has instructions
    for it, 100 and more where it converts number by number, as CPUs without AVX512-BF16 or AMX do with bf16."""
    return _product_seconds(dtype, device) / _product_seconds(torch.float32, device)


def emulation_notice(key: str, dtype: torch.dtype | None, device: torch.device) -> str | None:
    """What to say before the first step of a run that computes in `dtype` (None: float32), which the config key `key`
    asked for, on a device that does not; None where all is well. It times two products."""
    times = 1.0 if dtype is None else slowdown(dtype, device)
    if times < EMULATED:
        return None
    name = str(dtype).removeprefix("torch.")
    return (
        f"{key}: this {device.type.upper()} has no instructions for {name}: a matrix product takes {times:.0f} times "
        f"as long as in float32; set {key}=fp32"
    )


def _product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The shortest of three, after one that is not counted."""
    side = SIDE.get(device.type, SIDE["cpu"])
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    return min([_timed_product(matrix) for _ in range(4)][1:])


def _timed_product(matrix: torch.Tensor) -> float:
    began = time.perf_counter()
    product = matrix @ matrix
    product[0, 0].item()  # waits for the device
    return time.perf_counter() - began
