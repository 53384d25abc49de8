"""The commands of README.md in the order in which they stand there, typed into a shell in a fresh copy of the checkout.

A reader has images at /data/images, a GPU and a day: here these are a folder of small pictures, a CPU and two steps, so
paths are replaced and sizes appended. Left out are `make demo` and `make test`, which take as long as the tests
themselves, the download of torch, and what needs a cluster, which tests/studies/test_slurm.py has.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from dinoswap.config.configuration import config_dir, flatten

ROOT = Path(__file__).resolve().parents[1]
RUN, WEIGHTS = "results/runs/single/1a2b3c4d5e/seed0", "dinov2_vits14_pretrain.pth"
FEW_SCENES = (
    "evaluation.dense.train=8 evaluation.dense.test=4 evaluation.metric.segmentation.patches=200 "
    "evaluation.metric.correspondence.images=20"
)
ELSEWHERE = ("pip install torch", "make demo", "make test", "srun ")
ON_A_CLUSTER = "hydra/launcher="

pytestmark = pytest.mark.slow


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [block for written_in, block in fenced if written_in == language]


LINES = [line.partition(" #")[0].strip() for block in blocks("") for line in block.splitlines()]
TYPED = [line for line in LINES if not line.startswith(ELSEWHERE) and ON_A_CLUSTER not in line]


def small() -> str:
    """The sizes of recipe=smoke, fewer steps and images, as overrides for lines that name another recipe."""
    recipe = OmegaConf.to_container(OmegaConf.load(config_dir() / "recipe" / "smoke.yaml"))
    assert isinstance(recipe, dict)
    sizes = {key: value for key, value in flatten(recipe).items() if not key.startswith("objectives.")}  # type: ignore[arg-type]
    del sizes["defaults"]
    sizes |= {
        "metric": "[knn,linear,features]",
        "trainer.max_steps": 2,
        "evaluation.images": 20,
        "tracker": "none",
        "trainer.device": "cpu",
    }
    return " ".join(f"{key}={value}" for key, value in sizes.items())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git has of this checkout, elsewhere, installed as README.md says into an environment that finds the
    dependencies where these tests find them."""
    folder = tmp_path_factory.mktemp("fresh") / "dinoswap"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    venv.create(folder / ".venv", symlinks=True)
    (own,) = (folder / ".venv" / "lib").glob("python*/site-packages")
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    torchrun = folder / ".venv/bin/torchrun"  # a dependency's command, so pip does not put one here
    torchrun.write_text('#!/bin/sh\nexec python -m torch.distributed.run "$@"\n')
    torchrun.chmod(0o755)
    install = next(line for line in LINES if line.startswith("pip install -e"))
    offline = f"--python {folder / '.venv/bin/python'} install --no-deps --no-index --no-build-isolation"
    shell(install.replace("pip install", f"{sys.executable} -m pip {offline}"), folder)
    return folder


def shell(line: str, folder: Path) -> str:
    """Types a line into a shell whose commands are those of the fresh environment, and returns what is printed."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DINOSWAP_CONFIG_DIR")}
    environment |= {"PATH": f"{folder / '.venv/bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def adapted(line: str, folder: Path) -> str:
    """The line as it is typed here: what a reader has in other places, and at another size."""
    runs = sorted(folder.glob("results/runs/single/*/seed0"), key=lambda run: run.stat().st_mtime)
    if RUN in line:
        line = line.replace(RUN, str(runs[-1]))
    line = (
        line.replace("/data/images", "images")
        .replace("/data/labelled", "images")
        .replace("/data/ADEChallengeData2016", "ade20k")
        .replace(WEIGHTS, "backbone.safetensors")
    )
    line = line.replace("--nproc-per-node 8", "--nproc-per-node 2")
    if line.startswith(("dinoswap-ablate run", "dinoswap-ablate status", "dinoswap-ablate report")):
        line = line.replace("from_official", "smoke") + " 'exclude=[{layer_decay: uniform}]'"  # a study of four runs
    if line.startswith("dinoswap-tune"):
        line = f"{line} trials=1 workers=1 'seeds=[1,2]'"
    if line.startswith("dinoswap-eval"):
        of_all_families = "backbone.safetensors" in line and "metric=" not in line
        return f"{line} evaluation.images=20 {FEW_SCENES if of_all_families else ''}"
    if line.startswith(("dinoswap-export", "dinoswap-embed")):
        return line
    if line.startswith(("dinoswap-", "torchrun")) and "plan" not in line:
        return f"{line.removesuffix(' --explain')} {small()}{' --explain' * line.endswith(' --explain')}"
    return line


def test_its_commands_work_in_their_order(checkout: Path) -> None:
    draws = np.random.default_rng(0)
    for place in range(24):
        path = checkout / "images" / ("train" if place < 16 else "test") / "ab"[place % 2] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
        part = "training" if place < 16 else "validation"
        annotated = [checkout / "ade20k" / kind / part / path.name for kind in ("images", "annotations")]
        for file in annotated:
            file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, annotated[0])
        Image.fromarray(draws.integers(0, 4, (40, 48), dtype=np.uint8)).save(annotated[1])
    for line in TYPED:
        if line.startswith("pip install -e"):
            continue  # done
        printed = shell(adapted(line, checkout), checkout)
        if "check_parity" in line:
            assert re.search(r"parity: \d{2,} quantities, worst [\d.e-]+, PASS", printed), printed[-500:]
        if line.startswith("dinoswap-export"):
            (snippet,) = blocks("python")
            Image.new("RGB", (60, 50)).save(checkout / "photo.jpg")
            (checkout / "snippet.py").write_text(f"{snippet}\nprint(tuple(tokens.patch.shape))")
            assert shell("python snippet.py", checkout).splitlines()[-1] == "(1, 16, 32)"
    assert len(TYPED) >= 15
    assert len(list(checkout.glob("results/runs/single/*/seed0/pictures/curves.png"))) == 7
    assert len(list(checkout.glob("results/runs/smoke/*/seed*/run.json"))) == 4
    assert list(checkout.glob("results/**/report.html"))
