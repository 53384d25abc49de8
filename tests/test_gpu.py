"""A step on a GPU is that of the CPU, and so is what features are judged by. `pytest -m gpu` runs it; all other tests
have the GPU hidden from them."""

import numpy as np
import pytest
import torch

from dinoswap.augmentation.photometric import UNIFORMS, RandomPhotometry
from dinoswap.build import build_pipeline, build_source, build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.data.transfer import Transfer
from dinoswap.metric.base import Part
from dinoswap.photometry import changed
from dinoswap.run.host_copies import HostCopies
from options import build_option
from small_models import small_batch

DEVICE = "cuda"

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("preset", ["official", "legacy", "aligned"])
def test_the_losses_are_those_of_the_cpu(preset: str) -> None:
    assert [*losses(preset, DEVICE)] == pytest.approx([*losses(preset, "cpu")], rel=1e-4)


def losses(preset: str, device: str) -> list[float]:
    """Of three steps in float32."""
    config = compose_config(["recipe=smoke", f"preset={preset}", f"trainer.device={device}"])
    trainer = build_trainer(config)
    dataset = build_pipeline(config, trainer.model)(build_source(config).train())
    mean, std = (torch.tensor(config["data"][key], device=device) for key in ("mean", "std"))
    batches = [dataset[step].to(torch.device(device)).normalised(mean, std) for step in range(3)]
    return [float(trainer.step(step, [batch])["loss"]) for step, batch in enumerate(batches)]


def test_the_host_waits_for_no_copy_that_a_checkpoint_is_written_from() -> None:
    """It holds the values of before what the GPU is given next."""
    copies, weight = HostCopies(), torch.zeros(2**24, device=DEVICE)
    copies.take({"weight": weight})
    copies.wait()
    torch.cuda.set_sync_debug_mode("error")
    try:
        weight.fill_(1)
        taken = copies.take({"weight": weight})["weight"]
        weight.fill_(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    copies.wait()
    assert taken.is_pinned()
    assert bool((taken == 1).all())


def test_a_batch_arrives_while_the_device_computes() -> None:
    """Only what reads the batch waits for it."""
    batch, device = small_batch(0).pin_memory(), torch.device(DEVICE)
    transfer = Transfer(device)
    transfer.copy(batch)  # makes room in the memory of the stream
    torch.cuda.synchronize()
    torch.cuda._sleep(2**31)  # cycles: about a second
    torch.cuda.set_sync_debug_mode("error")
    try:
        arriving = transfer.copy(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert transfer.beside is not None
    transfer.beside.synchronize()
    assert not torch.cuda.current_stream().query()
    for name, tensor in arriving.tensors().items():
        assert torch.equal(tensor.cpu(), batch.tensors()[name]), name


def test_photometric_changes_are_those_of_the_cpu() -> None:
    """But for the order of the sums of a blur."""
    recipe = RandomPhotometry(0.8, 0.4, 0.4, 0.2, 0.1, 0.2, blur=0.5, solarize=0.2)
    rows = np.random.default_rng(0).random((64, UNIFORMS)).tolist()
    numbers = torch.stack([recipe.draw(row).numbers() for row in rows])[None]
    pixels = torch.randint(0, 256, (1, 64, 3, 96, 96), dtype=torch.uint8)
    given = pixels.to(DEVICE), numbers.to(DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = changed(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    levels = (found.cpu() - changed(pixels, numbers)).abs()
    assert levels.max() <= 1
    assert levels.mean() <= 1e-3


@pytest.mark.parametrize(("family", "changes"), [("knn", {}), ("linear", {"solver": "torch"}), ("linear_sgd", {})])
def test_accuracies_are_those_of_the_cpu(family: str, changes: dict[str, str]) -> None:
    """But for an image or two between two classes."""
    metric = build_option(f"metric/{family}", **changes)
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(7, 32, generator=generator)
    labels = [torch.randint(0, 7, (count,), generator=generator) for count in (3000, 1500)]
    noise = {kind: [torch.randn(len(part), 32, generator=generator) for part in labels] for kind in metric.reads}
    found = []
    for device in ("cpu", DEVICE):
        train, test = (
            Part({kind: centres[part] + 2 * noise[kind][place] for kind in metric.reads}, part, device)
            for place, part in enumerate(labels)
        )
        found.append(metric.measure(train, test))
    assert found[0] == pytest.approx(found[1], abs=0.2)
