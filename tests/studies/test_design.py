"""Designs: the right cells, fractions whose aliases a count over their cells confirms, choices that no other beats."""

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dinoswap.config.command_line import compose_config
from dinoswap.config.configuration import config_dir
from dinoswap.config.schema import ConfigError
from dinoswap.run.run_folder import planned_id
from dinoswap.studies import composer, optimal
from dinoswap.studies.composer import Composer
from dinoswap.studies.design import Design, make_design
from dinoswap.studies.fraction import Fraction, choose_fraction
from dinoswap.studies.study import read_study

STUDIES = sorted(
    path.stem for path in (config_dir().parent / "ablations").glob("*.yaml") if "\nspace:" not in path.read_text()
)
THREE = "  masking: [block, bernoulli]\n  clustering: [none, masked, visible]\n  layer_decay: [layerwise, uniform]\n"
CROPS = "  model.patch_size: [8, 16]\n  crops.local_size: [16, 24]\n"  # 24 is no multiple of 16


def designed(tmp_path: Path, factors: str, design: str, *overrides: str) -> Design:
    path = tmp_path / "mine.yaml"
    head = "# What?\nbase: [recipe=smoke]\nseeds: 2\nmetrics: {eval/knn_top1: 1}\n"
    path.write_text(f"{head}factors:\n{factors}design: {design}\n")
    return make_design(read_study(path, overrides))


def names(design: Design) -> list[str]:
    return [cell.name for cell in design.cells]


