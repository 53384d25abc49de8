"""Blocks and heads that are compiled: equal steps, and no graph that is made again once the first step is over."""

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from axis_arms import PRESETS, SMALL, Arm
from dinoswap.build import build_trainer
from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import ConfigError
from dinoswap.config.settings import check
from dinoswap.model import shapes_of
from dinoswap.nn import compiled
from dinoswap.nn.block import Block
from dinoswap.nn.compiled import Compilable, set_compiled
from dinoswap.nn.packs import Pack
from dinoswap.nn.projection_head import ProjectionHead


@pytest.fixture
def graphs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts the graphs that torch makes. What runs them is a parameter: `eager` and `aot_eager` spare the compiler of
    machine code, which takes seconds for each."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(request.param)

    @cache
    def counted(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return torch.compile(method, dynamic=True, backend=counter)

    monkeypatch.setattr(compiled, "_compiled", counted)
    yield counter
    torch._dynamo.reset()


@pytest.mark.parametrize("graphs", ["eager"], indirect=True)
@pytest.mark.parametrize("preset", PRESETS)
def test_graphs_of_the_first_step_serve_all_others(preset: str, graphs: CompileCounterWithBackend) -> None:
    """Other masks in every step, then other numbers of crops and images, and other rates of stochastic depth."""
    rates = [] if preset == "legacy" else ["model.depth=4", "model.drop_path=0.3"]  # 0, 0.1, 0.2, 0.3: other sequences
    # No number of rows may happen to be that of channels at first, or torch takes the two for one
    arm = Arm(f"preset={preset}", *rates, "trainer.compile=true", "data.batch_size=5")
    arm.step(0)
    made, masked = graphs.frame_count, set()
    for step in range(1, 4):
        batch = arm.batch(step)
        masked.add(len(batch.masked_indices))
        arm.trainer.step(step, [batch])
    assert len(masked) > 1 or preset == "dinov3"  # whose masks are of an exact size
    rates = [rate.replace("0.3", "0.2") for rate in rates]
    Arm(f"preset={preset}", *rates, "trainer.compile=true", "crops.local_number=3", "data.batch_size=6").step(0)
    assert graphs.frame_count == made > 0


@pytest.mark.parametrize("graphs", ["aot_eager"], indirect=True)
def test_steps_are_those_of_networks_that_are_not_compiled(graphs: CompileCounterWithBackend) -> None:
    overrides = ["preset=official", "model.drop_path=0.3"]
    plain, fast = Arm(*overrides), Arm(*overrides, "trainer.compile=true")
    for step in range(2):
        expected, got = ({k: float(v) for k, v in arm.step(step).items()} for arm in (plain, fast))
        assert got == pytest.approx(expected, rel=1e-4)
    for name, weight in plain.weights().items():
        torch.testing.assert_close(fast.weights()[name], weight, rtol=1e-4, atol=1e-5)
    assert graphs.frame_count


@pytest.mark.slow
@pytest.mark.parametrize("graphs", ["inductor"], indirect=True)
def test_machine_code_computes_the_same_for_all_sizes(graphs: CompileCounterWithBackend) -> None:
    """Outputs and gradients of a block and a head, whose graphs are made for the first sizes."""
    block = Block(8, 2, 24, layerscale=0.1).train()
    head = ProjectionHead(
        8, prototypes=10, hidden_dim=12, bottleneck_dim=6, layers=2, train_weight_g=True, weight_norm=True
    )
    network = torch.nn.ModuleDict({"block": block, "head": head})
    made = []
    for shapes in ([(2, 5), (3, 4)], [(3, 7), (2, 9)]):
        x, results = torch.randn(sum(batch * length for batch, length in shapes), 8), []
        for fast in (False, True):
            set_compiled(network, fast)
            network.zero_grad()
            logits = head(*block([Pack(x, shapes, [None, None])]))
            logits.square().sum().backward()
            results.append([logits.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)])
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
        made.append(graphs.frame_count)
    assert made[0] == made[1] > 0


def test_shapes_are_never_compiled() -> None:
    """The copy on the meta device, on which FLOPs are counted, is not even where the model is."""
    model = Arm("trainer.compile=true").trainer.model
    parts = [module for module in model.student.modules() if isinstance(module, Compilable)]
    assert parts and all(part.compiled for part in parts)
    assert not any(part.compiled for part in shapes_of(model).modules() if isinstance(part, Compilable))


# --- CUDA graphs: which calls are replayed, and when; whether they compute the same, only a GPU can tell --------------


def test_calls_whose_sizes_stay_are_replayed_in_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, list[tuple[str, tuple[int, ...]]]] = {"_compiled": [], "_replayed": []}

    def noting(kind: str) -> Callable[..., Callable[..., Tensor]]:
        def compile_(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def called(module: torch.nn.Module, x: Tensor, *others: object) -> Tensor:
                calls[kind].append((method.__name__, tuple(x.shape)))
                return method(module, x, *others)

            return called

        return compile_

    marks: list[None] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(None))
    for kind in calls:
        monkeypatch.setattr(compiled, kind, noting(kind))
    overrides = ["preset=official", "model.drop_path=0.3", "trainer.accumulate=2"]
    plain, graphed = Arm(*overrides), Arm(*overrides)
    for network in (graphed.trainer.model.student, graphed.trainer.model.teacher):
        set_compiled(network, "cudagraphs")
    graphed.trainer.cuda_graphs = True
    replayed = []
    for step in range(2):
        batches = [graphed.batch(2 * step + micro) for micro in range(2)]
        assert torch.equal(graphed.trainer.step(step, batches)["loss"], plain.trainer.step(step, batches)["loss"])
        replayed.append(calls["_replayed"][:])
        calls["_replayed"].clear()
    assert replayed[0] == replayed[1]  # sizes too, although the masks are others
    assert {name for name, _ in replayed[0]} == {"_attention", "_mixed", "_ffn"}
    assert {name for name, _ in calls["_compiled"]} == {"_projected", "_ffn", "_logits"}
    assert len(marks) == 2  # micro-batches add to gradients that graphs returned
    graphed.trainer.model.teacher_targets(batches[0], graphed.trainer.schedules.at(0))
    assert not calls["_replayed"]


def test_graphs_are_what_torch_calls_reduced_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda method, **options: asked.update({method: options}))
    for method in (compiled._compiled, compiled._replayed):
        method.__wrapped__(method)
    assert [options.get("mode") for options in asked.values()] == [None, "reduce-overhead"]
    assert all(options["dynamic"] for options in asked.values())


def test_graphs_are_refused_where_they_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.compile=cudagraphs: .* trainer\.device=cpu is the CPU"):
        build_trainer(compose_config([*SMALL, "trainer.compile=cudagraphs"]))
    with pytest.raises(ConfigError, match=r"trainer\.compile=cudagraphs: .* distributed=fsdp2 gathers"):
        check(compose_config([*SMALL, "trainer.compile=cudagraphs", "distributed=fsdp2"]))
    with pytest.raises(ConfigError, match=r"trainer\.compile=graphs: must be true or false or cudagraphs"):
        check(compose_config([*SMALL, "trainer.compile=graphs"]))
