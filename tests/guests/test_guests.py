"""A package that is installed beside this one brings a mask, a position, an objective with its own network, images, a
metric of images and one of scenes, a tracker, and a teacher.

tests/guests/site is what pip leaves of it: the package, and its metadata with the entry point. The commands run in
processes that have it on their path, as those of a user who has installed it.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import dinoswap
import train_processes
from dinoswap.config.configuration import config_dir

SITE = Path(__file__).parent / "site"
PRODUCT = (config_dir(), Path(dinoswap.__file__).parent)
CHOICES = ["masking=checker", "position=raster", "extra_objective=mean_colour", "data=stripes"]
RUN = [
    "recipe=smoke", *CHOICES, "trainer.max_steps=4", "tracker=diary", "evaluation.images=20",
    "evaluation.in_loop_images=20", "evaluation.dense.test=6", "metric=[knn,features,edges,twins]",
]  # fmt: skip


def environment(site: Path = SITE) -> dict[str, str]:
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "DINOSWAP_CONFIG_DIR": str(config_dir())}


def command(module: str, *arguments: str, site: Path = SITE, cwd: Path | None = None) -> tuple[int, str]:
    return train_processes.command(module, arguments, environment(site), cwd or Path.cwd())


def rows_of(results: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of the only run, without what a clock decides."""
    (path,) = results.glob("runs/*/*/*/metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def records(results: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(results.glob("runs/*/*/*/run.json"))]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of four steps."""
    folder = tmp_path_factory.mktemp("guests")
    status, output = command("train", *RUN, f"results_dir={folder}")
    assert status == 0, output
    return folder


def test_an_option_is_one_yaml_and_one_module() -> None:
    package = SITE / "guest_options"
    modules = {path.stem for path in package.glob("*.py") if path.read_text()}
    options = sorted(path.stem for path in package.glob("configs/*/*.yaml"))
    assert options == sorted(modules - {"__init__"})
    files = [path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert len(files) == 2 * len(options) + 1, "those and an empty __init__.py"
    targets = [path.read_text().partition("_target_: ")[2].split()[0] for path in package.glob("configs/*/*.yaml")]
    product = [path for folder in PRODUCT for path in folder.rglob("*") if path.suffix in (".py", ".yaml", ".json")]
    text = "\n".join(path.read_text() for path in product)
    assert not [name for name in targets if re.search(rf"\b{name.rpartition('.')[2]}\b", text)], "nothing knows them"


def test_it_trains(results: Path) -> None:
    (record,) = records(results)
    assert (record["status"], record["steps"], record["data"]["images"]) == ("completed", 4, 64)
    rows = rows_of(results)
    assert all(row["mean_colour/mse"] > 0 for row in rows if "loss" in row)
    assert all(row["eval/edges"] > 0 for row in rows if "eval/knn_top1" in row)
    assert record["metrics"]["eval/edges"] > 0
    assert 0 < record["metrics"]["eval/twins"] <= 100
    assert 0 < record["metrics"]["baseline/raw_pixels/twins"] <= 100
    config = (next(results.glob("runs/*/*/*")) / "config.yaml").read_text()
    assert "guest_options.checker.CheckerMasking" in config
    assert "guest_options.raster.RasterPosition" in config
    last = next(results.glob("runs/*/*/*/checkpoints")) / "step-00000004"
    names = {name for path in last.glob("*.safetensors") for name in load_file(path)}
    assert any(name.endswith("cls_token") for name in names)
    assert not any(name.endswith("pos_embed") for name in names)


def test_its_tracker_is_told(results: Path) -> None:
    (path,) = results.glob("runs/*/*/*/diary.txt")
    begun, *lines, ended = path.read_text().splitlines()
    assert begun.startswith(
        "official recipe=smoke masking=checker position=raster extra_objective=mean_colour data=stripes "
    )
    assert begun.endswith(" seed 0, from step 1")
    assert ended == "completed"
    told = [line.partition(":")[0] for line in lines if "a picture of" not in line]
    assert told == [f"step {row['step']}" for row in rows_of(results)]
    assert "step 4: a picture of crops" in lines


def test_its_version_is_in_the_record_and_decides_which_run_it_is(results: Path, tmp_path: Path) -> None:
    (record,) = records(results)
    assert record["versions"]["guest-options"] == "1.2"
    assert record["identity"]["guests.guest-options"] == "1.2"
    site = tmp_path / "site"
    shutil.copytree(SITE, site)
    metadata = site / "guest_options-1.2.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("Version: 1.2", "Version: 1.3"))
    (folder,) = results.glob("runs/*/*/*")
    assert planned_with(SITE) == folder.relative_to(results / "runs")
    assert planned_with(site) != folder.relative_to(results / "runs")


def planned_with(site: Path) -> Path:
    """The folder of RUN, below that of all runs, with the package of this site."""
    program = (
        "import sys; from dinoswap.config.command_line import compose_config; "
        "from dinoswap.run.run_folder import planned_folder; print(planned_folder(compose_config(sys.argv[1:])))"
    )
    return Path(
        subprocess.check_output([sys.executable, "-c", program, *RUN], env=environment(site), text=True).strip()
    )


def test_the_same_command_finds_it_complete(results: Path) -> None:
    status, output = command("train", *RUN, f"results_dir={results}")
    assert (status, "is complete: nothing is left to do" in output) == (0, True), output


def test_a_run_of_its_options_that_is_killed_ends_as_it_would_have(results: Path, tmp_path: Path) -> None:
    arguments = [*RUN, "trainer.checkpoint_every=1", f"results_dir={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dinoswap.train", *arguments], env=environment(), stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/*/*/checkpoints/step-*2/meta.json")) and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    status, output = command("train", *arguments)
    assert status == 0, output
    assert "resumed after step" in output
    assert rows_of(tmp_path) == rows_of(results)


def test_its_teacher_is_distilled(tmp_path: Path) -> None:
    distilled = ["recipe=smoke", "da3=enabled", "teacher@da3.teacher=colours", "trainer.max_steps=2"]
    status, output = command("train", *distilled, "evaluation.images=20", f"results_dir={tmp_path}")
    assert status == 0, output
    assert "da3: teacher colours of 8 pixels, 3 channels" in output
    (record,) = records(tmp_path)
    assert (record["status"], record["steps"]) == ("completed", 2)
    assert record["choices"]["teacher@da3.teacher"] == "colours"
    assert record["identity"]["da3.teacher"] == "ColourTeacher"
    assert record["identity"]["guests.guest-options"] == record["versions"]["guest-options"] == "1.2"
    status, output = command("train", *distilled, "da3.ckpt_path=/dev/null", f"results_dir={tmp_path}")
    assert status == 2
    assert "da3.ckpt_path=/dev/null: " in output


def test_its_options_are_explained() -> None:
    chosen = ["masking=checker", "position=raster", "da3=enabled", "teacher@da3.teacher=colours"]
    status, output = command("train", "--explain", *chosen)
    assert status == 0, output
    assert re.search(r"masking +│ checker +│ +│ Every other square of patches is hidden", output)
    assert re.search(r"position +│ raster +│ +│ Queries and keys of patches are turned", output)
    assert re.search(r"teacher @ da3.teacher +│ colours +│ +│ The mean colour of each patch", output)


def test_a_run_is_judged_on_its_images(results: Path) -> None:
    folder = next(results.glob("runs/*/*/*"))
    few = ["data.images=24", "evaluation.images=20", "evaluation.linear_probe=false"]
    status, output = command("evaluate", str(folder), "data=stripes", *few)
    assert status == 0, output
    assert "data: 24 images of 4 classes" in output
    headings, *rows = (re.split(r" *[┃│] *", line) for line in output.splitlines() if line.startswith(("┃", "│")))
    twins = {row[1]: row[headings.index("twins")] for row in rows}
    assert set(twins) == {"trained", "random init", "raw pixels", "colour histogram", "position alone"}
    assert all(0 < float(value) <= 100 for value in twins.values())


@pytest.mark.slow
def test_a_study_varies_its_options(tmp_path: Path) -> None:
    base = ["recipe=smoke", "data=stripes", "trainer.max_steps=2", "tracker=none", "evaluation.images=20"]
    base += ["metric=[knn,features,edges,twins]", "evaluation.dense.test=6"]
    study = tmp_path / "guests.yaml"
    study.write_text(
        f"# Does the chessboard help?\nbase: {json.dumps(base)}\nfactors:\n  masking: [block, checker]\n"
        "design: one_at_a_time\nseeds: [0]\nmetrics: {eval/knn_top1: 1.0, eval/edges: 0.1, eval/twins: 2.0}\n"
    )
    for verb in ("run", "report"):
        status, output = command("studies.ablate", verb, str(study), f"results_dir={tmp_path}", cwd=tmp_path)
        assert status == 0, output
    assert {record["choices"]["masking"] for record in records(tmp_path)} == {"block", "checker"}
    report = next(tmp_path.rglob("report.md")).read_text()
    assert "masking=checker" in report
    content = json.loads(next(tmp_path.rglob("report.json")).read_text())
    higher = {result["metric"]["name"]: result["metric"]["higher_is_better"] for result in content["results"]}
    assert higher == {"eval/knn_top1": True, "eval/edges": False, "eval/twins": True}
    assert {row["eval/twins"] for row in content["runs"]} == {run["metrics"]["eval/twins"] for run in records(tmp_path)}


def test_a_metric_that_is_left_out_is_named(tmp_path: Path) -> None:
    status, output = command("train", "recipe=smoke", "objective_metric=eval/edges", f"results_dir={tmp_path}")
    assert status == 2
    assert "objective_metric=eval/edges: needs metric=[knn,linear,features,edges]" in output


def test_without_it_the_option_does_not_exist(tmp_path: Path) -> None:
    status, output = command("train", *RUN, f"results_dir={tmp_path}", site=tmp_path)
    assert status == 2
    assert "the group 'masking' has no option 'checker'" in output


def test_an_entry_point_that_names_no_folder_is_one_line(tmp_path: Path) -> None:
    site = tmp_path / "site"
    shutil.copytree(SITE, site)
    (site / "guest_options-1.2.dist-info" / "entry_points.txt").write_text("[dinoswap.options]\nmine = guest_options\n")
    status, output = command("train", "recipe=smoke", f"results_dir={tmp_path}", site=site)
    assert status == 2
    assert output.startswith(
        "dinoswap-train: entry point mine = guest_options of dinoswap.options: write package:folder"
    )
    assert output.count("\n") == 1


@pytest.mark.parametrize("target", ["os.system", "guest_optionsx.checker.CheckerMasking", "subprocess.Popen"])
def test_nothing_else_is_executed_by_a_config(target: str, tmp_path: Path) -> None:
    status, output = command("train", *RUN, f"masking._target_={target}", f"results_dir={tmp_path}")
    assert status == 2
    assert f"masking._target_={target}: no class of this group" in output
