"""Position and rotary tables of the backbone: made once for a grid, anew for another precision, device or weights."""

import copy
import pickle

import pytest
import torch
from da3_fixture import ATOL, MONO, TINY, arrays, official, random_backbone, token_error, weights, worst
from torch import Tensor, nn
from torch.nn import functional

from dinoswap.teacher.depth_anything import backbone as module
from dinoswap.teacher.depth_anything import rope
from dinoswap.teacher.depth_anything.backbone import DA3Backbone


def tables(backbone: DA3Backbone) -> dict[str, Tensor]:
    return dict(backbone.named_buffers())


def test_tables_are_made_once_for_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = rope.rotation_table
    monkeypatch.setattr(module, "rotation_table", lambda *arguments: made.append(1) or original(*arguments))
    backbone, stored = official("da3_tiny"), arrays("da3_tiny")
    for _ in range(3):
        assert token_error(backbone, "56x56") < ATOL
    assert len(made) == 2  # local and global
    assert set(tables(backbone)) == {"resampled", "local_rotation", "global_rotation"}
    assert set(backbone.state_dict()) == set(weights("da3_tiny"))
    for size in ("70x42", "98x98", "56x56"):
        assert token_error(backbone, size) < ATOL
        assert worst(official("da3_tiny")(stored[f"in_{size}"]), backbone(stored[f"in_{size}"])) == 0


def test_rotations_stay_float32() -> None:
    """Of a network in bfloat16; back in float32 nothing of that is left but the rounded weights."""
    backbone, images = official("da3_tiny"), arrays("da3_tiny")["in_56x56"]
    expected = backbone(images)
    before = tables(backbone)
    half = backbone.to(torch.bfloat16)(images.bfloat16())
    assert half.dtype == torch.bfloat16
    after = tables(backbone)
    assert after["resampled"].dtype == torch.bfloat16
    for name in ("local_rotation", "global_rotation"):
        assert after[name].dtype == torch.float32
        assert torch.equal(after[name], before[name])
    assert functional.cosine_similarity(half.float(), expected, dim=-1).min() > 0.999
    backbone.float().load_state_dict(weights("da3_tiny"))
    assert torch.equal(backbone(images), expected)


def test_autocast() -> None:
    backbone, images = official("da3_tiny"), arrays("da3_tiny")["in_56x56"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = backbone(images)
    assert functional.cosine_similarity(found.float(), backbone(images), dim=-1).min() > 0.999


def test_tables_follow_the_device_without_waiting_for_it() -> None:
    """Whatever asked a meta tensor for a value would raise an error."""
    backbone = official("da3_tiny")
    backbone(torch.randn(1, 3, 56, 56))
    tokens = backbone.to("meta")(torch.empty(1, 3, 56, 56, device="meta"))
    assert tokens.device.type == "meta"
    assert {table.device.type for table in tables(backbone).values()} == {"meta"}


class Outer(nn.Module):
    def __init__(self, inner: DA3Backbone) -> None:
        super().__init__()
        self.inner = inner


def test_new_weights_make_new_tables() -> None:
    """Also when they come by way of a module around it, or by assignment."""
    images = arrays("da3_tiny")["in_56x56"]
    for assign in (False, True):
        backbone = random_backbone(TINY)
        backbone(images)
        Outer(backbone).load_state_dict({f"inner.{k}": v for k, v in weights("da3_tiny").items()}, assign=assign)
        assert torch.equal(backbone(images), official("da3_tiny")(images))


def test_copies() -> None:
    backbone, images = official("da3_tiny"), arrays("da3_tiny")["in_56x56"]
    expected = backbone(images)
    for copied in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(copied(images), expected)
        copied.load_state_dict(random_backbone(TINY).state_dict())
        assert torch.equal(copied(images), random_backbone(TINY)(images))
        assert torch.equal(backbone(images), expected)


def test_no_gradient_is_kept_in_the_tables() -> None:
    """Two backward passes through one set of tables."""
    backbone = official("da3_tiny").requires_grad_(True)
    for _ in range(2):
        backbone(arrays("da3_tiny")["in_56x56"]).sum().backward()
    assert all(table.grad_fn is None for table in tables(backbone).values())


def test_plain_networks_have_no_rotation() -> None:
    backbone = DA3Backbone(MONO)
    backbone(torch.randn(1, 3, 56, 56))
    assert set(tables(backbone)) == {"resampled"}
