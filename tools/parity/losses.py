"""losses_dinov2*.npz: targets, and the three objectives with their gradients, run as training runs them.

The heads are identities, so that logits stand where the objectives expect tokens.
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import construct_option
from dinoswap.objectives.base import Context, Reduction
from dinoswap.objectives.dino import DINO
from dinoswap.objectives.ibot import IBOT
from dinoswap.objectives.koleo import koleo
from dinoswap.reduction.per_sample import PerSample
from dinoswap.targets.centering import Centering
from dinoswap.targets.sinkhorn import SinkhornKnopp
from dinoswap.values import Batch, Features, masked_positions
from parity.masks import WEIGHT, masks_weight
from parity.rows import FORWARD, Fixture, Row, Scenarios, compare, compare_gradient

NETWORKS = ("student", "teacher")


class Given(nn.Module):
    """Targets that are stored: the teacher's logits are not looked at."""

    def __init__(self, targets: Tensor) -> None:
        super().__init__()
        self.targets = targets

    def forward(self, logits: Tensor, temperature: float) -> Tensor:
        return self.targets


def scenarios(path: Path) -> Scenarios:
    file = Fixture(path)
    checks = {"dino": check_dino, "ibot": check_ibot, "koleo": check_koleo}
    named_checks: Scenarios = {}
    for name, check in checks.items():
        if file.below(f"{name}/"):
            named_checks[name] = partial(check, file)
    for name in ("dino", "ibot"):
        if f"{name}/centering/it0/teacher" in file:
            named_checks[f"{name}_centering"] = partial(check_centering, file, name)
    return named_checks


def context(
    student_cls: Tensor, local_cls: Tensor, student_patch: Tensor, mask: Tensor, hyper: dict[str, float]
) -> Context:
    """CLS logits [2, B, K] and [L, B, K], masked-patch logits [M, K], mask [P, B, N], of the student."""
    nothing = torch.empty(0, mask.shape[1], 3, 0, 0)
    batch = Batch(
        global_crops=torch.empty(2, mask.shape[1], 3, 0, 0),
        local_crops=nothing,
        extra_crops=nothing,
        mask=mask,
        **masked_positions(mask),
        indices=torch.arange(mask.shape[1]),
    )
    heads = nn.ModuleDict({"dino_head": nn.Identity(), "ibot_head": nn.Identity()})
    features = Features(student_cls, local_cls, student_patch)
    return Context(batch, hyper, features, features, heads, heads)


def check_sinkhorn(file: Fixture, section: str, logits: Tensor) -> Iterator[Row]:
    """`sinkhorn_T<temperature>[_iter<n>][_scale<factor of the logits>]`."""
    pattern = re.compile(rf"{section}/sinkhorn_T([\d.]+)(?:_iter(\d+))?(?:_scale([\d.]+))?$")
    for key in file.file.files:
        if match := pattern.match(key):
            temperature, iterations, scale = float(match[1]), int(match[2] or 3), float(match[3] or 1)
            targets = SinkhornKnopp(iterations=iterations)(logits * scale, temperature)
            yield compare(key, targets, file[key], FORWARD, scale=1.0)


def check_dino(file: Fixture) -> Iterator[Row]:
    """`raw` is the sum over the local pairs of the mean over images, or the mean over both cross pairs; our terms are
    the `scaled` ones."""
    yield from check_sinkhorn(file, "dino", file["dino/teacher_cls_after_head"])
    images, temp = int(file.meta["B"]), float(file.meta["teacher_temp"])
    # the stored teacher rows are those of the other crop than the student rows at the same place
    targets = file[f"dino/sinkhorn_T{temp:g}"].unflatten(0, (2, images)).flip(0).flatten(0, 1)
    cls, local = (
        file[f"dino/student_{part}"].unflatten(0, (-1, images)).requires_grad_() for part in ("global", "local")
    )
    objective = dino(Given(targets), float(file.meta["student_temp"]))
    terms = objective(context(cls, local, cls[:0, 0], torch.zeros(2, images, 1).bool(), {"teacher_temp": temp}))
    pairs = 2 + 2 * local.shape[0]
    for part, raw_scale in (("local", pairs), ("global", pairs / 2)):
        yield compare(f"loss_{part}_scaled", terms[part], file[f"dino/loss_{part}_scaled"], FORWARD, scale=1.0)
        yield compare(f"loss_{part}_raw", terms[part] * raw_scale, file[f"dino/loss_{part}_raw"], FORWARD, scale=1.0)
    (terms["local"] * pairs + terms["global"] * pairs).backward()
    yield compare_gradient(
        "grad_local_of_local_raw", flat_gradient(local), file["dino/grad_local_of_local_raw"], FORWARD
    )
    yield compare_gradient(
        "grad_global_of_2x_global_raw", flat_gradient(cls), file["dino/grad_global_of_2x_global_raw"]
    )


