"""The networks of a run and one batch on torch's meta device, so that ViT-g takes no memory."""

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from dinoswap.build import build_model, build_schedules, objective_schedules
from dinoswap.config.schema import ConfigError, construct_option, option_class
from dinoswap.config.sections import begun_elsewhere, loading_settings
from dinoswap.config.streams import stream_seeds
from dinoswap.model import SelfDistillation
from dinoswap.objectives.base import Objective
from dinoswap.optim.schedules import Schedules
from dinoswap.resolution.base import StepSizes
from dinoswap.teacher.depth_anything.source import locate
from dinoswap.teacher.native import NativeTeacher
from dinoswap.values import Batch, Hyper
from planning.values import Config

META = torch.device("meta")


def meta_model(cfg: Config) -> SelfDistillation:
    """Returns the model of a config without memory for its weights. Raises ConfigError for a config that no run can
    have."""
    section = cfg["da3"]
    if not section["enabled"] or option_class(section["teacher"], "da3.teacher") is NativeTeacher:
        with META:
            return build_model(_without_weights(begun_elsewhere(cfg))).to(META)
    return build_model(begun_elsewhere(cfg)).to(META)  # other packages' networks are not all made for the meta device


def _without_weights(cfg: Config) -> Config:
    """Returns the config with a native DA3 teacher given by the variant that its file says, so that no weight is read.
    Raises ConfigError for a file of no released variant."""
    section = cfg["da3"]
    if not (section["enabled"] and section["ckpt_path"]):
        return cfg
    teacher = section["teacher"]
    try:
        names = locate(section["ckpt_path"], teacher["variant"], teacher["num_heads"]).names
    except ValueError as error:
        raise ConfigError(f"da3.{error}") from error
    if not names:
        raise ConfigError(
            f"da3.ckpt_path={section['ckpt_path']}: no released variant, so it cannot be planned without its weights; "
            "set da3.ckpt_path= and the da3.teacher.variant that comes nearest"
        )
    return {**cfg, "da3": {**section, "ckpt_path": "", "teacher": {**teacher, "variant": names[0], "num_heads": None}}}


def with_checkpointing(model: SelfDistillation, enabled: bool) -> SelfDistillation:
    """Returns a copy of the model with activation checkpointing of its blocks on or off."""
    switched = copy.deepcopy(model)
    for network in (switched.student, switched.teacher):
        cast(Any, network["backbone"]).activation_checkpointing = enabled
    return switched


def meta_batch(cfg: Config, model: SelfDistillation, slices: int, sizes: StepSizes) -> Batch:
    """Returns one of the `slices` parts (GPUs times micro-batches) of step 0, normalised, on the meta device, with
    crops of these sizes. The masks are drawn; masked tokens and crops are the mean over the slices, rounded up."""
    loading, crops, plan = loading_settings(cfg), cfg["crops"], model.plan
    images, size = loading.batch_size // slices, sizes.global_size
    draw = construct_option(cfg["masking"], "masking").sampler(
        crop_size=(size, size),
        patch_size=cfg["model"]["patch_size"],
        crops=plan.masked_crops,
        images=loading.batch_size,
        seed=stream_seeds(cfg).masks,
    )
    mask = torch.from_numpy(draw(0))  # [P, images of all slices, N]

    def pixels(number: int, side: int) -> Tensor:
        return torch.empty(number, images, 3, side, side, device=META)

    return Batch(
        global_crops=pixels(2, size),
        local_crops=pixels(crops["local_number"], sizes.local_size if crops["local_number"] else 0),
        extra_crops=pixels(plan.extra_crops, size if plan.extra_crops else 0),
        mask=torch.empty(mask.shape[0], images, mask.shape[2], dtype=torch.bool, device=META),
        masked_indices=torch.empty(math.ceil(int(mask.sum()) / slices), dtype=torch.int64, device=META),
        masked_crops=torch.empty(math.ceil(int(mask.any(-1).sum()) / slices), dtype=torch.int64, device=META),
        indices=torch.empty(images, dtype=torch.int64, device=META),
        clean_crops={width: pixels(plan.masked_crops, width) for width in model.clean_sizes(size)},
    )


def final_hyper(cfg: Config, model: SelfDistillation) -> Hyper:
    """Returns the values of all schedules from their end on, those of the objectives too. Raises ConfigError for a
    schedule that no run can have."""
    own = objective_schedules(model, cfg["trainer"]["max_steps"])
    return Schedules({**build_schedules(cfg), **own}).final()


def objectives(model: SelfDistillation) -> dict[str, Objective]:
    """Returns the objectives of a model by name."""
    return {name: cast(Objective, objective) for name, objective in model.objectives.items()}


def frozen_networks(model: SelfDistillation) -> dict[str, nn.ModuleList]:
    """Returns the networks that are never trained, by objective. The EMA teacher is not among them."""
    return {
        name: nn.ModuleList(objective.frozen_models())
        for name, objective in objectives(model).items()
        if objective.frozen_models()
    }


def shared_networks(model: SelfDistillation) -> list[str]:
    """Returns the names of the objectives whose frozen networks are sharded where the student is."""
    return [name for name, objective in objectives(model).items() if objective.inference_only_models()]


def count(module: nn.Module, trained_only: bool = False) -> int:
    """Returns the number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trained_only)


def prototypes(network: nn.Module) -> int:
    """Returns the number of prototypes of a head or a prototype bank; 0 for any other network."""
    layer = cast(nn.Module, getattr(network, "last_layer", network))
    return next(
        (len(parameter) for name, parameter in layer.named_parameters(recurse=False) if name in ("weight", "weight_v")),
        0,
    )


def batch_bytes(batch: Batch) -> int:
    """Returns the bytes of all tensors of a batch."""
    return sum(tensor.numel() * tensor.element_size() for tensor in batch.tensors().values())


def units(model: SelfDistillation) -> dict[str, nn.Module]:
    """Returns what is gathered at a time where weights are sharded, by name: each block, and each network without its
    blocks."""
    networks = {f"student.{name}": network for name, network in model.student.items()}
    networks |= {f"teacher.{name}": network for name, network in model.teacher.items()}
    for name, frozen in frozen_networks(model).items():
        networks |= {f"frozen.{name}.{index}": network for index, network in enumerate(frozen)}
    modules: dict[str, nn.Module] = {}
    for name, network in networks.items():
        modules[name] = network
        for index, block in enumerate(getattr(network, "blocks", ())):
            modules[f"{name}.blocks.{index}"] = block
    return modules


def kept_units(model: SelfDistillation) -> list[str]:
    """Returns the names of the units that stay gathered for a step: networks without blocks, but for frozen ones."""
    sides = {"student": model.student, "teacher": model.teacher}
    networks = {f"{side}.{name}": network for side, own in sides.items() for name, network in own.items()}
    return [name for name, network in networks.items() if not hasattr(network, "blocks")]


def unit_sizes(model: SelfDistillation) -> dict[str, int]:
    """Returns the number of parameters of each unit."""
    sizes = {name: count(module) for name, module in units(model).items()}
    inner = {name: sum(size for other, size in sizes.items() if other.startswith(f"{name}.blocks.")) for name in sizes}
    return {name: size - inner[name] for name, size in sizes.items()}
