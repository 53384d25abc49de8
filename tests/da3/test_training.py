"""da3=enabled through the trainer: with every way to mask and to pass, and what a run keeps of its teacher."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from axis_arms import Arm
from dinoswap import evaluate
from dinoswap.build import frozen_identity
from dinoswap.config.schema import ConfigError
from dinoswap.da3.enabled import MaskedImageDistillation
from dinoswap.run import checkpoint, metrics
from dinoswap.run.run_folder import planned_id
from fixtures import DA3
from train_processes import TrainProcess, folder_of, tensor_files

TINY = DA3 / "da3_tiny.safetensors"
DISTILLED = ["da3=enabled", f"da3.ckpt_path={TINY}", "da3.projector_hidden_dim=32"]


def objective_of(arm: Arm) -> MaskedImageDistillation:
    objective = arm.trainer.model.objectives["da3"]
    assert isinstance(objective, MaskedImageDistillation)
    return objective


@pytest.mark.parametrize(
    "overrides",
    [
        ["forward=global_3"],
        ["forward=two_pass", "masking=bernoulli"],
        ["preset=legacy"],
        ["preset=aligned", "reduction@da3.reduction=per_sample"],
        ["clustering=separate", "masking=inverse_block"],
        ["crops.local_number=0", "trainer.accumulate=2"],
        ["da3.grid_matching=pool", "da3.precision=bf16", "trainer.precision=bf16"],
        ["da3.grid_matching=resize_tokens", "da3.teacher.token_part=local", "da3.teacher.normalise_halves=true"],
        ["teacher@da3.teacher=dinov3", "da3.teacher.variant=tiny", "da3.ckpt_path="],
        ["masking.mask_sample_probability=0.0"],
    ],
    ids=" ".join,
)
def test_two_steps(overrides: list[str]) -> None:
    """Finite, projector and backbone move, the teacher does not."""
    arm = Arm(*DISTILLED, *overrides)
    teacher = {name: value.clone() for name, value in objective_of(arm).teacher.state_dict().items()}
    before = arm.weights()
    accumulate = arm.config["trainer"]["accumulate"]
    for step in range(2):
        batches = [arm.batch(step * accumulate + micro) for micro in range(accumulate)]
        logs = arm.trainer.step(step, batches)
        assert torch.stack(list(logs.values())).isfinite().all()
        assert logs["nonfinite"] == 0
    after = arm.weights()
    assert all(torch.equal(value, teacher[name]) for name, value in objective_of(arm).teacher.state_dict().items())
    if "mask_sample_probability" not in overrides[0]:
        assert not torch.equal(before["student.da3_projector.0.weight"], after["student.da3_projector.0.weight"])
    assert not any("da3" in name and name.startswith("teacher.") for name in after)
    assert not any(name.startswith("objectives.da3") for name in after)


def test_everything_else_is_paired_with_the_arm_without() -> None:
    """Same crops, masks and initial weights; every other term of the first step is bit-identical."""
    plain, distilled = Arm(), Arm(*DISTILLED)
    one, other = plain.raw_batch(0), distilled.raw_batch(0)
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name
    weights = distilled.weights()
    assert all(torch.equal(value, weights[name]) for name, value in plain.weights().items())
    logs, more = plain.step(0), distilled.step(0)
    assert all(torch.equal(value, more[name]) for name, value in logs.items() if "/" in name and "grad" not in name)
    assert more["loss"].item() == pytest.approx(logs["loss"].item() + more["da3/cosine"].item(), abs=1e-5)


def test_the_projector_has_groups_of_its_own() -> None:
    arm = Arm(*DISTILLED, "da3.projector_lr_multiplier=0.5")
    groups = [group for group in arm.trainer.optimizer.param_groups if group["module"] == "da3_projector"]
    assert {group["wd_multiplier"] for group in groups} == {0.0, 1.0}
    assert {group["lr_multiplier"] for group in groups} == {0.5}
    named = {name for group in arm.trainer.optimizer.param_groups for name in group["names"]}
    assert named == {name for name, _ in arm.trainer.model.student.named_parameters()}


def test_teacher_and_run_are_known_by_the_weights(tmp_path: Path) -> None:
    """The same file elsewhere is the same teacher and the same run, another file neither."""
    copy = tmp_path / "da3_tiny.safetensors"
    copy.write_bytes(TINY.read_bytes())
    here, there = Arm(*DISTILLED), Arm(*DISTILLED, f"da3.ckpt_path={copy}")
    other = Arm(*DISTILLED, f"da3.ckpt_path={DA3 / 'da3_tiny_mono.safetensors'}", "da3.teacher.num_heads=2")
    assert frozen_identity(here.trainer.model) == frozen_identity(there.trainer.model)
    assert frozen_identity(here.trainer.model) != frozen_identity(other.trainer.model)
    assert planned_id(here.config) == planned_id(there.config) != planned_id(other.config)


def test_a_wrong_width_is_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"da3\.embed_dim=1024: .* 96 channels; set da3\.embed_dim=96"):
        Arm(*DISTILLED, "da3.embed_dim=1024")


def test_weights_that_cannot_be_read_are_named_by_the_key_of_their_path(tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(TINY.read_bytes()[:-8])
    with pytest.raises(ConfigError, match=r"^da3\.ckpt_path=.*cut\.safetensors: not a whole safetensors file"):
        Arm("da3=enabled", f"da3.ckpt_path={tmp_path / 'cut.safetensors'}")


def test_random_weights_are_said_loudly() -> None:
    arm = Arm("da3=enabled", "da3.projector_hidden_dim=32")
    (notice,) = objective_of(arm).notices()
    assert "RANDOM WEIGHTS" in notice
    assert objective_of(arm).teacher.network.embed_dim == 768  # small


# --- whole runs -------------------------------------------------------------------------------------------------------

RUN = [
    "recipe=smoke", *DISTILLED, "trainer.max_steps=12", "trainer.checkpoint_every=4", "trainer.eval_every=6",
    "tracker=none", "evaluation.in_loop_images=20", "evaluation.images=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    process = TrainProcess(RUN, tmp_path_factory.mktemp("da3"))
    assert process.wait() == 0, process.output
    assert "da3: teacher native" in process.output  # what the first batch showed
    return process.folder


def other_teacher(folder: Path) -> Path:
    """Weights of the same name and shapes as TINY's, one of them different."""
    weights = load_file(TINY)
    weights["model.backbone.pretrained.norm.bias"] += 1
    folder.mkdir()
    save_file(weights, folder / TINY.name)
    return folder / TINY.name


