"""Builds model, trainer and evaluator from a resolved config. The only module that imports across groups."""

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dinoswap.config.facts import build_source as build_source  # for callers: there it can be had without torch
from dinoswap.config.facts import weight_facts
from dinoswap.config.measured import build_metrics
from dinoswap.config.schema import ConfigError, construct, construct_option, option_class, require_section
from dinoswap.config.sections import (
    TrainerSettings,
    build_resolution,
    build_start,
    evaluation_settings,
    gathered_dtype,
    loading_settings,
    step_sizes,
    stream_dtype,
)
from dinoswap.config.streams import stream_seeds
from dinoswap.da3.enabled import check_width
from dinoswap.data.images import Images, ImageSource
from dinoswap.data.order import Order
from dinoswap.data.steps import Pipeline, StepDataset
from dinoswap.distributed import Networks, Parallel, rank, require_same, together, world_size
from dinoswap.distributed.environment import launched_ranks
from dinoswap.evaluation.evaluator import Evaluator
from dinoswap.model import ForwardPlan, SelfDistillation, shapes_of
from dinoswap.nn.compiled import set_compiled
from dinoswap.nn.projection_head import ProjectionHead
from dinoswap.nn.vit import VisionTransformer, configured_vit
from dinoswap.objectives.base import Objective
from dinoswap.optim.clip import Clip
from dinoswap.optim.param_groups import parameter_groups
from dinoswap.optim.schedules import Schedule, Schedules
from dinoswap.optim.settings import OptimizerSettings
from dinoswap.resolution.base import StepSizes
from dinoswap.rng import seed_torch
from dinoswap.schedule.base import SchedulePlan
from dinoswap.teacher.base import Teacher
from dinoswap.trainer import Trainer, prepared_device

Config = Mapping[str, Any]

_log = logging.getLogger(__name__)

LEFT_BY_OTHERS = {"targets", "reduction", "prototypes"}
"""Keys that groups and recipes write into an objective's section, whether or not there is such an objective."""


@contextlib.contextmanager
def as_config_error() -> Iterator[None]:
    """Raises the ValueError of a message with a full key as ConfigError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def initial_backbone(cfg: Config) -> VisionTransformer:
    """Returns the backbone with the initial weights of this run's seed."""
    seed_torch(stream_seeds(cfg).init, "init/backbone")
    position = construct_option(cfg["position"], "position")
    return construct(configured_vit, cfg["model"], "model", img_size=cfg["crops"]["global_size"], position=position)


def build_student(cfg: Config, objectives: Mapping[str, Objective]) -> dict[str, nn.Module]:
    """Returns the student's networks by name: the backbone, the heads that the objectives use, and the objectives' own
    networks. The initial weights of each are drawn from a generator keyed by its name, so that no network changes the
    weights of another. Raises ConfigError where an objective names a head that is not configured."""
    seed = stream_seeds(cfg).init
    backbone = initial_backbone(cfg)
    student: dict[str, nn.Module] = {"backbone": backbone}
    for name in dict.fromkeys(str(objective.head) for objective in objectives.values() if hasattr(objective, "head")):
        if name not in cfg["heads"]:
            raise ConfigError(f"heads.{name}: an objective names this head; there are {', '.join(cfg['heads'])}")
        seed_torch(seed, f"init/{name}")
        student[name] = construct(ProjectionHead, cfg["heads"][name], f"heads.{name}", in_dim=backbone.embed_dim)
    for objective in objectives.values():
        for name, build in objective.networks().items():
            seed_torch(seed, f"init/{name}")
            student[name] = build(backbone.embed_dim)
    return student


