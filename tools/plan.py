"""What a run needs before it is started: memory per GPU, communication, images per second, GPU hours, cost of a study.

    python tools/plan.py recipe=vitl16_short distributed=ddp --gpus 32 --gpu h100 --runs 48 --price 2.5
    python tools/plan.py recipe=vitg14 trainer.precision=bf16 distributed=fsdp2 --gpus 96 --gpu a100-40
    python tools/plan.py preset=legacy recipe=vitb16 da3=enabled --gpus 8 --gpu a100 --json plan.json
    python tools/plan.py distributed=ddp recipe=vitb16 evaluation.images=1300000 --gpus 8 --evaluated 1281167 50000 1000

The words are overrides of `dinoswap-train`; everything follows from the config that they compose. Shapes alone are
used: no GPU, no data, no weights (tools/planning/step.py says how memory and FLOPs are found). GB are 10^9 bytes.

Where steps differ in the sizes of their crops (resolution=mixed), memory and communication are those of the largest
batch, FLOPs and time the mean over the steps. Weights of terms are those that their schedules end with.

Memory per GPU, at the moment of the step when most is live. Weights, gradients, AdamW's two moments and the EMA are
float32. `ddp`: all of them on every GPU, gradients in the buckets that travel. `fsdp2`: 1/n of each on every GPU, r/n
with r replicas; beside them two gathered units (a block, or what a backbone has besides: the one at work and the next),
the heads, which stay gathered for a step, and one whole gradient of a unit or head. A GPU's context, NCCL's buffers,
kernels' workspaces and fragmentation are not in it: a plan fits where a tenth is left. Checkpoints take memory of the
hosts: weights, moments and EMA once more, 1/n a GPU, r/n with r replicas.

Communication, bytes that each GPU sends per step, by rings over n GPUs. `ddp`: 2 (n - 1) / n of the gradients, once.
`fsdp2`: (n - 1) / n of each unit for each call, forward (student and teacher) and backward (student), and of each head
once, in distributed.param_dtype, and of gradients in distributed.reduce_dtype. With replicas these n are the GPUs of
one, and gradients go between replicas as with ddp. Sinkhorn and centring: their vectors of K.

Time. seconds = FLOPs / (peak x utilisation) + communication that is not hidden; FLOPs are those of the published
algorithm and, with checkpointing, what is computed again. All-reduces of ddp hide behind the backward pass (half of the
step), gathers and scatters of fsdp2 behind all of the step, vectors of K behind nothing; bandwidth is the vendor's: of
NVLink up to a node of 8, of a node's network cards beyond. fp32 is TF32 with trainer.matmul_precision=high. Loading and
checkpoints are not in it.

Evaluation at the end, with --evaluated: decoding by the workers, networks at the utilisation of training, families of
metrics of whole images in float32, at that utilisation too, by the most products that they may need. Families of dense
features, diagnostics and pictures are not in it, and hours and costs are of steps alone.

Utilisation defaults to what published runs reached by these FLOPs (results/reference/plan has each): 0.34 on A100
(DINOv2 ViT-L/16, ViT-L/14 and ViT-g/14), 0.18 on H100 (DINOv3 ViT-L/16), and that of the H100 on H200 and B200, for
which there is none. Smaller networks reach less.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from dinoswap.config.command_line import compose_run
from dinoswap.config.exit_codes import EXIT_USAGE
from dinoswap.config.schema import ConfigError
from dinoswap.config.sections import step_sizes
from dinoswap.config.settings import check, check_ranks
from dinoswap.files.writing import write_atomically
from dinoswap.model import SelfDistillation
from planning import networks, step
from planning.evaluation import evaluation_seconds
from planning.hardware import GPUS
from planning.memory import memory_parts, step_life
from planning.request import SHARDINGS, checked_request
from planning.speed import communicated, products, step_seconds, study
from planning.tables import tables
from planning.values import Plan


def make_plan(
    overrides: Sequence[str],
    *,
    gpu: str = "h100",
    gpus: int = 1,
    sharding: str | None = None,
    utilisation: float | None = None,
    runs: int = 1,
    price: float | None = None,
    evaluated: tuple[int, int, int] | None = None,
) -> Plan:
    """Returns the plan of a run, or of `runs` of them. `evaluated` are the numbers of training images, test images and
    classes of the data set that is evaluated on. Raises ConfigError for what cannot be run."""
    cfg, options = compose_run(overrides)
    distributed = options.get("distributed", "none")
    request = checked_request(distributed, gpu, gpus, sharding, utilisation, runs, price, evaluated)
    check(cfg)
    slices = gpus * cfg["trainer"]["accumulate"]
    images = cfg["data"]["batch_size"]
    if images % slices:
        raise ConfigError(
            f"data.batch_size={images}: {gpus} GPUs times trainer.accumulate={cfg['trainer']['accumulate']} cut it "
            f"into {slices} equal parts; try data.batch_size={max(round(images / slices), 1) * slices}, or other --gpus"
        )
    if cfg["distributed"] and gpus > 1:
        check_ranks(cfg, gpus)
    model = networks.meta_model(cfg)
    sizes, hyper = step_sizes(cfg), networks.final_hyper(cfg, model)
    batches = [networks.meta_batch(cfg, model, slices, size) for size in sizes]
    batch = max(batches, key=networks.batch_bytes)
    checkpointing = cfg["model"]["activation_checkpointing"]
    count = step.mean_flops(model, batches, [size.share for size in sizes], hyper, checkpointing)
    lives = {name: step_life(cfg, model, batch, hyper, checkpointing=name == "on") for name in ("off", "on")}
    life = lives["on" if checkpointing else "off"]
    communication = communicated(cfg, model, life.calls, request)
    seconds = step_seconds(cfg, count, communication, request, slices)
    return Plan(
        overrides=list(overrides),
        request=request,
        precision=products(cfg, cfg["trainer"]),
        checkpointing=checkpointing,
        images_per_step=images,
        images_per_gpu=batch.images,
        masked_tokens_per_gpu=len(batch.masked_indices),
        parameters=parameters(model),
        flops_per_image=count.algorithm / batch.images,
        recomputed_flops_per_image=count.recomputed / batch.images,
        frozen_flops_per_image=sum(count.frozen.values()) / batch.images,
        memory={name: memory_parts(cfg, model, batch, lifetime, request) for name, lifetime in lives.items()},
        largest_logits=life.most(step.LOGITS),
        communication=communication,
        seconds=seconds,
        study=study(cfg, seconds["step"], request),
        evaluation={} if evaluated is None else evaluation_seconds(cfg, model, request, evaluated),
    )


def parameters(model: SelfDistillation) -> dict[str, int]:
    """Returns the number of parameters by network. `teacher` is the EMA copy as a whole, `frozen` what is never
    trained."""
    own = {f"student {name}": networks.count(network) for name, network in model.student.items()}
    frozen = {
        f"frozen {name} teacher": networks.count(network) for name, network in networks.frozen_networks(model).items()
    }
    return {
        **own,
        "student": sum(own.values()),
        "trained": networks.count(model.student, trained_only=True),
        "EMA teacher": networks.count(model.teacher),
        **frozen,
    }


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
    parser.add_argument(
        "--evaluated",
        type=int,
        nargs=3,
        metavar=("TRAIN", "TEST", "CLASSES"),
        help="plan the final evaluation on a data set of so many images and classes",
    )
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
            evaluated=arguments.evaluated and tuple(arguments.evaluated),
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
