"""Which process of a run this one is: by torchrun, by SLURM and by what the user has set, and on which GPU."""

import os

import pytest
import torch

from dinoswap.distributed import environment
from dinoswap.trainer import resolve_device

SLURM = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "n[2-3]",
}
TOLD = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A task of a step on two nodes, without a program of SLURM."""
    for name in TOLD:
        monkeypatch.setenv(name, "")  # so that what is set goes with the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", "")
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def told() -> tuple[str, ...]:
    assert environment.launched_ranks() == 4
    return tuple(os.environ[name] for name in TOLD)


def test_slurm_s_variables_in_the_words_of_torchrun(slurm: pytest.MonkeyPatch) -> None:
    assert told() == ("3", "1", "4", "n2", "20077")


def test_what_the_user_has_set_stays(slurm: pytest.MonkeyPatch) -> None:
    slurm.setenv("MASTER_ADDR", "10.0.0.1")
    assert told() == ("3", "1", "4", "10.0.0.1", "20077")
    slurm.delenv("WORLD_SIZE")
    slurm.setenv("MASTER_PORT", "29512")
    assert told() == ("3", "1", "4", "10.0.0.1", "29512")


def test_where_nothing_names_a_node_it_is_said_what_to_set(slurm: pytest.MonkeyPatch) -> None:
    slurm.delenv("SLURM_STEP_NODELIST")
    with pytest.raises(ValueError, match=r"MASTER_ADDR is not set.*set MASTER_ADDR to the node of the first task"):
        environment.launched_ranks()
    slurm.setenv("SLURM_JOB_NODELIST", "login,n7")
    assert told()[3] == "login"


def test_torchrun_is_believed_within_slurm(slurm: pytest.MonkeyPatch) -> None:
    slurm.setenv("WORLD_SIZE", "2")
    assert environment.launched_ranks() == 2
    assert "RANK" not in os.environ


@pytest.mark.parametrize("own", [None, *environment.OF_ALLOCATOR])
def test_segments_expand_unless_the_user_says_otherwise(own: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in environment.OF_ALLOCATOR:
        monkeypatch.setenv(name, "")  # so that what is set goes with the test
        monkeypatch.delenv(name)
    if own is not None:
        monkeypatch.setenv(own, "max_split_size_mb:512")
    environment.expand_segments()
    found = {name: os.environ[name] for name in environment.OF_ALLOCATOR if name in os.environ}
    expected = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    assert found == (expected if own is None else {own: "max_split_size_mb:512"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("localhost", "localhost"),
        ("n1,n2", "n1"),
        ("n[1-2]", "n1"),
        ("gpu-[03-04,7],login", "gpu-03"),
        ("gpu-[7,03-04]", "gpu-7"),
        ("rack[1-2]-n[01-16]", "rack1-n01"),
        ("n[08-12]-ib,n20", "n08-ib"),
    ],
)
def test_the_first_node(nodes: str, first: str) -> None:
    assert environment.first_node(nodes) == first


@pytest.mark.parametrize(
    ("visible", "devices"),
    [(1, [0, 0, 0, 0]), (4, [0, 1, 2, 3]), (2, [0, 1, 0, 1])],
    ids=["gpus_per_task=1", "a GPU for each task, all seen", "two for each task"],
)
def test_the_device_of_a_task(visible: int, devices: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    found = []
    for local_rank in range(4):
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        found.append(resolve_device("auto"))
    assert found == [torch.device("cuda", number) for number in devices]