def build_objectives(cfg: Config) -> dict[str, Objective]:
    """Returns the configured objectives by name. A section is skipped where it is empty or has no keys but those in
    `LEFT_BY_OTHERS`. Raises ConfigError where no objective is left."""
    objectives = {}
    for name, section in cfg["objectives"].items():
        key = f"objectives.{name}"
        require_section(section or {}, key)
        if not section or set(section) <= LEFT_BY_OTHERS:
            continue
        parts: dict[str, Any] = {}
        if "targets" in section:
            parts["targets"] = _build_targets(cfg, section, f"{key}.targets")
        if "reduction" in section:
            parts["reduction"] = construct_option(section["reduction"], f"{key}.reduction")
        arguments = {key: value for key, value in section.items() if key not in parts}
        objectives[name] = cast(Objective, construct_option(arguments, key, **parts))
    if cfg["da3"]["enabled"]:
        objectives["da3"] = build_da3(cfg)
    if not objectives:
        raise ConfigError("objectives: none is left, so there is nothing to train; keep at least objectives.dino")
    return objectives


def build_da3(cfg: Config) -> Objective:
    """Returns the objective of the group `da3`, which builds its frozen teacher once its other settings are checked. It
    gets the mean and std that crops are normalised by."""
    section = {name: value for name, value in cfg["da3"].items() if name not in ("enabled", "reduction", "teacher")}
    reduction, loading = construct_option(cfg["da3"]["reduction"], "da3.reduction"), loading_settings(cfg)
    teacher = partial(construct_option, cfg["da3"]["teacher"], "da3.teacher")
    built = construct_option(section, "da3", reduction=reduction, teacher=teacher, mean=loading.mean, std=loading.std)
    return cast(Objective, built)


def build_da3_backbone(da3_cfg: Config) -> tuple[Teacher, int]:
    """Returns the frozen teacher of a section `da3`, and the width of its tokens.

    It maps images [N, 3, H, W] in units of its `std` around its `mean` (ImageNet's for DA3 and DINOv2), H and W
    multiples of its `patch_size`, to tokens [N, P, embed_dim]. Each image is a scene of its own, so its tokens do not
    depend on the others. Of `da3_cfg` the keys `teacher` and `ckpt_path` are read, and `embed_dim`, which the teacher
    must have unless it is None. Logs licence and origin as a warning. Raises ValueError for what does not fit.
    """
    teacher = cast(Teacher, construct_option(da3_cfg["teacher"], "da3.teacher", ckpt_path=da3_cfg["ckpt_path"]))
    check_width(teacher, da3_cfg.get("embed_dim"))
    _log.warning("%s", teacher.notice)
    return teacher.requires_grad_(False).eval(), teacher.embed_dim


def _build_targets(cfg: Config, section: Config, key: str) -> nn.Module:
    """Returns the normaliser of teacher logits. One that takes `prototypes`, as it holds a centre, gets the number of
    its objective or of the objective's head."""
    option = option_class(section["targets"], key)
    takes_prototypes = "prototypes" in inspect.signature(option).parameters
    arguments = (
        {"prototypes": cfg["heads"].get(section.get("head"), section).get("prototypes")} if takes_prototypes else {}
    )
    return cast(nn.Module, construct(option, section["targets"], key, **arguments))


def build_model(cfg: Config) -> SelfDistillation:
    """Returns student, teacher and objectives as one module, on the CPU. Raises ConfigError for what they cannot begin
    with, see the group `start`."""
    plan = cast(ForwardPlan, construct_option(cfg["forward"], "forward"))
    start = build_start(cfg)
    with as_config_error():
        start.require(cfg)
    objectives = build_objectives(cfg)
    student = build_student(cfg, objectives)
    with as_config_error():
        return SelfDistillation(student, objectives, plan, teacher_dropout=cfg["teacher_dropout"], start=start)


def build_parallel(cfg: Config) -> Parallel | None:
    """Returns the option of the `distributed` group, None where there is none. Raises ConfigError where several
    processes were started without one."""
    ranks = launched_ranks()
    if cfg["distributed"]:
        return cast(Parallel, construct_option(cfg["distributed"], "distributed"))
    if ranks > 1:
        raise ConfigError(
            f"distributed=none: {ranks} processes were started for this run (WORLD_SIZE={ranks}); choose "
            "distributed=ddp or fsdp2, or start one"
        )
    return None


