"""forward=unified: what each network sees, and that asking for few rows or for all tokens gives the same features."""

import forward_reference
import pytest
import torch
from forward_reference import assert_close, small_backbone

from dinoswap.forward.unified import Unified
from dinoswap.nn.vit import VisionTransformer
from dinoswap.values import Batch, Features

PLAN = Unified()


@pytest.fixture(scope="module")
def backbone() -> VisionTransformer:
    return small_backbone()


def batch(masked: bool = True, local: int = 2) -> Batch:
    return forward_reference.batch(2, masked=masked, local=local)


def features(backbone: VisionTransformer, batch: Batch, all_patches: bool) -> tuple[Features, Features]:
    return PLAN.student(backbone, batch, all_patches), PLAN.teacher(backbone, batch, all_patches)


@torch.no_grad()
def test_features_are_those_of_single_calls(backbone: VisionTransformer) -> None:
    """Crop by crop, image by image: the student's globals are masked, its locals and the teacher's globals are not."""
    b = batch()
    student, teacher = features(backbone, b, all_patches=True)
    assert student.patch is not None
    assert teacher.patch is not None
    for crop in range(2):
        for image in range(3):
            one = b.global_crops[crop, image, None]
            hidden, seen = backbone(one, b.mask[crop, image, None]), backbone(one)
            assert_close(student.global_cls[crop, image], hidden.cls[0])
            assert_close(student.patch[crop, image], hidden.patch[0])
            assert_close(teacher.global_cls[crop, image], seen.cls[0])
            assert_close(teacher.patch[crop, image], seen.patch[0])
            assert_close(student.local_cls[crop, image], backbone(b.local_crops[crop, image, None]).cls[0])
    assert teacher.local_cls.shape == (0, 3, 16)


@torch.no_grad()
def test_few_rows_are_those_of_all_tokens(backbone: VisionTransformer) -> None:
    b = batch()
    for few, full in zip(features(backbone, b, False), features(backbone, b, True), strict=True):
        assert few.patch is None
        assert full.patch is not None
        assert_close(few.global_cls, full.global_cls)
        assert_close(few.local_cls, full.local_cls)
        assert_close(few.masked_patch, full.masked_patch)
        assert_close(full.masked_patch, full.patch[b.mask])


@torch.no_grad()
@pytest.mark.parametrize("all_patches", [False, True])
def test_with_nothing_masked_both_networks_see_the_same(backbone: VisionTransformer, all_patches: bool) -> None:
    student, teacher = features(backbone, batch(masked=False), all_patches)
    assert_close(student.global_cls, teacher.global_cls)
    assert student.masked_patch.shape == teacher.masked_patch.shape == (0, 16)
    if all_patches:
        assert student.patch is not None
        assert teacher.patch is not None
        assert_close(student.patch, teacher.patch)


@torch.no_grad()
@pytest.mark.parametrize("all_patches", [False, True])
def test_without_local_crops(backbone: VisionTransformer, all_patches: bool) -> None:
    student = PLAN.student(backbone, batch(local=0), all_patches)
    assert student.local_cls.shape == (0, 3, 16)
    assert_close(student.global_cls, PLAN.student(backbone, batch(), all_patches).global_cls)


def test_what_the_builder_is_told() -> None:
    assert (PLAN.extra_crops, PLAN.masked_crops) == (0, 2)