def rows(folder: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if name != "images_per_second"}
        for row in metrics.read(folder / "metrics.jsonl")
    ]


def test_a_run_logs_draws_and_keeps_no_teacher(run: Path) -> None:
    logged, final = metrics.read(run / "metrics.jsonl")[-2:]
    names = {"da3/cosine", "da3/cosine_mean", "da3/cosine_std", "da3/student_norm", "da3/teacher_norm"}
    assert {name for name in logged if name.startswith("da3/")} == names
    assert logged["da3/cosine"] == pytest.approx(1 - logged["da3/cosine_mean"], abs=1e-6)
    assert -1 <= final["eval/da3/cosine_masked"] <= 1
    assert (run / "pictures" / "da3_tokens.png").exists()
    saved = checkpoint.newest(run / "checkpoints", pytest.fail)
    assert saved is not None
    assert saved.config["da3.teacher"].startswith("native")
    assert {name for name in saved.state["model"] if "da3" in name} == {
        f"student.da3_projector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }


def test_killed_it_continues_bit_for_bit_and_with_no_other_teacher(run: Path, tmp_path: Path) -> None:
    process = TrainProcess(RUN, tmp_path)
    process.wait_for_step(5)
    assert process.signal(signal.SIGKILL) == -signal.SIGKILL, process.output
    elsewhere = [*RUN[:2], f"da3.ckpt_path={other_teacher(tmp_path / 'other')}", *RUN[3:]]
    assert folder_of(elsewhere, tmp_path) != process.folder
    refused = TrainProcess([*elsewhere, f"hydra.run.dir={process.folder}"], tmp_path)
    assert refused.wait() == 1
    assert "da3.teacher: native" in refused.output
    assert "da3.weights: " in refused.output
    assert "Traceback" not in refused.output
    continued = TrainProcess(RUN, tmp_path)
    assert continued.wait() == 0, continued.output
    assert rows(continued.folder) == rows(run)
    last = "checkpoints/step-00000012"
    assert tensor_files(continued.folder / last) == tensor_files(run / last)


def test_evaluated_with_its_teacher_only(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "evaluation"
    assert evaluate.main([str(run), "evaluation.images=20", "-o", str(out)]) == 0
    assert (out / "da3_tokens.png").read_bytes() == (run / "pictures" / "da3_tokens.png").read_bytes()
    other = other_teacher(tmp_path / "other")
    assert evaluate.main([str(run), f"da3.ckpt_path={other}", "-o", str(tmp_path / "refused")]) == 2
    assert "da3.teacher: is native" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
