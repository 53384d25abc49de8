from collections import Counter
from math import factorial

import numpy as np
import pytest

from dinoswap.data.order import Order, permuted


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 15, 16, 17, 97, 100, 1000, 9973, 65536])
def test_every_epoch_is_a_permutation(n):
    epochs = Order([n], seed=3).rows(np.arange(3 * n)).reshape(3, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(n), (3, 1)))


def test_a_million_rows_without_repeats_and_without_memory():
    rows = Order([10**6], seed=0).rows(np.arange(10**6))
    assert np.bincount(rows, minlength=10**6).max() == 1
    far = Order([10**12], seed=0).rows(np.array([0, 10**12 - 1, 5 * 10**12]))
    assert (far >= 0).all() and (far < 10**12).all()


def test_rows_depend_on_their_position_alone():
    order = Order([37], seed=1)
    positions = np.random.default_rng(0).permutation(200)
    together = order.rows(positions)
    alone = [int(order.rows(np.array([p]))[0]) for p in positions]
    assert together.tolist() == alone


def test_seeds_and_epochs_differ():
    a, b = Order([50], seed=0).rows(np.arange(100)).reshape(2, 50)
    c = Order([50], seed=1).rows(np.arange(50))
    assert len({tuple(a), tuple(b), tuple(c)}) == 3


def chi_square(observed: np.ndarray) -> float:
    expected = observed.mean()
    return float(((observed - expected) ** 2 / expected).sum())


def permutations(n: int, count: int) -> np.ndarray:
    """[count, n]: one permutation per key."""
    keys = np.random.default_rng(1).integers(0, 2**64, count, dtype=np.uint64).repeat(n)
    index = np.tile(np.arange(n, dtype=np.uint64), count)
    return permuted(index, np.full_like(index, n), keys).astype(np.int64).reshape(count, n)


@pytest.mark.parametrize(("n", "bound"), [(2, 10.8), (3, 20.5), (4, 49.7)])  # 0.999 quantiles, n! - 1 degrees
def test_all_permutations_of_a_few_rows_are_equally_likely(n, bound):
    epochs = permutations(n, 6000)
    counts = Counter(map(tuple, epochs.tolist()))
    assert len(counts) == factorial(n)
    assert chi_square(np.array(list(counts.values()))) < bound


def test_rows_are_uniform_over_places_and_steps():
    n, epochs = 10, 3000
    rows = permutations(n, epochs)
    places = np.stack([np.bincount(rows[:, i], minlength=n) for i in range(n)])
    assert chi_square(places) < 126  # 0.999 quantile for (n - 1)^2 = 81 degrees of freedom
    jumps = np.bincount(((rows[:, 1:] - rows[:, :-1]) % n).ravel(), minlength=n)[1:]
    assert chi_square(jumps) < 27.9  # 9 - 1 degrees of freedom


@pytest.mark.parametrize("blocks", [[1, 1], [3, 5, 2], [0, 4, 0, 2], [7] * 13])
@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_blocks_every_epoch_is_a_permutation(blocks, window):
    n = sum(blocks)
    rows = Order(blocks, seed=2, shuffle_window=window).rows(np.arange(2 * n)).reshape(2, n)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(n), (2, 1)))


def test_a_reader_touches_one_window_of_blocks_at_a_time():
    order = Order([10] * 12, seed=4, shuffle_window=3)
    windows = (order.rows(np.arange(120)) // 10).reshape(4, 30)
    assert [len(set(w)) for w in windows.tolist()] == [3, 3, 3, 3]
    assert windows.tolist() != np.sort(windows, axis=1).tolist()  # rows of the three blocks are mixed
    first_of_epochs = {tuple(sorted(set((order.rows(np.arange(30) + 120 * e) // 10).tolist()))) for e in range(20)}
    assert len(first_of_epochs) > 10  # blocks meet other blocks in every epoch


def test_the_order_never_changes_between_versions():
    assert Order([20], seed=0).rows(np.arange(8)).tolist() == [2, 9, 19, 0, 11, 4, 8, 10]


def test_refusals():
    with pytest.raises(ValueError, match="empty"):
        Order([], seed=0)
    with pytest.raises(ValueError, match="empty"):
        Order([0, 0], seed=0)
    with pytest.raises(ValueError, match="shuffle_window=0"):
        Order([3], seed=0, shuffle_window=0)
