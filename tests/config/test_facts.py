"""What a run is beside its configuration: images, weights, ranks. Data and weights are known by what they hold."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dinoswap.config import guests
from dinoswap.config.command_line import compose_config
from dinoswap.config.facts import DataFacts, build_source, data_facts, depends_on_ranks, facts
from dinoswap.config.identity import identity, run_id
from dinoswap.config.schema import ConfigError
from dinoswap.files import digest
from dinoswap.run.run_folder import own_identity, planned_id
from fixtures import DA3

TINY = DA3 / "da3_tiny.safetensors"


def folder(path: Path, classes: str = "ab", images: int = 3) -> Path:
    for number, name in enumerate(classes):
        for image in range(images):
            file = path / name / f"{image}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (50 * number, image, 0)).save(file)
    return path


def on(path: Path, *overrides: str) -> dict[str, Any]:
    return compose_config(["recipe=smoke", "data=image_folder", f"data.path='{path}'", *overrides])


def name_of(config: dict[str, Any], ranks: int = 1) -> str:
    return run_id(own_identity(config, DataFacts.of(config, build_source(config)), ranks))


def test_another_data_set_of_the_same_name_is_another_run(tmp_path: Path) -> None:
    here, there = on(folder(tmp_path / "a" / "images")), on(folder(tmp_path / "b" / "images", classes="xy"))
    assert name_of(here) != name_of(there)
    before = name_of(here)
    folder(tmp_path / "a" / "images", images=4)
    assert name_of(here) != before


def test_the_version_of_a_guest_joins_where_it_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracker of another package does not."""
    monkeypatch.setattr(guests, "guests", lambda: (guests.Guest("my-options", "1.2", "my_options", tmp_path),))
    config, data = compose_config(["recipe=smoke"]), DataFacts(None, 1, 1, "")
    tracked = config | {"tracker": {"mine": {"_target_": "my_options.diary.Diary"}}}
    masked = config | {"masking": {"_target_": "my_options.checker.CheckerMasking"}}
    assert "guests.my-options" not in facts(tracked, data)
    assert facts(masked, data)["guests.my-options"] == "1.2"


def test_what_is_known_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path is the whole one: `.` is another folder elsewhere."""
    folder(tmp_path / "images" / "train")
    folder(tmp_path / "images" / "test", classes="a", images=2)
    monkeypatch.chdir(tmp_path / "images")
    config = on(Path())
    found = DataFacts.of(config, build_source(config))
    assert (found.path, found.images, found.test_images) == (str(tmp_path / "images"), 6, 2)
    assert found.fingerprint == build_source(config).fingerprint()
    assert facts(config, found)["data.images"] == found.fingerprint[:16]


def test_a_source_is_opened_once_in_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds and arms of a study that do not differ in their data share it."""
    first = data_facts(compose_config(["recipe=smoke", "data.stride=32"]))
    monkeypatch.setattr("dinoswap.config.facts.build_source", lambda config: pytest.fail("opened again"))
    other = compose_config(["recipe=smoke", "data.stride=32", "data.batch_size=4", "masking=bernoulli", "seed=3"])
    assert data_facts(other) is first


