"""What lies in the folder of checkpoints beside those of this run: it is read or it is named, and never deleted."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dinoswap.run import checkpoint
from dinoswap.run.checkpoint import CheckpointError

TENSORS = "shard-00001-model-00001-of-00001.safetensors"


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return checkpoint.save(folder, step, {"weight": torch.full((9,), float(step))}, config={}, keep=keep)


def newest_step(folder: Path) -> int:
    """Of a run that goes on."""
    path = checkpoint.newest_intact(folder, logging.warning)
    assert path is not None
    checkpoint.set_aside_later(folder, int(path.name[5:]))
    return int(path.name[5:])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def other_format(path: Path) -> None:
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"format": 2}))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a bit of the tensors": lambda path: flip(path / TENSORS),
    "cut": lambda path: os.truncate(path / "state.json", 3),
    "a file is missing": lambda path: (path / "meta.json").unlink(),
    "empty": lambda path: [file.unlink() for file in path.iterdir()] and None,
    "a file in its place": lambda path: (shutil.rmtree(path), path.touch())[-1],
    "deep JSON": lambda path: (path / "meta.json").write_text("[" * 10**6) and None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_all_damaged_is_refused_with_each_named(damage: str, tmp_path: Path) -> None:
    for step in (10, 20):
        DAMAGE[damage](save(tmp_path, step))
    before = contents(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        newest_step(tmp_path)
    message = str(caught.value)
    assert [message.count(f"step-000000{step} is damaged (") for step in (10, 20)] == [1, 1]
    assert f"move {tmp_path} away to begin at step 0" in message
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_kept_under_another_name(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 10)
    for _ in range(2):  # the second time its new name is taken
        DAMAGE[damage](save(tmp_path, 20))
        assert newest_step(tmp_path) == 10
        assert "step-00000020 is damaged (" in caplog.text
        assert "going on from step-00000010" in caplog.text
    for step in (15, 20, 25):
        save(tmp_path, step)
    aside = ["step-00000020.damaged", "step-00000020.damaged-2"]
    assert names(tmp_path) == ["step-00000020", *aside, "step-00000025"]
    assert newest_step(tmp_path) == 25


def refuses(name: str, number: int) -> Callable[[Path], bytes]:
    read_bytes = Path.read_bytes

    def read(path: Path) -> bytes:
        if f"step-00000020/{name}" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return read_bytes(path)

    return read


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", ["meta.json", "state.json"])
def test_a_disk_that_does_not_answer_is_no_damage(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (10, 20):
        save(tmp_path, step)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuses(name, number))
        with pytest.raises(CheckpointError, match=rf"step-00000020 cannot be read .*{os.strerror(number)}.*Restore"):
            newest_step(tmp_path)
    assert contents(tmp_path) == before
    assert newest_step(tmp_path) == 20


def test_another_format_is_no_damage(tmp_path: Path) -> None:
    save(tmp_path, 10)
    other_format(save(tmp_path, 20))
    with pytest.raises(CheckpointError, match="step-00000020 has format 2 and this version reads 1"):
        newest_step(tmp_path)
    assert names(tmp_path) == ["step-00000010", "step-00000020"]


def test_what_this_version_cannot_read_is_not_rotated_away(tmp_path: Path) -> None:
    other_format(save(tmp_path, 10))
    flip(save(tmp_path, 20) / "meta.json")
    for step in (30, 40, 50, 60):
        save(tmp_path, step)
    assert names(tmp_path) == [f"step-000000{step}" for step in (10, 20, 50, 60)]


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listdir = os.listdir

    def stale(path: Path) -> list[str]:
        if Path(path) == tmp_path:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", stale)
    with pytest.raises(CheckpointError, match=f"checkpoints in {tmp_path} cannot be listed: Stale"):
        checkpoint.newest_intact(tmp_path, pytest.fail)


def test_a_checkpoint_on_a_bigger_disk(tmp_path: Path) -> None:
    """Linked it is read, and neither it nor its link is deleted. With that disk away it is not taken for damaged."""
    folder, disk = tmp_path / "checkpoints", tmp_path / "disk"
    disk.mkdir()
    save(folder, 10)
    moved = save(folder, 20)
    shutil.move(moved, disk)
    moved.symlink_to(disk / moved.name)
    assert newest_step(folder) == 20
    before = contents(disk)
    for step in (30, 40, 50):
        save(folder, step)
    assert names(folder) == ["step-00000020", "step-00000040", "step-00000050"]
    assert contents(disk) == before
    for step in (40, 50):
        shutil.rmtree(folder / f"step-000000{step}")
    disk.rename(tmp_path / "unmounted")
    with pytest.raises(CheckpointError, match="step-00000020 cannot be read"):
        newest_step(folder)


def test_all_checkpoints_on_a_disk_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk")
    with pytest.raises(CheckpointError, match=f"checkpoints is a link to {tmp_path}/disk, which is not there"):
        checkpoint.newest_intact(tmp_path / "checkpoints", pytest.fail)


@pytest.mark.parametrize("kind", ["file", "folder", "link", "link to nothing"])
@pytest.mark.parametrize(
    "name", ["step-99999999", "step-00000020.tmp-unfinished", "step-00000020.tmp-mine", "step-00000020"]
)
def test_what_stands_in_the_way_blocks_no_save(name: str, kind: str, tmp_path: Path) -> None:
    folder, mine = tmp_path / "checkpoints", tmp_path / "mine"
    (mine / "thesis").mkdir(parents=True)
    save(folder, 10)
    {
        "file": lambda: (folder / name).write_text("thesis"),
        "folder": lambda: shutil.copytree(mine, folder / name),
        "link": lambda: (folder / name).symlink_to(mine),
        "link to nothing": lambda: (folder / name).symlink_to(tmp_path / "nothing"),
    }[kind]()
    for step in (15, 20, 25):
        save(folder, step)
    assert {"step-00000020", "step-00000025"} <= set(names(folder))
    swept = kind == "folder" and name.endswith("unfinished")  # as a process leaves it that was killed
    assert len(names(folder)) == (2 if swept else 3), names(folder)
    assert (mine / "thesis").is_dir()
