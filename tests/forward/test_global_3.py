"""forward=global_3: the third crop serves the patch losses, the others the CLS losses."""

import pytest
from forward_reference import check_few_rows, check_second_pass, small_backbone

from dinoswap.forward.global_3 import Global3
from dinoswap.nn.vit import VisionTransformer

PLAN = Global3()


@pytest.fixture(scope="module")
def backbone() -> VisionTransformer:
    return small_backbone()


def test_features_are_those_of_single_calls(backbone: VisionTransformer) -> None:
    check_second_pass(PLAN, backbone)


@pytest.mark.parametrize("local", [0, 2])
def test_few_rows_are_those_of_all_tokens(backbone: VisionTransformer, local: int) -> None:
    check_few_rows(PLAN, backbone, local)


def test_what_the_builder_is_told() -> None:
    assert (PLAN.extra_crops, PLAN.masked_crops) == (1, 1)
