"""Two ranks on one GPU by gloo, as NCCL takes no two on one, and one rank by NCCL: losses and weights of some steps, as
DDP and FSDP2 spread them, against those of one process.

A rank is this module, started by torchrun: python -m gpu_checks.ranks BACKEND SPREAD DEVICE FOLDER.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from dinoswap.build import build_trainer
from dinoswap.distributed import all_reduce_mean
from dinoswap.trainer import Trainer, resolve_device
from gpu_checks.numbers import Numbers, beyond, largest_difference
from gpu_checks.steps import WITHOUT_DRAWS, Steps

STEPS = 4
TOLERANCE = 1e-4
"""Of losses, relative, and of weights, absolute: gradients of ranks are added in another order, and Adam divides by
their size, so that a weight whose gradient is 0 but for rounding may move by the learning rate."""
OVERRIDES = ["recipe=smoke", "preset=official", *WITHOUT_DRAWS, "objectives.koleo.gather=true"]
SPREADS = ("ddp", "fsdp2")


def ranks(subject: str, device: torch.device) -> Numbers:
    backend, spread = subject.split()
    if backend == "nccl" and device.type != "cuda":
        return {"skipped": "NCCL is for GPUs"}
    with tempfile.TemporaryDirectory() as folder:
        launch(backend, spread, device, Path(folder))
        result = torch.load(Path(folder) / "0.pt", weights_only=True)
    if "skipped" in result:
        return result
    alone = Steps(device, *OVERRIDES, batches=STEPS)
    expected = alone.losses(STEPS)
    weights = whole_weights(alone.trainer)
    difference = largest_difference(result["losses"], expected)
    moved = max(float((result["weights"][name] - value).abs().max()) for name, value in weights.items())
    failed = beyond("losses", difference, TOLERANCE) + beyond("weights", moved, TOLERANCE)
    return {"losses": difference, "weights": moved, "failed": failed}


def launch(backend: str, spread: str, device: torch.device, folder: Path) -> None:
    """Raises RuntimeError, with what they printed, where ranks fail."""
    count = 2 if backend == "gloo" else 1
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command += ["-m", "gpu_checks.ranks", backend, spread, str(device), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False)
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {done.stderr[-2000:]}")


def whole_weights(trainer: Trainer) -> dict[str, Tensor]:
    state = trainer.model.state_dict()
    whole = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}
    return {name: value.cpu() for name, value in whole.items()}


# --- a rank -----------------------------------------------------------------------------------------------------------


def rank(backend: str, spread: str, device: torch.device, folder: Path) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if backend == "nccl":  # hosts communicate by gloo all the same
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        lacking = lacks(spread, device) if backend == "gloo" else ""
        result = {"skipped": lacking} if lacking else trained(spread, device)
        torch.save(result, folder / f"{dist.get_rank()}.pt")
    finally:
        dist.destroy_process_group()


def lacks(spread: str, device: torch.device) -> str:
    """What this torch's gloo cannot do with tensors on the device, although DDP or FSDP2 need it; "" nothing."""
    part, all_parts = torch.ones(2, device=device), torch.ones(2 * dist.get_world_size(), device=device)
    needed = {"all_reduce": lambda: dist.all_reduce(part), "broadcast": lambda: dist.broadcast(part, 0)}
    if spread == "fsdp2":
        needed |= {
            "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(all_parts, part),
            "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(part, all_parts),
        }
    for name, collective in needed.items():
        try:
            collective()
        except (RuntimeError, ValueError, NotImplementedError) as error:
            return f"torch's gloo has no {name} on this device: {str(error).splitlines()[0]}"
    return ""


def trained(spread: str, device: torch.device) -> dict[str, Any]:
    steps = Steps(device, *OVERRIDES, f"distributed={spread}", batches=STEPS, build=spread_though_alone)
    losses = [float(all_reduce_mean(steps.step(step))) for step in range(STEPS)]
    return {"losses": losses, "weights": whole_weights(steps.trainer)}


def spread_though_alone(config: dict[str, Any]) -> Trainer:
    """What build_trainer returns, which leaves the model of a single rank as it is, of two ranks."""
    with mock.patch("dinoswap.build.world_size", return_value=2):
        return build_trainer(config)


if __name__ == "__main__":
    rank(sys.argv[1], sys.argv[2], resolve_device(sys.argv[3]), Path(sys.argv[4]))
