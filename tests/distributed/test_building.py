"""What fails on one rank while a run is built, or later, ends all ranks with the reason, and the next job in the same
processes works. One pair of processes does all the jobs, one after the other."""

import copy
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinoswap import build
from dinoswap.config.configuration import plain
from dinoswap.distributed.group import process_group
from dinoswap.run import assemble, job
from dinoswap.run.metrics import RunRecord
from dinoswap.trainer import Trainer
from ranks import launched
from small_models import composed

SETTINGS = [
    *("recipe=smoke", "distributed=ddp", "trainer.precision=fp32", "tracker=none", "trainer.eval_every=0"),
    *("trainer.max_steps=2", "trainer.device=cpu", "data=image_folder", "data.workers=0", "evaluation.images=20"),
    *("da3=enabled", "da3.teacher.variant=small", "da3.projector_hidden_dim=16"),
]
Patch = Callable[[pytest.MonkeyPatch], None]


def raising(*_: Any, **__: Any) -> Any:
    raise OSError("a disk of this node alone")


def nothing(patch: pytest.MonkeyPatch) -> None:
    pass


def replaced(where: Any, name: str, by: Any = raising) -> Patch:
    return lambda patch: patch.setattr(where, name, by)


def jobs(folder: Path) -> dict[str, tuple[dict[str, Any], Patch, str]]:
    """By stage: which keys rank 1 has otherwise, what is done to it besides, and a pattern of the reason."""
    lost, other = f"{folder}/missing.safetensors", f"{folder}/9/images"
    alone = "a disk of this node alone"
    cuda = replaced(build, "prepared_device", lambda settings: torch.device("cuda"))
    return {
        "command": ({"trainer.log_every": 5}, nothing, "ranks 0 and 1 differ in trainer.log_every: 1 and 5; give all"),
        "settings": ({}, replaced(assemble, "check"), alone),
        "device": ({}, cuda, "differ in the kind of their device: cpu and cuda; give each a GPU, or set trainer.dev"),
        "teacher": ({"da3.ckpt_path": lost}, nothing, "da3.ckpt_path=.*missing.safetensors: no such file"),
        "optimiser": ({}, replaced(torch.optim, "AdamW"), alone),
        "images": ({"data.path": f"{folder}/none"}, nothing, "/none"),
        "number of images": ({"data.path": other}, nothing, "ranks 0 and 1 differ in training images: 8 and 9"),
        "record": ({}, replaced(RunRecord, "write"), alone),
        "training": ({}, replaced(Trainer, "step"), alone),
    }


def outcome(config: dict[str, Any], folder: Path) -> tuple[Exception | None, int]:
    """How a job of this command ends, as a job of a multirun that keeps the exception, and the steps it has done."""
    try:
        with process_group(timeout_minutes=2):
            return None, train(config, folder)
    except Exception as error:
        return error, 0


def train(config: dict[str, Any], folder: Path) -> int:
    job.require_same_command(config)
    run = assemble.build_run(config, folder, partial(started, folder))
    run.train()
    return run.steps


def started(folder: Path) -> RunRecord:
    folder.mkdir(exist_ok=True)
    record = RunRecord(folder / "run.json", "", "", 0, {}, [])
    record.write()
    return record


def changed(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A copy with other values of these dotted keys."""
    config = copy.deepcopy(config)
    for key, value in values.items():
        section, name = key.split(".")
        config[section][name] = value
    return config


def all_jobs(folder: Path, rank: int) -> dict[str, tuple[str, int, float]]:
    """Of each job the reason that is given, the steps, and the seconds."""
    config = plain(composed([*SETTINGS, f"data.path={folder}/8/images"]))
    ended, seconds = {}, {}
    for stage, (values, patched, _) in {**jobs(folder), "undisturbed": ({}, nothing, "")}.items():
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1:
                patched(patch)
            began = time.monotonic()
            ended[stage] = outcome(changed(config, values if rank == 1 else {}), folder / stage)
            seconds[stage] = time.monotonic() - began
    return {stage: (str(error or ""), steps, seconds[stage]) for stage, (error, steps) in ended.items()}


STAGES = list(jobs(Path()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With folders of 8 and of 9 images."""
    root = tmp_path_factory.mktemp("building")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 36, 36, 3), dtype=np.uint8)
    for count in (8, 9):
        (root / f"{count}/images").mkdir(parents=True)
        for number, image in enumerate(pixels[:count]):
            Image.fromarray(image).save(root / f"{count}/images/{number}.png")
    return root


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, tuple[str, int, float]]]:
    return launched(partial(all_jobs, folder), folder, seconds=400)


@pytest.mark.parametrize("stage", STAGES)
def test_all_ranks_end_with_the_reason(
    stage: str, folder: Path, found: list[dict[str, tuple[str, int, float]]]
) -> None:
    """Long before the timeout."""
    pattern = jobs(folder)[stage][2]
    for reason, _, seconds in (ranks[stage] for ranks in found):
        assert re.search(pattern, reason), reason
        assert seconds < 60


def test_the_next_job_in_the_same_processes_works(found: list[dict[str, tuple[str, int, float]]]) -> None:
    assert [ranks["undisturbed"][:2] for ranks in found] == [("", 2), ("", 2)]
