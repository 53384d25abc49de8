"""`dinoswap-eval`: judge a run, one of its checkpoints, or an official DINOv2 weight file, on any data set.

What the end of training does: k-NN, linear probe, baselines, diagnostics with a verdict, pictures, a table. The base is
the run's own config.yaml; of it only the data and how they are evaluated can be changed.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from rich import get_console

from dinoswap import checkpoint, provenance
from dinoswap.build import build_evaluator, build_run, build_source
from dinoswap.checkpoint import Checkpoint, CheckpointError
from dinoswap.command_line import check_overrides, compose_config
from dinoswap.configuration import config_dir, plain
from dinoswap.evaluation.evaluator import Evaluation, backbone_of
from dinoswap.files import write_atomically
from dinoswap.metrics import RunRecord
from dinoswap.nn.official_weights import architecture_of_file, load_into, load_official
from dinoswap.nn.vit import VisionTransformer
from dinoswap.rng import seed_torch
from dinoswap.schema import ConfigError, construct
from dinoswap.settings import LOADING, OF_ONE_SET, check_crops
from dinoswap.trainer import AUTOCAST, TrainerSettings, resolve_device
from dinoswap.typed_paths import as_typed, refuse_torn_paths

EXIT_USAGE, EXIT_FAILED = 2, 1
PROBE_IMAGES = 64
"""At most, in the batch that target diagnostics are taken on: a run's batch may be that of a hundred GPUs."""
OFFICIAL_SIZE = 224
"""Pixels at which the official code evaluates, whatever the size of the position table."""
CHANGEABLE = ("data", "evaluation", "trainer.device", "trainer.precision", "da3.ckpt_path")

