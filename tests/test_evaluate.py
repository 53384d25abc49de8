"""`dinoswap-eval` on a run, on one of its checkpoints, and on a weight file; what it refuses, and with which status."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from dinoswap import export
from dinoswap.config.facts import DataFacts
from dinoswap.evaluate import beside_others, data_name, main, parser
from dinoswap.nn.weights import dinov2
from dinoswap.nn.weights.save import exported
from options import build_option
from run_folders import write_run

FEW = ["metric=[knn,linear,features]", "evaluation.images=60"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    trainer = write_run(folder)
    save_file(dinov2.export(trainer.model.teacher["backbone"]), folder.parent / "weights.safetensors")  # type: ignore[arg-type]
    return folder


def evaluation(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    assert {path.name for path in folder.glob("*.png")} >= {"pca.png", "accuracy.png"}
    return content


def test_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), *FEW, "evaluation.linear_probe=true"]) == 0
    found = evaluation(run / "evaluation" / "embedded")
    assert found["fingerprint"] == build_option("data/embedded").fingerprint()
    assert (run / "evaluation" / "embedded" / "crops.png").exists()
    assert found["step"] == 1
    assert found["network"] == "teacher"
    assert found["evaluation"]["images"] == 60
    rows = ["eval", "baseline/random_init", "baseline/raw_pixels", "baseline/colour_histogram"]
    wanted = {f"{row}/{score}" for row in rows for score in ("knn_top1", "linear_top1")}
    wanted |= {"eval/knn_patch_top1", "eval/rankme", "eval/dino/prototypes_used", "eval/ibot/target_entropy"}
    assert wanted <= set(found["metrics"])
    printed = capsys.readouterr().out
    for text in ("random init", "raw pixels", "colour histogram", "verdict: ", "k-NN CLS"):
        assert text in printed


def test_student_and_first_checkpoint_have_folders_of_their_own(run: Path, tmp_path: Path) -> None:
    """At step 0 both networks are the random initialisation; at step 1 the teacher has hardly moved."""
    first = run / "checkpoints" / "step-00000000"
    assert main([str(first), *FEW]) == 0
    assert main(["--network", "student", str(run), *FEW]) == 0
    assert main([str(run), *FEW, "-o", str(tmp_path)]) == 0
    start = evaluation(run / "evaluation" / "embedded-step-00000000")["metrics"]
    student, teacher = evaluation(run / "evaluation" / "embedded-student"), evaluation(tmp_path)
    assert (student["network"], student["step"], teacher["network"]) == ("student", 1, "teacher")
    assert start["eval/knn_top1"] == start["baseline/random_init/knn_top1"]
    moved = {name: abs(found["metrics"]["eval/feature_std"] - start["eval/feature_std"])
             for name, found in (("student", student), ("teacher", teacher))}  # fmt: skip
    assert moved["student"] > 20 * moved["teacher"] > 0


def test_a_weight_file_is_judged_like_the_run_it_is_of(run: Path, tmp_path: Path) -> None:
    weights, settings = run.parent / "weights.safetensors", [*FEW, "evaluation.linear_probe=false"]
    assert main([str(run), *settings, "-o", str(tmp_path / "run")]) == 0
    assert main([str(weights), "--heads", "2", *settings, "-o", str(tmp_path / "weights")]) == 0
    of_run, of_weights = (evaluation(tmp_path / name)["metrics"] for name in ("run", "weights"))
    known = [name for name in of_weights if "random_init" not in name]  # a file does not say how it was initialised
    assert {name: of_weights[name] for name in known} == pytest.approx({name: of_run[name] for name in known})
    assert set(of_run) - set(of_weights) == {n for n in of_run if "target" in n or "prototype" in n}  # it has no heads


ELSEWHERE = [*FEW, "evaluation.linear_probe=false", "evaluation.size=40"]
"""At a size that is not that of the run's crops."""


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A run with heads, resampling and mean of its own, and what is measured of it."""
    folder = tmp_path_factory.mktemp("judged")
    own = [
        "model.interpolate_offset=0",
        "model.interpolate_antialias=true",
        "data.mean=[0.3,0.6,0.5]",
        "model.num_heads=4",
    ]
    write_run(folder / "run", *own)
    assert main([str(folder / "run"), *ELSEWHERE, "-o", str(folder / "out")]) == 0
    return folder / "run", evaluation(folder / "out")["metrics"]


@pytest.mark.parametrize("form", ["safetensors", "huggingface", "timm"])
def test_an_export_is_judged_like_the_run_it_is_of(
    form: str, judged: tuple[Path, dict[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, of_run = judged
    out = tmp_path / ("folder" if form == "huggingface" else "weights.safetensors")
    assert export.main([str(run), "--format", form, "-o", str(out)]) == 0
    capsys.readouterr()
    assert main([str(out), *ELSEWHERE, "-o", str(tmp_path / "same")]) == 0
    assert "does not say" not in capsys.readouterr().err
    of_weights = evaluation(tmp_path / "same")["metrics"]
    known = [name for name in of_weights if "random_init" not in name]
    assert {name: of_weights[name] for name in known} == pytest.approx({name: of_run[name] for name in known})
    assert main([str(out), *ELSEWHERE, "data.mean=[0.5,0.5,0.5]", "-o", str(tmp_path / "other")]) == 0
    assert evaluation(tmp_path / "other")["metrics"] != of_weights


def test_what_a_file_does_not_say_is_said(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run.parent / "weights.safetensors"), "--heads", "2", *FEW, "-o", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert "weights.safetensors does not say, so as in published models, or as you say (--heads N, data.mean" in said
    assert "interpolate_offset 0.0, interpolate_antialias True, mean [0.485, 0.456, 0.406], std" in said
    assert "size 32" in said


def test_a_folder_in_the_layout_of_dinov3_is_judged_like_the_run_it_is_of(tmp_path: Path) -> None:
    """At the size of the run's crops, with no number of heads given."""
    trainer = write_run(tmp_path / "run", "preset=dinov3")
    tensors, metadata = exported(trainer.model.teacher["backbone"])  # type: ignore[arg-type]
    (tmp_path / "weights").mkdir()
    save_file(tensors, tmp_path / "weights" / "model.safetensors", metadata)
    settings = [*FEW, "evaluation.linear_probe=false"]
    for name in ("run", "weights"):
        assert main([str(tmp_path / name), *settings, "-o", str(tmp_path / "out" / name)]) == 0
    of_run, of_weights = (evaluation(tmp_path / "out" / name)["metrics"] for name in ("run", "weights"))
    known = [name for name in of_weights if "random_init" not in name]
    assert {name: of_weights[name] for name in known} == pytest.approx({name: of_run[name] for name in known})


