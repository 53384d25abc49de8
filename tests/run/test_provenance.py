"""What is recorded about the source and the machine."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from dinoswap.run import provenance

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@needs_git
def test_commit_and_changes_of_a_checkout(tmp_path: Path) -> None:
    package = tmp_path / "ssl" / "package"
    package.mkdir(parents=True)
    (package / "module.py").write_text("a = 1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    assert provenance.git_state(package) is None  # no commit yet
    git(tmp_path, "commit", "-qm", "first")
    sha = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.git_state(package) == {"sha": sha, "dirty": False}
    (package / "module.py").write_text("a = 2\n")
    assert provenance.git_state(package) == {"sha": sha, "dirty": True}


@needs_git
def test_no_checkout_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert provenance.git_state(tmp_path) is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "somebody's project", "--allow-empty")
    installed = tmp_path / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "module.py").touch()
    assert provenance.git_state(installed) is None
    monkeypatch.setenv("PATH", str(tmp_path))  # no git at all
    assert provenance.git_state() is None


def test_versions_and_hardware() -> None:
    assert provenance.versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]
    found = provenance.hardware()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert len(found["gpus"]) == torch.cuda.device_count()
    kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
    assert found["memory_bytes"] == pytest.approx(kilobytes * 1024, rel=0.05)
