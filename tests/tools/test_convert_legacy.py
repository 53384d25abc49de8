"""tools/convert_legacy.py: legacy file -> ours -> what dinoswap-eval loads, and back; a run of ours -> legacy file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dinoswap.nn.legacy_weights import from_legacy
from dinoswap.nn.weights.load import load_backbone
from legacy_checkpoint import TOKENS, TRAINING, checkpoint, networks
from run_folders import write_run
from small_models import load_tool

Convert = Callable[..., int]


@pytest.fixture
def convert() -> Convert:
    main = load_tool("convert_legacy").main
    return lambda *arguments: main([str(argument) for argument in arguments])


def test_there_and_back(convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, ours, back = (tmp_path / name for name in ("checkpoint.pth", "ours.safetensors", "back.pth"))
    torch.save(checkpoint(), theirs)
    assert convert(theirs, "-o", ours) == 0
    left_out = capsys.readouterr().out.strip().partition("left out: ")[2]
    assert left_out == "args, iteration, numpy_rng_state, optimizer_student, random_rng_state, torch_rng_state"
    assert convert(ours, "--reverse", "-o", back) == 0
    assert capsys.readouterr().out.strip().endswith("left out: nothing")
    found, expected = torch.load(back, weights_only=True), networks()
    assert found.keys() == expected.keys()
    for part, state in expected.items():
        assert found[part].keys() == state.keys()
        assert all(torch.equal(found[part][key], value) for key, value in state.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pth", "checkpoint.pth", "ours.safetensors"]


@torch.no_grad()
def test_the_teacher_is_loaded_from_it(convert: Convert, tmp_path: Path) -> None:
    """As dinoswap-eval does: its tokens are those that the legacy code computed."""
    torch.save(checkpoint(), tmp_path / "checkpoint.pth")
    assert convert(tmp_path / "checkpoint.pth", "-o", tmp_path / "ours.safetensors") == 0
    backbone = load_backbone(tmp_path / "ours.safetensors", num_heads=3).network()
    tokens = backbone(TRAINING["batch0/global_3"], TRAINING["batch0/bernoulli_mask"])
    assert (tokens.patch - TOKENS["teacher/global_3_bernoulli/patchtokens"]).abs().max() < 2e-6


def test_a_run_of_ours(convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest checkpoint of a run whose targets have a state too, which stays behind."""
    trainer = write_run(tmp_path / "run", "model.ffn=swiglu", "targets@objectives.dino.targets=centering")
    assert convert(tmp_path / "run", "--reverse", "-o", tmp_path / "legacy.pth") == 0
    assert capsys.readouterr().out.strip().endswith("left out: objectives.dino.targets.center")
    ours = from_legacy(torch.load(tmp_path / "legacy.pth", weights_only=True))
    expected = {k: v for k, v in trainer.model.state_dict().items() if not k.startswith("objectives.")}
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], value) for key, value in expected.items())


def test_what_cannot_be_converted(convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(status: int, words: str, *arguments: str | Path) -> None:
        before = sorted(tmp_path.iterdir())
        assert convert(*arguments) == status
        assert words in capsys.readouterr().err
        assert sorted(tmp_path.iterdir()) == before

    out, mlp = tmp_path / "out.safetensors", tmp_path / "mlp.safetensors"
    refused(1, "No such file", tmp_path / "none.pth", "-o", out)
    refused(2, "neither a run folder", tmp_path / "none", "--reverse", "-o", tmp_path / "out.pth")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "other.pth")
    refused(1, "neither student nor teacher among its entries (epoch, state_dict)", tmp_path / "other.pth", "-o", out)
    (tmp_path / "broken.pth").write_bytes(b"0123456789")
    refused(1, "not a whole file of tensors alone", tmp_path / "broken.pth", "-o", out)
    torch.save(checkpoint(), tmp_path / "checkpoint.pth")
    refused(1, "none", tmp_path / "checkpoint.pth", "-o", tmp_path / "none" / "out.safetensors")
    assert convert(tmp_path / "checkpoint.pth", "-o", mlp) == 0
    capsys.readouterr()
    renamed = {key.replace("mlp.w3", "mlp.fc2"): value for key, value in load_file(mlp).items()}
    save_file(renamed, mlp)
    refused(1, "a legacy network has SwiGLU", mlp, "--reverse", "-o", tmp_path / "out.pth")


@pytest.mark.parametrize(("arguments", "suffix"), [((), ".safetensors"), (("--reverse",), ".pth")])
def test_the_name_tells_the_format(
    arguments: tuple[str, ...], suffix: str, convert: Convert, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        convert(tmp_path / "any", *arguments, "-o", tmp_path / "out.bin")
    assert refused.value.code == 2
    assert suffix in capsys.readouterr().err