def test_a_run_from_before_some_keys_is_judged_as_it_was(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "older", ignore=shutil.ignore_patterns("evaluation"))
    path = tmp_path / "older" / "config.yaml"
    config: Any = OmegaConf.to_container(OmegaConf.load(path))
    keys = "data.tile data.mean augmentation.jitter masking.scope model.interpolate_offset trainer.max_nonfinite_steps"
    for section, key in (full_key.split(".") for full_key in keys.split()):
        del config[section][key]
    del config["teacher_dropout"], config["objectives"]["dino"]["targets"]["iterations"]
    OmegaConf.save(OmegaConf.create(config), path)
    judged = []
    for folder in (run, path.parent):
        assert (
            main([str(folder), *FEW, "evaluation.linear_probe=false", "-o", str(tmp_path / "out" / folder.name)]) == 0
        )
        judged.append(evaluation(tmp_path / "out" / folder.name)["metrics"])
    assert judged[0] == judged[1]


def test_another_data_set(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image  # a folder per class, of one colour each

    for part, count in (("train", 6), ("test", 3)):
        for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
            folder = tmp_path / "colours" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (40 + i, 36), colour).save(folder / f"{i}.png")
    (tmp_path / "colours" / "photo.heic").touch()
    (tmp_path / "all" / "masks").mkdir(parents=True)
    (tmp_path / "colours").rename(tmp_path / "all" / "masks" / "colours")
    (tmp_path / "all").rename(tmp_path / "colours")
    assert main([str(run), "data=image_folder", f"data.path={tmp_path / 'colours'}", *FEW]) == 0
    found = evaluation(run / "evaluation" / "image_folder-colours")
    assert found["metrics"]["baseline/colour_histogram/knn_top1"] == 100
    assert found["data"]["batch_size"] == 8  # the run's own
    assert found["data"]["test_fraction"] == 0  # the run's is of its data set
    printed = capsys.readouterr()
    assert printed.out.startswith("data: 12 images of 2 classes (blue, red) by folder; 6 test images; RGB, 8 bit")
    assert "ignored: 1 .heic" in printed.out and "12 of 12 images lie in folders called masks" in printed.err


