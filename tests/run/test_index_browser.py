"""index.html of a folder with a run that was just trained, and others: while it goes on, and in Chromium."""

import json
import time
from pathlib import Path

import pytest

from browser import measured, needs_chromium, open_page
from dinoswap.config.configuration import plain
from dinoswap.evaluation.evaluator import Evaluation
from dinoswap.run.assemble import build_run
from dinoswap.run.index import PAGE
from dinoswap.run.job import finish
from dinoswap.run.metrics import RunRecord
from fake_runs import record, write_record
from small_models import composed

KNN = "eval/knn_top1"
EVIL = "<img src=x onerror=alert(1)>"
OVERRIDES = [
    *("recipe=smoke", "trainer.max_steps=2", "trainer.eval_every=1", "tracker=none", "data.workers=0"),
    *("trainer.device=cpu", "evaluation.in_loop_images=20", "evaluation.images=20", "data.batch_size=4"),
    *("model.depth=1", "crops.local_number=1"),
]

MEASURE = """
const table = document.querySelector("table");
const column = (name) => {
  const index = [...table.tHead.rows[0].cells].findIndex((head) => head.textContent === name);
  return [index, [...table.tBodies[0].rows].filter((row) => !row.hidden).map((row) => row.cells[index].innerText)];
};
const sorted = (name) => {
  table.tHead.rows[0].cells[column(name)[0]].querySelector("button").click();
  return column(name)[1];
};
const filtered = (text) => {
  const input = document.getElementById("filter");
  input.value = text;
  input.dispatchEvent(new Event("input"));
  return column("run")[1];
};
const scrolls = document.documentElement.scrollWidth;
for (const image of document.images) image.loading = "eager";
addEventListener("load", () => {
  const wide = [...document.querySelectorAll("main td")].map((cell) => cell.getBoundingClientRect().right);
  document.body.dataset.measured = JSON.stringify({
    scrolls,
    right: Math.max(...wide),
    status: column("status")[1],
    images: [...document.images].map((image) => [image.getAttribute("src"), image.naturalWidth]),
    curves: document.querySelectorAll("svg polyline").length,
    knn: [sorted("k-NN"), sorted("k-NN")],
    filtered: [filtered("mine FAIL"), filtered("")].map((found) => found.length),
    kept: [filtered("mine fail") && location.hash, document.getElementById("shown").textContent],
    reload: document.body.dataset.reload,
  });
});
"""


def write(folder: Path, **changed: object) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 5, KNN: 1.0}) + "\n")
    write_record(folder, record(run_id=folder.parent.name, **changed), int(time.time()))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs whose last was trained, with a copy of the page from each of its evaluations."""
    root = tmp_path_factory.mktemp("results") / "runs"
    write(root / "mine" / "a" / "seed0", status="failed", error="OSError: disk " + "x" * 300, metrics={KNN: 9.0})
    write(root / "mine" / "b" / "seed0", status="diverged", overrides=[EVIL], metrics={KNN: 10.0})
    write(root / EVIL / "c" / "seed0", status="preempted", study=EVIL, metrics={KNN: -1.0})
    write(root / "mine" / "d" / "seed0", status="running", metrics={})
    (root / "mine" / "broken" / "seed0").mkdir(parents=True)
    (root / "mine" / "broken" / "seed0" / "run.json").write_text("{")
    folder = root / "single" / "0123456789" / "seed0"
    started = RunRecord(
        folder / "run.json", "0123456789", "single", 0, {}, OVERRIDES, identity={"trainer.max_steps": 2}
    )
    run = build_run(plain(composed(OVERRIDES)), folder, lambda: started)
    evaluate = run.evaluator.in_loop

    def watched(*given: object) -> Evaluation:
        page = root / PAGE
        page.with_name(f"first-{len(list(root.glob('first-*')))}.html").write_text(page.read_text())
        return evaluate(*given)

    run.evaluator.in_loop = watched
    finish(run)
    return root


def row_of(page: str) -> str:
    (row,) = [row for row in page.split("<tr ") if "single/0123456789" in row]
    return row


def test_the_page_is_there_while_a_run_goes_on(root: Path) -> None:
    """It is written at the start, when nothing is known but what is asked for, and at the end."""
    first, last = row_of((root / "first-0.html").read_text()), row_of((root / PAGE).read_text())
    assert first.startswith('data-status="running"') and "0 / 2" in first and "<svg" not in first
    assert "recipe=smoke" in first and "crops.local_number=1" in first and "trainer.device" not in first
    assert last.startswith('data-status="completed"') and "2 / 2" in last and "pca.png" in last and "<polyline" in last


@needs_chromium
@pytest.mark.parametrize("width", [1200, 390])
def test_everything_is_shown(root: Path, width: int) -> None:
    """All of it, within the width; hostile text is text; the picture of the trained run is loaded."""
    found = measured(root / PAGE, MEASURE, width)
    assert found["scrolls"] <= width and found["right"] <= width
    assert set(found["status"]) == {"running", "completed", "failed", "diverged", "preempted", "unreadable"}
    ((source, pixels),) = found["images"]
    assert source.endswith("single/0123456789/seed0/pictures/pca.png") and pixels > 50
    assert found["curves"] == 4 and found["reload"] == "60"


@needs_chromium
def test_rows_sort_and_filter(root: Path) -> None:
    """As numbers, those without one first; the address keeps both for when the page is loaded again."""
    found = measured(root / PAGE, MEASURE, 1200)
    up, down = ([text.split("\n")[0] for text in texts] for texts in found["knn"])
    values = [float(text) for text in up if text]
    assert up[:2] == ["", ""] and values == sorted(values) and len(values) == 4
    assert values[0] == -1.0 and {9.0, 10.0} < set(values) and down == up[::-1]
    assert found["filtered"] == [1, 6]
    assert found["kept"] == ["#filter=mine+fail&descending=5", "1 shown"]
    again = open_page(root / PAGE, "--dump-dom", fragment=found["kept"][0])
    assert again.count('aria-sort="descending"') == 1 and again.count('hidden=""') == 5
