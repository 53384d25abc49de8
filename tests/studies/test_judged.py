"""Completed runs of a study that are judged by further metrics, beside a run that measured these itself."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dinoswap.config.facts import DataFacts, build_source
from dinoswap.run import job
from dinoswap.run.assemble import build_run
from dinoswap.run.metrics import RunRecord
from dinoswap.studies import ablate
from dinoswap.studies.design import make_design
from dinoswap.studies.judged import is_of_judging
from dinoswap.studies.ledger import Entry, entries
from dinoswap.studies.report.collect import collect
from dinoswap.studies.runs import load_runs
from dinoswap.studies.study import read_study

SMALL = [
    *("recipe=smoke", "trainer.max_steps=2", "tracker=none", "evaluation.images=20"),
    *("evaluation.dense.train=8", "evaluation.dense.test=4"),
]
FURTHER = ["metric=[knn,segmentation]", "evaluation.more_sizes=[16]", "evaluation.metric.segmentation.patches=200"]


def trained(path: Path, *base: str) -> Entry:
    """The first run of a study with this base, trained in this process."""
    base = (*SMALL, f"results_dir={path.parent}", *base)
    path.write_text(
        f"# Which masking?\nbase: {json.dumps(base)}\nfactors: {{masking: [block, bernoulli]}}\n"
        "design: one_at_a_time\nseeds: 1\nmetrics: {eval/knn_top1: 2.0}\n"
    )
    study = read_study(path)
    entry = entries(study, make_design(study, check=False).cells)[0]
    config: Any = entry.config
    data = asdict(DataFacts.of(config, build_source(config)))
    identity = {"run_id": entry.run_id, "study": study.name, "seed": entry.seed, "choices": {}, "data": data}
    record = RunRecord(entry.folder / "run.json", overrides=entry.overrides, **identity)
    entry.folder.mkdir(parents=True)
    (entry.folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    job.finish(build_run(config, entry.folder, lambda: record))
    return entry


def record_of(entry: Entry) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((entry.folder / "run.json").read_text())
    return content


def test_they_get_the_numbers_that_a_run_gives_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate(*overrides: str) -> tuple[int, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["dinoswap-ablate", "evaluate", str(tmp_path / "mine.yaml"), *overrides])
        with pytest.raises(SystemExit) as ended:
            ablate.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    itself = record_of(trained(tmp_path / "itself.yaml", *FURTHER))["metrics"]
    entry = trained(tmp_path / "mine.yaml", "metric=[knn,features]")
    before, pictures = record_of(entry), sorted((entry.folder / "pictures").iterdir())
    assert load_runs(tmp_path)["metric.eval/seg_miou"].notna().sum() == 1
    pca = (entry.folder / "pictures" / "pca.png").stat()

    status, said = evaluate(*FURTHER)
    after = record_of(entry)
    added = set(after["metrics"]) - set(before["metrics"])
    assert (status, f"reference seed 0: {len(added)} numbers added" in said) == (0, True), said
    assert "masking=bernoulli seed 0: missing" in said
    assert {"eval/seg_miou", "eval/seg_miou/16", "baseline/raw_pixels/seg_knn_miou/16"} <= added
    assert added == {name for name in itself if "/seg_" in name}
    assert {name: after["metrics"][name] for name in added} == {name: itself[name] for name in added}
    assert {**after, "metrics": None} == {**before, "metrics": None, "judged": after["judged"]}
    assert {name: after["metrics"][name] for name in before["metrics"]} == before["metrics"]
    assert set(after["judged"][0]["names"]) == added
    assert after["judged"][0]["evaluation"]["metric"]["segmentation"]["patches"] == 200
    assert list(load_runs(tmp_path)["metric.eval/seg_miou/16"]) == [itself["eval/seg_miou/16"]] * 2
    as_now = ["metric=[knn,features,segmentation]", "metrics={eval/knn_top1: 1.0, eval/seg_miou/16: 2.0}"]
    shown = collect(read_study(tmp_path / "mine.yaml", as_now), entry.folder.parents[1]).runs[0]
    assert shown.value("eval/seg_miou/16") == itself["eval/seg_miou/16"]
    drawn = {path.name for path in set((entry.folder / "pictures").iterdir()) - set(pictures)}
    assert drawn == {"segmentation.png", "segmentation_16.png", "pca_16.png"}
    assert (entry.folder / "pictures" / "pca.png").stat() == pca

    for overrides in ([], FURTHER):
        status, said = evaluate(*overrides)
        assert (status, "reference seed 0: has been measured" in said) == (0, True)
        assert record_of(entry) == after

    changed = {**after, "data": {**after["data"], "fingerprint": "0"}}
    for content, message in ((changed, "has other images than"), ({**after, "steps": 9}, "is of step 2, not 9")):
        (entry.folder / "run.json").write_text(json.dumps(content))
        status, said = evaluate("metric=[depth]")
        assert (status, message in said) == (1, True), said
        assert record_of(entry) == content
    for overrides, message in (
        (["metric=[segmentatoin]"], "'segmentation'"),
        (["metric=[depth]", "evaluation.depth.trian=3"], "evaluation.depth.train"),
    ):
        status, said = evaluate(*overrides)
        assert (status, message in said) == (2, True), said


def test_which_overrides_are_of_the_evaluation() -> None:
    of_judging = [*FURTHER, "depth=folder", "evaluation.depth.path=/data/x", "dense=mosaic"]
    assert all(map(is_of_judging, of_judging))
    assert not any(map(is_of_judging, [*SMALL[:-2], "data.path=x", "evaluation.size=32", "model.depth=2"]))
