"""Several ranks compute what one process computes on the same global batch: losses and weights after five steps."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dinoswap.build import build_pipeline, build_source, build_trainer
from dinoswap.configuration import plain
from dinoswap.distributed import all_reduce_mean
from dinoswap.distributed.sharding import whole
from ranks import on_ranks
from small_models import CENTERING, composed

STEPS = 5
COMMON = ["recipe=smoke", "trainer.device=cpu", "model.residual_dropout=0", "objectives.koleo.gather=true"]
PATCH_LOSSES = ("ibot", "clustering")
UNMASKED = "a rank without masked tokens"
CASES = {
    "official": [],
    "legacy": ["preset=legacy"],
    "aligned": ["preset=aligned"],
    "two_pass": ["forward=two_pass"],
    "visible": ["clustering=visible"],
    "separate": ["clustering=separate"],
    "per_token": ["clustering=masked", *(f"reduction@objectives.{o}.reduction=per_token" for o in PATCH_LOSSES)],
    "weighted_token_mean": ["reduction@objectives.ibot.reduction=weighted_token_mean"],
    "shared_head": ["objectives.ibot.head=dino_head"],
    "centering": [CENTERING[0]],
    "accumulate": ["trainer.accumulate=2"],
    "clip_per_tensor": ["optimizer.clip=per_tensor", "optimizer.clip_grad=0.01"],
    "checkpointing": ["model.activation_checkpointing=true"],
    "da3": ["da3=enabled", "da3.variant=small", "da3.projector_hidden_dim=16", "da3.centre_momentum=0.9"],
    UNMASKED: ["data.batch_size=2", "clustering=masked", "da3=enabled", "da3.projector_hidden_dim=16"],
}
SPREAD = ["ddp", "fsdp2"]


def train(overrides: list[str]) -> dict[str, Any]:
    """Losses [STEPS], whole weights and buffers, and masked tokens of this rank at each step."""
    cfg = plain(composed([*COMMON, *overrides]))
    trainer = build_trainer(cfg)
    dataset = build_pipeline(cfg, trainer.model)(build_source(cfg).train())
    mean, std = (torch.tensor(cfg["data"][key]) for key in ("mean", "std"))
    losses, masked = [], []
    for step in range(STEPS):
        first = step * dataset.accumulate
        batches = [dataset[first + micro].normalised(mean, std) for micro in range(dataset.accumulate)]
        losses.append(float(all_reduce_mean(trainer.step(step, batches)["loss"])))
        masked.append(sum(len(batch.masked_indices) for batch in batches))
    weights = {name: whole(value).clone() for name, value in trainer.model.state_dict().items()}
    return {"losses": losses, "weights": weights, "masked": masked}


def train_all(spread: str, cases: list[str], rank: int) -> dict[str, Any]:
    sharded = ["da3.use_fsdp=true"] if spread == "fsdp2" else []
    return {
        case: train([*CASES[case], f"distributed={spread}", *(sharded if "da3=enabled" in CASES[case] else [])])
        for case in cases
    }


Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def alone() -> Found:
    torch.set_num_threads(1)
    return {case: train(overrides) for case, overrides in CASES.items()}


@pytest.fixture(scope="module", params=SPREAD)
def spread(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    work = partial(train_all, request.param, list(CASES))
    return on_ranks(work, tmp_path_factory.mktemp(request.param), seconds=200)


def largest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_process(case: str, spread: list[Found], alone: Found) -> None:
    wanted = alone[case]
    for found in (rank[case] for rank in spread):
        error = max(abs(a - b) / abs(b) for a, b in zip(found["losses"], wanted["losses"], strict=True))
        print(case, error, largest(found["weights"], wanted["weights"]))
