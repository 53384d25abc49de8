"""What a run tells: each value where it belongs, an evaluation once, and no step twice after a resume."""

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from rich.console import Console

from dinoswap.evaluation.evaluator import Evaluation
from dinoswap.evaluation.measure import named
from dinoswap.evaluation.summary import columns_of
from dinoswap.metric.diagnostics import FEW_STEPS
from dinoswap.metric.knn import NearestNeighbours
from dinoswap.metric.linear import LinearProbe
from dinoswap.run.journal import Journal
from dinoswap.run.metrics import read
from dinoswap.run.progress import Display

LOGS = {"loss": torch.tensor(3.0), "dino/local": torch.tensor(2.0), "grad_norm/backbone": torch.tensor(0.5).half()}
HYPER = {"lr": 0.1 + 0.2}


class Told:
    """What trackers are told."""

    def __init__(self) -> None:
        self.scalars_at: list[tuple[int, Mapping[str, float]]] = []
        self.pictures_at: list[tuple[int, str]] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.scalars_at.append((step, values))

    def picture(self, step: int, name: str, image: npt.NDArray[np.uint8]) -> None:
        self.pictures_at.append((step, name))


def journal(folder: Path, done: int = 0, trackers: Any = None) -> Journal:
    display = Display(10, 4, console=Console(file=io.StringIO()))
    return Journal(folder, display, ["dino", "ibot"], trackers or Told(), done=done, warm_up=4)


def evaluation(warning: str | None = None) -> Evaluation:
    results = {"trained": {"knn_top1": 50.0}, "raw pixels": {"knn_top1": 40.0, "linear_top1": 45.0}}
    columns = columns_of([NearestNeighbours(in_loop=True), LinearProbe(in_loop=False, solver="auto")])
    pictures = {"crops": np.zeros((4, 6, 3), np.uint8)}
    return Evaluation(named(results), pictures, warning, results=results, columns=columns)


def test_a_step_is_logged_exactly_and_its_loss_terms_are_shown(tmp_path: Path) -> None:
    with journal(tmp_path) as told:
        told.log(3, LOGS, HYPER)
    (row,) = read(tmp_path / "metrics.jsonl")
    assert row == {"step": 3, "loss": 3, "dino/local": 2, "grad_norm/backbone": 0.5, **HYPER, "images_per_second": None}
    assert "loss 3  dino/local 2 |" in f"{told.display.line()} |"
    assert "grad_norm" not in told.display.line()


def test_a_logged_step_is_written_later_and_before_all_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with journal(tmp_path) as told:
        told.log(1, LOGS, HYPER)
        assert not read(path)  # the device may still be at work
        told.write_logged()
        told.log(2, LOGS, HYPER)
        told.evaluated(2, evaluation())
        told.log(3, LOGS, HYPER)
        told.sync()
        assert [(row["step"], "loss" in row) for row in read(path)] == [(1, True), (2, True), (2, False), (3, True)]
        assert told.lines == 4
        told.log(4, LOGS, HYPER)
    assert [row["step"] for row in read(path)][-1] == 4


def test_an_evaluation_is_written_once_and_a_verdict_waits_for_the_warm_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with journal(tmp_path) as told, caplog.at_level(logging.WARNING):
        for step in (4, FEW_STEPS, FEW_STEPS + 1, FEW_STEPS + 1):
            told.log(step, LOGS, HYPER)
            told.evaluated(step, evaluation("collapsed"))
    rows = read(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval/knn_top1" in row] == [4, FEW_STEPS, FEW_STEPS + 1]
    assert {record.getMessage() for record in caplog.records} == {f"step {FEW_STEPS + 1}: collapsed"}


def test_a_resumed_run_drops_what_it_repeats(tmp_path: Path) -> None:
    trackers = Told()
    for done, last in ((0, 6), (4, 8)):
        with journal(tmp_path, done, trackers) as told:
            for step in range(done + 1, last + 1):
                told.log(step, {"loss": torch.tensor(float(done))}, {})
            told.evaluated(last, evaluation())
    rows = read(tmp_path / "metrics.jsonl")
    assert [(row["step"], row["loss"]) for row in rows if "loss" in row] == [(i, 4 * (i > 4)) for i in range(1, 9)]
    steps = [*range(1, 7), 6, *range(5, 9), 8]  # with an evaluation after each last one
    assert [step for step, _ in trackers.scalars_at] == steps
    assert trackers.pictures_at == [(6, "crops"), (8, "crops")]


def test_a_run_that_starts_again_drops_everything(tmp_path: Path) -> None:
    with journal(tmp_path) as told:
        told.evaluated(0, evaluation())
        told.log(1, LOGS, HYPER)
    with journal(tmp_path):
        assert read(tmp_path / "metrics.jsonl") == []


def test_pictures_of_the_end(tmp_path: Path) -> None:
    found = evaluation()
    with journal(tmp_path) as told:
        told.log(10, LOGS, HYPER)
        told.evaluated(10, found)
        told.save_pictures(found)
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"crops.png", "curves.png"}
