"""Arms at the reference's weights: angles by a naive loop from the formula, what changes nothing, what cannot be
compared, and the command from end to end.
"""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from dinoswap.build import build_pipeline, build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.config.facts import build_source
from dinoswap.rng import seed_torch
from dinoswap.studies import ablate
from dinoswap.studies.design import make_design
from dinoswap.studies.study import read_study
from dinoswap.studies.twins.compare import Comparison, angle, compare, parts_of
from dinoswap.studies.twins.page import rank_correlation

BASE = ["recipe=smoke", "model.drop_path=0.3", "trainer.max_steps=4", "data.workers=0", "tracker=none"]
FEW = ["trainer.eval_every=0", "evaluation.images=20", "metric=[knn]"]
FACTORS = {
    "masking": ["block", "bernoulli"],
    "weight_decay": ["all_groups", "backbone_only"],
    "clustering": ["none", "visible"],
    "layer_decay": ["layerwise", "uniform"],
    "model.ffn": ["mlp", "swiglu"],
}


def study_file(folder: Path, factors: dict[str, list[str]] = FACTORS) -> Path:
    path = folder / "mine.yaml"
    path.write_text(
        f"# What does each do?\nbase: {json.dumps([*BASE, *FEW, f'results_dir={folder}'])}\n"
        f"factors: {json.dumps(factors)}\ndesign: one_at_a_time\nseeds: [3]\nmetrics: {{eval/knn_top1: 1.0}}\n"
    )
    return path


@pytest.fixture(scope="module")
def at_the_start(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    study = read_study(study_file(tmp_path_factory.mktemp("study")))
    return compare(make_design(study, check=False).cells, 3, {0: None}, batches=2)


def naive_gradients(overrides: list[str], steps: list[int]) -> dict[str, list[float]]:
    """The mean gradient of the weighted loss, written as a loop over the public parts of a run."""
    config = compose_config([*BASE, *overrides, "seed=3"])
    trainer = build_trainer(config)
    dataset = build_pipeline(config, trainer.model)(build_source(config).train())
    mean, std = (torch.tensor(config["data"][key]) for key in ("mean", "std"))
    total: dict[str, torch.Tensor] = {}
    for step in steps:
        trainer.model.zero_grad()
        seed_torch(3, "step", step, 0)
        loss, _ = trainer.model(dataset[step].normalised(mean, std), trainer.schedules.at(0))
        loss.backward()
        for name, parameter in trainer.model.student.named_parameters():
            if parameter.grad is not None:
                total[name] = total.get(name, torch.zeros_like(parameter)) + parameter.grad
    return {name: (value.double() / len(steps)).flatten().tolist() for name, value in total.items()}


def degrees(a: list[float], b: list[float]) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return math.degrees(math.acos(dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))))


@pytest.mark.parametrize("part", ["backbone", "block 2", "ibot_head"])
def test_angles_are_those_of_a_naive_loop(at_the_start: Comparison, part: str) -> None:
    reference, arm = naive_gradients([], [0, 1]), naive_gradients(["masking=bernoulli"], [0, 1])
    other = naive_gradients([], [2, 3])
    names = [name for name in reference if part in parts_of(name)]
    a, b, c = ([value for name in names for value in side[name]] for side in (reference, arm, other))
    (turn,) = at_the_start.angles("masking=bernoulli", "gradient", part)
    assert turn.angle == pytest.approx(degrees(a, b), rel=1e-4)
    assert turn.ratio == pytest.approx(math.hypot(*b) / math.hypot(*a), rel=1e-5)
    assert turn.floor == pytest.approx(degrees(a, c), rel=1e-4)


def test_what_changes_no_gradient_has_none_turned(at_the_start: Comparison) -> None:
    for arm in ("weight_decay=backbone_only", "layer_decay=uniform"):
        assert {turn.angle for turn in at_the_start.turns if (turn.arm, turn.measure) == (arm, "gradient")} == {0.0}
    (turn,) = at_the_start.angles("layer_decay=uniform", "update")
    assert turn.angle > 1


