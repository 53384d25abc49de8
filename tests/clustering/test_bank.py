"""The prototype bank: its initial values and what the optimiser is told of it."""

import torch
from clustering_contexts import new_bank
from torch import nn

from contexts import random
from dinoswap.clustering.bank import LinearPrototypeBank
from dinoswap.layer_decay.uniform import Uniform
from dinoswap.optim.param_groups import parameter_groups
from dinoswap.weight_decay.all_groups import AllGroups


def test_logits_are_products_with_the_prototypes() -> None:
    bank = new_bank(5, 7).double()
    nn.init.normal_(bank.bias)
    x = random(3, 5)
    for logits in bank(x, x)[:2]:
        for row, of_row in zip(x, logits, strict=True):
            for prototype, bias, logit in zip(bank.weight, bank.bias, of_row, strict=True):
                torch.testing.assert_close(logit, sum(a * b for a, b in zip(row, prototype, strict=True)) + bias)


def test_the_students_logits_leave_it_alone() -> None:
    bank, student = new_bank(5, 7), torch.randn(4, 5, requires_grad=True)
    bank(torch.randn(3, 5), student).student.sum().backward()
    assert student.grad is not None
    assert bank.weight.grad is None and bank.bias.grad is None


def test_prototypes_start_standard_normal_and_the_bias_at_zero() -> None:
    torch.manual_seed(0)
    bank = new_bank(64, 512)
    values = bank.weight.detach().flatten().sort().values
    normal = torch.special.ndtri((torch.arange(len(values)) + 0.5) / len(values))  # quantiles of N(0, 1)
    assert (values - normal)[50:-50].abs().max() < 0.1
    assert torch.equal(bank.bias, torch.zeros(512))


def test_the_optimiser_treats_it_by_its_own_rule() -> None:
    student = nn.ModuleDict(
        {"backbone": nn.Linear(2, 2), "prototype_bank": LinearPrototypeBank(5, 7, lr_multiplier=0.25, betas=(0.8, 0.9))}
    )
    groups = [g for g in parameter_groups(student, Uniform(), AllGroups()) if g["module"] == "prototype_bank"]
    assert sorted(name for group in groups for name in group["names"]) == [
        "prototype_bank.bias",
        "prototype_bank.weight",
    ]
    for group in groups:
        assert group["lr_schedule"] == "prototype_lr"
        assert (group["lr_multiplier"], group["wd_multiplier"]) == (0.25, 0.0)
        assert group["betas"] == (0.8, 0.9)
        assert group["clip"] is False
