"""Whether a run can be built with a config's values: asked of every cell of a study before its first run begins.

All is built as in a run, but on torch's meta device, where weights take neither time nor memory. No file of weights or
images is read: it may be where the runs are and not here.
"""

import logging

import torch

from dinoswap.build import build_model, build_pipeline, build_schedules, check_images, objective_schedules
from dinoswap.config.sections import Config, begun_elsewhere, loading_settings
from dinoswap.teacher.stand_in import StandIn

_log = logging.getLogger(__name__)


def require_buildable(cfg: Config) -> None:
    """Raises ConfigError for a value that the constructor of an objective, a network, a schedule, the augmentation or
    the masks refuses. `cfg` has passed `settings.check`. A network of another package that the meta device cannot hold
    is logged: what its run refuses is known when it begins."""
    cfg = _with_any_teacher(begun_elsewhere(cfg))
    build_schedules(cfg)
    try:
        with torch.device("meta"):
            model = build_model(cfg)
    except RuntimeError as error:
        _log.warning("not checked before its run begins: %s", " ".join(str(error).split()))
        return
    objective_schedules(model, cfg["trainer"]["max_steps"])
    build_pipeline(cfg, model)
    check_images(model, loading_settings(cfg).batch_size // cfg["trainer"]["accumulate"])


def _with_any_teacher(cfg: Config) -> Config:
    """Returns the config with a frozen teacher of no weights, whose width and patches are those that the settings of
    `da3` expect."""
    section = cfg["da3"]
    if not section["enabled"]:
        return cfg
    teacher = {
        "_target_": f"{StandIn.__module__}.{StandIn.__name__}",
        "embed_dim": section.get("embed_dim") or 1,
        "patch_size": max(section.get("input_size") or 1, 1),
    }
    return {**cfg, "da3": {**section, "teacher": teacher}}
