"""Checkpoints: exact, verified, and whole whatever happens while one is written."""

import errno
import hashlib
import json
import math
import multiprocessing
import os
import pickle
import random
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dinoswap.run import checkpoint

TENSORS = "shard-00001-model-00001-of-00001.safetensors"
CONFIG = {"seed": 0, "optim": {"lr": 0.1 + 0.2, "betas": [0.9, 0.999]}, "name": "caf\u00e9"}


def save(folder: Path, step: int, state: dict[str, Any] | None = None, keep: int = 9) -> Path:
    state = {"weight": torch.full((1000,), float(step)), "step": step} if state is None else state
    return checkpoint.save(folder, step, state, config=CONFIG, keep=keep)


def newest(folder: Path) -> tuple[int | None, list[str]]:
    reports: list[str] = []
    found = checkpoint.newest(folder, reports.append)
    return (None if found is None else found.step), reports


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    raw = [t.detach().contiguous().flatten().view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


def test_tensors_of_every_kind_come_back_bit_for_bit(tmp_path: Path) -> None:
    wide = torch.randn(6, 5, dtype=torch.float64)
    tensors = {
        "nan_payload": torch.tensor([0x7FC12345, -1, 1], dtype=torch.int32).view(torch.float32),
        "bf16": torch.randn(7).bfloat16(),
        "fp16": torch.randn(3).half(),
        "int64": torch.tensor([2**63 - 1, -(2**63)]),
        "uint8": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "empty": torch.empty(0),
        "empty_rows": torch.empty(3, 0, dtype=torch.int16),
        "transposed": wide.T,
        "view_of_the_same_storage": wide[1:3],
        "same_again": wide,
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "expanded": torch.tensor([1.5]).expand(4),
    }
    path = save(tmp_path, 3, {"model": {"blocks.0.w": tensors}, "list": [tensors["bf16"], 1]})
    loaded = checkpoint.read(path).state
    for name, tensor in tensors.items():
        assert same_bits(loaded["model"]["blocks.0.w"][name], tensor), name
    assert same_bits(loaded["list"][0], tensors["bf16"])
    by_library = load_file(path / TENSORS)  # an independent reader of the format
    assert by_library.keys() == {f"model/blocks.0.w/{name}" for name in tensors} | {"list/0"}
    assert all(same_bits(by_library[f"model/blocks.0.w/{name}"], tensors[name]) for name in tensors)


def test_loaded_tensors_are_independent_and_aligned(tmp_path: Path) -> None:
    shared = torch.zeros(3)
    state = checkpoint.read(save(tmp_path, 1, {"a": shared, "b": shared, "odd": torch.zeros(5).bfloat16()})).state
    state["a"].fill_(1)
    assert state["b"].tolist() == [0, 0, 0]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in state.values())


def test_sizes_and_digests_are_those_of_the_files(tmp_path: Path) -> None:
    """Although they are not computed from the files. A tensor takes more than one piece of a file."""
    path = save(tmp_path, 1, {"large": torch.randn(3 * 2**20), "byte": torch.ones(1, dtype=torch.uint8)})
    files = json.loads((path / "meta.json").read_text())["files"]
    assert files.keys() == {TENSORS, "state.json"}
    for name, entry in files.items():
        content = (path / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_scalars_come_back_exactly(tmp_path: Path) -> None:
    scalars = {
        "floats": [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, math.inf, -math.inf],
        "ints": [0, -1, 2**70],
        "mixed": {"yes": True, "no": False, "none": None, "text": 'caf\u00e9 "\n', "nothing": {}, "no_items": []},
    }
    found = checkpoint.read(save(tmp_path, 12, {**scalars, "nan": math.nan, "pair": (1, 2.5)}))
    assert math.isnan(found.state.pop("nan"))
    assert found.state.pop("pair") == [1, 2.5]
    assert repr(found.state) == repr(scalars)
    assert (found.step, repr(found.config)) == (12, repr(CONFIG))


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ({"a": {"b": object()}}, TypeError, "state a/b: .*object"),
        ({"a": [torch.zeros(2, dtype=torch.complex64)]}, TypeError, "state a/0: .*complex64"),
        ({"a/b": 1}, ValueError, "'a/b'"),
        ({"a": {1: 2}}, ValueError, "state a: key 1"),
        ({"$tensor": 1}, ValueError, "tensor"),
        ({"__metadata__": torch.zeros(1)}, ValueError, "metadata"),
    ],
)
def test_state_that_cannot_be_stored_is_refused(tmp_path: Path, state: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        save(tmp_path, 1, state)
    assert list(tmp_path.iterdir()) == []


def test_no_folder_and_an_empty_folder_hold_no_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path / "absent") == newest(tmp_path) == (None, [])


