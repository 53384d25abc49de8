"""The local launcher, with processes that play a run's part, and what a launched run adds to one that is not."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.plugins import Plugins

from dinoswap.config.configuration import config_dir
from dinoswap.run.provenance import SUBMITTED_CODE, CodeChanged, code_version, require_submitted_code
from dinoswap.run.run_folder import point
from dinoswap.studies.design import make_design
from dinoswap.studies.launch import Job, launch
from dinoswap.studies.ledger import Entry, entries, run_statuses
from dinoswap.studies.study import read_study
from hydra_plugins.dinoswap_launchers.local import LocalLauncher
from train_processes import TrainProcess

STUDY = """# Which seed?
base: [recipe=smoke, "results_dir='{results}'"]
factors: {{masking: [block, bernoulli]}}
design: explicit
cells: {{only: {{}}}}
seeds: {seeds}
metrics: {{eval/knn_top1: 1.0}}
"""
# A run: how it goes depends on its seed
ACTOR = """
import json, os, signal, sys, time
from pathlib import Path
from dinoswap.files.lock import exclusive

folder, events = Path(sys.argv[1]), Path(sys.argv[2])
seed = int(folder.name.removeprefix("seed"))

def note(**what):
    with events.open("a") as file:
        file.write(json.dumps({"seed": seed, "time": time.monotonic(), **what}) + "\\n")

def record(status, **more):
    (folder / "run.json").write_text(json.dumps({"run_id": "x", "status": status, **more}))

def stop(number, frame):
    note(ended=signal.Signals(number).name)
    record("preempted", error="told to")
    sys.exit(75)

for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
with exclusive(folder):
    if (folder / "run.json").exists() and json.loads((folder / "run.json").read_text())["status"] == "completed":
        sys.exit()
    record("running")
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "DINOSWAP_SUBMITTED_CODE")
    note(began={name: os.environ.get(name) for name in names}, session=os.getsid(0) == os.getpid())
    print("what it prints")
    time.sleep(60 if seed == 9 else 0.3)
    if seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if seed == 2:
        record("failed", error="OSError: why")
        sys.exit(1)
    note(ended="well")
    record("completed", metrics={"eval/knn_top1": 10.0 + seed})
"""


_fork = multiprocessing.get_context("fork")


class Stage:
    """The study, and what its runs note."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.events_path = folder, folder / "events"

    def runs(self, seeds: list[int], *overrides: str) -> list[Entry]:
        path = self.folder / "mine.yaml"
        path.write_text(STUDY.format(results=self.folder / "a, b", seeds=seeds))
        study = read_study(path, overrides)
        return entries(study, make_design(study, check=False).cells)

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = self.events_path.read_text().splitlines() if self.events_path.exists() else []
        return [event for event in map(json.loads, lines) if kind in event]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = Stage(tmp_path)

    monkeypatch.setattr(local_launcher(), "_command", acting(found.events_path))
    return found


def local_launcher() -> Any:
    """Hydra runs the modules of its plugins anew when it looks for them."""
    Plugins.instance()
    return sys.modules["hydra_plugins.dinoswap_launchers.local"].LocalLauncher


def acting(events: Path) -> Callable[[object, Job], list[str]]:
    return lambda launcher, job: [sys.executable, "-c", ACTOR, str(job.folder), str(events)]


def drive(runs: list[Entry], events: Path) -> None:
    """In a process of its own."""
    local_launcher()._command = acting(events)
    launch(runs)


def states(runs: list[Entry]) -> list[str]:
    return [at.state for at in run_statuses([entry.folder for entry in runs])]


def test_each_is_a_process_of_its_own(stage: Stage) -> None:
    """One is killed, one fails: the others neither notice nor wait."""
    runs = stage.runs([0, 1, 2, 3, 4, 5])
    launch(runs, ["hydra.launcher.processes=3", "hydra.launcher.threads=2", "hydra.launcher.gpus=[4,5]"])
    assert states(runs) == ["completed", "killed", "failed", "completed", "completed", "completed"]
    began = stage.events("began")
    assert sorted(event["seed"] for event in began) == [0, 1, 2, 3, 4, 5]
    assert all(event["session"] for event in began)
    for event in began:
        assert (event["began"]["OMP_NUM_THREADS"], event["began"]["MKL_NUM_THREADS"]) == ("2", "2")
        assert event["began"][SUBMITTED_CODE] == code_version(config_dir())
    assert {event["began"]["CUDA_VISIBLE_DEVICES"] for event in began[:3]} == {"4", "5"}
    assert (runs[0].folder / "output.txt").read_text() == "what it prints\n"
    assert_at_once(stage, 3)


