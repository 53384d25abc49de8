"""The page of all runs: what it says of each, that it is quick, and that it costs a run nothing."""

import errno
import html
import json
import logging
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dinoswap.files.lock import exclusive
from dinoswap.run import index
from dinoswap.run.index import curve, renew, renew_above, rows
from dinoswap.run.index.rows import MOST_POINTS, QUIET_MINUTES, Row
from dinoswap.run.metrics import RunRecord
from dinoswap.run.title import title_of
from fake_runs import LONG_AGO, record, write_record

KNN = "eval/knn_top1"


def write(folder: Path, lines: list[dict[str, Any]] | None = None, when: float = LONG_AGO, **changed: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines or []))
    os.utime(folder / "metrics.jsonl", (when, when))
    changed = {"identity": {"trainer.max_steps": 100, "data": "x"}, "run_id": folder.parent.name, **changed}
    write_record(folder, record(**changed), int(when))
    return folder


def shown(root: Path) -> list[list[str]]:
    """The texts of the cells of each row."""
    page = renew(root).read_text()
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    return [
        [html.unescape(re.sub(r"<[^>]*>", " ", cell)).strip() for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)]
        for row in body.split("<tr ")[1:]
    ]


def test_a_row_says_how_a_run_went(tmp_path: Path) -> None:
    lines = [{"step": 50, "loss": 1.0, "images_per_second": 9.0}, {"step": 50, KNN: 31.25}, {"step": 100, KNN: 61.25}]
    folder = write(tmp_path / "mine" / "0123456789" / "seed3", lines, seed=3, steps=100)
    (folder / "pictures").mkdir()
    for name in ("accuracy.png", "pca.png"):
        (folder / "pictures" / name).touch()
    ((status, name, study, seed, step, knn, *_, rate, hours, times),) = shown(tmp_path)
    assert (status, study, seed) == ("completed", "mine", "3")
    assert name.split() == ["official", "recipe=smoke", "'data.path=/a", "b'", "0123456789"]
    assert (step, knn.split()) == ("100 / 100", ["61.25", "knn_top1"])
    assert (rate, hours, times.split()) == ("50.5", "0.5", ["2026-01-02", "03:04", "2026-01-02", "04:04"])
    page = (tmp_path / "index.html").read_text()
    assert 'src="./mine/0123456789/seed3/pictures/pca.png"' in page
    assert "from 31.25 to 61.25" in page
    assert "<label hidden>" in page and "<button" not in page  # what only a script can do


def test_names_are_what_a_result_depends_on() -> None:
    overrides = [
        "preset=legacy",
        "seed=3",
        "study=mine",
        "data.workers=8",
        "data.path=/a",
        "~objectives.koleo",
        "+x=1",
    ]
    assert title_of({"preset": "legacy"}, overrides) == "legacy data.path=/a '~objectives.koleo' +x=1"


def test_a_run_that_is_under_way(tmp_path: Path) -> None:
    """Its last step is that of its log, which is ahead of its record; there is no end yet; the page is loaded again."""
    lines = [{"step": 20, KNN: 10.0}, {"step": 40, "loss": 1.0}]
    write(tmp_path / "mine" / "a" / "seed0", lines, when=time.time(), status="running", steps=20, metrics={KNN: 10.0})
    (row,) = shown(tmp_path)
    assert (row[0], row[4], row[-1]) == ("running", "40 / 100", "2026-01-02 03:04")
    assert 'http-equiv="refresh"' in (tmp_path / "index.html").read_text()
    write(tmp_path / "mine" / "a" / "seed0", lines)
    assert shown(tmp_path)[0][0] == "completed"
    assert 'http-equiv="refresh"' not in (tmp_path / "index.html").read_text()


def test_a_run_that_was_killed_gives_no_sign_of_life(tmp_path: Path) -> None:
    """Unless it holds its lock: an evaluation of many images writes nothing for long."""
    quiet = time.time() - 60 * (QUIET_MINUTES + 2)
    folder = write(tmp_path / "mine" / "a" / "seed0", when=quiet, status="running")
    with exclusive(folder):
        assert shown(tmp_path)[0][0] == "running"
    (row,) = shown(tmp_path)
    assert row[0] == "silent" and "no sign of life for 12 minutes" in row[1]


def test_a_neighbour_that_is_broken_is_a_row_that_says_so(tmp_path: Path) -> None:
    write(tmp_path / "mine" / "a" / "seed0")
    for name, content in {"half": '{"run_id": "x', "list": "[1]", "no_status": '{"run_id": "y", "seed": "?"}'}.items():
        (tmp_path / "mine" / name / "seed0").mkdir(parents=True)
        (tmp_path / "mine" / name / "seed0" / "run.json").write_text(content)
    (tmp_path / "mine" / "folder" / "seed0" / "run.json").mkdir(parents=True)
    os.mkfifo(tmp_path / "mine" / "a" / "seed0" / "pictures")
    found = {row[1].split()[-1]: row for row in shown(tmp_path)}
    assert found.keys() == {"a", "half", "list", "y", "folder"}
    assert {name: row[0] for name, row in found.items() if row[0] != "unreadable"} == {"a": "completed"}
    assert "run.json: not an object but [1]" in found["list"][1]
    assert "run.json: seed is '?': not a whole number" in found["y"][1]
    assert "run.json: not a regular file" in found["folder"][1]


