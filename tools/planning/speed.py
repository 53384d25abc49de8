"""What GPUs send each other in a step, the seconds that it takes, and what a study costs."""

from collections.abc import Mapping
from typing import Any

from dinoswap.clustering.patch_prototypes import BANK
from dinoswap.model import SelfDistillation
from dinoswap.targets.centering import Centering
from planning import networks, step
from planning.hardware import GPUS, NODE
from planning.memory import BYTES, STATE_BYTES, Spread
from planning.values import Config, Request

BETWEEN = "all-reduce of gradients between replicas"


def communicated(cfg: Config, model: SelfDistillation, calls: Mapping[str, int], request: Request) -> dict[str, float]:
    """Returns the bytes that each GPU sends per step, by purpose. `calls` are the forward calls of each unit in one
    micro-batch, as `Life.calls` has them."""
    if request.sharding == "none" or request.gpus == 1:
        return {}
    ring, accumulate = _ring(request.gpus), int(cfg["trainer"]["accumulate"])
    of_targets = sum(vector_bytes(objective, model) for objective in networks.objectives(model).values())
    vectors = 2 * ring * accumulate * of_targets
    if request.sharding == "ddp":
        trained = networks.count(model.student, trained_only=True)
        return {"all-reduce of gradients": 2 * ring * STATE_BYTES * trained, "vectors of K": vectors}
    spread, shared = Spread.of(cfg), networks.shared_networks(model)
    shards = request.gpus // spread.replicas
    sizes, kept = networks.unit_sizes(model), networks.kept_units(model)
    called = {unit: accumulate * calls.get(unit, 0) for unit in sizes}
    forward = {unit: min(times, 1) if unit in kept else times for unit, times in called.items()}
    backward = {unit: 0 if unit in kept else times for unit, times in called.items()}

    def parameters(side: str, times: Mapping[str, int]) -> int:
        """Returns the number of parameters of the units of one side, each counted so many times."""
        return sum(times[unit] * size for unit, size in sizes.items() if unit.startswith(f"{side}."))

    gathered, reduced = _ring(shards) * BYTES[spread.gathered], _ring(shards) * BYTES[spread.reduced]
    between = 2 * _ring(spread.replicas) * BYTES[spread.reduced] / shards
    sent = {
        "all-gather forward": gathered * parameters("student", forward),
        "all-gather backward": gathered * parameters("student", backward) * spread.reshard,
        "all-gather of the EMA teacher": gathered * parameters("teacher", forward),
        "all-gather of the frozen teacher": gathered * sum(parameters(f"frozen.{name}", forward) for name in shared),
        "reduce-scatter of gradients": reduced * parameters("student", called),
        BETWEEN: between * parameters("student", called),
        "vectors of K": vectors,
    }
    return {name: value for name, value in sent.items() if value}


def _ring(ranks: int) -> float:
    """Returns which share of what a ring of ranks gathers each of them sends."""
    return (ranks - 1) / ranks


def vector_bytes(objective: Any, model: SelfDistillation) -> int:
    """Returns the bytes of the vectors of K that the targets of one micro-batch sum over ranks."""
    targets = getattr(objective, "targets", None)
    if targets is None:
        return 0
    prototypes = networks.prototypes(model.student[getattr(objective, "head", BANK)])
    sums = 1 if isinstance(targets, Centering) else int(targets.iterations)
    return STATE_BYTES * prototypes * sums


def products(cfg: Config, section: Mapping[str, Any]) -> str:
    """Returns the precision that the products of a section are computed in: its own or the trainer's; tf32 where
    float32 is."""
    precision = str(section.get("precision", cfg["trainer"]["precision"]))
    return "tf32" if precision == "fp32" and cfg["trainer"]["matmul_precision"] == "high" else precision


def step_seconds(
    cfg: Config, flops: step.Flops, communication: Mapping[str, float], request: Request, slices: int
) -> dict[str, float]:
    """Returns the seconds of one step: compute, communication, what of it is not hidden, and their sum."""
    gpu, micro_batches = GPUS[request.gpu], slices // request.gpus
    trainer, sections = cfg["trainer"], {**cfg["objectives"], "da3": cfg["da3"]}
    work = (flops.algorithm + flops.recomputed - sum(flops.frozen.values())) / gpu.peak(products(cfg, trainer))
    work += sum(count / gpu.peak(products(cfg, sections[name])) for name, count in flops.frozen.items())
    compute = micro_batches * work / request.utilisation
    shards = request.gpus // Spread.of(cfg).replicas
    rings = dict.fromkeys(communication, shards) | dict.fromkeys((BETWEEN, "vectors of K"), request.gpus)
    times = {name: sent / (gpu.nvlink if rings[name] <= NODE else gpu.network) for name, sent in communication.items()}
    vectors = times.pop("vectors of K", 0.0)
    hidden_behind = compute / 2 if request.sharding == "ddp" else compute
    exposed = max(0.0, sum(times.values()) - hidden_behind) + vectors
    return {
        "compute": compute,
        "communication": sum(times.values()) + vectors,
        "not hidden": exposed,
        "step": compute + exposed,
    }


def study(cfg: Config, seconds: float, request: Request) -> dict[str, float | None]:
    """Returns what all runs take together. The hours of one run are those on the clock."""
    steps, images = cfg["trainer"]["max_steps"], cfg["data"]["batch_size"]
    hours = steps * seconds / 3600
    gpu_hours = request.runs * request.gpus * hours
    return {
        "steps": steps,
        "images": float(steps * images * request.runs),
        "images_per_second": images / seconds,
        "images_per_second_and_gpu": images / seconds / request.gpus,
        "hours_per_run": hours,
        "gpu_hours": gpu_hours,
        "cost": None if request.price is None else gpu_hours * request.price,
    }
