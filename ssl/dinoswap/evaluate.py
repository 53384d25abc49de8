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
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich import get_console

from dinoswap import __version__
from dinoswap.config.command_line import check_overrides, compose_config
from dinoswap.config.configuration import config_dir, plain
from dinoswap.config.facts import DataFacts, build_source
from dinoswap.config.first_check import first_check
from dinoswap.config.schema import ConfigError, require_section
from dinoswap.config.sections import LOADING, OF_ONE_SET, SECTIONS
from dinoswap.config.typed_paths import as_typed, refuse_torn_paths
from dinoswap.files.writing import write_atomically
from dinoswap.run import provenance
from dinoswap.run.checkpoint_folder import CheckpointError

if TYPE_CHECKING:  # what imports torch is imported where it is needed: the help, and what is refused, do without
    from dinoswap.evaluation.evaluator import Evaluation
    from dinoswap.run.checkpoint import Checkpoint

EXIT_USAGE, EXIT_FAILED = 2, 1
FILE = "evaluation.json"
CHANGEABLE = ("data", "evaluation", "trainer.device", "trainer.precision", "da3.ckpt_path")

Config = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is judged: a checkpoint of a run with its resolved config, or a weight file with the default one."""

    path: Path
    config: Config
    run: Path | None  # None for a weight file, and then there is no checkpoint
    trained: "Checkpoint | None"

    @classmethod
    def find(cls, path: Path) -> "Subject":
        """Raises ConfigError when there is nothing to judge at `path`, CheckpointError for a damaged checkpoint."""
        config, run = config_of(path)
        if run is None:
            return cls(path, config, None, None)
        from dinoswap.run import checkpoint

        return cls(path, config, run, newest(run) if path == run else checkpoint.read(path))

    @property
    def checkpoint(self) -> "Checkpoint":
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


def newest(run: Path) -> "Checkpoint":
    from dinoswap.run import checkpoint

    found = checkpoint.newest(run / "checkpoints", lambda sentence: print(sentence, file=sys.stderr))
    if found is None:
        raise CheckpointError(f"{run}: no whole checkpoint in its folder checkpoints; train it first")
    return found


def config_of(path: Path) -> tuple[Config, Path | None]:
    """What a run folder, or a checkpoint in one, was trained with, and the folder; of a file the default config. Raises
    ConfigError."""
    if path.is_file():
        return default_config(), None
    run = path if (path / "config.yaml").is_file() else path.parent.parent
    if not (run / "config.yaml").is_file():
        raise ConfigError(f"{path}: neither a run folder (with config.yaml), a checkpoint in one, nor a weight file")
    return read_config(run / "config.yaml"), run


def read_config(path: Path) -> Config:
    """Raises ConfigError for a file that is damaged."""
    try:
        loaded = OmegaConf.load(path)
        if not isinstance(loaded, DictConfig):
            raise ConfigError("holds no keys")
        config = plain(loaded)
        for section in SECTIONS:
            require_section(config.get(section), section)
    except (yaml.YAMLError, OmegaConfBaseException, ConfigError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: is not the config of a run, or is damaged: {' '.join(str(error).split())}; the run's command "
            "writes it again"
        ) from error
    return config


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


# --- what is left to be read ------------------------------------------------------------------------------------------


def data_name(section: Mapping[str, Any]) -> str:
    """The option of the data group and the name of what it reads: embedded, parquet-cifar10, torchvision-CIFAR10."""
    option = str(section["_target_"]).split(".")[-2]
    detail = section.get("name") or Path(str(section.get("path") or "")).name
    return re.sub(r"[^\w.-]+", "_", f"{option}-{detail}" if detail else option)


def beside_others(out: Path, data: DataFacts) -> Path:
    """`out`; where the evaluation of another data set of that name is there already, a folder beside it."""
    if not (out / FILE).exists():
        return out
    try:
        before = json.loads((out / FILE).read_text())["fingerprint"]
    except (OSError, ValueError, LookupError, TypeError):
        before = None  # of which images it is cannot be told
    return out if before == data.fingerprint else out.with_name(f"{out.name}-{data.fingerprint[:8]}")


def save(found: "Evaluation", subject: Subject, network: str, config: Config, data: DataFacts, out: Path) -> None:
    found.save_pictures(out)
    metrics = {name: value if math.isfinite(value) else None for name, value in found.metrics.items()}
    content = {
        "judged": str(subject.path.resolve()),
        "network": network if subject.trained else "backbone",
        "step": subject.trained.step if subject.trained else None,
        "data": config["data"],
        "fingerprint": data.fingerprint,
        "evaluation": config["evaluation"],
        "precision": config["trainer"]["precision"],
        "versions": provenance.versions(),
        "metrics": metrics,
        "warning": found.warning,
    }
    write_atomically(out / FILE, json.dumps(content, indent=2, allow_nan=False) + "\n")


def show(found: "Evaluation", subject: Subject, out: Path) -> None:
    from dinoswap.evaluation.diagnostics import FEW_STEPS

    console = get_console()
    if found.results:
        console.print(found.table())
    for name, value in found.metrics.items():
        if name.startswith("eval/") and "top" not in name:
            console.print(f"{name.removeprefix('eval/')}: {value:.4g}")
    few = subject.trained is not None and subject.trained.step <= FEW_STEPS
    said = f"none after {FEW_STEPS} steps or fewer" if few else found.warning or "no sign of collapse"
    console.print(f"verdict: {said}", soft_wrap=True)
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
    parser.add_argument("--version", action="version", version=f"dinoswap {__version__}")
    parser.add_argument(
        "what", metavar="RUN_OR_CHECKPOINT", type=Path, help="run folder, checkpoint folder, weight file"
    )
    parser.add_argument("overrides", nargs="*", help=f"keys of {', '.join(CHANGEABLE)} (default: the run's own)")
    parser.add_argument("--network", choices=["teacher", "student"], default="teacher", help="of a run (teacher)")
    parser.add_argument("--heads", type=int, help="attention heads of a weight file (its width / 64)")
    parser.add_argument("-o", "--out", type=Path, help="folder (RUN/evaluation/DATA, or ./evaluation/WEIGHTS/DATA)")
    return parser


def evaluate(arguments: argparse.Namespace) -> None:
    config, run = config_of(arguments.what)
    config, network = with_overrides(config, arguments.overrides), arguments.network
    first_check(config)
    if run is None and network == "student":
        raise ConfigError(f"--network student: {arguments.what} holds one network; give a run folder")
    from dinoswap.run.judge import judge_run, judge_weights

    subject = Subject.find(arguments.what)
    source = build_source(config)
    data = DataFacts.of(config, source)
    out = arguments.out or beside_others(subject.folder(data_name(config["data"]), network), data)
    if subject.trained:
        found = judge_run(config, source, subject.trained, network, out)
    else:
        found = judge_weights(config, source, subject.path, arguments.heads)
    save(found, subject, network, config, data, out)
    show(found, subject, out)


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
