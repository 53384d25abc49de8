"""Effects at each evaluation in the loop, against loops written here: of three seeds, whose t quantile is known."""

import itertools
import json
import math
import random
import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from fake_study import write_runs, write_study

from dinoswap.config.schema import ConfigError
from dinoswap.studies import load_effects
from dinoswap.studies.design import make_design
from dinoswap.studies.ledger import entries
from dinoswap.studies.looks import recorded_looks
from dinoswap.studies.over_training import Course, agreement
from dinoswap.studies.report import analyse, write_again, write_report
from dinoswap.studies.report.courses import summary
from dinoswap.studies.report.effects_frame import ORDER
from dinoswap.studies.shortest import how_short
from dinoswap.studies.statistics import factorial
from dinoswap.studies.study import Study, read_study

TEXT = """# Which of these learns sooner?
base: [preset=official, recipe=smoke]
factors: {masking: [block, bernoulli], layer_decay: [layerwise, uniform]}
design: one_at_a_time
seeds: 3
metrics: {eval/knn_top1: 1.0, eval/rankme: 1.0, images_per_second: 5.0}
"""
KNN = "eval/knn_top1"
T = 4.302652729911275
"""The .975 quantile of Student's t with 2 degrees of freedom, as tables have it."""
LOOP = (0, 2, 4, 6, 8)
END = 10
Value = Callable[[Mapping[str, str], int, int], float | None]


def value(levels: Mapping[str, str], seed: int, step: int) -> float:
    """k-NN: bernoulli gains 4 points from step 4 on, uniform has 3 of them at step 2 alone; the final evaluation, on
    other images, says the opposite of everything."""
    noise = random.Random(f"{levels}{seed}{step}").uniform(-0.3, 0.3)
    gain = 4.0 * (levels["masking"] == "bernoulli") * (step >= 4) + 3.0 * (levels["layer_decay"] == "uniform") * (
        step == 2
    )
    return 30 + 2 * seed + (gain if step < END else -gain - 9) + noise


def log(study: Study, root: Path, of: Value) -> None:
    """Replaces what the runs logged: losses, evaluations in the loop, and the final one."""
    cells = make_design(study, check=False).cells
    levels = {cell.name: cell.levels for cell in cells}
    for entry in entries(study, cells):
        lines: list[dict[str, Any]] = [
            {"step": step, "loss": 1.0, "images_per_second": 9.0} for step in range(1, END + 1)
        ]
        lines += [{"step": step, KNN: of(levels[entry.cell], entry.seed, step)} for step in (*LOOP, END)]
        kept = [line for line in lines if line.get(KNN, 0.0) != math.inf]
        text = "".join(json.dumps(line) + "\n" for line in sorted(kept, key=lambda line: line["step"]))
        folder = root / entry.run_id / f"seed{entry.seed}"
        if folder.exists():
            (folder / "metrics.jsonl").write_text(text)


def made(
    folder: Path, text: str = TEXT, of: Value = value, ending: Any = lambda levels, seed: value(levels, seed, END)
) -> Study:
    """A study below `folder`/runs/study, by a command line that says so."""
    study = read_study(write_study(folder, text).path, [f"results_dir={folder}"])
    write_runs(study, folder / "runs" / "study", ending)
    log(study, folder / "runs" / "study", of)
    return study


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    folder = tmp_path_factory.mktemp("arms")
    return made(folder), folder


@pytest.fixture(scope="module")
def page(arms: tuple[Study, Path]) -> Path:
    study, folder = arms
    return write_report(study, folder / "runs" / "study", folder / "out")


def course_of(study: Study, folder: Path) -> Course:
    (found,) = analyse(study, folder / "runs" / "study").courses
    return found