EVIL = "<img src=x onerror=alert(1)>"


def test_hostile_text_is_text(tmp_path: Path) -> None:
    odd = tmp_path / 'javascript:alert(1)&"' / EVIL.replace("/", "") / "seed0"
    write(odd, [{"step": 1, EVIL: 5.0}], study=EVIL, status=EVIL, error=f"{EVIL}\n" * 500, overrides=[EVIL, "a\x1b=b"],
          metrics={EVIL: 5.0})  # fmt: skip
    (row,) = shown(tmp_path)
    assert row[0] == row[2] == EVIL and EVIL in row[1]
    page = (tmp_path / "index.html").read_text()
    assert "<img src=x" not in page and len(page) < 20_000
    assert 'href="./javascript%3Aalert%281%29%26%22/' in page


def test_only_what_a_curve_has_gained_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine" / "a" / "seed0"
    lines = [{"step": step, KNN: float(step)} for step in range(1, 6)]
    write(folder, lines[:3], status="running")
    assert len(known(tmp_path).points) == 3
    reads = []
    read_on = rows.read_on
    monkeypatch.setattr(rows, "read_on", lambda *given: reads.append(read_on(*given)) or reads[-1])
    assert len(known(tmp_path).points) == 3 and not reads
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f"{json.dumps(lines[3])}\n{json.dumps(lines[4])}")  # whose end is still to come
    assert known(tmp_path).points[-1][0] == 4 and json.loads(reads[-1][1].split(b"\n")[0]) == lines[3]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n")
    assert [step for step, _ in known(tmp_path).points] == [1, 2, 3, 4, 5]
    write(folder, lines[:1], status="running")  # a run that goes on from an earlier step
    assert [step for step, _ in known(tmp_path).points] == [1]
    write(folder, [{"step": step, KNN: float(step)} for step in range(10 * MOST_POINTS)], status="running")
    points = known(tmp_path).points
    assert MOST_POINTS // 2 <= len(points) <= MOST_POINTS and points[-1][0] == 10 * MOST_POINTS - 1


def known(root: Path) -> Row:
    renew(root)
    (entry,) = index._read_known(root / index.KNOWN).values()
    return entry.row


def test_what_is_known_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        write(tmp_path / f"study{number % 3}" / f"{number:010x}" / "seed0", [{"step": 1, KNN: 1.0}])
    assert len(shown(tmp_path)) == 50
    opened: list[Path] = []
    read = rows.read_record
    monkeypatch.setattr(rows, "read_record", lambda path: opened.append(path) or read(path))
    began = time.process_time()
    renew(tmp_path)
    assert time.process_time() - began < 0.25 and not opened
    changed = write(tmp_path / "study0" / f"{0:010x}" / "seed0", status="failed", error="why")
    assert sum(row[0] == "failed" for row in shown(tmp_path)) == 1 and opened == [changed / "run.json"]
    cache = tmp_path / index.KNOWN
    opened.clear()
    for damage in (cache.read_bytes()[:-9], b"", b'{"a": 1}', cache.read_bytes().replace(b"study1", b"study9", 1)):
        cache.write_bytes(damage)
        assert sorted({row[2] for row in shown(tmp_path)}) == ["mine"]
        assert len(opened) == 50
        opened.clear()


@pytest.mark.parametrize("reader", ["read_record", "read_on"])
def test_what_could_not_be_read_once_is_read_again(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    write(tmp_path / "mine" / "a" / "seed0", [{"step": 1, KNN: 1.0}])
    with monkeypatch.context() as patch:
        patch.setattr(rows, reader, fails)
        renew(tmp_path)
        assert "<polyline" not in (tmp_path / "index.html").read_text()
    assert known(tmp_path).points == [[1, 1.0]] and shown(tmp_path)[0][0] == "completed"


def test_a_curve_fills_the_steps_that_are_to_be_made() -> None:
    row = Row("", "", "", max_steps=100, points=[(0, 5.0), (25, 10.0), (50, 7.5)])
    assert curve(row, 80, 20) == ["0.0,20.0", "20.0,0.0", "40.0,10.0"]
    assert curve(replace(row, points=[(50, 7.5)]), 80, 20) == ["40.0,20.0"]


def record_in(folder: Path) -> RunRecord:
    return RunRecord(folder / "run.json", "a", "mine", 0, {}, [])


@pytest.mark.parametrize("spoil", [lambda root: (root / "index.html").mkdir(), lambda root: root.rename("gone")])
def test_a_page_that_cannot_be_written_costs_one_warning(
    spoil: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    folder = write(root / "mine" / "a" / "seed0")
    spoil(root)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            renew_above(record_in(folder))
    assert [said.getMessage().split(":")[0] for said in caplog.records] == [
        f"{root}/index.html is not brought up to date"
    ]


def test_a_folder_that_its_user_chose_has_no_page(tmp_path: Path) -> None:
    renew_above(record_in(write(tmp_path / "some" / "where" / "else")))
    assert not list(tmp_path.rglob("index.html"))
