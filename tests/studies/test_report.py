"""The report says what the statistics say of the runs, no more, and shows names as they are."""

import base64
import io
import json
import math
import random
import re
import shlex
import shutil
import statistics
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_study import CIRCUMSTANCES, COLLAPSED_VALUE, SOUND, Ending, write_runs, write_study
from PIL import Image

from dinoswap.config.schema import ConfigError
from dinoswap.files.pictures import laid_out, save_png
from dinoswap.run.record import read_record
from dinoswap.studies.ledger import Entry, RunStatus
from dinoswap.studies.looks import Looks
from dinoswap.studies.report import analyse, write_again, write_report
from dinoswap.studies.report.collect import Run, collect, diagnose
from dinoswap.studies.report.markup import Table, latex_text, markdown, markdown_text
from dinoswap.studies.report.words import interval
from dinoswap.studies.statistics import Decision, Estimate, Look, attribute, factorial, family, paired_effect
from dinoswap.studies.study import Study, read_study

ARMS = """# Which of these learns best?
base: [preset=official, recipe=smoke]
factors:
  masking: [block, bernoulli, inverse_block]
  layer_decay: [layerwise, uniform]
  weight_decay: [all_groups, backbone_only]
design: one_at_a_time
seeds: 6
metrics: {eval/knn_top1: 1.0, images_per_second: 5.0}
"""
CROSSED = """# Do the two add up?
base: [recipe=smoke]
factors: {masking: [block, bernoulli], layer_decay: [layerwise, uniform]}
design: factorial
seeds: 3
metrics: {eval/knn_top1: 1.0}
"""
EVIL = '<img src=x onerror=alert(1)> "a" & | $x_{$ \x1b </script>'


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, attribute: str) -> list[str | None]:
        return [value for name, value in self.attributes if name == attribute]


def arm_ending(levels: Mapping[str, str], seed: int) -> Ending:
    """bernoulli is worse, uniform makes no difference, inverse_block collapses, diverges and fails."""
    noise = random.Random(f"{levels}{seed}").gauss(0, 0.2)
    value = 40 + random.Random(seed).gauss(0, 3) + noise
    if levels["masking"] == "bernoulli":
        return value - 4
    if levels["masking"] == "inverse_block":
        return [value, "collapsed", "collapsed", "diverged", "diverged", "failed"][seed]
    if levels["weight_decay"] == "backbone_only":
        return [value + 8, value - 8, value, None, "running", "preempted"][seed]
    return value


def crossed_ending(levels: Mapping[str, str], seed: int) -> float:
    masked, decayed = levels["masking"] == "bernoulli", levels["layer_decay"] == "uniform"
    return 40 + seed + 3.0 * masked - 2.0 * decayed + 1.5 * masked * decayed + random.Random(f"{levels}{seed}").random()


def outcomes(cells: Mapping[str, Mapping[str, str]], seeds: int, ending: Any) -> pd.DataFrame:
    """What `ending` means, by hand."""
    rows = []
    for cell, levels in cells.items():
        for seed in range(seeds):
            how = ending(levels, seed)
            status = "completed" if isinstance(how, float) else {None: "missing", "running": "killed"}.get(how, how)
            value = how if isinstance(how, float) else COLLAPSED_VALUE if how == "collapsed" else math.nan
            rows.append((cell, seed, status, value))
    return pd.DataFrame(rows, columns=["cell", "seed", "status", "value"])


def same(found: list[dict[str, Any]], decisions: list[Decision]) -> bool:
    """Every number that is reported of these decisions."""
    assert [each["name"] for each in found] == [decision.effect.name for decision in decisions]
    for each, decision in zip(found, decisions, strict=True):
        wanted = {
            name: getattr(decision.effect, name) for name in ("mean", "low", "high", "se", "df", "p", "p_equivalent")
        }
        wanted |= {name: getattr(decision, name) for name in ("kind", "words", "p_adjusted", "p_equivalent_adjusted")}
        wanted |= {name: getattr(decision, name) for name in ("seeds_for_smallest", "seeds_for_seen")}
        for name, value in wanted.items():
            missing = isinstance(value, float) and math.isnan(value)
            assert each[name] == (None if missing else value), (each["name"], name)
    return True


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path, Path]:
    """A study, its runs, its report."""
    folder = tmp_path_factory.mktemp("arms")
    study = write_study(folder, ARMS)
    write_runs(study, folder / "runs", arm_ending)
    return study, folder / "runs", write_report(study, folder / "runs", folder / "out")


