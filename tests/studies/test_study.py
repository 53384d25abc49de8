"""Study files: what they say is what is read, and every mistake is named with its key, its value and the remedy."""

import json
import re
from pathlib import Path

import pytest
import yaml

from dinoswap.config.configuration import config_dir
from dinoswap.config.schema import ConfigError, nearest
from dinoswap.studies.overrides import JOB_SETTINGS
from dinoswap.studies.study import Metric, Study, read_study
from dinoswap.studies.study_file import REPLACEABLE, Budget, read_file

GOOD = """\
# Which masking learns best,
# and with which heads?
#
# A remark that is no part of the question.
base: [preset=legacy, recipe=smoke]
factors:
  masking: [bernoulli, block]
  trainer.accumulate: [1, 2, 4]
  head:
    two: []
    one: [objectives.ibot.head=dino_head, heads.dino_head.prototypes=32]
design: one_at_a_time
seeds: 3
metrics:
  eval/knn_top1: 0.5
  cost.flops_per_image: 1.0e+6
  eval/dino/target_entropy: {smallest_effect: 0.1, higher_is_better: false}
"""


def read(tmp_path: Path, text: str, *overrides: str) -> Study:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read_study(path, overrides)


def test_what_a_file_says_is_what_is_read(tmp_path: Path) -> None:
    study = read(tmp_path, GOOD)
    assert (study.name, study.question) == ("mine", "Which masking learns best, and with which heads?")
    assert study.factors == {
        "masking": {"bernoulli": ["masking=bernoulli"], "block": ["masking=block"]},
        "trainer.accumulate": {n: [f"trainer.accumulate={n}"] for n in "124"},
        "head": {"two": [], "one": ["objectives.ibot.head=dino_head", "heads.dino_head.prototypes=32"]},
    }
    assert study.reference == {"masking": "bernoulli", "trainer.accumulate": "1", "head": "two"}
    assert (study.seeds, study.budget, study.invalid) == ([0, 1, 2], None, "error")
    assert study.metrics == [
        Metric(name="eval/knn_top1", smallest_effect=0.5),
        Metric(name="cost.flops_per_image", smallest_effect=1e6, higher_is_better=False),
        Metric(name="eval/dino/target_entropy", smallest_effect=0.1, higher_is_better=False),
    ]
    assert [metric.column for metric in study.metrics[:2]] == ["metric.eval/knn_top1", "cost.flops_per_image"]


def test_what_may_be_left_out(tmp_path: Path) -> None:
    more = """
exclude: [{masking: block, trainer.accumulate: [2, 4]}]
invalid: drop
budget: {steps: 1000}
cells:
  both: {masking: block, head: one}
  none:
"""
    study = read(tmp_path, GOOD.replace("one_at_a_time", "explicit").replace("seeds: 3", "seeds: [7, 9]") + more)
    assert study.exclude == [{"masking": ["block"], "trainer.accumulate": ["2", "4"]}]
    assert (study.seeds, study.budget, study.invalid) == ([7, 9], Budget(steps=1000), "drop")
    assert study.cells == {"both": {**study.reference, "masking": "block", "head": "one"}, "none": study.reference}


def test_the_command_line_adds_config_keys_and_replaces_keys_of_the_file(tmp_path: Path) -> None:
    study = read(tmp_path, GOOD, "seeds=[4, 5]", "trainer.max_steps=3", "preset=official", "design=leave_one_out")
    assert (study.seeds, study.design) == ([4, 5], "leave_one_out")
    assert study.base == ["recipe=smoke", "trainer.max_steps=3", "preset=official"]
    levels = study.reference | {"head": "one"}
    assert study.overrides(levels)[3:] == ["masking=bernoulli", "trainer.accumulate=1", *study.factors["head"]["one"]]


def test_no_key_of_a_study_file_is_a_key_of_the_config() -> None:
    """Or the command line could not tell them apart."""
    config = {
        line.split(":")[0] for line in (config_dir() / "train.yaml").read_text().splitlines() if line[:1].isalpha()
    }
    groups = {path.name for path in config_dir().iterdir()}
    assert not set(REPLACEABLE) & (config | groups)
    assert {"seed", "trainer", "masking"} <= config | groups


