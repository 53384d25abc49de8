"""The projection head against the official code's outputs and gradients."""

import pytest
import torch

from dinoswap.nn.projection_head import ProjectionHead
from fixtures import Fixture
from options import build_head

HEAD = Fixture("head_dinov2.npz")
ATOL = 2e-6


def official(layers: int) -> ProjectionHead:
    meta = HEAD.meta
    head = build_head(meta["in_dim"], meta["out_dim"], meta["hidden_dim"], meta["bottleneck_dim"], layers=layers)
    prefix = f"v2_nlayers{layers}/sd/"
    head.load_state_dict({key.removeprefix(prefix): HEAD[key] for key in HEAD.keys(prefix)})
    return head


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_outputs_and_gradients(layers: int) -> None:
    head, x, group = official(layers), HEAD["x"].requires_grad_(), f"v2_nlayers{layers}"
    out = head(x)
    assert (out - HEAD[f"{group}/out"]).abs().max() < ATOL
    (out * HEAD["grad_weights"]).mean().backward()
    assert (x.grad - HEAD[f"{group}/grad_x"]).abs().max() < ATOL
    for name, parameter in head.named_parameters():
        assert (parameter.grad - HEAD[f"{group}/grad/{name}"]).abs().max() < ATOL, name


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_bottleneck(layers: int) -> None:
    assert (official(layers).mlp(HEAD["x"]) - HEAD[f"v2_nlayers{layers}/mlp_out"]).abs().max() < ATOL


def test_logits_are_scaled_cosines() -> None:
    torch.manual_seed(0)
    head = build_head(8, 5, hidden_dim=16, bottleneck_dim=4)
    head.last_layer.weight_g.data.uniform_(0.5, 2)
    x = torch.randn(3, 8)
    for row, logits in zip(head.mlp(x), head(x), strict=True):
        for k in range(5):
            cosine = torch.cosine_similarity(row, head.last_layer.weight_v[k], dim=0)
            assert (cosine * head.last_layer.weight_g[k, 0] - logits[k]).abs() < 1e-6


def test_init_is_the_official_one() -> None:
    torch.manual_seed(0)
    head = build_head(128, 512, hidden_dim=256, bottleneck_dim=64)
    assert {name for name, _ in head.named_parameters()} == {
        key.removeprefix("v2_nlayers3/init_sd/") for key in HEAD.keys("v2_nlayers3/init_sd/")
    }
    assert (head.last_layer.weight_g == 1).all()
    v = head.last_layer.weight_v  # the default of nn.Linear: uniform in +-1 / sqrt(64)
    assert 0.12 < v.abs().max() <= 0.125
    assert v.std().item() == pytest.approx(0.125 / 3**0.5, rel=0.02)
    assert head.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert head.mlp[2].bias.abs().max() == 0


def test_no_row_keeps_the_graph() -> None:
    """No masked token: every rank still has a gradient, zero, for every parameter."""
    head = build_head(8, 5, hidden_dim=16, bottleneck_dim=4)
    out = head(torch.zeros(0, 8))
    assert out.shape == (0, 5)
    out.sum().backward()
    assert all((p.grad == 0).all() for p in head.parameters())


def test_a_zero_bottleneck_is_finite() -> None:
    head = build_head(8, 5, hidden_dim=16, bottleneck_dim=4)
    x = torch.zeros(2, 8, requires_grad=True)  # biases are 0 at first, so the bottleneck is 0
    out = head(x)
    out.sum().backward()
    assert (out == 0).all()
    assert x.grad.isfinite().all()


def test_weight_g_can_be_frozen() -> None:
    head = build_head(8, 5, hidden_dim=16, bottleneck_dim=4, train_weight_g=False)
    head(torch.randn(2, 8)).sum().backward()
    assert head.last_layer.weight_g.grad is None
    assert head.last_layer.weight_v.grad is not None


@pytest.mark.parametrize("name", ["prototypes", "hidden_dim", "bottleneck_dim", "layers"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0"):
        build_head(8, **{"prototypes": 5, "hidden_dim": 16, "bottleneck_dim": 4, name: 0})
