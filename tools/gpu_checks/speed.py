"""How fast steps are at the largest batch that fits, what memory they take, and what tools/plan.py says of both."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch

from benchmark import matmul_peak, synchronise
from dinoswap.build import build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import construct_option
from dinoswap.config.sections import step_sizes
from dinoswap.config.streams import stream_seeds
from dinoswap.run.loop import peak_memory
from dinoswap.trainer import Trainer
from dinoswap.values import Batch, masked_positions
from gpu_checks.numbers import Numbers
from plan import make_plan
from planning.hardware import GPUS
from planning.networks import meta_batch
from planning.values import Config

COMPILED = " compiled"
RECIPES = ("vits16", "vitb16", "vitl14")
FIRST, SECONDS = 8, 20.0
"""The first number of images, and the seconds after which no larger one is tried, those of compiling not counted."""
WARM, TIMED = 2, 5
ON_CPU = "smoke"


def subjects(device: torch.device) -> list[str]:
    """Eager and compiled: each is a check of its own, so that one that fails does not cost the other."""
    if device.type != "cuda":
        return [ON_CPU]
    return [f"{recipe}{compiled}" for recipe in RECIPES for compiled in ("", COMPILED)]


def overrides_of(subject: str) -> list[str]:
    recipe = subject.removesuffix(COMPILED)
    compiled = str(subject.endswith(COMPILED)).lower()
    return [f"recipe={recipe}", "preset=official", "trainer.precision=bf16", f"trainer.compile={compiled}"]


def speed(subject: str, device: torch.device) -> Numbers:
    """Of random crops, which are on the device, and masks as they are drawn."""
    config = compose_config([*overrides_of(subject), f"trainer.device={device}"])
    trainer = build_trainer(config)
    measure = partial(measured, trainer, config)
    on_gpu = device.type == "cuda"
    best = largest(measure) if on_gpu else timed(trainer, config, config["data"]["batch_size"])
    return {**best, "TFLOP/s of a product": matmul_peak(device, torch.bfloat16, 8192 if on_gpu else 256) / 1e12}


def largest(measure: Callable[[int], Numbers | None]) -> Numbers:
    """What is measured of the largest number of images: twice as many each time until memory or time (`limit`) is at an
    end, then halfway between the last that fits and the first that does not."""
    best: Numbers = {}
    images, began = FIRST, 0.0
    while result := measure(images):
        best, images = result, 2 * images
        began = began or time.perf_counter()
        if time.perf_counter() - began > SECONDS:
            return best | {"limit": "time"}
    if not best:
        raise RuntimeError(f"not even {FIRST} images fit into the memory of this GPU")
    return (measure(3 * images // 4) or best) | {"limit": "memory"}


def measured(trainer: Trainer, config: Config, images: int) -> Numbers | None:
    """None where so many images run out of memory."""
    result = None
    with suppress(torch.OutOfMemoryError):
        result = timed(trainer, config, images)
    if result is None:
        trainer.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return result


def timed(trainer: Trainer, config: Config, images: int) -> Numbers:
    device = trainer.device
    batch = noise(config, trainer, images)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for step in range(WARM):
        trainer.step(step, [batch])
    synchronise(device)
    began = time.perf_counter()
    for step in range(WARM, WARM + TIMED):
        trainer.step(step, [batch])
    synchronise(device)
    seconds = (time.perf_counter() - began) / TIMED
    reserved = {"reserved GB": torch.cuda.max_memory_reserved(device) / 1e9} if device.type == "cuda" else {}
    return {
        "images": images,
        "images per second": images / seconds,
        "seconds per step": seconds,
        "peak GB": peak_memory(device) / 1e9,
        **reserved,
    }


def noise(config: Config, trainer: Trainer, images: int) -> Batch:
    """A normalised batch of so many images."""
    config = {**config, "data": {**config["data"], "batch_size": images}}
    (size,) = step_sizes(config)
    shapes = meta_batch(config, trainer.model, 1, size)
    masks = construct_option(config["masking"], "masking").sampler(
        crop_size=(size.global_size,) * 2,
        patch_size=config["model"]["patch_size"],
        crops=trainer.model.plan.masked_crops,
        images=images,
        seed=stream_seeds(config).masks,
    )
    mask = torch.from_numpy(masks(0))
    made = replace(shapes, mask=mask, **masked_positions(mask), indices=torch.arange(images))
    return made.map(lambda t: torch.randn(t.shape, device=trainer.device) if t.is_meta else t.to(trainer.device))


# --- what was planned -------------------------------------------------------------------------------------------------


def in_table(name: str, memory: int) -> str | None:
    """The GPU of tools/plan.py that torch calls `name`, with so many bytes of memory; None where it has none."""
    result = next((gpu for gpu in ("h100", "h200", "b200", "a100") if gpu in name.lower()), None)
    return "a100-40" if result == "a100" and memory < 60e9 else result


def compared_with_plan(row: Numbers, gpu: str | None) -> Numbers:
    """What a row of `speed` gains: its share of the peak, and what the plan of this batch says, where the GPU is in its
    table. FLOPs are those of the published algorithm."""
    overrides = [*overrides_of(row["of"]), f"data.batch_size={row['images']}"]
    plan = make_plan(overrides, gpu=gpu or "h100")
    peak = GPUS[gpu].peak(plan.precision) if gpu else row["TFLOP/s of a product"] * 1e12
    share = {"share of the peak": plan.flops_per_image * row["images per second"] / peak}
    if gpu is None:
        return share
    return share | {
        "planned images per second": plan.study["images_per_second"],
        "planned GB": plan.memory_bytes / 1e9,
    }
