"""Clipping per submodule and per tensor against torch's own clip of the same tensors."""

import pytest
import torch
from torch import Tensor

from dinoswap.optim.clip import Clip
from dinoswap.optim.param_groups import Group, drop_frozen_gradients
from dinoswap.optim.settings import ClipBy

SHAPES = {"backbone": [(3, 4), (5,), (2, 2)], "dino_head": [(4, 4), (7,)]}
SCALES = (10.0, 1e-3)  # one norm is far above the limit, one far below


def groups(clip: bool = True) -> list[Group]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for module, shapes in SHAPES.items():
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape, generator=generator) * SCALES[index % 2]
        half = len(parameters) // 2  # two groups of one module
        made += [
            {"module": module, "params": part, "clip": clip, "is_last_layer": index == 1}
            for index, part in enumerate((parameters[:half], parameters[half:]))
        ]
    return made


def gradients(made: list[Group], module: str) -> list[Tensor]:
    return [p.grad for group in made if group["module"] == module for p in group["params"] if p.grad is not None]


@pytest.mark.parametrize("by", ["per_module", "per_tensor"])
@pytest.mark.parametrize("max_norm", [3.0, 0.15])
def test_gradients_are_those_of_torch(by: ClipBy, max_norm: float) -> None:
    ours, theirs = groups(), groups()
    norms = Clip(max_norm, by)(ours)
    for module in SHAPES:
        expected = gradients(theirs, module)
        parameters = [p for group in theirs if group["module"] == module for p in group["params"]]
        norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in expected]))
        torch.testing.assert_close(norms[module], norm)
        for together in [parameters] if by == "per_module" else [[p] for p in parameters]:
            torch.nn.utils.clip_grad_norm_(together, max_norm)
        torch.testing.assert_close(gradients(ours, module), gradients(theirs, module))


@pytest.mark.parametrize(("max_norm", "clip"), [(None, True), (0.1, False)])
def test_norms_alone(max_norm: float | None, clip: bool) -> None:
    made = groups(clip)
    norms = Clip(max_norm, "per_module")(made)
    assert norms["backbone"] > 1
    torch.testing.assert_close(gradients(made, "backbone"), gradients(groups(), "backbone"), rtol=0, atol=0)


def test_a_module_without_gradients_has_no_norm() -> None:
    made = groups()
    for group in made[:2]:
        for parameter in group["params"]:
            parameter.grad = None
    assert set(Clip(1.0, "per_module")(made)) == {"dino_head"}


def test_frozen_gradients_are_dropped_of_last_layers_alone() -> None:
    made = groups()
    drop_frozen_gradients(made, {"last_layer_dropped": 0.0})
    assert len(gradients(made, "backbone")) == 3
    drop_frozen_gradients(made, {"last_layer_dropped": 1.0})
    assert len(gradients(made, "backbone")) == 1
    assert len(gradients(made, "dino_head")) == 1