FILES = [TENSORS, "state.json", "meta.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "longer"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 10)
    file = save(tmp_path, 20) / name
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "truncated": whole[:-1], "longer": whole + b"}"}[damage])
    step, reports = newest(tmp_path)
    assert step == 10
    assert len(reports) == 1
    assert "step-00000020" in reports[0]


def test_tensors_from_elsewhere_are_not_read(tmp_path: Path) -> None:
    path = save(tmp_path, 20)
    (path / "shard-00002-model-00001-of-00001.safetensors").write_bytes((path / TENSORS).read_bytes())
    with pytest.raises(checkpoint.CheckpointError, match="did not have shard-00002"):
        newest(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    file = save(tmp_path, 20) / name
    whole = file.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 200)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        with pytest.raises(checkpoint.CheckpointError, match="step-00000020"):
            pytest.fail(f"byte {position}: {newest(tmp_path)}")
    file.write_bytes(whole)
    assert newest(tmp_path) == (20, [])


def test_a_half_written_folder_is_ignored_then_swept_up(tmp_path: Path) -> None:
    save(tmp_path, 10)
    half = tmp_path / "step-00000020.tmp-unfinished"
    half.mkdir()
    (half / TENSORS).write_bytes(b"half")
    assert newest(tmp_path) == (10, [])
    save(tmp_path, 20)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000020"]


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 99_999_999, 100_000_000):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-100000000", "step-99999999"]
    save(tmp_path, 7, keep=1)  # the one just written is kept beside later ones, which it says nothing of
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000007", "step-100000000", "step-99999999"]
    with pytest.raises(ValueError, match="keep=0"):
        save(tmp_path, 1, keep=0)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 10, {"second": True})
    assert checkpoint.read(tmp_path / "step-00000010").state == {"second": True}
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000010"]


class Killed(BaseException):
    """Ends a process at once, as far as files are concerned."""


def test_killed_before_its_new_name_it_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of the renames of a step that had been saved before, and is saved again."""
    rename, renamed = os.rename, 0

    def killed(source: Path, target: Path) -> None:
        nonlocal renamed
        if renamed == last:
            raise Killed
        renamed += 1
        rename(source, target)

    for last in (0, 1):
        save(tmp_path, 20)
        renamed = 0
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "rename", killed)
            save(tmp_path, 20, {"second": last})
        assert (tmp_path / "step-00000020").exists() == (last == 0)
        checkpoint.complete(tmp_path)
        assert newest(tmp_path) == (20, [])
        assert checkpoint.read(tmp_path / "step-00000020").state == {"second": last}


def test_what_is_not_whole_is_not_completed(tmp_path: Path) -> None:
    for path in [save(tmp_path, step) for step in (10, 20, 30)]:
        path.rename(f"{path}.tmp-unfinished")
    (tmp_path / "step-00000010.tmp-unfinished/meta.json").write_text('{"format": 1,')
    (tmp_path / "step-00000020.tmp-unfinished/meta.json").unlink()
    checkpoint.complete(tmp_path)
    whole = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".tmp-unfinished")}
    assert whole == {"step-00000030"}


class Trap:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_a_pickle_in_the_place_of_the_tensors_is_not_executed(tmp_path: Path) -> None:
    path, marker = save(tmp_path, 1), tmp_path / "executed"
    trap = pickle.dumps(Trap(marker))
    meta = json.loads((path / "meta.json").read_text())
    meta["files"][TENSORS] = {"bytes": len(trap), "sha256": hashlib.sha256(trap).hexdigest()}
    (path / TENSORS).write_bytes(trap)
    (path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(checkpoint.CheckpointError, match="SafetensorError"):
        checkpoint.read(path)
    assert not marker.exists()
    pickle.loads(trap)
    assert marker.exists()  # the trap works


def full(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_refused_write_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 10)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(checkpoint.CheckpointError) as caught:
        save(tmp_path, 20)
    message = str(caught.value)
    assert re.search(r"\(4,\d\d\d bytes needed, [\d,]+ free\)", message)  # 1,000 float32 and the rest of the state
    assert all(part in message for part in (str(tmp_path / "step-00000020"), "No space left", "step-00000010 is the"))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000010"]
    assert newest(tmp_path) == (10, [])


def test_all_is_on_the_disk_before_it_is_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power failure loses what was not synced: content of files, names in folders."""
    synced, lost = set[int](), list[str]()
    fsync, rename = os.fsync, os.rename

    def power_fails_after(source: Path, target: Path) -> None:
        lost.extend(path.name for path in (source, *source.iterdir()) if path.stat().st_ino not in synced)
        rename(source, target)
        synced.clear()

    monkeypatch.setattr(os, "fsync", lambda file: (fsync(file), synced.add(os.fstat(file).st_ino))[0])
    monkeypatch.setattr(os, "rename", power_fails_after)
    save(tmp_path, 10)
    assert not lost
    assert synced == {tmp_path.stat().st_ino}


