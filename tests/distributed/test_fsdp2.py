"""What torch's fully_shard gathers, and when."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.distributed.tensor.debug import CommDebugMode

from dinoswap.distributed import all_reduce_mean
from dinoswap.distributed.fsdp2 import FSDP2
from dinoswap.evaluation.features import FrozenBackbone
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


COMMON = ["objectives.koleo.gather=true", "model.drop_path=0"]
BF16, FP32 = torch.bfloat16, torch.float32
HALF = {  # settings, how ranks share the work, and the types of tokens, and of weights of products, in a step
    "bf16": (["trainer.precision=bf16"], ["distributed=fsdp2"], FP32, BF16),
    "bf16, gathered in fp32": (
        *(["trainer.precision=bf16"], ["distributed=fsdp2", "distributed.param_dtype=fp32"]),
        *(FP32, FP32),
    ),
    "bf16_params": (["trainer.precision=bf16_params"], ["distributed=fsdp2"], BF16, BF16),
    "bf16_params, copies": (["trainer.precision=bf16_params"], ["distributed=ddp"], BF16, BF16),
}


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
    """Three steps: what is logged, the types while they are computed and those that are kept; then class tokens of the
    teacher, as evaluations compute them."""
    trainer, batches = small_run([*COMMON, *overrides])
    types = types_of(trainer)
    logs = [trainer.step(step, batches(step)) for step in range(3)]
    values = {name: [float(all_reduce_mean(of_step[name])) for of_step in logs] for name in logs[0]}
    seen = {kind: set(found) for kind, found in types.items()}
    kept = {p.dtype for p in trainer.model.parameters()}
    statistics = torch.full((3,), 0.5)
    backbone = FrozenBackbone(trainer.model.teacher["backbone"], statistics, statistics, autocast=trainer.dtype)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"logs": values, "types": seen, "kept": kept, "cls": backbone.features(images)["cls"]}


def half_precisions(rank: int) -> dict[str, Any]:
    return {name: half_precision([*settings, *spread]) for name, (settings, spread, *_) in HALF.items()}


def test_ranks_compute_in_half_precision_what_one_process_does(tmp_path: Path) -> None:
    """To bf16's rounding. Under autocast tokens stay in float32."""
    alone = {" ".join(settings): half_precision(settings) for settings, *_ in HALF.values()}
    (found, _) = on_ranks(half_precisions, tmp_path)
    for name, (settings, _, tokens, products) in HALF.items():
        wanted = alone[" ".join(settings)]
        assert found[name]["types"] == {"tokens": {tokens}, "norm": {tokens}, "block": {products}, "head": {products}}
        assert found[name]["kept"] == {FP32}
        assert found[name]["cls"].dtype == FP32
        torch.testing.assert_close(found[name]["cls"], wanted["cls"], atol=0.05, rtol=0.02)
        for term, values in wanted["logs"].items():
            assert found[name]["logs"][term] == pytest.approx(values, rel=0.02), (name, term)
    assert found["bf16"]["logs"] != found["bf16, gathered in fp32"]["logs"]


@pytest.mark.parametrize(
    ("replicas", "ranks", "message"),
    [(3, 8, "replicas=3: must divide the 8 ranks"), (4, 4, "replicas=4: .*; choose distributed=ddp, or fewer")],
)
def test_groups_that_ranks_cannot_form_are_refused(replicas: int, ranks: int, message: str) -> None:
    option: FSDP2 = build_option("distributed/fsdp2", replicas=replicas)
    option.check_ranks(2 * replicas)
    with pytest.raises(ValueError, match=message):
        option.check_ranks(ranks)