def test_numbers_are_those_of_the_statistics(arms: tuple[Study, Path, Path]) -> None:
    _, _, html = arms
    found = json.loads(html.with_name("report.json").read_text())
    cells = {cell["name"]: cell["levels"] for cell in found["cells"]}
    assert next(iter(cells)) == "reference" and len(cells) == 5
    frame = outcomes(cells, 6, arm_ending)
    arms_of = [frame[frame["cell"] == cell] for cell in cells]
    effects = [
        paired_effect(arms_of[0], arm, name=cell, smallest_effect=1.0)
        for cell, arm in zip(list(cells)[1:], arms_of[1:], strict=True)
    ]
    effects[-1] = replace(effects[-1], look=Look(Looks((6,)), 0, planned=False))  # 3 of 6 seeds: not planned
    assert same(found["results"][0]["effects"], family(effects))
    kinds = {each["name"]: each["kind"] for each in found["results"][0]["effects"]}
    assert kinds["masking=bernoulli"] == "worse" and kinds["layer_decay=uniform"] == "equivalent"
    statuses = Counter((run["cell"], run["status"]) for run in found["runs"])
    assert statuses["masking=inverse_block", "collapsed"] == 2 and statuses["masking=inverse_block", "diverged"] == 2
    assert statuses["weight_decay=backbone_only", "killed"] == statuses["weight_decay=backbone_only", "missing"] == 1
    means = {cell: values["mean"] for cell, values in found["results"][0]["cells"].items()}
    assert means["reference"] == pytest.approx(frame[frame["cell"] == "reference"]["value"].mean())
    images = found["results"][1]["effects"]
    assert images[0]["mean"] == 0 and images[0]["kind"] == "not tested" and images[0]["low"] is None


def test_cells_have_means_and_spreads(arms: tuple[Study, Path, Path]) -> None:
    """As Python's statistics has them."""
    _, _, html = arms
    cells = {cell["name"]: cell["levels"] for cell in json.loads(html.with_name("report.json").read_text())["cells"]}
    frame = outcomes(cells, 6, arm_ending)
    rows = [line.split(" | ") for line in html.with_name("report.md").read_text().splitlines()]
    shown = {row[1].replace("\\", ""): row[4] for row in rows if row[0][2:].isdigit()}
    for cell, text in shown.items():
        values = frame[frame["cell"] == cell]["value"].dropna().tolist()
        assert text == f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}", cell
    assert list(shown) == list(cells)


def test_the_answer_names_every_verdict(arms: tuple[Study, Path, Path]) -> None:
    study, root, html = arms
    answer = analyse(study, root).answer
    for text in (
        "On eval/knn_top1, against reference, with 6 seeds: masking=bernoulli is worse, \N{MINUS SIGN}",
        "layer_decay=uniform makes no difference as large as 1",
        "weight_decay=backbone_only make",
        "seeds would find one of 1)",
        "3 of 30 runs have no outcome yet",
    ):
        assert text in answer, text
    page = Page(html.read_text())
    assert answer in page.text and markdown_text(answer) in html.with_name("report.md").read_text()
    assert "2 diverged and 1 failed and 2 collapsed of 6" in page.text  # in the words of the verdict
    assert "features are collapsing: RankMe 1.1 of 192" in page.text
    assert "diverged: loss is nan after step 4" in page.text and "a second line" not in page.text


def test_a_page_is_whole_by_itself(arms: tuple[Study, Path, Path]) -> None:
    _, _, html = arms
    text = html.read_text()
    page = Page(text)
    assert page.tags["svg"] == len(list((html.parent / "figures").glob("*.svg"))) == 8
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    used = re.findall(r"url\(#([^)]+)\)", text) + [
        (link or "").lstrip("#") for link in page.all("xlink:href") + page.all("href")
    ]
    assert set(used) - {"data:,"} <= set(ids)
    assert not re.search(r"(src|href)=.?https?:|@import|fetch\(|url\((?!#)", text.replace("xmlns", ""))
    assert all(page.all("aria-label")) and page.tags["th"] == text.count('<th scope="col"')
    assert "git checkout 0123456789\n" in page.text and "dinoswap-ablate run study" in page.text
    assert "dinoswap-train preset=official recipe=smoke masking=bernoulli" in page.text
    for figure in (html.parent / "figures").glob("*.svg"):
        assert ElementTree.parse(figure).getroot().tag.endswith("svg") and figure.with_suffix(".png").exists()
    linked = re.findall(r"\]\((figures/.*?)\)", html.with_name("report.md").read_text())
    assert len(linked) == 8 and all((html.parent / name).exists() for name in linked)


