"""From a resolved configuration to the objects of a run. The only module that imports across axes.

Order matters: everything that can be refused is built before data is opened, and data before the output folder is touched.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from dinoswap.configuration import ConfigError, construct, construct_option, nearest
from dinoswap.data.images import Images
from dinoswap.data.steps import StepDataset
from dinoswap.distributed import rank, world_size
from dinoswap.model import ForwardPlan, SelfDistillation
from dinoswap.nn.projection_head import ProjectionHead
from dinoswap.nn.vit import VisionTransformer, vit
from dinoswap.objectives.base import Objective
from dinoswap.optim.clip import ClipPerModule
from dinoswap.optim.param_groups import parameter_groups
from dinoswap.rng import seed_torch
from dinoswap.schedules import ScheduleSettings, build_schedules
from dinoswap.trainer import Trainer, TrainerSettings, resolve_device
from dinoswap.values import Batch

Config = Mapping[str, Any]


def build_backbone(cfg: Config) -> VisionTransformer:
    """The backbone alone; weights are drawn from torch's default generator."""
    return construct(vit, cfg["model"], "model", img_size=cfg["crops"]["global_size"])


def build_student(cfg: Config, head_names: Sequence[str]) -> dict[str, nn.Module]:
    """Backbone and heads by name. Each network's initial weights are keyed by its name, so that another head, or none,
    changes no other network's."""
    seed = int(cfg["seed"])
    seed_torch(seed, "init/backbone")
    backbone = build_backbone(cfg)
    student: dict[str, nn.Module] = {"backbone": backbone}
    for name in head_names:
        if name not in cfg["heads"]:
            raise ConfigError(f"heads.{name}: an objective names this head and there is none.{nearest(name, cfg['heads'])}")
        seed_torch(seed, f"init/{name}")
        student[name] = construct(ProjectionHead, cfg["heads"][name], f"heads.{name}", in_dim=backbone.embed_dim)
    return student


def build_objectives(cfg: Config) -> dict[str, Objective]:
    """The configured objectives by name. An empty section does not exist."""
    objectives = {}
    for name, section in cfg["objectives"].items():
        if not section:
            continue
        key = f"objectives.{name}"
        parts: dict[str, Any] = {}
        if "targets" in section:
            parts["targets"] = _build_targets(cfg, section, f"{key}.targets")
        if "reduction" in section:
            parts["reduction"] = construct_option(section["reduction"], f"{key}.reduction")
        own = {k: v for k, v in section.items() if k not in parts}
        objectives[name] = cast(Objective, construct_option(own, key, **parts))
    if not objectives:
        raise ConfigError("objectives: none is left, so there is nothing to train; keep at least objectives.dino")
    return objectives


def _build_targets(cfg: Config, section: Config, key: str) -> nn.Module:
    """Target normalisers that hold a centre need to know how many prototypes their head has."""
    head = cfg["heads"].get(section.get("head"), {})
    target = section["targets"]
    given = {"prototypes": head.get("prototypes")} if target["_target_"].endswith(".Centering") else {}
    return cast(nn.Module, construct_option(target, key, **given))


def build_model(cfg: Config) -> SelfDistillation:
    plan = cast(ForwardPlan, construct_option(cfg["forward"], "forward"))
    objectives = build_objectives(cfg)
    heads = dict.fromkeys(objective.head for objective in objectives.values() if hasattr(objective, "head"))
    return SelfDistillation(build_student(cfg, list(heads)), objectives, plan)


def build_trainer(
    cfg: Config, settings: TrainerSettings, save_replay: Callable[[int, Sequence[Batch]], Path]
) -> Trainer:
    """The trainer on its device, without data."""
    device = resolve_device(settings.device)
    schedule = construct(ScheduleSettings, cfg["schedule"], "schedule")
    schedules = build_schedules(schedule, total=settings.max_steps, batch_size=cfg["data"]["batch_size"])
    model = build_model(cfg).to(device)
    groups = parameter_groups(
        model.student,
        construct_option(cfg["layer_decay"], "layer_decay"),
        construct_option(cfg["weight_decay"], "weight_decay"),
    )
    options = construct(OptimizerSettings, cfg["optimizer"], "optimizer")
    optimizer = torch.optim.AdamW(groups, betas=options.betas, eps=options.eps, weight_decay=0.0, fused=True)
    return Trainer(
        model,
        optimizer,
        schedules,
        ClipPerModule(options.clip_grad),
        precision=settings.precision,
        seed=int(cfg["seed"]),
        device=device,
        max_nonfinite_steps=settings.max_nonfinite_steps,
        save_replay=save_replay,
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """AdamW."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_grad: float | None = 3.0

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas={list(self.betas)}: both must lie in [0, 1)")
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps}: must be above 0")
