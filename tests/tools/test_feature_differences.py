"""tools/feature_differences.py: the committed page is of all pairs, what its numbers say, and found again."""

import json
from pathlib import Path

import feature_differences as tool

COMMITTED = Path(__file__).parents[2] / "results" / "reference" / "features"
MEASURED = json.loads((COMMITTED / "features.json").read_text())


def test_the_committed_page_says_what_was_measured() -> None:
    """Where this fails: python tools/feature_differences.py -o results/reference/features."""
    assert (COMMITTED / "README.md").read_text() == tool.page(MEASURED)
    assert MEASURED["tables"].keys() == tool.PAIRS.keys()
    for title, pairs in tool.PAIRS.items():
        rows = MEASURED["tables"][title]
        described = [(pair.network, pair.layout, [tool.in_pixels(size) for size in pair.sizes]) for pair in pairs()]
        assert [(row["network"], row["layout"], [*row["differences"]]) for row in rows] == described
        assert all(0 <= value <= tool.GOAL for row in rows for value in row["differences"].values())


def test_a_row_is_found_again() -> None:
    """On any CPU within float32 noise."""
    (pair,) = (pair for pair in tool.of_official_codes() if pair.layout == "ibot")
    (row,) = (row for row in MEASURED["tables"]["Weights of theirs, read by us"] if row["layout"] == "ibot")
    found = pair.differences()
    assert found.keys() == row["differences"].keys()
    assert all(value / 4 < row["differences"][size] < value * 4 for size, value in found.items())
