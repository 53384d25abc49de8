"""The primitives of schedules, by their formulas."""

import math

import numpy as np
import pytest

from dinoswap.optim.schedules import Phases, cosine, scaled_lr, steps, warmup_cosine, with_frozen_start
from fixtures import load_json

FIXTURE = load_json("schedules.json")


def test_lr_scaling() -> None:
    for batch, lr in FIXTURE["dinov2_lr_scaling"].items():
        expected = lr if isinstance(lr, float) else lr["lr"]
        assert scaled_lr(0.004, int(batch), "sqrt_1024") == pytest.approx(expected, rel=1e-15)
    assert scaled_lr(0.1, 512, "linear_256") == pytest.approx(0.2)
    assert scaled_lr(0.1, 512, "none") == 0.1


def test_frozen_start_and_past_the_end() -> None:
    schedule = cosine(1.0, 0.1, 6, warmup=2, start=0.5, frozen=1)
    expected = [0.0, 0.5, 1.0, *(0.1 + 0.45 * (1 + np.cos(np.pi * i / 3)) for i in range(3)), 0.1, 0.1]
    np.testing.assert_allclose([schedule[i] for i in range(8)], expected, rtol=1e-15)


def test_lengths_are_steps_or_shares() -> None:
    assert steps(12, 100, "warmup") == 12
    assert steps(0.1, 125_000, "warmup") == 12_500
    assert steps(0, 100, "warmup") == 0
    for bad in (1.5, -1, -0.1):
        with pytest.raises(ValueError, match="warmup"):
            steps(bad, 100, "warmup")


def test_warmup_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a warm-up of 20 steps \(\+ 0 frozen\) is longer than a schedule of 10"):
        cosine(1.0, 0.0, 10, warmup=20)


def test_the_peak_is_the_first_largest_value() -> None:
    assert cosine(1.0, 0.0, 10, warmup=4).peak == 3
    assert warmup_cosine(0.0, 1.0, 1.0, warmup=4, cosine_steps=0).peak == 4
    assert warmup_cosine(1.0, 1.0, 1.0, warmup=0, cosine_steps=0).peak == 0
    assert warmup_cosine(0.0, 0.0, 1.0, warmup=0, cosine_steps=5).peak == 4


def test_a_frozen_start_may_be_longer_than_what_changes() -> None:
    frozen = with_frozen_start(warmup_cosine(0.5, 1.0, 1.0, warmup=2, cosine_steps=0), 3)
    assert [frozen[step] for step in range(5)] == [0.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(("warmup", "cosine_steps"), [(0, 0), (3, 0), (0, 4), (2, 5)])
def test_phases_are_those_of_the_formula(warmup: int, cosine_steps: int) -> None:
    phases = Phases(start=0.5, peak=2.0, end=1.0, warmup=warmup, cosine=cosine_steps)
    expected = [0.5 + (2.0 - 0.5) * i / warmup for i in range(warmup)]
    expected += [1.0 + 0.5 * (1 + math.cos(math.pi * i / (cosine_steps - 1))) for i in range(cosine_steps)]
    expected += [1.0] * (10 - len(expected))
    assert [phases.schedule(10, "x")[step] for step in range(10)] == pytest.approx(expected, abs=1e-12)


def test_a_cosine_without_a_length_takes_the_rest_of_the_run() -> None:
    shares = Phases(start=0.0, peak=1.0, end=0.0, warmup=0.2, cosine=None)
    steps_ = Phases(start=0.0, peak=1.0, end=0.0, warmup=2, cosine=8)
    assert (shares.schedule(10, "x").values == steps_.schedule(10, "x").values).all()


def test_phases_longer_than_the_run_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"local_weight: a warm-up of 6 and a cosine of 5 steps .* shorten local_weight"
    ):
        Phases(start=0.0, peak=1.0, end=0.0, warmup=6, cosine=5).schedule(10, "local_weight")