@pytest.mark.parametrize("option", ["embedded", "image_folder", "parquet", "webdataset"])
def test_a_run_is_named_without_torch(option: str, tmp_path: Path) -> None:
    """It takes seconds to import."""
    code = (
        "import sys, dinoswap.run.run_folder, dinoswap.run.earlier_runs\n"
        f"import dinoswap.data.{option}, dinoswap.files.weights\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- weights ----------------------------------------------------------------------------------------------------------

DISTILLED = ["recipe=smoke", "da3=enabled", "da3.teacher.num_heads=4"]


def test_a_teacher_is_known_by_its_bytes(tmp_path: Path) -> None:
    """Also in a folder of the hub, and under another name; another file of the same name is another teacher."""
    for place in ("hub/model.safetensors", "renamed.safetensors", f"other/{TINY.name}"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(TINY.read_bytes() + (b" " if "other" in place else b""))
    paths = [TINY, tmp_path / "hub", tmp_path / "renamed.safetensors", tmp_path / "other" / TINY.name]
    first, *others = [planned_id(compose_config([*DISTILLED, f"da3.ckpt_path={path}"])) for path in paths]
    assert others[:2] == [first, first]
    assert others[2] != first
    config = compose_config([*DISTILLED, f"da3.ckpt_path={TINY}"])
    found = facts(config, data_facts(config))
    assert found["da3.weights"] == hashlib.sha256(TINY.read_bytes()).hexdigest()[:16]
    assert not any("ckpt_path" in key for key in identity(config))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    config = compose_config([*DISTILLED, f"da3.ckpt_path={tmp_path}"])
    with pytest.raises(ConfigError, match=r"da3\.ckpt_path=.*: no such file"):
        facts(config, data_facts(config))


def test_weights_that_are_not_used_are_not_looked_at() -> None:
    config = compose_config([*DISTILLED, "da3.ckpt_path=/nowhere", "da3.enabled=false"])
    assert set(facts(config, data_facts(config))) == {"data.images"}


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large and was written a while ago."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digest, "LARGE", 4)
    file = tmp_path / "weights"
    file.write_bytes(b"12345")
    os.utime(file, (1, 1))
    return file


def of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_large_file_is_read_once(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert digest.sha256(large) == of(b"12345")
    monkeypatch.setattr(hashlib, "file_digest", lambda *arguments: pytest.fail("read again"))
    assert digest.sha256(large) == of(b"12345")


def test_another_file_in_its_place_is_read(large: Path, tmp_path: Path) -> None:
    """Of the same size, with the same time of change."""
    assert digest.sha256(large) == of(b"12345")
    other = tmp_path / "other"
    other.write_bytes(b"54321")
    other.replace(large)
    os.utime(large, (1, 1))
    assert digest.sha256(large) == of(b"54321")
    large.write_bytes(b"abcde")
    assert digest.sha256(large) == of(b"abcde")


@pytest.mark.parametrize("damage", ["{", "[]", '{"stamp": 1}', None])
def test_what_is_remembered_may_be_damaged(damage: str | None, large: Path, tmp_path: Path) -> None:
    assert digest.sha256(large) == of(b"12345")
    (remembered,) = (tmp_path / "cache" / "dinoswap" / "digests").iterdir()
    remembered.unlink()
    remembered.mkdir() if damage is None else remembered.write_text(damage)
    assert digest.sha256(large) == of(b"12345")


def test_what_was_written_just_now_is_not_remembered(large: Path, tmp_path: Path) -> None:
    large.write_bytes(b"12345")
    assert digest.sha256(large) == of(b"12345")
    assert not (tmp_path / "cache").exists()


# --- ranks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "matters"),
    [
        ([], True),  # KoLeo's neighbours
        (["objectives.koleo.gather=true"], False),
        (["objectives.koleo.group=4"], False),
        (["objectives.koleo.gather=true", "gram=ema"], False),
        (["objectives.koleo.gather=true", "gram=ema", "objectives.gram.per_image=false"], True),
        (["objectives.koleo.gather=true", "gram=snapshot", "objectives.gram.per_image=false"], True),
        (["~objectives.koleo"], False),
        (["~objectives.koleo", "targets@objectives.ibot.targets=centering"], True),
        (["~objectives.koleo", "targets@objectives.dino.targets=centering"], False),
        (["~objectives.koleo", "~objectives.ibot"], False),
    ],
)
def test_ranks_are_a_part_of_what_a_run_is_where_they_decide_a_number(overrides: list[str], matters: bool) -> None:
    config = compose_config(["recipe=smoke", *overrides])
    assert depends_on_ranks(config) == matters
    assert (planned_id(config, ranks=2) != planned_id(config)) == matters
    assert (planned_id(config, ranks=2) != planned_id(config, ranks=4)) == matters
    assert planned_id(config, ranks=1) == planned_id(config)
