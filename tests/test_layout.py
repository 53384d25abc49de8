"""The folder ssl/ never hides the standard library's module `ssl`: it is no package, and holds packages only.

One file in the wrong place would break whatever opens a secure connection, and be noticed late.
"""

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECK = "import ssl; ssl.create_default_context(); assert 'dinoswap' not in ssl.__file__; print(ssl.__file__)"


def test_the_source_root_holds_packages_only() -> None:
    children = {path.name for path in (ROOT / "ssl").iterdir()} - {"__pycache__"}
    assert children <= {"dinoswap", "hydra_plugins"}
    assert not (ROOT / "ssl" / "hydra_plugins" / "__init__.py").exists()


def test_ssl_is_the_standard_library_under_pytest() -> None:
    assert Path(ssl.__file__).parent == Path(os.__file__).parent
    ssl.create_default_context()


@pytest.mark.parametrize("path", [None, ".", "ssl", str(ROOT), str(ROOT / "ssl")])
@pytest.mark.parametrize("start", [["-c", CHECK], ["-m", "probe"]], ids=["-c", "-m"])
def test_ssl_is_the_standard_library_at_the_root(start: list[str], path: str | None, tmp_path: Path) -> None:
    """Python puts the working directory, or PYTHONPATH, before the standard library."""
    (tmp_path / "probe.py").write_text(CHECK)
    search = os.pathsep.join([part for part in (path, str(tmp_path)) if part])
    done = subprocess.run(
        [sys.executable, *start], cwd=ROOT, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == Path(ssl.__file__)


def test_ssl_is_the_standard_library_in_a_submitit_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")

    def file_of_ssl() -> str:  # local, so that it travels by value
        import ssl

        ssl.create_default_context()
        return ssl.__file__

    monkeypatch.chdir(ROOT)
    executor = submitit.LocalExecutor(tmp_path)
    executor.update_parameters(timeout_min=2)
    assert executor.submit(file_of_ssl).result() == ssl.__file__
