"""The noise budget: arrays by counting pairs, components by an ANOVA in loops and by simulation, runs, the command."""

import itertools
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

from dinoswap.config.schema import ConfigError
from dinoswap.config.streams import STREAMS, StreamSeeds
from dinoswap.run.metrics import RunRecord
from dinoswap.studies import ablate, launch
from dinoswap.studies.design import make_design
from dinoswap.studies.ledger import Entry
from dinoswap.studies.noise import components as analysis
from dinoswap.studies.noise.array import NoiseDesign, orthogonal_array
from dinoswap.studies.noise.budget import budget, pairing
from dinoswap.studies.noise.components import components
from dinoswap.studies.noise.runs import NoiseRuns, Runs, noise_runs
from dinoswap.studies.study import Study, read_study
from train_processes import TrainProcess

ARRAY = orthogonal_array(5, 4)


def simulated(rng: np.random.Generator, sds: list[float], interaction: float, error: float) -> np.ndarray:
    """Runs of ARRAY: an effect of each stream's seed, of each pair of seeds of the first two, and of each run."""
    effects = [sd * rng.normal(size=5) for sd in sds]
    pairs = interaction * rng.normal(size=(5, 5))
    runs = [
        sum(effect[seed] for effect, seed in zip(effects, row, strict=True)) + pairs[row[0], row[1]] for row in ARRAY
    ]
    return np.array(runs) + error * rng.normal(size=len(ARRAY))


# --- the array --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 3, 5, 7])
def test_in_two_columns_each_pair_of_levels_occurs_once(levels: int) -> None:
    array = orthogonal_array(levels, levels + 1)
    assert array.shape == (levels**2, levels + 1)
    for first, second in itertools.combinations(array.T.tolist(), 2):
        assert sorted(zip(first, second, strict=True)) == list(itertools.product(range(levels), repeat=2))


@pytest.mark.parametrize("levels", [0, 1, 4, 6, 9])
def test_other_levels_than_primes_are_refused(levels: int) -> None:
    with pytest.raises(ValueError, match="must be a prime"):
        orthogonal_array(levels, 2)


def test_a_stream_alone_has_all_others_at_the_base() -> None:
    design = NoiseDesign(levels=5, bases=2)
    assert len(set(design.crossed())) == 25
    assert [design.base(seed) in design.crossed() for seed in range(5)] == [True] * 5
    for stream in STREAMS:
        for base, runs in enumerate(design.alone(stream)):
            assert [asdict(seeds) for seeds in runs] == [dict.fromkeys(STREAMS, base) | {stream: k} for k in range(5)]
    assert len(design.all_runs()) == len(set(design.all_runs())) == 25 + 2 * 5 * 4


def test_streams_that_do_not_vary_have_the_seed_0() -> None:
    design = NoiseDesign(levels=3, streams=["order", "masks"])
    others = [stream for stream in STREAMS if stream not in ("order", "masks")]
    assert {asdict(seeds)[stream] for seeds in design.all_runs() for stream in others} == {0}
    assert len(design.all_runs()) == 9  # with two streams all combinations are crossed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 4}, "--levels 4: must be a prime of at least 5"),
        ({"levels": 3}, "--levels 3: must be a prime of at least 5"),
        ({"levels": 2, "streams": ["init"]}, "--levels 2: must be a prime of at least 3"),
        ({"streams": ["mask"]}, "--streams mask: there is no such stream. Did you mean 'masks'?"),
        ({"streams": ["init", "init"]}, "--streams init,init: name different streams"),
        ({"bases": 6}, "--bases 6: must be 0 to 5"),
    ],
)
def test_wrong_designs_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        NoiseDesign(**options)
    assert message in str(refused.value)


# --- the analysis -----------------------------------------------------------------------------------------------------


def naive_components(values: list[float], array: list[list[int]], levels: int) -> list[float]:
    """The ANOVA in loops, from sums of squares about the means."""
    mean = sum(values) / len(values)
    total, squares = sum((y - mean) ** 2 for y in values), []
    for k in range(len(array[0])):
        square = 0.0
        for level in range(levels):
            group = [y for y, row in zip(values, array, strict=True) if row[k] == level]
            square += len(group) * (sum(group) / len(group) - mean) ** 2
        squares.append(square)
    error = (total - sum(squares)) / (len(values) - 1 - len(squares) * (levels - 1))
    return [*((square / (levels - 1) - error) / levels for square in squares), error]


