"""The table of a study, against run folders that the test writes."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dinoswap.files.lock import exclusive
from dinoswap.studies.ledger import Entry
from dinoswap.studies.status import TAIL_BYTES, Row, rows, show, summary, tail

KNN = "eval/knn_top1"
CONFIG = {"trainer": {"max_steps": 100}, "data": {"batch_size": 8}}


def entry(folder: Path, cell: str = "reference") -> Entry:
    return Entry(cell=cell, seed=3, overrides=[], config=CONFIG, folder=folder)


def write(folder: Path, lines: list[dict[str, Any]], **record: Any) -> Entry:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "run.json").write_text(json.dumps({"run_id": "x", **record}))
    return entry(folder)


def test_a_running_one(tmp_path: Path) -> None:
    """Step, rate and metric from the last lines that have them; 60 steps of 8 images are left, at 16 images/s."""
    lines = [
        {"step": 20, "loss": 1.0, "images_per_second": 99.0},
        {"step": 20, KNN: 31.25},
        {"step": 40, "loss": 1.0, "images_per_second": 16.0},
    ]
    one = write(tmp_path, lines, status="running", steps=20, restarts=2)
    with exclusive(tmp_path):
        (row,) = rows([one], KNN)
    assert (row.state, row.step, row.rate, row.eta) == ("running", "40/100", "16.0", "0:00:30")
    assert (row.metric, row.restarts) == (f"{KNN} 31.25", "2")
    assert row.line.startswith(
        f"reference seed 3: running | step 40/100 | 16.0 images/s | ETA 0:00:30 | {KNN} 31.25 | 2 restarts | process "
    )


def test_a_completed_one_needs_its_record_only(tmp_path: Path) -> None:
    one = write(tmp_path, [], status="completed", steps=100, restarts=0, metrics={KNN: 40.0},
                throughput={"images_per_second": 12.34})  # fmt: skip
    (tmp_path / "metrics.jsonl").unlink()
    (row,) = rows([one], KNN)
    assert row.line == f"reference seed 3: completed | step 100/100 | 12.3 images/s | {KNN} 40"


def test_one_that_failed_and_one_that_is_missing(tmp_path: Path) -> None:
    failed = write(tmp_path / "a", [{"step": 7}], status="failed", steps=5, error="OSError: no\nTraceback")
    found = rows([failed, entry(tmp_path / "b")], KNN)
    assert [row.line for row in found] == [
        "reference seed 3: failed | step 7/100 | OSError: no",
        "reference seed 3: missing",
    ]


def test_the_tail_of_a_file_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert tail(path) == []
    lines = [json.dumps({"step": step, "loss": 0.123456789}) for step in range(10_000)]
    path.write_text("\n".join(lines) + '\n{"step": 10000, "lo')
    assert path.stat().st_size > 2 * TAIL_BYTES
    steps = [line["step"] for line in tail(path)]
    assert steps == list(range(steps[0], 10_000))
    assert len(steps) > 1000
    path.write_text('{"step": 1}\nnot JSON\n{"step": 2}\n')
    assert tail(path) == [{"step": 1}, {"step": 2}]


def test_the_summary_counts_states_in_a_fixed_order() -> None:
    assert summary(["failed", "completed", "missing", "completed"]) == "4 runs: 1 missing, 2 completed, 1 failed"


def row(state: Any, note: str = "") -> Row:
    return Row(cell="[bold]cell", seed=0, state=state, step="", rate="", eta="", metric="", restarts="", note=note)


def test_away_from_a_terminal_plain_lines_once(capsys: pytest.CaptureFixture[str]) -> None:
    show(lambda: [row("running")], "mine", once=False, console=Console(file=io.StringIO()))
    assert capsys.readouterr().out == "[bold]cell seed 0: running\n1 runs: 1 running\n"


def test_on_a_terminal_the_table_lives_until_every_run_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinoswap.studies.status.REFRESH_SECONDS", 0)
    answers = iter([[row("missing")], [row("queued")], [row("running")], [row("failed", "[red]why")]])
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    show(lambda: next(answers), "mine", once=False, console=console)
    assert next(answers, None) is None
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]cell" in output
    assert "[red]why" in output
    assert "1 runs: 1 failed" in output


def test_once_prints_the_table_and_ends() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    show(lambda: [row("running")], "mine", once=True, console=console)
    assert "1 runs: 1 running" in console.file.getvalue()  # type: ignore[attr-defined]
