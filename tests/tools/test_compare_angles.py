"""tools/compare_angles.py: correlations against loops and an enumeration of all permutations, and its page's figures
against the files."""

import itertools
import json
import math
from pathlib import Path
from statistics import median

import numpy as np
import pytest

import compare_angles
from dinoswap.config.configuration import config_dir

STUDY = config_dir().parent / "results" / "reference" / "studies" / "from_official"
GROUPS = [([3.0, 1.0, 8.0, 5.0], [0.5, 0.7, 2.0, 1.0]), ([10.0, 90.0, 30.0], [4.0, 9.0, 6.0])]


def correlation(groups: list[tuple[list[float], list[float]]]) -> float:
    """The correlation of ranks within groups, from its definition; values of a group are all different."""
    products, squares = 0.0, [0.0, 0.0]
    for group in groups:
        count = len(group[0])
        ranks = [[sum(other <= value for other in side) for value in side] for side in group]
        centred = [[(rank - (count + 1) / 2) / count for rank in side] for side in ranks]
        products += sum(one * other for one, other in zip(*centred, strict=True))
        squares = [so_far + sum(rank**2 for rank in side) for so_far, side in zip(squares, centred, strict=True)]
    return products / math.sqrt(squares[0] * squares[1])


def test_it_is_the_correlation_of_ranks_within_groups() -> None:
    rho, p = compare_angles.correlation_within(GROUPS)
    assert rho == pytest.approx(correlation(GROUPS))
    orders = itertools.product(*(itertools.permutations(first) for first, _ in GROUPS))
    sizes = [second for _, second in GROUPS]
    all_of_them = [correlation([*zip(map(list, order), sizes, strict=True)]) for order in orders]
    share = np.mean([abs(value) >= abs(rho) - 1e-9 for value in all_of_them])
    assert p == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / compare_angles.PERMUTATIONS))


def test_between_studies_nothing_is_compared() -> None:
    """All angles and effects of the second group may be a thousand times as large."""
    larger = [GROUPS[0], tuple([1000 * value for value in side] for side in GROUPS[1])]
    assert compare_angles.correlation_within(larger) == compare_angles.correlation_within(GROUPS)


@pytest.mark.parametrize("groups", [[], [([1.0, 2.0], [1.0, 2.0])], [([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])]])
def test_nothing_is_said_where_there_is_no_order(groups: list[tuple[list[float], list[float]]]) -> None:
    assert all(math.isnan(value) for value in compare_angles.correlation_within(groups))


def test_the_page_has_what_the_files_have(tmp_path: Path) -> None:
    assert compare_angles.main([str(STUDY), str(STUDY), "-o", str(tmp_path)]) == 0
    lines = (tmp_path / "angles.md").read_text().replace("\\", "").replace("\N{MINUS SIGN}", "-").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    turns = json.loads((STUDY / "twins/twins.json").read_text())["turns"]
    effects = {
        of["name"]: of["mean"] for of in json.loads((STUDY / "report.json").read_text())["results"][0]["effects"]
    }
    angles = {
        arm: median(t["angle"] for t in turns if (t["arm"], t["measure"], t["part"]) == (arm, "gradient", "backbone"))
        for arm in effects
    }
    shown = [row for row in rows if row[0] == "from_official" and row[1] in effects]
    assert [row[1] for row in shown] == 2 * list(effects)
    initial = {row[1]: row[-1] for row in shown}
    assert initial["details=legacy"] == "all, at step 0 alone"
    assert initial["clustering=visible"] == "student.prototype_bank"
    assert initial["masking=bernoulli"] == "-"
    for _, arm, gradient, _, effect, *_ in shown:
        assert float(gradient) == pytest.approx(angles[arm], rel=5e-3, abs=1e-3)
        assert float(effect) == pytest.approx(effects[arm], rel=5e-3)
    (of_all,) = [row for row in rows if row[0] == "all"]
    assert of_all[1] == "16"
    (metric,) = [row for row in rows if row[0] == "eval/knn_top1"]
    assert metric[1:] == of_all[1:]


def test_a_folder_without_twins_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_bytes((STUDY / "report.json").read_bytes())
    assert compare_angles.main([str(tmp_path), "-o", str(tmp_path)]) == 2
    assert "twins.json: is no twins.json" in capsys.readouterr().err
    assert not (tmp_path / "angles.md").exists()


def test_studies_without_a_common_metric_are_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "twins").mkdir()
    (tmp_path / "twins/twins.json").write_bytes((STUDY / "twins/twins.json").read_bytes())
    other = json.loads((STUDY / "report.json").read_text())
    other["results"] = [of for of in other["results"] if of["metric"]["name"] == "images_per_second"]
    (tmp_path / "report.json").write_text(json.dumps(other))
    assert compare_angles.main([str(STUDY), str(tmp_path), "-o", str(tmp_path)]) == 2
    assert "no common metric" in capsys.readouterr().err
