"""A seed of its own for one random stream changes the draws of that stream, and not a bit of any other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinoswap.build import build_pipeline, build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.config.identity import identity, run_id
from dinoswap.config.schema import ConfigError
from dinoswap.config.streams import STREAMS, stream_seeds
from dinoswap.data.images import Images
from dinoswap.run.checkpoint import Checkpoint, require_same_config

SMOKE = ["recipe=smoke", "model.drop_path=0.3", "data.batch_size=4", "trainer.device=cpu", "seed=3"]
MIXED = ["resolution=mixed", "resolution.global_sizes=[64,32]", "resolution.local_sizes=[32,16]"]


class SamePicture(Images):
    """Ten rows of one picture, so that crops do not tell which row a position has."""

    labels, classes, blocks = None, None, (10,)

    def __len__(self) -> int:
        return 10

    def load(self, row: int) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)

    def name(self, row: int) -> str:
        return f"row {row}"


def draws(*overrides: str) -> dict[str, Any]:
    """What a run draws by stream: its initial weights, the rows of two steps, their crops and masks, and the state of
    torch's generator before the first forward pass."""
    trainer = build_trainer(config := compose_config([*SMOKE, *overrides]))
    dataset = build_pipeline(config, trainer.model)(SamePicture())
    batches, states = [dataset[0], dataset[1]], list[torch.Tensor]()
    drawn = {
        "init": torch.cat([weight.detach().flatten().clone() for weight in trainer.model.student.parameters()]),
        "order": torch.cat([batch.indices for batch in batches]),
        "augmentation": torch.cat([b.flatten() for batch in batches for b in (batch.global_crops, batch.local_crops)]),
        "masks": torch.cat([batch.mask for batch in batches]),
    }
    trainer.model.register_forward_pre_hook(lambda *_: states.append(torch.get_rng_state()))
    mean, std = (torch.tensor(config["data"][key]) for key in ("mean", "std"))
    trainer.step(0, [batches[0].normalised(mean, std)])
    return drawn | {"dropout": states[0]}


def sizes(*overrides: str) -> list[int]:
    """Which sizes of crops the first twenty steps have."""
    config = compose_config([*SMOKE, *MIXED, *overrides])
    dataset = build_pipeline(config, build_trainer(config).model)(SamePicture())
    return [dataset.choose(step) for step in range(20)]


@pytest.fixture(scope="module")
def of_seed_3() -> dict[str, Any]:
    return draws()


@pytest.mark.parametrize("stream", STREAMS)
def test_a_stream_alone_has_other_draws(stream: str, of_seed_3: dict[str, Any]) -> None:
    changed = draws(f"stream_seeds.{stream}=7")
    assert {name for name in STREAMS if not torch.equal(changed[name], of_seed_3[name])} == {stream}


def test_sizes_of_crops_go_with_the_order() -> None:
    others = [f"stream_seeds.{stream}=7" for stream in STREAMS if stream != "order"]
    assert sizes(*others) == sizes() != sizes("stream_seeds.order=7")


def losses(*overrides: str) -> list[float]:
    trainer = build_trainer(config := compose_config([*SMOKE, *overrides]))
    dataset = build_pipeline(config, trainer.model)(SamePicture())
    mean, std = (torch.tensor(config["data"][key]) for key in ("mean", "std"))
    return [float(trainer.step(step, [dataset[step].normalised(mean, std)])["loss"]) for step in range(3)]


def test_streams_without_a_seed_have_that_of_the_run() -> None:
    """Bit for bit, and with a seed each they are the same run whatever `seed` is."""
    explicit = [f"stream_seeds.{stream}=3" for stream in STREAMS]
    assert losses() == losses(*explicit) == losses(*explicit, "seed=8") != losses("seed=8")


def test_a_row_that_replaces_another_goes_with_the_order() -> None:
    def replacement(*overrides: str) -> list[int]:
        config = compose_config([*SMOKE, *overrides])
        dataset = build_pipeline(config, build_trainer(config).model)(SamePicture())
        return [dataset.order.replacement(position, 0) for position in range(20)]

    assert replacement("stream_seeds.augmentation=7") == replacement() != replacement("stream_seeds.order=7")


def test_the_run_id_depends_on_them() -> None:
    """While that of a run without them is as before there were any."""
    smoke = compose_config(["recipe=smoke"])
    before = {key: value for key, value in smoke.items() if key != "stream_seeds"}
    ids = {run_id(identity(compose_config(["recipe=smoke", f"stream_seeds.{stream}=0"]))) for stream in STREAMS}
    assert len(ids | {run_id(identity(smoke))}) == 1 + len(STREAMS)
    assert identity(before) == identity(smoke)


def test_a_checkpoint_of_other_streams_is_refused(tmp_path: Path) -> None:
    written = Checkpoint(tmp_path, 1, {}, identity(compose_config([*SMOKE, "stream_seeds.masks=7"])))
    require_same_config(written, identity(compose_config([*SMOKE, "stream_seeds.masks=7"])))
    with pytest.raises(ValueError, match=r"stream_seeds\.masks"):
        require_same_config(written, identity(compose_config(SMOKE)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stream_seeds.masks=-1", "stream_seeds.masks=-1: must be 0 or more, or null"),
        ("stream_seeds.masks=x", "stream_seeds.masks=x: must be a whole number"),
        ("stream_seeds.masks=1.5", "stream_seeds.masks=1.5: must be a whole number"),
        ("+stream_seeds.crops=1", "stream_seeds.crops"),
        ("stream_seeds=3", "stream_seeds=3: is a section"),
    ],
)
def test_wrong_seeds_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        stream_seeds(compose_config([override]))
