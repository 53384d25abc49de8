"""What a run needs before it is started: memory per GPU, communication, images per second, GPU hours, cost of a study.

    python tools/plan.py recipe=vitl16_short distributed=ddp --gpus 32 --gpu h100 --runs 48 --price 2.5
    python tools/plan.py recipe=vitg14 trainer.precision=bf16 distributed=fsdp2 --gpus 96 --gpu a100-40
    python tools/plan.py preset=legacy recipe=vitb16 da3=enabled --gpus 8 --gpu a100 --json plan.json

The words are overrides of `dinoswap-train`; everything follows from the config that they compose. Shapes alone are
used: no GPU, no data, no weights (tools/plan_step.py says how memory and FLOPs are found). GB are 10^9 bytes.

Memory per GPU, at the moment of the step when most is live. Weights, gradients, AdamW's two moments and the EMA are
float32. `ddp`: all of them on every GPU, and gradient buckets of the gradients' size. `fsdp2`: 1/n of each on every
GPU; beside them two gathered units (a block, or a network without its blocks: the one at work and the next) and one
whole gradient of such a unit. Crops are there twice: the non-finite guard keeps those of the step before. A GPU's
context, NCCL's buffers, kernels' workspaces and fragmentation are not in it: a plan fits where a tenth is left.

Communication, bytes that each GPU sends per step, by rings over n GPUs. `ddp`: 2 (n - 1) / n of the gradients, once.
`fsdp2`: (n - 1) / n of each unit for each call, forward (student and teacher) and backward (student), in
distributed.param_dtype, and of its gradients in distributed.reduce_dtype. Sinkhorn and centring: their vectors of K.

Time. seconds = FLOPs / (peak x utilisation) + communication that is not hidden; FLOPs are those of the published
algorithm and, with checkpointing, what is computed again. All-reduces of ddp hide behind the backward pass (half of the
step), gathers and scatters of fsdp2 behind all of the step, vectors of K behind nothing; bandwidth is the vendor's: of
NVLink up to a node of 8, of a node's network cards beyond. fp32 is fp32: the trainer never switches TF32 on. Loading,
evaluation and checkpoints are not in it.

Utilisation defaults to what published runs reached by these FLOPs (results/reference/plan has each): 0.34 on A100
(DINOv2 ViT-L/16, ViT-L/14 and ViT-g/14), 0.18 on H100 (DINOv3 ViT-L/16), and that of the H100 on H200 and B200, for
which there is none. Smaller networks reach less.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import plan_step
from dinoswap.clustering.patch_prototypes import BANK
from dinoswap.command_line import EXIT_USAGE, chosen_options, compose_config
from dinoswap.files import write_atomically
from dinoswap.model import SelfDistillation
from dinoswap.schema import ConfigError, nearest
from dinoswap.settings import check
from dinoswap.targets.centering import Centering
from dinoswap.values import Batch, Hyper

Config = Mapping[str, Any]
SHARDINGS = ("none", "ddp", "fsdp2")
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
STATE_BYTES = 4  # weights, gradients, moments and averages are float32 in every precision
GB, GIB = 1e9, 2**30
NODE = 8  # GPUs that NVLink connects
HEADROOM = 0.1  # of a GPU's memory, for what is not counted


@dataclass(frozen=True)
class Gpu:
    """Peaks are dense, in FLOP/s of one GPU; bandwidths in bytes/s that a GPU can send in a ring: `nvlink` one way,
    `network` all cards of a node together, as rings of all GPUs of a node share them."""

    memory: float  # bytes; what data sheets call GB are 2^30, to 1 %
    half: float  # bf16 and fp16 with tensor cores
    fp32: float  # without TF32
    nvlink: float
    network: float
    utilisation: float
    source: str


# NVIDIA's data sheets of the SXM modules, and of DGX for the network: 8 ports of 200 Gbit/s (A100), 400 Gbit/s (later).
# The TF32 peaks (156, 495, 495, 1100 TFLOP/s) are not used, see above.
GPUS = {
    "a100-40": Gpu(40 * GIB, 312e12, 19.5e12, 300e9, 200e9, 0.34, "A100 data sheet (SXM4 40 GB), DGX A100"),
    "a100": Gpu(80 * GIB, 312e12, 19.5e12, 300e9, 200e9, 0.34, "A100 data sheet (SXM4 80 GB), DGX A100"),
    "h100": Gpu(80 * GIB, 989e12, 67e12, 450e9, 400e9, 0.18, "H100 data sheet (SXM5), DGX H100"),
    "h200": Gpu(141 * GIB, 989e12, 67e12, 450e9, 400e9, 0.18, "H200 data sheet (SXM), DGX H200"),
    "b200": Gpu(180 * GIB, 2250e12, 75e12, 900e9, 400e9, 0.18, "HGX B200 data sheet, DGX B200"),
}


@dataclass(frozen=True)
class Request:
    """What is planned besides the config."""

    gpu: str
    gpus: int
    sharding: str
    utilisation: float
    runs: int
    price: float | None  # of a GPU hour


@dataclass(frozen=True)
class Plan:
    """Bytes are per GPU. `memory` is at the peak of a step, by part, for activation checkpointing off and on."""

    overrides: list[str]
    request: Request
    precision: str
    checkpointing: bool
    images_per_step: int
    images_per_gpu: int  # of one micro-batch
    masked_tokens_per_gpu: int
    parameters: dict[str, int]
    flops_per_image: float
    recomputed_flops_per_image: float
    frozen_flops_per_image: float
    memory: dict[str, dict[str, int]]
    largest_logits: int
    communication: dict[str, float]  # bytes sent per step
    seconds: dict[str, float]  # of a step
    study: dict[str, float | None]

    @property
    def memory_bytes(self) -> int:
        """As the config has it."""
        return sum(self.memory["on" if self.checkpointing else "off"].values())


# --- from overrides to a plan -----------------------------------------------------------------------------------------


def make_plan(
    overrides: Sequence[str],
    *,
    gpu: str = "h100",
    gpus: int = 1,
    sharding: str | None = None,
    utilisation: float | None = None,
    runs: int = 1,
    price: float | None = None,
) -> Plan:
    """Raises ConfigError."""
    request = checked_request(overrides, gpu, gpus, sharding, utilisation, runs, price)
    cfg = compose_config(overrides)
    check(cfg)
    slices = gpus * cfg["trainer"]["accumulate"]
    images = cfg["data"]["batch_size"]
    if images % slices:
        raise ConfigError(
            f"data.batch_size={images}: {gpus} GPUs times trainer.accumulate={cfg['trainer']['accumulate']} cut it "
            f"into {slices} equal parts; try data.batch_size={max(round(images / slices), 1) * slices}, or other --gpus"
        )
    model = plan_step.meta_model(cfg)
    batch, hyper = plan_step.meta_batch(cfg, model, slices), plan_step.first_hyper(cfg)
    precision, checkpointing = cfg["trainer"]["precision"], cfg["model"]["activation_checkpointing"]
    count = plan_step.flops(model, batch, hyper, checkpointing)
    lives = {name: step_life(cfg, model, batch, hyper, checkpointing=name == "on") for name in ("off", "on")}
    life = lives["on" if checkpointing else "off"]
    communication = communicated(cfg, model, life.calls, request)
    seconds = step_seconds(cfg, count, communication, request, slices)
    return Plan(
        overrides=list(overrides),
        request=request,
        precision=precision,
        checkpointing=checkpointing,
        images_per_step=images,
        images_per_gpu=batch.images,
        masked_tokens_per_gpu=len(batch.masked_indices),
        parameters=parameters(model),
        flops_per_image=count.algorithm / batch.images,
        recomputed_flops_per_image=count.recomputed / batch.images,
        frozen_flops_per_image=count.frozen / batch.images,
        memory={name: memory_parts(cfg, model, batch, each, request) for name, each in lives.items()},
        largest_logits=life.most(plan_step.LOGITS),
        communication=communication,
        seconds=seconds,
        study=study(cfg, seconds["step"], request),
    )


def checked_request(
    overrides: Sequence[str],
    gpu: str,
    gpus: int,
    sharding: str | None,
    utilisation: float | None,
    runs: int,
    price: float | None,
) -> Request:
    if gpu not in GPUS:
        raise ConfigError(f"--gpu {gpu}: is not in the table.{nearest(gpu, GPUS)} Use one of {', '.join(GPUS)}")
    for name, value in (("gpus", gpus), ("runs", runs)):
        if value < 1:
            raise ConfigError(f"--{name} {value}: must be at least 1")
    if utilisation is not None and not 0 < utilisation <= 1:
        raise ConfigError(
            f"--utilisation {utilisation}: must lie above 0 and be at most 1; leave it out for "
            f"{GPUS[gpu].utilisation}, which published runs reached"
        )
    if price is not None and not price >= 0:
        raise ConfigError(f"--price {price}: must be 0 or more, for one GPU hour")
    spread = chosen_sharding(overrides, gpus, sharding)
    return Request(gpu, gpus, spread, utilisation or GPUS[gpu].utilisation, runs, price)


def chosen_sharding(overrides: Sequence[str], gpus: int, asked: str | None) -> str:
    """That of --sharding, else the option of the group `distributed`."""
    if asked is not None and asked not in SHARDINGS:
        raise ConfigError(f"--sharding {asked}: use one of {', '.join(SHARDINGS)}.{nearest(asked, SHARDINGS)}")
    chosen = chosen_options(overrides).get("distributed", "none")
    if asked is not None and chosen not in ("none", asked):
        raise ConfigError(f"--sharding {asked}: distributed={chosen} says otherwise; leave one of them out")
    spread = asked or chosen
    if spread == "none" and gpus > 1:
        raise ConfigError(f"--gpus {gpus}: one process drives one GPU; add distributed=ddp or distributed=fsdp2")
    return spread


def parameters(model: SelfDistillation) -> dict[str, int]:
    """By network. `teacher` is the EMA copy as a whole, `frozen` what is never trained."""
    own = {f"student {name}": plan_step.count(network) for name, network in model.student.items()}
    frozen = {f"frozen {name} teacher": plan_step.count(net) for name, net in plan_step.frozen_networks(model).items()}
    return {
        **own,
        "student": sum(own.values()),
        "trained": plan_step.count(model.student, trained_only=True),
        "EMA teacher": plan_step.count(model.teacher),
        **frozen,
    }


@dataclass(frozen=True)
class Spread:
    """How fsdp2 is set, by default as its group has it."""

    gathered: str = "fp32"
    reduced: str = "fp32"
    reshard: bool = True

    @classmethod
    def of(cls, cfg: Config) -> "Spread":
        own = cfg.get("distributed") or {}
        return cls(
            own.get("param_dtype", "fp32"), own.get("reduce_dtype", "fp32"), own.get("reshard_after_forward", True)
        )


# --- memory -----------------------------------------------------------------------------------------------------------


def step_life(
    cfg: Config, model: SelfDistillation, batch: Batch, hyper: Hyper, *, checkpointing: bool, gpu: bool = True
) -> plan_step.Life:
    """With `gpu` False that of training on a CPU, whose attention differs."""
    return plan_step.live_bytes(
        plan_step.with_checkpointing(model, checkpointing),
        batch,
        hyper,
        cfg["trainer"]["precision"],
        gpu=gpu,
        accumulate=cfg["trainer"]["accumulate"],
    )


def memory_parts(
    cfg: Config, model: SelfDistillation, batch: Batch, life: plan_step.Life, request: Request
) -> dict[str, int]:
    """Bytes per GPU by part, at the peak."""
    sharded = request.sharding == "fsdp2" and request.gpus > 1
    share = 1 / request.gpus if sharded else 1.0
    shares_frozen = sharded and cfg["da3"].get("use_fsdp", False)
    trained = plan_step.count(model.student, trained_only=True)
    frozen = sum(plan_step.count(network) for network in plan_step.frozen_networks(model).values())
    parts = {
        "weights": STATE_BYTES * plan_step.count(model.student) * share,
        "optimiser (AdamW's moments)": 2 * STATE_BYTES * trained * share,
        "EMA teacher": STATE_BYTES * plan_step.count(model.teacher) * share,
        "frozen teacher": STATE_BYTES * frozen * (share if shares_frozen else 1),
        "crops of two steps": 2 * cfg["trainer"]["accumulate"] * plan_step.batch_bytes(batch),
    }
    scale = {plan_step.GRADIENTS: share}
    if request.sharding == "ddp" and request.gpus > 1:
        parts["gradient buckets"] = STATE_BYTES * trained
    if sharded:
        spread = Spread.of(cfg)
        sizes = {unit: size for unit, size in plan_step.unit_sizes(model).items() if unit.startswith("student.")}
        largest, gathered, reduced = max(sizes.values()), BYTES[spread.gathered], BYTES[spread.reduced]
        parts["gathered units"] = gathered * (2 * largest if spread.reshard else sum(sizes.values()))
        parts["gradient of one unit"] = (gathered + reduced) * largest
        if spread.gathered != "fp32":
            scale[plan_step.WEIGHT_CASTS] = 0.0  # weights arrive in the precision of the products
    return {name: round(value) for name, value in parts.items() if value} | life.peak(scale)


# --- communication and time -------------------------------------------------------------------------------------------


def communicated(cfg: Config, model: SelfDistillation, calls: Mapping[str, int], request: Request) -> dict[str, float]:
    """Bytes that each GPU sends per step. `calls`: forward calls of each unit in one micro-batch, Life.calls."""
    if request.sharding == "none" or request.gpus == 1:
        return {}
    ring, accumulate = (request.gpus - 1) / request.gpus, int(cfg["trainer"]["accumulate"])
    of_targets = sum(vector_bytes(objective, model) for objective in plan_step.objectives(model).values())
    vectors = 2 * ring * accumulate * of_targets
    if request.sharding == "ddp":
        trained = plan_step.count(model.student, trained_only=True)
        return {"all-reduce of gradients": 2 * ring * STATE_BYTES * trained, "vectors of K": vectors}
    spread, sizes = Spread.of(cfg), plan_step.unit_sizes(model)

    def called(side: str) -> float:
        return ring * accumulate * sum(calls.get(u, 0) * n for u, n in sizes.items() if u.startswith(f"{side}."))

    gathered = BYTES[spread.gathered]
    sent = {
        "all-gather forward": gathered * called("student"),
        "all-gather backward": gathered * called("student") * spread.reshard,
        "all-gather of the EMA teacher": gathered * called("teacher"),
        "all-gather of the frozen teacher": gathered * called("frozen") * cfg["da3"].get("use_fsdp", False),
        "reduce-scatter of gradients": BYTES[spread.reduced] * called("student"),
        "vectors of K": vectors,
    }
    return {name: value for name, value in sent.items() if value}


def vector_bytes(objective: Any, model: SelfDistillation) -> int:
    """Of the vectors of K that the targets of one micro-batch sum over ranks."""
    targets = getattr(objective, "targets", None)
    if targets is None:
        return 0
    network: Any = model.student[getattr(objective, "head", BANK)]
    prototypes = network.last_layer.weight_g if hasattr(network, "last_layer") else network.weight
    sums = 1 if isinstance(targets, Centering) else int(targets.iterations)
    return STATE_BYTES * len(prototypes) * sums


def step_seconds(
    cfg: Config, flops: plan_step.Flops, communication: Mapping[str, float], request: Request, slices: int
) -> dict[str, float]:
    """Of one step: compute, communication, what of it is not hidden, and their sum."""
    gpu, micro_batches = GPUS[request.gpu], slices // request.gpus
    peak = {"fp32": gpu.fp32, "bf16": gpu.half, "fp16": gpu.half}
    own = flops.algorithm + flops.recomputed - flops.frozen
    work = own / peak[cfg["trainer"]["precision"]] + flops.frozen / peak[cfg["da3"].get("precision", "fp32")]
    compute = micro_batches * work / request.utilisation
    bandwidth = gpu.nvlink if request.gpus <= NODE else gpu.network
    times = {name: sent / bandwidth for name, sent in communication.items()}
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
    """Of all runs. Hours of one run are on the clock."""
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


# --- output -----------------------------------------------------------------------------------------------------------


def gigabytes(size: float) -> str:
    return f"{size / GB:.2f}" if size >= GB / 10 or not size else f"{size / GB:.2g}"


def tables(plan: Plan) -> list[Table]:
    return [parameter_table(plan), memory_table(plan), speed_table(plan)]


def parameter_table(plan: Plan) -> Table:
    table = Table("network", "parameters", title="Parameters")
    for name, number in plan.parameters.items():
        table.add_row(name, f"{number:,}")
    return table


def memory_table(plan: Plan) -> Table:
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
    request, study_, seconds = plan.request, plan.study, plan.seconds
    gpu = GPUS[request.gpu]
    table = Table("", "", title="Speed and cost", show_header=False)
    table.add_row("GFLOP per image", f"{plan.flops_per_image / 1e9:,.5g}")
    if plan.recomputed_flops_per_image:
        table.add_row("  computed again", f"{plan.recomputed_flops_per_image / 1e9:,.5g}")
    if plan.frozen_flops_per_image:
        table.add_row("  of the frozen teacher", f"{plan.frozen_flops_per_image / 1e9:,.5g}")
    peak = gpu.fp32 if plan.precision == "fp32" else gpu.half
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("overrides", nargs="*", help="of dinoswap-train")
    parser.add_argument("--gpu", default="h100", help=f"{', '.join(GPUS)} (default: h100)")
    parser.add_argument("--gpus", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--sharding", help=f"{', '.join(SHARDINGS)} (default: the group `distributed`)")
    parser.add_argument("--utilisation", type=float, help="share of the peak (default: what published runs reached)")
    parser.add_argument("--price", type=float, help="of one GPU hour, in any currency")
    parser.add_argument("--runs", type=int, default=1, help="runs of the study (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the plan for machines; - for standard output alone")
    arguments = parser.parse_intermixed_args(argv)
    try:
        plan = make_plan(
            arguments.overrides,
            gpu=arguments.gpu,
            gpus=arguments.gpus,
            sharding=arguments.sharding,
            utilisation=arguments.utilisation,
            runs=arguments.runs,
            price=arguments.price,
        )
        text = json.dumps(asdict(plan) | {"memory_bytes": plan.memory_bytes}, indent=2) + "\n"
        if arguments.json == Path("-"):
            print(text, end="")
            return 0
        if arguments.json:
            write_atomically(arguments.json, text)
    except ConfigError as error:
        print(f"plan: {error}", file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        print(f"plan: --json {arguments.json}: {error}; give a file in a folder that exists", file=sys.stderr)
        return EXIT_USAGE
    Console(width=None if sys.stdout.isatty() else 140).print(*tables(plan))
    return 0


if __name__ == "__main__":
    sys.exit(main())
