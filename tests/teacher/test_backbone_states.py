"""The backbone in other precisions, on another device, with new weights and as a copy: no table of an earlier state is
used."""

import copy
import pickle

import torch
from da3_fixture import ATOL, TINY, arrays, official, random_backbone, token_error, weights, worst
from torch import nn
from torch.nn import functional

from dinoswap.teacher.depth_anything.backbone import DA3Backbone

IMAGES = arrays("da3_tiny")["in_56x56"]


def test_grids_in_turn() -> None:
    backbone, stored = official("da3_tiny"), arrays("da3_tiny")
    for size in ("56x56", "70x42", "98x98", "56x56"):
        assert token_error(backbone, size) < ATOL
        assert worst(official("da3_tiny")(stored[f"in_{size}"]), backbone(stored[f"in_{size}"])) == 0


def test_bfloat16() -> None:
    """Back in float32 nothing of it is left but the rounded weights."""
    backbone = official("da3_tiny")
    expected = backbone(IMAGES)
    half = backbone.to(torch.bfloat16)(IMAGES.bfloat16())
    assert half.dtype == torch.bfloat16
    assert functional.cosine_similarity(half.float(), expected, dim=-1).min() > 0.999
    backbone.float().load_state_dict(weights("da3_tiny"))
    assert torch.equal(backbone(IMAGES), expected)


def test_autocast() -> None:
    backbone = official("da3_tiny")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = backbone(IMAGES)
    assert functional.cosine_similarity(found.float(), backbone(IMAGES), dim=-1).min() > 0.999


def test_another_device_without_waiting_for_it() -> None:
    """Whatever asked a meta tensor for a value would raise an error."""
    backbone = official("da3_tiny")
    backbone(IMAGES)
    tokens = backbone.to("meta")(torch.empty_like(IMAGES, device="meta"))
    assert tokens.device.type == "meta"


class Outer(nn.Module):
    def __init__(self, inner: DA3Backbone) -> None:
        super().__init__()
        self.inner = inner


def test_new_weights() -> None:
    """Also when they come by way of a module around it, or by assignment."""
    for assign in (False, True):
        backbone = random_backbone(TINY)
        backbone(IMAGES)
        Outer(backbone).load_state_dict({f"inner.{k}": v for k, v in weights("da3_tiny").items()}, assign=assign)
        assert torch.equal(backbone(IMAGES), official("da3_tiny")(IMAGES))


def test_copies() -> None:
    backbone = official("da3_tiny")
    expected = backbone(IMAGES)
    for copied in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert torch.equal(copied(IMAGES), expected)
        copied.load_state_dict(random_backbone(TINY).state_dict())
        assert torch.equal(copied(IMAGES), random_backbone(TINY)(IMAGES))
        assert torch.equal(backbone(IMAGES), expected)


def test_two_backward_passes() -> None:
    """No table keeps a part of the first one's graph."""
    backbone = official("da3_tiny").requires_grad_(True)
    for _ in range(2):
        backbone(IMAGES).sum().backward()
