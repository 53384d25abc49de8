"""What torch's DistributedDataParallel is told of the model, in a group of one rank."""

from collections.abc import Iterator

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from dinoswap import build
from dinoswap.distributed import group
from small_models import named_parameters, small_batch, small_trainer

DA3 = ["da3=enabled", "da3.teacher.variant=small", "da3.projector_hidden_dim=16"]


@pytest.fixture(autouse=True)
def of_several(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models are built as on one of several ranks."""
    monkeypatch.setattr(build, "world_size", lambda: 2)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("overrides", "static"),
    [([], True), (["distributed.static_graph=false"], False), (["trainer.accumulate=2"], False), (DA3, False)],
)
def test_the_graph_is_static_where_no_other_backward_pass_is_made(overrides: list[str], static: bool) -> None:
    """Whose gradients torch would count too: those of micro-batches, and of a check before the first step."""
    called = small_trainer("distributed=ddp", *overrides).called
    assert isinstance(called, DistributedDataParallel)
    assert called.static_graph == static


def test_gradients_lie_in_the_buckets_that_travel() -> None:
    """They take no memory of their own."""
    trainer = small_trainer("distributed=ddp")
    for step in range(2):  # torch makes other buckets after the first
        trainer.step(step, [small_batch(step)])
    gradients = [p.grad for p in named_parameters(trainer).values() if p.grad is not None]
    places = {gradient.untyped_storage().data_ptr(): gradient.untyped_storage().nbytes() for gradient in gradients}
    assert len(places) < 5 < len(gradients)
    assert sum(places.values()) == sum(gradient.nbytes for gradient in gradients)


def test_gpus_are_named_where_they_communicate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert group.device_of(group.backend_of(["gpu", "gpu"])) == torch.device("cuda", 3)
    assert group.device_of(group.backend_of(["gpu", "cpu"])) is None
