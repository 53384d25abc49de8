"""run -> dinoswap-export -> the library that the format is of, or ours -> the same features."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import dinoswap
from dinoswap.backbone import Backbone
from dinoswap.export import main, parser
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.load import load_backbone
from dinoswap.trainer import Trainer
from parity.libraries import (
    BY_SIZE,
    SWIGLU,
    WRITTEN,
    Features,
    configured_file,
    features_of,
    images,
    of_onnx,
    ours,
    printed_call,
)
from run_folders import write_run
from small_models import small_batch

README = Path(__file__).parents[1] / "README.md"
SIZES = [(32, 32), (48, 24), (64, 64)]  # the first is that of the crops


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    folder = tmp_path_factory.mktemp("export") / "run"
    return folder, write_run(folder)


def loaded(path: Path) -> VisionTransformer:
    """As a user without the run loads it: the number of heads is all there is to know."""
    return load_backbone(path, num_heads=2).network().eval()


@torch.no_grad()
def assert_same_features(exported: nn.Module, original: nn.Module) -> None:
    crops, mask = small_batch(3).global_crops[0], small_batch(3).mask[0]
    original.eval()
    for tokens, wanted in ((exported(crops), original(crops)), (exported(crops, mask), original(crops, mask))):
        for name in ("cls", "registers", "patch"):
            assert torch.equal(getattr(tokens, name), getattr(wanted, name)), name


# --- our own layout, and the official ones ----------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [[], SWIGLU, ["model.norm=rmsnorm", "model.cls_norm=true", *BY_SIZE]], ids=str)
def test_our_own_layout_says_all_that_there_is_to_know(changes: list[str], tmp_path: Path) -> None:
    trainer = write_run(tmp_path / "run", *changes)
    assert main([str(tmp_path / "run")]) == 0
    path = tmp_path / "run" / "backbone.safetensors"
    weights = load_backbone(path)
    assert weights.assumed == []
    original = trainer.model.teacher["backbone"]
    assert_same_features(weights.network().eval(), original)
    assert all(torch.equal(weights.state[name], value) for name, value in original.state_dict().items())
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert metadata["source"] == "teacher of a run after 1 steps"
    assert json.loads(metadata["mean"]) == [0.485, 0.456, 0.406]
    assert main([str(path), "-o", str(tmp_path / "again.safetensors")]) == 0
    assert load_file(tmp_path / "again.safetensors").keys() == load_file(path).keys()


@pytest.mark.parametrize("chunks", [0, 1, 2])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_teacher_in_the_layout_of_dinov2(
    run: tuple[Path, Trainer], suffix: str, chunks: int, tmp_path: Path
) -> None:
    folder, trainer = run
    out = tmp_path / f"weights{suffix}"
    assert main([str(folder), "--format", "dinov2", "--block-chunks", str(chunks), "-o", str(out)]) == 0
    assert_same_features(loaded(out), trainer.model.teacher["backbone"])
    student = trainer.model.student["backbone"].eval()
    assert not torch.equal(loaded(out)(small_batch(3).global_crops[0]).cls, student(small_batch(3).global_crops[0]).cls)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]  # no temporary file is left


def test_the_student(run: tuple[Path, Trainer], tmp_path: Path) -> None:
    folder, trainer = run
    out = tmp_path / "student.safetensors"
    assert main([str(folder), "--network", "student", "-o", str(out)]) == 0
    assert_same_features(load_backbone(out).network().eval(), trainer.model.student["backbone"])


def test_names_are_those_of_a_chunked_model(run: tuple[Path, Trainer], tmp_path: Path) -> None:
    out = tmp_path / "weights.pth"
    assert main([str(run[0]), "--format", "dinov2", "--block-chunks", "2", "-o", str(out)]) == 0
    names = torch.load(out, weights_only=True)
    assert {"blocks.0.0.norm1.weight", "blocks.1.1.mlp.fc2.bias", "mask_token"} <= set(names)
    assert not any(name.startswith("blocks.0.norm1") for name in names)


def test_any_checkpoint_of_the_run(run: tuple[Path, Trainer], tmp_path: Path) -> None:
    """That of step 0 holds the initial weights, which the default, the newest, does not."""
    folder, trainer = run
    out = tmp_path / "first.safetensors"
    assert main([str(folder / "checkpoints" / "step-00000000"), "-o", str(out)]) == 0
    first = loaded(out).state_dict()
    newest = trainer.model.teacher["backbone"].state_dict()
    assert any(not torch.equal(first[name], newest[name]) for name in first)


def test_a_network_with_rotary_positions_in_the_layout_of_dinov3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its safetensors file says all that the features depend on: no number of heads has to be given."""
    trainer = write_run(tmp_path / "run", *SWIGLU)
    out = tmp_path / "backbone.safetensors"
    assert main([str(tmp_path / "run"), "--format", "dinov3", "-o", str(out)]) == 0
    assert '"dtype": "bf16"' in capsys.readouterr().out
    exported = load_backbone(out)
    assert (exported.assumed, exported.notes) == ([], [])
    assert_same_features(exported.network().eval(), trainer.model.teacher["backbone"])
    assert {"rope_embed.periods", "storage_tokens", "blocks.1.mlp.w2.bias"} <= load_file(out).keys()
    assert main([str(tmp_path / "run"), "--format", "dinov2"]) == 1
    assert "its models have a table of positions, this network rotary positions" in capsys.readouterr().err
    assert main([str(tmp_path / "run"), "--format", "dinov3", "--block-chunks", "2"]) == 2
    assert "--block-chunks 2: is of --format dinov2 alone" in capsys.readouterr().err


