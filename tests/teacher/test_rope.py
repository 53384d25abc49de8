"""The rotations of Depth Anything 3 against rotations of complex numbers: which blocks turn which patches by what."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from da3_fixture import MONO, TINY, turned
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dinoswap.position.base import Rotation, rotated
from dinoswap.teacher.depth_anything.rope import DA3Position

HEAD = 16
LOCAL, GLOBAL = 2, 3  # blocks of TINY, in which rotations start at 2


def rotation(grid: tuple[int, int], block: int, dtype: torch.dtype = torch.float32) -> Rotation:
    (found,) = DA3Position(TINY).rotations([grid], HEAD, torch.zeros(1, dtype=dtype), False, block)
    assert found is not None
    return found


def heads(tokens: int) -> Tensor:
    """Random [2, T, 3, 3, d]."""
    return torch.randn(2, tokens, 3, 3, HEAD, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("block", [LOCAL, GLOBAL])
def test_patches_are_turned_by_row_and_column_and_the_special_token_is_not(block: int) -> None:
    qkv = heads(1 + 3 * 37)
    found = rotated(qkv, rotation((3, 37), block))
    for patch in range(3 * 37):
        place = (1 + patch // 37, 1 + patch % 37) if block == LOCAL else (1, 1)
        for part in range(2):  # queries and keys
            expected = turned(qkv[1, 1 + patch, part, 2].double().numpy(), place)
            assert np.abs(found[1, 1 + patch, part, 2].numpy() - expected).max() < 1e-5
    assert torch.equal(found[:, 0], qkv[:, 0])
    assert torch.equal(found[:, :, 2], qkv[:, :, 2])


def scores(qkv: Tensor) -> Tensor:
    """q . k of the first head, [T, T]."""
    return qkv[0, :, 0, 0] @ qkv[0, :, 1, 0].T


def test_scores_depend_on_differences_of_positions() -> None:
    grid = (12, 13)
    found = scores(rotated(heads(1)[:1].expand(-1, 156, -1, -1, -1), rotation(grid, LOCAL))).view(*grid, *grid)
    assert abs(found[2, 4, 0, 8] - found[11, 6, 9, 10]) < 1e-4
    assert abs(found[2, 4, 0, 8] - found[2, 4, 0, 9]) > 1e-2


def test_global_blocks_tell_the_special_token_from_patches_alone() -> None:
    qkv = heads(5)
    difference = (scores(rotated(qkv, rotation((2, 2), GLOBAL))) - scores(qkv)).abs()
    assert difference[1:, 1:].max() < 1e-5
    assert difference[0, 1:].max() > 1e-2


def test_blocks_before_the_start_turn_nothing() -> None:
    later = DA3Position(replace(TINY, rope_start=4))
    found = [later.rotations([(2, 2), (3, 3)], HEAD, torch.zeros(1), False, block) for block in range(6)]
    assert [[each is None for each in one] for one in found] == [[True, True]] * 4 + [[False, False]] * 2
    assert DA3Position(MONO).rotations([(2, 2)], HEAD, torch.zeros(1), False, 3) == [None]


@pytest.mark.parametrize("block", [LOCAL, GLOBAL])
def test_tables_are_float32_and_made_once(block: int) -> None:
    found = rotation((2, 2), block, torch.bfloat16)
    assert found.sin.shape == found.cos.shape == (4, HEAD)
    assert found.sin.dtype == found.cos.dtype == torch.float32
    assert rotation((2, 2), block, torch.bfloat16).sin is found.sin
    wide = rotation((2, 2), block, torch.float64)  # the same numbers, so that tokens in float64 are not rounded
    assert wide.sin.dtype == torch.float64
    assert torch.equal(wide.sin, found.sin.double())


def test_tables_of_fake_tensors_are_not_kept() -> None:
    """A step that is planned by its shapes leaves nothing to one that is computed."""
    with FakeTensorMode():
        assert isinstance(rotation((5, 7), LOCAL).sin, FakeTensor)
    assert type(rotation((5, 7), LOCAL).sin) is Tensor
