"""The wheel, built from the sdist and installed where no checkout is in sight, trains a step."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DINOSWAP_CONFIG_DIR")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment that holds the wheel, and finds everything else where these tests find it."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (wheel,) = distributions.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # Its lines are not read for further .pth files, so that an editable install there stays out of reach
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_holds_code_configs_data_and_licences(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    package = {str(path.relative_to(ROOT / "ssl")) for path in (ROOT / "ssl").rglob("*.py")}
    configs = {
        f"dinoswap/{path.relative_to(ROOT)}" for f in ("configs", "ablations") for path in (ROOT / f).rglob("*.yaml")
    }
    data = {"dinoswap/py.typed", "dinoswap/data/files/NOTICE", "dinoswap/data/files/photos.parquet"}
    assert package | configs | data <= names
    assert {name.split("/")[0] for name in names} == {"dinoswap", "hydra_plugins", "dinoswap-0.1.0.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_holds_what_the_tests_need(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "configs/train.yaml", "tests/conftest.py"} <= names
    assert {"tools/check_parity.py", "tests/parity/official/masking.json"} <= names


def test_the_installed_command_trains_a_step_anywhere(installed: Path, tmp_path: Path) -> None:
    where = run(installed / "python", "-c", "import dinoswap; print(dinoswap.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
    run(installed / "dinoswap-train", "recipe=smoke", "trainer.max_steps=1", "evaluation.images=30", cwd=tmp_path)
    (record,) = tmp_path.glob("results/runs/single/*/seed0/run.json")
    found = json.loads(record.read_text())
    assert (found["status"], found["steps"], found["git"]) == ("completed", 1, None)


def test_the_installed_command_knows_the_studies(installed: Path, tmp_path: Path) -> None:
    assert "6 missing" in run(installed / "dinoswap-ablate", "plan", "smoke", cwd=tmp_path)
