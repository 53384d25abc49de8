"""What a run refuses once its config is composed: values, keys that nobody reads, settings that do not fit each other.

All of it comes before data is opened: opening fails these tests with another error.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import ConfigError
from dinoswap.config.settings import check
from dinoswap.run.assemble import build_run
from dinoswap.run.metrics import RunRecord

SMOKE = compose_config(["recipe=smoke"])


def changed(assignment: str, config: Mapping[str, Any] = SMOKE) -> dict[str, Any]:
    """The config with one key set, as in "model.depth=3"."""
    key, _, value = assignment.partition("=")
    head, _, rest = key.partition(".")
    return {**config, head: changed(f"{rest}={value}", config.get(head, {})) if rest else yaml.safe_load(value)}


class DataTouched(Exception):
    pass


@pytest.fixture(autouse=True)
def data_is_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    def touch(*_: object) -> None:
        raise DataTouched

    monkeypatch.setattr("dinoswap.data.embedded.files", touch)


def build(config: Mapping[str, Any], folder: Path) -> None:
    def no_record() -> RunRecord:
        raise AssertionError("a record was started")

    build_run(config, folder, no_record)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("trainer.max_steps=abc", "must be a whole number, not text"),
        ("trainer.max_steps=0", "must be at least 1"),
        ("trainer.precision=bf17", "must be one of fp32, bf16, fp16, bf16_params. Did you mean 'bf16'?"),
        ("trainer.device=cudda", "Expected one of cpu, cuda"),
        ("trainer.checkpoint_minutes=-1.0", "must be 0 (only at the end) or more"),
        ("masking.mask_sample_probability=1.5", "must lie between 0 and 1"),
        ("masking.mask_ratio_min_max=[0.5, 0.1]", "needs 0 <= min <= max <= 1"),
        ("masking._target_=os.system", "no class of this group"),
        ("augmentation.local_blur=2.0", "use a number from 0 to 1"),
        ("layer_decay.rate=2.0", "must lie above 0 and not above 1"),
        ("schedule.base_lr=-1.0", "must be 0 or more"),
        ("schedule.base_lr=.nan", "must be a finite number"),
        ("schedule.momentum=1.2", "lies between 0 and 1"),
        ("schedule.warmup=1.5", "give a whole number of steps, or a fraction of the run"),
        ("schedule.lr_scaling=sqrt", "must be one of sqrt_1024, linear_256, none"),
        ("seed=x", "must be a whole number"),
        ("seed=-1", "must be 0 or more"),
        ("study=../elsewhere", "names a folder; use letters"),
        ("objective_metric=eval/knn_tpo1", "nothing of this name is measured. Did you mean 'eval/knn_top1'?"),
        ("objective_metric=eval/linear_top1", "needs evaluation.linear_probe=true"),
        ("model.size=smal", "must be one of tiny, small, base, large, so400m, huge, giant, 7b. Did you mean 'small'?"),
        ("model.num_heads=5", "must divide embed_dim=32"),
        ("model.patch_size=0", "must be at least 1"),
        ("model.depth=0", "must be at least 1"),
        ("model=small", "is a section, not a value; set one of its keys"),
        ("crops.global_size=33", "must be a multiple of model.patch_size=8; try crops.global_size=32"),
        ("crops.local_size=4", "must be a multiple of model.patch_size=8; try crops.local_size=8"),
        ("crops.local_number=-1", "must be 0 or more"),
        ("evaluation.size=33", "must be a multiple of model.patch_size=8"),
        ("evaluation.more_sizes=[16,33]", "must be multiples of model.patch_size=8 beside the size of 32 pixels"),
        ("evaluation.more_sizes=[32]", "must be multiples of model.patch_size=8 beside the size of 32 pixels"),
        ("evaluation.more_sizes=[16,16]", "must differ from each other"),
        ("evaluation.resize=16", "must be at least the size evaluated on, 32"),
        ("objectives=null", "is a section"),
        ("objectives.dino=3", "is a section"),
        ("objectives.dino.head=dino_haed", "is none of dino_head, ibot_head. Did you mean 'dino_head'?"),
        ("objectives.dino.head=[0.1]", "is none of dino_head, ibot_head."),
        ("objectives.dino.student_temp=0.0", "a temperature must be above 0"),
        ("objectives.koleo.loss_weight=-1.0", "must be 0 or more"),
        ("objectives.dino.targets.iterations=0", "needs at least 1"),
        ("heads.dino_head.layers=0", "at least 1"),
        ("heads.dino_head=4", "is a section"),
        ("optimizer.betas=[0.9]", "must have 2 entries"),
        ("optimizer.clip_grad=0.0", "must be above 0, or null for no clipping"),
        ("data.batch_size=0", "must be at least 1"),
        ("data.workers=-1", "must be 0"),
        ("data.max_corrupt_fraction=2.0", "must lie between 0 and 1"),
        ("data.test_fraction=1.0", "0 or more and below 1"),
        ("data.max_pixels=0", "must be at least 1"),
        ("data.range_16bit=[9,3]", "the first value is shown black"),
        ("data.tile=x", "must be a whole number"),
        ("da3.enabled=true", "choose the option, da3=enabled"),
        ("da3.enabled=3", "must be true or false"),
        # keys that nobody reads
        ("crpos=1", "there is no such key"),
        ("crops.glboal_size=32", "there is no such key. Did you mean 'global_size'?"),
        ("heads.ibot_head.prototpyes=5", "there is no such key. Did you mean 'prototypes'?"),
        ("heads.unused_head.prototpyes=5", "there is no such key. Did you mean 'prototypes'?"),
        ("evaluation.imagse=5", "there is no such key. Did you mean 'images'?"),
        ("objectives.koleo.wieght=5", "there is no such key"),
        ("data.tlie=5", "there is no such key. Did you mean 'tile'?"),
        ("masking.ratio=5", "there is no such key"),
        ("da3.loss_weight=5", "choose da3=enabled"),
        ("da3.teacher={}", "choose da3=enabled"),
    ],
)  # fmt: skip
def test_refused_with_key_value_and_remedy(assignment: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        build(changed(assignment), tmp_path)
    key, _, value = assignment.partition("=")
    shown = str(yaml.safe_load(value))
    assert str(refused.value).startswith(f"{key}={shown}: ")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("trainer.accumulate=3", "data.batch_size=8: trainer.accumulate=3 and 1 ranks cut it into 3"),
        ("schedule.warmup=100", "schedule.warmup=100: is longer than the run of trainer.max_steps=10; give fewer"),
        ("objectives={}", "objectives: none is left, so there is nothing to train"),
        ("objectives.kolelo={loss_weight: 1.0}", "objectives.kolelo._target_=None: no class of this group"),
        ("forward={}", "forward._target_=None: no class of this group"),
    ],
)  # fmt: skip
def test_refused_where_another_key_is_to_blame(assignment: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        build(changed(assignment), tmp_path)
    assert str(refused.value).startswith(message)


def test_a_missing_section_is_refused() -> None:
    with pytest.raises(ConfigError, match="crops=None: is a section"):
        check({key: value for key, value in SMOKE.items() if key != "crops"})


def test_what_is_not_refused_goes_on_to_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataTouched):
        build(SMOKE, tmp_path)
