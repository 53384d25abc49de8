"""Studies that are looked at more than once: boundaries against naive simulations, the record of looks, who stops."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_study import write_runs, write_study
from scipy import stats

from dinoswap.config.schema import ConfigError
from dinoswap.studies import ablate, launch
from dinoswap.studies.design import make_design
from dinoswap.studies.forecast import seeds_expected
from dinoswap.studies.ledger import Entry
from dinoswap.studies.looks import Looks, recorded_looks, unplanned_counts
from dinoswap.studies.report import analyse, look, write_again, write_report
from dinoswap.studies.statistics import Estimate, Look
from dinoswap.studies.statistics.boundaries import LEVELS, boundaries, spend
from dinoswap.studies.statistics.repeated import any_time_p, any_time_t
from dinoswap.studies.study import Study, read_study

PLAN = Looks((3, 6, 12), "pocock")


def t_of(values: np.ndarray, n: int) -> np.ndarray:
    """Of differences [studies, effects, seeds] the t of the first effect after n seeds, with a pooled error."""
    seen = values[:, :, :n]
    return seen[:, 0].mean(1) / np.sqrt(seen.var(2, ddof=1).mean(1) / n)


# --- boundaries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "pooled", "spending"),
    [((3, 6, 12), 1, "obrien_fleming"), ((2, 3, 4, 5), 1, "pocock"), ((3, 4, 9), 5, "obrien_fleming")],
)
def test_boundaries_are_reached_as_often_as_they_say(counts: tuple[int, ...], pooled: int, spending: Any) -> None:
    """60,000 studies of normal differences, whose t is worked out as anyone would: of .1 in each tail, what has been
    spent by each look, at three standard errors."""
    level, trials = 0.1, 60_000
    values = np.random.default_rng(pooled).normal(size=(trials, pooled, counts[-1]))
    found = boundaries(counts, spending, pooled)
    reached = np.zeros(trials, dtype=bool)
    for number, n in enumerate(counts):
        reached |= t_of(values, n) > stats.t.isf(found.nominal_at(number, level), pooled * (n - 1))
        spent = float(spend(spending, np.array(n / counts[-1]), np.array(level)))
        assert reached.mean() == pytest.approx(spent, abs=3 * math.sqrt(spent / trials) + 1e-5 + 0.005 * spent)


def test_many_seeds_have_the_boundaries_of_the_normal_limit() -> None:
    """Of three looks, .025 in a tail: Lan-DeMets tables (Jennison & Turnbull 2000; R's gsDesign, ldbounds)."""
    for spending, z in (("obrien_fleming", (3.7103, 2.5114, 1.9930)), ("pocock", (2.2790, 2.2950, 2.2960))):
        found = boundaries((4_000, 8_000, 12_000), spending, 1)  # type: ignore[arg-type]
        assert [stats.norm.isf(found.nominal_at(number, 0.025)) for number in range(3)] == pytest.approx(z, abs=0.006)


def test_one_look_is_the_t_test() -> None:
    values = np.random.default_rng(0).normal(0.5, 1, 6)
    mean, se = float(values.mean()), float(stats.sem(values))
    one = Estimate(name="", mean=mean, se=se, df=5, seeds=tuple(range(6)), look=Look(Looks((6,)), 0, True),
                   smallest_effect=2.0)  # fmt: skip
    assert one.lasting.p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert one.lasting.p_equivalent == pytest.approx(one.p_equivalent)
    assert (one.lasting.low, one.lasting.high) == pytest.approx(stats.t.interval(0.95, 5, mean, se), rel=1e-3)


def test_p_and_interval_of_a_look_say_the_same() -> None:
    """Zero is at the end of the interval of the confidence 1 - p, planned or not."""
    for at in (Look(PLAN, 1, True), Look(PLAN, 1, False), Look(PLAN, 0, False)):
        p = float(at.p(3.0, 0.5, 5, 6, 1))
        assert 1e-4 < p < 0.2
        assert at.half_width(0.5, 5, 6, 1, 1 - p) == pytest.approx(3.0, rel=5e-3)
    assert Look(PLAN, 1, False).p(3.0, 0.5, 5, 6, 1) > Look(PLAN, 0, False).p(3.0, 0.5, 5, 6, 1), "some was spent"
    assert Look(PLAN, 0, True).p(math.nan, math.nan, 0, 1, 1) == Look(PLAN, 0, False).p(1.0, math.nan, 2, 3, 1) == 1
    assert Look(PLAN, 0, False).half_width(1.0, 1, 2, 1, 0.95) == math.inf
    first = 2 * float(spend("pocock", np.array(3 / 12), np.array(0.025)))  # all that the first look may spend of .05
    assert Look(PLAN, 0, True).p_of_failures(first) == pytest.approx(0.05, rel=1e-3)
    assert Look(PLAN, 0, False).p_of_failures(first) == 1


def test_equivalence_is_called_as_often_as_it_says_where_the_difference_matters() -> None:
    """At the edge of what matters: at most 5 % over all looks, and nearly that where the margin is wide."""
    trials, margin = 20_000, 6.0
    values = np.random.default_rng(3).normal(margin, 1, (trials, 12))
    called = np.zeros(trials, dtype=bool)
    for number, n in enumerate(PLAN.counts):
        mean, se = values[:, :n].mean(1), values[:, :n].std(1, ddof=1) / math.sqrt(n)
        called |= Look(PLAN, number, True).p_equivalent(mean, se, n - 1, n, 1, margin) <= 0.05
    assert called.mean() == pytest.approx(0.05, abs=3 * math.sqrt(0.05 / trials))


# --- at any time ------------------------------------------------------------------------------------------------------


def test_the_interval_at_any_time_holds_however_often_one_looks() -> None:
    """20,000 studies looked at after each of 2 to 60 seeds: all intervals together hold the true mean in 95 %. t
    intervals do in far fewer."""
    values = np.random.default_rng(4).normal(0.3, 2.0, (20_000, 60))
    wrong, naive = np.zeros(20_000, dtype=bool), np.zeros(20_000, dtype=bool)
    for n in range(2, 61):
        off = np.abs(values[:, :n].mean(1) - 0.3) / (values[:, :n].std(1, ddof=1) / math.sqrt(n))
        wrong |= off > any_time_t(0.05, n - 1, n)
        naive |= off > stats.t.isf(0.025, n - 1)
    assert 0.01 < wrong.mean() <= 0.05 and naive.mean() > 0.3


def test_the_martingale_is_the_average_likelihood_ratio() -> None:
    """Of noncentral t, over normal effect sizes, integrated by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    for t, df, n in ((2.5, 5, 6), (4.0, 3, 4), (3.0, 14, 3)):
        ratio = stats.nct.pdf(t, df, 3.0 * nodes * math.sqrt(n)) / stats.t.pdf(t, df)
        mean = float((weights * np.nan_to_num(ratio)).sum() / weights.sum())
        assert float(any_time_p(t, df, n)) == pytest.approx(min(1, 1 / mean), rel=0.02)


# --- the plan and the record ------------------------------------------------------------------------------------------

STUDY = """# Which of these learns best?
base: [recipe=smoke, results_dir={results}]
factors:
  masking: [block, bernoulli]
  layer_decay: [layerwise, uniform]
design: {design}
seeds: {seeds}
metrics: {{eval/knn_top1: 3.0}}
"""


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ("{looks: [6, 3]}", r"seeds.looks=\[6, 3\]: must be rising"),
        ("{looks: [1, 3]}", r"seeds.looks=\[1, 3\]: must be rising numbers of seeds from 2 on"),
        ("{looks: []}", "must be rising"),
        ("{looks: [3, 6], spending: linear}", "seeds.spending=linear"),
        ("{counts: [3, 6]}", "seeds.counts=.*there is no such key"),
    ],
)
def test_a_wrong_plan_is_refused_in_a_line(seeds: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        write_study(tmp_path, STUDY.format(results=tmp_path, design="one_at_a_time", seeds=seeds))
    assert "\n" not in str(refused.value)


def study_of(folder: Path, seeds: str = "{looks: [3, 6, 12], spending: pocock}", kind: str = "one_at_a_time") -> Study:
    return write_study(folder, STUDY.format(results=folder, design=kind, seeds=seeds))


def outcome(levels: Mapping[str, str], seed: int) -> float:
    """bernoulli is 20 worse in every seed; uniform makes no difference."""
    noise = np.random.default_rng([seed, len(str(levels))]).normal(0, 0.9)
    return 40 + 5 * math.sin(seed) + noise - 20 * (levels["masking"] == "bernoulli")


def ended(count: int) -> Any:
    return lambda levels, seed: outcome(levels, seed) if seed < count else None


def test_what_a_planned_look_decides_is_decided(tmp_path: Path) -> None:
    """And its other seeds are not waited for; from the rows of the report it comes out the same."""
    study = study_of(tmp_path)
    root = tmp_path / "runs" / study.name
    write_runs(study, root, ended(3))
    found = analyse(study, root)
    kinds = {decision.effect.name: decision.kind for decision in found.results[0].decisions}
    assert (study.seeds, study.plan) == (list(range(12)), PLAN)
    assert kinds["masking=bernoulli"] == "worse" and found.results[0].decided_after["masking=bernoulli"] == 3
    assert {run.entry.cell for run in found.unfinished} == {"reference", "layer_decay=uniform"}
    html = write_report(study, root, tmp_path / "out")
    assert "Decided after 3 seeds: masking=bernoulli." in html.read_text() and "(look 1 of 3)" in html.read_text()
    assert recorded_looks(root)[0][0] == PLAN
    assert unplanned_counts(recorded_looks(root), PLAN, found.collected.ended_seeds, study.seeds) == []
    again = write_again(html.with_name("report.json"), tmp_path / "again")
    assert again.with_name("report.json").read_bytes() == html.with_name("report.json").read_bytes()


@pytest.mark.parametrize("kind", ["one_at_a_time", "factorial"])
def test_a_look_that_was_not_planned_is_paid_for(kind: str, tmp_path: Path) -> None:
    """The same 12 seeds, with and without a look after 5: the interval at any time, and its verdict, in place of that
    of the plan."""
    study = study_of(tmp_path, "{looks: [6, 12]}", kind)
    root = tmp_path / "runs" / study.name
    write_runs(study, root, ended(5))
    look(study, root)
    write_runs(study, root, lambda levels, seed: outcome(levels, seed) if seed == 5 else None)
    paid = analyse(study, root)
    (root / "looks.jsonl").unlink()
    free = analyse(study, root)
    for before, after in zip(free.results[0].decisions, paid.results[0].decisions, strict=True):
        assert before.effect.look == Look(study.plan, 0, True) and after.effect.look == Look(study.plan, 0, False)
        assert after.effect.lasting.high - after.effect.lasting.low > after.effect.high - after.effect.low
        assert after.effect.mean == before.effect.mean and after.effect.p == before.effect.p
    assert "any number of seeds" in paid.answer and "any number of seeds" not in free.answer


def test_the_record_knows_what_was_planned() -> None:
    """By the plan of now, of an effect's own cells; one seed shows nothing, and other seeds are others."""
    seeds = list(range(12))
    looks = [
        (PLAN, {"a": [0, 1, 2], "b": [0, 1, 2], "c": [0]}),
        (PLAN, {"a": [0, 1, 2, 3, 4], "b": [0, 1, 2, 3], "c": [0, 1, 2, 3, 4]}),
        (Looks((5,)), {"a": [0, 1, 2, 3, 4], "d": [0, 1, 2, 3, 4]}),
        (PLAN, {"a": [20, 21, 22, 23], "b": [20, 21, 22, 23], "e": [1, 2, 3]}),
    ]
    assert unplanned_counts(looks, PLAN, ["a", "b"], seeds) == [4]
    assert unplanned_counts(looks, PLAN, ["a", "c"], seeds) == [5]
    assert unplanned_counts(looks, PLAN, ["a", "d"], seeds) == [5]
    assert unplanned_counts(looks, Looks((5,)), ["a", "d"], seeds) == []
    assert unplanned_counts(looks, PLAN, ["e"], seeds) == [3], "not the first three"


def test_a_line_that_is_no_look_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "looks.jsonl").write_text('{"looks": [3], "spending": "pocock", "ended": {}}\n{"looks": 3}\n')
    with pytest.raises(ConfigError, match=r"looks.jsonl: line 2 is no look"):
        recorded_looks(tmp_path)


