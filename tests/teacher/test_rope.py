"""The two-dimensional rotary embedding against rotations of complex numbers."""

import numpy as np
import torch
from da3_fixture import turned

from dinoswap.teacher.depth_anything.rope import global_positions, local_positions, rotate, rotation_table

CPU = torch.device("cpu")


def test_positions_of_local_blocks() -> None:
    expected = [[0, 0], [1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]
    assert local_positions((2, 3), CPU).tolist() == expected


def test_positions_of_global_blocks() -> None:
    assert global_positions((2, 1), CPU).tolist() == [[0, 0], [1, 1], [1, 1]]


def test_rotation() -> None:
    positions = local_positions((3, 37), CPU)
    x = torch.randn(2, 3, len(positions), 16, generator=torch.Generator().manual_seed(0))
    found = rotate(x, rotation_table(positions, 16))
    for token, place in enumerate(positions.tolist()):
        expected = turned(x[1, 2, token].double().numpy(), (place[0], place[1]))
        assert np.abs(found[1, 2, token].numpy() - expected).max() < 1e-5
    assert torch.equal(found[:, :, 0], x[:, :, 0])


def test_scores_depend_on_differences_of_positions() -> None:
    q, k = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0)).double()

    def score(a: tuple[float, float], b: tuple[float, float]) -> float:
        table = rotation_table(torch.tensor([a, b]), 16)
        return (rotate(q, table[:, :1]) * rotate(k, table[:, 1:])).sum().item()

    assert abs(score((3, 5), (1, 9)) - score((12, 7), (10, 11))) < 1e-5
    assert abs(score((3, 5), (1, 9)) - score((3, 5), (1, 10))) > 1e-2


def test_global_rotation_tells_the_special_token_from_patches_alone() -> None:
    x = torch.randn(1, 1, 5, 16, generator=torch.Generator().manual_seed(0))
    y = rotate(x, rotation_table(global_positions((2, 2), CPU), 16))
    before, after = x @ x.transpose(-1, -2), y @ y.transpose(-1, -2)
    assert (before - after)[..., 1:, 1:].abs().max() < 1e-5
    assert (before - after)[..., 0, 1:].abs().max() > 1e-2


def test_tables_are_float32() -> None:
    table = rotation_table(local_positions((2, 2), CPU), 8)
    assert table.dtype == torch.float32
    assert table.shape == (2, 5, 8)
    assert rotate(torch.randn(1, 1, 5, 8, dtype=torch.bfloat16), table).dtype == torch.float32
