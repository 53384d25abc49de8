"""metrics.jsonl and run.json: exact, without gaps or repeats after a resume."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path

import pytest

from dinoswap.files.writing import write_atomically
from dinoswap.run.metrics import MetricsLog, RunRecord, load_record, read


def test_a_line_is_readable_as_soon_as_it_is_logged_and_exact(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    log = MetricsLog(path)
    log.log(3, {"loss": 0.1 + 0.2, "lr": 5e-324, "bad": math.nan, "worse": -math.inf, "count": 7})
    text = path.read_text()
    assert text == '{"step": 3, "loss": 0.30000000000000004, "lr": 5e-324, "bad": null, "worse": null, "count": 7}\n'
    assert read(path) == [{"step": 3, "loss": 0.1 + 0.2, "lr": 5e-324, "bad": None, "worse": None, "count": 7}]


def test_a_resumed_file_equals_one_never_interrupted(tmp_path: Path) -> None:
    def run(log: MetricsLog, first: int, last: int) -> None:
        for step in range(first, last):
            log.log(step, {"loss": math.sin(step) / 3, "lr": 1 / (step + 1)})
            if step % 4 == 0:
                log.log(step, {"eval/knn_top1": step / 7})

    whole = MetricsLog(tmp_path / "whole.jsonl")
    run(whole, 1, 20)
    log = MetricsLog(tmp_path / "resumed.jsonl")
    for first, last in ((1, 14), (9, 18), (18, 20), (12, 20)):  # started at `first`, died before `last`
        log.truncate_from(first)
        run(log, first, last)
        log.sync()
        log.close()
        log = MetricsLog(tmp_path / "resumed.jsonl")
    assert (tmp_path / "resumed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    log.truncate_from(0)
    assert (tmp_path / "resumed.jsonl").read_bytes() == b""


def test_killed_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(5):
        log.log(step, {"loss": 1.0})
    whole = path.read_bytes()
    writer = """if True:
        import sys, time
        open(sys.argv[1], "ab", 0).write(b'{"step": 5, "lo')
        print(flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", writer, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert path.read_bytes() != whole
    assert [line["step"] for line in read(path)] == [0, 1, 2, 3, 4]
    log = MetricsLog(path)
    log.truncate_from(5)
    assert path.read_bytes() == whole
    log.log(5, {"loss": 1.0})
    assert [line["step"] for line in read(path)] == [0, 1, 2, 3, 4, 5]


def test_a_bad_line_elsewhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2"):
        read(path)


def start(path: Path) -> RunRecord:
    return RunRecord.start(
        path, run_id="abc", study="single", seed=3, choices={"masking": "block"}, overrides=["seed=3"]
    )


FIELDS = {
    *("run_id", "study", "seed", "choices", "overrides", "status", "error", "git", "versions", "hardware"),
    *("started", "ended", "steps", "restarts", "throughput", "cost", "metrics", "notes", "identity", "data", "origin"),
}


def test_run_json_has_the_fields_of_the_interface(tmp_path: Path) -> None:
    record = start(tmp_path / "run.json")
    found = json.loads((tmp_path / "run.json").read_text())
    assert found.keys() == FIELDS
    assert (found["status"], found["error"], found["ended"], found["restarts"]) == ("running", None, None, 0)
    assert (found["seed"], found["choices"], found["overrides"]) == (3, {"masking": "block"}, ["seed=3"])
    record.steps = 10
    record.metrics = {"knn_top1": 0.1 + 0.2, "broken": math.nan}
    record.finish("completed")
    found = load_record(tmp_path / "run.json")
    assert found["metrics"] == {"knn_top1": 0.1 + 0.2, "broken": None}
    assert (found["status"], found["steps"]) == ("completed", 10)
    assert datetime.fromisoformat(found["started"]) <= datetime.fromisoformat(found["ended"])
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_restart_continues_the_record(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    record = start(path)
    record.started = "2026-01-01T00:00:00+00:00"
    record.steps, record.cost = 40, {"core_or_gpu_hours": 1.5}
    record.finish("failed", "out of memory")
    for restarts in (1, 2):
        record = start(path)
        found = load_record(path)
        assert (found["restarts"], found["started"]) == (restarts, "2026-01-01T00:00:00+00:00")
        assert (found["status"], found["error"], found["ended"]) == ("running", None, None)
        assert (found["steps"], found["cost"]) == (40, {"core_or_gpu_hours": 1.5})
    assert record.cost == {"core_or_gpu_hours": 1.5}


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_what_is_not_a_record_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json.*delete it"):
        start(tmp_path / "run.json")


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path, texts = tmp_path / "run.json", ["a" * 300_000, "b" * 300_000]
    write_atomically(path, texts[0])
    writer = threading.Thread(target=lambda: [write_atomically(path, texts[i % 2]) for i in range(60)])
    writer.start()
    while writer.is_alive():
        assert path.read_text() in texts
    writer.join()
