"""What torch's fully_shard gathers, and when."""

from pathlib import Path

import pytest
from torch.distributed.tensor.debug import CommDebugMode

from dinoswap.distributed.fsdp2 import FSDP2
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


@pytest.mark.parametrize(
    ("replicas", "ranks", "message"),
    [(3, 8, "replicas=3: must divide the 8 ranks"), (4, 4, "replicas=4: .*; choose distributed=ddp, or fewer")],
)
def test_groups_that_ranks_cannot_form_are_refused(replicas: int, ranks: int, message: str) -> None:
    option: FSDP2 = build_option("distributed/fsdp2", replicas=replicas)
    option.check_ranks(2 * replicas)
    with pytest.raises(ValueError, match=message):
        option.check_ranks(ranks)