@pytest.mark.parametrize(
    ("overrides", "status", "message"),
    [
        (["data=parqet"], 2, "'parquet'"),
        (["evaluation.imges=3"], 2, "evaluation.images"),
        (["evaluation.images=0"], 2, "evaluation.images=0"),
        (["evaluation.images=many"], 2, "evaluation.images=many"),
        (["model.patch_size=4"], 2, "model.patch_size=4"),
        (["data=parquet"], 2, "data.path"),
        (["data.path=x"], 2, "data.path"),
        (["data=image_folder", "data.path=/none/such"], 2, "/none/such"),
        (["trainer.device=cuda:99"], 2, "cuda:99"),
    ],
)
def test_what_is_refused(
    run: Path, overrides: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), *overrides]) == status
    assert message in capsys.readouterr().err


def test_what_cannot_be_judged(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert main([str(run.parent / "weights.safetensors"), "--heads", "2", "--network", "student"]) == 2
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    assert main([str(tmp_path / "other.pth")]) == 1
    assert "cls_token" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert main([str(tmp_path / "empty")]) == 1
    assert "no whole checkpoint" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run")
    (tensors,) = (tmp_path / "run" / "checkpoints" / "step-00000001").glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert main([str(tensors.parent), *FEW]) == 1
    assert main([str(tmp_path / "run"), *FEW, "-o", str(tmp_path / "out")]) == 0
    assert "step-00000001" in capsys.readouterr().err
    assert evaluation(tmp_path / "out")["step"] == 0


def test_names_of_data_sets() -> None:
    def name(option: str, **section: Any) -> str:
        return data_name({"_target_": f"dinoswap.data.{option}.Class", **section})

    assert name("embedded", tile=32) == "embedded"
    assert name("parquet", path="/data/cifar10/") == "parquet-cifar10"
    assert name("torchvision", name="CIFAR10", path="/data") == "torchvision-CIFAR10"
    assert name("webdataset", path="/data/train-{000..127}.tar") == "webdataset-train-_000..127_.tar"


def test_another_data_set_of_the_same_name_is_judged_beside(tmp_path: Path) -> None:
    here, there = (DataFacts(path, 10, 5, 4 * digits) for path, digits in (("/a/x", "0123"), ("/b/x", "4567")))
    out = tmp_path / "image_folder-x"
    assert beside_others(out, here) == out
    out.mkdir()
    (out / "evaluation.json").write_text(json.dumps({"fingerprint": here.fingerprint}))
    assert beside_others(out, here) == out
    assert beside_others(out, there) == tmp_path / "image_folder-x-45674567"
    for unknown in ("{}", "{", "[]"):
        (out / "evaluation.json").write_text(unknown)
        assert beside_others(out, here) == tmp_path / "image_folder-x-01230123"


def test_help_fits_a_screen() -> None:
    lines = parser().format_help().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 88
