"""What the effects and cells of a study cost, from its run folders and from its report.json."""

import json
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from fake_study import Ending, write_runs, write_study

from dinoswap.config.schema import ConfigError
from dinoswap.studies import load_hours
from dinoswap.studies.design import make_design
from dinoswap.studies.ledger import entries
from dinoswap.studies.report import analyse, write_again, write_report
from dinoswap.studies.report.analysis import Analysis, analyse_collected
from dinoswap.studies.report.hours_frame import ORDER
from dinoswap.studies.report.numbers import as_json
from dinoswap.studies.report.price_tables import cells, effects_and_prices, hours, of_prices
from dinoswap.studies.report.price_words import sentences
from dinoswap.studies.report.prices import Prices
from dinoswap.studies.report.rows import read_rows
from dinoswap.studies.statistics import factorial
from dinoswap.studies.study import Study

KNN = "eval/knn_top1"
TEXT = """# What does it cost?
base: [recipe=smoke]
factors: {masking: [block, bernoulli], layer_decay: [layerwise, uniform]}
design: one_at_a_time
seeds: 4
metrics: {eval/knn_top1: 1.0}
"""
STEPS, THREADS = 10, 2
"""Of the runs of fake_study: the steps of one, and its threads. Its curves are value * step / 10 at steps 2, 4, ..."""


def value(levels: Mapping[str, str], seed: int) -> float:
    """bernoulli is better by 4, uniform by less than what matters."""
    noise = random.Random(f"{levels}{seed}").gauss(0, 0.1)
    return 40 + 2 * seed + noise + 4 * (levels["masking"] == "bernoulli") + 0.5 * (levels["layer_decay"] == "uniform")


def rate(levels: Mapping[str, str], seed: int) -> float:
    """bernoulli takes a quarter longer, uniform a tenth less; seeds differ by more."""
    noise = random.Random(f"{seed}{levels}").gauss(0, 0.01)
    slower = 1.25 ** (levels["masking"] == "bernoulli") * 0.9 ** (levels["layer_decay"] == "uniform")
    return 50 * (1 + seed) / slower * math.exp(noise)


def changed_records(study: Study, root: Path) -> Iterator[tuple[Mapping[str, str], int, Path, dict[str, Any]]]:
    """Levels, seed, path and content of each run.json."""
    designed = make_design(study, check=False).cells
    levels = {cell.name: cell.levels for cell in designed}
    for entry in entries(study, designed):
        path = root / entry.run_id / f"seed{entry.seed}" / "run.json"
        if path.exists():
            yield levels[entry.cell], entry.seed, path, json.loads(path.read_text())


def made(folder: Path, text: str = TEXT, ending: Callable[[Mapping[str, str], int], Ending] = value) -> Study:
    """A study with runs of these rates below runs/study."""
    study = write_study(folder, text)
    write_runs(study, folder / "runs" / "study", ending)
    for levels, seed, path, record in changed_records(study, folder / "runs" / "study"):
        record["throughput"]["images_per_second"] = rate(levels, seed)
        path.write_text(json.dumps(record))
    return study


def priced(study: Study, folder: Path) -> tuple[Analysis, Prices]:
    analysis = analyse(study, folder / "runs" / "study")
    assert analysis.prices is not None
    return analysis, analysis.prices


BLOCK = {"masking": "block", "layer_decay": "layerwise"}


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    folder = tmp_path_factory.mktemp("arms")
    return made(folder), folder


@pytest.fixture(scope="module")
def page(arms: tuple[Study, Path]) -> Path:
    study, folder = arms
    return write_report(study, folder / "runs" / "study", folder / "out")


def test_an_effect_on_the_time_per_image_is_a_ratio(arms: tuple[Study, Path], page: Path) -> None:
    _, prices = priced(*arms)
    written = json.loads(page.with_name("report.json").read_text())["prices"]["time_per_image"]
    table = effects_and_prices(prices, "reference")
    for row, changed in zip(table.rows, ({"masking": "bernoulli"}, {"layer_decay": "uniform"}), strict=True):
        logs = [math.log(rate(BLOCK, seed) / rate(BLOCK | changed, seed)) for seed in range(4)]
        limits = scipy.stats.t.interval(0.95, 3, np.mean(logs), scipy.stats.sem(logs))
        expected = [100 * math.expm1(at) for at in (np.mean(logs), *limits)]
        assert [written[row[0]][name] for name in ("mean", "low", "high")] == pytest.approx(expected)
        shown = [float(at) for at in re.findall(r"[+-][\d.]+", row[3].replace("\N{MINUS SIGN}", "-"))]
        assert shown == pytest.approx(expected, abs=0.01)
    assert [row[4] for row in table.rows] == ["dearer", "cheaper"]
    assert [row[2] for row in table.rows] == ["better", "equivalent"]
    drawn = (page.parent / "figures" / "effects-cost.svg").read_text()
    assert "masking=bernoulli: " in drawn and "better, dearer" in drawn