@pytest.mark.parametrize(
    ("written", "instead", "message"),
    [
        ("# Which", "base2: []\n# Which", "begin the file with a comment that asks the question"),
        ("design:", "desing:", "desing=one_at_a_time: there is no such key. Did you mean 'design'?"),
        ("design: one_at_a_time", "design: one_at_time", "design=one_at_time: must be one of one_at_a_time, leave"),
        ("design: one_at_a_time", "", "design: has to be given"),
        ("seeds: 3", "", "seeds: has to be given"),
        ("base:", "basis:", "base: has to be given"),
        ("seeds: 3", "seeds: 0", "seeds=0: must be a count of at least 1"),
        ("seeds: 3", "seeds: [1, 1]", "seeds=[1, 1]: must be"),
        ("seeds: 3", "seeds: 3\nseeds: 4", "cannot be read as YAML: while constructing a mapping"),
        ("seeds: 3", "seeds: [3", "cannot be read as YAML"),
        ("[preset=legacy, recipe=smoke]", "{preset: legacy}", "base={'preset': 'legacy'}: must be a list of overrides"),
        ("preset=legacy", "preset: legacy", "base: {'preset': 'legacy'} is no override; write <key>=<value>"),
        ("preset=legacy", "seed=3", "base: seed=3 cannot be set here; list the seeds under `seeds`"),
        ("preset=legacy", "study=x", "base: study=x cannot be set here; a study is called after its file"),
        ("[bernoulli, block]", "[block]", "factors.masking=['block']: must have at least two levels"),
        ("[bernoulli, block]", "[block, block]", "must have at least two levels, all different"),
        ("[bernoulli, block]", "block", "factors.masking=block: must be a list of options, or levels"),
        ("two: []", "off: []", "factors.head: YAML reads a level called on, off, yes or no as False; put it in quotes"),
        ("objectives.ibot.head=", "masking=block, objectives.ibot.head=", "factors.head: the factor masking sets"),
        ("eval/knn_top1", "eval/knn_topl", "metrics.eval/knn_topl: nothing of this name is measured. Did you mean"),
        ("eval/knn_top1: 0.5", "eval/knn_top1: 0", "metrics.eval/knn_top1.smallest_effect=0.0: must be above 0"),
        ("eval/knn_top1: 0.5", "eval/knn_top1: half", "metrics.eval/knn_top1.smallest_effect=half: must be a number"),
        ("smallest_effect: 0.1", "smalest_effect: 0.1", "Did you mean 'smallest_effect'?"),
        ("seeds: 3", "seeds: 3\nbudget: {hour: 2}", "budget.hour=2: there is no such key. Did you mean 'hours'?"),
        ("seeds: 3", "seeds: 3\nbudget: {hours: -2}", "budget.hours=-2.0: must be above 0"),
        ("seeds: 3", "seeds: 3\nruns: 8", "runs=8: belongs to design=fractional; remove it from design=one_at_a_time"),
        ("seeds: 3", "seeds: 3\nexclude: [{maskin: block}]", "exclude[0].maskin: there is no factor 'maskin'. Did"),
        ("seeds: 3", "seeds: 3\nexclude: [{masking: blok}]", "exclude[0].masking=blok: there is no level of mask"),
        ("seeds: 3", "seeds: 3\ninvalid: ignore", "invalid=ignore: must be one of error, drop"),
        ("one_at_a_time", "fractional\nruns: 1", "runs=1: must be at least 2"),
        ("one_at_a_time", "fractional\ngenerators: {head: masking}", "generators.head=masking: must be the list of"),
        ("one_at_a_time", "explicit", "cells=None: is a section"),
        ("one_at_a_time", "explicit\ncells: {a: {masking: [block, bernoulli]}}", "a cell has one level of a factor"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(tmp_path: Path, written: str, instead: str, message: str) -> None:
    assert written in GOOD
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, GOOD.replace(written, instead, 1))
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"{tmp_path / 'mine.yaml'}: ")


WRITES = "hydra.callbacks.x={_target_: pathlib.Path.write_text, _args_: [{_target_: pathlib.Path, _args_: [%s]}, hi]}"
OTHER_CODE = [
    *(prefix + WRITES for prefix in ("", "+", "++", "~")),
    "~hydra.callbacks",
    "hydra.job.env_set.LD_PRELOAD=/tmp/x.so",
    "+hydra.job.env_set={LD_PRELOAD: /tmp/x.so}",
    "hydra.searchpath=['file:///tmp']",
    "hydra/job_logging=default",
    "+hydra/callbacks=log_job_return",
    "hydra={callbacks: {}}",
    "+masking@hydra.callbacks.x=block",
    "hydra.run.dir=/tmp",
    "hydra.sweep.subdir=x",
    "hydra.launcher={_target_: os.system}",
    "hydra.launcher._target_=os.system",
    "hydra.launcher.setup=['rm -r /']",
    "hydra.launcher.additional_parameters.output=/tmp/x",
    "hydra.launcher.submitit_folder=/tmp",
    "hydra/launcher=../../tmp/mine",
    "hydra/launcher@x=local",
    "~hydra/launcher",
    "--config-dir=/tmp",
    "hydra.launcher.comment='x\nrm -r /'",
]
"""Of Hydra's keys, those that call functions, set variables, read configs from elsewhere, or write there."""


@pytest.mark.parametrize("line", OTHER_CODE, ids=range(len(OTHER_CODE)))
def test_a_study_file_runs_no_other_code(tmp_path: Path, line: str) -> None:
    """Wherever it has overrides. The message has the line, and what to do."""
    for text in (
        GOOD.replace("base: [", f"base: [{json.dumps(line)}, "),
        GOOD.replace("two: []", f"two: {json.dumps(line)}"),
        GOOD.replace("trainer.accumulate: [1, 2, 4]", f"{json.dumps(line.partition('=')[0])}: [1, 2]"),
    ):
        assert text != GOOD
        with pytest.raises(ConfigError) as refused:
            read(tmp_path, text)
        message = str(refused.value)
        assert line.partition("=")[0] in message
        assert re.search("on the command line|cannot be varied|is no override", message)
        assert "\n" not in message


def test_a_line_break_in_a_value_is_refused(tmp_path: Path) -> None:
    """sbatch is given values in lines of a shell script: what comes after a line break would be run."""
    for line in ("results_dir='x\nls'", "data.path='\\x1b[2J'"):
        with pytest.raises(ConfigError, match="is no override"):
            read(tmp_path, GOOD.replace("base: [", f'base: ["{line}", '.replace("\n", "\\n")))


def test_a_study_file_says_how_its_runs_are_launched(tmp_path: Path) -> None:
    """Which is no part of the runs; the command line has the last word."""
    lines = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=60"]
    study = read(tmp_path, GOOD.replace("base: [", f"base: [{', '.join(lines)}, "), "hydra.launcher.timeout_min=9")
    assert study.launcher == [*lines[:2], "hydra.launcher.timeout_min=9"]
    assert study.base == ["preset=legacy", "recipe=smoke"]
    with pytest.raises(ConfigError, match=r"factors.head.two: hydra.launcher.nodes=2 cannot be varied; say how runs"):
        read(tmp_path, GOOD.replace("two: []", "two: hydra.launcher.nodes=2"))
    with pytest.raises(ConfigError, match="Did you mean 'partition'"):
        read(tmp_path, GOOD.replace("base: [", "base: [hydra.launcher.partitoin=gpu, "))


def test_every_key_of_a_launcher_is_for_a_study_file_or_is_not() -> None:
    """A new key of a launcher is looked at: what runs code or names a place stays with the command line."""
    folder = config_dir() / "hydra" / "launcher"
    known = {key for path in folder.glob("*.yaml") for key in yaml.safe_load(path.read_text())}
    own = {"_target_", "setup", "additional_parameters", "submitit_folder", "name", "stderr_to_stdout", "check_code"}
    assert known == {*JOB_SETTINGS, *own}
    assert not own & set(JOB_SETTINGS)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("masking=inverse_block", "masking=inverse_block: the study varies this (factor masking)"),
        ("heads.dino_head.prototypes=8", "the study varies this (factor head)"),
        ("seeds=[3", "seeds=[3: the value cannot be read as YAML"),
        ("seed=3", "command line: seed=3 cannot be set here; list the seeds under `seeds`"),
        ("seeds=none", "seeds=none: must be a count"),
        ("trainer.max_steps", "trainer.max_steps is no override"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, GOOD, override)
    assert message in str(refused.value)


def test_studies_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_study("smoke").path == config_dir().parent / "ablations" / "smoke.yaml"
    (tmp_path / "ablations").mkdir()
    (tmp_path / "ablations" / "smoke.yaml").write_text(GOOD)
    assert read_study("smoke").question.startswith("Which masking learns")  # one's own come first
    with pytest.raises(ConfigError, match=r"smok: there is no such study\. Did you mean 'smoke'\? There are: .*demo"):
        read_study("smok")
    with pytest.raises(ConfigError, match="no such study"):
        read_study("elsewhere/smoke.yaml")


def test_an_optuna_study_is_handed_on(tmp_path: Path) -> None:
    path = tmp_path / "tuning.yaml"
    path.write_text(
        "# Which weight?\nbase: [recipe=smoke]\nseeds: 2\nspace: {da3.loss_weight: {low: 0.1}}\ntrials: 9\n"
    )
    with pytest.raises(ConfigError, match="`space` makes this an Optuna study; run `dinoswap-tune tuning`"):
        read_study(path)
    common, own = read_file(path, ["trials=4", "da3=enabled"])
    assert (common.name, common.seeds, common.base) == ("tuning", [0, 1], ["recipe=smoke", "da3=enabled"])
    assert own == {"space": {"da3.loss_weight": {"low": 0.1}}, "trials": 4}
    assert nearest("spce", own) == " Did you mean 'space'?"
