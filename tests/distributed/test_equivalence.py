"""Several ranks compute what one process computes on the same global batch: losses and weights after five steps."""

from functools import partial
from typing import Any

import pytest
import torch

from dinoswap.distributed import all_reduce_mean
from ranks import on_ranks, whole
from small_models import CENTERING, small_run

STEPS, OVERFLOWING = 5, 9
COMMON = ["model.residual_dropout=0", "objectives.koleo.gather=true"]
PATCH_LOSSES = ("ibot", "clustering")
UNMASKED, UNSHARDED, REPLICAS = "a rank without masked tokens", "gathered until the backward pass", "two replicas"
CASES = {
    "official": [],
    "legacy": ["preset=legacy"],
    "aligned": ["preset=aligned"],
    "dinov3": ["preset=dinov3", "model.local_cls_norm=true", "model.key_bias=false", "position.dtype=fp32"],
    "gram_ema": ["preset=dinov3", "gram=ema", "position.dtype=fp32"],
    "gram_snapshot": ["gram=snapshot", "objectives.gram.refresh_every=2", "trainer.max_steps=5"],
    "gram_snapshot, mixed": [
        *("gram=snapshot", "objectives.gram.refresh_every=2", "trainer.max_steps=5", "objectives.gram.crop_scale=1.5"),
        *("resolution=mixed", "resolution.global_sizes=[32,48]", "resolution.local_sizes=[8,16]"),
    ],
    "koleo_group": ["objectives.koleo.group=2", "objectives.koleo.gather=false"],
    "koleo_neighbours": ["objectives.koleo.neighbours=2"],
    "two_pass": ["forward=two_pass"],
    "visible": ["clustering=visible"],
    "separate": ["clustering=separate"],
    "per_token": ["clustering=masked", *(f"reduction@objectives.{o}.reduction=per_token" for o in PATCH_LOSSES)],
    "weighted_token_mean": ["reduction@objectives.ibot.reduction=weighted_token_mean"],
    "shared_head": ["objectives.ibot.head=dino_head"],
    "padded": ["objectives.ibot.pad_masked=0.3"],
    "centering": [CENTERING[0]],
    "accumulate": ["trainer.accumulate=2"],
    "mixed": ["resolution=mixed", "resolution.global_sizes=[32,48]", "resolution.local_sizes=[8,16]"],
    "clip_per_tensor": ["optimizer.clip=per_tensor", "optimizer.clip_grad=0.01"],
    "checkpointing": ["model.activation_checkpointing=true"],
    UNSHARDED: [],
    REPLICAS: [],
    "da3": ["da3=enabled", "da3.teacher.variant=small", "da3.projector_hidden_dim=16", "da3.centre_momentum=0.9"],
    UNMASKED: ["data.batch_size=2", "clustering=masked", "da3=enabled", "da3.projector_hidden_dim=16"],
}
FOUR = ["aligned", "legacy", REPLICAS]  # cases for four ranks
TWO = [case for case in CASES if case != REPLICAS]


def train(overrides: list[str]) -> dict[str, Any]:
    """What is logged of each step, weights and buffers after the last, and masked tokens of this rank at each."""
    trainer, batches = small_run([*COMMON, *overrides])
    if any(objective.checks_first_batch for objective in trainer.model.objectives.values()):
        trainer.check_first_batch(batches(0)[0])
    logs: dict[str, list[float]] = {}
    masked = []
    for step in range(STEPS):
        for name, value in trainer.step(step, batches(step)).items():
            logs.setdefault(name, []).append(float(all_reduce_mean(value)))
        masked.append(sum(len(batch.masked_indices) for batch in batches(step)))
    weights = {name: whole(value).clone() for name, value in trainer.model.state_dict().items()}
    return {"logs": logs, "weights": weights, "masked": masked}


def train_all(spread: str, cases: list[str], rank: int) -> dict[str, Any]:
    return {case: train([*CASES[case], f"distributed={spread}", *also(spread, case)]) for case in cases}


def also(spread: str, case: str) -> list[str]:
    """What only shares know."""
    if spread == "ddp":
        return []
    own = {UNSHARDED: ["distributed.reshard_after_forward=false"], REPLICAS: ["distributed.replicas=2"]}
    return [*own.get(case, []), *(["da3.use_fsdp=true"] if "da3=enabled" in CASES[case] else [])]


Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def alone() -> Found:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {case: train(overrides) for case, overrides in CASES.items()}
    torch.set_num_threads(threads)
    return found


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def two_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    work = partial(train_all, request.param, TWO)
    return on_ranks(work, tmp_path_factory.mktemp(request.param), seconds=500)


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    return on_ranks(partial(train_all, "fsdp2", FOUR), tmp_path_factory.mktemp("four"), world_size=4, seconds=500)


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Within float32 noise. Norms of gradients are among what is logged: AdamW would hide a factor."""
    assert found["logs"].keys() == wanted["logs"].keys()
    for name, values in wanted["logs"].items():
        assert found["logs"][name] == pytest.approx(values, rel=1e-5), name
    assert found["weights"].keys() == wanted["weights"].keys()
    for name, value in wanted["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("case", TWO)
def test_two_ranks_are_one_process(case: str, two_ranks: list[Found], alone: Found) -> None:
    for found in two_ranks:
        assert_same(found[case], alone[case])
    for name, value in two_ranks[0][case]["weights"].items():
        assert torch.equal(value, two_ranks[1][case]["weights"][name]), name


@pytest.mark.parametrize("case", FOUR)
def test_four_ranks_are_one_process(case: str, four_ranks: list[Found], alone: Found) -> None:
    for found in four_ranks:
        assert_same(found[case], alone[case])


def test_there_was_a_rank_without_masked_tokens(two_ranks: list[Found]) -> None:
    masked = list(zip(*(found[UNMASKED]["masked"] for found in two_ranks), strict=True))
    assert any(0 in counts and sum(counts) for counts in masked), masked


def half_precision(spread: str, rank: int) -> list[tuple[float, float, float]]:
    """Loss, whether the step was skipped, and loss scale of steps of which the first overflow."""
    trainer, batches = small_run([*COMMON, "trainer.precision=fp16", f"distributed={spread}"])
    logs = [trainer.step(step, batches(step)) for step in range(OVERFLOWING + 3)]
    return [(float(of["loss"]), float(of["nonfinite"]), trainer.scaler.get_scale()) for of in logs]


def test_shares_have_one_loss_scale(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where one share of a gradient overflows, all ranks skip the step, as copies do."""
    copies, shares = (
        on_ranks(partial(half_precision, spread), tmp_path_factory.mktemp(spread)) for spread in ("ddp", "fsdp2")
    )
    for ranks in (copies, shares):
        assert [row[1:] for row in ranks[0]] == [row[1:] for row in ranks[1]]
    assert [row[1:] for row in shares[0]] == [row[1:] for row in copies[0]]
    assert {row[1] for row in shares[0]} == {0.0, 1.0}
