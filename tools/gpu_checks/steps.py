"""Checks of steps within one process: nothing waits for the GPU, losses are those of the CPU, and those of compiled
steps are those of eager ones."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from dinoswap.build import build_pipeline, build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.config.facts import build_source
from dinoswap.nn import compiled
from dinoswap.trainer import Trainer
from dinoswap.values import Batch
from gpu_checks.numbers import Numbers, beyond, largest_difference

CPU = torch.device("cpu")
TOLERANCES = {"fp32": 1e-3, "bf16": 2e-2, "bf16_params": 3e-2}
"""The largest relative difference of a loss to that of the CPU in float32. bf16 has 8 bits."""
COMPILED = 1e-3
"""Likewise of compiled steps to eager ones, in float32 on the same device: products and sums are ordered otherwise."""
WITHOUT_DRAWS = ["model.drop_path=0", "model.residual_dropout=0"]


class Steps:
    """The trainer of some overrides and its batches, in pinned memory where it has a GPU."""

    def __init__(
        self,
        device: torch.device,
        *overrides: str,
        batches: int,
        build: Callable[[dict[str, Any]], Trainer] = build_trainer,
    ) -> None:
        config = compose_config([*overrides, f"trainer.device={device}"])
        self.device, self.trainer = device, build(config)
        dataset = build_pipeline(config, self.trainer.model)(build_source(config).train())
        self.mean, self.std = (torch.tensor(config["data"][key], device=device) for key in ("mean", "std"))
        made = [dataset[step] for step in range(batches)]
        self.batches: list[Batch] = [batch.pin_memory() for batch in made] if device.type == "cuda" else made

    def step(self, step: int) -> torch.Tensor:
        """The loss."""
        batch = self.batches[step % len(self.batches)].to(self.device).normalised(self.mean, self.std)
        return self.trainer.step(step, [batch])["loss"]

    def losses(self, steps: int) -> list[float]:
        return torch.stack([self.step(step) for step in range(steps)]).tolist()


def waits(preset: str, device: torch.device) -> Numbers:
    if device.type != "cuda":
        return {"skipped": "only a GPU is waited for; tests/test_no_waits.py looks for what would wait without one"}
    drop_path = [] if preset == "legacy" else ["model.drop_path=0.3"]  # which has dropout of another kind
    steps = Steps(device, "recipe=smoke", f"preset={preset}", "trainer.precision=bf16", *drop_path, batches=4)
    steps.losses(2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2, 12):
            steps.step(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"steps": 10}


def losses(preset: str, device: torch.device) -> Numbers:
    count = 20 if device.type == "cuda" else 3
    overrides = ["recipe=smoke", f"preset={preset}", f"trainer.max_steps={count}", "data.batch_size=4", *WITHOUT_DRAWS]
    expected = Steps(CPU, *overrides, batches=count).losses(count)
    numbers: Numbers = {"of the CPU": expected, "failed": ""}
    for precision, tolerance in TOLERANCES.items():
        result = Steps(device, *overrides, f"trainer.precision={precision}", batches=count).losses(count)
        difference = largest_difference(result, expected)
        numbers |= {precision: result, f"difference in {precision}": difference}
        numbers["failed"] += beyond(f"losses in {precision}", difference, tolerance)
    return numbers


def compiled_steps(setting: str, device: torch.device) -> Numbers:
    """Eager steps, and those of trainer.compile=`setting`: other masks in each, and equal draws of stochastic depth. A
    CPU makes the graphs and has no machine code made of them, which takes minutes."""
    if setting == "cudagraphs" and device.type != "cuda":
        return {"skipped": "trainer.compile=cudagraphs is refused on a CPU"}
    count = 12 if device.type == "cuda" else 3
    overrides = ["recipe=smoke", "preset=official", "model.drop_path=0.3", "data.batch_size=5"]
    plain, fast = (
        Steps(device, *overrides, f"trainer.compile={choice}", batches=count) for choice in ("false", setting)
    )
    expected, eager_seconds = timed_losses(plain, count)
    with fresh_compiler("inductor" if device.type == "cuda" else "aot_eager") as counters:
        began = time.perf_counter()
        result = [float(fast.step(0))]
        first, graphs = time.perf_counter() - began, counters["stats"]["unique_graphs"]
        later, seconds = timed_losses(fast, count, begin=1)
        made = counters["stats"]["unique_graphs"] - graphs
        numbers = {
            "difference": largest_difference([*result, *later], expected),
            "graphs": graphs,
            "graphs made after the first step": made,
            "seconds of the first step": first,
            "seconds of the last step": seconds,
            "eager": eager_seconds,
            "CUDA graphs that torch declined": counters["inductor"]["cudagraph_skips"],
        }
    failed = beyond("losses", numbers["difference"], COMPILED)
    if not graphs:
        failed += "nothing was compiled; "
    if made:
        failed += f"{made} graphs were made after the first step; "
    if setting == "cudagraphs" and numbers["CUDA graphs that torch declined"]:
        failed += "torch declined to record CUDA graphs; "
    return numbers | {"failed": failed}


def timed_losses(steps: Steps, count: int, begin: int = 0) -> tuple[list[float], float]:
    """The losses of the steps from `begin` on, and the seconds of the last one."""
    result, seconds = [], 0.0
    for step in range(begin, count):
        began = time.perf_counter()
        result.append(float(steps.step(step)))
        seconds = time.perf_counter() - began
    return result, seconds


@contextmanager
def fresh_compiler(backend: str) -> Iterator[dict[str, Counter[str]]]:
    """torch's counters of what it compiles, from nothing on. A backend other than inductor is that of all modules."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    for made in (compiled._compiled, compiled._replayed):
        made.cache_clear()
    original = torch.compile
    chosen = {} if backend == "inductor" else {"backend": backend}
    with mock.patch.object(torch, "compile", lambda method, **options: original(method, **options, **chosen)):
        yield counters
    for made in (compiled._compiled, compiled._replayed):
        made.cache_clear()
    torch._dynamo.reset()
