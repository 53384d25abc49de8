"""What a run costs: the columns of `load_runs` that a study may name like a metric, and how reports show them."""

from typing import NamedTuple


class Cost(NamedTuple):
    """How a cost is shown. A table divides it by `unit` and heads it with `title`; a figure has it on an axis called
    `axis` as it is, and none where that is None, since hours and memory say as much about the machine. Less is cheaper,
    unless `more_is_cheaper`."""

    title: str
    unit: float
    axis: str | None
    more_is_cheaper: bool = False


COSTS = {
    "images_per_second": Cost("images/s", 1.0, "images per second", more_is_cheaper=True),
    "cost.flops_per_image": Cost("GFLOPs/image", 1e9, "FLOPs per image, a training step"),
    "cost.core_or_gpu_hours": Cost("hours/run", 1.0, None),
    "cost.peak_memory_bytes": Cost("peak GiB", 2.0**30, None),
}


def place_of(name: str) -> tuple[str, str]:
    """Returns the section of run.json that holds a metric or a cost, and its key in there."""
    if name not in COSTS:
        return "metrics", name
    section, _, key = name.rpartition(".")
    return section or "throughput", key
