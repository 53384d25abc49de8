from dataclasses import replace

import numpy as np
import pytest
import torch
from data_fakes import FakeImages, FakeMasks, augmentation, one_pipeline, picture

from dinoswap.data.corrupt import TooManyCorrupt
from dinoswap.data.order import Order
from dinoswap.data.steps import Pipeline, StepDataset, loader
from dinoswap.rng import derive, numpy_generator
from dinoswap.values import Batch, Views, masked_positions

CROPS = ("global_crops", "local_crops", "extra_crops")


def dataset(count: int = 50, batch: int = 8, corrupt: frozenset[int] = frozenset(), **more) -> StepDataset:
    images = FakeImages(count, corrupt)
    return StepDataset(images, Order(images.blocks, 7), *one_pipeline(batch), 7, batch, **more)


def assert_equal(a: Batch, b: Batch) -> None:
    ours, theirs = a.tensors(), b.tensors()
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert a.corrupt == b.corrupt


def joined(parts: list[Batch]) -> Batch:
    """The slices of a step, put together again."""
    mask = torch.cat([part.mask for part in parts], dim=1)
    crops = {name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in CROPS}
    return Batch(
        **crops,
        mask=mask,
        **masked_positions(mask),
        indices=torch.cat([part.indices for part in parts]),
        clean_crops={width: torch.cat([part.clean_crops[width] for part in parts], dim=1) for width in (4, 6)},
        corrupt=tuple(entry for part in parts for entry in part.corrupt),
    )


def test_batch_by_hand():
    batch = dataset()[3]
    positions = range(24, 32)
    rows = Order([50], 7).rows(np.array(positions)).tolist()
    assert batch.indices.tolist() == rows and batch.corrupt == ()
    assert batch.global_crops.shape == (2, 8, 3, 4, 4) and batch.global_crops.dtype == torch.uint8
    assert batch.local_crops.shape == (3, 8, 3, 2, 2)
    assert batch.extra_crops.shape[:3] == (0, 8, 3)
    clean_shapes = {width: crops.shape for width, crops in batch.clean_crops.items()}
    assert clean_shapes == {width: (2, 8, 3, width, width) for width in (4, 6)}
    for i, (position, row) in enumerate(zip(positions, rows, strict=True)):
        views = augmentation(picture(row), numpy_generator(7, "augment", position))
        for c in range(3):
            assert torch.equal(batch.local_crops[c, i], views.local_crops[c])
        for c in range(2):
            for width, crops in batch.clean_crops.items():
                assert torch.equal(crops[c, i], views.clean_crops[width][c])
            assert torch.equal(batch.global_crops[c, i], views.global_crops[c])
    mask = FakeMasks(8)(3)
    assert torch.equal(batch.mask, torch.from_numpy(mask))
    expected = [i for i, hidden in enumerate(mask.reshape(-1).tolist()) if hidden]
    assert batch.masked_indices.tolist() == expected and batch.masked_indices.dtype == torch.int64


def doubled(image: np.ndarray, rng: np.random.Generator) -> Views:
    """The views of `augmentation`, with crops of twice the size."""
    views = augmentation(image, rng)
    return replace(
        views, global_crops=[crop.repeat_interleave(2, 1).repeat_interleave(2, 2) for crop in views.global_crops]
    )


def third(step: int) -> int:
    return int(step % 3 == 0)


def mixed(**more) -> StepDataset:
    """Crops of twice the size in every third step."""
    plain = dataset(**more)
    return replace(plain, pipelines=[*plain.pipelines, Pipeline(doubled, FakeMasks(8), 1 / 3)], choose=third)


