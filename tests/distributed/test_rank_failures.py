"""Runs of two ranks that are left alone, killed, stopped and interrupted, by the command that users give."""

import errno
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from dinoswap.distributed import gathered
from dinoswap.files import checkpoint as checkpoint_files
from dinoswap.run import checkpoint, metrics
from ranks import on_ranks
from train_processes import RankProcesses, free_port, last_step, lines, tensor_files, wait_until

pytestmark = pytest.mark.slow

STEPS = 16
SETTINGS = [
    "recipe=smoke",
    "clustering=masked",
    "model.drop_path=0.3",  # draws random numbers in the step, other ones on each rank
    f"trainer.max_steps={STEPS}",
    "trainer.checkpoint_every=4",
    "trainer.eval_every=8",
    "tracker=none",
    "evaluation.in_loop_images=20",
    "evaluation.images=20",
]
SPREAD = ["ddp", "fsdp2"]
TIMEOUT_MINUTES = 0.1


def two_ranks(overrides: list[str], results: Path, *, kill_at_sync: tuple[int, int] | None = None) -> RankProcesses:
    return RankProcesses([*SETTINGS, *overrides], results, kill_at_sync=kill_at_sync)


@pytest.fixture(scope="module", params=SPREAD)
def spread(request: pytest.FixtureRequest) -> str:
    return f"distributed={request.param}"


@pytest.fixture(scope="module")
def undisturbed(spread: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = two_ranks([spread], tmp_path_factory.mktemp("undisturbed"))
    assert run.wait() == [0, 0], run.output
    return run.folder


def assert_same_result(folder: Path, reference: Path) -> None:
    assert metrics.load_record(folder / "run.json")["status"] == "completed"
    assert {path.name for path in (folder / "checkpoints").iterdir()} >= {f"step-{STEPS:08d}"}
    ours, theirs = (path / f"checkpoints/step-{STEPS:08d}" for path in (folder, reference))
    assert (ours / "state.json").read_bytes() == (theirs / "state.json").read_bytes()
    assert tensor_files(ours) == tensor_files(theirs)
    assert lines(folder) == lines(reference)


def test_rank_0_alone_writes(undisturbed: Path) -> None:
    record = metrics.load_record(undisturbed / "run.json")
    assert (record["status"], record["steps"], record["hardware"]["ranks"]) == ("completed", STEPS, 2)
    logged = [row["step"] for row in metrics.read(undisturbed / "metrics.jsonl") if "loss" in row]
    assert logged == list(range(1, STEPS + 1))
    files = {path.name for path in undisturbed.iterdir()}
    assert files == {
        *("checkpoints", "config.yaml", "log.rank1.txt", "log.txt", "metrics.jsonl", "overrides.txt", "pictures"),
        "run.json",
    }


def test_the_other_rank_prints_nothing(spread: str, tmp_path: Path) -> None:
    run = two_ranks([spread, "trainer.max_steps=2", "trainer.eval_every=0"], tmp_path)
    assert run.wait() == [0, 0], run.output
    assert "run folder" in run.ranks[0].output
    assert run.ranks[1].output == ""


def test_a_rank_is_killed(spread: str, undisturbed: Path, tmp_path: Path) -> None:
    """The other one ends at once and says which; the same command ends in the state of a run left alone."""
    victim = 0 if spread == "distributed=ddp" else 1
    run = two_ranks([spread], tmp_path)
    run.ranks[0].wait_for_step(9)
    assert run.ranks[victim].signal(signal.SIGKILL) == -signal.SIGKILL
    other = run.ranks[1 - victim]
    assert other.wait() == 1, run.output
    assert f"no answer from rank {victim}" in other.output.splitlines()[-1], other.output
    if victim == 1:
        record = metrics.load_record(run.folder / "run.json")
        assert record["status"] == "failed"
        assert "no answer from rank 1" in record["error"]
    again = two_ranks([spread], tmp_path)
    assert again.wait() == [0, 0], again.output
    assert_same_result(again.folder, undisturbed)


def test_a_rank_hangs(tmp_path: Path) -> None:
    """The other one gives it up after the timeout."""
    run = two_ranks(["distributed=ddp", f"distributed.timeout_minutes={TIMEOUT_MINUTES}"], tmp_path)
    run.ranks[0].wait_for_step(5)
    os.kill(run.ranks[1].pid, signal.SIGSTOP)
    assert run.ranks[0].wait() == 1, run.output
    os.kill(run.ranks[1].pid, signal.SIGKILL)
    assert "no answer from rank 1" in metrics.load_record(run.folder / "run.json")["error"]


def test_a_signal_to_one_rank_saves_the_same_step_on_all(spread: str, undisturbed: Path, tmp_path: Path) -> None:
    asked = 1 if spread == "distributed=ddp" else 0
    run = two_ranks([spread], tmp_path)
    run.ranks[0].wait_for_step(5)
    os.kill(run.ranks[asked].pid, signal.SIGTERM)
    assert run.wait() == [75, 75], run.output
    record = metrics.load_record(run.folder / "run.json")
    assert record["status"] == "preempted"
    assert (run.folder / f"checkpoints/step-{record['steps']:08d}").is_dir()
    again = two_ranks([spread], tmp_path)
    assert again.wait() == [0, 0], again.output
    assert_same_result(again.folder, undisturbed)


def test_a_save_that_is_cut_off_leaves_the_one_before(spread: str, undisturbed: Path, tmp_path: Path) -> None:
    """In the second checkpoint the first rank is killed before the rename, or the other one within its share."""
    victim, sync = (0, 8) if spread == "distributed=ddp" else (1, 1)
    run = two_ranks([spread], tmp_path, kill_at_sync=(victim, sync))
    statuses = run.wait()
    assert (statuses[victim], statuses[1 - victim]) == (-signal.SIGKILL, 1), run.output
    assert (run.folder / "checkpoints/step-00000004").is_dir()
    assert not (run.folder / "checkpoints/step-00000008").exists()
    again = two_ranks([spread], tmp_path)
    assert again.wait() == [0, 0], again.output
    assert_same_result(again.folder, undisturbed)


def test_an_error_of_one_rank_is_told_by_all(tmp_path: Path) -> None:
    """Where the folder of checkpoints should be is a file, which rank 0 looks into, for all."""
    run = two_ranks(["distributed=ddp"], tmp_path)
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "checkpoints").write_text("no folder")
    assert run.wait() == [1, 1], run.output
    last = [rank.output.splitlines()[-1] for rank in run.ranks]
    assert all(f"the checkpoints in {run.folder}/checkpoints cannot be listed" in line for line in last), last
    assert "cannot be listed" in (run.folder / "log.rank1.txt").read_text().splitlines()[-1]


