"""One error of the file system at a time, anywhere in a run: it is told in a line, and the same command then ends in
the state of a run that nothing happened to.

All runs are forks of one process that has the trainer ready: only what a run does with its folder is done again.
"""

import functools
import json
import multiprocessing
import os
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from dinoswap.config.configuration import VERSION_BASE, config_dir, plain
from dinoswap.run.metrics import RunRecord, load_record
from dinoswap.studies.run_folders import RunReader
from faulty_files import KINDS, Fault, FaultyFiles
from train_processes import lines, tensor_files

STEPS, SAVED = 3, 2
FAULTS = 4
"""Of each kind, in a run from its first step, and in one that goes on after step `SAVED`."""
OVERRIDES = [
    "recipe=smoke",
    f"trainer.max_steps={STEPS}",
    "trainer.checkpoint_every=1",
    "trainer.keep_checkpoints=2",
    "trainer.eval_every=2",
    "tracker=none",
    "evaluation.in_loop_images=10",
    "evaluation.images=10",
    "data.batch_size=4",
    "model.depth=1",
    "crops.local_number=1",
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["dinoswap.run.job", "torch._dynamo"])


@dataclass(frozen=True)
class Ended:
    folder: Path
    status: int
    output: str
    calls: dict[str, int]


class Runs:
    """`dinoswap-train` from where Hydra hands over, again and again, in forks of the process that makes this."""

    def __init__(self, root: Path) -> None:
        import torch

        from dinoswap.evaluation import visualise
        from dinoswap.run import checkpoint, job, loop, provenance
        from dinoswap.run.assemble import build_run

        torch.set_num_threads(1)
        self.root, self.job = root, job
        with initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
            self.config = compose("train", OVERRIDES)
            of_hydra = compose("train", [*OVERRIDES, f"results_dir={root}/none"], return_hydra_config=True)
        with open_dict(of_hydra):
            of_hydra.hydra.runtime.output_dir = f"{root}/none"
        HydraConfig.instance().set_config(of_hydra)
        # What has nothing to do with the run's folder is done once
        provenance._git, provenance.version = functools.cache(provenance._git), functools.cache(provenance.version)
        config = plain(self.config)
        self.named = job.name_run(config)
        built = build_run(config, root / "none", lambda: RunRecord(root / "none/run.json", "", "", 0, {}, []))
        ready = {field.name: getattr(built, field.name) for field in fields(built) if field.init}
        job.plain = lambda *_, **__: config
        job.build_run = lambda _, folder, record, *__: loop.Run(**{**ready, "folder": folder, "record": record()})
        job.flops_per_image = lambda _: 1.0
        job.group_table = lambda _: ""
        visualise._rendered = lambda _: np.zeros((2, 2, 3), np.uint8)
        visualise.curves_figure([{"step": 1}], [], [], {})  # imports
        checkpoint.save(root / "none", 1, {"weight": torch.zeros(1)}, config={}, keep=1)

    def run(self, name: str, fault: Fault | None = None) -> Ended:
        place, output, calls = (self.root / f"{name}{end}" for end in ("", ".txt", ".json"))
        folder = place / "runs" / "seed0"
        if (pid := os.fork()) == 0:
            self._in_fork(folder, FaultyFiles(place, fault), output, calls)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return Ended(folder, status, output.read_text(), json.loads(calls.read_text()))

    def _in_fork(self, folder: Path, files: FaultyFiles, output: Path, calls: Path) -> None:
        status = 99
        descriptor = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        try:
            self.job.name_run = lambda _: replace(self.named, folder=folder)
            with files.injected():
                self.job.run_job(self.config)
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            print(end="", flush=True)
            calls.write_text(json.dumps(files.counts))
            os._exit(status)


def faults_of(calls: dict[str, int]) -> list[Fault]:
    """Spread over what a run calls."""
    found = []
    for kind, errors in KINDS.items():
        count = calls.get(kind, 0)
        for place in range(min(FAULTS, count)):
            number = (2 * place + 1) * count // (2 * min(FAULTS, count))
            found.append(Fault(kind, number, errors[place % len(errors)]))
    return found


def stop_after(step: int, folder: Path) -> None:
    """As a run was that somebody killed."""
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(folder / f"checkpoints/step-{later:08d}")
    record = load_record(folder / "run.json") | {"status": "running", "steps": step}
    (folder / "run.json").write_text(json.dumps(record))


def problems(ended: Ended, reference: Path, complete: bool = True) -> list[str]:
    """In what it differs from a run that nothing happened to. Without `complete` its curves have a gap."""
    if ended.status or load_record(ended.folder / "run.json")["status"] != "completed":
        return [f"the same command ends with {ended.status}: {ended.output[-2000:]}"]
    last, expected = (folder / f"checkpoints/step-{STEPS:08d}" for folder in (ended.folder, reference))
    same = {"tensors": tensor_files(last) == tensor_files(expected)}
    if complete:
        same["state.json"] = (last / "state.json").read_bytes() == (expected / "state.json").read_bytes()
        same["metrics.jsonl"] = lines(ended.folder) == lines(reference)
    return [f"{name} differ" for name, equal in same.items() if not equal]


def told(ended: Ended) -> list[str]:
    """What is wrong with how an error was told."""
    found = ["a traceback"] * ("Traceback" in ended.output)
    if ended.status not in (0, 1):
        found.append(f"exit status {ended.status}")
    last = [*ended.output.splitlines(), ""][-1 if ended.status == 0 else -2]
    if ended.status == 1 and not (last.startswith("dinoswap-train: ") and str(ended.folder.parents[1]) in last):
        found.append("the last line does not name the place")
    return [f"{problem}: {ended.output[-2000:]}" for problem in found]


