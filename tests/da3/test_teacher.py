"""build_da3_backbone: what it returns, what it refuses, what it says."""

import logging

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from dinoswap.da3.teacher import build_da3_backbone
from fixtures import DA3

TINY = {"ckpt_path": str(DA3 / "da3_tiny.safetensors")}


def test_model_and_width_of_a_section(caplog: pytest.LogCaptureFixture) -> None:
    """The tokens are those of the official code; nothing of the model can be trained."""
    section = OmegaConf.create({"enabled": True, "loss_weight": 1.0, "embed_dim": 96, "use_fsdp": False, **TINY})
    with caplog.at_level(logging.WARNING):
        model, width = build_da3_backbone(section)
    assert width == 96
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert "licence" in caplog.text
    fixture = np.load(DA3 / "da3_tiny_io.npz")
    tokens = model(torch.from_numpy(fixture["in_70x42"]))
    torch.testing.assert_close(tokens, torch.from_numpy(fixture["s1_tokens_70x42"]), atol=2e-5, rtol=0)


def test_the_width_that_the_founding_document_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"embed_dim=1024: .* have 96 channels; set da3.embed_dim=96"):
        build_da3_backbone({"embed_dim": 1024, **TINY})


def test_no_weights_is_said_loudly(caplog: pytest.LogCaptureFixture) -> None:
    """And they are the same every time, whatever torch's generator is at, which stays there."""
    with caplog.at_level(logging.WARNING):
        torch.manual_seed(1)
        one, width = build_da3_backbone({"ckpt_path": "", "variant": "small"})
        drawn = torch.rand(1)
        torch.manual_seed(1)
        assert drawn == torch.rand(1)
        other, _ = build_da3_backbone({"ckpt_path": ""})
    assert width == 768
    assert caplog.text.count("RANDOM WEIGHTS") == 2
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_an_unknown_backend() -> None:
    with pytest.raises(ValueError, match="backend=onnx: use one of native, package, dinov2, timm"):
        build_da3_backbone({"backend": "onnx"})
