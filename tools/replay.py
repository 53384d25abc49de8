"""Repeat a non-finite step of a run, to see where it came from.

    python tools/replay.py RUN_FOLDER/nonfinite/step-00000123
    python tools/replay.py RUN_FOLDER/nonfinite/step-00000123 --rank 5

A run keeps the state before its first non-finite steps. Trainer and data set are rebuilt from the run's config.yaml,
the images of the step are found by its number, and it is taken again, with the same random numbers; of several ranks
with the images of one. Printed are loss terms, gradient norms before clipping, and where the first value that is not
finite was found: in the batch, the weights, the forward pass (module by module), or a gradient. Exit status 1 when all
is finite now, as it may be on another device.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dinoswap.build import build_pipeline, build_trainer
from dinoswap.config.facts import build_source
from dinoswap.config.sections import Config, begun_elsewhere
from dinoswap.config.settings import check
from dinoswap.config.stored import read_config
from dinoswap.run import checkpoint
from dinoswap.run.loop import RANKS
from dinoswap.trainer import Trainer
from dinoswap.values import Batch


@dataclass(frozen=True)
class Replayed:
    """`step` as numbered in metrics.jsonl; `origin` is None when every value was finite."""

    step: int
    logs: dict[str, float]
    origin: str | None


class Watch:
    """Notes what is not finite, in the order in which it is computed."""

    def __init__(self, trainer: Trainer) -> None:
        self.nonfinite: list[str] = []
        self._clip, trainer.clip = trainer.clip, self.clip
        for name, module in trainer.model.named_modules():  # one ends after those inside it: the innermost is first
            module.register_forward_hook(partial(self._look_at_output, name))

    def look(self, values: Mapping[str, Any]) -> None:
        """Notes the names of values that hold a tensor that is not finite."""
        self.nonfinite += [
            name for name, value in values.items() if not all(tensor.isfinite().all() for tensor in tensors(value))
        ]

    def _look_at_output(self, name: str, module: nn.Module, inputs: object, output: object) -> None:
        """Looks at what a module returned."""
        self.look({f"output of {name or 'the whole model'} ({type(module).__name__})": output})

    def clip(self, groups: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Looks at the gradients, and then clips them as the trainer does."""
        for group in groups:
            self.look(
                {
                    f"gradient of {name}": parameter.grad
                    for name, parameter in zip(group["names"], group["params"], strict=True)
                }
            )
        return self._clip(groups)


def tensors(value: object) -> Iterator[Tensor]:
    """Yields all floating-point tensors in nested lists, dictionaries and dataclasses."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
        return
    inside: Any = ()
    if isinstance(value, Mapping):
        inside = value.values()
    elif isinstance(value, list | tuple):
        inside = value
    elif is_dataclass(value):
        inside = [getattr(value, field.name) for field in fields(value)]
    for element in inside:
        yield from tensors(element)


def replay(path: Path, rank: int = 0) -> Replayed:
    """Returns the repeated step that was saved in `path`, RUN_FOLDER/nonfinite/step-*. Raises CheckpointError when it
    is damaged, OSError without a config.yaml, ConfigError for one that no run can have, ValueError for a rank that
    there was not and for another checkpoint."""
    saved = checkpoint.read(path)
    if RANKS not in saved.state:
        raise ValueError(f"{path}: give a folder in RUN_FOLDER/nonfinite, as this version of the trainer writes them")
    config = begun_elsewhere(read_config(path.parents[1] / "config.yaml"))
    check(config)
    trainer = build_trainer(config)
    trainer.load_state_dict(saved.state)
    watch = Watch(trainer)
    batches = batches_of(config, trainer, saved.step - 1, rank, saved.state[RANKS])
    for number, batch in enumerate(batches):
        watch.look({f"{name} of micro-batch {number}": value for name, value in batch.tensors().items()})
    watch.look({f"weight {name}": value for name, value in trainer.model.state_dict().items()})
    logs = trainer.step(saved.step - 1, batches)
    return Replayed(saved.step, {name: float(value) for name, value in logs.items()}, next(iter(watch.nonfinite), None))


def batches_of(config: Config, trainer: Trainer, step: int, rank: int, ranks: int) -> list[Batch]:
    """Returns the normalised micro-batches that a rank had in a step, which is counted from 0."""
    if not 0 <= rank < ranks:
        raise ValueError(f"--rank {rank}: the step had {ranks} ranks, from 0")
    of_all = build_pipeline(config, trainer.model)(build_source(config).train())
    dataset = replace(of_all, rank=rank, world_size=ranks)
    mean, std = (torch.tensor(config["data"][key], device=trainer.device) for key in ("mean", "std"))
    micro_steps = range(step * dataset.accumulate, (step + 1) * dataset.accumulate)
    return [dataset[micro].to(trainer.device).normalised(mean, std) for micro in micro_steps]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="RUN_FOLDER/nonfinite/step-XXXXXXXX")
    parser.add_argument("--rank", type=int, default=0, help="whose images of the step are taken")
    arguments = parser.parse_args()
    try:
        replayed = replay(arguments.path, arguments.rank)
    except (checkpoint.CheckpointError, OSError, ValueError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    table = Table(f"step {replayed.step}", "value")
    for name, value in replayed.logs.items():
        table.add_row(name, f"{value:.6g}")
    Console().print(table)
    print(f"first value that is not finite: {replayed.origin or 'none, the step is finite here'}")
    return 0 if replayed.origin else 1


if __name__ == "__main__":
    sys.exit(main())
