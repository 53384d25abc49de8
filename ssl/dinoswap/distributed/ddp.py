"""Every rank holds the whole model; gradients are averaged while the backward pass still runs.

torch's DistributedDataParallel around the one module that returns the loss. Every trainable parameter gets a gradient
in every step on every rank, a zero where its rank has no token for it, so unused parameters need no search.
"""

import warnings
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class DDP:
    shards = False

    def __init__(self, timeout_minutes: float = 10.0, bucket_mb: int = 25) -> None:
        """`timeout_minutes` until a rank that does not answer is given up; gradients travel in buckets of
        `bucket_mb` MiB."""
        if not timeout_minutes > 0:
            raise ValueError(f"timeout_minutes={timeout_minutes}: must be above 0")
        if bucket_mb < 1:
            raise ValueError(f"bucket_mb={bucket_mb}: must be at least 1")
        self.timeout_minutes = timeout_minutes
        self.bucket_mb = bucket_mb

    def prepare(
        self, model: nn.Module, trained: Iterable[nn.Module], inference_only: Iterable[nn.Module], device: torch.device
    ) -> nn.Module:
        """`model`, wrapped. Buffers are left alone: what moves them is the same on all ranks."""
        with warnings.catch_warnings():  # torch 2.14 renames an argument that 2.9 knows by this name only
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                model,
                device_ids=[device] if device.type == "cuda" else None,
                bucket_cap_mb=self.bucket_mb,
                broadcast_buffers=False,
            )
