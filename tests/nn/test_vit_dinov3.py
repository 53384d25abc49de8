"""The backbone with DINOv3's switches against numbers of the official code: each call and variant, and gradients."""

import pytest

from fixtures import DINOV3
from parity.dinov3_networks import scenarios

SCENARIOS = {name: rows for name, rows in scenarios(DINOV3 / "vit_dinov3.npz").items() if not name.startswith("rope ")}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_network_is_the_official_one(name: str) -> None:
    rows = list(SCENARIOS[name]())
    assert len(rows) >= 3
    assert [row for row in rows if not row.passed] == []