Config = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is judged: a checkpoint of a run with its resolved config, or a weight file with the default one."""

    path: Path
    config: Config
    run: Path | None  # None for a weight file, and then there is no checkpoint
    trained: Checkpoint | None

    @classmethod
    def find(cls, path: Path) -> "Subject":
        """Raises ConfigError when there is nothing to judge at `path`, CheckpointError for a damaged checkpoint."""
        if path.is_file():
            return cls(path, default_config(), None, None)
        run = path if (path / "config.yaml").is_file() else path.parent.parent
        if not (run / "config.yaml").is_file():
            raise ConfigError(
                f"{path}: neither a run folder (with config.yaml), a checkpoint in one, nor a weight file"
            )
        config = plain(DictConfig(OmegaConf.load(run / "config.yaml")))
        return cls(path, config, run, newest(run) if path == run else checkpoint.read(path))

    @property
    def checkpoint(self) -> Checkpoint:
        """Raises ConfigError for a weight file."""
        if self.trained is None:
            raise ConfigError(f"{self.path}: is a file; give a run folder or a checkpoint in one")
        return self.trained

    def folder(self, data: str, network: str) -> Path:
        """Where an evaluation goes: of its own for each data set, named checkpoint and network."""
        if self.run is None:
            return Path("evaluation") / self.path.stem / data
        parts = [data, *([self.path.name] if self.path != self.run else []), *(["student"] * (network == "student"))]
        return self.run / "evaluation" / "-".join(parts)


def newest(run: Path) -> Checkpoint:
    found = checkpoint.newest(run / "checkpoints", lambda sentence: print(sentence, file=sys.stderr))
    if found is None:
        raise CheckpointError(f"{run}: no whole checkpoint in its folder checkpoints; train it first")
    return found


def default_config() -> Config:
    """What dinoswap-train runs without overrides, but at full precision: published accuracies are those of float32."""
    return compose_config(["trainer.precision=fp32"])


def with_overrides(config: Mapping[str, Any], arguments: Sequence[str]) -> Config:
    """The config with another data set or other evaluation settings. Raises ConfigError for any other change."""
    refuse_torn_paths(arguments)
    arguments = as_typed(arguments)
    check_overrides([*(["da3=enabled"] if config["da3"]["enabled"] else []), *arguments])
    overrides = OverridesParser.create().parse_overrides(list(arguments))
    changed = DictConfig(dict(config))
    for override in overrides:
        if override.key_or_group == "data":
            option = OmegaConf.load(config_dir() / "data" / f"{override.value()}.yaml")
            shared = {k: v for k, v in config["data"].items() if k in LOADING and k not in OF_ONE_SET}
            changed.data = OmegaConf.merge(shared, option)
    for override in overrides:
        key = override.key_or_group
        if not any(key == known or key.startswith(f"{known}.") for known in CHANGEABLE):
            raise ConfigError(
                f"{override.input_line}: an evaluation can change {', '.join(CHANGEABLE)} and no other key"
            )
        if key != "data":
            OmegaConf.update(changed, key, override.value(), force_add=True)  # unknown names are refused when built
    missing = sorted(OmegaConf.missing_keys(changed))
    if missing:
        raise ConfigError(f"{missing[0]}: is needed and not set; add {missing[0]}=...")
    return plain(changed)


# --- judging ----------------------------------------------------------------------------------------------------------


def judge_run(config: Config, trained: Checkpoint, network: str, out: Path) -> Evaluation:
    """The teacher's or the student's backbone, and the targets of the teacher."""
    batch = {"batch_size": min(config["data"]["batch_size"], PROBE_IMAGES)}
    one_process = {"accumulate": 1, "compile": False}
    config = {**config, "data": config["data"] | batch, "trainer": config["trainer"] | one_process}
    run = build_run(config, out, lambda: RunRecord(out / "run.json", "", "", 0, {}, []))  # a record that is not written
    model = run.trainer.model
    check_teachers(run.config, trained)
    model.load_state_dict(trained.state["model"])
    found = run.evaluator.final(backbone_of(getattr(model, network)), run.random_init)
    hyper = run.trainer.schedules.at(max(trained.step - 1, 0))
    run.evaluator.diagnose_objectives(found, model, hyper, run.dataset[0])
    return found


def check_teachers(config: Mapping[str, Any], trained: Checkpoint) -> None:
    """Raises ConfigError when a frozen teacher is not the one that the run was trained with."""
    for key, now in config.items():
        if key.endswith(".teacher") and trained.config.get(key) != now:
            raise ConfigError(
                f"{key}: is {now}, but the run was trained with {trained.config.get(key)}; "
                "give the path of these weights, da3.ckpt_path=..."
            )


def judge_weights(config: Config, path: Path, heads: int | None) -> Evaluation:
    """A bare backbone of the architecture that its weights imply. What they cannot say is in the file's metadata, or
    `heads`; else it is as in the published models, and told."""
    state = load_official(path)
    architecture, guessed = architecture_of_file(path, state, heads)
    if guessed:
        print(f"{path} does not say, so as in published models: {', '.join(guessed)} (--heads N)", file=sys.stderr)
    patch = architecture["patch_size"]
    size = min(OFFICIAL_SIZE, *architecture["img_size"]) // patch * patch
    config = {**config, "crops": {"global_size": size, "local_size": size}, "model": {"patch_size": patch}}
    check_crops(config)
    settings = construct(TrainerSettings, config["trainer"], "trainer")
    device = resolve_device(settings.device)
    backbone = VisionTransformer(**architecture)
    load_into(backbone, state)
    seed_torch(config["seed"], "init/backbone")
    random_init = VisionTransformer(**architecture)
    evaluator = build_evaluator(config, build_source(config), device, AUTOCAST.get(settings.precision))
    return evaluator.final(backbone.to(device), random_init.to(device))


# --- what is left to be read ------------------------------------------------------------------------------------------


def data_name(section: Mapping[str, Any]) -> str:
    """The option of the data group and the name of what it reads: embedded, parquet-cifar10, torchvision-CIFAR10."""
    option = str(section["_target_"]).split(".")[-2]
    detail = section.get("name") or Path(str(section.get("path") or "")).name
    return re.sub(r"[^\w.-]+", "_", f"{option}-{detail}" if detail else option)


def save(found: Evaluation, subject: Subject, network: str, config: Config, out: Path) -> None:
    found.save_pictures(out)
    metrics = {name: value if math.isfinite(value) else None for name, value in found.metrics.items()}
    content = {
        "judged": str(subject.path.resolve()),
        "network": network if subject.trained else "backbone",
        "step": subject.trained.step if subject.trained else None,
        "data": config["data"],
        "evaluation": config["evaluation"],
        "precision": config["trainer"]["precision"],
        "versions": provenance.versions(),
        "metrics": metrics,
        "warning": found.warning,
    }
    write_atomically(out / "evaluation.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def show(found: Evaluation, out: Path) -> None:
    console = get_console()
    if found.results:
        console.print(found.table())
    for name, value in found.metrics.items():
        if name.startswith("eval/") and "top" not in name:
            console.print(f"{name.removeprefix('eval/')}: {value:.4g}")
    console.print(f"verdict: {found.warning or 'no sign of collapse'}", soft_wrap=True)
    console.print(f"evaluation.json and pictures: {out}", soft_wrap=True)


# --- the command line -------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dinoswap-eval",
        description="k-NN, linear probe, baselines, diagnostics and pictures of a trained backbone.",
        epilog="examples: dinoswap-eval results/runs/single/1a2b3c4d5e/seed0\n"
        "          dinoswap-eval RUN data=parquet data.path=cifar10 evaluation.images=5000\n"
        "          dinoswap-eval dinov2_vits14_pretrain.pth data=image_folder data.path=imagenet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what", metavar="RUN_OR_CHECKPOINT", type=Path, help="run folder, checkpoint folder, weight file"
    )
    parser.add_argument("overrides", nargs="*", help=f"keys of {', '.join(CHANGEABLE)} (default: the run's own)")
    parser.add_argument("--network", choices=["teacher", "student"], default="teacher", help="of a run (teacher)")
    parser.add_argument("--heads", type=int, help="attention heads of a weight file (its width / 64)")
    parser.add_argument("-o", "--out", type=Path, help="folder (RUN/evaluation/DATA, or ./evaluation/WEIGHTS/DATA)")
    return parser


def evaluate(arguments: argparse.Namespace) -> None:
    subject, network = Subject.find(arguments.what), arguments.network
    config = with_overrides(subject.config, arguments.overrides)
    out = arguments.out or subject.folder(data_name(config["data"]), network)
    if subject.trained:
        found = judge_run(config, subject.trained, network, out)
    elif network == "student":
        raise ConfigError(f"--network student: {subject.path} holds one network; give a run folder")
    else:
        found = judge_weights(config, subject.path, arguments.heads)
    save(found, subject, network, config, out)
    show(found, out)


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Exit status 2 for what the user has to change, 1 for what failed."""
    arguments = parser().parse_intermixed_args(argv)
    try:
        evaluate(arguments)
    except (ConfigError, CheckpointError, ValueError, OSError) as error:
        print(f"dinoswap-eval: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
