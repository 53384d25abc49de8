"""What torch's fully_shard gathers, and when."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.distributed.tensor.debug import CommDebugMode

from dinoswap.distributed import all_reduce_mean
from dinoswap.distributed.fsdp2 import FSDP2
from dinoswap.nn.vit import VisionTransformer
from dinoswap.trainer import Trainer
from options import build_option
from ranks import on_ranks
from small_models import small_run

CASES = {
    "heads of their own": [],
    "a shared head": ["objectives.ibot.head=dino_head"],
    "micro-batches": ["trainer.accumulate=2"],
}
BLOCKS = 2


def gathers(rank: int) -> dict[str, list[int]]:
    """How often weights are gathered in each of two steps."""
    found: dict[str, list[int]] = {}
    for case, overrides in CASES.items():
        trainer, batches = small_run(["distributed=fsdp2", *overrides])
        for step in range(2):
            with CommDebugMode() as communication:
                trainer.step(step, batches(step))
            counts = communication.get_comm_counts()
            found.setdefault(case, []).append(sum(n for op, n in counts.items() if "allgather_base" in str(op)))
    return found


def test_heads_are_gathered_once_in_a_step(tmp_path: Path) -> None:
    """And a block, or what a backbone has besides, once for each call and once for its backward pass; nothing else."""
    (found, _) = on_ranks(gathers, tmp_path)
    backbones = 3 * (BLOCKS + 1)  # teacher forward, student forward and backward
    assert found == {
        "heads of their own": [backbones + 4] * 2,
        "a shared head": [backbones + 2] * 2,
        "micro-batches": [2 * backbones + 4] * 2,
    }


HALF = ["trainer.precision=bf16", "objectives.koleo.gather=true", "model.drop_path=0"]


def types_of(trainer: Trainer) -> dict[str, set[torch.dtype]]:
    """Fills it with the types of tokens and weights in blocks and heads while the trainer steps."""
    seen: dict[str, set[torch.dtype]] = {"tokens": set(), "block": set(), "norm": set(), "head": set()}

    def note(kind: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            seen[kind].update(p.dtype for p in module.parameters())
            if kind == "block":
                seen["tokens"].update(pack.x.dtype for pack in arguments[0])

        return hook

    for networks in (trainer.model.student, trainer.model.teacher):
        backbone = cast(VisionTransformer, networks["backbone"])
        for kind, module in {"block": backbone.blocks[0], "norm": backbone.norm, "head": networks["dino_head"]}.items():
            module.register_forward_pre_hook(note(kind))
    return seen


def half_precision(overrides: list[str]) -> dict[str, Any]:
    """Three steps: what is logged, the types while they are computed, and those that are kept."""
    trainer, batches = small_run([*HALF, *overrides])
    types = types_of(trainer)
    logs = [trainer.step(step, batches(step)) for step in range(3)]
    values = {name: [float(all_reduce_mean(of_step[name])) for of_step in logs] for name in logs[0]}
    return {"logs": values, "types": types, "kept": {p.dtype for p in trainer.model.parameters()}}


GATHERED = {None: torch.bfloat16, "fp32": torch.float32}


def half_precisions(rank: int) -> dict[str | None, Any]:
    return {
        name: half_precision(["distributed=fsdp2", f"distributed.param_dtype={name or 'null'}"]) for name in GATHERED
    }


def test_weights_of_products_are_gathered_in_their_type(tmp_path: Path) -> None:
    """Tokens stay in float32 under autocast, and what is computed is what one process computes, to bf16's rounding."""
    alone = half_precision([])
    (found, _) = on_ranks(half_precisions, tmp_path)
    for name, of_blocks in GATHERED.items():
        types = {"tokens": {torch.float32}, "block": {of_blocks}, "norm": {torch.float32}, "head": {of_blocks}}
        assert found[name]["types"] == types
        assert found[name]["kept"] == {torch.float32}
        for term, values in alone["logs"].items():
            assert found[name]["logs"][term] == pytest.approx(values, rel=0.02), (name, term)
    assert found[None]["logs"] != found["fp32"]["logs"]


@pytest.mark.parametrize(
    ("replicas", "ranks", "message"),
    [(3, 8, "replicas=3: must divide the 8 ranks"), (4, 4, "replicas=4: .*; choose distributed=ddp, or fewer")],
)
def test_groups_that_ranks_cannot_form_are_refused(replicas: int, ranks: int, message: str) -> None:
    option: FSDP2 = build_option("distributed/fsdp2", replicas=replicas)
    option.check_ranks(2 * replicas)
    with pytest.raises(ValueError, match=message):
        option.check_ranks(ranks)
