"""run -> tools/export.py -> load_backbone -> the same features, bit for bit, in either layout."""

import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.load import load_backbone
from dinoswap.trainer import Trainer
from run_folders import write_run
from small_models import load_tool, small_batch

README = Path(__file__).parents[1] / "README.md"
SWIGLU = "+model.ffn=swiglu"
DINOV3 = ["preset=dinov3", "model.ffn=swiglu", "model.registers=1", "model.key_bias=false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    folder = tmp_path_factory.mktemp("export") / "run"
    return folder, write_run(folder)


def loaded(path: Path) -> VisionTransformer:
    """As a user without the run loads it: the number of heads is all there is to know."""
    return load_backbone(path, num_heads=2).network().eval()


@torch.no_grad()
def assert_same_features(exported: VisionTransformer, original: torch.nn.Module) -> None:
    crops, mask = small_batch(3).global_crops[0], small_batch(3).mask[0]
    original.eval()
    for tokens, wanted in ((exported(crops), original(crops)), (exported(crops, mask), original(crops, mask))):
        for name in ("cls", "registers", "patch"):
            assert torch.equal(getattr(tokens, name), getattr(wanted, name)), name


@pytest.mark.parametrize("chunks", [0, 1, 2])
@pytest.mark.parametrize(("form", "suffix"), [("safetensors", ".safetensors"), ("torch", ".pth")])
def test_exported_teacher_has_the_same_features(
    run: tuple[Path, Trainer], form: str, suffix: str, chunks: int, tmp_path: Path
) -> None:
    folder, trainer = run
    out = tmp_path / f"weights{suffix}"
    arguments = [str(folder), "--format", form, "--block-chunks", str(chunks), "-o", str(out)]
    assert load_tool("export").main(arguments) == 0
    assert_same_features(loaded(out), trainer.model.teacher["backbone"])
    student = trainer.model.student["backbone"].eval()
    assert not torch.equal(loaded(out)(small_batch(3).global_crops[0]).cls, student(small_batch(3).global_crops[0]).cls)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]  # no temporary file is left


def test_the_readme_shows_how_to_load_it(
    run: tuple[Path, Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, trainer = run
    monkeypatch.chdir(tmp_path)
    assert load_tool("export").main([str(folder), "--format", "safetensors", "-o", "backbone.safetensors"]) == 0
    (block,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    names = {"images": small_batch(3).global_crops[0]}
    with torch.no_grad():
        exec(block, names)  # our own page
    assert_same_features(names["backbone"], trainer.model.teacher["backbone"])
    assert names["tokens"].patch.ndim == 3


def test_names_are_those_of_a_chunked_model(run: tuple[Path, Trainer], tmp_path: Path) -> None:
    out = tmp_path / "weights.pth"
    assert load_tool("export").main([str(run[0]), "--format", "torch", "--block-chunks", "2", "-o", str(out)]) == 0
    names = torch.load(out, weights_only=True)
    assert {"blocks.0.0.norm1.weight", "blocks.1.1.mlp.fc2.bias", "mask_token"} <= set(names)
    assert not any(name.startswith("blocks.0.norm1") for name in names)


def test_any_checkpoint_of_the_run(run: tuple[Path, Trainer], tmp_path: Path) -> None:
    """That of step 0 holds the initial weights, which the default, the newest, does not."""
    folder, trainer = run
    out = tmp_path / "first.safetensors"
    assert load_tool("export").main([str(folder / "checkpoints" / "step-00000000"), "-o", str(out)]) == 0
    first = loaded(out).state_dict()
    newest = trainer.model.teacher["backbone"].state_dict()
    assert any(not torch.equal(first[name], newest[name]) for name in first)


def test_default_place_is_the_run_folder(tmp_path: Path) -> None:
    trainer = write_run(tmp_path / "run", SWIGLU)
    assert load_tool("export").main([str(tmp_path / "run")]) == 0
    assert_same_features(loaded(tmp_path / "run" / "backbone.safetensors"), trainer.model.teacher["backbone"])


def test_a_network_with_rotary_positions_has_the_names_of_dinov3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its file says all that the features depend on: no number of heads has to be given."""
    trainer, main = write_run(tmp_path / "run", *DINOV3), load_tool("export").main
    assert main([str(tmp_path / "run")]) == 0
    assert '"dtype": "bf16"' in capsys.readouterr().out
    out = tmp_path / "run" / "backbone.safetensors"
    exported = load_backbone(out)
    assert (exported.assumed, exported.notes) == ([], [])
    assert_same_features(exported.network().eval(), trainer.model.teacher["backbone"])
    assert {"rope_embed.periods", "storage_tokens", "blocks.1.mlp.w2.bias"} <= load_file(out).keys()
    assert main([str(tmp_path / "run"), "--block-chunks", "2"]) == 1
    assert "block_chunks=2: dinov3's models, whose layout this is, have none" in capsys.readouterr().err


def test_a_weight_file_of_another_layout(
    run: tuple[Path, Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of timm's, with what it does not say told; the file that is read is never written."""
    monkeypatch.chdir(tmp_path)
    main = load_tool("export").main
    torch.save(timm.create_model("vit_small_patch16_dinov3_qkvb", depth=1).state_dict(), "timm.pth")
    assert main(["timm.pth"]) == 0
    printed = capsys.readouterr()
    assert "timm.pth: does not say, so as in published models: num_heads 6, norm_eps 1e-05" in printed.err
    assert "timm.pth: there is no mask token" in printed.err
    assert {"blocks.0.attn.qkv.bias_mask", "storage_tokens"} <= load_file("backbone.safetensors").keys()
    assert main(["backbone.safetensors"]) == 2
    assert "backbone.safetensors: is the file to read" in capsys.readouterr().err
    assert main(["backbone.safetensors", "--format", "torch"]) == 0


def test_what_cannot_be_exported(run: tuple[Path, Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = load_tool("export").main
    assert main([str(tmp_path / "none")]) == 2
    assert "neither a run folder" in capsys.readouterr().err
    assert main([str(run[0]), "--block-chunks", "3"]) == 1
    assert "block_chunks=3" in capsys.readouterr().err
    assert main([str(run[0]), "-o", str(tmp_path / "none" / "x.pth")]) == 1
    edited = tmp_path / "edited"
    shutil.copytree(run[0], edited)
    config = OmegaConf.load(edited / "config.yaml")
    config.evaluation.imges = 3
    OmegaConf.save(config, edited / "config.yaml")
    assert main([str(edited)]) == 2
    assert "evaluation.imges" in capsys.readouterr().err
    with pytest.raises(SystemExit) as refused:
        main([str(run[0]), "--format", "timm"])
    assert refused.value.code == 2
