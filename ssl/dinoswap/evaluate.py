"""`dinoswap-eval`: evaluates a run, one of its checkpoints, or a weight file of any layout, on any data set.

The evaluation is that at the end of training: k-NN, linear probe, baselines, diagnostics with a verdict, pictures, a
table. It starts from the run's own config.yaml, of which only the data and the evaluation settings can be changed.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from rich import get_console

from dinoswap import __version__
from dinoswap.config.command_line import check_overrides, compose_config
from dinoswap.config.configuration import plain
from dinoswap.config.exit_codes import EXIT_FAILED, EXIT_USAGE
from dinoswap.config.facts import WEIGHTS, DataFacts, build_source
from dinoswap.config.first_check import first_check
from dinoswap.config.measured import families, score_of, sections
from dinoswap.config.schema import ConfigError
from dinoswap.config.sections import JUDGED_ON, LOADING, OF_METRICS, OF_ONE_SET
from dinoswap.config.typed_paths import as_typed, refuse_torn_paths
from dinoswap.files.checkpoint_folder import CheckpointError
from dinoswap.files.writing import write_atomically
from dinoswap.run import provenance
from dinoswap.run.subject import Config, Subject, config_of

if TYPE_CHECKING:  # this imports torch, which the help and a refused command do without
    from dinoswap.evaluation.evaluator import Evaluation

FILE = "evaluation.json"
CHANGEABLE = ("data", *OF_METRICS, "evaluation", "trainer.device", "trainer.precision", *WEIGHTS.values())


def with_overrides(config: Mapping[str, Any], arguments: Sequence[str]) -> Config:
    """Returns the config with another data set or other evaluation settings. Raises ConfigError for any other
    change."""
    refuse_torn_paths(arguments)
    arguments = as_typed(arguments)
    check_overrides([*(["da3=enabled"] if config["da3"]["enabled"] else []), *arguments])
    overrides = OverridesParser.create().parse_overrides(list(arguments))
    changed = DictConfig(dict(config))
    for override in overrides:
        if override.key_or_group == "metric":
            value = override.value()
            names = value if isinstance(value, list) else [value]
            changed.evaluation.metric = {str(name): sections()[str(name)] for name in names}
            first = next(iter(families()[str(names[0])].scores))
            changed.objective_metric = f"eval/{first}"  # which has to be measured
        if (group := override.key_or_group) in JUDGED_ON:
            changed.evaluation[group] = compose_config([f"{group}={override.value()}"])["evaluation"][group]
        if override.key_or_group == "data":
            shared = {key: value for key, value in config["data"].items() if key in LOADING and key not in OF_ONE_SET}
            changed.data = compose_config([f"data={override.value()}"])["data"] | shared
    for override in overrides:
        key = override.key_or_group
        if not any(key == known or key.startswith(f"{known}.") for known in CHANGEABLE):
            raise ConfigError(
                f"{override.input_line}: an evaluation can change {', '.join(CHANGEABLE)} and no other key"
            )
        if key not in ("data", *OF_METRICS):
            OmegaConf.update(changed, key, override.value(), force_add=True)  # unknown names are refused when built
    missing = sorted(OmegaConf.missing_keys(changed))
    if missing:
        raise ConfigError(f"{missing[0]}: is needed and not set; add {missing[0]}=...")
    return plain(changed)


def check_evaluation(config: Config, of_weights: bool) -> None:
    """Raises ConfigError for what `first_check` refuses. Whether sizes suit the patches of a weight file is not known
    before it is read."""
    if of_weights:
        config = {**config, "evaluation": {**config["evaluation"], "size": None, "more_sizes": []}}
    first_check(config)


# --- the written results ----------------------------------------------------------------------------------------------


def folder_of(subject: Subject, data: str, network: str) -> Path:
    """Returns the folder for an evaluation: a separate one for each data set, named checkpoint and network."""
    if subject.run is None:
        return Path("evaluation") / subject.path.stem / data
    of_checkpoint = [subject.path.name] if subject.path != subject.run else []
    parts = [data, *of_checkpoint, *(["student"] * (network == "student"))]
    return subject.run / "evaluation" / "-".join(parts)


def data_name(section: Mapping[str, Any]) -> str:
    """Returns the option of the data group and the name of its data set, as in embedded, parquet-cifar10,
    torchvision-CIFAR10."""
    option = str(section["_target_"]).split(".")[-2]
    detail = section.get("name") or Path(str(section.get("path") or "")).name
    return re.sub(r"[^\w.-]+", "_", f"{option}-{detail}" if detail else option)


def beside_others(out: Path, data: DataFacts) -> Path:
    """Returns `out`, or a folder beside it where `out` has the evaluation of another data set of the same name."""
    if not (out / FILE).exists():
        return out
    try:
        before = json.loads((out / FILE).read_text())["fingerprint"]
    except (OSError, ValueError, LookupError, TypeError):
        before = None  # it cannot be told which images it is of
    return out if before == data.fingerprint else out.with_name(f"{out.name}-{data.fingerprint[:8]}")


def save(evaluation: "Evaluation", subject: Subject, network: str, config: Config, data: DataFacts, out: Path) -> None:
    """Writes the pictures and evaluation.json into the folder `out`."""
    evaluation.save_pictures(out)
    metrics = {name: value if math.isfinite(value) else None for name, value in evaluation.metrics.items()}
    content = {
        "judged": str(subject.path.resolve()),
        "network": network if subject.trained else "backbone",
        "step": subject.trained.step if subject.trained else None,
        "data": config["data"],
        "fingerprint": data.fingerprint,
        "evaluation": config["evaluation"],
        "precision": config["trainer"]["precision"],
        "matmul_precision": config["trainer"]["matmul_precision"],
        "versions": provenance.versions(),
        "metrics": metrics,
        "warning": evaluation.warning,
    }
    write_atomically(out / FILE, json.dumps(content, indent=2, allow_nan=False) + "\n")


def show(evaluation: "Evaluation", subject: Subject, out: Path) -> None:
    """Prints the table of accuracies, the diagnostics, the verdict, and where the files are."""
    from dinoswap.metric.diagnostics import FEW_STEPS

    console = get_console()
    if evaluation.results:
        console.print(evaluation.table())
    for name, value in evaluation.metrics.items():
        if name.startswith("eval/") and not score_of(name).column:
            console.print(f"{name.removeprefix('eval/')}: {value:.4g}")
    too_few_steps = subject.trained is not None and subject.trained.step <= FEW_STEPS
    verdict = f"none after {FEW_STEPS} steps or fewer" if too_few_steps else evaluation.warning or "no sign of collapse"
    console.print(f"verdict: {verdict}", soft_wrap=True)
    console.print(f"evaluation.json and pictures: {out}", soft_wrap=True)


# --- the command line -------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
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
    """Evaluates what the command line names, saves the result and prints it. Raises ConfigError for what the user has
    to change."""
    config, run = config_of(arguments.what)
    config, network = with_overrides(config, arguments.overrides), arguments.network
    check_evaluation(config, of_weights=run is None)
    if run is None and network == "student":
        raise ConfigError(f"--network student: {arguments.what} holds one network; give a run folder")
    from dinoswap.run.judge import judge_run, judge_weights

    subject = Subject.find(arguments.what)
    source = build_source(config)
    data = DataFacts.of(config, source)
    out = arguments.out or beside_others(folder_of(subject, data_name(config["data"]), network), data)
    if subject.trained:
        evaluation = judge_run(config, source, subject.trained, network, out)
    else:
        evaluation = judge_weights(config, source, subject.path, arguments.heads)
    save(evaluation, subject, network, config, data, out)
    show(evaluation, subject, out)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the console script and returns its exit status: 2 for what the user has to change, 1 for what failed, else
    0."""
    arguments = parser().parse_intermixed_args(argv)
    try:
        evaluate(arguments)
    except (ConfigError, CheckpointError, ValueError, OSError) as error:
        print(f"dinoswap-eval: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