def test_what_the_reference_has_not_is_named(at_the_start: Comparison) -> None:
    assert at_the_start.own["clustering=visible"] == ["prototype_bank.weight", "prototype_bank.bias"]
    assert at_the_start.own["masking=bernoulli"] == []
    (targets,) = [apart for apart in at_the_start.targets if apart.arm == "masking=bernoulli" and apart.name == "dino"]
    assert targets.value == 0  # the same crops and teacher


@pytest.mark.parametrize("degrees_apart", [0.0, 1e-6, 0.01, 30.0, 90.0, 179.0])
def test_an_angle_is_exact_where_cosines_are_not(degrees_apart: float) -> None:
    turned = math.radians(degrees_apart)
    a, b = torch.tensor([2.0, 0.0]).double(), torch.tensor([math.cos(turned), math.sin(turned)]).double()
    assert angle(a, b) == pytest.approx(degrees_apart, rel=1e-6, abs=1e-12)
    assert math.isnan(angle(a, 0 * b))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It trains the reference once, and begins every arm from each of its checkpoints that can begin there."""
    path, out = study_file(tmp_path, {key: FACTORS[key] for key in ("weight_decay", "model.ffn")}), tmp_path / "page"
    effects = [{"name": f"{arm}", "mean": 1.0, "low": None, "high": None} for arm in ["model.ffn=swiglu"]]
    report = tmp_path / "report.json"
    report.write_text(json.dumps({"results": [{"metric": {"name": "eval/knn_top1"}, "effects": effects}]}))
    command = [
        "dinoswap-ablate",
        "twins",
        str(path),
        "trainer.max_steps=2",
        "--batches",
        "1",
        "--report",
        str(report),
        "-o",
        str(out),
    ]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        ablate.main()
    printed = capsys.readouterr().out
    assert ended.value.code == 0, printed
    content = json.loads((out / "twins.json").read_text())
    assert content["steps"] == [0, 1, 2]
    assert {turn["step"] for turn in content["turns"] if turn["arm"] == "weight_decay=backbone_only"} == {0, 1, 2}
    assert {turn["step"] for turn in content["turns"] if turn["arm"] == "model.ffn=swiglu"} == {0}
    assert "model.ffn" in content["refused"]["model.ffn=swiglu"]
    assert "weight_decay=backbone_only leaves it as it is." in printed
    page = (out / "twins.html").read_text()
    assert "Of 1 arm that" in page
    assert "too few" in page
    assert (out / "figures/twins_gradient.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches", "0"], "--batches 0: at least one"),
        (["--from", "/nowhere"], "--from /nowhere: no run with checkpoints"),
        (["--from", "/nowhere", "--report", "/nowhere.json"], "no run with checkpoints"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = study_file(tmp_path, {"masking": ["block", "bernoulli"]})
    monkeypatch.setattr(sys, "argv", ["dinoswap-ablate", "twins", str(path), *arguments])
    with pytest.raises(SystemExit) as ended:
        ablate.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_arms_that_begin_elsewhere_are_refused(tmp_path: Path) -> None:
    from dinoswap.config.schema import ConfigError
    from dinoswap.studies.twins.trajectory import require_one_start

    path = study_file(tmp_path, {"start": ["random", "run"]})
    with pytest.raises(ConfigError, match="varies what runs begin from"):
        require_one_start(read_study(path))


@pytest.mark.parametrize(("second", "rho", "share"), [([2.0, 5.0, 9.0], 1.0, 2 / 6), ([2.0, 9.0, 5.0], 0.5, 1.0)])
def test_three_arms_in_one_order_are_no_proof(second: list[float], rho: float, share: float) -> None:
    """Two of the six orders of three values have a correlation of 1 or -1, all have one of at least a half."""
    assert rank_correlation([1.0, 2.0, 4.0], second) == pytest.approx((rho, share))
