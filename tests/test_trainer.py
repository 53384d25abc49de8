"""The training step against loops that follow its formulas."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinoswap.config.sections import TrainerSettings
from dinoswap.rng import seed_torch
from dinoswap.run import checkpoint
from dinoswap.trainer import Trainer, resolve_device
from options import build_settings
from small_models import CENTERING, named_parameters, small_batch, small_trainer, state_tensors

STEP = 4  # of 10; warm-up ends after the first
PRECISIONS = ["fp32", "bf16", "fp16", "bf16_params"]


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in named_parameters(trainer).items() if p.grad is not None}


def group_of(trainer: Trainer, name: str) -> dict[str, Any]:
    return next(group for group in trainer.optimizer.param_groups if name in group["names"])


def first_good_step(trainer: Trainer, step: int = STEP) -> dict[str, Tensor]:
    """fp16 skips steps until its loss scale, 2^16 at first, fits."""
    for _ in range(17):
        logs = trainer.step(step, [small_batch(0)])
        if not logs["nonfinite"]:
            return logs
    raise AssertionError(f"no finite step: {logs}")


def test_accumulation_is_the_mean_over_micro_batches() -> None:
    batches = [small_batch(seed) for seed in range(3)]
    model, hyper = small_trainer().model, small_trainer().schedules.at(STEP)
    wanted: dict[str, Tensor] = {}
    mean_loss = 0.0
    for batch in batches:
        loss, _ = model(batch, hyper)
        mean_loss += loss.item() / 3
        parameters = {name: p for name, p in model.student.named_parameters() if p.requires_grad}
        for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            wanted[name] = wanted.get(name, 0) + gradient / 3

    trainer = small_trainer("optimizer.clip_grad=null")
    logs = trainer.step(STEP, batches)
    got = gradients(trainer)
    assert got.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()), msg=name)
    assert float(logs["loss"]) == pytest.approx(mean_loss, rel=1e-6)


def test_schedules_reach_their_groups_by_name() -> None:
    trainer = small_trainer("schedule.freeze_last_layer=5", "schedule.warmup=8")
    trainer.step(STEP, [small_batch(0)])
    peak = 0.004 * math.sqrt(8 / 1024)
    lr = peak * STEP / 7
    decay = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * STEP / 10))
    wanted = {  # (lr, weight decay), with two blocks
        "backbone.patch_embed.proj.weight": (lr * 0.9**3 * 0.2, decay),
        "backbone.cls_token": (lr * 0.9**3, decay),
        "backbone.blocks.0.attn.qkv.weight": (lr * 0.9**2, decay),
        "backbone.blocks.1.attn.qkv.bias": (lr * 0.9, 0),
        "backbone.blocks.1.ls1.gamma": (lr * 0.9, 0),
        "backbone.norm.weight": (lr, 0),
        "dino_head.mlp.0.weight": (lr, decay),
        "dino_head.last_layer.weight_v": (0, decay),
        "ibot_head.last_layer.weight_v": (0, decay),
    }
    for name, (its_lr, its_decay) in wanted.items():
        group = group_of(trainer, name)
        assert group["lr"] == pytest.approx(its_lr, rel=1e-9), name
        assert group["weight_decay"] == pytest.approx(its_decay, rel=1e-9), name


def test_the_teacher_is_an_exponential_moving_average() -> None:
    trainer = small_trainer("schedule.momentum=0.9", "schedule.momentum_end=0.9")
    before = {name: p.clone() for name, p in trainer.model.teacher.named_parameters()}
    trainer.step(STEP, [small_batch(0)])
    student = named_parameters(trainer)
    moved = 0
    for name, after in trainer.model.teacher.named_parameters():
        torch.testing.assert_close(after, 0.9 * before[name] + 0.1 * student[name], rtol=1e-6, atol=1e-8, msg=name)
        moved += not torch.equal(after, before[name])
    assert moved > 30


def test_each_module_is_clipped_by_its_own_norm() -> None:
    raw, clipped = small_trainer("optimizer.clip_grad=null"), small_trainer("optimizer.clip_grad=60")
    raw.step(STEP, [small_batch(0)])
    logs = clipped.step(STEP, [small_batch(0)])
    coefficients = {}
    for module in ("backbone", "dino_head", "ibot_head"):
        entries = {name: g for name, g in gradients(raw).items() if name.startswith(f"{module}.")}
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in entries.values()))
        assert float(logs[f"grad_norm/{module}"]) == pytest.approx(norm, rel=1e-5)
        coefficients[module] = min(1.0, 60 / (norm + 1e-6))
        for name, gradient in entries.items():
            torch.testing.assert_close(gradients(clipped)[name], gradient * coefficients[module], rtol=1e-5, atol=1e-9)
    assert coefficients["backbone"] == 1 > coefficients["dino_head"]  # both cases


def test_the_last_layers_are_frozen_at_first() -> None:
    trainer = small_trainer("schedule.freeze_last_layer=3", "schedule.warmup=0")
    last = [name for name in named_parameters(trainer) if "last_layer.weight_v" in name]
    assert len(last) == 2
    for step in range(5):
        before = {name: p.clone() for name, p in named_parameters(trainer).items()}
        trainer.step(step, [small_batch(step)])
        after = named_parameters(trainer)
        assert [torch.equal(before[name], after[name]) for name in last] == [step < 3] * 2
        assert not torch.equal(before["dino_head.mlp.0.weight"], after["dino_head.mlp.0.weight"])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cause", ["loss", "gradient", "teacher"])
def test_a_skipped_step_changes_nothing(precision: str, cause: str) -> None:
    trainer = small_trainer(f"trainer.precision={precision}", *CENTERING)
    first_good_step(trainer)
    before = state_tensors(trainer)
    batch = small_batch(1)
    if cause == "loss":  # the student alone sees local crops
        batch.local_crops[0, 1, 2, 3, 4] = torch.nan
        logs = trainer.step(STEP, [small_batch(2), batch])
    elif cause == "teacher":
        batch.global_crops[0, 1, 2, 3, 4] = torch.inf
        logs = trainer.step(STEP, [small_batch(2), batch])
    else:
        weight = named_parameters(trainer)["backbone.blocks.0.norm1.weight"]
        handle = weight.register_hook(lambda gradient: gradient * torch.inf)
        logs = trainer.step(STEP, [small_batch(2), batch])
        handle.remove()
        assert logs["loss"].isfinite()
    assert logs["nonfinite"] == 1
    assert_equal(state_tensors(trainer), before)

    assert not first_good_step(trainer)["nonfinite"]
    changed = {name for name, value in state_tensors(trainer).items() if not torch.equal(value, before[name])}
    for part in ("student", "teacher", "center", "exp_avg_sq", "/step"):
        assert any(part in name for name in changed), part


def assert_equal(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert got.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(got[name], wanted[name])] == []


def test_precisions_agree_loosely() -> None:
    logs = {}
    for precision in PRECISIONS:
        trainer = small_trainer(f"trainer.precision={precision}", "trainer.max_nonfinite_steps=1")
        logs[precision] = first_good_step(trainer)
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
        assert trainer.step(STEP + 1, [small_batch(1)])["loss"].isfinite()
    for precision in PRECISIONS[1:]:
        for name, value in logs["fp32"].items():
            assert float(logs[precision][name]) == pytest.approx(float(value), rel=0.05), (precision, name)
            if "grad_norm" in name:
                assert logs[precision][name] != value, "it was not computed in another precision"


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.drop_path=0.3", "model.activation_checkpointing=true"],
        ["preset=dinov3", "model.norm=rmsnorm", "model.drop_path=0.1"],
        ["preset=aligned", "gram=ema", "heads.dino_head.weight_norm=false"],
    ],
    ids=["official", "dinov3", "aligned"],
)
def test_parameters_in_bf16_compute_what_a_model_in_bf16_does(overrides: list[str]) -> None:
    """To the last bit, and change weights in float32."""
    trainer = small_trainer("trainer.precision=bf16_params", "optimizer.clip_grad=null", *overrides)
    model, batch = copy.deepcopy(trainer.model).bfloat16(), small_batch(0)
    before = {name: p.clone() for name, p in named_parameters(trainer).items()}
    seed_torch(trainer.seed, "step", STEP, 0)
    loss, terms = model(batch, trainer.schedules.at(STEP))
    loss.backward()
    logs = trainer.step(STEP, [batch])
    assert logs["loss"] == loss
    assert logs["loss"].dtype == torch.float32
    assert {name: logs[name] for name in terms} == terms
    of_model = dict(model.student.named_parameters())
    for name, gradient in gradients(trainer).items():
        expected = of_model[name].grad
        assert expected is not None
        assert gradient.dtype == torch.float32
        assert torch.equal(gradient, expected.float()), name
    moved = [name for name, p in named_parameters(trainer).items() if not torch.equal(p.bfloat16().float(), p)]
    assert len(moved) > 30
    assert any(not torch.equal(p, before[name]) for name, p in named_parameters(trainer).items())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_restored_trainer_continues_bit_for_bit(precision: str, tmp_path: Path) -> None:
    overrides = [f"trainer.precision={precision}", "model.drop_path=0.3", *CENTERING]
    one, other = small_trainer(*overrides), small_trainer(*overrides, "seed=7")
    other.seed = one.seed
    first_good_step(one)
    one.step(5, [small_batch(1)])
    one.guard.resolve()
    one.guard.in_a_row, one.guard.total = 1, 2  # bad steps, which count on
    path = checkpoint.save(tmp_path, 3, one.state_dict(), config={}, keep=1)
    other.load_state_dict(checkpoint.read(path).state)
    assert_equal(state_tensors(other), state_tensors(one))
    assert (other.guard.in_a_row, other.guard.total) == (1, 2)
    assert len(other.optimizer.state) == len(list(one.model.student.parameters()))
    for step in range(6, 9):
        logs = [trainer.step(step, [small_batch(step)]) for trainer in (one, other)]
        assert logs[0] == logs[1]
        assert logs[0]["nonfinite"] == 0
    assert_equal(state_tensors(other), state_tensors(one))
    assert other.scaler.get_scale() == one.scaler.get_scale()


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_steps", 0), ("accumulate", 0), ("keep_checkpoints", 0), ("checkpoint_minutes", -1.0), ("eval_every", -1)],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        build_settings(TrainerSettings, "trainer", **{name: value})


def test_a_device_that_is_not_there_is_refused() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"trainer\.device=gpu"):
        resolve_device("gpu")


@pytest.fixture
def torch_by_itself() -> Iterator[None]:
    """What torch allows is afterwards as before."""
    matmul, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.mark.usefixtures("torch_by_itself")
@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_for_products_and_convolutions_or_neither(allowed: bool) -> None:
    torch.set_float32_matmul_precision("highest" if allowed else "high")
    small_trainer(f"trainer.matmul_precision={'high' if allowed else 'highest'}")
    assert torch.backends.cuda.matmul.allow_tf32 == allowed
    assert torch.backends.cudnn.allow_tf32 == allowed
