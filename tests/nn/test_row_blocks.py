"""Blocks of rows: each row once, none larger than asked for."""

import pytest
import torch

from dinoswap.nn.row_blocks import row_blocks

SHAPES = [(), (0, 8), (1, 8), (7, 8), (2, 3, 8), (3, 2, 4, 8), (2, 0, 8), (3, 0), (5, 1000)]


@pytest.mark.parametrize("block", [1, 8, 20, 24, 50, 10**6])
@pytest.mark.parametrize("leading", SHAPES)
def test_every_row_is_in_one_block(leading: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinoswap.nn.row_blocks.CPU_BLOCK", block)
    visits = torch.zeros(*leading, 8)
    for rows in row_blocks(visits):
        assert visits[rows].numel() <= max(block, 8)
        visits[rows] += 1
    assert torch.equal(visits, torch.ones(*leading, 8))


def test_what_fits_is_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinoswap.nn.row_blocks.CPU_BLOCK", 6 * 8)
    assert len(list(row_blocks(torch.empty(2, 3, 8)))) == 1
    assert len(list(row_blocks(torch.empty(7, 8)))) == 2
    assert len(list(row_blocks(torch.empty(0, 8)))) == 0
