"""Residual dropout against nn.Dropout in a naive loop over blocks, branches and list entries."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from vit_fixture import VIT, crops, official

from dinoswap.nn.block import Block
from dinoswap.nn.vit import Tokens, VisionTransformer

FIELDS = ("cls", "registers", "patch")


def attended(block: Block, x: Tensor) -> Tensor:
    """The attention of one entry [b, T, D]."""
    return block.attn(x.flatten(0, 1), [x.shape[:2]]).view(x.shape)


def naive(backbone: VisionTransformer, entries: list[Tensor], rates: list[float]) -> list[Tensor]:
    """The tokens [b, T, D] of prepared entries behind the final norm, dropped elements drawn entry by entry."""
    for block, rate in zip(backbone.blocks, rates, strict=True):
        dropout = nn.Dropout(rate)
        entries = [x + dropout(block.ls1.gamma * block.attn.proj(attended(block, block.norm1(x)))) for x in entries]
        entries = [x + dropout(block.ls2.gamma * block.mlp.fc2(block.mlp.hidden(block.norm2(x)))) for x in entries]
    return [backbone.norm(x) for x in entries]


def joined(tokens: Tokens) -> Tensor:
    return torch.cat([tokens.cls[:, None], tokens.registers, tokens.patch], dim=1)


def test_elements_are_dropped_as_in_nn_dropout() -> None:
    """At rates that rise linearly from 0 at the first block; the generator ends in the same state."""
    backbone, (entries, masks) = official(residual_dropout=0.4), crops()
    torch.manual_seed(5)
    outputs, after = backbone(entries, masks), torch.rand(1)
    torch.manual_seed(5)
    prepared = [backbone.prepare_tokens_with_masks(x, m) for x, m in zip(entries, masks, strict=True)]
    expected = naive(backbone, prepared, [0.0, 0.2, 0.4])
    assert after == torch.rand(1)
    for tokens, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(joined(tokens), wanted, atol=2e-6, rtol=0)


def test_a_plain_tensor_draws_as_a_list_of_one() -> None:
    backbone, x = official(residual_dropout=0.4), VIT["in/x32"]
    torch.manual_seed(5)
    (listed,) = backbone([x])
    torch.manual_seed(5)
    assert torch.equal(joined(backbone(x)), joined(listed))


@pytest.mark.parametrize(("changes", "training"), [({}, True), ({"residual_dropout": 0.4}, False)])
@pytest.mark.parametrize("rows", [None, [torch.tensor([0, 5]), None]])
def test_nothing_is_drawn_at_rate_0_or_in_eval_mode(changes: dict[str, Any], training: bool, rows: Any) -> None:
    """And the tokens are those of a network without it, bit for bit."""
    backbone, (entries, masks) = official(**changes).train(training), crops()
    before = torch.get_rng_state()
    outputs = backbone(entries, masks, rows)
    assert torch.equal(torch.get_rng_state(), before)
    for tokens, plain in zip(outputs, official().eval()(entries, masks, rows), strict=True):
        for name in FIELDS:
            ours, theirs = getattr(tokens, name), getattr(plain, name)
            assert ours is theirs is None or torch.equal(ours, theirs)