def test_a_factorial_has_the_ratio_of_geometric_means(tmp_path: Path) -> None:
    study = made(tmp_path, TEXT.replace("one_at_a_time", "factorial"))
    _, prices = priced(study, tmp_path)
    designed = {cell.name: cell.levels for cell in make_design(study, check=False).cells}
    rows = [(cell, seed, "completed", -math.log(rate(at, seed))) for cell, at in designed.items() for seed in range(4)]
    outcomes = pd.DataFrame(rows, columns=["cell", "seed", "status", "value"])
    expected = factorial(outcomes, designed, study.factors).main
    for effect, main in zip(prices.effects, expected, strict=True):
        assert (effect.log_time.low, effect.log_time.high) == pytest.approx((main.low, main.high))
    slow = outcomes["cell"].str.contains("bernoulli")
    means = [math.exp(outcomes["value"][at].mean()) for at in (slow, ~slow)]
    assert math.exp(prices.effects[0].log_time.mean) == pytest.approx(means[0] / means[1])


def test_hours_are_those_of_the_steps_until_the_curve_has_the_value(arms: tuple[Study, Path]) -> None:
    study, folder = arms
    images = make_design(study, check=False).cells[0].config["data"]["batch_size"]
    frame = load_hours(study.path, [20.0, 36.0, 99.0], [f"results_dir={folder}"])
    assert list(frame) == ORDER and len(frame) == 3 * 12 and set(frame["metric"]) == {KNN}
    levels_of = [BLOCK, BLOCK | {"masking": "bernoulli"}, BLOCK | {"layer_decay": "uniform"}]
    names = dict(zip(("reference", "masking=bernoulli", "layer_decay=uniform"), levels_of, strict=True))
    for row in frame.itertuples():
        levels = names[row.cell]
        end = value(levels, row.seed)
        step = row.target / end * STEPS  # the curve is a straight line to its end
        if step > 8:  # the last evaluation in the loop
            assert row.step == row.hours == math.inf
        else:
            assert row.step == pytest.approx(step) and row.target > 8
            assert row.hours == pytest.approx(step * images / rate(levels, row.seed) / 3600 * THREADS)
    analysis, prices = priced(study, folder)
    (ends, of_ends), (shared, of_shared) = prices.hours
    assert ends.values == pytest.approx({seed: 0.8 * value(BLOCK, seed) for seed in range(4)})
    assert shared.mean == pytest.approx(min(0.8 * value(at, seed) for at in names.values() for seed in range(4)))
    bernoulli = of_ends[1]
    logs = [
        math.log(value(BLOCK, seed) / value(names["masking=bernoulli"], seed))
        + math.log(rate(BLOCK, seed) / rate(names["masking=bernoulli"], seed))
        for seed in range(4)
    ]
    assert bernoulli.log_ratio is not None and bernoulli.log_ratio.mean == pytest.approx(np.mean(logs))
    assert all(cell.reached == cell.runs == 4 for cell in of_shared)
    table = hours(prices)
    assert [row[0] for row in table.rows] == list(names) and len(table.columns) == 5
    assert table.rows[0][2] == "-" and table.rows[1][2].startswith("+") and "first" not in table.caption
    assert "schedules end with the run" in " ".join(sentences(analysis, prices))
    with pytest.raises(ConfigError, match="metric=loss: is none of this study; choose one of eval/knn_top1"):
        load_hours(study.path, [1.0], [f"results_dir={folder}"], metric="loss")


