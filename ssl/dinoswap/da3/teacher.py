"""Builds a frozen teacher from its settings."""

import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from torch import nn

from dinoswap.da3 import dinov2, native, package, timm
from dinoswap.da3.protocol import Teacher, TeacherSettings

BACKENDS = {"native": native.build, "package": package.build, "dinov2": dinov2.build, "timm": timm.build}

_log = logging.getLogger(__name__)


def build_teacher(settings: TeacherSettings) -> Teacher:
    """Returns the teacher, in evaluation mode and without gradients. Raises ValueError for what does not fit."""
    if settings.backend not in BACKENDS:
        raise ValueError(f"backend={settings.backend}: use one of {', '.join(BACKENDS)}")
    return BACKENDS[settings.backend](settings).requires_grad_(False).eval()


def build_da3_backbone(da3_cfg: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """Returns the frozen teacher of a section `da3`, and the width of its tokens.

    The model maps images [N, 3, H, W] in units of its `std` around its `mean` (ImageNet's for DA3 and DINOv2), H and W
    multiples of its `patch_size`, to tokens [N, P, embed_dim]. Each image is a scene of its own, so its tokens do not
    depend on the others. Of `da3_cfg` the keys of `TeacherSettings` are read, and `embed_dim`, which the teacher must
    have unless it is None. Logs licence and origin as a warning. Raises ValueError for what does not fit.
    """
    known = [field.name for field in fields(TeacherSettings)]
    teacher = build_teacher(TeacherSettings(**{name: da3_cfg[name] for name in known if name in da3_cfg}))
    check_width(teacher, da3_cfg.get("embed_dim"))
    _log.warning("%s", teacher.notice)
    return teacher, teacher.embed_dim


def check_width(teacher: Teacher, embed_dim: int | None) -> None:
    """Raises ValueError where `embed_dim` is given and is not the width of the teacher's tokens."""
    if embed_dim not in (None, teacher.embed_dim):
        raise ValueError(
            f"embed_dim={embed_dim}: the tokens of this teacher ({teacher.identity}) have {teacher.embed_dim} "
            f"channels; set da3.embed_dim={teacher.embed_dim}, or null for whatever the teacher has"
        )