def test_the_same_runs_give_the_same_files(arms: tuple[Study, Path, Path], tmp_path: Path) -> None:
    study, root, html = arms
    again = write_report(study, root, tmp_path).parent
    files = [path.relative_to(again) for path in again.rglob("*.*")]
    assert len(files) == 20
    assert all((again / file).read_bytes() == (html.parent / file).read_bytes() for file in files)


def test_figures_of_an_earlier_report_go_and_others_stay(arms: tuple[Study, Path, Path], tmp_path: Path) -> None:
    study, root, _ = arms
    figures = write_report(study, root, tmp_path).parent / "figures"
    before = {path.stem for path in figures.iterdir()}
    (figures / "mine.png").touch()
    fewer = replace(study, metrics=study.metrics[:1])
    report = write_report(fewer, root, tmp_path).with_name("report.md").read_text()
    left = {path.stem for path in figures.iterdir()}
    assert left == {"mine", *re.findall(r"\(figures/(.*?)\.png\)", report)}
    assert left - {"mine"} < before


def test_a_factorial_has_main_effects_interactions_and_an_attribution(tmp_path: Path) -> None:
    study = write_study(tmp_path, CROSSED)
    write_runs(study, tmp_path / "runs", crossed_ending)
    html = write_report(study, tmp_path / "runs", tmp_path / "out")
    found = json.loads(html.with_name("report.json").read_text())
    cells = {cell["name"]: cell["levels"] for cell in found["cells"]}
    frame, levels = outcomes(cells, 3, crossed_ending), {factor: list(o) for factor, o in study.factors.items()}
    direct = factorial(frame, cells, levels, smallest_effect=1.0)
    (result,) = found["results"]
    assert same(result["effects"], family(direct.main)) and same(result["interactions"], family(direct.interactions))
    start = {"masking": "block", "layer_decay": "layerwise"}
    end = {"masking": "bernoulli", "layer_decay": "uniform"}
    shares = attribute(frame, cells, levels, start, end, smallest_effect=1.0)
    assert same(result["attribution"]["values"], family(shares.values))
    assert same(result["attribution"]["gap"], family([shares.gap]))
    values = {each["name"]: each["mean"] for each in result["attribution"]["values"]}
    assert values["masking"] == pytest.approx(3.75, abs=1) and values["layer_decay"] == pytest.approx(-1.25, abs=1)
    assert sum(values.values()) == pytest.approx(result["attribution"]["gap"][0]["mean"])
    answer = analyse(study, tmp_path / "runs").answer
    assert "averaged over the levels of the other factors" in answer
    assert "masking accounts for +" in answer
    names = {plot.stem for plot in (tmp_path / "out" / "figures").glob("*.png")}
    assert names == {
        "effects-1",
        "attribution",
        "interactions",
        "seeds",
        "curve-metric",
        "curve-loss",
        "over-training-1",
        "effects-cost",
        "cost",
    }


def test_nothing_has_run_yet(tmp_path: Path) -> None:
    study = write_study(tmp_path, CROSSED)
    html = write_report(study, tmp_path / "runs", tmp_path / "out")
    page = Page(html.read_text())
    assert "Nothing can be said yet: none of 12 runs has ended." in page.text
    assert page.tags["svg"] == 0 and page.text.count("missing") >= 12
    assert json.loads(html.with_name("report.json").read_text())["results"] == []


