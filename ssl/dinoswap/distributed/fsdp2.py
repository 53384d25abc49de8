"""Shards each weight, its gradient, its moments and its average over the ranks.

This is torch's fully_shard (FSDP2): a block's weights are gathered when it runs and freed afterwards, gradients are
averaged and scattered. Student and EMA teacher are sharded alike, so the average is updated shard by shard. The model
is the root of all its networks: they share streams, and while one computes the weights of the next are gathered.

Weights of blocks and heads may be gathered in half precision, which is that of their products anyway. What a backbone
has besides, tokens and its last norm, is gathered in the precision of its residual stream, and frozen networks that are
no part of the model in float32: they have a precision of their own.

Networks without blocks, as heads are, may be called several times in a step. Their weights are gathered at the first
call and kept until the gradients of the step are complete, see `Trainer`.

With `replicas` ranks form groups of consecutive ones. A group holds a whole sharded state, and weights are gathered
within it; gradients are averaged over its ranks and then between the groups (HSDP).
"""

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from dinoswap.distributed import Dtype, Networks, world_size

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class FSDP2:
    shards = True

    def __init__(
        self,
        *,
        timeout_minutes: float,
        param_dtype: Dtype | None,
        reduce_dtype: Dtype,
        reshard_after_forward: bool,
        replicas: int,
    ) -> None:
        """Shards are always float32; weights of products are gathered in `param_dtype`, None for that of the products,
        and gradients are averaged in `reduce_dtype`. Without `reshard_after_forward`, gathered weights stay until the
        backward pass, which takes more memory and less traffic. There are `replicas` copies of the sharded state. A
        rank that does not answer for `timeout_minutes` counts as failed. Raises ValueError for a value out of range."""
        if not timeout_minutes > 0:
            raise ValueError(f"timeout_minutes={timeout_minutes}: must be above 0")
        if replicas < 1:
            raise ValueError(f"replicas={replicas}: must be at least 1, the whole state once")
        self.timeout_minutes = timeout_minutes
        self.param_dtype, self.reduce_dtype = param_dtype, reduce_dtype
        self.reshard_after_forward = reshard_after_forward
        self.replicas = replicas

    def check_ranks(self, ranks: int) -> None:
        """Raises ValueError where the ranks do not form `replicas` groups of several ranks."""
        if ranks % self.replicas:
            raise ValueError(f"replicas={self.replicas}: must divide the {ranks} ranks; start more, or set 1")
        if ranks == self.replicas:
            raise ValueError(
                f"replicas={self.replicas}: each of the {ranks} ranks would hold everything; choose distributed=ddp, "
                "or fewer replicas"
            )

    def prepare(self, model: nn.Module, networks: Networks, device: torch.device) -> nn.Module:
        """Returns `model` after sharding each of the networks in place, block by block if it has blocks."""
        # Tokens are views of what the last norm gives, and are never changed in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        mesh, inside = self._mesh(device), set(model.modules())
        products, stream = (self._policy(dtype) for dtype in (self.param_dtype or networks.products, networks.stream))
        for network in networks.trained:
            _shard(network, mesh, products, stream, reshard=self.reshard_after_forward, keep=True)
        for network in networks.averaged:
            _shard(network, mesh, products, stream, reshard=True, keep=True)
        for network in networks.frozen:
            policies = (products, stream) if network in inside else (self._policy("fp32"),) * 2
            _shard(network, mesh, *policies, reshard=True, keep=False)
        _prefetch_backward(networks.trained)
        others = {parameter for parameter in model.parameters() if not isinstance(parameter, DTensor)}
        root = fully_shard(model, mesh=mesh, mp_policy=stream, ignored_params=others)
        root._get_fsdp_state()._lazy_init()  # or a network that is called before the model would be a root of its own
        return model

    def _policy(self, dtype: Dtype) -> MixedPrecisionPolicy:
        """Returns the policy by which weights are gathered in `dtype` and gradients are reduced in `reduce_dtype`."""
        return MixedPrecisionPolicy(
            param_dtype=DTYPES[dtype], reduce_dtype=DTYPES[self.reduce_dtype], cast_forward_inputs=False
        )

    def _mesh(self, device: torch.device) -> DeviceMesh:
        """Returns the mesh of all ranks: one dimension of shards or, with replicas, replicas by shards."""
        ranks = world_size()
        if self.replicas == 1:
            return init_device_mesh(device.type, (ranks,))
        shape = (self.replicas, ranks // self.replicas)
        return init_device_mesh(device.type, shape, mesh_dim_names=("replicas", "shards"))


def _shard(
    network: nn.Module,
    mesh: DeviceMesh,
    products: MixedPrecisionPolicy,
    stream: MixedPrecisionPolicy,
    *,
    reshard: bool,
    keep: bool,
) -> None:
    """Shards a network, the blocks and a network without blocks by the policy `products`. With `reshard` its weights
    are freed after the forward pass. With `keep`, those of a network without blocks are not, nor after the backward
    pass."""
    blocks = blocks_of(network)
    keep = keep and not blocks
    for part in (*blocks, network):
        policy = stream if part is network and blocks else products
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard and not keep)
    if keep:
        cast(FSDPModule, network).set_reshard_after_backward(False)
    for earlier, following in pairwise([network, *blocks]):
        cast(FSDPModule, earlier).set_modules_to_forward_prefetch([cast(FSDPModule, following)])


def _prefetch_backward(networks: Sequence[nn.Module]) -> None:
    """Has the weights of a network's part gathered while the part before it in the backward pass computes: after the
    networks without blocks come those with blocks, and after their first block what they have besides. torch's default
    goes by the order of all calls, in which the teacher's lie between."""
    for network in networks:
        if blocks := blocks_of(network):
            _prefetch_along([network, *reversed(blocks), network])
            for head in networks:
                if not blocks_of(head):
                    _prefetch_along([head, network])


def _prefetch_along(parts: Sequence[nn.Module]) -> None:
    """Has the weights of each part gathered while the part before it in the list computes its backward pass."""
    for part, following in pairwise(parts):
        cast(FSDPModule, part).set_modules_to_backward_prefetch([cast(FSDPModule, following)])


def blocks_of(network: nn.Module) -> Sequence[nn.Module]:
    """Returns the blocks of a vision transformer, also of one that is wrapped; nothing for another network."""
    lists = (getattr(module, "blocks", None) for module in network.modules())
    return next(([*blocks] for blocks in lists if isinstance(blocks, nn.ModuleList)), [])