def assert_at_once(stage: Stage, most: int) -> None:
    """Among the runs that noted their ends."""
    ends = {event["seed"]: event["time"] for event in stage.events("ended")}
    marks = [(event["time"], 1) for event in stage.events("began") if event["seed"] in ends]
    marks += [(when, -1) for when in ends.values()]
    count = highest = 0
    for _, change in sorted(marks):
        count += change
        highest = max(highest, count)
    assert 1 < highest <= most


def test_the_cores_are_shared(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    launch(stage.runs([0, 3]), ["hydra.launcher.processes=2", "hydra.launcher.check_code=false"])
    for event in stage.events("began"):
        assert event["began"]["OMP_NUM_THREADS"] == "3"
        assert event["began"]["CUDA_VISIBLE_DEVICES"] == os.environ.get("CUDA_VISIBLE_DEVICES")
        assert event["began"][SUBMITTED_CODE] == ""


def test_what_is_done_or_under_way_is_not_run_again(stage: Stage) -> None:
    runs = stage.runs([0, 3])
    launch(runs)
    launch(runs)
    assert [event["seed"] for event in stage.events("began")] == [0, 3]


def test_images_that_only_a_node_has(stage: Stage) -> None:
    """Study and launcher name the run alike without them; where it went from there is followed."""
    runs = stage.runs([0, 1], "data=image_folder", "data.path='${oc.env:NODE_TMP}/images'")
    launch(runs)
    assert states(runs) == ["completed", "killed"]
    own = runs[1].folder.parents[1] / "0123456789" / "seed1"
    own.mkdir(parents=True)
    (own / "run.json").write_text(json.dumps({"run_id": "0123456789", "status": "completed"}))
    point(runs[1].folder, own)
    assert states(runs) == ["completed", "completed"]
    launch(runs)
    assert [event["seed"] for event in stage.events("began")] == [0, 1]
    again = stage.runs([0, 1], "data=image_folder", "data.path='${oc.env:NODE_TMP}/images'")
    assert [entry.run_id for entry in again] == [runs[0].run_id, "0123456789"]


def test_two_drivers_share_the_work(stage: Stage) -> None:
    """The second begins while the first is at it. A run that it finds taken it leaves alone."""
    runs = stage.runs([0, 3, 4, 5])
    drivers = [_fork.Process(target=drive, args=(runs, stage.events_path)) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert [driver.exitcode for driver in drivers] == [0, 0]
    assert sorted(event["seed"] for event in stage.events("began")) == [0, 3, 4, 5]
    assert states(runs) == ["completed"] * 4


@pytest.mark.parametrize(
    ("number", "handed_on"),
    [
        (signal.SIGINT, "SIGINT"),
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGHUP, "SIGTERM"),
        (signal.SIGUSR1, "SIGTERM"),
    ],
)
def test_a_signal_stops_what_runs_and_starts_no_more(number: signal.Signals, handed_on: str, stage: Stage) -> None:
    runs = stage.runs([9, 3])
    before = signal.getsignal(number)
    send = when(lambda: stage.events("began"), lambda: os.kill(os.getpid(), number))
    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    with pytest.raises(SystemExit) as ended:
        launch(runs)
    sender.join()
    assert ended.value.code == 75
    assert [event["ended"] for event in stage.events("ended")] == [handed_on]
    assert states(runs) == ["preempted", "missing"]
    assert signal.getsignal(number) is before


def when(condition: Callable[[], Any], act: Callable[[], Any]) -> Callable[[], None]:
    def wait() -> None:
        while not condition():
            time.sleep(0.02)
        act()

    return wait


def test_every_setting_of_slurm_is_explained() -> None:
    """Those of the launcher that it is built on, and its own two."""
    config = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config")
    written = yaml.safe_load((config_dir() / "hydra" / "launcher" / "slurm.yaml").read_text())
    assert set(written) == set(config.SlurmQueueConf.__dataclass_fields__) | {"poll_seconds", "check_code"}


# --- a launched run ---------------------------------------------------------------------------------------------------

SMOKE = ["recipe=smoke", "tracker=none", "evaluation.in_loop_images=20", "evaluation.images=20"]
LAUNCHED = f"+hydra.job.env_set.{SUBMITTED_CODE}="


def record(run: TrainProcess) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.folder / "run.json").read_text())
    return found


def test_a_second_process_does_not_write_the_same_run(tmp_path: Path) -> None:
    overrides = [*SMOKE, "trainer.max_steps=500"]
    first = TrainProcess(overrides, tmp_path)
    first.wait_for_step(2)
    second = TrainProcess(overrides, tmp_path)
    assert second.wait() == 75, second.output
    assert f"is in use by process {first.pid} on " in second.output
    assert record(first)["restarts"] == 0
    assert first.signal(signal.SIGTERM) == 75
    assert record(first)["status"] == "preempted"
    assert not (first.folder / ".lock").exists()