@pytest.fixture(autouse=True)
def _cache_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def without_composing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which cells a study has is the question, not whether they can be run. Configs differ as their overrides do."""
    evaluation = compose_config()["evaluation"]

    def config(_: Composer, overrides: Sequence[str]) -> dict[str, object]:
        return {"overrides": sorted(overrides), "evaluation": evaluation}

    monkeypatch.setattr(Composer, "__call__", config)


# --- kinds ------------------------------------------------------------------------------------------------------------


def test_one_at_a_time(tmp_path: Path) -> None:
    design = designed(tmp_path, THREE, "one_at_a_time")
    changed = ["masking=bernoulli", "clustering=masked", "clustering=visible", "layer_decay=uniform"]
    assert names(design) == ["reference", *changed]
    for cell, own in ((design.cells[0], []), (design.cells[3], ["clustering=visible"])):
        assert cell.run_id == planned_id(compose_config(["recipe=smoke", *own]))
    assert len({cell.run_id for cell in design.cells}) == 5


@pytest.mark.usefixtures("without_composing")
def test_leave_one_out(tmp_path: Path) -> None:
    design = designed(tmp_path, THREE, "leave_one_out")
    assert names(design) == [
        "all",
        "all but masking",
        "all but clustering",
        "all, clustering=masked",
        "all but layer_decay",
    ]
    full = {"masking": "bernoulli", "clustering": "visible", "layer_decay": "uniform"}
    assert design.reference.levels == full
    assert [dict(cell.levels.items() - full.items()) for cell in design.cells[1:]] == [
        {"masking": "block"}, {"clustering": "none"}, {"clustering": "masked"}, {"layer_decay": "layerwise"},
    ]  # fmt: skip


@pytest.mark.usefixtures("without_composing")
def test_factorial_without_what_is_excluded(tmp_path: Path) -> None:
    out = "[{clustering: none, masking: bernoulli}, {layer_decay: uniform, clustering: [masked, visible]}]"
    design = designed(tmp_path, THREE, f"factorial\nexclude: {out}")
    expected = {
        (m, c, d)
        for m, c, d in itertools.product(
            ["block", "bernoulli"], ["none", "masked", "visible"], ["layerwise", "uniform"]
        )
        if (m, c) != ("bernoulli", "none") and (d == "layerwise" or c == "none")
    }
    assert {tuple(cell.levels.values()) for cell in design.cells} == expected
    assert len(design.cells) == len(expected) == 6
    assert len({cell.run_id for cell in design.cells}) == 6
    assert design.notes == ["6 of 12 cells are excluded by the study"]


@pytest.mark.usefixtures("without_composing")
def test_explicit_cells(tmp_path: Path) -> None:
    design = designed(
        tmp_path, THREE, "explicit\ncells: {b: {masking: bernoulli}, a: {}, also b: {masking: bernoulli}}"
    )
    assert names(design) == ["b", "a"]
    assert design.notes == ["also b: the same run as b, and run once"]


@pytest.mark.parametrize(
    ("factors", "design", "message"),
    [
        ("  masking: [block, blok]\n", "one_at_a_time", "cell 'masking=blok': masking=blok: the group"),
        ("  maskin: [block, bernoulli]\n", "one_at_a_time", "no key or group 'maskin'. Did you mean 'masking'?"),
        (CROPS, "factorial", "crops.local_size=24: must be a multiple of model.patch_size=16; try crops."),
        ("  masking: [block, blok]\n", "factorial\ninvalid: drop", "factors.masking.blok: every cell with it is"),
    ],
)
def test_cells_that_cannot_be_run_are_refused(tmp_path: Path, factors: str, design: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        designed(tmp_path, factors, design)
    assert message in str(refused.value)
    assert str(refused.value).startswith(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("design", "message"),
    [
        ("factorial\nexclude: [{masking: [block, bernoulli]}]", "no cell is left"),
        ("one_at_a_time\nexclude: [{masking: block}]", "exclude: reference is excluded or refused"),
        ("fractional", "runs: has to be given where a factor has more than two levels"),
        ("fractional\nruns: 4", "runs=4: too few for 5 coefficients"),
        ("fractional\nruns: 13", "runs=13: there are 12 different valid cells"),
        ("fractional\nruns: 6\nexclude: [{masking: block, layer_decay: uniform}, {masking: bernoulli, "
         "layer_decay: layerwise}]", "some effects inseparable"),
        ("fractional\ngenerators: {masking: [layer_decay, clustering]}", "only a factor of two levels"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("without_composing")
def test_designs_that_do_not_exist_are_refused(tmp_path: Path, design: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        designed(tmp_path, THREE, design)
    assert message in str(refused.value)


def test_refused_cells_are_dropped_if_asked(tmp_path: Path) -> None:
    design = designed(tmp_path, CROPS, "factorial\ninvalid: drop")
    assert {tuple(cell.levels.values()) for cell in design.cells} == {("8", "16"), ("8", "24"), ("16", "16")}
    assert design.notes[0].startswith(
        "model.patch_size=16, crops.local_size=24: left out: crops.local_size=24: must be"
    )


def test_a_metric_that_no_run_will_have_is_refused(tmp_path: Path) -> None:
    """recipe=smoke has no linear probe."""
    with pytest.raises(ConfigError, match=r"metrics\.eval/linear_top1: needs evaluation\.linear_probe=true"):
        designed(tmp_path, THREE, "one_at_a_time", "metrics={eval/linear_top1: 1}")


# --- regular fractions ------------------------------------------------------------------------------------------------


def contrast(fraction: Fraction, effect: Sequence[str]) -> np.ndarray:
    """Of a product of factors, in every cell, with the reference as -1."""
    signs = 2 * np.array(fraction.rows()) - 1
    return np.prod([signs[:, fraction.factors.index(factor)] for factor in effect], axis=0)


@pytest.mark.parametrize(
    ("factors", "runs", "resolution", "shortest"),
    [(7, 16, 4, 7), (8, 16, 4, 14), (5, 16, 5, 1), (6, 32, 6, 1), (7, 8, 3, 7), (6, 16, 4, 3), (9, 32, 4, 6)],
)
def test_fractions_of_minimum_aberration(factors: int, runs: int, resolution: int, shortest: int) -> None:
    """Resolution and number of shortest words as in Box, Hunter & Hunter, table 6.22; Wu & Hamada, appendix 5A."""
    found = choose_fraction("ABCDEFGHJ"[:factors], runs)
    assert (found.runs, found.resolution) == (runs, resolution)
    assert sum(word.bit_count() == resolution for word in found.words) == shortest
    assert len(set(found.rows())) == runs
    signs = 2 * np.array(found.rows()) - 1
    assert (signs.T @ signs == runs * np.eye(factors)).all()


@pytest.mark.parametrize("generators", [None, {"G": "AB", "F": "ABCD", "E": "BCD"}])
def test_the_alias_table_is_what_a_count_over_the_cells_says(generators: dict[str, str] | None) -> None:
    found = choose_fraction("ABCDEFG", 16, generators)
    effects = [*itertools.combinations("ABCDEFG", 1), *itertools.combinations("ABCDEFG", 2)]
    expected: list[list[str]] = []
    for effect in effects:
        if any("*".join(effect) in [term.lstrip("-") for term in group] for group in expected):
            continue
        own = contrast(found, effect)
        products = {other: int(own @ contrast(found, other)) for other in effects}
        assert set(products.values()) <= {-16, 0, 16}
        expected.append([("-" if p < 0 else "") + "*".join(other) for other, p in products.items() if p])
    assert found.aliases() == expected
    for word in found.describe()[1].removeprefix("defining relation: I = ").split(" = "):
        assert (contrast(found, word.lstrip("-").split("*")) == (-1 if word.startswith("-") else 1)).all()
    assert found.rows()[0] == (0,) * 7


@pytest.mark.parametrize(
    ("factors", "interactions", "runs"), [(3, False, 8), (4, False, 8), (7, False, 16), (5, True, 16)]
)
def test_without_a_number_the_smallest_clear_fraction(factors: int, interactions: bool, runs: int) -> None:
    assert choose_fraction("ABCDEFG"[:factors], interactions=interactions).runs == runs


@pytest.mark.parametrize(
    ("generators", "runs", "message"),
    [
        ({"C": ["A"]}, None, "must name two factors or more"),
        ({"C": ["A", "B"], "D": ["A", "C"]}, None, "C is generated itself"),
        ({"C": ["A", "B"], "D": ["A", "B"]}, None, "two factors always change together"),
        ({"D": ["A", "B"]}, 4, "runs=4: these generators make 8"),
        (None, 4, "runs=4: too few for 4 factors; at least 8"),
    ],
)
def test_generators_that_make_no_fraction(
    generators: dict[str, list[str]] | None, runs: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        choose_fraction("ABCD", runs, generators)


# --- optimal designs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "runs", "interactions", "missing"),
    [((3, 2, 2), 6, False, ()), ((3, 2, 2), 7, False, ((1, 1, 1), (2, 1, 0))), ((4, 3), 7, False, ((0, 2),)),
     ((3, 2, 2), 11, True, ()), ((2, 2, 2), 4, False, ())],
)  # fmt: skip
def test_no_other_choice_is_better(
    sizes: tuple[int, ...], runs: int, interactions: bool, missing: tuple[tuple[int, ...], ...]
) -> None:
    """Of all choices that hold the first cell, gone through one by one, with dummy columns for the model: up to a
    factor the determinant does not depend on how the levels are coded."""
    rows = [row for row in itertools.product(*map(range, sizes)) if row not in missing]
    dummies = [[float(row[f] == level) for f, size in enumerate(sizes) for level in range(1, size)] for row in rows]
    owner = [f for f, size in enumerate(sizes) for _ in range(1, size)]
    pairs = (
        [(i, j) for i, j in itertools.combinations(range(len(owner)), 2) if owner[i] != owner[j]]
        if interactions
        else []
    )
    model = np.array([[1.0, *row, *(row[i] * row[j] for i, j in pairs)] for row in dummies])

    def determinant(chosen: Sequence[int]) -> float:
        return float(np.linalg.det(model[list(chosen)].T @ model[list(chosen)]))

    best = max(determinant([0, *others]) for others in itertools.combinations(range(1, len(rows)), runs - 1))
    x, _ = optimal.model_matrix(rows, sizes, optimal.effects(len(sizes), interactions))
    chosen = optimal.d_optimal(x, runs)
    assert chosen[0] == 0
    assert len(set(chosen)) == runs
    assert determinant(chosen) == pytest.approx(best)
    assert chosen == optimal.d_optimal(x, runs)


def test_it_finds_an_orthogonal_design_where_there_is_one() -> None:
    """8 of the 128 cells of 7 factors: a Hadamard matrix. The others are no better than 1."""
    rows = list(itertools.product((0, 1), repeat=7))
    x, _ = optimal.model_matrix(rows, [2] * 7, optimal.effects(7, interactions=False))
    assert optimal.efficiency(x[optimal.d_optimal(x, 8)]) == pytest.approx(1)
    assert optimal.efficiency(x) == pytest.approx(1)


def test_what_passes_for_a_main_effect_is_told() -> None:
    """C = AB in these four cells: of the interaction A*B the whole is taken for C, and so on around."""
    lines = optimal.describe([(0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 1, 1)], "ABC", [2, 2, 2], interactions=False)
    assert lines[0] == "D-optimal for main effects: 4 cells, D-efficiency 1.00 (1: orthogonal)"
    assert lines[2:] == ["  A: 1.00 of B*C", "  B: 1.00 of A*C", "  C: 1.00 of A*B"]


@pytest.mark.usefixtures("without_composing")
def test_three_levels_get_an_optimal_design(tmp_path: Path) -> None:
    design = designed(tmp_path, THREE, "fractional\nruns: 8")
    assert (len(design.cells), design.reference.name, design.fraction) == (8, "reference", None)
    assert design.notes[0].startswith("D-optimal for main effects: 8 cells, D-efficiency 0.9")
    assert design.notes[0].endswith("chosen of 12 valid ones")


def test_cells_that_are_refused_are_not_in_an_optimal_design(tmp_path: Path) -> None:
    """A regular fraction would have one of them."""
    design = designed(tmp_path, CROPS + "  masking: [block, bernoulli]\n", "fractional\nruns: 4\ninvalid: drop")
    assert len(design.cells) == 4
    pairs = {(cell.levels["model.patch_size"], cell.levels["crops.local_size"]) for cell in design.cells}
    assert pairs == {("8", "16"), ("8", "24"), ("16", "16")}
    assert design.notes[0].endswith("chosen of 6 valid ones")


# --- composing once ---------------------------------------------------------------------------------------------------


def test_what_is_remembered_is_what_is_composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["recipe=smoke", "preset=legacy", "da3=enabled", "schedule.min_lr=1.1e-7"]
    config = compose_config(overrides)
    assert Composer(check=False)(overrides) == config  # closely
    monkeypatch.setattr(composer, "compose_config", None)
    (kept,) = tmp_path.glob("cache/**/*.json")
    assert Composer(check=False)(overrides) == config  # from the cache
    quick = Composer(check=False)
    quick._accepted.update(overrides)
    kept.write_text("{")
    assert quick(overrides) == config  # by Hydra alone
    assert planned_id(Composer(check=True)(overrides)) == planned_id(config)


def test_nothing_refused_is_remembered(tmp_path: Path) -> None:
    for _ in range(2):
        assert (
            Composer(check=False)(["recipe=smoke", "heads.dino_head.layers=few"])["heads"]["dino_head"]["layers"]
            == "few"
        )
        with pytest.raises(ConfigError, match="must be a whole number"):
            Composer(check=True)(["recipe=smoke", "heads.dino_head.layers=few"])
        quick = Composer(check=False)
        quick._accepted.update(["recipe=smoke", "da3.loss_weight=2"])
        with pytest.raises(ConfigError, match=r"no key or group 'da3.loss_weight' in da3=disabled"):
            quick(["recipe=smoke", "da3.loss_weight=2"])


def test_changed_configs_are_composed_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(config_dir(), tmp_path / "configs")
    monkeypatch.setenv("DINOSWAP_CONFIG_DIR", str(tmp_path / "configs"))
    before = Composer(check=False)(["recipe=smoke"])
    recipe = tmp_path / "configs" / "recipe" / "smoke.yaml"
    recipe.write_text(recipe.read_text().replace("max_steps: 10", "max_steps: 11"))
    composer._source_hash.cache_clear()  # as another process would find it
    after = Composer(check=False)(["recipe=smoke"])
    assert (before["trainer"]["max_steps"], after["trainer"]["max_steps"]) == (10, 11)
    assert len(list(tmp_path.glob("cache/**/*.json"))) == 1


# --- the studies of this repository -----------------------------------------------------------------------------------


SIZES = {"smoke": 3, "demo": 3, "from_official": 9, "from_legacy": 10, "attribution": 16, "forward_masking": 15,
         "clustering_reduction": 10, "da3_loss_weight": 5}  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.usefixtures("without_composing")
def test_the_committed_studies(name: str) -> None:
    design = make_design(read_study(name))
    assert len(design.cells) == SIZES.get(name, len(design.cells))
    assert SIZES.keys() <= set(STUDIES)


@pytest.mark.parametrize("name", STUDIES)
def test_every_level_of_the_committed_studies_can_be_run(name: str) -> None:
    """In as few cells as have all levels: the first level of all factors, the second of all, ..."""
    study, compose = read_study(name), Composer(check=True)
    for number in range(max(map(len, study.factors.values()))):
        compose(study.overrides({f: list(levels)[min(number, len(levels) - 1)] for f, levels in study.factors.items()}))


def test_the_ends_of_the_attribution_are_the_presets() -> None:
    study = read_study("attribution")
    shared = [line for line in study.base if not line.startswith(("preset=", "details="))]
    ends = [study.reference, {factor: list(levels)[-1] for factor, levels in study.factors.items()}]
    presets = [["preset=legacy", "details=official"], ["preset=aligned"]]
    for levels, preset in zip(ends, presets, strict=True):
        assert planned_id(compose_config(study.overrides(levels))) == planned_id(compose_config([*preset, *shared]))
    fraction = choose_fraction(list(study.factors))
    assert (fraction.runs, fraction.resolution) == (16, 4)
    assert {(0,) * 7, (1,) * 7} <= set(fraction.rows())