def save_on_a_full_disk(folder: Path, rank: int) -> str:
    """Two checkpoints, the second one when rank 1 has no space left; what it says, at the end."""
    state = {name: torch.full((100,), 1.0) for name in "abcd"}
    writer = checkpoint.Writer()
    writer.save(folder, 1, state, config={}, keep=2)
    assert sum(gathered(rank) + gathered(rank)) == 2  # the ranks go on, whatever the collectives of the writer do
    writer.wait()
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(os, "fsync", refuse)
        writer.save(folder, 2, state, config={}, keep=2)
        assert sum(gathered(rank) + gathered(rank)) == 2
        with pytest.raises(checkpoint.CheckpointError) as caught:
            writer.wait()
    return str(caught.value)


def refuse(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_disk_of_one_rank_is_full(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for message in on_ranks(partial(save_on_a_full_disk, folder), tmp_path):
        assert "step-00000002 could not be written: rank 1: OSError: [Errno 28] No space left on device" in message
        assert "step-00000001 is the last complete checkpoint and is intact" in message
    assert [path.name for path in folder.iterdir()] == ["step-00000001"]
    assert checkpoint.newest(folder, pytest.fail) is not None


def damaged_on_one_rank(folder: Path, rank: int) -> tuple[str, list[str], str]:
    """Of two checkpoints, to which it had no tensor to write, rank 1 finds what it verifies of the second damaged: the
    name of the newest intact one, the reports, and the error where its disk does not hand over the first."""
    for step in (1, 2):
        checkpoint.save(folder, step, {"only": torch.full((100,), 1.0)}, config={}, keep=2)
    reports, verify = list[str](), checkpoint_files._verify

    def verified(path: Path, entry: checkpoint_files.Entry) -> None:
        if rank == 1 and path.parent.name == "step-00000002":
            raise ValueError("flipped")
        if rank == 1 and stale:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        verify(path, entry)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_files, "_verify", verified)
        stale = False
        found = checkpoint.newest_intact(folder, reports.append)
        assert found is not None
        stale = True
        with pytest.raises(checkpoint.CheckpointError) as caught:
            checkpoint.newest_intact(folder, pytest.fail)
    return found.name, reports, str(caught.value)


def test_what_one_rank_finds_damaged_all_pass_over(tmp_path: Path) -> None:
    first, second = on_ranks(partial(damaged_on_one_rank, tmp_path / "checkpoints"), tmp_path)
    assert first == second
    name, (report,), error = first
    assert name == "step-00000001"
    assert report.endswith("step-00000002 is damaged (ValueError: flipped); going on from step-00000001")
    assert "step-00000001 cannot be read (OSError: [Errno 116] Stale" in error


@pytest.mark.parametrize("spread", ["fsdp2"], indirect=True)
def test_torchrun_starts_a_run_again(undisturbed: Path, spread: str, tmp_path: Path) -> None:
    """With --max-restarts: a rank is killed, and the run goes on from its last checkpoint."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1"]
    command += [f"--master-port={free_port()}", "-m", "dinoswap.train", *SETTINGS, spread, f"results_dir={tmp_path}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folder = tmp_path / "runs" / undisturbed.relative_to(undisturbed.parents[2])
    wait_until(lambda: last_step(folder) >= 9 or process.poll() is not None, "it stays below step 9")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    rank_1 = next(pid for pid in children if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    os.kill(int(rank_1), signal.SIGKILL)
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 0, output
    assert json.loads((folder / "run.json").read_text())["restarts"] >= 1
    assert_same_result(folder, undisturbed)
