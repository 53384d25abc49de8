"""Builds all the parts of one run from its configuration.

Order matters: everything that can be refused is built before data is opened, and data before the run folder is touched.
"""

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dinoswap.build import build_evaluator, build_pipeline, build_trainer, frozen_identity, initial_backbone
from dinoswap.config.facts import build_source
from dinoswap.config.schema import construct
from dinoswap.config.sections import Config, TrainerSettings, loading_settings
from dinoswap.config.settings import check
from dinoswap.config.tracked import build_trackers
from dinoswap.data.corrupt import CorruptLog
from dinoswap.data.images import ImageSource
from dinoswap.data.inventory import Inventory, take_inventory
from dinoswap.data.steps import StepDataset
from dinoswap.distributed import require_same, together, world_size
from dinoswap.evaluation.evaluator import Evaluator
from dinoswap.run.loop import Run
from dinoswap.run.metrics import RunRecord
from dinoswap.run.trackers import Trackers, tracked_run


def build_run(
    cfg: Config,
    folder: Path,
    start_record: Callable[[], RunRecord],
    identity: Config = MappingProxyType({}),
    source: ImageSource | None = None,
) -> Run:
    """Returns the run that `cfg` describes, ready to train.

    `identity` is what its checkpoints are compared by; `source` is the image source of `cfg` where it is open already.
    `start_record` writes run.json and is called last, when nothing can be refused any more. Every rank calls this
    function (see `build_trainer`). Raises ConfigError for a wrong config and ValueError where the ranks do not have
    the same images and weights.
    """
    together(lambda: check(cfg))
    trainer = build_trainer(cfg)
    loading = loading_settings(cfg)

    def with_images() -> tuple[Evaluator, StepDataset, Inventory, dict[str, Any], str]:
        pipeline, images = build_pipeline(cfg, trainer.model), source or build_source(cfg)
        evaluator = build_evaluator(cfg, images, trainer.device, trainer.dtype)
        inventory = take_inventory(images, loading.batch_size, loading.decoding)
        run_identity = {**identity, **frozen_identity(trainer.model), "seed": int(cfg["seed"])}
        fingerprint = images.fingerprint()[:12] if world_size() > 1 else ""
        return evaluator, pipeline(evaluator.train), inventory, run_identity, fingerprint

    evaluator, dataset, inventory, run_identity, fingerprint = together(with_images)
    require_same(
        {
            "training images": len(dataset.images),
            **run_identity,
            "the fingerprint of the images": fingerprint,
            **evaluator.scene_counts,
        },
        "each has to see the same files, under data.path and wherever else they are read from",
    )

    def with_record() -> Run:
        record = start_record()
        record.data |= inventory.record()
        record.origin = trainer.model.origin
        test_images = 0 if evaluator.test is None else len(evaluator.test)
        return Run(
            folder=folder,
            config=run_identity,
            trainer=trainer,
            settings=construct(TrainerSettings, cfg["trainer"], "trainer"),
            dataset=dataset,
            workers=loading.workers,
            evaluator=evaluator,
            corrupt=CorruptLog(folder, evaluator.train, loading.max_corrupt_fraction, test_images),
            inventory=inventory,
            record=record,
            trackers=Trackers(build_trackers(cfg), tracked_run(cfg, folder, record)),
            random_init=initial_backbone(cfg).to(trainer.device),
        )

    return together(with_record)