def test_one_seed_and_what_was_not_asked_for(tmp_path: Path) -> None:
    """With one seed there is no interval; runs of other seeds are named, and not used."""
    study = write_study(tmp_path, CROSSED)
    changed = {"git": {"sha": "f" * 40, "dirty": True}}
    write_runs(study, tmp_path / "runs", lambda levels, seed: crossed_ending(levels, seed), **changed)
    one = write_study(tmp_path / "one", CROSSED.replace("seeds: 3", "seeds: 1").replace("factorial", "one_at_a_time"))
    html = write_report(one, tmp_path / "runs", tmp_path / "out")
    found = json.loads(html.with_name("report.json").read_text())
    (result,) = found["results"]
    assert [effect["kind"] for effect in result["effects"]] == ["no estimate", "no estimate"]
    assert all(effect["low"] is None and effect["mean"] is not None for effect in result["effects"])
    assert len(found["unasked"]) == 9 and "have no estimate yet" in found["answer"]
    page = Page(html.read_text())
    for text in ("There is one seed", "changes that are in no commit", "Not used: 9 runs", "ffffffffff + changes"):
        assert text in page.text, text
    assert "git checkout" not in page.text and "±" not in page.text


def test_the_command_that_it_gives_asks_for_the_same_study(tmp_path: Path) -> None:
    asked = [
        *("schedule.base_lr=0.002", "seeds=[4, 2]", "metrics={eval/rankme: 0.5}", "schedule.base_lr=0.003"),
        "exclude=[{masking: bernoulli, layer_decay: uniform}]",
    ]
    study = read_study(write_study(tmp_path, CROSSED).path, asked)
    html = write_report(study, tmp_path / "runs", tmp_path / "out")
    given = re.search(r"^dinoswap-ablate report study (.*)$", html.with_name("report.md").read_text(), re.MULTILINE)
    assert given is not None
    assert read_study(study.path, shlex.split(given[1])) == study


@pytest.mark.parametrize(
    ("changed", "collapsed", "said"),
    [
        ({}, False, ""),
        ({"eval/rankme": 1.5}, True, "features are collapsing"),
        ({"eval/rankme": None}, True, "rankme not finite"),
        ({"eval/dino/target_entropy": 6.9}, False, "dino's teacher targets are uniform"),  # as before any training
        ({"eval/da3/cosine": None, "baseline/random_init/knn_top1": None}, False, ""),
    ],
)
def test_what_counts_as_collapsed(changed: dict[str, float | None], collapsed: bool, said: str) -> None:
    targets = {"target_entropy": 3.0, "target_entropy_max": math.log(1024), "target_information": 1.0}
    targets |= {"target_information_max": 4.0, "prototype_perplexity": 50.0}
    metrics = SOUND | {f"eval/dino/{name}": value for name, value in targets.items()}
    found, sentence = diagnose({"eval/knn_top1": 40.0, **metrics, **changed})
    assert found == collapsed and sentence.startswith(said) and bool(sentence) == bool(said)


@pytest.mark.parametrize("design", ["factorial", "one_at_a_time"])
@pytest.mark.parametrize(
    ("ending", "lead"),
    [
        (lambda levels, seed: "diverged", "All {} runs diverged: nothing can be said."),
        (lambda levels, seed: "collapsed", "All {} runs collapsed: nothing can be said."),
        (lambda levels, seed: 31.25, "All {} runs have the same eval/knn_top1, 31.25: nothing can be said."),
        (lambda levels, seed: ["diverged", "collapsed", "failed"][seed], "All {} runs collapsed, diverged or failed ("),
        (lambda levels, seed: math.nan, "All {} runs failed: nothing can be said."),  # the metric is not finite
    ],
)
def test_what_says_nothing_leads_the_answer_and_is_not_tested(
    tmp_path: Path, design: str, ending: Any, lead: str
) -> None:
    """They were called equivalent, p < 0.0001: networks that collapsed all score alike."""
    study = write_study(tmp_path, CROSSED.replace("factorial", design))
    write_runs(study, tmp_path / "runs", ending)
    found = analyse(study, tmp_path / "runs")
    assert found.answer.startswith(lead.format(12 if design == "factorial" else 9))
    assert "no difference as large" not in found.answer
    (result,) = found.results
    assert {decision.kind for decision in result.decisions} <= {"not tested", "no estimate"}
    assert all(d.effect.p == d.effect.p_equivalent == 1 and math.isnan(d.effect.low) for d in result.decisions)
    assert not result.interactions and result.attribution is None


def test_a_page_of_collapsed_runs_says_so(tmp_path: Path) -> None:
    study = write_study(tmp_path, CROSSED)
    write_runs(study, tmp_path / "runs", lambda levels, seed: "collapsed")
    page = Page(write_report(study, tmp_path / "runs", tmp_path / "out").read_text())
    assert "All 12 runs collapsed: nothing can be said." in page.text
    assert "There is none: all 12 runs collapsed." in page.text and page.text.count("not tested") >= 4
    assert "<0.0001" not in page.text and "every run of both sides fails" in page.text


