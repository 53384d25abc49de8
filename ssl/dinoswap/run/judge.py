"""The evaluations of `dinoswap-eval`: of a run or of a weight file, the same as at the end of a training."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinoswap.build import build_evaluator
from dinoswap.config.first_check import check_crops
from dinoswap.config.schema import ConfigError, construct
from dinoswap.config.sections import Config, TrainerSettings, begun_elsewhere, loading_settings
from dinoswap.config.streams import stream_seeds
from dinoswap.data.images import ImageSource
from dinoswap.data.inventory import Inventory, take_inventory
from dinoswap.evaluation.evaluator import Evaluation, backbone_of
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.load import load_backbone
from dinoswap.rng import seed_torch
from dinoswap.run.assemble import build_run
from dinoswap.run.checkpoint import Checkpoint
from dinoswap.run.metrics import RunRecord
from dinoswap.trainer import PRODUCTS, prepared_device

PROBE_IMAGES = 64
"""Largest batch that target diagnostics are computed on: the batch of a run may have been that of a hundred GPUs."""


def judge_run(config: Config, source: ImageSource, trained: Checkpoint, network: str, out: Path) -> Evaluation:
    """Returns the evaluation of the backbone of `network` (teacher or student) in the checkpoint `trained`, with
    diagnostics of the teacher's targets. Raises ConfigError where a frozen teacher is another one than in training."""
    batch = {"batch_size": min(config["data"]["batch_size"], PROBE_IMAGES)}
    one_process = {"accumulate": 1, "compile": False}
    trainer = config["trainer"] | one_process
    config = {**begun_elsewhere(config), "data": config["data"] | batch, "trainer": trainer, "tracker": {}}
    record = RunRecord(out / "run.json", "", "", 0, {}, [])  # is not written
    run = build_run(config, out, lambda: record, source=source)
    print_inventory(run.inventory)
    model = run.trainer.model
    check_teachers(run.config, trained)
    model.load_state_dict(trained.state["model"])
    evaluation = run.evaluator.final(backbone_of(getattr(model, network)), run.random_init)
    hyper = run.trainer.schedules.at(max(trained.step - 1, 0))
    run.evaluator.diagnose_objectives(evaluation, model, hyper, run.dataset[0])
    return evaluation


def check_teachers(config: Mapping[str, Any], trained: Checkpoint) -> None:
    """Raises ConfigError when a frozen teacher is not the one that the run was trained with."""
    for key, now in config.items():
        if key.endswith(".teacher") and trained.config.get(key) != now:
            raise ConfigError(
                f"{key}: is {now}, but the run was trained with {trained.config.get(key)}; "
                "give the path of these weights, da3.ckpt_path=..."
            )


def judge_weights(config: Config, source: ImageSource, path: Path, heads: int | None) -> Evaluation:
    """Returns the evaluation of the backbone in the weight file `path`, whose architecture is read off the weights. The
    number of heads comes from `heads`, the file's metadata or its config.json; otherwise it is that of the published
    models. What is assumed is printed. Raises ValueError for a file that holds no such weights."""
    weights = load_backbone(path, heads)
    data = config["data"]
    prepared = {"mean": data["mean"], "std": data["std"], "size": weights.crop}
    assumed_preparation = [f"{name} {value}" for name, value in prepared.items() if name not in weights.preparation]
    if assumed := [*weights.assumed, *assumed_preparation]:
        print(
            f"{path} does not say, so as in published models, or as you say (--heads N, data.mean, data.std): "
            + ", ".join(assumed),
            file=sys.stderr,
        )
    for note in weights.notes:
        print(f"{path}: {note}", file=sys.stderr)
    architecture = weights.architecture
    config = {
        **config,
        "crops": config["crops"] | {"global_size": weights.crop, "local_size": weights.crop},
        "model": {"patch_size": architecture["patch_size"]},
    }
    check_crops(config)
    settings = construct(TrainerSettings, config["trainer"], "trainer")
    device = prepared_device(settings)
    backbone = weights.network()
    seed_torch(stream_seeds(config).init, "init/backbone")
    random_init = VisionTransformer(**architecture)
    print_inventory(take_inventory(source, 1, loading_settings(config).decoding))
    evaluator = build_evaluator(config, source, device, PRODUCTS.get(settings.precision))
    return evaluator.final(backbone.to(device), random_init.to(device))


def print_inventory(inventory: Inventory) -> None:
    """Prints what the data holds, and on standard error what a user may not expect."""
    print(inventory.sentence())
    for remark in inventory.of_data:
        print(f"data: {remark}", file=sys.stderr)