def test_components_are_those_of_an_anova_in_loops() -> None:
    values = simulated(np.random.default_rng(0), [2, 1, 0, 0.5], 1.0, 0.5)
    naive = naive_components(values.tolist(), ARRAY.tolist(), 5)
    assert components(values, ARRAY, "arm").values == pytest.approx(naive)


def test_components_are_unbiased_where_streams_interact(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two streams do together is part of the residual, and of no stream's first order."""
    monkeypatch.setattr(analysis, "DRAWS", 2)
    rng = np.random.default_rng(1)
    parts = [components(simulated(rng, [2, 1, 0, 0.5], 1.5, 0.5), ARRAY, "arm").values for _ in range(2000)]
    mean, error = np.mean(parts, axis=0), np.std(parts, axis=0) / math.sqrt(len(parts))
    assert np.all(np.abs(mean - [4, 1, 0, 0.25, 1.5**2 + 0.25]) < 4 * error)


def test_intervals_cover_what_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of shares, standard deviations and what pairing saves; the arms' effects have a correlation of .8."""
    monkeypatch.setattr(analysis, "DRAWS", 400)
    rng, sds = np.random.default_rng(2), [2, 1, 0, 0.5]
    variance, studies = 4 + 1 + 0.25 + 1, 200
    covered = np.zeros(8)
    for _ in range(studies):
        shared, *own = (simulated(rng, sds, 0, 0) for _ in range(3))
        arms = [math.sqrt(0.8) * shared + math.sqrt(0.2) * of_arm + rng.normal(size=25) for of_arm in own]
        one = budget("a", "abcd", ARRAY, arms[0])
        two = pairing("a", "b", "abcd", ARRAY, np.column_stack(arms))
        truths = [
            (one.first_order["a"], 4 / variance), (one.first_order["c"], 0), (one.interactions, 1 / variance),
            (one.sd, math.sqrt(variance)), (two.saved["a"], 0.8 * 4 / variance), (two.saved["c"], 0),
            (two.saved_by_all, 0.8 * 5.25 / variance), (two.sd, math.sqrt(2 * (0.2 * 5.25 + 1))),
        ]  # fmt: skip
        covered += [quantity.low <= truth <= quantity.high for quantity, truth in truths]
    assert np.all(covered / studies > 0.9)  # 3 standard errors below 95 %


def test_what_varies_alone_is_compared_with_the_variance_of_a_run() -> None:
    rng = np.random.default_rng(3)
    values, alone, pairs = simulated(rng, [1, 1, 1, 1], 1, 1), rng.normal(size=(2, 5)), rng.normal(size=(5, 2))
    result = budget("a", "abcd", ARRAY, values, {"b": alone}, pairs)
    variance = sum(naive_components(values.tolist(), ARRAY.tolist(), 5))
    between = [sum((y - sum(row) / 5) ** 2 for y in row) / 4 for row in alone.tolist()]
    assert result.sd.value == pytest.approx(math.sqrt(variance))
    assert result.total["b"].value == pytest.approx(sum(between) / 2 / variance)
    assert result.threads is not None
    assert result.threads.value == pytest.approx(sum((x - y) ** 2 for x, y in pairs.tolist()) / 10 / variance)


def test_the_residuals_interval_is_that_of_chi_square() -> None:
    """Where nothing but the residual is asked for, the generalised interval is the classical one."""
    values = simulated(np.random.default_rng(4), [1, 1, 1, 1], 0, 1)
    drawn = components(values, ARRAY, "arm").draws[:, -1]
    residual, df = naive_components(values.tolist(), ARRAY.tolist(), 5)[-1], 24 - 16
    for level in (0.025, 0.5, 0.975):
        assert np.quantile(drawn, level) == pytest.approx(df * residual / chi2(df).ppf(1 - level), rel=0.03)


def test_what_sharing_saves_is_twice_the_covariance() -> None:
    rng = np.random.default_rng(5)
    arm, reference = simulated(rng, [2, 1, 0, 0], 0, 1), simulated(rng, [2, 1, 0, 0], 0, 1)
    result = pairing("a", "b", "abcd", ARRAY, np.column_stack([arm, reference]))
    of_sum, of_arm, of_reference = (
        np.array(naive_components(values.tolist(), ARRAY.tolist(), 5)) for values in (arm + reference, arm, reference)
    )
    taken = of_sum - of_arm - of_reference  # 2 cov(x, y) = var(x + y) - var(x) - var(y)
    unpaired = of_arm.sum() + of_reference.sum()
    assert [share.value for share in result.saved.values()] == pytest.approx((taken / unpaired)[:-1])
    assert result.saved_by_all.value == pytest.approx(taken.sum() / unpaired)
    assert result.sd.value == pytest.approx(math.sqrt(unpaired - taken.sum()))
    assert result.unpaired_sd.value == pytest.approx(math.sqrt(unpaired))


def test_equal_arms_save_everything_and_opposite_ones_add_as_much() -> None:
    values = simulated(np.random.default_rng(6), [2, 0, 0, 0], 0, 0.1)
    equal = pairing("a", "b", "abcd", ARRAY, np.column_stack([values, values]))
    assert (equal.saved_by_all.value, equal.sd.value, equal.helpful) == (1, 0, ["a"])
    opposite = pairing("a", "b", "abcd", ARRAY, np.column_stack([values, -values]))
    assert (opposite.saved_by_all.value, opposite.harmful) == (-1, ["a"])


# --- the runs ---------------------------------------------------------------------------------------------------------


def written_study(folder: Path) -> Study:
    path = folder / "mine.yaml"
    base = ["recipe=smoke", "trainer.max_steps=2", "trainer.eval_every=0", "evaluation.images=20", "metric=[knn]",
            "evaluation.linear_probe=false", "evaluation.baselines=false", "data.workers=0", "tracker=none",
            f"results_dir={folder}"]  # fmt: skip
    path.write_text(
        f"# Which mask?\nbase: {json.dumps(base)}\nfactors: {{masking: [block, bernoulli]}}\ndesign: one_at_a_time\n"
        "seeds: 3\nmetrics: {eval/knn_top1: 1.0, images_per_second: 5.0}\n"
    )
    return read_study(path)


def runs_of(study: Study, design: NoiseDesign, threads: int | None) -> NoiseRuns:
    return noise_runs(study, make_design(study, check=False).cells, design, threads)


def test_runs_differ_in_their_streams_alone(tmp_path: Path) -> None:
    study = written_study(tmp_path)
    runs = runs_of(study, NoiseDesign(), threads=2)
    assert {arm: len(of_arm) for arm, of_arm in runs.arms.items()} == {"reference": 45, "masking=bernoulli": 25}
    assert len({entry.folder for entry in runs.entries}) == 70
    for seeds, entry in runs.arms["masking=bernoulli"].items():
        assert set(entry.overrides) >= {f"stream_seeds.{stream}={seed}" for stream, seed in asdict(seeds).items()}
        assert entry.config["stream_seeds"] == asdict(seeds)
        assert entry.overrides[-2:] == ["study=mine_noise", "seed=0"]
    for seeds, entry in runs.other_threads.items():  # of the same name, in a folder of their own
        assert entry.run_id == runs.arms["reference"][seeds].run_id
        assert entry.folder.parents[1].name == "mine_noise_2_threads"


# --- the command ------------------------------------------------------------------------------------------------------


def pretend(runs: NoiseRuns, threads: int) -> None:
    """Writes a run.json for each run. Values depend on the seed of `order`, in the same way in both arms, and on how
    all streams but dropout meet."""
    rng = np.random.default_rng(7)
    order = rng.normal(size=7)
    meeting: dict[tuple[str, tuple[int, ...]], float] = {}

    def met(arm: str, seeds: StreamSeeds) -> float:
        drawn = tuple(seed for stream, seed in asdict(seeds).items() if stream != "dropout")
        return meeting.setdefault((arm, drawn), float(rng.normal()))

    def write(arm: str, of_arm: Runs, count: int) -> None:
        for seeds, entry in of_arm.items():
            entry.folder.mkdir(parents=True)
            said = {"git": None, "versions": {}, "hardware": {"threads": count}}
            record = RunRecord(entry.folder / "run.json", entry.run_id, "mine_noise", 0, {}, entry.overrides, **said)
            record.metrics = {"eval/knn_top1": 50 + 5 * float(order[seeds.order]) + met(arm, seeds)}
            record.finish("completed")

    for arm, of_arm in runs.arms.items():
        write(arm, of_arm, 1)
    write("other threads", runs.other_threads, threads)


def called(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dinoswap-ablate", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        ablate.main()
    return int(ended.value.code or 0)


def test_the_command_says_which_stream_to_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, out = written_study(tmp_path), tmp_path / "page"
    pretend(runs_of(study, NoiseDesign(levels=7), threads=2), 2)
    options = ["--arm", "masking=bernoulli", "--levels", 7, "--threads", 2, "-o", out]
    assert called(monkeypatch, "noise", study.path, *options) == 0
    printed = capsys.readouterr().out
    assert "Share order, whose pairing by itself clearly takes variance away." in printed
    assert "Of sums rounded by other threads: " in printed
    content = json.loads((out / "noise.json").read_text())
    assert list(content["metrics"]) == ["eval/knn_top1"]  # images per second are the machine's
    assert len(content["runs"]) == 49 + 5 * 6 + 49 + 7
    measured = content["metrics"]["eval/knn_top1"]
    assert max(measured["budgets"][0]["first_order"].items(), key=lambda item: item[1]["value"])[0] == "order"
    assert "how they meet" in (out / "noise.md").read_text()
    # with the freedom of a stream that is not drawn from, the residual's is as if it had not been varied
    assert content["unused"] == ["dropout"]
    assert "reference draws nothing from dropout" in (out / "noise.md").read_text()
    crossed = [run for run in content["runs"] if run["arm"] == "reference" and run["threads"] is None][:49]
    varied = [stream for stream in STREAMS if stream != "dropout"]
    parts = naive_components(
        [run["values"]["eval/knn_top1"] for run in crossed],
        [[run["seeds"][stream] for stream in varied] for run in crossed],
        7,
    )
    shares = measured["budgets"][0]["first_order"]
    assert list(shares) == varied
    assert shares["order"]["value"] == pytest.approx(parts[varied.index("order")] / sum(parts))
    assert measured["budgets"][0]["interactions"]["value"] == pytest.approx(parts[-1] / sum(parts))
    assert list(measured["pairing"]["saved"]) == varied
    assert {path.name for path in (out / "figures").iterdir()} == {"noise0.png", "pairing0.png"}

    assert called(monkeypatch, "plan", study.path, "--noise", out / "noise.json") == 0
    said = capsys.readouterr().out
    assert f"standard deviation of {measured['difference_sd']:.3g} (from {out / 'noise.json'}" in said
    assert "masking=bernoulli against reference" in said


def test_without_a_second_arm_the_plan_takes_pairing_to_save_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, out = written_study(tmp_path), tmp_path / "page"
    pretend(runs_of(study, NoiseDesign(), threads=None), 2)
    assert called(monkeypatch, "noise", study.path, "-o", out) == 0
    measured = json.loads((out / "noise.json").read_text())["metrics"]["eval/knn_top1"]
    assert measured["difference_sd"] == pytest.approx(math.sqrt(2) * measured["budgets"][0]["sd"]["value"])
    assert called(monkeypatch, "plan", study.path, "--noise", out / "noise.json") == 0
    assert "as if pairing took nothing away" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["noise", "--arm", "masking=bernouli"], "masking=bernouli: there is no such cell. Did you mean"),
        (["noise", "--arm", "reference"], "--arm reference: is the reference, which is run anyway"),
        (["noise", "--levels", "4"], "--levels 4: must be a prime"),
        (["noise", "--threads", "0"], "--threads 0: must be at least 1"),
        (["plan", "--noise", "/nowhere.json"], "--noise /nowhere.json: is no noise.json (FileNotFoundError"),
        (["plan", "--noise", "x.json", "--sd", "1"], "--sd 1.0: --noise x.json gives it as well"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, *options = arguments
    assert called(monkeypatch, command, written_study(tmp_path).path, *options) == 2
    assert message in capsys.readouterr().err


def test_threads_that_the_runs_have_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = written_study(tmp_path)
    pretend(runs_of(study, NoiseDesign(levels=3, streams=["init"]), threads=1), 1)
    options = ["--streams", "init", "--levels", 3, "--threads", 1]
    assert called(monkeypatch, "noise", study.path, *options) == 2
    assert "--threads 1: the runs themselves have 1" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nine runs of two steps, of forked processes in place of a launcher's; what has been run is not run again."""

    def trained(runs: Sequence[Entry], overrides: Sequence[str]) -> None:
        for run in runs:
            process = TrainProcess(run.overrides, tmp_path)
            assert process.wait() == 0, process.output

    monkeypatch.setattr(launch, "launch", trained)
    study, out = written_study(tmp_path), tmp_path / "page"
    options = ["--levels", 3, "--streams", "init,order", "-o", out]
    assert called(monkeypatch, "noise", study.path, *options) == 0
    runs = json.loads((out / "noise.json").read_text())["runs"]
    assert len(runs) == 9
    assert {value is None for run in runs for value in run["values"].values()} == {False}
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")}
    assert called(monkeypatch, "noise", study.path, *options) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run.json")} == times
