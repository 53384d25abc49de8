"""Which process of a run this one is, by what torchrun or SLURM put into its environment.

torchrun sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; the tasks of a SLURM step are told the same
from SLURM's own variables. MASTER_ADDR and MASTER_PORT that the user has set stay as they are.
"""

import os
import re

import torch

FIRST_PORT, PORTS = 20000, 20000


def launched_ranks() -> int:
    """How many processes were started for this run; SLURM's tasks are told what torchrun tells its own."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if "WORLD_SIZE" not in os.environ and tasks > 1:
        os.environ.update(slurm_variables())
    return int(os.environ.get("WORLD_SIZE", "1"))


def slurm_variables() -> dict[str, str]:
    """What torchrun would set for this task of a SLURM step. The port depends on the job, so that two of them can share
    a node. Raises ValueError where nothing says on which node the first task runs."""
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
    """Of a list as SLURM writes it: gpu-03 of "gpu-[03-04,7],login", rack1-n01 of "rack[1-2]-n[01-16]". What
    `scontrol show hostnames` lists first, where a container has no scontrol."""
    first = re.match(r"(\[[^\]]*\]|[^,\[])*", nodes)
    assert first is not None  # it matches the empty string too
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0])


def local_rank() -> int:
    """Which of this node's processes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_device() -> int:
    """Which of the GPUs that this process sees: its own one where SLURM shows each task another (gpus_per_task=1), and
    else the one with the number of its local rank."""
    return local_rank() % max(torch.cuda.device_count(), 1)
