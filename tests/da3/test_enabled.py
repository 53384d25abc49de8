"""da3=enabled: the loss against a loop, which crops the teacher sees, what stays outside optimiser and checkpoint."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from colour_teacher import ColourTeacher
from torch import Tensor, nn

from dinoswap.da3.enabled import MaskedImageDistillation, Projector
from dinoswap.nn.vit import VisionTransformer
from dinoswap.objectives.base import Context, Reduction
from dinoswap.reduction.per_sample import PerSample
from dinoswap.reduction.per_token import PerToken
from dinoswap.teacher.base import IMAGENET_MEAN, IMAGENET_STD
from dinoswap.values import Batch, Features, masked_positions
from options import build_option
from small_models import small_batch

WIDTH = 24


@pytest.fixture
def build() -> Callable[..., MaskedImageDistillation]:
    """The objective with a teacher of colours, whose patches are the student's: of 8 pixels."""

    def teacher(ckpt_path: str) -> ColourTeacher:
        return ColourTeacher(8)

    def made(reduction: Reduction | None = None, **changes: Any) -> MaskedImageDistillation:
        given = {"reduction": reduction or PerToken(), "teacher": teacher, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        built: MaskedImageDistillation = build_option("da3/enabled", **(given | changes))
        return built

    return made


def seen_by(objective: MaskedImageDistillation) -> list[torch.Size]:
    teacher = objective.teacher.network
    assert isinstance(teacher, ColourTeacher)
    return teacher.seen


def some_batch(mask: Tensor | None = None) -> Batch:
    """Four images with clean crops of their own; the second global crop of image 0 and the first of image 2 have no
    masked token."""
    batch = small_batch(0)
    clean = torch.randn(batch.global_crops.shape, generator=torch.Generator().manual_seed(9))
    if mask is None:
        mask = batch.mask.clone()
        mask[1, 0] = mask[0, 2] = False
    return replace(batch, clean_crops={32: clean}, mask=mask, **masked_positions(mask))


def context(batch: Batch, objective: MaskedImageDistillation) -> Context:
    """Random tokens as the student's, a backbone that is there for its patch size."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(len(batch.masked_indices), WIDTH, generator=generator, requires_grad=True)
    backbone = VisionTransformer(img_size=32, patch_size=8, embed_dim=WIDTH, depth=1, num_heads=2)
    torch.manual_seed(4)
    networks = {name: network(WIDTH) for name, network in objective.networks().items()}
    student = nn.ModuleDict({"backbone": backbone, **networks})
    nothing = torch.empty(0, 0, 0)
    features = Features(nothing, nothing, tokens)
    return Context(batch, {}, features, features, student, nn.ModuleDict())


def losses_by_hand(context: Context) -> dict[tuple[int, int], list[float]]:
    """1 - cos for every masked token of crop (p, b), from the definition: mean colour of the clean patch against the
    projected token."""
    batch, found, row = context.batch, {}, 0
    for p, b in torch.cartesian_prod(torch.arange(2), torch.arange(batch.images)).tolist():
        found[p, b] = []
        for n in batch.mask[p, b].nonzero()[:, 0].tolist():
            top, left = 8 * (n // 4), 8 * (n % 4)
            target = batch.clean_crops[32][p, b, :, top : top + 8, left : left + 8].mean((1, 2))
            token = context.student["da3_projector"](context.student_features.masked_patch[row])
            found[p, b].append((1 - token @ target / (token.norm() * target.norm())).item())
            row += 1
    return found


@pytest.mark.parametrize("reduction", [PerToken(), PerSample()], ids=["per_token", "per_sample"])
def test_loss_by_a_loop_over_tokens(build: Callable[..., MaskedImageDistillation], reduction: Reduction) -> None:
    objective = build(reduction, projector_hidden_dim=16)
    found = context(some_batch(), objective)
    losses = losses_by_hand(found)
    flat = [loss for crop in losses.values() for loss in crop]
    per_sample = sum(sum(crop) / len(crop) for crop in losses.values() if crop) / len(losses)
    expected = sum(flat) / len(flat) if isinstance(reduction, PerToken) else per_sample
    terms = objective(found)
    assert terms["cosine"].item() == pytest.approx(expected, abs=1e-6)
    cosines = 1 - torch.tensor(flat)
    assert terms["cosine_mean"].item() == pytest.approx(cosines.mean().item(), abs=1e-6)
    assert terms["cosine_std"].item() == pytest.approx(cosines.std(correction=0).item(), abs=1e-6)


def test_only_the_cosine_is_in_the_loss(build: Callable[..., MaskedImageDistillation]) -> None:
    objective = build(loss_weight=0.25)
    terms = objective(context(some_batch(), objective))
    assert {name: weight for name in terms if (weight := objective.weight(name, {})) is not None} == {"cosine": 0.25}


def test_the_teacher_sees_only_crops_with_masked_tokens(build: Callable[..., MaskedImageDistillation]) -> None:
    objective = build()
    objective(context(some_batch(), objective))
    assert seen_by(objective) == [(6, 3, 32, 32)]  # of 2 x 4 crops, two without a mask


def test_no_masked_token(build: Callable[..., MaskedImageDistillation]) -> None:
    """A zero that is connected to the student and to the projector; the teacher is not asked."""
    objective = build()
    found = context(some_batch(torch.zeros(2, 4, 16, dtype=torch.bool)), objective)
    terms = objective(found)
    assert all(value.item() == 0 for value in terms.values())
    terms["cosine"].backward()
    gradients = [parameter.grad for parameter in found.student["da3_projector"].parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert seen_by(objective) == []


@pytest.mark.parametrize("images", [1, 3])
def test_one_mask_carrying_crop(build: Callable[..., MaskedImageDistillation], images: int) -> None:
    """P = 1, as under global_3: targets are those of the crops given."""
    objective = build()
    batch = small_batch(0, images=images)
    mask = torch.zeros(1, images, 16, dtype=torch.bool)
    mask[0, -1, 5] = True
    clean = torch.randn(1, images, 3, 32, 32, generator=torch.Generator().manual_seed(9))
    batch = replace(batch, clean_crops={32: clean}, mask=mask, **masked_positions(mask))
    targets = objective.masked_targets(batch, (4, 4))
    assert torch.allclose(targets, clean[0, -1, :, 8:16, 8:16].mean((1, 2))[None], atol=1e-6)


def test_reordered_batches_keep_clean_crops_and_masks_together(build: Callable[..., MaskedImageDistillation]) -> None:
    objective, batch, order = build(), some_batch(), [2, 0, 3, 1]
    mask = batch.mask[:, order]
    clean = {width: crops[:, order] for width, crops in batch.clean_crops.items()}
    moved = replace(batch, clean_crops=clean, mask=mask, **masked_positions(mask))

    def by_token(batch: Batch, order: list[int]) -> dict[tuple[int, int, int], list[float]]:
        targets = objective.masked_targets(batch, (4, 4)).tolist()
        places = [(i // 64, order[i // 16 % 4], i % 16) for i in batch.masked_indices.tolist()]
        return dict(zip(places, targets, strict=True))

    assert by_token(batch, [0, 1, 2, 3]) == by_token(moved, order)


def test_the_teacher_is_outside(build: Callable[..., MaskedImageDistillation]) -> None:
    objective = build()
    assert not list(objective.parameters())
    assert not list(objective.buffers())
    assert not objective.state_dict()
    objective.train()
    assert not objective.teacher.training
    objective.to("meta")
    assert objective.teacher.network.get_parameter("gain").is_meta


def test_projector_is_initialised_as_the_heads_are() -> None:
    torch.manual_seed(0)
    projector = Projector(WIDTH, 2048, 96, lr_multiplier=0.5)
    assert [type(part) for part in projector] == [nn.Linear, nn.GELU, nn.Linear]
    assert projector(torch.randn(5, WIDTH)).shape == (5, 96)
    for linear in (projector[0], projector[2]):
        assert not linear.bias.any()
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert projector.group_options == {"lr_multiplier": 0.5}


def test_first_batch(build: Callable[..., MaskedImageDistillation]) -> None:
    """The gradient that is reported is that of the backbone's parameters."""
    objective = build()
    found = context(some_batch(), objective)
    backbone = found.student["backbone"]
    assert isinstance(backbone, VisionTransformer)

    def through() -> Context:
        crops, mask = (tensor.flatten(0, 1) for tensor in (found.batch.global_crops, found.batch.mask))
        patch = backbone(crops, mask, found.batch.masked_indices).patch
        return replace(found, student_features=replace(found.student_features, masked_patch=patch))

    said = objective.check_first_batch(through())
    loss = objective(through())["cosine"]
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in backbone.parameters() if p.grad is not None]).norm()
    assert f"loss {loss.item():.4f}" in said
    assert f"gradient {norm.item():.3g}" in said


def test_a_teacher_that_cannot_teach_is_refused(build: Callable[..., MaskedImageDistillation]) -> None:
    objective = build()
    found = context(some_batch(), objective)
    objective.teacher.network.get_parameter("gain").data.fill_(float("nan"))
    with pytest.raises(ValueError, match="nothing can be learnt from this teacher"):
        objective.check_first_batch(replace(found, student_features=replace(found.student_features)))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"embed_dim": 1024}, r"embed_dim=1024: .* 3 channels; set da3.embed_dim=3"),
        ({"projector_hidden_dim": 0}, "projector_hidden_dim=0: must be at least 1"),
        ({"projector_lr_multiplier": -1.0}, "projector_lr_multiplier=-1.0: must be 0 or more"),
        ({"loss_weight": -1.0}, "loss_weight=-1.0: must be 0 or more"),
    ],
)
def test_refused(build: Callable[..., MaskedImageDistillation], setting: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**setting)
