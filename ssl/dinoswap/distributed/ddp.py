"""Replicates the whole model on every rank; gradients are averaged while the backward pass still runs.

This is torch's DistributedDataParallel around the one module that returns the loss. Every trainable parameter gets a
gradient in every step on every rank, a zero when its rank has no token for it, also while its weights are frozen. So no
search for unused parameters is needed, and the graph of gradients is the same in every step. Gradients are views of the
buckets that travel.
"""

import warnings

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dinoswap.distributed import Networks


class DDP:
    shards = False

    def __init__(self, *, timeout_minutes: float, bucket_mb: int, static_graph: bool) -> None:
        """A rank that does not answer for `timeout_minutes` counts as failed. Gradients are reduced in buckets of
        `bucket_mb` MiB. With `static_graph` torch is told that all steps have the same gradients, where it can count on
        that, see `prepare`. Raises ValueError for values out of range."""
        if not timeout_minutes > 0:
            raise ValueError(f"timeout_minutes={timeout_minutes}: must be above 0")
        if bucket_mb < 1:
            raise ValueError(f"bucket_mb={bucket_mb}: must be at least 1")
        self.timeout_minutes = timeout_minutes
        self.bucket_mb = bucket_mb
        self.static_graph = static_graph

    def check_ranks(self, ranks: int) -> None:
        """Raises nothing: any number of ranks will do."""

    def prepare(self, model: nn.Module, networks: Networks, device: torch.device) -> nn.Module:
        """Returns `model`, wrapped. Buffers are not synchronised, because their updates are the same on all ranks.

        torch counts the gradients of the first backward pass, whether or not ranks exchange them in it, and expects as
        many in each pass in which they do (https://github.com/pytorch/pytorch/pull/187732). So where a step is not
        `one_backward` it is not told that the graph is static."""
        with warnings.catch_warnings():  # torch 2.14 renames an argument that 2.9 knows by this name only
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                bucket_cap_mb=self.bucket_mb,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                static_graph=self.static_graph and networks.one_backward,
            )