def _experiment(root: Path, answer: Connection) -> None:
    try:
        answer.send(_outcomes(Runs(root)))
    except BaseException:
        answer.send(traceback.format_exc())


def _flip(path: Path) -> None:
    (file,) = path.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _other_format(path: Path) -> None:
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"format": 2}))


def _to_another_disk(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")
    (folder / "checkpoints").symlink_to("/nowhere/checkpoints")


GAP = "lines logged up to step 2 when the run resumed: its curves have a gap"
SABOTAGE: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "metrics.jsonl is deleted": (lambda folder: (folder / "metrics.jsonl").unlink(), 0, f"had 0 of the 4 {GAP}"),
    "metrics.jsonl is emptied": (lambda folder: (folder / "metrics.jsonl").write_text(""), 0, f"had 0 of the 4 {GAP}"),
    "metrics.jsonl is cut": (lambda folder: os.truncate(folder / "metrics.jsonl", 1000), 0, f"of the 4 {GAP}"),
    "a line of it is no object": (
        lambda folder: (folder / "metrics.jsonl").write_text("5\n"), 1, "metrics.jsonl, line 1: not JSON (not an obj",
    ),
    "all checkpoints are damaged": (
        lambda folder: [_flip(path) for path in (folder / "checkpoints").iterdir()], 1, "There is no other checkpoint",
    ),
    "all are of another version": (
        lambda folder: [_other_format(path) for path in (folder / "checkpoints").iterdir()], 1, "has format 2 and this",
    ),
    "they are on a disk that is away": (_to_another_disk, 1, "checkpoints is a link to /nowhere/checkpoints, which is"),
    "there is a foreign step": (
        lambda folder: (folder / "checkpoints/step-99999999").mkdir(), 0, "step-99999999 is kept as step-99999999.dam",
    ),
}  # fmt: skip
"""Name -> what is done to a run that was stopped, the exit status of the same command, and what it says."""


def sabotaged(runs: Runs, name: str, template: Path, reference: Path) -> list[str]:
    sabotage, status, words = SABOTAGE[name]
    folder = runs.root / name / "runs/seed0"
    shutil.copytree(template, folder)
    sabotage(folder)
    before = contents(folder / "checkpoints")
    ended = runs.run(name)
    found = told(ended)
    if ended.status != status or words not in ended.output:
        found.append(f"exit {ended.status}, and not {status} with {words!r}: {ended.output[-2000:]}")
    if status == 0:
        found += problems(ended, reference, complete=GAP not in words)
    elif contents(folder / "checkpoints") != before:
        found.append("checkpoints have been touched")
    reader = RunReader()
    reader.read(folder)
    remarks = [each.reason for each in reader.passed_over if words in each.reason]
    if GAP in words and len(remarks) != 1:
        found.append(f"told with the frame: {remarks}")
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _outcomes(runs: Runs) -> dict[str, list[str]]:
    reference = runs.run("reference")
    template = runs.root / "template"
    shutil.copytree(reference.folder, template)
    stop_after(SAVED, template)
    shutil.copytree(template, runs.root / "resumed/runs/seed0")
    resumed = runs.run("resumed")
    outcomes = {name: problems(run, reference.folder) for name, run in (("reference", reference), ("resumed", resumed))}
    for start, run in (("from the start", reference), (f"after step {SAVED}", resumed)):
        for fault in faults_of(run.calls):
            name = f"{run.folder.parts[-3]}-{fault.kind}-{fault.number}"
            if run is resumed:
                shutil.copytree(template, runs.root / name / "runs/seed0")
            first = runs.run(name, fault)
            call = f"{fault.kind} {fault.number} of {run.calls[fault.kind]}"
            what = f"{start}: {call}: {fault.error}, exit {first.status}"
            outcomes[what] = told(first) + problems(runs.run(name), reference.folder)
            shutil.rmtree(runs.root / name)
    return outcomes | {name: sabotaged(runs, name, template, reference.folder) for name in SABOTAGE}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """By what was done to a run: what is wrong with it, which is nothing."""
    receiver, sender = _context.Pipe(duplex=False)
    process = _context.Process(target=_experiment, args=(tmp_path_factory.mktemp("files"), sender))
    process.start()
    sender.close()  # else nobody notices that the process has died
    found = receiver.recv()
    process.join()
    assert isinstance(found, dict), found
    return found


def wrong(outcomes: dict[str, list[str]]) -> str:
    return "\n".join(f"{what}\n  " + "\n  ".join(problems) for what, problems in outcomes.items() if problems)


def test_after_any_error_the_same_command_ends_as_if_nothing_had_been(outcomes: dict[str, list[str]]) -> None:
    injected = {what: problems for what, problems in outcomes.items() if what not in SABOTAGE}
    assert not wrong(injected)


def test_they_were_errors_in_each_part_of_a_run(outcomes: dict[str, list[str]]) -> None:
    """Else equal results would prove little."""
    injected = [what for what in outcomes if ", exit " in what]
    assert len(injected) >= 60
    assert {what.split(": ")[1].split()[0] for what in injected} == set(KINDS)
    assert sum("exit 1" in what for what in injected) > len(injected) / 2


@pytest.mark.parametrize("name", SABOTAGE)
def test_what_became_of_a_run_between_two_commands(name: str, outcomes: dict[str, list[str]]) -> None:
    """It goes on where that is honest, and says what is lost; else it is refused, and nothing is touched."""
    assert not wrong({name: outcomes[name]})
