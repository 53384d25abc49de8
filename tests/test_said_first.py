"""What cannot work is said before torch, which takes seconds, is imported; and names of other tools are known."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dinoswap.config.command_line import check_arguments, compose_config
from dinoswap.config.configuration import flatten
from dinoswap.config.foreign_words import _MEANING, _NUMBERS
from dinoswap.config.moved import MOVED
from dinoswap.config.schema import ConfigError

WITHOUT_TORCH = """
import contextlib, io, resource, sys

def run(module, *arguments):
    sys.argv = ["dinoswap", *arguments]
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            status = __import__(module, fromlist=["main"]).main() or 0
        except SystemExit as end:
            status = end.code
    assert "torch" not in sys.modules, (module, arguments)
    print(status, text.getvalue().splitlines()[0], flush=True)
"""


def said(tmp_path: Path, *calls: list[str]) -> list[tuple[int, str]]:
    """Exit status and first line of each command, run one after the other in one process without torch."""
    lines = "".join(f"run(*{call!r})\n" for call in calls)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + lines], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [(int(line.partition(" ")[0]), line.partition(" ")[2]) for line in done.stdout.splitlines()]


COMMANDS = [f"dinoswap.{name}" for name in ("train", "evaluate", "export", "embed", "studies.ablate", "studies.tune")]
WRONG = [
    ("trainer.max_steps=abc", "trainer.max_steps=abc: must be a whole number, not text"),
    ("results_dir=", "results_dir='': names no folder"),
    ("schedule.warmup=5000", "schedule.warmup=5000: is longer than the run of trainer.max_steps=1600"),
    ("masking.mask_ratio_min_max=[0.5,0.1]", "masking.mask_ratio_min_max=[0.5, 0.1]: needs 0 <= min <= max"),
    ("data=parquet", "data.path: has to be given; add data.path=..."),
    ("crops.global_size=33", "crops.global_size=33: must be a multiple of model.patch_size"),
    ("objectives.ibot.head=-inf", "objectives.ibot.head=-inf: is none of dino_head, ibot_head"),
    ("--lr", "--lr: there is no such flag. Here: schedule.base_lr"),
]


def test_help_version_and_mistakes_do_without_torch(tmp_path: Path) -> None:
    calls = [[module, flag] for module in COMMANDS for flag in ("--help", "--version")]
    calls += [["dinoswap.train", argument] for argument, _ in WRONG]
    calls += [["dinoswap.evaluate", "nothing-there"], ["dinoswap.export", "nothing-there"]]
    *shown, nothing, nowhere = said(tmp_path, *calls)
    assert [status for status, _ in shown[: 2 * len(COMMANDS)]] == [0] * 2 * len(COMMANDS)
    assert {line for _, line in shown[1 : 2 * len(COMMANDS) : 2]} == {"dinoswap 0.1.0"}
    for (status, line), (_, message) in zip(shown[2 * len(COMMANDS) :], WRONG, strict=True):
        assert status == 2
        assert line.startswith(f"dinoswap-train: {message}")
    assert nothing[1].startswith("dinoswap-eval: nothing-there: neither a run folder")
    assert nowhere[1].startswith("dinoswap-export: nothing-there: neither a run folder")
    assert list(tmp_path.iterdir()) == []


def test_a_swept_value_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"schedule.base_lr=-1.0: must be 0 or more"):
        check_arguments(["-m", "schedule.base_lr=0.001,-1", "seed=0,1"])
    check_arguments(["-m", "schedule.base_lr=0.001,0.002", "seed=range(0,3)", "masking=block,bernoulli"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lr=0.1"], "there is no key or group 'lr'. Here: schedule.base_lr"),
        (["trainer.max_epochs=100"], "Here: runs are counted in steps: trainer.max_steps"),
        (["epochs=100"], "Here: runs are counted in steps"),
        (["resume=true"], "the same command continues a run"),
        (["wandb=true"], "Here: tracker=tensorboard, wandb, mlflow or none"),
        (["trainer.tensorboard=false"], "Here: tracker=tensorboard, wandb, mlflow or none"),
        (["project=mine"], "Here: tracker.wandb.project"),
        (["output_dir=x"], "Here: results_dir"),
        (["batch_size=64"], "Here: data.batch_size"),
        (["num_workers=4"], "Here: data.workers"),
        (["seed_everything=1"], "Here: seed."),
        (["gpus=8"], "torchrun --nproc-per-node N"),
        (["data_path=/x"], "data=image_folder data.path=..."),
        (["--config", "x.yaml"], "--config: there is no such flag. Here: a preset or recipe"),
        (["--batch-size=64"], "--batch-size: there is no such flag. Here: data.batch_size"),
        (["--multirn"], "--multirn: there is no such flag. Did you mean '--multirun'?"),
        (["da3=enabled", "da3.backend=timm"], "Here: teacher@da3.teacher=timm."),
        (["da3=enabled", "da3.variant=base,large", "-m"], "Here: da3.teacher.variant=base."),
        (["weight_decay=0.05"], "The number is schedule.weight_decay=0.05."),
        (["resolution=448"], "The number is crops.global_size=448."),
        (["data=/data/images"], "A folder of images is data=image_folder data.path=/data/images."),
    ],
)
def test_words_of_other_tools(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_arguments(arguments)
    assert message in str(refused.value)


def test_what_words_are_said_to_mean_exists() -> None:
    config = compose_config(["preset=aligned", "da3=enabled", "data=image_folder", "data.path=x"])
    known = flatten(config)
    for meaning in (*_MEANING.values(), *_NUMBERS.values()):
        for key in re.findall(r"\b(?:trainer|schedule|data|model|crops|heads|optimizer)\.[a-z_.]*[a-z]", meaning):
            assert key in known, key
    assert not {word for word in _MEANING if word in config} - {"seed", "study"}
    assert {key.rpartition("@")[2] for key in MOVED.values()} <= {*known, "da3.teacher"}
    assert not set(MOVED) & set(known)


def test_a_folder_of_results_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"results_dir=.*file/x: cannot be written to"):
        check_arguments([f"results_dir={tmp_path}/file/x"])
