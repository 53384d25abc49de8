"""clustering=visible: the complement of the masked tokens, in the masked pass."""

import pytest
import torch
from clustering_contexts import FIXTURE, MASK, clustering, legacy_context
from torch import Tensor

from contexts import Softmax
from dinoswap.clustering.visible import Visible
from dinoswap.reduction.per_token import PerToken

MASKS = {"some": MASK, "none": MASK & False, "all": MASK | True}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_the_unmasked_tokens_learn_at_their_positions(mask: Tensor) -> None:
    given, _, _ = legacy_context(mask)
    tokens, selected, positions = clustering("visible", Softmax(), PerToken()).select(given)
    assert torch.equal(tokens, FIXTURE["proto/student"][~mask[0]])
    assert torch.equal(selected, ~mask)
    assert positions.tolist() == [i for i, hidden in enumerate(mask.flatten().tolist()) if not hidden]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_masked_and_visible_positions_partition_those_of_separate(mask: Tensor) -> None:
    given, _, _ = legacy_context(mask)
    masked, visible, separate = (
        clustering(option, Softmax(), PerToken()).select(given)[2].tolist()
        for option in ("masked", "visible", "separate")
    )
    assert sorted(masked + visible) == separate
    assert not set(masked) & set(visible)


def test_all_student_tokens_are_asked_for() -> None:
    assert Visible.reads_student_patches
    assert Visible.reads_teacher_patches
