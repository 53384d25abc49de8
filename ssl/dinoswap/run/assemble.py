"""All the parts of one run, put together by its configuration.

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
from dinoswap.data.corrupt import CorruptLog
from dinoswap.data.images import ImageSource
from dinoswap.data.inventory import Inventory, take_inventory
from dinoswap.data.steps import StepDataset
from dinoswap.distributed import require_same, together, world_size
from dinoswap.evaluation.evaluator import Evaluator
from dinoswap.run.loop import Run
from dinoswap.run.metrics import RunRecord


def build_run(
    cfg: Config,
    folder: Path,
    start_record: Callable[[], RunRecord],
    identity: Config = MappingProxyType({}),
    source: ImageSource | None = None,
) -> Run:
    """Everything of one run, which a checkpoint knows by its `identity`. `source`: of `cfg`, where it is open already.
    `start_record` is called once nothing can be refused any more. Ranks go through it together, see `build_trainer`,
    and only if they have the same images and weights."""
    together(lambda: check(cfg))
    trainer = build_trainer(cfg)
    loading = loading_settings(cfg)

    def over_images() -> tuple[Evaluator, StepDataset, Inventory, dict[str, Any], str]:
        pipeline, images = build_pipeline(cfg, trainer.model), source or build_source(cfg)
        evaluator = build_evaluator(cfg, images, trainer.device, trainer.dtype)
        inventory = take_inventory(images, loading.batch_size, loading.decoding)
        described = {**identity, **frozen_identity(trainer.model), "seed": int(cfg["seed"])}
        seen = images.fingerprint()[:12] if world_size() > 1 else ""
        return evaluator, pipeline(evaluator.train), inventory, described, seen

    evaluator, dataset, inventory, described, seen = together(over_images)
    require_same(
        {"training images": len(dataset.images), **described, "the fingerprint of the images": seen},
        "each has to see the same files, under data.path and wherever else they are read from",
    )

    def recorded() -> Run:
        record = start_record()
        record.data |= inventory.record()
        others = 0 if evaluator.test is None else len(evaluator.test)
        return Run(
            folder=folder,
            config=described,
            trainer=trainer,
            settings=construct(TrainerSettings, cfg["trainer"], "trainer"),
            dataset=dataset,
            workers=loading.workers,
            evaluator=evaluator,
            corrupt=CorruptLog(folder, evaluator.train, loading.max_corrupt_fraction, others),
            inventory=inventory,
            record=record,
            random_init=initial_backbone(cfg).to(trainer.device),
        )

    return together(recorded)
