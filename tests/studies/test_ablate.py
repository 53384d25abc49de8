"""`dinoswap-ablate`: what it plans, what it starts, what it says and with which exit status."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinoswap.studies import ablate, launch
from dinoswap.studies.design import Design, make_design
from dinoswap.studies.forecast import Cost, costs, detectable, seeds_that_detect, spread, spread_of
from dinoswap.studies.ledger import Entry, entries, run_statuses
from dinoswap.studies.study import Study, read_study

STUDY = """# Which masking?
base: [recipe=smoke, results_dir={results}]
factors: {{masking: [block, bernoulli], layer_decay: [layerwise, uniform]}}
design: one_at_a_time
seeds: 3
metrics: {{eval/knn_top1: 2.0}}
budget: {{hours: 4.0}}
"""


@pytest.fixture(autouse=True)
def _cache_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "mine.yaml"
    found.write_text(STUDY.format(results=tmp_path))
    return found


def runs_of(path: Path) -> tuple[Study, list[Entry]]:
    study = read_study(path)
    return study, entries(study, make_design(study, check=False).cells)


def write(entry: Entry, status: str = "completed", knn: float = 30.0, hours: float = 0.5, **fields: Any) -> None:
    record = {"run_id": entry.run_id, "status": status, "steps": 10, "metrics": {"eval/knn_top1": knn}, **fields}
    record |= {"cost": {"core_or_gpu_hours": hours}, "hardware": {"gpus": [], "threads": 1}}
    entry.folder.mkdir(parents=True, exist_ok=True)
    (entry.folder / "run.json").write_text(json.dumps(record))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["dinoswap-ablate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        ablate.main()
    return int(ended.value.code or 0)


# --- plan -------------------------------------------------------------------------------------------------------------


def test_plan_and_status_do_without_torch(path: Path) -> None:
    """Which takes seconds to import."""
    code = (
        "import sys; from dinoswap.studies.ablate import main\ntry: main()\nexcept SystemExit as e: assert not e.code\n"
    )
    for name in ("plan", "status"):
        done = subprocess.run(
            [sys.executable, "-c", f"{code}assert 'torch' not in sys.modules", name, path],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "9 runs: 9 missing" in done.stdout


def test_plan_before_anything_is_run(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """3 seeds: t quantiles of 2 degrees of freedom."""
    assert command(monkeypatch, "plan", path) == 0
    output = capsys.readouterr().out
    assert "mine: Which masking?" in output
    for cell in ("reference", "masking=bernoulli", "layer_decay=uniform"):
        assert cell in output
    assert "9 runs to come; of their cost nothing is known, --probe" in output
    assert "standard deviations of the difference" in output
    assert "--sd" in output
    assert "warning" not in output


def test_plan_half_way(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The reference costs 0.5 hours, measured; the others are taken to cost as much. 2 x 3 runs are left and one more
    is half done: 3.25 of 4.5 hours, which is more than the budget of 4."""
    _, wanted = runs_of(path)
    for entry in wanted[:2]:
        write(entry)
    write(wanted[2], "preempted", steps=5)
    assert command(monkeypatch, "plan", path) == 0
    output = capsys.readouterr().out
    assert "7 runs to come, 3.25 core-hours" in output
    assert "warning: all runs together take 4.5 core-hours, more than the budget of 4" in output
    assert "0.5 (finished runs)" in output
    assert output.count("0.5 (other cells)") == 2


def test_runs_of_other_studies_tell_the_cost_too(path: Path) -> None:
    _, wanted = runs_of(path)
    elsewhere = wanted[3].folder.parents[2] / "other" / wanted[3].run_id / "seed9"
    write(Entry(cell="", seed=9, overrides=[], config={}, folder=elsewhere), hours=0.25)
    write(wanted[3], hours=0.75)
    write(wanted[4], "failed", hours=99.0)
    assert costs(wanted) == {
        "reference": Cost(0.5, False, "other cells"),
        "masking=bernoulli": Cost(0.5, False, "finished runs"),
        "layer_decay=uniform": Cost(0.5, False, "other cells"),
    }


@pytest.mark.slow
def test_a_probe_times_some_steps(path: Path) -> None:
    """Of runs of 600 steps, which would take much longer; what it finds agrees with its rate, within the noise of a
    machine that does other things as well."""
    study = read_study(path, ["trainer.max_steps=600"])
    wanted = entries(study, make_design(study, check=False).cells)
    found = costs(wanted[:1], probing=True)["reference"]
    assert found.source == "a probe, without evaluations"
    seconds = found.hours * 3600
    assert 600 * 0.002 < seconds < 600 * 5  # 2 ms to 5 s a step
    assert not (path.parent / "runs").exists()


