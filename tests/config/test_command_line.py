"""`dinoswap-train` as a user meets it: what it refuses and how, its help, single runs and multiruns.

Everything runs in this process through the console script's function, so that torch is imported once.
"""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from dinoswap import train
from dinoswap.config.command_line import check_arguments, compose_config
from dinoswap.config.configuration import VERSION_BASE, config_dir, plain
from dinoswap.config.identity import run_id
from dinoswap.config.schema import ConfigError
from dinoswap.config.sections import RunSettings
from dinoswap.run.provenance import SUBMITTED_CODE
from dinoswap.run.run_folder import PLACE
from dinoswap.studies.ledger import run_statuses
from dinoswap.train import EXPLAIN
from options import build_option

TINY = ["recipe=smoke", "trainer.max_steps=1", "trainer.eval_every=0", "tracker=none"]
TINY += ["evaluation.in_loop_images=30", "evaluation.images=30"]


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def dinoswap_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Runs the command in an empty folder. Hydra's handlers, which write to this test's output, do not outlive it."""

    def run(*arguments: str) -> Outcome:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["dinoswap-train", *arguments])
        status = 0
        try:
            train.main()
        except SystemExit as end:
            status = int(end.code or 0)
        return Outcome(status, *capsys.readouterr())

    handlers = logging.root.handlers[:]
    yield run
    logging.root.handlers[:] = handlers


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trainer.max_stpes=5", "no key or group 'trainer.max_stpes'. Did you mean 'trainer.max_steps'?"),
        ("max_steps=5", "Did you mean 'trainer.max_steps'?"),
        ("maskign=block", "maskign=block: there is no key or group 'maskign'. Did you mean 'masking'?"),
        ("masking=blok", "masking=blok: the group 'masking' has no option 'blok'. Did you mean 'block'? It has: bern"),
        ("masking=block,blok --multirun", "masking=block,blok: the group 'masking' has no option 'blok'"),
        ("masking=null", "has no option 'None'"),
        ("targets=centering", "Did you mean to override one of targets@objectives."),
        ("objectives.dino.targets=centering", "write targets@objectives.dino.targets=centering"),
        ("data.path=/x", "there is no key or group 'data.path' in data=embedded"),
        ("data=parquet,embedded data.path=/x -m", "there is no key or group 'data.path' in data=embedded"),
        ("start.path=w.pth", "'start.path' in start=random. Here: start=weights start.path=FILE begins from released"),
        ("model.pretrained=w.pth", "Here: start=weights start.path=FILE begins from released weights, start=run"),
        ("+new.key=1", "+new.key=1: there is no key or group 'new.key'"),
        ("++new.key=1", "there is no key or group 'new.key'"),
        ("+trainer.max_steps=5", "this key exists already; write trainer.max_steps=5"),
        ("~model.patch_size", "~model.patch_size: only a whole objective can be removed, as in ~objectives.koleo"),
        ("~masking", "only a whole objective can be removed"),
        ("~objectives.kole", "Did you mean 'objectives.koleo'?"),
        ("trainer.max_steps", "trainer.max_steps: cannot be read as key=value"),
        ("trainer.max_steps=[5", "trainer.max_steps=[5: cannot be read as key=value"),
        ("seed=0,1", "seed=0,1: several values are several runs, add --multirun"),
        ("seed=${oops}", "'oops' not found"),
        ("hydra.sweep.dri=x", "Could not override 'hydra.sweep.dri'"),
        ("--config-dir /nowhere seed=1", "--config-dir /nowhere: no such folder"),
    ],
)  # fmt: skip
def test_names_are_refused_before_anything_else(arguments: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_arguments(arguments.split())
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objectives.dino.student_temp=0", "objectives.dino.student_temp=0.0: a temperature must be above 0"),
        ("masking.mask_sample_probability=1.5", "masking.mask_sample_probability=1.5: must lie between 0 and 1"),
        ("trainer.max_steps=abc", "trainer.max_steps=abc: must be a whole number, not text"),
        ("seed=x", "seed=x: must be a whole number, not text"),
        ("~objectives.dino ~objectives.ibot ~objectives.koleo", "objectives: none is left"),
    ],
)
def test_values_are_refused_in_one_line_and_leave_no_folder(
    override: str, message: str, dinoswap_train: Command, tmp_path: Path
) -> None:
    """Which values: tests/test_settings.py."""
    status, out, error = dinoswap_train("recipe=smoke", *override.split())
    assert (status, out) == (2, "")
    assert error.startswith(f"dinoswap-train: {message}")
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) in ([], ["results", "runs"])


def test_a_refusal_is_one_line_and_exit_status_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dinoswap.train", "trainer.max_stpes=5"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []


def test_arguments_are_checked_without_torch() -> None:
    """It takes seconds to import."""
    code = "import sys, dinoswap.train; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- shown ------------------------------------------------------------------------------------------------------------


def test_help_fits_a_screen(dinoswap_train: Command) -> None:
    status, out, _ = dinoswap_train("--help")
    lines = out.rstrip().splitlines()
    assert status == 0
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 100
    assert sum(line.strip().startswith("dinoswap-train ") for line in lines) == 6
    out = re.sub(r",\n {17,}", ", ", out)  # a long line goes on below
    listed = dict(re.findall(r"^ *(\w+) {2,}(\w+(?:, \w+)*)(?:: .*)?$", out, re.MULTILINE))
    for group in (path for path in config_dir().iterdir() if path.is_dir() and path.name != "hydra"):
        assert set(listed[group.name].split(", ")) == {path.stem for path in group.glob("*.yaml")}


def test_the_examples_of_the_help_are_accepted(dinoswap_train: Command) -> None:
    _, out, _ = dinoswap_train("--help")
    examples = [line.split("#")[0].split()[1:] for line in out.splitlines() if line.startswith("  dinoswap-train ")]
    for arguments in examples:
        check_arguments([argument for argument in arguments if argument != EXPLAIN])


@pytest.mark.parametrize("arguments", [[], ["recipe=vits16", "preset=official", "schedule.momentum=0.5"]])
def test_cfg_job_shows_the_resolved_config(arguments: list[str], dinoswap_train: Command) -> None:
    status, out, _ = dinoswap_train("--cfg", "job", *arguments)
    assert status == 0
    assert "${" not in out
    assert "_target_: dinoswap.masking.block.BlockMasking" in out
    assert ("momentum: 0.5" in out) == bool(arguments)


# --- run --------------------------------------------------------------------------------------------------------------


def test_single_and_multirun_fill_the_same_folders(dinoswap_train: Command, tmp_path: Path) -> None:
    swept = "targets@objectives.dino.targets"
    done = dinoswap_train("--multirun", *TINY, f"{swept}=sinkhorn,centering", "seed=0,1", "study=two")
    assert done.status == 0
    records = [json.loads(path.read_text()) for path in tmp_path.glob("results/runs/two/*/seed*/run.json")]
    for record in records:
        for name in record["metrics"]:  # each can be what a sweep maximises
            if name.startswith("eval/") and not name.endswith("_max"):
                RunSettings(seed=0, study=None, results_dir="x", objective_metric=name, teacher_dropout=False)
    runs = {(record["choices"][swept], record["seed"]): record for record in records}
    assert set(runs) == {(option, seed) for option in ("sinkhorn", "centering") for seed in (0, 1)}
    assert {record["status"] for record in records} == {"completed"}
    assert runs["sinkhorn", 0]["run_id"] == runs["sinkhorn", 1]["run_id"] != runs["centering", 0]["run_id"]

    alone = dinoswap_train("seed=1", f"{swept}=centering", "study=two", *TINY[::-1])
    folder = f"results/runs/two/{runs['centering', 1]['run_id']}/seed1"
    assert f"{folder} is complete: nothing is left to do" in alone.out
    assert "run.json" in [path.name for path in (tmp_path / folder).iterdir()]
    assert (tmp_path / "results" / "runs" / "multirun.yaml").exists()
    for record in records:
        assert record["run_id"] == run_id(record["identity"])
        assert record["data"]["fingerprint"].startswith(record["identity"]["data.images"])
        assert record["data"]["images"] == len(build_option("data/embedded").train())


def test_a_job_that_is_refused_leaves_the_others_running(dinoswap_train: Command, tmp_path: Path) -> None:
    done = dinoswap_train("--multirun", *TINY, "objectives.koleo.loss_weight=-1,0.1", "seed=0")
    assert done.status != 0
    assert "objectives.koleo.loss_weight=-1.0: must be 0 or more" in done.err
    (record,) = tmp_path.rglob("run.json")
    assert json.loads(record.read_text())["status"] == "completed"


# --- composed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        ["preset=legacy", "masking=block", "da3=enabled", "da3.ckpt_path=x", "~objectives.koleo", "model.depth=null"],
        ["data=parquet", "data.path=a", "optimizer.betas=[0.5,0.6]", "heads.dino_head={prototypes: 7}", "++seed=3"],
    ],
)
def test_the_config_is_the_one_that_hydra_composes(overrides: list[str]) -> None:
    """It is made in two steps, where Hydra makes it in one."""
    config = compose_config(overrides)
    with initialize_config_dir(str(config_dir()), version_base=VERSION_BASE):
        assert config == plain(compose("train", overrides))


# --- what a run is ----------------------------------------------------------------------------------------------------


def folder(path: Path, images: int) -> Path:
    for number in range(images):
        file = path / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (5 * number, 90, 255 - number)).save(file)
    return path


def records(results: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in results.glob("runs/*/*/seed*/run.json")]
    return {record["run_id"]: record for record in found}


def test_a_run_and_its_images(dinoswap_train: Command, tmp_path: Path) -> None:
    """Images of the same name elsewhere are another run; on others than it was begun on none is continued."""
    first, second = (folder(tmp_path / place / "images", 12) for place in ("a", "b"))
    (second / "a" / "0.png").rename(second / "a" / "zero.png")
    command = [*TINY, "data=image_folder", "data.max_corrupt_fraction=0.5"]
    for number, place in enumerate((first, second), start=1):
        done = dinoswap_train(*command, f"data.path={place}")
        assert done.status == 0, done.err
        assert len(records(tmp_path / "results")) == number
    assert re.search(r"this run differs from \w{10} in the images", done.out)
    assert "is complete" in dinoswap_train(*command, f"data.path={second}").out

    (begun,) = (tmp_path / "results").glob(f"runs/*/{name_at(second, tmp_path)}/seed0")
    record = json.loads((begun / "run.json").read_text())
    (begun / "run.json").write_text(json.dumps(record | {"status": "preempted"}))
    folder(second, 14)
    refused = dinoswap_train(*command, f"data.path={second}")
    assert refused.status == 2
    assert "this run was begun on 12 images (0 for testing), and there are 15" in refused.err
    assert refused.err.count("\n") == 1
    assert len(records(tmp_path / "results")) == 2
    assert dinoswap_train(*command, f"data.path={second}", "study=grown").status == 0


def name_at(path: Path, root: Path) -> str:
    return next(name for name, record in records(root / "results").items() if record["data"]["path"] == str(path))


def test_hydra_says_where(dinoswap_train: Command, tmp_path: Path) -> None:
    assert dinoswap_train(*TINY, "hydra.run.dir=mine").status == 0
    assert json.loads((tmp_path / "mine" / "run.json").read_text())["status"] == "completed"
    assert not (tmp_path / "results").exists()
    assert f"{tmp_path}/mine is complete" in dinoswap_train(*TINY, "hydra.run.dir=mine").out


@pytest.mark.parametrize("more", [[], ["--multirun"]])
def test_an_unusable_results_dir_is_one_line(more: list[str], dinoswap_train: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("''", "file", "file/below"):
        done = dinoswap_train(*TINY, f"results_dir={path}", *more)
        assert (done.status, done.out) == (2, "")
        assert done.err.startswith("dinoswap-train: results_dir=")
        assert done.err.count("\n") == 1


def test_what_only_the_node_knows(dinoswap_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose images its driver cannot see names itself, and is found where the driver looks for it."""
    asked = tmp_path / "results" / "runs" / "single" / "asked" / "seed0"
    for name, value in ((PLACE, str(asked)), (SUBMITTED_CODE, "")):
        monkeypatch.setenv(name, value)
    command = [*TINY, "data=image_folder", "data.path='${oc.env:NODE_TMP}/images'"]
    assert dinoswap_train(*command).status == 2  # before Hydra: a single run
    assert dinoswap_train("--multirun", *command).status == 1
    (found,) = run_statuses([asked])
    assert (found.state, found.note) == ("failed", "ConfigError: " + found.note.removeprefix("ConfigError: "))
    assert "Environment variable 'NODE_TMP' not found" in found.note

    monkeypatch.setenv("NODE_TMP", str(folder(tmp_path / "images", 6).parent))
    assert dinoswap_train("--multirun", *command).status == 0
    (found,) = run_statuses([asked])
    assert found.state == "completed"
    (record,) = records(tmp_path / "results").values()
    assert found.record == record
    assert record["data"]["path"] == f"{tmp_path}/images"