def test_runs_that_fail_lead_the_answer(arms: tuple[Study, Path, Path], tmp_path: Path) -> None:
    study, root, _ = arms
    assert analyse(study, root).answer.startswith(
        "2 diverged and 1 failed and 2 collapsed of 27 runs, in masking=inverse_block (5 of 6). On eval/knn_top1, "
    )
    half = write_study(tmp_path, CROSSED)
    write_runs(half, tmp_path / "runs", lambda at, seed: "collapsed" if at["masking"] != "block" else 40.0 + seed)
    found = analyse(half, tmp_path / "runs")
    assert found.answer.startswith("6 collapsed of 12 runs, in masking=bernoulli (3 of 3) and masking=bernoulli, layer")
    kinds = {decision.effect.name: decision.kind for decision in found.results[0].decisions}
    assert kinds["masking=bernoulli"] == "worse because more runs fail"


def test_a_report_is_made_again_from_its_own_rows(arms: tuple[Study, Path, Path], tmp_path: Path) -> None:
    """All of its files, byte by byte, without run folders; curves are kept as they were drawn."""
    _, _, html = arms
    copied = Path(shutil.copytree(html.parent, tmp_path / "report"))
    again = write_again(copied / "report.json", tmp_path / "again").parent
    files = [path.relative_to(html.parent) for path in html.parent.rglob("*.*")]
    assert len(files) == 20 and len(list(again.rglob("*.*"))) == 20
    assert [str(f) for f in files if (again / f).read_bytes() != (html.parent / f).read_bytes()] == []


def test_pictures_of_runs_are_shown_a_row_for_each_cell(tmp_path: Path) -> None:
    """Of the seed that most cells have, the first scene, whatever else lies in the folders."""
    study = write_study(tmp_path, CROSSED)
    write_runs(study, tmp_path / "runs", crossed_ending)
    shades: dict[str, int] = {}
    for number, run in enumerate(collect(study, tmp_path / "runs").runs):
        (run.folder / "pictures").mkdir()
        save_png(run.folder / "pictures" / "curves.png", np.zeros((9, 9, 3), dtype=np.uint8))
        if run.entry.seed == 0 and run.entry.cell == "reference":
            continue
        scenes = [np.full((40, 50, 3), shade, dtype=np.uint8) for shade in (10 * number, 250)]
        save_png(run.folder / "pictures" / "depth_64.png", laid_out([scenes, scenes], ["image", "truth"]))
        if run.entry.seed == 1:
            shades[run.entry.cell] = 10 * number
    broken = next(iter(shades))
    html = write_report(study, tmp_path / "runs", tmp_path / "out")
    links = [link for link in Page(html.read_text()).all("xlink:href") if (link or "").startswith("data:image/png")]
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(str(link).partition(",")[2])))) for link in links]
    assert [set(picture[-1, :, 0].tolist()) - {255} for picture in shown] == [{shade} for shade in shades.values()]
    assert {picture.shape[:2] for picture in shown} == {(56, 116)}, "titles and one of two scenes"
    assert "by the run of seed 1 of each cell" in html.read_text() and "depth 64." in html.read_text()
    again = write_again(html.with_name("report.json"), tmp_path / "out")
    assert len([link for link in Page(again.read_text()).all("xlink:href") if "data:" in (link or "")]) == len(shades)
    for run in collect(study, tmp_path / "runs").of_cell(broken):
        (run.folder / "pictures" / "depth_64.png").write_bytes(b"no picture")
    assert f"Without such a picture: {broken}." in write_report(study, tmp_path / "runs", tmp_path / "out").read_text()


