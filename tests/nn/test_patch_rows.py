"""Reading only some rows behind the last attention, and activation checkpointing, change no result and no gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from vit_fixture import VIT, crops, official

from dinoswap.nn.vit import VisionTransformer

ROWS = VIT["in/masks"].flatten().nonzero().flatten()
Forward = Callable[[VisionTransformer], tuple[Tensor, Tensor, Tensor]]


def all_tokens(backbone: VisionTransformer) -> tuple[Tensor, Tensor, Tensor]:
    entries, masks = crops(backbone.norm.weight.dtype)
    tokens, local = backbone(entries, masks)
    return tokens.cls, tokens.patch.flatten(0, 1)[ROWS], local.cls


def rows_only(backbone: VisionTransformer) -> tuple[Tensor, Tensor, Tensor]:
    entries, masks = crops(backbone.norm.weight.dtype)
    tokens, local = backbone(entries, masks, [ROWS, None])
    assert tokens.registers is None
    assert local.patch is None
    return tokens.cls, tokens.patch, local.cls


def outputs_and_gradients(backbone: VisionTransformer, forward: Forward) -> dict[str, Tensor]:
    torch.manual_seed(5)
    outputs = forward(backbone)
    weights = torch.Generator().manual_seed(7)
    sum((out * torch.randn(out.shape, generator=weights)).sum() for out in outputs).backward()
    gradients = {name: p.grad for name, p in backbone.named_parameters()}
    assert all(g is not None for g in gradients.values())
    return {**{f"output {i}": out.detach() for i, out in enumerate(outputs)}, **gradients, "rng": torch.rand(2)}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(((a[key] - b[key]).abs().max() / b[key].abs().max().clamp_min(1)).item() for key in b)


PRECISIONS = pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])


@PRECISIONS
@pytest.mark.parametrize("drop", [{}, {"drop_path": 0.3}, {"drop_path": 0.05}, {"residual_dropout": 0.4}])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_rows_alone_equal_all_tokens(dtype: torch.dtype, bound: float, drop: dict[str, float], ffn: str) -> None:
    """What is dropped included: both draw the same."""
    torch.manual_seed(0)
    numbers = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "registers": 2}
    backbone = VisionTransformer(**numbers, layerscale=0.1, ffn=ffn, **drop).to(dtype)
    expected = outputs_and_gradients(backbone, all_tokens)
    backbone.zero_grad()
    assert largest_difference(outputs_and_gradients(backbone, rows_only), expected) < bound


@pytest.mark.parametrize("drop", [{"drop_path": 0.3}, {"drop_path": 0.05}, {"residual_dropout": 0.4}])
def test_rows_of_a_plain_tensor(drop: dict[str, Any]) -> None:
    """Rate 0.05 takes the classic form of stochastic depth."""
    backbone, x = official(torch.float64, **drop), VIT["in/x32"].double()
    torch.manual_seed(3)
    every = backbone(x, VIT["in/masks"])
    torch.manual_seed(3)
    read = backbone(x, VIT["in/masks"], ROWS)
    torch.testing.assert_close(read.cls, every.cls, atol=1e-12, rtol=0)
    torch.testing.assert_close(read.patch, every.patch.flatten(0, 1)[ROWS], atol=1e-12, rtol=0)


def test_no_row_at_all() -> None:
    """An unmasked batch: nothing is read of the patches, the class tokens stand."""
    backbone, x = official(), VIT["in/x32"]
    tokens = backbone([x], None, [ROWS[:0]])[0]
    assert tokens.patch.shape == (0, 48)
    torch.testing.assert_close(tokens.cls, backbone([x])[0].cls, atol=1e-6, rtol=0)
    (tokens.patch.sum() + tokens.cls.sum()).backward()


@pytest.mark.parametrize("forward", [all_tokens, rows_only])
@pytest.mark.parametrize("drop", [{}, {"drop_path": 0.3}, {"residual_dropout": 0.4}])
def test_activation_checkpointing(forward: Forward, drop: dict[str, Any]) -> None:
    """Recomputed blocks drop the same and leave the generator where it was."""
    expected = outputs_and_gradients(official(**drop), forward)
    recomputed = outputs_and_gradients(official(**drop, activation_checkpointing=True), forward)
    assert largest_difference(recomputed, expected) == 0


def test_checkpointing_stores_fewer_activations() -> None:
    def stored(activation_checkpointing: bool) -> int:
        sizes: list[int] = []
        backbone = official(activation_checkpointing=activation_checkpointing)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            backbone(VIT["in/x32"])
        return sum(sizes)

    assert stored(True) < stored(False) / 2