def test_each_step_has_the_paired_differences_of_that_step(arms: tuple[Study, Path]) -> None:
    study, folder = arms
    frame = load_effects(study.path, [f"results_dir={folder}"])
    assert list(frame) == ORDER and set(frame["study"]) == {"study"} and set(frame["metric"]) == {KNN}
    assert not frame.isna().any().any() and set(frame["seeds"]) == {3} and set(frame["df"]) == {2}
    reference = {"masking": "block", "layer_decay": "layerwise"}
    expected = []
    for factor, level in (("masking", "bernoulli"), ("layer_decay", "uniform")):
        for step in LOOP:
            differences = [
                value(reference | {factor: level}, seed, step) - value(reference, seed, step) for seed in range(3)
            ]
            mean, half = statistics.mean(differences), T * statistics.stdev(differences) / math.sqrt(3)
            expected.append((f"{factor}={level}", step, step / END, mean, mean - half, mean + half))
    found = frame[["effect", "step", "share", "difference", "low", "high"]]
    for row, wanted in zip(found.itertuples(index=False), expected, strict=True):
        assert tuple(row[:2]) == wanted[:2] and list(row[2:]) == pytest.approx(wanted[2:], abs=1e-9)
    ttest = frame["difference"] / frame["se"]
    np.testing.assert_allclose(frame["p"], 2 * scipy.stats.t.sf(abs(ttest), 2), rtol=1e-9)
    smaller, larger = frame["p"].to_numpy().reshape(2, -1), frame["p_holm"].to_numpy().reshape(2, -1)
    np.testing.assert_allclose(larger.min(0), np.minimum(2 * smaller.min(0), 1))  # Holm over two effects
    np.testing.assert_allclose(larger.max(0), np.maximum(2 * smaller.min(0), smaller.max(0)).clip(max=1))


def test_an_effect_that_appears_and_one_that_does_not_last(arms: tuple[Study, Path], page: Path) -> None:
    study, folder = arms
    course = course_of(study, folder)
    assert [effect.name for effect in course.end.effects] == ["masking=bernoulli", "layer_decay=uniform"]
    assert [course.appears(index) for index in (0, 1)] == [4, None]
    assert [course.seen(index) for index in (0, 1)] == [[4, 6, 8], [2]]
    said = summary(course)
    for text in (
        f"On {KNN}, over 10 steps, the interval leaves out 0 from step 4 (40%) to the end for masking=bernoulli; at "
        "some step, but not to the end, for layer_decay=uniform.",
        "Within a third of the run, after step 2, 0 of 2 verdicts are those of the end, not those on masking=bernoulli",
        "layer_decay=uniform (better, at the end ",
        "From step 4 of 10 on (40% of a run) all that intervals tell at the last evaluation in the loop has the same "
        "sign (1 of 2 effects) and the same order (1 of 1 pairs).",
    ):
        assert text in said, said
    assert said in page.with_name("report.md").read_text().replace("\\", "")
    assert "compared with the last evaluation in the loop" in page.read_text()
    assert (page.parent / "figures" / "over-training-1.svg").exists()
    assert not (page.parent / "figures" / "over-training-2.svg").exists(), "others are not measured in the loop"


def test_agreement_is_counted_as_by_hand(arms: tuple[Study, Path]) -> None:
    study, folder = arms
    decision = course_of(study, folder).end.decisions[0]
    draw = np.random.default_rng(3)
    then, now = draw.normal(0, 2, 7), draw.normal(0, 2, 7)
    horizons = [
        replace(
            course_of(study, folder).end,
            decisions=[
                replace(
                    decision, effect=replace(decision.effect, mean=mean, se=0.2), kind="better" if mean > 0 else "worse"
                )
                for mean in means
            ],
        )
        for means in (then, now)
    ]
    found, half = agreement(*horizons), 0.2 * T
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(then, now).statistic)
    pairs = list(itertools.combinations(range(7), 2))
    same = [(then[i] < then[j]) == (now[i] < now[j]) for i, j in pairs]
    clear = [abs(now[i] - now[j]) > 2 * half for i, j in pairs]
    assert found.order == (sum(same), 21) and found.clear_order == (
        sum(s and c for s, c in zip(same, clear, strict=True)),
        sum(clear),
    )
    signs, told = (then > 0) == (now > 0), abs(now) > half
    assert found.sign == found.verdict == (signs.sum(), 7) and found.clear_sign == ((signs & told).sum(), told.sum())
    assert 0 < found.clear_order.same < found.clear_order.of < 21 and found.clear_sign.of < 7, "else it tells nothing"