def test_a_crossed_report_is_made_again_and_other_files_are_refused(tmp_path: Path) -> None:
    study = write_study(tmp_path, CROSSED)
    write_runs(study, tmp_path / "runs", crossed_ending)
    html = write_report(study, tmp_path / "runs", tmp_path / "out")
    again = write_again(html.with_name("report.json"), tmp_path / "again")
    assert again.read_text() == html.read_text()
    content = json.loads(html.with_name("report.json").read_text())
    for changed, message in (
        ({key: value for key, value in content.items() if key != "factors"}, "has no factors"),
        (content | {"runs": [{"cell": "reference"}]}, "is not what a report writes"),
        ([], "has no study, file"),
        (content | {"results": []}, "no run had ended"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match=f"bad.json: {message}"):
            write_again(tmp_path / "bad.json", tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    "hostile",
    [
        {"hardware": {"gpus": 5}}, {"hardware": [1]}, {"versions": "3"}, {"git": 7}, {"ended": "yesterday"},
        {"ended": "2026-01-02"}, {"started": 12}, {"metrics": [3]}, {"cost": {"flops_per_image": 1e200}},
    ],
)  # fmt: skip
def test_a_record_that_is_not_what_it_should_be_is_shown_without_it(hostile: dict[str, Any], tmp_path: Path) -> None:
    record = CIRCUMSTANCES | {"ended": "2026-01-02T04:00:00+00:00", "metrics": {"eval/knn_top1": 40}} | hostile
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "0123456789", "seed": 0, "status": "completed"} | record))
    entry = Entry(cell="reference", seed=0, overrides=[], config={}, folder=tmp_path)
    run = Run(entry, RunStatus("completed", "", read_record(tmp_path / "run.json")[0]), tmp_path, "completed", "")
    assert isinstance(run.hardware, str) and isinstance(run.versions, str) and isinstance(run.commit, str)
    assert isinstance(run.wall_hours, float) and math.isnan(run.value("cost.flops_per_image"))
    assert run.value("eval/knn_top1") == 40 or math.isnan(run.value("eval/knn_top1")) == ("metrics" in hostile)


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    levels = {"plain": [], EVIL: ["masking=bernoulli"]}
    text = CROSSED.replace("masking: [block, bernoulli]", f"arm: {json.dumps(levels)}").replace(
        "# Do", f"# {EVIL[:-12]} Do"
    )
    study = write_study(tmp_path, text)
    write_runs(study, tmp_path / "runs", lambda levels, seed: 40.0 + seed + 3 * (levels["arm"] == EVIL))
    html = write_report(study, tmp_path / "runs", tmp_path / "out")
    page = Page(html.read_text())
    assert page.tags["img"] == 0 and page.tags["script"] == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    shown = f"arm={EVIL}"
    assert shown in page.text and page.text.count("<img src=x onerror=alert(1)>") > 10
    written = html.with_name("report.md").read_text()
    assert "<" not in written and r"\$x\_{\$" in written
    tables = [part.splitlines() for part in written.split("\n\n") if part.startswith("|")]
    widths = [{len(re.split(r"(?<!\\)\|", line)) for line in table} for table in tables]
    assert len(widths) > 6 and all(len(width) == 1 for width in widths)
    assert "$x_{$" not in html.with_name("tables.tex").read_text()


def test_markup() -> None:
    table = Table("t", "c", ["a|b", "n"], [["x|y\nz", "1"], ["`<b>`", "-"]], ["a|b"])
    rows = markdown(table).splitlines()
    assert rows[0] == r"| a\|b | n |" and rows[1] == "| --- | ---: |" and rows[2] == r"| x\|y z | 1 |"
    assert rows[3] == r"| \`&lt;b&gt;\` | - |"
    assert latex_text(r"50% of a_b\c{d} ~ #1 & $2^3$") == (
        r"50\% of a\_b\textbackslash{}c\{d\} \textasciitilde{} \#1 \& \$2\textasciicircum{}3\$"
    )


@pytest.mark.parametrize(
    ("mean", "se", "text"),
    [
        (2.0, 0.5, "+2.00 [+0.41, +3.59]"),  # t(3, .975) = 3.182
        (-0.00123, 0.0001, "-0.001230 [-0.001548, -0.000912]"),
        (1234.5, 100.0, "+1234 [+916, +1553]"),
        (1e-16, 1.0, "0 [-3.18, +3.18]"),
        (0.0, 0.0, "0 [0, 0]"),
        (1.5, math.nan, "+1.5"),
        (math.nan, math.nan, ""),
    ],
)
def test_an_interval_has_three_digits_of_what_is_uncertain(mean: float, se: float, text: str) -> None:
    estimate = Estimate(name="", mean=mean, se=se, df=3, seeds=(0, 1, 2, 3))
    assert interval(estimate) == text.replace("-", "\N{MINUS SIGN}")
