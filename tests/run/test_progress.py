"""The display: plain lines and the live line, rates, and what a step pays for it."""

import io
import logging
import math
import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from dinoswap.run import progress
from dinoswap.run.progress import Display, logging_to


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def plain(total: int, images: int = 8) -> Display:
    return Display(total, images, console=Console(file=io.StringIO()))


def test_rates_and_eta_leave_evaluation_out(clock: Clock) -> None:
    with plain(40, images=8) as display:
        assert math.isnan(display.images_per_second)
        for step in range(1, 21):
            clock.now += 0.5
            display.update(step, 0.1)
            if step == 10:
                with display.paused("evaluation"):
                    assert "evaluation" in display.line()
                    clock.now += 100
        assert display.images_per_second == pytest.approx(16)
        assert display.mean_images_per_second == pytest.approx(16)
        assert display.data_wait_share == pytest.approx(0.2)
        assert "ETA 0:00:10" in display.line()
        assert "data wait 20%" in display.line()
        assert "evaluation" not in display.line()


def test_the_rate_is_that_of_the_last_steps(clock: Clock) -> None:
    display = plain(1000, images=1)
    for step in range(1, 301):
        clock.now += 4 if step <= 200 else 1
        display.update(step, 0.0)
    assert display.images_per_second == pytest.approx(1)
    assert display.mean_images_per_second == pytest.approx(299 / (199 * 4 + 100))


def test_plain_lines_come_first_by_time_at_evaluations_and_at_the_end(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with logging_to(tmp_path / "run" / "log.txt"), plain(100) as display:
        for step in range(1, 101):
            clock.now += 1
            display.update(step, 0.25)
            if step == 1 or step % 10 == 0:
                display.report(step, {"loss": 1 / step, "dino/global": 2.0})
            if step == 45:
                display.evaluated(step, "k-NN CLS 61.2")
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert [line.split("step ")[1].split("/")[0] for line in lines] == ["1", "21", "41", "45", "65", "85", "100"]
    assert lines[3].endswith(
        "step 45/100 | loss 0.025  dino/global 2 | 8.0 images/s | data wait 25% | ETA 0:00:55 | k-NN CLS 61.2"
    )
    assert [line.split("INFO ")[1] for line in lines] == capsys.readouterr().out.splitlines()


def test_no_last_line_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), logging_to(tmp_path / "log.txt"), plain(10) as display:
        display.update(1, 0.0)
        raise RuntimeError("boom")
    assert (tmp_path / "log.txt").read_text() == ""


def test_an_update_costs_microseconds() -> None:
    display = plain(10**6)
    display.report(0, {"loss": 1.0})
    start = time.perf_counter()
    for step in range(20_000):
        display.update(step, 0.001)
    assert (time.perf_counter() - start) / 20_000 < 50e-6  # about 1 on an idle core


def test_each_run_logs_to_its_own_file(tmp_path: Path) -> None:
    package = logging.getLogger("dinoswap")
    before = (package.level, package.propagate, list(package.handlers))
    for name in "ab":
        for text in ("first", "again"):
            with logging_to(tmp_path / name):
                logging.getLogger("dinoswap.data").warning("%s %s", text, name)
    assert [line.split("WARNING ")[1] for line in (tmp_path / "a").read_text().splitlines()] == ["first a", "again a"]
    assert [line.split("WARNING ")[1] for line in (tmp_path / "b").read_text().splitlines()] == ["first b", "again b"]
    assert (package.level, package.propagate, list(package.handlers)) == before


LIVE = """
import logging, sys, time
from pathlib import Path
from dinoswap.run.progress import Display, logging_to
with logging_to(Path(sys.argv[1])), Display(100, 4) as display:
    for step in range(1, 4):
        display.update(step, 0.0)
        display.report(step, {"loss": 7.5})
        logging.getLogger("dinoswap.data").warning("a note of another module")
    raise ZeroDivisionError("in the middle")
"""


def run_on_a_terminal(log: Path) -> str:
    """What a terminal receives from LIVE."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", LIVE, str(log)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        received = b""
        while True:
            try:
                received += os.read(ours, 65536)
            except OSError:  # Linux: the other end is closed
                break
        process.wait()
    os.close(ours)
    return received.decode()


def test_the_live_line_and_an_exception_on_a_terminal(tmp_path: Path) -> None:
    received = run_on_a_terminal(tmp_path / "log.txt")
    assert "step 3/100" in received
    assert "loss 7.5" in received
    assert received.count("a note of another module") == 3
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert received.count(hide) == received.count(show) == 1
    assert received.index(show) < received.index("ZeroDivisionError: in the middle")  # the cursor is back
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2].split(" ", 1)[0] for line in lines] == ["INFO", "WARNING", "WARNING", "WARNING"]
    assert "step 1/100 | loss 7.5" in lines[0]


def test_forced_colour_is_not_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    with Display(10, 4, console=Console(file=file)) as display:
        display.update(1, 0.0)
        display.report(1, {"loss": 1.0})
    assert file.getvalue() == ""
