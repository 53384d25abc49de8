"""A plan as tables for a person."""

import math

from rich.table import Table

from planning.hardware import GPUS, HEADROOM
from planning.memory import STATE_BYTES
from planning.values import Plan

GB = 1e9


def gigabytes(size: float) -> str:
    """Returns a number of bytes in GB, with two digits behind the point or, where it is small, two digits in all."""
    return f"{size / GB:.2f}" if size >= GB / 10 or not size else f"{size / GB:.2g}"


def tables(plan: Plan) -> list[Table]:
    """Returns the tables of a plan."""
    shown = [parameter_table(plan), memory_table(plan), speed_table(plan)]
    return [*shown, evaluation_table(plan)] if plan.evaluation else shown


def parameter_table(plan: Plan) -> Table:
    """Returns the table of parameters by network."""
    table = Table("network", "parameters", title="Parameters")
    for name, number in plan.parameters.items():
        table.add_row(name, f"{number:,}")
    return table


def memory_table(plan: Plan) -> Table:
    """Returns the table of memory by part, with and without activation checkpointing, and whether it fits."""
    request, own = plan.request, "on" if plan.checkpointing else "off"
    title = (
        f"Memory per GPU, GB: {plan.images_per_gpu} images, {plan.masked_tokens_per_gpu} masked tokens, "
        f"{plan.precision}, {request.sharding}"
    )
    header = [f"checkpointing {name}{' (this config)' if name == own else ''}" for name in plan.memory]
    table = Table("part, at the peak", *header, title=title)
    for part in plan.memory["off"]:
        table.add_row(part, *(gigabytes(parts[part]) for parts in plan.memory.values()))
    table.add_section()
    limit, sums = GPUS[request.gpu].memory, [sum(parts.values()) for parts in plan.memory.values()]
    table.add_row("sum", *map(gigabytes, sums))
    table.add_row(f"of {request.gpu}'s {limit / GB:.0f}", *(f"{total / limit:.0%}" for total in sums))
    fits = ("yes" if total <= (1 - HEADROOM) * limit else "NO" for total in sums)
    table.add_row(f"fits with {HEADROOM:.0%} left", *fits)
    table.add_section()
    share = request.gpus if request.sharding == "fsdp2" else 1
    complete = STATE_BYTES * plan.parameters["trained"] / share
    for name, value in {
        "at other moments: gradients, complete": complete,
        "at other moments: most K-sized tensors": plan.largest_logits,
    }.items():
        table.add_row(name, *(gigabytes(value) if column == own else "" for column in plan.memory))
    return table


def speed_table(plan: Plan) -> Table:
    """Returns the table of speed and cost."""
    request, study_, seconds = plan.request, plan.study, plan.seconds
    gpu = GPUS[request.gpu]
    table = Table("", "", title="Speed and cost", show_header=False)
    table.add_row("GFLOP per image", f"{plan.flops_per_image / 1e9:,.5g}")
    if plan.recomputed_flops_per_image:
        table.add_row("  computed again", f"{plan.recomputed_flops_per_image / 1e9:,.5g}")
    if plan.frozen_flops_per_image:
        table.add_row("  of the frozen teacher", f"{plan.frozen_flops_per_image / 1e9:,.5g}")
    peak = gpu.peak(plan.precision)
    table.add_row("peak", f"{peak / 1e12:,.1f} TFLOP/s ({request.gpu}, {plan.precision}; {gpu.source})")
    table.add_row("utilisation", f"{request.utilisation:.2f}")
    for name, sent in plan.communication.items():
        table.add_row(f"sent per step: {name}", f"{gigabytes(sent)} GB")
    for name, value in seconds.items():
        table.add_row(f"seconds per step: {name}", f"{value:.3g}")
    table.add_row("images per second", f"{study_['images_per_second']:,.0f} on {request.gpus} GPUs")
    table.add_row("hours per run", f"{study_['hours_per_run']:,.3g} for {study_['steps']:,} steps")
    table.add_row(f"GPU hours of {request.runs} runs", f"{study_['gpu_hours']:,.0f}")
    cost = study_["cost"]
    table.add_row("cost", "give --price" if cost is None else f"{cost:,.0f} at {request.price} per GPU hour")
    return table


def evaluation_table(plan: Plan) -> Table:
    """Returns the table of the minutes of the final evaluation."""
    train, test, classes = plan.request.evaluated or (0, 0, 0)
    table = Table("final evaluation", "minutes", title=f"{train:,} and {test:,} images of {classes:,} classes")
    for name, seconds in plan.evaluation.items():
        table.add_row(name, "not known" if math.isnan(seconds) else f"{seconds / 60:,.3g}")
    return table
