"""Replicates the whole model on every rank; gradients are averaged while the backward pass still runs.

This is torch's DistributedDataParallel around the one module that returns the loss. Every trainable parameter gets a
gradient in every step on every rank, a zero when its rank has no token for it, so no search for unused parameters is
needed.
"""

import warnings
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class DDP:
    shards = False

    def __init__(self, *, timeout_minutes: float, bucket_mb: int) -> None:
        """A rank that does not answer for `timeout_minutes` counts as failed. Gradients are reduced in buckets of
        `bucket_mb` MiB. Raises ValueError for values out of range."""
        if not timeout_minutes > 0:
            raise ValueError(f"timeout_minutes={timeout_minutes}: must be above 0")
        if bucket_mb < 1:
            raise ValueError(f"bucket_mb={bucket_mb}: must be at least 1")
        self.timeout_minutes = timeout_minutes
        self.bucket_mb = bucket_mb

    def prepare(
        self, model: nn.Module, trained: Iterable[nn.Module], inference_only: Iterable[nn.Module], device: torch.device
    ) -> nn.Module:
        """Returns `model`, wrapped. Buffers are not synchronised, because their updates are the same on all ranks."""
        with warnings.catch_warnings():  # torch 2.14 renames an argument that 2.9 knows by this name only
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                bucket_cap_mb=self.bucket_mb,
                broadcast_buffers=False,
            )
