"""build_da3_backbone: what it returns, what it refuses, what it says."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from dinoswap.build import build_da3_backbone
from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import ConfigError
from fixtures import DA3

TINY = f"da3.ckpt_path={DA3 / 'da3_tiny.safetensors'}"


def section(*overrides: str) -> Any:
    return compose_config(["da3=enabled", *overrides])["da3"]


def test_model_and_width_of_a_section(caplog: pytest.LogCaptureFixture) -> None:
    """The tokens are those of the official code; nothing of the model can be trained."""
    with caplog.at_level(logging.WARNING):
        model, width = build_da3_backbone(OmegaConf.create(section("da3.embed_dim=96", TINY)))
    assert width == 96
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert "licence" in caplog.text
    fixture = np.load(DA3 / "da3_tiny_io.npz")
    tokens = model(torch.from_numpy(fixture["in_70x42"]))
    torch.testing.assert_close(tokens, torch.from_numpy(fixture["s1_tokens_70x42"]), atol=2e-5, rtol=0)


def test_the_width_that_the_founding_document_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"embed_dim=1024: .* have 96 channels; set da3.embed_dim=96"):
        build_da3_backbone(section("da3.embed_dim=1024", TINY))


def test_no_weights_is_said_loudly(caplog: pytest.LogCaptureFixture) -> None:
    """And they are the same every time, whatever torch's generator is at, which stays there."""
    with caplog.at_level(logging.WARNING):
        torch.manual_seed(1)
        one, width = build_da3_backbone(section("da3.teacher.variant=small"))
        drawn = torch.rand(1)
        torch.manual_seed(1)
        assert drawn == torch.rand(1)
        other, _ = build_da3_backbone(section())
    assert width == 768
    assert caplog.text.count("RANDOM WEIGHTS") == 2
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["da3.teacher.token_part=half"], r"^da3\.teacher\.token_part=half: must be one of full, local, global"),
        (["da3.teacher.layer=6", TINY], r"^da3\.teacher\.layer=6: the backbone has 6 blocks"),
        (["da3.teacher.variant=smal"], r"^da3\.teacher\.variant=smal: use one of small, base"),
        (["teacher@da3.teacher=timm"], r"^da3\.teacher\.variant: has to be given"),
        (["teacher@da3.teacher=dinov2", "da3.teacher.variant=smal"], r"^da3\.teacher\.variant=smal: without ckpt_path"),
    ],
)
def test_a_wrong_setting_is_named_by_its_key(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_da3_backbone(section(*overrides))


@pytest.mark.parametrize("target", ["base.Teacher", "depth_anything.teacher.DA3Teacher"])
def test_a_base_class_is_no_option(target: str) -> None:
    with pytest.raises(ConfigError, match=r"^da3\.teacher\._target_=.*: no class of this group"):
        build_da3_backbone(section(f"da3.teacher._target_=dinoswap.teacher.{target}"))


@pytest.mark.parametrize(
    "override",
    ["teacher@da3.teacher=dinov2 da3.teacher.token_part=full", "teacher@da3.teacher=timm da3.teacher.num_heads=4"],
)
def test_a_key_of_another_teacher_does_not_exist(override: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no key or group 'da3\.teacher\.\w+'"):
        section(*override.split())
