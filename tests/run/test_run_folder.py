"""Where a run lies, before and after it knows what it is."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from dinoswap.config.command_line import compose_config
from dinoswap.config.configuration import plain
from dinoswap.config.facts import data_facts
from dinoswap.config.identity import run_id
from dinoswap.config.schema import ConfigError
from dinoswap.run.earlier_runs import differing, nearest, require_same_images
from dinoswap.run.run_folder import (
    PLACE,
    POINTER,
    folder_of,
    followed,
    own_identity,
    planned_folder,
    planned_id,
    point,
    write_pointers,
)
from small_models import composed

SMOKE = compose_config(["recipe=smoke"])
SINGLE = SimpleNamespace(mode=RunMode.RUN, run=SimpleNamespace(dir="."), sweep=SimpleNamespace(dir="x", subdir="."))


def test_it_names_study_run_and_seed() -> None:
    name = run_id(own_identity(SMOKE, data_facts(SMOKE)))
    assert planned_folder(SMOKE) == Path(f"single/{name}/seed0")
    assert planned_folder({**SMOKE, "study": "lr", "seed": 4}) == Path(f"lr/{name}/seed4")
    assert folder_of(SMOKE, name, SINGLE) == Path(f"results/runs/single/{name}/seed0").absolute()


@pytest.mark.parametrize(
    ("mode", "run", "sweep", "expected"),
    [
        (RunMode.RUN, "/a/b", ("/c", "."), "/a/b"),
        (RunMode.RUN, "a/b", ("/c", "d"), "{here}/a/b"),
        (RunMode.MULTIRUN, "/a/b", ("/c", "."), "/c/single/id/seed0"),
        (RunMode.MULTIRUN, ".", ("/c", "7"), "/c/7"),
    ],
)
def test_what_a_user_of_hydra_says(mode: RunMode, run: str, sweep: tuple[str, str], expected: str) -> None:
    hydra = SimpleNamespace(
        mode=mode, run=SimpleNamespace(dir=run), sweep=SimpleNamespace(dir=sweep[0], subdir=sweep[1])
    )
    assert str(folder_of(SMOKE, "id", hydra)) == expected.format(here=Path().absolute())


# --- what is known where a run is asked for ---------------------------------------------------------------------------


def test_a_variable_that_only_nodes_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = "${oc.env:NODE_TMP}/imagenet"
    cfg = composed(["recipe=smoke", "data=image_folder", f"data.path='{written}'"])
    with pytest.raises(ConfigError, match="Environment variable 'NODE_TMP' not found"):
        plain(cfg)
    config = plain(cfg, strict=False)
    assert config["data"]["path"] == written
    assert config["data"]["mean"] == SMOKE["data"]["mean"]
    assert config["masking"] == SMOKE["masking"]
    monkeypatch.setenv("NODE_TMP", str(tmp_path))
    assert plain(cfg)["data"]["path"] == f"{tmp_path}/imagenet"
    with pytest.raises(ConfigError, match="'oops' not found"):
        plain(OmegaConf.create({"a": "${oops}"}), strict=False)


def test_images_that_are_not_here_are_known_by_their_path_until_then(caplog: pytest.LogCaptureFixture) -> None:
    one, same, other = (
        compose_config(["recipe=smoke", "data=image_folder", f"data.path={path}", *more])
        for path, more in (("/nowhere/a", []), ("/nowhere/a", ["data.workers=3"]), ("/nowhere/b", []))
    )
    assert planned_id(one) == planned_id(same) != planned_id(other)
    assert caplog.text.count("data.path=/nowhere/a: no such folder") == 1
    assert "the run is named when it begins" in caplog.text


def test_a_pointer_leads_to_the_run(tmp_path: Path) -> None:
    place, folder = tmp_path / "runs/s/asked/seed0", tmp_path / "runs/s/own/seed0"
    assert followed(place) == place
    place.mkdir(parents=True)
    (place / "run.json").write_text("a job that could not begin")
    (place / "job.json").write_text('{"job": "17_1"}')
    point(place, folder)
    assert followed(place) == folder
    assert not (place / "run.json").exists()
    assert json.loads((folder / "job.json").read_text()) == {"job": "17_1"}
    moved = (tmp_path / "runs").rename(tmp_path / "moved")
    assert followed(moved / "s/asked/seed0") == moved / "s/own/seed0"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"folder": 3}'])
def test_a_damaged_pointer_leads_nowhere(content: str, tmp_path: Path) -> None:
    (tmp_path / POINTER).write_text(content)
    assert followed(tmp_path) == tmp_path


def test_the_launcher_finds_the_run_where_it_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, folder = tmp_path / "s" / "asked" / "seed0", tmp_path / "s" / "own" / "seed0"
    monkeypatch.setenv(PLACE, str(asked))
    write_pointers(SMOKE, folder, {})
    assert followed(asked) == folder
    write_pointers(SMOKE, asked, {})  # its own place after all
    assert followed(asked) == asked


def test_a_study_finds_a_run_of_several_ranks(tmp_path: Path) -> None:
    """It asks for one rank. A run of one rank that is there stays what it finds."""
    study = {**SMOKE, "study": "s"}
    alone, two = (own_identity(study, data_facts(study), ranks) for ranks in (1, 2))
    places = {ranks: tmp_path / "s" / run_id(own) / "seed0" for ranks, own in ((1, alone), (2, two))}
    write_pointers(SMOKE, places[2], two)  # of no study: nobody asks
    assert not places[1].exists()
    write_pointers(study, places[2], two)
    assert followed(places[1]) == places[2]
    write_pointers(study, places[1], alone)  # there is one of one rank now
    (places[1] / "run.json").touch()
    write_pointers(study, places[2], two)
    assert followed(places[1]) == places[1]


# --- runs that are there ----------------------------------------------------------------------------------------------

OWN = {"masking": "BernoulliMasking", "trainer.max_steps": 10, "data.images": "aaaa"}
DATA = {"path": "/data", "images": 100, "test_images": 0, "fingerprint": "aaaa..."}


def write(study: Path, name: str, *, status: str = "preempted", saved: bool = True, seed: int = 0, **more: Any) -> Path:
    folder = study / name / f"seed{seed}"
    (folder / "checkpoints" / "step-00000003").mkdir(parents=True) if saved else folder.mkdir(parents=True)
    record = {"run_id": name, "status": status, "started": "2026", "identity": OWN, "data": DATA, **more}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def grown(images: int = 150, **more: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {**OWN, "data.images": "bbbb", **more}, {**DATA, "images": images}


def test_a_run_is_not_continued_on_other_images(tmp_path: Path) -> None:
    folder = write(tmp_path, "a")
    with pytest.raises(ConfigError) as refused:
        require_same_images(tmp_path, 0, *grown())
    assert "data.path=/data: this run was begun on 100 images (0 for testing), and there are 150" in str(refused.value)
    assert str(folder) in str(refused.value)
    with pytest.raises(ConfigError, match=r"there are 100 images .* now, but not the same ones"):
        require_same_images(tmp_path, 0, *grown(images=100))


def test_what_is_not_continued_is_another_run(tmp_path: Path) -> None:
    for name, more in {
        "complete": {"status": "completed"},
        "not begun": {"saved": False},
        "other seed": {"seed": 1},
        "elsewhere": {"data": {**DATA, "path": "/other"}},
        "other": {"identity": {**OWN, "trainer.max_steps": 11}},
        "old": {"identity": None, "data": None},
    }.items():
        write(tmp_path, name, **more)
    (tmp_path / "broken" / "seed0").mkdir(parents=True)
    (tmp_path / "broken" / "seed0" / "run.json").write_text("{")
    (tmp_path / "waits" / "seed0").mkdir(parents=True)
    os.mkfifo(tmp_path / "waits" / "seed0" / "run.json")
    require_same_images(tmp_path, 0, *grown())
    require_same_images(tmp_path / "nothing", 0, *grown())


def test_the_nearest_run_is_named_with_what_differs(tmp_path: Path) -> None:
    assert nearest(tmp_path, OWN) is None
    write(tmp_path, "727b5eed41", identity={**OWN, "trainer.max_steps": 20})
    assert nearest(tmp_path, OWN) == "differs from 727b5eed41 in trainer.max_steps"
    write(tmp_path, "far", identity={str(number): number for number in range(9)})
    assert nearest(tmp_path, OWN) == "differs from 727b5eed41 in trainer.max_steps"
    write(tmp_path, "later", identity={**OWN, "data.images": "c"}, started="2027")
    assert nearest(tmp_path, OWN) == "differs from later in the images"


def test_keys_of_another_option_are_not_counted() -> None:
    other = {"masking": "InverseBlockMasking", "masking.roll": False, "trainer.max_steps": 10, "data.images": "aaaa"}
    assert differing(OWN, other) == ["masking"]
    assert differing(OWN, {**OWN, "a": False}) == ["a"]
    assert differing({**OWN, "a": 0}, {**OWN, "a": False}) == ["a"]
