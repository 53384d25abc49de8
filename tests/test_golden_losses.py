"""Twenty steps of every preset against tests/golden/losses; two steps of every pair of options: test_axes.py.

Where this fails and the change of numbers is meant: `make golden`, in a commit of its own that says why.
"""

import numpy as np
import pytest

from renew_golden import LOSSES, PAIRS, golden_losses, preset_names


@pytest.mark.parametrize("preset", preset_names())
def test_losses_of_a_preset(preset: str) -> None:
    texts = golden_losses(preset), (LOSSES / f"{preset}.txt").read_text()
    ours, golden = (np.array([line.split() for line in text.splitlines()], dtype=float) for text in texts)
    assert ours.shape == (20, 2)
    np.testing.assert_array_equal(ours[:, 0], golden[:, 0])
    # One and two threads differ by 2e-7. Another CPU adds in yet another order.
    np.testing.assert_allclose(ours[:, 1], golden[:, 1], rtol=1e-4)


def test_all_differ() -> None:
    """Of two arms with equal losses one tests nothing."""
    presets = [(LOSSES / f"{preset}.txt").read_text() for preset in preset_names()]
    pairs = [line.split(" ", 2)[:2] for line in PAIRS.read_text().splitlines()]
    assert len(set(presets)) == len(presets)
    assert len({tuple(losses) for losses in pairs}) == len(pairs)
