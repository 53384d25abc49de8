"""recipe=demo_dinov3: the command that stands in its first comment has all that the 7B's stages bring, at once."""

import re
from typing import Any, cast

import torch

from dinoswap.build import build_pipeline, build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.config.configuration import config_dir
from dinoswap.config.facts import build_source
from dinoswap.gram.snapshot import SnapshotGram
from dinoswap.nn.vit import VisionTransformer
from dinoswap.position.rope import Rope

STEPS = 6


def command() -> list[str]:
    """The overrides of the command in the recipe's comment."""
    text = (config_dir() / "recipe" / "demo_dinov3.yaml").read_text()
    found = re.search(r"^# dinoswap-train (.*)$", text, re.MULTILINE)
    assert found
    return found[1].split()


def test_the_demonstration_trains_with_everything_on() -> None:
    short = [f"trainer.max_steps={STEPS}", "data.batch_size=32", "data.workers=0", "trainer.device=cpu"]
    cfg = compose_config([*command(), *short])
    trainer = build_trainer(cfg)
    dataset = build_pipeline(cfg, trainer.model)(build_source(cfg).train())
    mean, std = (torch.tensor(cfg["data"][key]) for key in ("mean", "std"))
    backbone = cast(VisionTransformer, trainer.model.student["backbone"])
    gram = cast(SnapshotGram, trainer.model.objectives["gram"])
    first = {name: value.clone() for name, value in gram.backbone.state_dict().items()}

    logs, sizes = [], []
    for step in range(STEPS):
        batch = dataset[step].normalised(mean, std)
        sizes.append(tuple(crops.shape[-1] for crops in (batch.global_crops, batch.local_crops)))
        assert list(batch.clean_crops) == [1.5 * sizes[-1][0]]
        logs.append({name: float(value) for name, value in trainer.step(step, [batch]).items()})

    assert all(torch.tensor([*of_step.values()]).isfinite().all() for of_step in logs)
    assert all(of_step["nonfinite"] == 0 for of_step in logs)
    assert set(sizes) == {(24, 12), (32, 16)}
    # the network: registers, a key bias that stays 0, norms of their own for local crops, SwiGLU, rescaled rotations
    assert backbone.register_tokens.shape[1] == 4
    width = backbone.embed_dim
    blocks = [cast(Any, block) for block in backbone.blocks]
    biases = [block.attn.qkv.bias for block in blocks]
    assert all(bias[:width].any() and bias[2 * width :].any() for bias in biases)
    assert not any(bias[width : 2 * width].any() for bias in biases)
    assert backbone.local_cls_norm is not None
    assert not torch.equal(backbone.local_cls_norm.weight, torch.ones(width))
    assert all(hasattr(block.mlp, "w12") for block in blocks)
    position = cast(Rope, backbone.position)
    drawn = [position.rotations([(6, 6)], 32, torch.zeros(1), training=True, block=0)[0] for _ in range(2)]
    assert not torch.equal(drawn[0].sin, drawn[1].sin)
    # schedules: piecewise, the local weight falls to a half, Gram's rises in the middle
    schedules = trainer.schedules
    assert schedules["momentum"][0] == schedules["momentum"][STEPS - 1] == 0.98
    assert [schedules["dino_local_weight"][step] for step in range(STEPS)] == [1, 1, 1, 1, 0.5, 0.5]
    assert [of_step["gram/matrix"] > 0 for of_step in logs] == [False] * 4 + [True] * 2
    assert any(not torch.equal(value, first[name]) for name, value in gram.backbone.state_dict().items())
    assert cfg["objectives"]["koleo"]["group"] < dataset[0].images