def test_the_pipeline_of_a_step_makes_it_on_every_rank_and_in_every_worker():
    both, plain = mixed(), dataset()
    assert [both[step].global_crops.shape[-1] for step in range(7)] == [8, 4, 4, 8, 4, 4, 8]
    assert_equal(both[1], plain[1])
    assert_equal(both.made_by(both.pipelines[0], 3), plain[3])
    assert torch.equal(both[3].global_crops[..., ::2, ::2], plain[3].global_crops)  # the same draws
    for a, b in zip(map(both.__getitem__, range(2, 7)), loader(mixed(), 2, 7, 2, False), strict=True):
        assert_equal(a, b)
    ranks = [mixed(rank=rank, world_size=2, accumulate=2) for rank in range(2)]
    for step in range(4):
        parts = [ranks[rank][2 * step + micro] for micro in range(2) for rank in range(2)]
        assert_equal(joined(parts), both[step])


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_the_batches(workers):
    plain = list(loader(dataset(), 0, 6, 0, False))
    assert len(plain) == 6
    for a, b in zip(plain, loader(dataset(), 0, 6, workers, False), strict=True):
        assert_equal(a, b)


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (4, 1), (1, 4), (2, 2), (4, 2)])
def test_slices_of_ranks_and_micro_steps_join_to_the_step(world_size, accumulate):
    corrupt = frozenset({2, 30})
    whole = dataset(corrupt=corrupt)
    ranks = [dataset(corrupt=corrupt, rank=r, world_size=world_size, accumulate=accumulate) for r in range(world_size)]
    for step in (0, 5, 11):
        parts = [ranks[r][step * accumulate + micro] for micro in range(accumulate) for r in range(world_size)]
        assert all(part.images == 8 // (world_size * accumulate) for part in parts)
        for part in parts:
            assert torch.equal(part.masked_indices, part.mask.flatten().nonzero().flatten())
        assert_equal(joined(parts), whole[step])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resuming_needs_the_step_alone(accumulate):
    whole = list(loader(dataset(accumulate=accumulate), 0, 8, 0, False))
    rest = list(loader(dataset(accumulate=accumulate), 5, 8, 2, False))
    assert len(rest) == 3 * accumulate
    for a, b in zip(whole[5 * accumulate :], rest, strict=True):
        assert_equal(a, b)


def test_one_epoch_visits_every_image_once_across_batches():
    batches = list(loader(dataset(count=40), 0, 5, 0, False))
    assert sorted(torch.cat([b.indices for b in batches]).tolist()) == list(range(40))


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_images_than_a_batch_repeat_with_other_crops(count):
    batch = dataset(count=count)[0]
    assert np.bincount(batch.indices.numpy(), minlength=count).min() >= 8 // count
    assert len({crop.numpy().tobytes() for crop in batch.global_crops[0]}) == 8


def test_a_corrupt_image_is_replaced_by_a_keyed_draw_and_reported():
    good, bad = dataset(), dataset(corrupt=frozenset({int(dataset()[2].indices[5])}))
    row, position = int(good[2].indices[5]), 2 * 8 + 5
    batch = bad[2]
    assert batch.corrupt == ((row, f"bad {row}"),)
    assert int(batch.indices[5]) == derive(7, "replace", position, 0) % 50
    expected = augmentation(picture(int(batch.indices[5])), numpy_generator(7, "augment", position))
    assert torch.equal(batch.global_crops[0, 5], expected.global_crops[0])
    others = [i for i in range(8) if i != 5]
    assert torch.equal(batch.global_crops[:, others], good[2].global_crops[:, others])
    assert_equal(batch, next(loader(bad, 2, 3, 1, False)))


def test_nothing_but_corrupt_images_stops_with_the_list():
    with pytest.raises(TooManyCorrupt, match=r"100 images in a row(.|\n)*image [0-4]: bad [0-4]"):
        dataset(count=5, corrupt=frozenset(range(5)))[0]
    with pytest.raises(TooManyCorrupt, match="image 3: bad 3"):
        list(loader(dataset(count=5, corrupt=frozenset(range(5))), 0, 1, 1, False))


def test_almost_only_corrupt_images_still_make_a_batch():
    batch = dataset(count=20, corrupt=frozenset(range(1, 20)))[0]
    assert batch.indices.tolist() == [0] * 8 and len(batch.corrupt) >= 7


def test_global_generators_are_left_alone():
    torch.manual_seed(0)
    expected = torch.get_rng_state()
    for workers in (0, 1):
        next(loader(dataset(), 0, 2, workers, False))
    assert torch.equal(torch.get_rng_state(), expected)


def test_refusals():
    with pytest.raises(ValueError, match=r"data.batch_size=8.*multiple of 3"):
        dataset(world_size=3)
    with pytest.raises(ValueError, match=r"data.batch_size=0"):
        dataset(batch=0)
    with pytest.raises(ValueError, match="50 rows, the data set 49"):
        StepDataset(FakeImages(49), Order([50], 0), *one_pipeline(8), 0, 8)