def test_a_really_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        save(disk, 10)
        with pytest.raises(checkpoint.CheckpointError, match=r"No space left.*step-00000010 .* intact"):
            save(disk, 20, {"big": torch.zeros(2**20)})
        assert newest(disk) == (10, [])
        save(disk, 20)  # what had been written of the failed one was freed
        assert newest(disk) == (20, [])
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _save_forever(folder: Path) -> None:
    """Saves step after step, with a slow disk so that nearly every moment is within a save."""
    fsync = os.fsync
    os.fsync = lambda descriptor: (time.sleep(0.004), fsync(descriptor))[1]  # type: ignore[assignment, func-returns-value]
    torch.set_num_threads(1)
    found = checkpoint.newest(folder, print)
    step = found.step if found else 0
    while True:
        step += 1
        save(folder, step, {"weight": torch.full((250_000,), float(step)), "step": step}, keep=2)


def test_killed_at_any_moment_the_newest_checkpoint_is_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dinoswap.run.checkpoint"])
    random_state = random.Random(0)
    last, killed_within_a_save = 0, 0
    for _ in range(6):
        process = context.Process(target=_save_forever, args=(tmp_path,))
        process.start()
        while process.is_alive() and all(int(p.name[5:13]) <= last for p in tmp_path.glob("step-????????")):
            time.sleep(0.005)
        time.sleep(random_state.uniform(0, 0.05))
        process.kill()
        process.join()
        killed_within_a_save += any(".tmp-" in p.name for p in tmp_path.iterdir())
        reports: list[str] = []
        found = checkpoint.newest(tmp_path, reports.append)
        assert found is not None
        assert reports == []
        assert found.step > last
        assert found.state["step"] == found.step
        assert torch.equal(found.state["weight"], torch.full((250_000,), float(found.step)))
        last = found.step
    assert killed_within_a_save >= 3


def test_config_difference_names_dotted_keys() -> None:
    old = {"seed": 0, "optim": {"lr": 1e-3, "betas": [0.9, 0.95]}, "data": {"workers": 2, "path": "a"}, "gone": 1}
    new = {"seed": 0, "optim": {"lr": 2e-3, "betas": (0.9, 0.95)}, "data": {"workers": 8, "path": "a"}, "da3": {"k": 1}}
    assert checkpoint.config_difference(old, new, ignore=["data.workers"]) == [
        "optim.lr: 0.001 -> 0.002",
        "gone: 1 -> (default)",
        "da3.k: (default) -> 1",
    ]
    assert checkpoint.config_difference(old, new, ignore=["data", "optim", "gone", "da3"]) == []
    assert checkpoint.config_difference({"data_x": 1}, {"data_x": 2}, ignore=["data"]) == ["data_x: 1 -> 2"]


def test_another_config_is_refused_with_the_difference(tmp_path: Path) -> None:
    found = checkpoint.read(save(tmp_path, 1))
    checkpoint.require_same_config(found, CONFIG)
    with pytest.raises(ValueError, match=r"(?s)step-00000001.*seed: 0 -> 1\n.*results_dir"):
        checkpoint.require_same_config(found, {**CONFIG, "seed": 1})
    checkpoint.require_same_config(found, {**CONFIG, "seed": 1}, ignore=["seed"])
