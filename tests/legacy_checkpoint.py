"""The legacy networks of the fixtures, as a checkpoint of the legacy trainer holds them."""

import argparse
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fixtures import LEGACY, Fixture

TRAINING = Fixture("train_step_legacy.npz", LEGACY)
TOKENS = Fixture("vit_legacy.npz", LEGACY)
PARTS = {"student": "student", "teacher": "teacher", "bank": "prototype_bank"}  # name in the fixture: in a checkpoint


def networks() -> dict[str, dict[str, Tensor]]:
    """Their state dicts by name, names as inside the DDP wrappers."""
    prefixes = {part: f"init/{name}/" for name, part in PARTS.items()}
    return {
        part: {f"module.{key.removeprefix(prefix)}": TRAINING[key] for key in TRAINING.keys(prefix)}
        for part, prefix in prefixes.items()
    }


def checkpoint() -> dict[str, Any]:
    """All that a checkpoint of the legacy trainer holds, by kind."""
    groups = [{"lr": np.float64(1e-3), "weight_decay": 0.04, "params": [0]}]
    return {
        **networks(),
        "optimizer_student": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": groups},
        "iteration": 7,
        "args": argparse.Namespace(embeddingdim=48, dataset_sources=["a:b:c"]),
        "torch_rng_state": torch.get_rng_state(),
        "numpy_rng_state": np.random.get_state(),  # noqa: NPY002
        "random_rng_state": random.getstate(),
    }
