"""What a run is: the name depends on what decides the result, and on no version of the defaults."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from dinoswap.config.command_line import compose_config
from dinoswap.config.configuration import config_dir, flatten
from dinoswap.config.identity import ROOT, described, identity, run_id
from dinoswap.config.schema import ConfigError
from dinoswap.run.checkpoint import Checkpoint, require_same_config
from versioned_defaults import BUNDLES, NAME, appended, as_text, present

SMOKE = compose_config(["recipe=smoke"])
PARQUET = compose_config(["recipe=smoke", "data=parquet", "data.path=x"])
KNOWN = json.loads((config_dir() / NAME).read_text())
EARLIER_DEMO = [
    "model.embed_dim=96", "model.depth=4", "model.num_heads=3",
    "crops.global_size=32", "crops.local_size=16", "crops.local_number=6", "evaluation.size=null",
    *(f"heads.{head}_head.{size}" for head in ("dino", "ibot") for size in ("hidden_dim=512", "bottleneck_dim=128")),
    "augmentation.global_crops_scale=[0.32,1.0]", "augmentation.local_crops_scale=[0.05,0.32]",
    "augmentation.global2_blur=0.9", "augmentation.local_blur=0.5", "augmentation.global2_solarize=0.2",
    "schedule.momentum=0.98", "schedule.weight_decay_end=0.4", "trainer.max_steps=1000",
]  # fmt: skip
"""The overrides of recipe=demo as it was until it cropped at 24 px: the names of its runs are known from then."""


def changed(key: str, value: Any, config: Mapping[str, Any] = SMOKE) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {**config, head: changed(rest, value, config[head]) if rest else value}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 7),
        ("study", "lr"),
        ("results_dir", "/elsewhere"),
        ("objective_metric", "eval/rankme"),
        ("data.workers", 3),
        ("trainer.device", "cuda"),
        ("trainer.log_every", 5),
        ("trainer.checkpoint_every", 7),
        ("tracker", {}),
        ("optimizer.clip_grad", 3),  # 3 or 3.0
        ("crops.global_size", 32.0),
        ("optimizer.betas", [0.9, 0.9990]),
        ("masking._target_", "dinoswap.masking.elsewhere.BlockMasking"),  # modules may move
        ("objectives.clustering.prototypes", 7),  # of an objective that there is not
    ],
)
def test_the_run_id_ignores_what_cannot_change_the_result(key: str, value: Any) -> None:
    assert identity(changed(key, value)) == identity(SMOKE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.precision", "bf16"),
        ("trainer.max_steps", 11),
        ("masking.min_aspect", 0.4),
        ("optimizer.betas", [0.9, 0.99]),
        ("data.batch_size", 16),
        ("objectives.koleo", {}),
        ("teacher_dropout", 1),  # 1 is not true, and neither false
    ],
)
def test_the_run_id_depends_on_what_can(key: str, value: Any) -> None:
    assert run_id(identity(changed(key, value))) != run_id(identity(SMOKE))


def test_whatever_else_is_set_is_in_it() -> None:
    """Where things lie, who computes them, what is written how often; nothing else may be left out."""
    left_out = set[str]()
    for data in ("image_folder", "webdataset", "torchvision"):
        config = compose_config(["recipe=smoke", "da3=enabled", "distributed=fsdp2", f"data={data}", "data.path=x"])
        left_out |= {key for key in flatten(config) if identity(changed(key, "another", config)) == identity(config)}
    assert {key for key in left_out if not key.startswith("objectives.clustering.")} == {  # there is no such objective
        *("seed", "study", "results_dir", "objective_metric", "da3.ckpt_path", "da3.use_fsdp"),
        *(f"data.{name}" for name in ("path", "test_path", "labels", "workers", "download")),
        *(f"distributed.{name}" for name in ("timeout_minutes", "reshard_after_forward", "replicas")),
        "tracker.tensorboard._target_",
        *(f"evaluation.metric.{family}.in_loop" for family in ("knn", "linear", "features")),
        *(f"trainer.{each}" for each in ("log_every", "eval_every", "checkpoint_every", "checkpoint_minutes")),
        *(f"trainer.{name}" for name in ("keep_checkpoints", "device")),
    }


def test_only_what_is_not_the_default_is_in_it() -> None:
    chosen = ["masking=bernoulli", "masking.token_mask_ratio=0.3", "~objectives.koleo", "clustering=masked"]
    expected = {"masking": "BernoulliMasking", "masking.token_mask_ratio": 0.3, "objectives.koleo": None}
    more = {"objectives.clustering": "Masked", "objectives.clustering.prototypes": 64}  # 64 of the recipe
    assert identity(compose_config(["recipe=smoke", *chosen])) == identity(SMOKE) | expected | more


def test_what_a_way_of_spreading_rounds_is_in_it() -> None:
    fsdp2 = ["recipe=smoke", "distributed=fsdp2"]
    assert identity(compose_config(fsdp2)) == identity(SMOKE)
    rounded = compose_config([*fsdp2, "distributed.reduce_dtype=bf16", "distributed.timeout_minutes=3"])
    assert identity(rounded) == identity(SMOKE) | {"distributed.reduce_dtype": "bf16"}


@pytest.mark.parametrize(
    ("precision", "gathered", "said"),
    [
        *[("bf16", "null", "bf16"), ("bf16", "bf16", "bf16"), ("bf16", "fp32", None), ("fp16", "null", None)],
        *[("bf16_params", "null", None), ("bf16_params", "bf16", None)],
    ],
)
def test_weights_are_gathered_in_bf16_where_the_trainer_computes_in_it(
    precision: str, gathered: str, said: str | None
) -> None:
    """Which is another run than that of one process: norms and prototypes are rounded too, unless they are anyway."""
    overrides = ["recipe=smoke", f"trainer.precision={precision}"]
    found = identity(compose_config([*overrides, "distributed=fsdp2", f"distributed.param_dtype={gathered}"]))
    more = {} if said is None else {"distributed.param_dtype": said}
    assert found == identity(compose_config(overrides)) | more


def test_the_run_id_does_not_depend_on_the_order_of_overrides() -> None:
    overrides = ["recipe=smoke", "targets@objectives.dino.targets=centering", "schedule.momentum=0.9", "seed=3"]
    assert run_id(identity(compose_config(overrides))) == run_id(identity(compose_config(overrides[::-1])))


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "5aaa75aeca"),
        (["da3.teacher.variant=base", "da3=enabled"], "f08a5aad08"),
        (["da3=enabled", "teacher@da3.teacher=timm", "da3.teacher.variant=tf_efficientnet_lite0"], "1e5e185779"),
        (["da3=enabled", "teacher@da3.teacher=dinov2"], "fec9ebfc02"),
        (["da3=enabled", "da3.teacher.token_part=local", "da3.teacher.normalise_halves=true"], "2f55f706bd"),
    ],
)
def test_keys_that_have_moved_rename_no_run(overrides: list[str], name: str) -> None:
    """The names are those of 2ded70b, where the keys of the teacher stood in da3 itself."""
    recipe = EARLIER_DEMO if "da3=enabled" in overrides else ["recipe=smoke"]
    assert run_id(identity(compose_config([*recipe, *overrides]))) == name


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (EARLIER_DEMO, "e56723726a"),
        (["recipe=smoke", "schedule.base_lr=0.001"], "842ae74db3"),
        (["recipe=smoke", "schedule.warmup=2", "schedule.freeze_by=drop_gradients"], "48138d9bf3"),
        (["recipe=smoke", "schedule.weight_decay_warmup=${.warmup}"], "04af71599c"),
        (["recipe=vits16", "preset=legacy"], "8e087c7fce"),
        (["recipe=vitg14", "preset=dinov3", "schedule.momentum=0.99"], "73ffcab7ce"),
        (["recipe=vitl16_short", "preset=aligned"], "9f7f4a58fa"),
    ],
)
def test_a_section_that_has_become_a_group_renames_no_run(overrides: list[str], name: str) -> None:
    """The names are those of 73fb418, where `schedule` stood in train.yaml and its keys in the recipes themselves."""
    assert run_id(identity(compose_config(overrides))) == name


def test_another_option_of_it_is_another_run() -> None:
    changes = {"schedule": "PiecewiseSchedule", "schedule.lr.peak": 0.1}
    found = identity(compose_config(["recipe=smoke", "schedule=piecewise", "schedule.lr.peak=0.1"]))
    assert found == identity(SMOKE) | changes


# --- versions of the defaults -----------------------------------------------------------------------------------------


def test_every_key_is_in_the_file() -> None:
    """Those that an option had once stay. Where this fails: python tools/renew_golden.py, which appends what is new."""
    written = yaml.safe_load((config_dir() / "train.yaml").read_text())
    keys = {key for key in flatten(written) if not key.startswith(("hydra.", "defaults")) and "_target_" not in key}
    assert keys <= KNOWN[ROOT].keys()
    for path in config_dir().glob("*/*.yaml"):
        option = yaml.safe_load(path.read_text()) or {}
        if path.parent.name not in (*BUNDLES, "hydra") and "_target_" in option:
            name = option["_target_"].rpartition(".")[2]
            assert set(flatten(option)) - {"_target_", "defaults"} <= KNOWN[name].keys(), path
    assert as_text(appended(KNOWN, present())) == (config_dir() / NAME).read_text()


def test_no_entry_depends_on_another_key() -> None:
    """An interpolation would be compared as text with what it stands for, and every run would deviate."""
    assert not [value for values in KNOWN.values() for value in values.values() if "${" in str(value)]


def test_a_class_name_stands_for_one_option() -> None:
    targets = {
        str(option["_target_"])
        for path in config_dir().glob("*/*.yaml")
        if path.parent.name not in (*BUNDLES, "hydra")
        and "_target_" in (option := yaml.safe_load(path.read_text()) or {})
    }
    assert len({target.rpartition(".")[2] for target in targets}) == len(targets)


@pytest.fixture(scope="module")
def renewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configs of a later version: a new key, a new group with a default option, a key more of an option, and
    another default; `identity.json` is brought up to date as `make golden` does it."""
    configs = tmp_path_factory.mktemp("later") / "configs"
    shutil.copytree(config_dir(), configs)
    text = (configs / "train.yaml").read_text()
    for old, new in (
        ("  - da3: disabled\n", "  - da3: disabled\n  - anchoring: plain\n"),
        ("  eps: 1.0e-8\n", "  eps: 1.0e-8\n  final_eps: 0.5\n"),
        ("  clip_grad: 3.0 ", "  clip_grad: 1.0 "),
        ("  workers: 2 ", "  shuffle: 7\n  workers: 2 "),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (configs / "train.yaml").write_text(text)
    (configs / "anchoring").mkdir()
    (configs / "anchoring" / "plain.yaml").write_text("_target_: dinoswap.anchoring.plain.Plain\nevery: 100\n")
    (configs / "anchoring" / "other.yaml").write_text("_target_: dinoswap.anchoring.other.Other\nevery: 50\n")
    with (configs / "masking" / "block.yaml").open("a") as file:
        file.write("jitter: 0.0\n")
    (configs / NAME).write_text(as_text(appended(KNOWN, present(configs))))
    return configs


@pytest.fixture
def later(renewed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DINOSWAP_CONFIG_DIR", str(renewed))
    return renewed


def test_what_is_added_renames_no_run_and_refuses_no_checkpoint(later: Path) -> None:
    for before, overrides in ((SMOKE, []), (PARQUET, ["data=parquet", "data.path=x"])):
        config = compose_config(["recipe=smoke", "optimizer.clip_grad=3.0", *overrides])
        assert "anchoring" in config
        assert config["optimizer"]["final_eps"] == 0.5
        assert config["data"]["shuffle"] == 7
        assert config["masking"]["jitter"] == 0.0
        assert identity(config) == identity(before, KNOWN)
        require_same_config(Checkpoint(later, 1, {}, identity(before, KNOWN)), identity(config))


def test_what_is_changed_since_is_a_deviation(later: Path) -> None:
    """Also the default of the later version, where it is another one."""
    expected = {
        "anchoring": "Other",
        "anchoring.every": 7,
        "masking.jitter": 0.1,
        "optimizer.final_eps": 0.4,
        "data.shuffle": 0,
    }
    given = ["anchoring=other", *(f"{key}={value}" for key, value in expected.items() if "." in key)]
    found = identity(compose_config(["recipe=smoke", *given]))
    assert found == identity(SMOKE, KNOWN) | expected | {"optimizer.clip_grad": 1}


def test_the_file_is_only_appended_to(later: Path) -> None:
    now = json.loads((later / NAME).read_text())
    for name, values in KNOWN.items():
        assert now[name].items() >= values.items() or now[name] | values == now[name]
    assert now[ROOT]["optimizer.clip_grad"] == 3.0
    assert now[ROOT]["optimizer.final_eps"] == 0.5
    assert now[ROOT]["anchoring"] == "Plain"
    assert now["Other"] == {"every": 50}


def test_a_key_that_nobody_recorded_is_a_deviation(later: Path) -> None:
    """Until `make golden`: a test refuses the commit."""
    found = identity(compose_config(["recipe=smoke"]), KNOWN)
    assert found["optimizer.final_eps"] == 0.5
    assert found["anchoring"] == "Plain"


def test_configs_without_it_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.yaml").touch()
    monkeypatch.setenv("DINOSWAP_CONFIG_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"identity\.json: is missing: copy the folder of configs whole"):
        identity(SMOKE)


def test_options_are_leaves_with_the_name_of_their_class() -> None:
    config = {
        "a": {"_target_": "x.y.A", "b": {"_target_": "x.B", "c": 1}, "d": {"e": 2}},
        "objectives": {"f": {"g": 1}},
        "h": {},
        "i": {"enabled": False, "j": 1},
    }
    assert [tuple(leaf)[:4] for leaf in described(config)] == [
        ("a", "", "a", "A"),
        ("a.b", "A", "b", "B"),
        ("a.b.c", "B", "c", 1),
        ("a.d.e", "A", "d.e", 2),
        ("objectives.f", "", "objectives.f", None),
        ("h", "", "h", None),
        ("i", "", "i", None),
    ]
