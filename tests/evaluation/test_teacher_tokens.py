"""Metrics and picture of tokens beside a teacher's, on tokens whose cosines are known."""

from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dinoswap.evaluation.teacher_tokens import compare_with_teachers, comparison_figure, cosines
from dinoswap.files import pictures
from dinoswap.model import SelfDistillation
from dinoswap.objectives.base import TokenComparison
from small_models import small_trainer

EXAMPLES = torch.randint(0, 256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def random(seed: int) -> Tensor:
    return torch.randn(3, 16, 5, generator=torch.Generator().manual_seed(seed))


def known(mask: Tensor) -> TokenComparison:
    """The student agrees with the teacher; masked it is opposite where it sees and orthogonal where it does not."""
    teacher = random(0) * torch.tensor([1.0, 1, 1, 1, 0])
    orthogonal = torch.zeros(5)
    orthogonal[4] = 3
    return TokenComparison(teacher, 7 * teacher, torch.where(mask[..., None], orthogonal, -teacher))


def test_metrics_of_each_objective_with_a_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_trainer().model
    seen = []

    def compare(student: nn.ModuleDict, images: Tensor, mask: Tensor) -> TokenComparison:
        seen.append((images, mask))
        return known(mask)

    monkeypatch.setattr(model.objectives["koleo"], "compare_tokens", compare)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    metrics, pictures = compare_with_teachers(cast(SelfDistillation, model), EXAMPLES, mean, std)
    ((images, mask),) = seen
    assert torch.allclose(images[1, 2], (EXAMPLES[1, 2] / 255 - 0.3) / 0.6, atol=1e-6)
    assert 10 < mask.sum() < 30  # of 48, 40 %
    assert metrics == {"eval/koleo/cosine": pytest.approx(1), "eval/koleo/cosine_masked": pytest.approx(0, abs=1e-6)}
    assert list(pictures) == ["koleo_tokens"]


def test_no_frozen_teacher_no_comparison() -> None:
    assert compare_with_teachers(small_trainer().model, EXAMPLES, torch.zeros(3), torch.ones(3)) == ({}, {})


def test_cosines_by_a_loop() -> None:
    found = TokenComparison(random(0), random(1), random(2))
    for part, theirs in zip(cosines(found), (found.student, found.masked), strict=True):
        for n in range(3):
            for i in range(16):
                a, b = found.teacher[n, i], theirs[n, i]
                assert part[n, i].item() == pytest.approx((a @ b / (a.norm() * b.norm())).item(), abs=1e-6)


def test_the_picture_shows_equal_tokens_in_equal_colours_and_cosines_as_brightness() -> None:
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, 5] = True
    found = known(mask)
    picture = comparison_figure(EXAMPLES, found, mask, (4, 4), cell_size=64)

    def cell(column: int) -> np.ndarray:
        left = pictures.GAP + column * (64 + pictures.GAP)
        return picture[pictures.HEADER : pictures.HEADER + 64, left : left + 64]

    _image, teacher, student, cosine, its_input, masked, cosine_masked = map(cell, range(7))
    assert np.array_equal(teacher, student)
    assert not np.array_equal(teacher, masked)
    assert len(np.unique(cosine.reshape(-1, 3), axis=0)) == 1
    assert cosine.astype(int).sum() > 2 * cosine_masked.astype(int).sum()  # 1 against 0 and less
    enlarged = EXAMPLES[0].permute(1, 2, 0).numpy().repeat(2, 0).repeat(2, 1)
    changed = (its_input != enlarged).any(2)
    assert changed[16:32, 16:32].any()
    assert changed.sum() == changed[16:32, 16:32].sum()