def test_the_spread_is_that_of_paired_differences(path: Path) -> None:
    study, wanted = runs_of(path)
    values = np.random.default_rng(0).normal(30, 3, (3, 3))  # cells, seeds
    for entry, value in zip(wanted, values.ravel(), strict=True):
        write(entry, knn=float(value))
    sd, df = spread(wanted, run_statuses([entry.folder for entry in wanted]), study.metrics[0]) or (0, 0)
    differences = values[1:] - values[0]
    assert df == 4
    assert sd == pytest.approx(math.sqrt(differences.var(axis=1, ddof=1).mean()))
    assert spread(wanted[:3], run_statuses([entry.folder for entry in wanted[:3]]), study.metrics[0]) is None


def test_one_seed_is_a_warning_and_two_are_not(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seeds, warns in ((1, True), (2, False)):
        assert command(monkeypatch, "plan", path, f"seeds={seeds}", "--sd", "0.01") == 0
        assert ("warning: with one seed no difference" in capsys.readouterr().out) == warns


@pytest.mark.parametrize(("sd", "warns"), [(0.1, False), (3.0, True)])
def test_plan_warns_when_it_cannot_see_what_matters(
    sd: float, warns: bool, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "plan", path, "--sd", str(sd), "seeds=6") == 0
    output = capsys.readouterr().out
    assert ("warning: the smallest effect of interest is 2" in output) == warns
    assert f"standard deviation of {sd:g} (as given)" in " ".join(output.split())


def test_what_is_detectable_is_found_in_four_of_five_studies(path: Path) -> None:
    """20,000 simulated comparisons of 6 seeds, at the alpha that two arms share: standard error of the rate 0.3 %."""
    from scipy.stats import ttest_1samp

    study = read_study(path, ["seeds=6"])
    (size,) = detectable(study, make_design(study, check=False), 1.5).values()
    draws = np.random.default_rng(1).normal(size, 1.5, (20_000, 6))
    assert (ttest_1samp(draws, 0, axis=1).pvalue < 0.05 / 2).mean() == pytest.approx(0.8, abs=0.01)


def test_a_crossed_plan_knows_what_effects_are_tested_against(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With guesses it says what effects that vary between seeds would change; of finished runs it takes the larger of
    seed x effect and the residual, where pairs of cells would count every factor in which they differ."""
    study = read_study(path, ["design=factorial", "seeds=4"])
    design = make_design(study, check=False)
    wanted = entries(study, design.cells)
    same, larger = (next(iter(detectable(study, design, 2.0, seed_sd=sd).values())) for sd in (0.0, math.sqrt(2)))
    assert larger == pytest.approx(same * math.sqrt(2))  # 4 cells: noise and variation weigh the same
    assert command(monkeypatch, "plan", path, "design=factorial", "seeds=4", "--sd", "2") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"after Holm over 2, is {same:.3g} ({larger:.3g} if effects vary between seeds by one standard dev" in said
    assert f"it would take {seeds_that_detect(study, design, 2.0, 2.0)} seeds" in said
    rng = np.random.default_rng(0)
    own = rng.normal(0, 5, (2, 4))
    switched = np.array([[a != b for a, b in zip(levels_of(design, e), levels_of(design, wanted[0]), strict=True)]
                         for e in wanted])  # fmt: skip
    for entry, at in zip(wanted, switched, strict=True):
        write(entry, knn=float(30 + rng.normal() + own[:, entry.seed] @ at))
    found = run_statuses([entry.folder for entry in wanted])
    sd, df = spread_of(study, design, wanted, found, study.metrics[0]) or (0.0, 0)
    values = [at.record["metrics"]["eval/knn_top1"] for at in found]
    table = np.reshape(values, (4, 4)).T  # seeds, cells
    signs = np.where(switched[::4], 1, -1)  # cells, factors
    effects = table @ signs / 2  # of each seed
    assert df == 6 and sd == pytest.approx(math.sqrt(2 * effects.var(axis=0, ddof=1).mean()))


def levels_of(design: Design, entry: Entry) -> list[str]:
    return list(next(cell.levels for cell in design.cells if cell.name == entry.cell).values())


def test_values_beyond_any_float_are_no_spread(path: Path) -> None:
    _, wanted = runs_of(path)
    study = read_study(path)
    for number, entry in enumerate(wanted):
        write(entry, knn=[1e300, -1e300][number % 2])
    assert spread(wanted, run_statuses([entry.folder for entry in wanted]), study.metrics[0]) is None


# --- run --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[Entry], list[str]]]:
    """What would have been."""
    calls: list[tuple[list[Entry], list[str]]] = []

    def note(wanted: Sequence[Entry], overrides: Sequence[str] = ()) -> None:
        calls.append((list(wanted), list(overrides)))

    monkeypatch.setattr(launch, "launch", note)
    return calls


STATUSES = ["completed", "preempted", "failed", "diverged", "running"]  # of the first five; the last without a process


@pytest.mark.parametrize(
    ("rerun", "expected"),
    [((), {1, 5, 6, 7, 8}), (("failed",), {1, 2, 5, 6, 7, 8}), (("diverged", "killed"), {1, 3, 4, 5, 6, 7, 8})],
)
def test_run_starts_what_is_missing_and_what_it_is_asked_to(
    rerun: tuple[str, ...], expected: set[int], path: Path, launched: list[Any],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    _, wanted = runs_of(path)
    for entry, status in zip(wanted, STATUSES, strict=False):
        write(entry, status, error=f"{status} because")
    again = [word for state in rerun for word in ("--rerun", state)]
    hydra = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"]
    assert command(monkeypatch, "run", path, *again, *hydra) == 1
    ((started, overrides),) = launched
    assert [entry.folder for entry in started] == [wanted[index].folder for index in sorted(expected)]
    assert overrides == hydra
    output = capsys.readouterr().out
    assert output.count("9 runs: 4 missing, 1 completed, 1 preempted, 1 failed, 1 diverged, 1 killed") == 2
    assert "reference seed 2: failed: failed because" in output
    assert "--rerun failed --rerun diverged --rerun killed" in output


def test_an_arm_that_no_run_can_be_built_with_is_refused_before_any_is_started(
    path: Path, launched: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its value is wrong for the constructor of the objective alone: no key is unknown, and types are right."""
    arms = "objectives.dino.student_temp: [0.1, -0.1]"
    path.write_text(path.read_text().replace("masking: [block, bernoulli]", arms))
    assert command(monkeypatch, "run", path) == 2
    assert "objectives.dino.student_temp=-0.1: a temperature must be above 0" in capsys.readouterr().err
    assert not launched


def test_runs_that_completed_before_a_metric_was_asked_for_are_named_with_the_remedy(
    path: Path, launched: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, wanted = runs_of(path)
    for entry in wanted:
        write(entry)
    assert command(monkeypatch, "run", path) == 0
    assert "evaluate" not in capsys.readouterr().out
    path.write_text(path.read_text().replace("eval/knn_top1: 2.0", "eval/knn_top1: 2.0, eval/rankme: 1.0"))
    assert command(monkeypatch, "run", path) == 0
    output = capsys.readouterr().out
    assert f"9 completed runs did not measure eval/rankme: dinoswap-ablate evaluate {path}" in output
    assert not launched


def test_nothing_is_started_when_all_is_done(path: Path, launched: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _, wanted = runs_of(path)
    for entry in wanted:
        write(entry)
    assert command(monkeypatch, "run", path) == 0
    assert launched == []


def test_a_cell_that_the_trainer_refuses_stops_the_study_before_it_begins(
    path: Path, launched: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "run", path, "crops.local_size=17") == 2
    assert "crops.local_size=17" in capsys.readouterr().err
    assert launched == []


def test_mistakes_are_one_line(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ("plan", "no_such_study"),
        ("status", path, "trainer.max_step=3"),
        ("run", path, "hydra/launcher=x"),
    ):
        assert command(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("dinoswap-ablate: ")
        assert error.count("\n") == 1
    assert command(monkeypatch, "paln", path) == 2
    assert command(monkeypatch) == 2


def test_an_option_of_another_command_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "plan", path, "--rerun", "failed") == 2
    assert "dinoswap-ablate plan: error: unrecognized arguments: --rerun" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], *([name] for name in ablate.COMMANDS)], ids=" ".join)
def test_the_help_fits_a_screen(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, *words, "--help") == 0
    output = capsys.readouterr().out.splitlines()
    assert len(output) <= 40
    assert max(map(len, output)) <= 120