def test_a_factorial_has_its_main_effects_at_each_step(tmp_path: Path) -> None:
    """Tested against seed x effect, by the function that the report's own effects are from."""
    study = made(tmp_path, TEXT.replace("one_at_a_time", "factorial"))
    frame = load_effects(study.path, [f"results_dir={tmp_path}"])
    cells = {cell.name: cell.levels for cell in make_design(study, check=False).cells}
    for step in LOOP:
        rows = [(cell, seed, "completed", value(at, seed, step)) for cell, at in cells.items() for seed in range(3)]
        outcomes = pd.DataFrame(rows, columns=["cell", "seed", "status", "value"])
        wanted = factorial(outcomes, cells, study.factors).main
        found = frame[frame["step"] == step]
        for name in ("low", "high", "df"):
            assert found[name].tolist() == pytest.approx([getattr(effect, name) for effect in wanted])
        for effect, difference in zip(found["effect"], found["difference"], strict=True):
            at = outcomes["cell"].isin(
                [cell for cell in cells if effect in {f"{f}={x}" for f, x in cells[cell].items()}]
            )
            assert difference == pytest.approx(outcomes["value"][at].mean() - outcomes["value"][~at].mean())


def test_steps_have_all_seeds_where_a_look_has_decided(tmp_path: Path) -> None:
    """bernoulli was decided after 3 of 4 seeds. Its steps are of all 4, with the t intervals of one analysis."""
    study = made(tmp_path, TEXT.replace("seeds: 3", "seeds: {looks: [3, 4], spending: pocock}"))
    root = tmp_path / "runs" / "study"
    result = analyse(study, root).results[0]
    assert result.decided_after["masking=bernoulli"] == 3 and result.decisions[0].effect.seeds == (0, 1, 2)
    frame = load_effects(study.path, [f"results_dir={tmp_path}"]).set_index("effect").loc["masking=bernoulli"]
    assert [plan for plan, _ in recorded_looks(root)] == [study.plan], "whoever loads effects has looked"
    reference = {"masking": "block", "layer_decay": "layerwise"}
    for step, low, high in zip(LOOP, frame["low"], frame["high"], strict=True):
        differences = [
            value(reference | {"masking": "bernoulli"}, seed, step) - value(reference, seed, step) for seed in range(4)
        ]
        assert (low, high) == pytest.approx(
            scipy.stats.t.interval(0.95, 3, statistics.mean(differences), scipy.stats.sem(differences))
        )


def test_without_run_folders(arms: tuple[Study, Path], page: Path, tmp_path: Path) -> None:
    """report.json has what is needed to draw it again; an older one has not, and says so, again and again."""
    study, folder = arms
    again = write_again(page.with_name("report.json"), tmp_path / "again")
    for name in ("report.html", "report.json", "figures/over-training-1.png"):
        assert (again.parent / name).read_bytes() == (page.parent / name).read_bytes(), name
    whole = load_effects(study.path, [f"results_dir={folder}"])
    pd.testing.assert_frame_equal(load_effects(page.with_name("report.json")), whole)
    with pytest.raises(ConfigError, match="leave overrides out"):
        load_effects(page.with_name("report.json"), ["seeds=2"])
    content = json.loads(page.with_name("report.json").read_text())
    assert content["results"][0]["over_training"]["steps"] == [*LOOP] and len(content["runs"][0]["in_loop"][KNN]) == 5
    assert content["results"][0]["over_training"]["agreement"]["clear_sign"][-1] == [1, 1]
    for each in content["results"]:
        del each["over_training"]
    for each in content["runs"]:
        del each["in_loop"]
    older = tmp_path / "older" / "report.json"
    older.parent.mkdir()
    older.write_text(json.dumps(content))
    for _ in range(2):
        shown = write_again(older, older.parent)
        assert "does not hold what runs measured in the loop" in shown.read_text()
        assert load_effects(older).empty and list(load_effects(older)) == ORDER


