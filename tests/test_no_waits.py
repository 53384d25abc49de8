"""No step makes the host wait for the device: presets, every option of every axis, and the settings beside the axes."""

from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import pytest
import torch
from torch import Tensor

from axis_arms import OPTIONS, PRESETS, Arm, teacher_of
from waits import DEVICE, HostWaits, no_waits

EACH_OPTION = [  # once at least, in as few arms as the longest axis has options
    [f"{axis}={chosen or OPTIONS[axis][0]}" for axis, chosen in zip(OPTIONS, row, strict=True)]
    + teacher_of("enabled") * (number == 0)
    for number, row in enumerate(zip_longest(*(options[::-1] for options in OPTIONS.values())))
]
BESIDE = [
    [
        "preset=legacy", "model.residual_dropout=0", "teacher_dropout=false", "model.drop_path=0.3", "gram=snapshot",
        "objectives.gram.stats=true", "objectives.gram.per_image=false", "objectives.gram.negatives=clear",
        "objectives.gram.tokens=unmasked", "objectives.gram.refresh_every=1", "optimizer.clip=per_tensor",
        "targets@objectives.dino.targets=centering", "targets@objectives.ibot.targets=centering",
        "trainer.precision=bf16_params", "objectives.ibot.pad_masked=0.2",
    ],
    [
        "preset=dinov3", "model.drop_path=0.05", "objectives.koleo.group=2", "objectives.koleo.gather=true",
        "position.shift=0.1", "position.jitter=1.1", "position.rescale=1.1", "schedule.freeze_last_layer=2",
        "schedule.freeze_by=drop_gradients", "model.activation_checkpointing=true", "optimizer.clip_grad=null",
        "targets@objectives.dino.targets=sinkhorn_5", "model.norm=rmsnorm",
        "trainer.precision=bf16_params",
    ],
    [
        "da3=enabled", *teacher_of("enabled"), "da3.grid_matching=resize_tokens", "da3.centre_momentum=0.9",
        "model.ffn=swiglu", "model.cls_norm=true", "model.interpolate_antialias=true", "resolution=mixed",
        "objectives.dino.global_pairs=all", "objectives.koleo.over_crops=mean", "masking.mask_sample_probability=0",
        "trainer.precision=bf16_params",
    ],
]  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_waits_for_nothing(preset: str) -> None:
    """In two steps of two micro-batches."""
    arm = Arm(f"preset={preset}", "trainer.device=meta")
    batches = [arm.batch(step).to(DEVICE) for step in range(2)]
    for step in range(2):
        with no_waits() as late:
            arm.trainer.step(step, batches)
        assert [file.name for file in late] == ["late_reading.py"]  # the severity, which the next step reads


@pytest.mark.parametrize("overrides", EACH_OPTION + BESIDE, ids=" ".join)
def test_an_option_waits_for_nothing(overrides: list[str]) -> None:
    arm = Arm(*overrides, "trainer.device=meta")
    batch = arm.batch(1).to(DEVICE)
    with no_waits():
        arm.trainer.step(1, [batch])


def test_a_loss_scale_waits_for_nothing() -> None:
    arm = Arm("trainer.precision=fp16", "trainer.device=meta")
    arm.trainer.dtype = None  # the device has no autocast, but the scale of the loss and what follows from it
    batch = arm.batch(0).to(DEVICE)
    with no_waits():
        arm.trainer.step(0, [batch])


# --- the modes --------------------------------------------------------------------------------------------------------


def on_device(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=DEVICE)


class ReadsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * float(gradients[0].sum())


X, MASK, COUNTS = on_device(3, 4), on_device(3, 4, dtype=torch.bool), on_device(3, dtype=torch.int64)
WAITS: dict[str, Callable[[], object]] = {
    "item": lambda: X.sum().item(),
    "float": lambda: float(X.sum()),
    "if": lambda: bool(X.sum() > 0),
    "equal": lambda: torch.equal(X, X),
    "tolist": lambda: X.tolist(),
    "cpu": lambda: X.cpu(),
    "nonzero": lambda: MASK.nonzero(),
    "mask": lambda: X[MASK],
    "set by mask": lambda: X.__setitem__(MASK, 0.0),
    "masked_select": lambda: X.masked_select(MASK),
    "unique": lambda: X.unique(),
    "repeat_interleave": lambda: X.repeat_interleave(COUNTS, dim=0),
    "tensor": lambda: torch.tensor([1.0, 2.0], device=DEVICE),
    "new_tensor": lambda: X.new_tensor(1.0),
    "as_tensor": lambda: torch.as_tensor(1.0, device=DEVICE),
    "index on the host": lambda: X[torch.arange(2)],
    "index by a list": lambda: X[[0, 1]],
    "to": lambda: torch.zeros(3).to(DEVICE),
    "to, of one number": lambda: torch.zeros(()).to(DEVICE),
    "copy_": lambda: X.copy_(torch.zeros(3, 4)),
    "in a backward pass": lambda: ReadsInBackward.apply(on_device(3).requires_grad_()).sum().backward(),
}
ALLOWED: dict[str, Callable[[], object]] = {
    "number": lambda: (X * 2 + 1).clamp(min=0).masked_fill(MASK, 0.5),
    "where": lambda: torch.where(MASK, X, 0.0),
    "set by place": lambda: X.__setitem__((slice(1), 2), 0.5),
    "filled": lambda: X.new_full((), 3.0),
    "index": lambda: X[COUNTS],
    "output_size": lambda: X.repeat_interleave(COUNTS, dim=0, output_size=5),
    "nonzero_static": lambda: torch.nonzero_static(MASK, size=3),
    "on the host": lambda: float(torch.tensor([1.0, 2.0]).sum()),
}


@pytest.mark.parametrize("waits", WAITS.values(), ids=WAITS)
def test_what_waits_is_refused(waits: Callable[[], object]) -> None:
    with no_waits(), pytest.raises(HostWaits):
        waits()


@pytest.mark.parametrize("allowed", ALLOWED.values(), ids=ALLOWED)
def test_what_does_not_wait_is_allowed(allowed: Callable[[], object]) -> None:
    with no_waits() as late:
        allowed()
    assert not late


@pytest.fixture(autouse=True)
def _no_mode_left() -> Iterator[None]:
    """A refusal leaves none behind."""
    yield
    assert X.new_tensor(1.0).is_meta
