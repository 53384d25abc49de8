"""Reads from the environment that torchrun or SLURM set which process of a run this one is, and sets there how torch
allocates memory.

torchrun sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; for the tasks of a SLURM step they are derived
from SLURM's own variables. MASTER_ADDR and MASTER_PORT that the user has set stay as they are.
"""

import os
import re

import torch

FIRST_PORT, PORTS = 20000, 20000
OF_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""The variables that torch reads when it first allocates memory on a GPU, an older name and a newer one."""


def launched_ranks() -> int:
    """Returns how many processes were started for this run. In a task of a SLURM step it also sets the variables that
    torchrun would set."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if "WORLD_SIZE" not in os.environ and tasks > 1:
        os.environ.update(slurm_variables())
    return int(os.environ.get("WORLD_SIZE", "1"))


def expand_segments() -> None:
    """Has torch grow the segments that it allocates on a GPU, unless the user has set one of its variables. Tensors
    whose size changes from step to step, as the number of masked tokens does, leave gaps in segments of a fixed size.
    Call it before anything is on a GPU."""
    if not any(name in os.environ for name in OF_ALLOCATOR):
        os.environ[OF_ALLOCATOR[0]] = "expandable_segments:True"


def slurm_variables() -> dict[str, str]:
    """Returns the variables that torchrun would set for this task of a SLURM step. The port depends on the job, so that
    two jobs can share a node. Raises ValueError when nothing says on which node the first task runs."""
    variables = os.environ
    nodes = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_JOB_NODELIST")
    address = variables.get("MASTER_ADDR") or (nodes and first_node(nodes))
    if not address:
        raise ValueError(
            "MASTER_ADDR is not set, nor SLURM_STEP_NODELIST: set MASTER_ADDR to the node of the first task"
        )
    return {
        "RANK": variables["SLURM_PROCID"],
        "LOCAL_RANK": variables["SLURM_LOCALID"],
        "WORLD_SIZE": variables.get("SLURM_STEP_NUM_TASKS") or variables["SLURM_NTASKS"],
        "MASTER_ADDR": address,
        "MASTER_PORT": variables.get("MASTER_PORT") or str(FIRST_PORT + int(variables["SLURM_JOB_ID"]) % PORTS),
    }


def first_node(nodes: str) -> str:
    """Returns the first node of a list as SLURM writes it: gpu-03 of "gpu-[03-04,7],login", rack1-n01 of
    "rack[1-2]-n[01-16]". It is the node that `scontrol show hostnames` lists first; a container has no scontrol."""
    first = re.match(r"(\[[^\]]*\]|[^,\[])*", nodes)
    assert first is not None  # it matches the empty string too
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0])


def local_rank() -> int:
    """Returns the number of this process among those on its node."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_device() -> int:
    """Returns the index of the GPU of this process among those that it sees: its only one where SLURM shows each task
    another (gpus_per_task=1), else the one with the number of its local rank."""
    return local_rank() % max(torch.cuda.device_count(), 1)
