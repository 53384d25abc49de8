"""clustering=masked: the student's masked tokens."""

import torch
from clustering_contexts import FIXTURE, MASK, clustering, legacy_context

from contexts import Softmax
from dinoswap.clustering.masked import Masked
from dinoswap.reduction.per_token import PerToken


def test_the_masked_tokens_learn_at_their_positions() -> None:
    given, _, _ = legacy_context()
    tokens, mask, positions = clustering("masked", Softmax(), PerToken()).select(given)
    assert torch.equal(tokens, FIXTURE["proto/student"][MASK[0]])
    assert torch.equal(mask, MASK)
    assert positions.tolist() == [i for i, hidden in enumerate(MASK.flatten().tolist()) if hidden]


def test_no_student_tokens_are_asked_for_beside_the_masked_ones() -> None:
    assert not Masked.reads_student_patches
    assert Masked.reads_teacher_patches