def dino(targets: nn.Module, student_temp: float) -> DINO:
    """That of preset=official, with these targets."""
    section = compose_config(["preset=official"])["objectives"]["dino"] | {"student_temp": student_temp}
    section = {key: value for key, value in section.items() if key != "targets"}
    return cast(DINO, construct_option(section, "objectives.dino", targets=targets))


def flat_gradient(x: Tensor) -> Tensor:
    """[crops, B, K] -> [crops B, K]."""
    assert x.grad is not None
    return x.grad.flatten(0, 1)


def check_ibot(file: Fixture) -> Iterator[Row]:
    yield from check_sinkhorn(file, "ibot", file["ibot/teacher_after_head"])
    temp = float(file.meta["teacher_temp"])
    if "ibot/sinkhorn_unsliced_input" in file:  # as many rows as given are normalised, none is left out
        ours = SinkhornKnopp(iterations=3)(file["ibot/sinkhorn_unsliced_input"], temp)
        yield compare("sinkhorn_unsliced_output", ours, file["ibot/sinkhorn_unsliced_output"], FORWARD, scale=1.0)
    masks, targets = file["ibot/masks"], file[f"ibot/sinkhorn_T{temp:g}"]
    student = file["ibot/student_after_head"].requires_grad_()
    loss = ibot_loss(file, student, targets, masks)
    loss.backward()
    for key in ("forward_masked", "forward_masked_weight_None"):
        yield compare(key, loss, file[f"ibot/{key}"], FORWARD, scale=1.0)
    yield compare_gradient("forward_masked_grad", student.grad, file["ibot/forward_masked_grad"], FORWARD)
    per_token = ibot(file, targets, lambda losses, mask, indices: -losses)
    ours = per_token(ibot_context(student, masks))["masked"]
    yield compare("per_token_negCE", ours, file["ibot/per_token_negCE(t.logsoftmax)"], FORWARD, scale=1.0)
    if "ibot/forward_masked_padded" in file:  # rows behind the masked ones are padding
        rows, theirs = (file[f"ibot/forward_masked_padded_{network}"][: len(targets)] for network in NETWORKS)
        loss = ibot_loss(file, rows, theirs, masks)
        yield compare("forward_masked_padded", loss, file["ibot/forward_masked_padded"], FORWARD, scale=1.0)
    if "ibot/dense_forward" in file:  # all tokens are given, the masked ones count
        rows, theirs = (file[f"ibot/dense_{network}"][masks] for network in NETWORKS)
        loss = ibot_loss(file, rows, theirs, masks)
        yield compare("dense_forward", loss, file["ibot/dense_forward"], FORWARD, scale=1.0)
    weights = masks_weight(masks.unflatten(0, (2, -1)))
    yield compare("masks_weight", weights, file["ibot/masks_weight"], WEIGHT)


def ibot(file: Fixture, targets: Tensor, reduction: Reduction) -> IBOT:
    temperature = float(file.meta["student_temp"])
    return IBOT(Given(targets), reduction, head="ibot_head", loss_weight=1.0, student_temp=temperature, pad_masked=None)


def ibot_context(student: Tensor, masks: Tensor) -> Context:
    empty = torch.empty(2, len(masks) // 2, 0)
    return context(empty, empty[:0], student, masks.unflatten(0, (2, -1)), {"teacher_temp": 1.0})


def ibot_loss(file: Fixture, student: Tensor, targets: Tensor, masks: Tensor) -> Tensor:
    loss: Tensor = ibot(file, targets, PerSample())(ibot_context(student, masks))["masked"]
    return loss


def check_centering(file: Fixture, name: str) -> Iterator[Row]:
    """Consecutive batches: the centre that each one meets, its targets, and the centre that is left."""
    steps = sorted({int(m[1]) for k in file.file.files if (m := re.match(rf"{name}/centering/it(\d+)/", k))})
    logits = [file[f"{name}/centering/it{step}/teacher"] for step in steps]
    centering = Centering(logits[0].shape[-1], momentum=float(file.meta["center_momentum"]))
    for step, rows in zip(steps, logits, strict=True):
        at = f"{name}/centering/it{step}"
        yield compare(f"it{step}/center_used", centering.center, file[f"{at}/center_used"].view(1, -1), FORWARD)
        targets = centering(rows, float(file.meta["teacher_temp"]))
        yield compare(f"it{step}/probs", targets, file[f"{at}/probs"], FORWARD, scale=1.0)
    left = file[f"{name}/centering/center_after_flush"].view(1, -1)
    yield compare("center_after_flush", centering.center, left, FORWARD)


def check_koleo(file: Fixture) -> Iterator[Row]:
    x = file["koleo/x"].requires_grad_()
    loss = koleo(x)
    loss.backward()
    yield compare("loss", loss, file["koleo/loss"], FORWARD, scale=1.0)
    yield compare_gradient("grad", x.grad, file["koleo/grad"], FORWARD)
    variants: dict[str, Any] = file.below("koleo/x_")
    for name, value in variants.items():
        yield compare(f"loss_{name}", koleo(value), file[f"koleo/loss_{name}"], FORWARD, scale=1.0)