def test_steps_that_not_all_runs_share_and_runs_without_evaluations(tmp_path: Path) -> None:
    """inf: the run was not evaluated at that step; None: the value was not finite, which is an outcome."""

    def gaps(levels: Mapping[str, str], seed: int, step: int) -> float | None:
        if step == 4 and seed == 1 and levels["masking"] == "bernoulli":
            return math.inf
        return None if step == 6 and seed == 2 and levels["layer_decay"] == "uniform" else value(levels, seed, step)

    study = made(tmp_path, of=gaps)
    frame = load_effects(study.path, [f"results_dir={tmp_path}"]).set_index(["effect", "step"])
    assert sorted(set(frame.index.get_level_values("step"))) == [0, 2, 6, 8]
    assert frame.loc[("layer_decay=uniform", 6), "seeds"] == 2 and frame.loc[("masking=bernoulli", 6), "seeds"] == 3
    log(study, tmp_path / "runs" / "study", lambda levels, seed, step: math.inf if step < END else 1.0)
    assert load_effects(study.path, [f"results_dir={tmp_path}"]).empty
    shown = write_report(study, tmp_path / "runs" / "study", tmp_path / "out")
    assert "no metric of this study was measured before the end of training" in shown.read_text()
    assert (
        how_short(study, make_design(study, check=False), entries(study, make_design(study, check=False).cells)) == []
    )
    again = write_again(shown.with_name("report.json"), tmp_path / "again")
    assert again.read_text() == shown.read_text()


def test_a_run_that_broke_off_is_at_no_step(tmp_path: Path) -> None:
    """As at the end; so is one that is still to come. The others are compared at all of their steps."""
    how = {1: "diverged", 2: None}
    study = made(
        tmp_path,
        ending=lambda at, seed: how.get(seed, 1.0) if at["masking"] == "bernoulli" else value(at, seed, END),
    )
    frame = load_effects(study.path, [f"results_dir={tmp_path}"]).set_index("effect")
    assert frame.loc["masking=bernoulli", "seeds"].tolist() == [1] * 5
    assert frame.loc["masking=bernoulli", "low"].isna().all() and frame.loc["layer_decay=uniform", "low"].notna().all()


def test_a_plan_says_how_short_a_run_may_be(arms: tuple[Study, Path], tmp_path: Path) -> None:
    """From finished runs of this study, or of another that has the same arms; not from one seed of them."""
    study, folder = arms
    said = f"{KNN}: from step 4 of 10 on (40% of a run) all that intervals tell at the last evaluation in the loop has "
    said += "the same sign (1 of 2 effects) and the same order (1 of 1 pairs); the source is 9 finished runs of "
    caveat = ", and a run that is planned short has other schedules"
    design = make_design(study, check=False)
    assert how_short(study, design, entries(study, design.cells)) == [f"{said}study{caveat}"]
    moved = read_study(study.path, [f"results_dir={tmp_path}"])
    there = entries(moved, make_design(moved, check=False).cells)
    assert how_short(moved, design, there) == []
    shutil.copytree(folder / "runs" / "study", tmp_path / "runs" / "other")
    assert how_short(moved, design, there) == [f"{said}other{caveat}"]
    for each in (tmp_path / "runs" / "other").glob("*/seed[12]"):
        shutil.rmtree(each)
    assert how_short(moved, design, there) == []


def test_runs_of_another_length_tell_how_short_one_may_be(arms: tuple[Study, Path]) -> None:
    """A study that is planned to be longer than it was: the same overrides otherwise, but for those of no result."""
    study, folder = arms
    for overrides, known in ((["trainer.max_steps=500", "data.workers=3"], True), (["schedule.base_lr=0.1"], False)):
        planned = read_study(study.path, [f"results_dir={folder}", *overrides])
        design = make_design(planned, check=False)
        found = how_short(planned, design, entries(planned, design.cells))
        assert len(found) == known and all("from step 4 of 10 on (40% of a run)" in line for line in found)