def test_code_that_changed_since_the_submission(tmp_path: Path) -> None:
    overrides = [*SMOKE, "trainer.max_steps=1"]
    run = TrainProcess([*overrides, f"{LAUNCHED}'0123456789ab (commit fedcba9)'"], tmp_path)
    assert run.wait() == 1, run.output
    for text in (run.output, record(run)["error"]):
        assert "the code was 0123456789ab (commit fedcba9) when this job was submitted and is " in text
        assert code_version(config_dir()).split()[0] in text
        assert "submit again" in text
    assert record(run)["status"] == "failed"
    again = TrainProcess([*overrides, f"{LAUNCHED}'{code_version(config_dir())}'"], tmp_path)
    assert again.wait() == 0, again.output
    assert (record(run)["status"], record(run)["restarts"]) == ("completed", 1)


def test_why_a_launched_run_could_not_begin_is_in_its_record(tmp_path: Path) -> None:
    """Nobody reads what it printed. A command that somebody typed leaves nothing behind when it is refused."""
    overrides = ["recipe=smoke", "data=image_folder", "data.path=/nowhere"]
    typed = TrainProcess(overrides, tmp_path)
    assert typed.wait() == 2, typed.output
    assert not typed.folder.exists()
    launched = TrainProcess([*overrides, f"{LAUNCHED}''"], tmp_path)
    assert launched.wait() == 2, launched.output
    assert record(launched)["status"] == "failed"
    assert "data.path=/nowhere: no such folder" in record(launched)["error"]


def test_the_version_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, configs = tmp_path / "package", tmp_path / "configs"
    for path in (
        package / "a" / "b.py",
        package / "studies" / "c.py",
        configs / "d.yaml",
        configs / "hydra" / "e.yaml",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("old")
    (package / "notes.txt").write_text("old")
    before = code_version(configs, package)
    monkeypatch.setenv(SUBMITTED_CODE, before)
    for path in (package / "studies" / "c.py", package / "notes.txt", configs / "hydra" / "e.yaml"):
        path.write_text("new")  # none of them trains
        assert code_version(configs, package) == before
    seen = {before}
    for change in (
        lambda: (package / "a" / "b.py").write_text("new"),
        lambda: (configs / "d.yaml").write_text("new"),
        lambda: (package / "a" / "b.py").rename(package / "a" / "c.py"),
        lambda: (package / "f.py").touch(),
    ):
        change()
        assert code_version(configs, package) not in seen
        seen.add(code_version(configs, package))
    with pytest.raises(CodeChanged, match=before):
        require_submitted_code(config_dir())
    monkeypatch.setenv(SUBMITTED_CODE, f"{code_version(config_dir()).split()[0]} (commit 0000000, changed)")
    require_submitted_code(config_dir())  # the same code, in another commit
    monkeypatch.delenv(SUBMITTED_CODE)
    require_submitted_code(config_dir())


@pytest.mark.slow
def test_an_ordinary_multirun(tmp_path: Path) -> None:
    """As Hydra users know it, with the exit status of the whole."""
    smoke = [*SMOKE, "trainer.max_steps=2", f"results_dir={tmp_path}", "hydra/launcher=local"]
    command = [sys.executable, "-m", "dinoswap.train", "--multirun", *smoke, "hydra.launcher.processes=2"]
    done = subprocess.run([*command, "seed=0,1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text()) for path in tmp_path.glob("runs/single/*/seed*/run.json")]
    assert sorted(each["seed"] for each in found) == [0, 1]
    for each in found:
        assert each["status"] == "completed"
        assert f"seed{each['seed']}: completed, eval/knn_top1 {each['metrics']['eval/knn_top1']:.4g}" in done.stdout
    done = subprocess.run([*command, "data=image_folder", "data.path=/nowhere"], capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    assert "failed: ConfigError: data.path=/nowhere: no such folder" in done.stdout


def test_a_run_folder_that_cannot_be_made_stops_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a file").touch()
    folders = [tmp_path / "a file" / "seed0", tmp_path / "seed1"]
    launcher = LocalLauncher(processes=1, threads=1, gpus=None, check_code=False)
    launcher.environment = {}
    launcher._command = lambda job: ["true"]  # type: ignore[method-assign]
    launcher._run([Job(number, [], folder, "loss", f"job {number}") for number, folder in enumerate(folders)], [])
    assert f"job 0 cannot be started: [Errno 20] Not a directory: '{folders[0]}'" in caplog.text
    assert (folders[1] / "output.txt").exists()