def prepare_for_distributed_training(
    cfg: Config, model: SelfDistillation, parallel: Parallel | None, device: torch.device
) -> nn.Module:
    """Replicates or shards the model over the ranks and returns the module to call instead of it; for a single process
    the model itself."""
    if parallel is None or world_size() == 1:
        return model
    objectives = [cast(Objective, objective) for objective in model.objectives.values()]
    checked_before = any(objective.checks_first_batch for objective in objectives)
    networks = Networks(
        trained=[*model.student.values()],
        averaged=[*model.teacher.values()],
        frozen=[network for objective in objectives for network in objective.inference_only_models()],
        products=gathered_dtype(cfg),
        stream=stream_dtype(cfg),
        one_backward=cfg["trainer"]["accumulate"] == 1 and not checked_before,
    )
    return parallel.prepare(model, networks, device)


def build_trainer(cfg: Config) -> Trainer:
    """Returns the trainer: model, optimiser and schedules on their device, without data. Every rank calls it, and where
    one of them fails all raise. Raises ConfigError for settings that cannot be built."""
    settings, device, schedules, optimizer = together(lambda: trainer_settings(cfg))
    require_same({"the kind of their device": device.type}, "give each a GPU, or set trainer.device=cpu")
    if world_size() > 1:  # before shapes, which files may decide, have to agree
        require_same(together(lambda: weight_facts(cfg)), "each has to read the same weights")
    model, parallel = together(lambda: (build_model(cfg).to(device), build_parallel(cfg)))
    if settings.compile:
        for network in (model.student, model.teacher):
            set_compiled(network, settings.compile)
    shapes = shapes_of(model) if world_size() > 1 else None
    called = prepare_for_distributed_training(cfg, model, parallel, device)

    def with_model() -> Trainer:
        own = {
            **objective_schedules(model, settings.max_steps),
            **build_start(cfg).schedules(schedules["lr"], settings.max_steps),
        }
        layer_decay = construct_option(cfg["layer_decay"], "layer_decay")
        weight_decay = construct_option(cfg["weight_decay"], "weight_decay")
        groups = parameter_groups(model.student, layer_decay, weight_decay)
        return Trainer(
            model,
            torch.optim.AdamW(groups, betas=optimizer.betas, eps=optimizer.eps, weight_decay=0.0, fused=True),
            Schedules({**schedules, **own}),
            Clip(optimizer.clip_grad, optimizer.clip),
            precision=settings.precision,
            seed=stream_seeds(cfg).dropout,
            device=device,
            max_nonfinite_steps=settings.max_nonfinite_steps,
            called=called,
            shapes=shapes,
            cuda_graphs=settings.compile == "cudagraphs",
        )

    return together(with_model)


def trainer_settings(cfg: Config) -> tuple[TrainerSettings, torch.device, Schedules, OptimizerSettings]:
    """Returns the settings, the device, the schedules and the optimiser's settings, all checked before a network is
    built. Raises ConfigError where one of them is wrong."""
    settings = construct(TrainerSettings, cfg["trainer"], "trainer")
    schedules = build_schedules(cfg)
    optimizer = construct(OptimizerSettings, cfg["optimizer"], "optimizer")
    with as_config_error():
        device = prepared_device(settings)
    if settings.compile == "cudagraphs" and device.type != "cuda":
        raise ConfigError(
            f"trainer.compile=cudagraphs: a graph is replayed by a GPU, and trainer.device={settings.device} is the "
            f"{device.type.upper()} here; use trainer.compile=true, or false"
        )
    return settings, device, schedules, optimizer


def build_schedules(cfg: Config) -> Schedules:
    """Returns the schedules of the group `schedule` over the run. Raises ConfigError where one does not fit into it."""
    plan = cast(SchedulePlan, construct_option(cfg["schedule"], "schedule"))
    with as_config_error():
        return plan.schedules(cfg["trainer"]["max_steps"], batch_size=cfg["data"]["batch_size"])


