"""Parameters in half precision, and what is said of a number format that the device has no instructions for."""

import copy
import itertools

import pytest
import torch
from torch import nn

from dinoswap.nn import precision
from dinoswap.nn.precision import emulation_notice, parameters_in, slowdown
from dinoswap.run.provenance import in_words, instruction_set, measured_on

CPU = torch.device("cpu")


def test_float32_is_said_nothing_of() -> None:
    assert emulation_notice("trainer.precision", None, CPU) is None


def test_a_slow_format_is_named_with_its_key_and_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.float32: 0.01, torch.bfloat16: 1.1}
    monkeypatch.setattr(precision, "_product_seconds", lambda matrix: seconds[matrix.dtype])
    assert slowdown(torch.bfloat16, CPU) == pytest.approx(110)
    notice = emulation_notice("da3.precision", torch.bfloat16, CPU)
    assert notice is not None
    assert "da3.precision=fp32" in notice and "bfloat16" in notice and "110 times" in notice


def test_a_fast_format_is_said_nothing_of(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.float32: 0.01, torch.bfloat16: 0.004}
    monkeypatch.setattr(precision, "_product_seconds", lambda matrix: seconds[matrix.dtype])
    assert emulation_notice("trainer.precision", torch.bfloat16, CPU) is None


def test_a_busy_machine_does_not_make_a_fast_format_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight of ten products are interrupted for 20 ms each, which is 100 times what one of them takes."""
    interrupted = itertools.cycle([True] * 8 + [False] * 2)

    def seconds(matrix: torch.Tensor) -> float:
        own = {torch.float32: 0.0002, torch.bfloat16: 0.0001}[matrix.dtype]
        return own + 0.02 if next(interrupted) and matrix.dtype == torch.bfloat16 else own

    monkeypatch.setattr(precision, "_product_seconds", seconds)
    assert slowdown(torch.bfloat16, CPU) == pytest.approx(0.5)


def test_measured_products_agree_with_the_instructions_of_this_cpu() -> None:
    """The list of instructions, which measures nothing, and the time of products are independent of each other."""
    emulated = emulation_notice("trainer.precision", torch.bfloat16, CPU) is not None
    assert emulated == (", no bf16" in instruction_set())


def test_a_table_of_times_says_which_instructions_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    known = torch.backends.cpu.get_cpu_capability()
    assert instruction_set() in (f"{known}, bf16", f"{known}, no bf16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert instruction_set().endswith(", limited to AVX2")
    assert instruction_set() in in_words(measured_on())
    assert in_words({"cpu": "a CPU", "threads": 2, "torch": "2.9"}).startswith("a CPU (instruction set not noted), 2")


def tied() -> nn.Sequential:
    """Two layers with one weight, and one that is frozen."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.Linear(4, 2).requires_grad_(False))
    network[2].weight = network[0].weight
    return network


def test_gradients_pass_through_parameters_in_half_precision() -> None:
    """They are those of a network that has no others."""
    network, x = tied(), torch.randn(5, 4)
    half = copy.deepcopy(network).bfloat16()
    half(x.bfloat16()).sum().backward()
    with parameters_in(torch.bfloat16, network):
        assert network[2].weight is network[0].weight
        network(x.bfloat16()).sum().backward()
    for ours, theirs in zip(network.parameters(), half.parameters(), strict=True):
        assert ours.dtype == torch.float32
        if ours.requires_grad:
            assert ours.grad is not None and theirs.grad is not None
            assert torch.equal(ours.grad, theirs.grad.float())


def test_a_network_gets_its_parameters_back() -> None:
    network = tied()
    before = [*network.named_parameters(remove_duplicate=False)]
    with pytest.raises(KeyError), parameters_in(torch.bfloat16, network):
        raise KeyError
    after = [*network.named_parameters(remove_duplicate=False)]
    assert [name for name, _ in after] == [name for name, _ in before]
    assert all(one is other for (_, one), (_, other) in zip(after, before, strict=True))
