"""The simulation of verdicts: its p are the report's, the old error is seen to be wrong, and a wrong p is noticed."""

import math
from pathlib import Path

import numpy as np
import pytest

from dinoswap.studies.statistics import holm
from dinoswap.studies.study import Study, read_study
from simulate_verdicts import CHOSEN, Crossed, Design, Paired, PValues, check, found_last, markdown, rows, simulated

STUDY = """# Do the three add up?
base: [recipe=smoke]
factors: {masking: [block, bernoulli], layer_decay: [layerwise, uniform], weight_decay: [all_groups, backbone_only]}
design: %s
seeds: 3
metrics: {eval/knn_top1: 1.0}
"""


def design(folder: Path, kind: str) -> Design:
    """Of 2^3 cells, or of a reference and three arms; composed by hand, as no run needs a config."""
    path = folder / f"{kind}.yaml"
    path.write_text(STUDY % kind)
    study: Study = read_study(path)
    cells = {}
    for number in range(8):
        on = [bool(number >> bit & 1) for bit in range(3)]
        if kind == "factorial" or sum(on) <= 1:
            levels = {factor: list(names)[at] for (factor, names), at in zip(study.factors.items(), on, strict=True)}
            cells[str(number)] = levels
    return Design(kind, study, cells)


@pytest.mark.parametrize("kind", ["factorial", "one_at_a_time"])
def test_false_findings_and_power_of_small_designs(kind: str, tmp_path: Path) -> None:
    """2,000 studies a line, of which one is judged by the report too, with the same p, or this raises."""
    found = list(rows(design(tmp_path, kind), seeds=3, studies=2_000, checked=1))
    assert [(row["sd"], row["vary"]) for row in found][:4] == [(0.0, "all"), (0.5, "all"), (1.0, "all"), (2.0, "all")]
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2_000)
    for row in found:
        assert 0.005 < row["false"] <= limit + (row["vary"] != "all") * (row["sd"] > 1) * 0.03
        assert row["vary"] != "all" or row["found"] == pytest.approx(0.8, abs=0.05)
    if kind == "factorial":
        assert found[3]["others"]["residual"][0] > 0.2
        assert found[0]["power"] > 0.8 > found[2]["power"]
    table = markdown(found, 2_000, 1, "the command")
    assert table.count(f"| {kind} | 3 |") == len(found) == 10 and "Made by `the command`" in table


def test_a_p_that_is_not_the_reports_is_noticed(tmp_path: Path) -> None:
    whole = design(tmp_path, "factorial")
    y = simulated(whole, whole.frame(3), 1.0, "all", 2, np.random.default_rng(0))
    tested = Crossed(whole, 3)(y)
    check(whole, whole.frame(3), y, tested, 2)
    wrong = PValues({CHOSEN: tested.p["residual"]}, tested.shares)
    with pytest.raises(SystemExit, match="the report's p of main"):
        check(whole, whole.frame(3), y, wrong, 2)


def test_the_last_effect_is_found_where_holm_rejects_it(tmp_path: Path) -> None:
    paired = design(tmp_path, "one_at_a_time")
    y = simulated(paired, paired.frame(3), 0.0, "all", 500, np.random.default_rng(0))
    y[[cell == "4" for cell in paired.frame(3)["cell"]]] += 15.0
    p = Paired(paired, 3)(y).p[CHOSEN]
    assert found_last(p) == pytest.approx(np.mean([holm(list(of_study))[-1] <= 0.05 for of_study in p.T]))
    assert 0.1 < found_last(p) < 1
