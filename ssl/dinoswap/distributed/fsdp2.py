"""Shards each weight, its gradient, its moments and its average over the ranks.

This is torch's fully_shard (FSDP2): a block's weights are gathered when it runs and freed afterwards, gradients are
averaged and scattered. Student and EMA teacher are sharded alike, so the average is updated shard by shard. Each
network is a root of its own, because heads are called several times in a step, and teachers have no backward pass.
"""

import warnings
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from dinoswap.distributed import world_size

Dtype = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FSDP2:
    shards = True

    def __init__(
        self,
        *,
        timeout_minutes: float,
        param_dtype: Dtype,
        reduce_dtype: Dtype,
        reshard_after_forward: bool,
    ) -> None:
        """Shards are always float32; weights are gathered and computed in `param_dtype`, and gradients are averaged in
        `reduce_dtype`. Without `reshard_after_forward`, gathered weights stay until the backward pass, which takes more
        memory and less traffic. A rank that does not answer for `timeout_minutes` counts as failed. Raises ValueError
        when the timeout is not above 0."""
        if not timeout_minutes > 0:
            raise ValueError(f"timeout_minutes={timeout_minutes}: must be above 0")
        self.timeout_minutes = timeout_minutes
        self.policy = MixedPrecisionPolicy(
            param_dtype=DTYPES[param_dtype], reduce_dtype=DTYPES[reduce_dtype], cast_forward_inputs=False
        )
        self.reshard_after_forward = reshard_after_forward

    def prepare(
        self,
        model: nn.Module,
        trained: Iterable[nn.Module],
        inference_only: Iterable[nn.Module],
        device: torch.device,
        *,
        one_backward: bool,
    ) -> nn.Module:
        """Returns `model` after sharding each of the given networks in place, block by block if it has blocks."""
        # Tokens are views of what the last norm gives, and are never changed in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(device.type, (world_size(),))
        # Without a backward pass nothing else would drop what was gathered, and the average would go unnoticed
        kinds = [(trained, self.reshard_after_forward), (inference_only, True)]
        for network, reshard in [(network, reshard) for networks, reshard in kinds for network in networks]:
            for part in (*blocks_of(network), network):
                fully_shard(part, mesh=mesh, mp_policy=self.policy, reshard_after_forward=reshard)
        return model


def blocks_of(network: nn.Module) -> Iterable[nn.Module]:
    """Returns the blocks of a vision transformer, also of one that is wrapped; nothing for another network."""
    lists = (
        blocks for module in network.modules() if isinstance(blocks := getattr(module, "blocks", None), nn.ModuleList)
    )
    return next(lists, ())
