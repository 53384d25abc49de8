"""The simulation of looks: its p are the report's, and looking again and again without paying is seen to be wrong."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dinoswap.studies.looks import Looks
from dinoswap.studies.report.analysis import judge
from dinoswap.studies.statistics import Look
from dinoswap.studies.study import read_study
from simulate_looks import crossed, false_findings, paired, table
from simulate_verdicts import Design, simulated

STUDY = """# Do the two add up?
base: [recipe=smoke]
factors: {masking: [block, bernoulli], layer_decay: [layerwise, uniform]}
design: %s
seeds: 6
metrics: {eval/knn_top1: 1.0}
"""
PLAN = Looks((3, 6), "pocock")


def design(folder: Path, kind: str) -> Design:
    """Composed by hand, as no run needs a config."""
    path = folder / f"{kind}.yaml"
    path.write_text(STUDY % kind)
    study = read_study(path)
    first, second = study.factors.items()
    cells = {f"{a}{b}": {first[0]: a, second[0]: b} for a in first[1] for b in second[1]}
    return Design(kind, study, cells if kind == "factorial" else dict(list(cells.items())[:3]))


@pytest.mark.parametrize("kind", ["factorial", "one_at_a_time"])
def test_the_simulated_looks_are_those_of_the_report(kind: str, tmp_path: Path) -> None:
    """Of the last look, of a look that was not planned, and of one after it."""
    small = design(tmp_path, kind)
    y = simulated(small, small.frame(6), 1.0, "all", 2, np.random.default_rng(0))
    statistics = crossed if small.crossed else paired
    for seeds, seen, look in (
        (3, [], Look(PLAN, 0, True)),
        (4, [4], Look(PLAN, 1, False)),
        (6, [2], Look(PLAN, 0, False)),
    ):
        at = statistics(small, y, seeds)
        wanted = look.p(at.mean, at.se, at.df, at.seeds, at.pooled)
        frame = small.frame(seeds).assign(value=y[: seeds * len(small.cells), 1])
        looked = replace(small.study, looks=PLAN)
        result = judge(looked, small.cells, frame, small.study.metrics[0], dict.fromkeys(small.cells, seen))
        decisions = result.decisions if small.crossed else sorted(result.decisions, key=lambda d: d.effect.name)
        assert [decision.effect.lasting.p for decision in decisions] == pytest.approx(wanted[:, 1])


def test_only_looks_that_are_not_paid_for_find_too_much(tmp_path: Path) -> None:
    """1,500 studies of each way of looking, with effects that vary between seeds."""
    small = design(tmp_path, "factorial")
    y = simulated(small, small.frame(6), 1.0, "all", 1_500, np.random.default_rng(0))
    found = false_findings(PLAN, {n: crossed(small, y, n) for n in range(2, 7)})
    naive = found.pop("naive")
    assert naive > 0.08 and all(0 < share <= 0.05 + 0.017 for share in found.values()), found
    assert len(found) == 5 and "| as planned |" in table([{"design": "a", **found}])
