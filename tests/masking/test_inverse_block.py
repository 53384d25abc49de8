"""masking=inverse_block: what stays visible is one block, of the size that is left, anywhere on the grid."""

import numpy as np
import pytest
from mask_checks import counts, masking, sampler, seeded

from dinoswap.masking.inverse_block import InverseBlockMaskGenerator

GRIDS = [(14, 14), (7, 7), (5, 12), (12, 5), (2, 16), (1, 9)]


def is_block(visible: np.ndarray) -> bool:
    """Whether it is a rectangle filled row by row, but perhaps for the end of its last row."""
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    inside = visible[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    last = np.count_nonzero(inside[-1])
    return bool(inside[:-1].all() and inside[-1, :last].all())


def is_block_of_the_torus(visible: np.ndarray) -> bool:
    """The same after one of the shifts around the grid."""
    height, width = visible.shape
    return any(is_block(np.roll(visible, (y, x), (0, 1))) for y in range(height) for x in range(width))


def test_what_is_a_block() -> None:
    block = np.zeros((4, 5), dtype=bool)
    block[1:3, 1:4] = True
    assert is_block(block)
    block[2, 3] = False
    assert is_block(block)
    assert is_block_of_the_torus(np.roll(block, (2, 3), (0, 1)))
    block[2, 3], block[1, 2] = True, False
    assert not is_block_of_the_torus(block)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_visible_region_is_a_block(grid: tuple[int, int]) -> None:
    fixed, rolled = (InverseBlockMaskGenerator(grid, 0.5, roll) for roll in (False, True))
    for target in range(1, grid[0] * grid[1]):
        assert is_block(~fixed(target, seeded(target)))
        if target % 7 == 0:
            assert is_block_of_the_torus(~rolled(target, seeded(target)))


@pytest.mark.parametrize("roll", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_exactly_the_target(grid: tuple[int, int], roll: bool) -> None:
    generator = InverseBlockMaskGenerator(grid, 0.5, roll)
    for target in range(grid[0] * grid[1] + 1):
        assert (counts(generator, target, draws=3, seed=target) == target).all()


@pytest.mark.parametrize(("min_aspect", "expected"), [(0.25, range(4, 13)), (0.5, range(5, 10)), (1.0, range(6, 7))])
def test_aspects_reach_their_bounds_and_not_further(min_aspect: float, expected: range) -> None:
    """A visible block of 36 of 16 x 16 patches is between 6 sqrt(min_aspect) and 6 / sqrt(min_aspect) patches wide,
    rounded up; rows that are not needed stay hidden."""
    generator, rng = InverseBlockMaskGenerator((16, 16), min_aspect, roll=False), seeded(0)
    blocks = [~generator(256 - 36, rng) for _ in range(400)]
    assert {int(visible.any(0).sum()) for visible in blocks} == set(expected)
    assert all(visible.any(1).sum() == -(-36 // visible.any(0).sum()) for visible in blocks)


def test_every_patch_is_hidden_equally_often_when_rolled() -> None:
    def frequency(roll: bool) -> np.ndarray:
        """Of a grid whose sides cannot be mistaken for each other."""
        masks = sampler(masking("inverse_block", 1.0, (0.65, 0.65), roll=roll), images=10, crop_size=(192, 96))
        found: np.ndarray = np.concatenate([masks(step).reshape(-1, 12, 6) for step in range(100)]).mean(0)
        return found

    assert np.abs(frequency(True) - 46 / 72).max() < 5 * np.sqrt(0.25 / 2000)  # int(0.65 * 72) = 46
    centred = frequency(False)
    assert centred[5:7, 2:4].max() < 0.4
    assert centred[0, 0] > 0.9
