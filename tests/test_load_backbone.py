"""`dinoswap.load_backbone`: a run, a checkpoint, an export and a released file, from Python."""

import doctest
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import dinoswap
from dinoswap.config.schema import ConfigError
from dinoswap.evaluation.features import clean_crop, default_resize
from dinoswap.export import main
from dinoswap.nn.weights import dinov2
from dinoswap.trainer import Trainer
from run_folders import write_run
from small_models import small_batch


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    folder = tmp_path_factory.mktemp("backbone") / "run"
    return folder, write_run(folder)


def test_the_example_in_its_docstring(
    run: tuple[Path, Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([str(run[0]), "-o", str(tmp_path / "backbone.safetensors")]) == 0
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(dinoswap)
    assert (found.failed, found.attempted >= 7) == (0, True)


def test_importing_it_takes_no_time() -> None:
    code = "import sys, dinoswap; assert not {'torch', 'numpy', 'hydra'} & set(sys.modules), dinoswap.load_backbone"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("network", ["teacher", "student"])
@torch.no_grad()
def test_a_run_and_its_checkpoints(run: tuple[Path, Trainer], network: str) -> None:
    folder, trainer = run
    images = small_batch(3).global_crops[0]
    original = getattr(trainer.model, network)["backbone"].eval()
    for path in (folder, folder / "checkpoints" / "step-00000001"):
        backbone = dinoswap.load_backbone(path, network=network)
        assert not backbone.training
        for found, expected in zip(backbone(images), original(images), strict=True):
            assert torch.equal(found, expected)
        for norm in (True, False):
            tokens = backbone.intermediate_tokens(images, [0, -1], norm)
            wanted = original.intermediate_tokens(images, [0, -1], norm)
            assert all(torch.equal(a.patch, b.patch) for a, b in zip(tokens, wanted, strict=True))
        assert backbone.config["source"] == f"{network} of a run after 1 steps"
        assert backbone.notes == []
    first = dinoswap.load_backbone(folder / "checkpoints" / "step-00000000", network=network)
    assert not torch.equal(first(images).cls, original(images).cls)


def test_what_a_file_does_not_say_is_warned_of(run: tuple[Path, Trainer], tmp_path: Path) -> None:
    save_file(dinov2.export(run[1].model.teacher["backbone"]), tmp_path / "official.safetensors")  # type: ignore[arg-type]
    assumed = (
        r"official\.safetensors: does not say, so as in published models: interpolate_offset 0\.0, .*mean \[0\.485"
    )
    with pytest.warns(UserWarning, match=assumed):
        backbone = dinoswap.load_backbone(tmp_path / "official.safetensors", num_heads=2)
    assert backbone.config["num_heads"] == 2
    assert backbone.config["size"] == 32


def test_a_transform_prepares_images_as_evaluations_do(run: tuple[Path, Trainer]) -> None:
    """Which resample once, where it resamples and then crops, at whole pixels: at most half of one lies between."""
    backbone = dinoswap.load_backbone(run[0])
    smooth = np.linspace(0, 64, 90)[:, None, None] * np.ones((90, 70, 3)) * np.array([1, 0.5, 0.2])
    image = Image.fromarray(smooth.astype(np.uint8))
    size, mean, std = backbone.config["size"], *(torch.tensor(backbone.config[key]) for key in ("mean", "std"))
    clean = torch.from_numpy(clean_crop(np.asarray(image), size, default_resize(size)).copy()).permute(2, 0, 1) / 255
    expected = (clean - mean[:, None, None]) / std[:, None, None]
    found = backbone.transform(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=2 / 255 / 0.224)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    assert torch.equal(backbone.transform(pixels), found)
    assert backbone.transform(image.convert("L")).shape == (3, size, size)


def test_what_is_refused(run: tuple[Path, Trainer], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither a run folder"):
        dinoswap.load_backbone(tmp_path / "none")
    with pytest.raises(ConfigError, match="network='both': use teacher or student"):
        dinoswap.load_backbone(run[0], network="both")
    with pytest.raises(ConfigError, match="num_heads=3: is of weight files"):
        dinoswap.load_backbone(run[0], num_heads=3)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no cls_token among its keys"):
        dinoswap.load_backbone(tmp_path / "other.pth")
