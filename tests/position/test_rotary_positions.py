"""Rotary positions against tables that the official DINOv3 code made, and against what a rotation has to be."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dinoswap.position.base import Rotation, rotated
from dinoswap.position.rope import Rope
from fixtures import DINOV3
from parity.dinov3_networks import scenarios

HEAD = 16
AUGMENTED = {"shift": 0.25, "jitter": 1.5, "rescale": 2.0}
TOKENS = torch.zeros(1)
TABLES = {name: rows for name, rows in scenarios(DINOV3 / "vit_dinov3.npz").items() if name.startswith("rope ")}


def rope(**changes: object) -> Rope:
    plain = dict.fromkeys(("periods", "shift", "jitter", "rescale"))
    return Rope(**{"base": 100.0, "normalise": "separate", "dtype": "fp32", **plain, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_the_official_ones(kind: str) -> None:
    """Bit for bit, in bfloat16 too, with the official draws."""
    rows = list(TABLES[kind]())
    assert len(rows) >= 3
    assert [row for row in rows if not row.passed] == []


def test_scores_depend_on_the_offset_of_two_patches_alone() -> None:
    """q_a . k_b is the same for all pairs of patches that are equally far apart, whatever q and k are."""
    (rotation,) = rope().rotations([(4, 5)], HEAD, TOKENS, False, 0)
    assert rotation is not None
    query, key = torch.randn(2, HEAD, generator=torch.Generator().manual_seed(0))
    qkv = torch.stack([query, key, key]).view(1, 1, 3, 1, HEAD).expand(1, 20, 3, 1, HEAD)
    turned = rotated(qkv, rotation)[0, :, :, 0]  # [N, 3, d]
    scores = (turned[:, 0] @ turned[:, 1].T).view(4, 5, 4, 5)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[2, 2, 3, 4])
    assert not torch.allclose(scores[0, 0, 1, 2], scores[0, 0, 2, 1])
    torch.testing.assert_close(turned.norm(dim=-1)[:, 0], query.norm().expand(20))
    assert torch.equal(turned[:, 2], qkv[0, :, 2, 0])


def test_tokens_that_are_no_patches_are_not_turned_but_rounded() -> None:
    (rotation,) = rope(dtype="bf16").rotations([(2, 2)], HEAD, TOKENS, False, 0)
    assert isinstance(rotation, Rotation)
    qkv = torch.randn(2, 7, 3, 1, HEAD, generator=torch.Generator().manual_seed(0))
    turned = rotated(qkv, rotation)
    assert torch.equal(turned[:, :3, :2], qkv[:, :3, :2].bfloat16().float())
    assert torch.equal(turned[:, :, 2], qkv[:, :, 2])
    assert turned.dtype == torch.float32


def test_groups_of_channels_are_turned_apart() -> None:
    draws = torch.Generator().manual_seed(0)
    sin, cos = torch.randn(2, 5, HEAD, generator=draws)
    qkv = torch.randn(2, 6, 3, 3, HEAD, generator=draws)
    halves = [
        rotated(*parts)
        for parts in zip(qkv.chunk(2, -1), map(Rotation, sin.chunk(2, -1), cos.chunk(2, -1)), strict=True)
    ]
    assert torch.equal(rotated(qkv, Rotation(sin, cos, groups=2)), torch.cat(halves, dim=-1))


def test_draws_are_for_training_and_new_for_each_entry() -> None:
    position = rope(**AUGMENTED)
    torch.manual_seed(0)
    first, second = position.rotations([(3, 3), (3, 3)], HEAD, TOKENS, True, 0)
    assert first is not None
    assert second is not None
    assert not torch.equal(first.sin, second.sin)
    state = torch.get_rng_state()
    (still,) = position.rotations([(3, 3)], HEAD, TOKENS, False, 0)
    assert still is not None
    assert torch.equal(torch.get_rng_state(), state)
    (plain,) = rope().rotations([(3, 3)], HEAD, TOKENS, True, 0)
    assert plain is not None
    assert torch.equal(still.sin, plain.sin)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": None}, "give either base or periods"),
        ({"periods": [1.0, 2.0]}, "give either base or periods"),
        ({"base": 0.0}, "base=0.0: must be above 0"),
        ({"base": None, "periods": [2.0, 1.0]}, r"periods=\[2.0, 1.0\]: must be the smallest and the largest"),
        ({"jitter": 0.5}, "jitter=0.5: must be at least 1"),
        ({"shift": -0.1}, "shift=-0.1: must be at least 0"),
    ],
)
def test_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rope(**changes)


def test_a_head_whose_width_is_no_multiple_of_four_is_refused() -> None:
    with pytest.raises(ValueError, match="embed_dim / num_heads=18 must be a multiple of 4"):
        rope().check(18)


def test_tables_of_fake_tensors_are_not_kept() -> None:
    """A step that is planned by its shapes leaves nothing to one that is computed, by a copy of its network."""
    position = rope()
    with FakeTensorMode():
        (fake,) = position.rotations([(5, 7)], 16, torch.zeros(1), False, 0)
    (computed,) = position.rotations([(5, 7)], 16, torch.zeros(1), False, 0)
    assert isinstance(fake.sin, FakeTensor)
    assert type(computed.sin) is torch.Tensor
