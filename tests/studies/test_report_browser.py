"""report.html in Chromium: no error on its console, every plot there, no sideways scroll, tables that sort."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from fake_study import write_runs, write_study
from PIL import Image
from test_report import CROSSED, EVIL, crossed_ending

from browser import measured, needs_chromium, open_page
from dinoswap.studies.report import write_report

pytestmark = needs_chromium
PLOTS = {"effects-1", "attribution", "interactions", "seeds", "curve-metric", "curve-loss", "over-training-1"}
PLOTS |= {"effects-cost", "cost"}

MEASURE = """
const box = (each) => {
  const { x, right, width, height } = each.getBoundingClientRect();
  return [x, right, width, height];
};
const column = (table, index) => [...table.tBodies[0].rows].map((row) => row.cells[index].textContent);
const table = document.querySelector("#section-effects table");
const head = table.tHead.rows[0].cells[1].querySelector("button");
const sorted = [column(table, 1), ...[1, 2].map(() => { head.click(); return column(table, 1); })];
document.querySelectorAll("details").forEach((each) => { each.open = true; });
document.body.dataset.measured = JSON.stringify({
  scrolls: document.documentElement.scrollWidth,
  wide: document.documentElement.clientWidth,
  plots: Object.fromEntries([...document.querySelectorAll("svg.plot")].map((each) => [each.id, box(each)])),
  texts: [...document.querySelectorAll("svg.plot text")].map(box),
  tips: document.querySelectorAll("svg.plot .tip > title").length,
  images: document.images.length,
  tables: [...document.querySelectorAll(".scroll")].map((each) => each.scrollWidth - each.clientWidth),
  sorted,
  ground: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.querySelector("svg.plot text")).fill,
});
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    text = CROSSED.replace("layer_decay: [layerwise, uniform]", f"layer_decay: {json.dumps({EVIL: [], 'uniform': []})}")
    text = text.replace('"uniform": []', '"uniform": [layer_decay=uniform]')
    study = write_study(folder, text)
    write_runs(study, folder / "runs", crossed_ending)
    return write_report(study, folder / "runs", folder / "out")


def test_console_errors_are_seen(tmp_path: Path) -> None:
    """Of this test's own means: a page with an error does not pass."""
    page = tmp_path / "bad.html"
    page.write_text("<script>undefined.x</script>")
    with pytest.raises(AssertionError, match="CONSOLE"):
        open_page(page, "--dump-dom")


@pytest.mark.parametrize("width", [1200, 390])
def test_everything_is_shown(report: Path, width: int) -> None:
    found = measured(report, MEASURE, width)
    assert found["wide"] == width and found["scrolls"] <= width
    assert len(found["tables"]) >= 6 and max(found["tables"]) <= 0  # no table is wider than the page
    assert set(found["plots"]) == PLOTS and found["tips"] > 30
    for x, right, wide, high in found["plots"].values():
        assert x >= 0 and right <= width and wide > 0.8 * min(width, 400) and high > 80
    assert all(right <= width + 1 and high >= 8 for _, right, _, high in found["texts"])
    assert found["images"] == 0  # a level is called <img ...>


def test_tables_sort_by_number(report: Path) -> None:
    first, once, twice = measured(report, MEASURE, 1280)["sorted"]
    values = [float(text.split()[0].replace("\N{MINUS SIGN}", "-")) for text in first]
    assert values[0] > 0 > values[1]
    assert once == first[::-1] and twice == first


def test_light_and_dark_are_legible(report: Path) -> None:
    """Contrast of the text of plots to the ground, as WCAG defines it: 7 is its strictest demand."""
    for scheme in (0, 1):  # dark, light
        found = measured(report, MEASURE, 800, f"--blink-settings=preferredColorScheme={scheme}")
        shades = [luminance(found[name]) for name in ("ground", "ink")]
        assert (shades[0] < 0.1) == (scheme == 0)
        assert (max(shades) + 0.05) / (min(shades) + 0.05) > 7


def luminance(color: str) -> float:
    parts = np.array([int(part) for part in re.findall(r"\d+", color)[:3]]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("width", [1280, 390])
def test_the_picture_has_the_colours_of_the_plots(report: Path, width: int, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    open_page(
        report, f"--window-size={width},2000", f"--screenshot={picture}", "--blink-settings=preferredColorScheme=1"
    )
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    assert pixels.shape[1] == width
    for color in ("0072b2", "d55e00"):  # better and worse, in the forest
        near = np.abs(pixels.astype(int) - list(bytes.fromhex(color))).max(-1) < 6
        assert near.sum() > 30
