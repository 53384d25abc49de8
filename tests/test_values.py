"""The batch as a whole: its clean crops of several sizes go through everything that its other tensors go through."""

from dataclasses import replace

import torch

from dinoswap.values import Batch
from small_models import small_batch


def with_clean_crops(batch: Batch, *widths: int) -> Batch:
    return replace(batch, clean_crops={width: torch.full((2, 4, 3, width, width), width) for width in widths})


def test_every_tensor_has_a_name() -> None:
    batch = with_clean_crops(small_batch(0), 8, 32)
    crops = {"global_crops", "local_crops", "extra_crops", "clean_crops.8", "clean_crops.32"}
    assert set(batch.tensors()) == crops | {"mask", "masked_indices", "masked_crops", "indices"}
    assert batch.tensors()["clean_crops.32"] is batch.clean_crops[32]


def test_a_batch_is_rebuilt_from_its_tensors() -> None:
    for widths in ((), (8,), (8, 32)):
        batch = with_clean_crops(small_batch(0), *widths)
        again = Batch.of_tensors(batch.tensors())
        assert list(again.clean_crops) == list(widths)
        assert again.tensors() == batch.tensors()  # the same tensors, compared by identity first


def test_tensors_of_earlier_versions_had_one_size_of_clean_crops() -> None:
    batch = small_batch(0)
    clean = torch.ones(2, 4, 3, 32, 32)
    assert Batch.of_tensors(batch.tensors() | {"clean_crops": clean}).clean_crops == {32: clean}
    assert Batch.of_tensors(batch.tensors() | {"clean_crops": torch.empty(0, 4, 3, 0, 0)}).clean_crops == {}


def test_a_change_reaches_every_tensor_and_nothing_else() -> None:
    batch = replace(with_clean_crops(small_batch(0), 8, 32), corrupt=((3, "bad"),))
    doubled = batch.map(lambda t: t + t)
    assert doubled.corrupt == batch.corrupt
    for name, tensor in batch.tensors().items():
        assert torch.equal(doubled.tensors()[name], tensor + tensor), name


def test_clean_crops_are_normalised_as_the_others_are() -> None:
    batch = small_batch(0)
    pixels = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = replace(batch, global_crops=pixels, clean_crops={32: pixels})
    normalised = batch.normalised(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3]))
    assert torch.equal(normalised.clean_crops[32], normalised.global_crops)
    assert normalised.global_crops.dtype == torch.float32