def test_runs_that_do_not_reach_it_are_counted(tmp_path: Path) -> None:
    def ending(levels: Mapping[str, str], seed: int) -> Ending:
        if levels["masking"] == "bernoulli":
            return [20.0, 60.0, 60.0, "diverged"][seed]
        return [60.0, 20.0, 20.0, "collapsed"][seed] if levels["layer_decay"] == "uniform" else 40.0 + seed

    study = made(tmp_path, ending=ending)
    analysis, prices = priced(study, tmp_path)
    half, fewer = (row[1] for row in hours(prices).rows[1:])
    assert half.endswith(" (2 of 4 runs)") and not half.startswith("not")
    assert fewer.startswith("not in ") and fewer.endswith(" (1 of 4 runs)")
    assert [row[2] for row in hours(prices).rows] == ["-", "-", "-"], "no ratio where not all runs have it"
    text = sentences(analysis, prices)[1]
    assert "images/s: 1 (reference)." in text and "No candidates" in text and text.endswith(": 2 and 3.")
    assert [row[3] for row in cells(analysis).rows] == ["100% (yes)", "-", "-"]


def test_the_front_is_named(arms: tuple[Study, Path]) -> None:
    analysis, prices = priced(*arms)
    text = sentences(analysis, prices)[1]
    assert "2 (masking=bernoulli); 3 (layer_decay=uniform)" in text and "reference" not in text
    assert "With GFLOPs/image instead: 2." in text, "all cells take as many"
    table = cells(analysis)
    assert table.columns[3] == "on the front"
    assert [row[3] for row in table.rows] == ["0% (no)", "100% (yes)", "100% (yes)"]


def test_a_cell_whose_seeds_the_reference_has_not_finished_has_no_hours_to_its_ends(tmp_path: Path) -> None:
    def ending(levels: Mapping[str, str], seed: int) -> Ending:
        other = "diverged" if levels == BLOCK else 40.0
        return (40.0 if levels == BLOCK else None) if seed == 0 and levels["masking"] == "block" else other

    analysis, prices = priced(made(tmp_path, TEXT.replace("seeds: 4", "seeds: 2"), ending), tmp_path)
    rows = {row[0]: row[1:] for row in hours(prices).rows}
    assert rows["layer_decay=uniform"][:2] == ["-", "-"] and rows["layer_decay=uniform"][2] != "-"
    assert len({len(row) for row in rows.values()}) == 1 and analysis.results


@pytest.mark.parametrize("wrong", [0, -3.0, None])
def test_a_rate_that_no_run_has_is_none(wrong: float | None, tmp_path: Path) -> None:
    study = made(tmp_path)
    for levels, seed, path, record in changed_records(study, tmp_path / "runs" / "study"):
        if levels["masking"] == "bernoulli" and seed == 0:
            path.write_text(json.dumps(record | {"throughput": {"images_per_second": wrong}}))
    analysis, prices = priced(study, tmp_path)
    assert prices.effects[0].log_time.seeds == (1, 2, 3) and prices.effects[1].log_time.seeds == (0, 1, 2, 3)
    bernoulli = prices.hours[1][1][1]
    assert math.isnan(bernoulli.hours) and bernoulli.reached == 4 and bernoulli.log_ratio is None
    assert [row[3] for row in hours(prices).rows][1] == "-" and as_json(analysis)


def test_without_run_folders(arms: tuple[Study, Path], page: Path, tmp_path: Path) -> None:
    """report.json has what hours need; an older one has not, and says so."""
    study, folder = arms
    rows = page.with_name("report.json")
    pd.testing.assert_frame_equal(load_hours(rows, [30.0]), load_hours(study.path, [30.0], [f"results_dir={folder}"]))
    assert write_again(rows, tmp_path / "again").read_text() == page.read_text()
    content = json.loads(rows.read_text())
    del content["prices"]
    for cell in content["cells"]:
        del cell["images_per_step"]
    older = tmp_path / "report.json"
    older.write_text(json.dumps(content))
    analysis = analyse_collected(read_rows(older))
    assert analysis.prices and not analysis.prices.hours and load_hours(older, [30.0]).empty
    text = " ".join(sentences(analysis, analysis.prices))
    assert "does not hold what runs measured in the loop, or how many images a step has" in text
    assert [table.name for table in of_prices(analysis, analysis.prices)] == ["effects and prices", "cells"]
    assert "images_per_step" not in json.loads(as_json(analysis))["cells"][0], "made again, it still is an older one"
