"""The running mean of a teacher's tokens against its definition, and at its edges."""

import pytest
import torch
from torch import Tensor

from dinoswap.da3.centre import TokenCentre


def tokens(seed: int, count: int) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)) + 5


def test_centre_by_its_definition() -> None:
    """Every token ever seen, weighted by 0.8 to the power of its step's age."""
    centre, steps = TokenCentre(3, 0.8), [tokens(0, 4), tokens(1, 0), tokens(2, 7)]
    for step in steps:
        found = centre(step)
    weights = torch.cat([torch.full((len(step),), 0.8**age) for age, step in zip((2, 1, 0), steps, strict=True)])
    mean = (weights[:, None] * torch.cat(steps)).sum(0) / weights.sum()
    assert torch.allclose(found, steps[-1] - mean, atol=1e-5)


def test_the_first_step_is_centred_on_itself() -> None:
    assert torch.allclose(TokenCentre(3, 0.9)(tokens(0, 50)).mean(0), torch.zeros(3), atol=1e-5)


def test_evaluation_moves_nothing() -> None:
    centre = TokenCentre(3, 0.9)
    centre(tokens(0, 5))
    before = centre.state_dict()["total"].clone()
    centre.eval()
    maps = tokens(1, 8).view(2, 4, 3)
    assert torch.allclose(centre(maps), maps - tokens(0, 5).mean(0), atol=1e-5)
    assert torch.equal(centre.state_dict()["total"], before)


def test_before_any_token_there_is_no_centre() -> None:
    centre = TokenCentre(3, 0.9)
    assert centre(tokens(0, 0)).shape == (0, 3)
    assert torch.equal(centre.eval()(tokens(0, 2)), tokens(0, 2))


@pytest.mark.parametrize("momentum", [1.0, -0.1])
def test_no_mean_of_this_momentum(momentum: float) -> None:
    with pytest.raises(ValueError, match="centre_momentum="):
        TokenCentre(3, momentum)
