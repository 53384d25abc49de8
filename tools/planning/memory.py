"""Bytes on one GPU at the moment of the step when most is live: what a run keeps, and what planning/step.py finds."""

from dataclasses import dataclass

from dinoswap.config.sections import gathered_dtype
from dinoswap.model import SelfDistillation
from dinoswap.values import Batch, Hyper
from planning import networks, step
from planning.values import Config, Request

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
STATE_BYTES = 4  # weights, gradients, moments and averages are float32 in every precision


@dataclass(frozen=True)
class Spread:
    """How fsdp2 is set, as its group has it where the config has another option."""

    gathered: str
    reduced: str
    reshard: bool
    replicas: int

    @classmethod
    def of(cls, cfg: Config) -> "Spread":
        """Returns the settings of a config; those of fsdp2's group where it has another option."""
        own = cfg.get("distributed") or {}
        return cls(
            gathered_dtype(cfg),
            own.get("reduce_dtype", "fp32"),
            own.get("reshard_after_forward", True),
            own.get("replicas", 1),
        )


def step_life(
    cfg: Config, model: SelfDistillation, batch: Batch, hyper: Hyper, *, checkpointing: bool, gpu: bool = True
) -> step.Life:
    """Returns the storages of a step; with `gpu` False those of training on a CPU, whose attention differs."""
    return step.live_bytes(
        networks.with_checkpointing(model, checkpointing),
        batch,
        hyper,
        cfg["trainer"]["precision"],
        gpu=gpu,
        accumulate=cfg["trainer"]["accumulate"],
    )


def memory_parts(
    cfg: Config, model: SelfDistillation, batch: Batch, life: step.Life, request: Request
) -> dict[str, int]:
    """Returns the bytes on each GPU by part, at the peak of a step."""
    sharded, spread = request.sharding == "fsdp2" and request.gpus > 1, Spread.of(cfg)
    share = spread.replicas / request.gpus if sharded else 1.0
    trained = networks.count(model.student, trained_only=True)
    shared = networks.shared_networks(model)
    frozen = {name: networks.count(network) for name, network in networks.frozen_networks(model).items()}
    parts = {
        "weights": STATE_BYTES * networks.count(model.student) * share,
        "optimiser (AdamW's moments)": 2 * STATE_BYTES * trained * share,
        "EMA teacher": STATE_BYTES * networks.count(model.teacher) * share,
        "frozen teacher": STATE_BYTES * sum(count * (share if name in shared else 1) for name, count in frozen.items()),
        "crops": cfg["trainer"]["accumulate"] * networks.batch_bytes(batch),
    }
    scale = {step.GRADIENTS: share}
    if request.sharding == "ddp" and request.gpus > 1:
        parts["gradient buckets"] = STATE_BYTES * trained
        if cfg["trainer"]["accumulate"] == 1:  # else micro-batches before the last have gradients outside of buckets
            scale[step.GRADIENTS] = 0.0
    if sharded:
        sizes, kept = networks.unit_sizes(model), networks.kept_units(model)
        own = {unit: size for unit, size in sizes.items() if unit.startswith("student.")}
        freed = [size for unit, size in own.items() if unit not in kept]
        largest, gathered, reduced = max(own.values()), BYTES[spread.gathered], BYTES[spread.reduced]
        at_work = 2 * max(freed) if spread.reshard else sum(freed)
        parts["gathered units"] = gathered * (at_work + sum(sizes[unit] for unit in kept))
        parts["gradient of one unit"] = (gathered + reduced) * largest
        if spread.gathered != "fp32":
            scale[step.WEIGHT_CASTS] = 0.0  # weights arrive in the precision of the products
    return {name: round(value) for name, value in parts.items() if value} | life.peak(scale)
