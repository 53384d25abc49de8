"""Rows of padding get no targets and have no part in those of others."""

import pytest
import torch

from contexts import random
from options import build_option

OPTIONS = {"sinkhorn": {}, "sinkhorn_floored": {}, "centering": {"prototypes": 5}}


@pytest.mark.parametrize("rows", [0, 1, 9])
@pytest.mark.parametrize("name", OPTIONS)
def test_padding_counts_as_if_it_were_not_there(name: str, rows: int) -> None:
    """In two calls, as the first may move a centre."""
    padded, plain = (build_option(f"targets/{name}", **OPTIONS[name]) for _ in range(2))
    for seed in range(2):
        logits = random(rows, 5, seed=seed, dtype=torch.float32)
        padding = 100 * random(4, 5, seed=seed + 2, dtype=torch.float32)
        found = padded(torch.cat([logits, padding]), 0.06, rows=rows)
        assert torch.equal(found, torch.cat([plain(logits, 0.06), torch.zeros(4, 5)]))
