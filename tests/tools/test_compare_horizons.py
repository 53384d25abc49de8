"""tools/compare_horizons.py on committed reports, counted again by loops over the numbers in their files."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import compare_horizons
from dinoswap.config.configuration import config_dir

REFERENCE = config_dir().parent / "results" / "reference"
REPORTS = [REFERENCE / "studies" / "from_official" / "report.json", REFERENCE / "da3" / "cifar10" / "report.json"]


def recounted(report: Path, metric: str, share: float) -> list[tuple[int, int]]:
    """Counts signs, signs that are clear at the end, pairs in order and those that are clear at the end."""
    results = {result["metric"]["name"]: result for result in json.loads(report.read_text())["results"]}
    course: dict[str, Any] = results[metric]["over_training"]
    place = max(at for at, step in enumerate(course["steps"]) if 0 < step <= share * course["run_steps"])
    effects = [
        (effect["mean"][place], effect["mean"][-1], effect["low"][-1], effect["high"][-1])
        for effect in course["effects"].values()
    ]
    signs = [(then > 0) == (now > 0) for then, now, _, _ in effects]
    clear = [same for same, (_, _, low, high) in zip(signs, effects, strict=True) if low > 0 or high < 0]
    order, apart = [], []
    for one, other in itertools.combinations(effects, 2):
        same = (one[0] > other[0]) == (one[1] > other[1])
        order.append(same)
        if one[2] > other[3] or one[3] < other[2]:
            apart.append(same)
    return [(sum(part), len(part)) for part in (signs, clear, order, apart)]


def row(page: str, *beginning: str) -> list[str]:
    """Returns the only row of a page's tables that begins with these cells, without them."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.replace("\\", "").splitlines()]
    (found,) = [cells for cells in rows if tuple(cells[: len(beginning)]) == beginning]
    return found[len(beginning) :]


def shown(counts: list[tuple[int, int]]) -> list[str]:
    return [f"{same} of {possible}" if possible else "-" for same, possible in counts]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("out")
    assert compare_horizons.main([*map(str, REPORTS), "-o", str(out)]) == 0
    return (out / "horizons.md").read_text()


@pytest.mark.parametrize(("share", "written"), [(1 / 3, "1/3"), (1 / 2, "1/2"), (2 / 3, "2/3")])
def test_each_study_is_counted(share: float, written: str, page: str) -> None:
    for name, report in zip(("from_official", "da3_cifar10"), REPORTS, strict=True):
        _step, *counts = row(page, name, written)
        assert counts[:4] == shown(recounted(report, "eval/knn_top1", share))


@pytest.mark.parametrize("metric", ["eval/knn_top1", "eval/correspondence"])
def test_counts_of_studies_are_added(metric: str, page: str) -> None:
    both = zip(*(recounted(report, metric, 1 / 3) for report in REPORTS), strict=True)
    added = [(one[0] + other[0], one[1] + other[1]) for one, other in both]
    studies, *counts = row(page, metric, "1/3")
    assert (studies, counts[:4]) == ("2", shown(added))


def test_a_file_that_is_no_report_is_refused_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text("{}")
    assert compare_horizons.main([str(tmp_path / "report.json"), "-o", str(tmp_path)]) == 2
    assert "only a report.json of this version" in capsys.readouterr().err
    assert not (tmp_path / "horizons.md").exists()