def objective_schedules(model: SelfDistillation, total: int) -> dict[str, Schedule]:
    """Returns the objectives' own schedules over a run of `total` steps, by name. Raises ConfigError where one does not
    fit into the run."""
    with as_config_error():
        own = [cast(Objective, objective).schedules(total) for objective in model.objectives.values()]
    return {name: schedule for schedules in own for name, schedule in schedules.items()}


def build_pipeline(cfg: Config, model: SelfDistillation) -> Callable[[Images], StepDataset]:
    """Returns a function from images to the data set of training steps. Augmentation and masking are built and checked
    before any image is read, for all sizes of crops. Raises ConfigError where one of them is wrong."""
    batch_size, seeds = loading_settings(cfg).batch_size, stream_seeds(cfg)
    pipelines = [_pipeline_of(cfg, model, sizes) for sizes in step_sizes(cfg)]
    choose = partial(build_resolution(cfg).index, seeds.order)

    def dataset_of(images: Images) -> StepDataset:
        dataset = StepDataset(
            images=images,
            order=Order(images.blocks, seeds.order),
            pipelines=pipelines,
            choose=choose,
            seed=seeds.augmentation,
            batch_size=batch_size,
            rank=rank(),
            world_size=world_size(),
            accumulate=cfg["trainer"]["accumulate"],
        )
        check_images(model, batch_size // dataset.accumulate)
        return dataset

    return dataset_of


def _pipeline_of(cfg: Config, model: SelfDistillation, sizes: StepSizes) -> Pipeline:
    """Returns augmentation and masks of the steps that have these sizes of crops."""
    size = sizes.global_size
    with as_config_error():
        clean_sizes = model.clean_sizes(size)
    augmentation = construct_option(
        cfg["augmentation"],
        "augmentation",
        global_crops_size=size,
        local_crops_size=sizes.local_size,
        local_crops_number=cfg["crops"]["local_number"],
        extra_crops=model.plan.extra_crops,
        clean_sizes=clean_sizes,
    )
    masks = construct_option(cfg["masking"], "masking").sampler(
        crop_size=(size, size),
        patch_size=cfg["model"]["patch_size"],
        crops=model.plan.masked_crops,
        images=loading_settings(cfg).batch_size,
        seed=stream_seeds(cfg).masks,
    )
    takes_part = "part" in inspect.signature(masks).parameters
    return Pipeline(augmentation, masks if takes_part else partial(_cut, masks), sizes.share)


def _cut(masks: Callable[[int], NDArray[np.bool_]], step: int, part: slice) -> NDArray[np.bool_]:
    """Returns the masks of a part of the step's images, from those of all."""
    return masks(step)[:, part]


def check_images(model: SelfDistillation, images: int) -> None:
    """Raises ConfigError where an objective is not defined for micro-batches of `images` on all ranks."""
    with as_config_error():
        for objective in model.objectives.values():
            cast(Objective, objective).check_images(images // world_size(), images)


def build_evaluator(cfg: Config, source: ImageSource, device: torch.device, autocast: torch.dtype | None) -> Evaluator:
    """Returns the evaluator of `source`, which computes on `device` in the type `autocast`. Raises
    ConfigError for annotated images that a metric cannot be judged on."""
    loading = loading_settings(cfg)
    evaluator = Evaluator(
        evaluation_settings(cfg),
        build_metrics(cfg),
        source.train(),
        source.test(),
        size=cfg["crops"]["global_size"],
        mean=torch.tensor(loading.mean, device=device),
        std=torch.tensor(loading.std, device=device),
        device=device,
        autocast=autocast,
        workers=loading.workers,
    )
    with as_config_error():
        evaluator.prepare(cfg["model"]["patch_size"])
    return evaluator


def frozen_identity(model: SelfDistillation) -> dict[str, str]:
    """Returns what decides a result and is not in the config, by key, such as `da3.teacher`, the weights of the frozen
    teacher."""
    identities = {name: cast(Objective, objective).identity() for name, objective in model.objectives.items()}
    return {f"{name}.{key}": value for name, entries in identities.items() for key, value in entries.items()}