# --- running ----------------------------------------------------------------------------------------------------------


def executed(*arguments: str | Path) -> int:
    """Returns the exit status of a command of dinoswap-ablate."""
    name, parsed = ablate.parse([str(argument) for argument in arguments])
    return ablate.COMMANDS[name].execute(parsed)


def test_decided_arms_are_not_run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs are played: bernoulli is decided after 3 seeds, and the reference goes on with the other arm. Uniform
    makes no difference as large as 3, which 6 seeds tell. Again, nothing is run."""
    path = study_of(tmp_path).path
    started: list[list[tuple[str, int]]] = []

    def play(wanted: Sequence[Entry], overrides: Sequence[str] = ()) -> None:
        started.append([(entry.cell, entry.seed) for entry in wanted])
        for entry in wanted:
            levels = {"masking": "bernoulli" if "bernoulli" in entry.cell else "block", "layer_decay": entry.cell}
            value = outcome(levels, entry.seed)
            entry.folder.mkdir(parents=True)
            record = {"run_id": entry.run_id, "study": "study", "seed": entry.seed, "status": "completed", "steps": 10}
            (entry.folder / "run.json").write_text(json.dumps(record | {"metrics": {"eval/knn_top1": value}}))

    monkeypatch.setattr(launch, "launch", play)
    assert executed("run", path) == 0
    cells = ("reference", "masking=bernoulli", "layer_decay=uniform")
    assert started[0] == [(cell, seed) for cell in cells for seed in range(3)]
    assert started[1] == [(cell, seed) for cell in ("reference", "layer_decay=uniform") for seed in (3, 4, 5)]
    assert len(started) == 2
    assert executed("run", path) == 0 and len(started) == 2
    study = read_study(path)
    assert analyse(study, tmp_path / "runs" / "study").unfinished == []


def test_the_plan_expects_fewer_seeds_of_large_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one arm with difference 6 and standard deviation 1: by a simulation of its own."""
    study = study_of(tmp_path)
    expected = seeds_expected(study, make_design(study, check=False), 1.5)
    values = np.random.default_rng(5).normal(6.0, 1.5, (4_000, 12))
    going, total = np.ones(4_000, dtype=bool), np.zeros(4_000)
    for number, n in enumerate(PLAN.counts):
        total[going] = n
        at = -stats.t.ppf(boundaries(PLAN.counts, "pocock").nominal_at(number, 0.05 / 2 / 2), n - 1)
        going &= t_of(values[:, None], n) < at
    assert expected[6.0] == pytest.approx(total.mean(), rel=0.03) and expected[6.0] < expected[3.0] <= 12
    assert executed("plan", study.path, "--sd", "1.5") == 0
    assert "looks after 3, 6, 12 seeds (pocock)" in " ".join(capsys.readouterr().out.split())
    assert LEVELS[0] < 0.05 / 100
