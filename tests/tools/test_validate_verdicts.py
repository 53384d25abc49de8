"""tools/validate_verdicts.py on runs that are made up, whose lost ones are known."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

import validate_verdicts as validate
from dinoswap.studies.ledger import Entry, RunStatus

NAME = "mean cosine of features"


def run(recipe: str, lost: bool, cosine: float) -> validate.Judged:
    return validate.Judged(recipe, 0, 0.0, lost, {30: dict.fromkeys(validate.SIGNALS, 1.0) | {NAME: cosine}})


def test_a_threshold_lies_between_the_worst_sound_run_and_the_next_lost_one() -> None:
    runs = [run("a", False, 0.1), run("b", False, 0.4), run("c", True, 0.2), run("d", True, 0.6), run("e", True, 0.9)]
    assert validate.chosen_thresholds(runs, 30) == {NAME: pytest.approx(0.5)}
    warned = {judged.recipe: judged.warned(30, {NAME: 0.5}) for judged in runs}
    assert warned == {"a": [], "b": [], "c": [], "d": [NAME], "e": [NAME]}


def test_what_tells_no_lost_run_has_no_threshold() -> None:
    assert validate.chosen_thresholds([run("a", False, 0.9), run("b", True, 0.2)], 30) == {}


def test_numbers_that_are_not_finite_and_runs_that_ended_are_warned_of() -> None:
    assert run("a", True, math.nan).warned(30, {NAME: 0.5}) == [NAME]
    assert run("a", True, 0.0).warned(60, {NAME: 0.5}) == ["ended"]


def evaluation(step: int, accuracy: float, rankme: float) -> dict[str, Any]:
    of_targets = {
        f"eval/{name}/target_{number}": 1.0 for name in ("dino", "ibot") for number in ("entropy", "information")
    }
    maxima = {f"{name}_max": 2.0 for name in of_targets}
    features = {"rankme": rankme, "rankme_max": 64.0, "feature_std": 0.5, "mean_cosine": 0.1}
    patches = {"correspondence": 20.0, "correspondence_chance": 5.0}
    others = {f"eval/{name}": value for name, value in (features | patches).items()}
    return {"step": step, "eval/knn_top1": accuracy, **of_targets, **maxima, **others}


def test_a_run_is_lost_by_half_of_what_the_reference_of_its_seed_gains(tmp_path: Path) -> None:
    ends = {("reference", 0): 60.0, ("reference", 1): 54.0, ("recipe=x", 0): 54.0, ("recipe=x", 1): 54.0}
    entries, statuses = [], []
    for (cell, seed), end in ends.items():
        folder = tmp_path / cell / f"seed{seed}"
        folder.mkdir(parents=True)
        rows = [evaluation(0, 50.0, 4.0), {"step": 10, "loss": 1.0}, evaluation(30, end, 1.0)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = {"trainer": {"max_steps": 30}}
        entries.append(Entry(cell=cell, seed=seed, overrides=[], config=config, folder=folder))
        statuses.append(RunStatus("completed"))
    runs = validate.judged_runs(entries, statuses, "reference")
    assert {(judged.recipe, judged.seed): judged.lost for judged in runs} == {
        ("reference", 0): False,
        ("reference", 1): False,
        ("x", 0): True,  # 4 of 10 points
        ("x", 1): False,  # 4 of 4
    }
    assert {judged.gain for judged in runs if judged.seed == 1} == {4.0}
    shares = {name: value for name, value in runs[0].signals[30].items() if "RankMe" in name}
    assert list(shares.values()) == [0.5, 0.25]


def test_shares_have_exact_intervals() -> None:
    """Of 10 successes in 10, the lower end is the p of which p^10 = 0.025."""
    assert validate.share(10, 10) == f"100% (10 of 10; {100 * 0.025 ** (1 / 10):.0f} to 100)"
    assert validate.share(0, 0) == "-"
