"""Stochastic depth against the official code's numbers and against a naive loop over samples."""

from functools import partial

import pytest
import torch
from torch import Tensor
from vit_fixture import VIT, crops, error, official

from dinoswap.nn.block import Block
from dinoswap.nn.packs import Pack
from fixtures import Fixture

DROPPATH = Fixture("droppath.npz")
ATOL = 2e-6


@pytest.mark.parametrize("rate", [0.3, 0.05])
def test_list_of_crops(rate: float) -> None:
    """Outputs, and the generator's next value: the draws are the official ones, in their order."""
    backbone, (entries, masks) = official(drop_path=rate), crops()
    torch.manual_seed(5)
    global_crops, local_crops = backbone(entries, masks)
    assert torch.rand(1) == DROPPATH[f"v2/rate{rate}/list_next_rand"]
    assert error(global_crops, f"v2/rate{rate}/list_global_masked", DROPPATH) < ATOL
    assert error(local_crops, f"v2/rate{rate}/list_local", DROPPATH) < ATOL


@pytest.mark.parametrize("rate", [0.3, 0.05])
def test_plain_tensor(rate: float) -> None:
    """0.3 drops a subset, 0.05 each sample on its own."""
    backbone = official(drop_path=rate)
    torch.manual_seed(5)
    tokens = backbone(VIT["in/x32"])
    assert torch.rand(1) == DROPPATH[f"v2/rate{rate}/single_next_rand"]
    assert error(tokens, f"v2/rate{rate}/single32", DROPPATH) < ATOL


def test_eval_mode_drops_nothing() -> None:
    assert error(official(drop_path=0.3).eval()(VIT["in/x32"]), "single32") < ATOL


def test_rate_per_block() -> None:
    uniform, rising = official(drop_path=0.3), official(drop_path=0.3, drop_path_uniform=False)
    assert [block.drop_path for block in uniform.blocks] == [0.3] * 3
    stored = DROPPATH["v2/nonuniform0.3_per_block_rates"].tolist()
    assert [block.drop_path for block in rising.blocks] == pytest.approx(stored, abs=1e-7)


def attention_branch(block: Block, x: Tensor) -> Tensor:
    """Of the tokens [T, D] of one sequence."""
    return block.ls1.gamma * block.attn.proj(block.attn(block.norm1(x), [(1, len(x))]))


def test_residual_is_kept_in_the_mean() -> None:
    """Each branch is added for k of b samples, times b / k: a loop over samples gives the same."""
    torch.manual_seed(1)
    block = Block(16, 2, 32, layerscale=1.0, drop_path=0.5)
    x = torch.randn(5, 3, 16)
    torch.manual_seed(2)
    (out,) = block([Pack(x.flatten(0, 1), [(5, 3)], [None])])
    torch.manual_seed(2)
    for branch in (partial(attention_branch, block), block._ffn):
        kept = torch.randperm(5)[:2].tolist()  # max(int(5 * 0.5), 1)
        x = torch.stack([x[i] + (branch(x[i]) * 5 / 2 if i in kept else 0) for i in range(5)])
    torch.testing.assert_close(out, x.flatten(0, 1), atol=1e-6, rtol=0)


def test_one_sample_is_never_dropped() -> None:
    block = Block(16, 2, 32, layerscale=1.0, drop_path=0.9)
    packs = [Pack(torch.randn(3, 16), [(1, 3)], [None])]
    torch.testing.assert_close(block(packs), block.eval()(packs))
