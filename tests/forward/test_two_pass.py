"""forward=two_pass: CLS from the unmasked globals, patches from the same globals masked."""

import pytest
import torch
from forward_reference import assert_close, batch, check_few_rows, check_second_pass, small_backbone

from dinoswap.forward.two_pass import TwoPass
from dinoswap.forward.unified import Unified
from dinoswap.nn.vit import VisionTransformer

PLAN = TwoPass()


@pytest.fixture(scope="module")
def backbone() -> VisionTransformer:
    return small_backbone()


def test_features_are_those_of_single_calls(backbone: VisionTransformer) -> None:
    check_second_pass(PLAN, backbone)


@pytest.mark.parametrize("local", [0, 2])
def test_few_rows_are_those_of_all_tokens(backbone: VisionTransformer, local: int) -> None:
    check_few_rows(PLAN, backbone, local)


@torch.no_grad()
def test_is_unified_where_nothing_is_masked(backbone: VisionTransformer) -> None:
    b = batch(2, masked=False)
    for name in ("student", "teacher"):
        two, one = (getattr(plan, name)(backbone, b, True) for plan in (PLAN, Unified()))
        assert_close(two.global_cls, one.global_cls)
        assert_close(two.local_cls, one.local_cls)
        assert_close(two.patch, one.patch)


@torch.no_grad()
def test_has_the_patch_features_of_unified(backbone: VisionTransformer) -> None:
    """What differs is the CLS of the student, which is that of an unmasked crop here."""
    b = batch(2)
    two, one = PLAN.student(backbone, b, False), Unified().student(backbone, b, False)
    assert_close(two.masked_patch, one.masked_patch)
    assert (two.global_cls - one.global_cls).abs().max() > 1e-3


def test_what_the_builder_is_told() -> None:
    assert (PLAN.extra_crops, PLAN.masked_crops) == (0, 2)