# --- other libraries --------------------------------------------------------------------------------------------------


@torch.no_grad()
def assert_equal_tokens(backbone: Backbone, theirs: Features, any_size: bool) -> None:
    for place, size in enumerate(SIZES if any_size else SIZES[:1]):
        crops = images(size, place)
        torch.testing.assert_close(theirs(crops), ours(backbone)(crops), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "changes", "any_size"), WRITTEN, ids=[case[0] for case in WRITTEN])
@pytest.mark.parametrize("library", ["timm", "huggingface"])
def test_libraries_compute_our_features(
    library: str, name: str, changes: list[str], any_size: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they read what was written, by the printed command, and ours reads it again."""
    backbone = configured_file(changes, tmp_path / "ours.safetensors")
    out = tmp_path / ("timm.safetensors" if library == "timm" else "folder")
    arguments = [str(tmp_path / "ours.safetensors"), "--format", library, "-o", str(out)]
    if not any_size:
        assert main(arguments) == 2
        assert "images of other sizes than 32 x 32 differ. To write it" in capsys.readouterr().err
        assert not out.exists()
        arguments.append("--allow-differences")
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    theirs = printed_call(printed, "timm" if library == "timm" else "transformers").eval()
    as_tokens = features_of(theirs)
    assert_equal_tokens(backbone, as_tokens, any_size)
    if not any_size and library == "timm":
        with pytest.raises(AssertionError), torch.no_grad():
            as_tokens(torch.zeros(1, 3, 64, 64))  # so it says itself
    again = load_backbone(out)
    assert again.assumed == []
    if library == "huggingface":
        assert_bits(backbone.network, again.state)
        theirs.save_pretrained(tmp_path / "theirs")
        assert load_file(out / "model.safetensors").keys() == load_file(tmp_path / "theirs/model.safetensors").keys()
    if any_size:
        with torch.no_grad():
            found, expected = again.network().eval()(torch.zeros(1, 3, 48, 32)), backbone(torch.zeros(1, 3, 48, 32))
        assert torch.equal(found.cls, expected.cls) and torch.equal(found.patch, expected.patch)


def assert_bits(backbone: VisionTransformer, state: dict[str, Tensor]) -> None:
    """But for a norm that only trainings have, and a LayerScale of ones."""
    for name, value in backbone.state_dict().items():
        assert name.startswith("local_cls_norm") or torch.equal(state[name], value), name
    assert all((value == 1).all() for name, value in state.items() if name not in backbone.state_dict())


def test_images_are_prepared_as_ours_are(run: tuple[Path, Trainer], tmp_path: Path) -> None:
    from transformers import AutoImageProcessor  # takes seconds

    out = tmp_path / "folder"
    shutil.copytree(run[0], tmp_path / "run")
    config = OmegaConf.load(tmp_path / "run" / "config.yaml")
    config.data.mean, config.data.std = [0.4, 0.5, 0.6], [0.1, 0.2, 0.3]
    OmegaConf.save(config, tmp_path / "run" / "config.yaml")
    assert main([str(tmp_path / "run"), "--format", "huggingface", "-o", str(out), "--allow-differences"]) == 0
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    theirs = AutoImageProcessor.from_pretrained(out)(Image.fromarray(noise), return_tensors="pt").pixel_values[0]
    for place in (tmp_path / "run", out):
        backbone = dinoswap.load_backbone(place)
        assert backbone.config["mean"] == [0.4, 0.5, 0.6]
        torch.testing.assert_close(backbone.transform(Image.fromarray(noise)), theirs, rtol=0, atol=1.01 / 255 / 0.1)


@pytest.mark.parametrize(
    ("changes", "any_size"),
    [([], False), (BY_SIZE, True), (["preset=dinov3", "position.dtype=fp32"], True)],
    ids=["offset", "resampled", "rotary"],
)
def test_onnxruntime_computes_our_features(
    changes: list[str], any_size: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    backbone = configured_file(changes, tmp_path / "ours.safetensors")
    graph = tmp_path / "backbone.onnx"
    assert main([str(tmp_path / "ours.safetensors"), "--format", "onnx", "-o", str(graph)]) == 0
    assert ("of any size up to 4096" if any_size else "of 32 x 32 alone") in capsys.readouterr().out
    assert_equal_tokens(backbone, of_onnx(graph), any_size)


def test_a_rotation_in_bfloat16_is_not_that_of_a_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", *SWIGLU)
    for library in ("timm", "huggingface"):
        assert main([str(tmp_path / "run"), "--format", library]) == 2
        assert "position.dtype=bf16: rotations are computed in float32 there" in capsys.readouterr().err
    assert main([str(tmp_path / "run"), "--format", "huggingface", "--allow-differences"]) == 0
    assert "position.dtype=bf16: rotations are computed in float32 there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.norm=rmsnorm"], "model.norm=rmsnorm"),
        (["preset=dinov3", "model.cls_norm=true"], "model.cls_norm"),
        (["preset=dinov3", "position.normalise=max"], "position.normalise=max"),
        (["preset=dinov3", "position.base=null", "position.periods=[1,100]"], "position.periods=[1"),
    ],
)
def test_a_network_that_no_library_has(
    changes: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run", *changes)
    for library in ("timm", "huggingface"):
        assert main([str(tmp_path / "run"), "--format", library, "--allow-differences"]) == 1
        assert message in capsys.readouterr().err


def test_a_weight_file_of_another_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of timm's, with what it does not say told; the file that is read is never written."""
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model("vit_small_patch16_dinov3_qkvb", depth=1).state_dict(), "timm.pth")
    assert main(["timm.pth", "--format", "dinov3", "-o", "v3.safetensors"]) == 0
    printed = capsys.readouterr()
    assert "timm.pth: does not say, so as in published models: num_heads 6, norm_eps 1e-05" in printed.err
    assert "timm.pth: there is no mask token" in printed.err
    assert {"blocks.0.attn.qkv.bias_mask", "storage_tokens"} <= load_file("v3.safetensors").keys()
    assert main(["v3.safetensors", "-o", "v3.safetensors"]) == 2
    assert "v3.safetensors: is what is to be read" in capsys.readouterr().err
    assert main(["v3.safetensors", "--network", "student"]) == 2
    assert main(["v3.safetensors", "--format", "dinov3"]) == 0
    assert load_backbone("backbone.pth").architecture["norm_eps"] == 1e-5


def test_what_cannot_be_exported(run: tuple[Path, Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert "neither a run folder" in capsys.readouterr().err
    assert main([str(run[0]), "--format", "dinov2", "--block-chunks", "3"]) == 1
    assert "block_chunks=3" in capsys.readouterr().err
    assert main([str(run[0]), "-o", str(tmp_path / "none" / "x.pth")]) == 1
    assert main([str(run[0]), "-o", str(tmp_path / "x.bin")]) == 2
    assert "its name has to end in .safetensors or .pth" in capsys.readouterr().err
    edited = tmp_path / "edited"
    shutil.copytree(run[0], edited)
    config = OmegaConf.load(edited / "config.yaml")
    config.evaluation.imges = 3
    OmegaConf.save(config, edited / "config.yaml")
    assert main([str(edited)]) == 2
    assert "evaluation.imges" in capsys.readouterr().err
    with pytest.raises(SystemExit) as refused:
        main([str(run[0]), "--format", "tensorflow"])
    assert refused.value.code == 2


def test_help_fits_a_screen() -> None:
    lines = parser().format_help().splitlines()
    assert len(lines) <= 26
    assert max(map(len, lines)) <= 88
