"""A study on a real SLURM: what happens to one job happens to no other, and every result is that of an undisturbed run.

tests/slurm/slurm_up.sh starts the cluster, one node of this machine; no other is ever submitted to.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest
import slurm_cluster
from optuna.trial import FrozenTrial, TrialState
from slurm_cluster import CONF, LAUNCHER, MINUTES, NAME, PARALLEL, WAIT, Command, call, reach

from dinoswap.run import metrics
from dinoswap.run.run_folder import followed
from dinoswap.studies.design import make_design
from dinoswap.studies.ledger import claimed, entries, read_json
from dinoswap.studies.study import read_study
from dinoswap.studies.tuning.trials import storage
from train_processes import folder_of, last_step, lines, tensor_files, wait_until

STEPS = 120
SETTINGS = f"""
  - recipe=smoke
  - model.drop_path=0.3
  - trainer.max_steps={STEPS}
  - trainer.checkpoint_every=10
  - trainer.eval_every=30
  - tracker=none
  - evaluation.in_loop_images=20
  - evaluation.images=20
"""
ARMS = {
    "plain": "schedule.base_lr=0.004",
    "killed": "schedule.base_lr=0.0041",
    "preempted": "schedule.base_lr=0.0042",
    "broken": "[data=image_folder, data.path=/nowhere]",
    "early": "schedule.base_lr=0.0043",
    "late": "schedule.base_lr=0.0044",
}
RUN = [*(line.strip(" -") for line in SETTINGS.splitlines() if line.strip()), ARMS["plain"], "seed=7", "study=fates"]
GUESTS = Path(__file__).parents[1] / "guests" / "site"
PREEMPTING = ("--partition=high", "--exclusive", "--output=/dev/null", "--wrap=true")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

cluster = slurm_cluster.cluster


@dataclass
class Story:
    """What was done to the study, and what its commands said."""

    folder: Path
    runs: dict[str, Path]
    first: Command
    second: Command
    interrupted: int
    status: str
    ended: int
    at_once: int


def study_file(folder: Path) -> Path:
    arms = "\n".join(f"    {name}: {overrides}" for name, overrides in ARMS.items())
    text = f"# Which job survives?\nbase: {SETTINGS}\nfactors:\n  arm:\n{arms}\n"
    path = folder / "fates.yaml"
    path.write_text(text + "design: one_at_a_time\nseeds: [7]\nmetrics: {eval/knn_top1: 1.0}\n")
    return path


def folders(results: Path) -> dict[str, Path]:
    """The run folder of each arm."""
    study = read_study(study_file(results), [f"results_dir={results}"])
    runs = entries(study, make_design(study, check=False).cells)
    return dict(zip(ARMS, (entry.folder for entry in runs), strict=True))


@contextlib.contextmanager
def stopped(process: int) -> Iterator[None]:
    """For the time that it takes SLURM to act: the run would be over before."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """For the time that other things happen the run's job is not started."""
    wait_until(lambda: (folder / "job.json").exists(), f"{folder} is not submitted", WAIT)
    subprocess.run(["scontrol", "hold", claimed(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["scontrol", "release", claimed(folder)], check=True)


def wait_until_told(process: int) -> None:
    """Until SIGUSR2 is there to be handled. SLURM may send a SIGCONT as well, and then the process has ended."""
    status, pending = Path(f"/proc/{process}/status"), 1 << (signal.SIGUSR2 - 1)

    def told() -> bool:
        try:
            masks = re.findall(r"(?:SigPnd|ShdPnd):\s+(\w+)", status.read_text())
        except (FileNotFoundError, ProcessLookupError):
            return True
        return any(int(mask, 16) & pending for mask in masks)

    wait_until(told, "SLURM does not signal the job", WAIT)


def set_limit(job: str, minutes: int) -> None:
    """As soon as SLURM takes it, which is not while a job that was told is on its way back to the queue."""
    update = ("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")
    wait_until(lambda: subprocess.run(update).returncode == 0, f"SLURM does not set a limit for {job}", WAIT)


def next_minute(job: str) -> int:
    """Of its running time, from half a minute on."""
    clock = call("squeue", "--noheader", f"--jobs={job}", "--format=%M").strip()  # 12:34, 1:23:45
    seconds = sum(int(part) * 60**place for place, part in enumerate(reversed(clock.split(":"))))
    return (seconds + 30) // 60 + 1


@pytest.fixture(scope="module")
def story(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("slurm")
    runs, study, results = folders(folder), study_file(folder), f"results_dir={folder}"
    counts: list[int] = []
    over = threading.Event()
    counting = threading.Thread(target=count_running, args=(counts, over), daemon=True)
    counting.start()
    first, second = (Command("studies.ablate", "run", study, results, *LAUNCHER) for _ in range(2))
    # Early and late start when it is their turn: what preempts one job preempts all that run
    with held(runs["late"]):
        with held(runs["early"]), ThreadPoolExecutor() as other:
            killing = other.submit(lambda: os.kill(reach(runs["killed"], 14), signal.SIGKILL))
            with stopped(preempted := reach(runs["preempted"], 14)):
                killing.result()
                subprocess.run(["sbatch", *PREEMPTING], check=True)
                wait_until_told(preempted)
            wait_until(lambda: not call("squeue", "--noheader", "--partition=high"), "the other job does not end", WAIT)
        tell_early(runs["early"])
    with stopped(late := reach(runs["late"], 14)):
        interrupted = first.interrupt()
        status = call(sys.executable, "-m", "dinoswap.studies.ablate", "status", str(study), results)
        job = claimed(runs["late"])
        set_limit(job, next_minute(job))
        wait_until_told(late)
        set_limit(job, MINUTES)
    ended = second.wait()
    over.set()
    counting.join()
    return Story(folder, runs, first, second, interrupted, status, ended, max(counts))


def tell_early(folder: Path) -> None:
    """Signal a job that has just started, when nothing handles it as yet."""

    def loads() -> bool:
        job = folder / "job.json"
        log = Path(read_json(job)["log"]) if job.exists() else job
        return log != job and log.exists() and "Loading pickle" in log.read_text()

    wait_until(loads, "the job does not start", WAIT)
    subprocess.run(["scancel", "--signal=USR2", claimed(folder)], check=True)


def count_running(counts: list[int], over: threading.Event) -> None:
    while not over.wait(0.5):
        counts.append(call("squeue", "--array", "--noheader", f"--name={NAME}", "--format=%T").count("RUNNING"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same study on this machine, without SLURM, undisturbed."""
    folder = tmp_path_factory.mktemp("local")
    arguments = (f"results_dir={folder}", "exclude=[{arm: broken}]", "hydra.launcher.processes=2")
    command = Command("studies.ablate", "run", study_file(folder), *arguments, "hydra.launcher.threads=1")
    assert command.wait() == 0, command.output
    return folders(folder)


def assert_same_result(folder: Path, reference: Path, steps: int = STEPS) -> None:
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["steps"]) == ("completed", steps)
    last = f"checkpoints/step-{steps:08d}"
    assert tensor_files(folder / last) == tensor_files(reference / last)
    assert lines(folder) == lines(reference)


def slurm_restarts(folder: Path) -> int:
    restarts = re.search(r"Restarts=(\d+)", call("scontrol", "show", "job", claimed(folder)))
    assert restarts is not None
    return int(restarts[1])


def assert_restarts_counted(folder: Path) -> None:
    """At least one, and none that SLURM does not know of. SLURM may know of more: a start that never came to training,
    or one for reasons of its own."""
    counted, known = read_json(folder / "run.json")["restarts"], slurm_restarts(folder)
    said = (CONF.parent / "slurmctld.log").read_text().splitlines()
    assert 1 <= counted <= known, "\n".join(line for line in said if f"JobId={claimed(folder)}" in line)


def test_two_drivers_submit_once_and_both_wait(story: Story) -> None:
    submitted = [driver.output.count("is SLURM job") for driver in (story.first, story.second)]
    assert sorted(submitted) == [0, len(ARMS)]
    assert len(list(story.folder.glob("runs/.submitit/*/*_submission.sh"))) == 1


def test_no_more_run_at_once_than_asked(story: Story) -> None:
    assert story.at_once == PARALLEL


def test_ctrl_c_leaves_the_jobs_and_status_finds_them(story: Story) -> None:
    assert story.interrupted == 130, story.first.output
    assert "Traceback" not in story.first.output
    assert re.search(r"arm=late seed 7: running .*SLURM job \d+_5\)", story.status), story.status


def test_all_are_accounted_for(story: Story) -> None:
    assert story.ended == 1, story.second.output
    assert "6 runs: 4 completed, 1 failed, 1 killed" in story.second.output
    assert "arm=killed seed 7: killed: no process has it" in story.second.output
    assert re.search(r"arm=broken seed 7: failed: \w+: .*/nowhere", story.second.output), story.second.output
    assert "--rerun failed --rerun killed" in story.second.output
    assert "JobState=FAILED" in call("scontrol", "show", "job", claimed(story.runs["broken"]))


@pytest.mark.parametrize("arm", ["preempted", "early", "late"])
def test_who_is_told_saves_and_is_queued_again(arm: str, story: Story) -> None:
    """Also before there is anything to be saved."""
    if arm == "early":
        assert slurm_restarts(story.runs[arm]) >= 1
    else:
        assert "SIGUSR2: saved after step" in (story.runs[arm] / "log.txt").read_text()
        assert_restarts_counted(story.runs[arm])


@pytest.mark.parametrize("arm", ["plain", "preempted", "early", "late"])
def test_results_are_those_of_undisturbed_runs(arm: str, story: Story, reference: dict[str, Path]) -> None:
    assert_same_result(story.runs[arm], reference[arm])


def test_what_was_killed_goes_on_when_asked_to(story: Story, reference: dict[str, Path]) -> None:
    command = Command("studies.ablate", "run", study_file(story.folder), f"results_dir={story.folder}", *LAUNCHER,
                      "--rerun", "killed")  # fmt: skip
    assert command.wait() == 1, command.output
    assert "6 runs: 5 completed, 1 failed" in command.output
    assert command.output.count("is SLURM job") == 1
    assert_same_result(story.runs["killed"], reference["killed"])


def test_a_lost_node(cluster: None, tmp_path: Path, reference: dict[str, Path]) -> None:
    """SLURM gives the job to the next node, here the same one again; the run goes on from its last checkpoint."""
    command = Command("train", "--multirun", *RUN, f"results_dir={tmp_path}", *LAUNCHER)
    folder = folder_of(RUN, tmp_path)
    reach(folder, 14)
    node = call("sinfo", "--noheader", "--format=%n", "--partition=debug").strip()
    update = ("scontrol", "update", f"NodeName={node}", "Reason=test")
    subprocess.run([*update, "State=DOWN"], check=True)
    subprocess.run([*update, "State=RESUME"])  # refused where slurmd has registered the node again meanwhile
    assert command.wait() == 0, command.output
    assert_same_result(folder, reference["plain"])
    assert_restarts_counted(folder)


def test_what_sbatch_refuses_is_one_line(cluster: None, tmp_path: Path) -> None:
    arguments = (study_file(tmp_path), f"results_dir={tmp_path}", *LAUNCHER, "hydra.launcher.partition=nowhere")
    command = Command("studies.ablate", "run", *arguments)
    assert command.wait() == 2, command.output
    assert "Traceback" not in command.output
    assert "invalid partition specified: nowhere" in command.output.splitlines()[-1]
    assert not list(tmp_path.glob("runs/fates/*"))


def test_two_tasks(cluster: None, tmp_path: Path) -> None:
    """One run of two ranks: told to stop, both save, the job is queued again and ends as a local run of two ranks."""
    run = [*RUN, "distributed=fsdp2", "trainer.max_steps=60"]
    command = Command(
        "train", "--multirun", *run, f"results_dir={tmp_path}", *LAUNCHER, "hydra.launcher.tasks_per_node=2"
    )
    folder = folder_of(run, tmp_path, ranks=2)
    reach(folder, 14)
    subprocess.run(["scancel", "--signal=USR2", claimed(folder)], check=True)
    assert command.wait() == 0, command.output
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    local = (*torchrun, "-m", "dinoswap.train", *run, f"results_dir={tmp_path / 'local'}")
    subprocess.run(local, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=WAIT)
    assert_same_result(folder, folder_of(run, tmp_path / "local", ranks=2), steps=60)
    assert followed(folder_of(run, tmp_path)) == folder  # where a study looks
    assert_restarts_counted(folder)
    assert read_json(folder / "run.json")["hardware"]["ranks"] == 2


def test_options_of_an_installed_package(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs find what the command found: here by the path that both have."""
    paths = [str(GUESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    run = [*RUN, "masking=checker", "extra_objective=mean_colour", "trainer.max_steps=4"]
    command = Command("train", "--multirun", *run, f"results_dir={tmp_path}", *LAUNCHER)
    assert command.wait() == 0, command.output
    (path,) = tmp_path.glob("runs/fates/*/seed7/run.json")
    record = read_json(path)
    assert (record["status"], record["choices"]["masking"]) == ("completed", "checker")
    assert record["identity"]["guests.guest-options"] == record["versions"]["guest-options"] == "1.2"


# --- a search ---------------------------------------------------------------------------------------------------------

SEARCH = """\
# Which learning rate?
base:
  - recipe=smoke
  - trainer.max_steps=300
  - trainer.eval_every=100
  - trainer.checkpoint_every=0
  - tracker=none
  - evaluation.in_loop_images=20
  - evaluation.images=20
space:
  schedule.base_lr: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
objective: eval/knn_top1
direction: maximize
trials: 4
workers: 2
winners: 0
seeds: [1]
"""


def test_a_search_survives_its_jobs(cluster: None, tmp_path: Path) -> None:
    """By the jobs of an array, of which one is killed and one queued again."""
    path, folder = tmp_path / "mine.yaml", tmp_path / "runs/mine/tune"
    path.write_text(SEARCH)
    arguments = (path, f"results_dir={tmp_path}", *LAUNCHER, "hydra.launcher.check_code=false")
    first = Command("studies.tune", *arguments)
    wait_until(lambda: "Ctrl-C leaves them there" in first.output, "it does not submit", WAIT)
    assert first.interrupt() == 75, first.output
    second = Command("studies.tune", *arguments)
    wait_until(lambda: "Ctrl-C leaves them there" in second.output, "it does not find the jobs", WAIT)
    jobs = re.findall(r"\d+_\d", first.output.splitlines()[0])
    assert len(jobs) == 2
    assert re.findall(r"\d+_\d", second.output.splitlines()[0]) == jobs

    wait_until((folder / "journal.log").exists, "no trial", WAIT)
    study = optuna.load_study(study_name="mine", storage=storage(folder))
    wait_until(lambda: len(under_way(study)) == 2, "no two runs are under way", WAIT)
    killed, queued_again = under_way(study)
    os.kill(worker(killed), signal.SIGKILL)
    os.kill(worker(queued_again), signal.SIGUSR2)  # what SLURM sends before a time limit, and when it preempts
    assert second.wait() == 0, second.output

    trials = study.trials
    errors = [trial.user_attrs.get("error") for trial in trials]
    assert [trial.state for trial in trials].count(TrialState.COMPLETE) == 4, errors
    assert [trial.state for trial in trials].count(TrialState.FAIL) == 2
    retries = {trial.user_attrs["retry_of"]: trial for trial in trials if "retry_of" in trial.user_attrs}
    assert {number: retry.user_attrs["deaths"] for number, retry in retries.items()} == {
        killed.number: 1,
        queued_again.number: 0,
    }
    for before in (killed, queued_again):
        retry = retries[before.number]
        record = metrics.load_record(Path(retry.user_attrs["folder"]) / "run.json")
        assert (retry.params, retry.user_attrs["folder"]) == (before.params, before.user_attrs["folder"])
        assert (record["status"], record["restarts"], record["steps"]) == ("completed", 1, 300)
        rows = metrics.read(Path(retry.user_attrs["folder"]) / "metrics.jsonl")
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, 301))
    assert sum("Restarts=1" in call("scontrol", "show", "job", job) for job in jobs) == 1


def under_way(study: optuna.Study) -> list[FrozenTrial]:
    running = study.get_trials(states=[TrialState.RUNNING])
    return [trial for trial in running if last_step(Path(trial.user_attrs.get("folder", "none yet"))) >= 20]


def worker(trial: FrozenTrial) -> int:
    """Its process."""
    return int(trial.user_attrs["worker"].split("-")[-2])
