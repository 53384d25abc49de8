"""A backbone as an ONNX graph: images [b, 3, H, W] to class tokens, registers and patch tokens after the final norm.

Height and width of the graph are free, but for a network whose positions are resampled with an offset: there the scale
is no function of sizes that a graph can have. Needs the packages onnx, onnxscript and onnxruntime.
"""

import copy
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from dinoswap.nn.vit import VisionTransformer
from dinoswap.position.rope import Rope

LARGEST = 4096
"""The largest side of an image, in pixels."""
MOST_BYTES = 2_000_000_000
"""The largest size of the weights in one file, whose format ends at 2 GiB."""
TOLERANCE = 1e-4
"""The largest difference that a runtime may have to the network, as a share of the largest value."""


class Graph(nn.Module):
    """The network with its tokens as a tuple, without registers where there are none."""

    def __init__(self, network: VisionTransformer) -> None:
        super().__init__()
        self.network = network

    @property
    def outputs(self) -> list[str]:
        """The names of what `forward` returns."""
        return ["cls", *(["registers"] if self.network.prefix > 1 else []), "patch"]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        tokens = self.network(images)
        return tuple(getattr(tokens, name) for name in self.outputs)


def any_size(backbone: VisionTransformer) -> bool:
    """Tells whether the graph of a backbone takes images of any size."""
    return backbone.pos_embed is None or not backbone.interpolate_offset


def export(backbone: VisionTransformer) -> bytes:
    """Returns the graph, with rotations in float32. Raises ValueError for a network that is too large for one file, and
    where onnxruntime computes something else."""
    size = sum(parameter.numel() * 4 for parameter in backbone.parameters())
    if size > MOST_BYTES:
        raise ValueError(f"{size / 1e9:.1f} GB of weights: a file of ONNX holds 2 GB; use another format")
    graph = Graph(_in_fp32(backbone)).eval()
    patch, (rows, columns) = backbone.patch_size, backbone.grid
    free: dict[int, object] = {0: torch.export.Dim("images")}
    if any_size(backbone):
        rows, columns = rows + 1, columns + 2  # no size is as special as the network's own
        sides = [patch * torch.export.Dim(name, min=1, max=LARGEST // patch) for name in ("rows", "columns")]
        free |= dict(enumerate(sides, 2))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(
            graph,
            (torch.zeros(2, 3, rows * patch, columns * patch),),
            input_names=["images"],
            output_names=graph.outputs,
            dynamic_shapes=(free,),
            dynamo=True,
            verbose=False,
        )
    content: bytes = program.model_proto.SerializeToString()  # type: ignore[union-attr]
    _check(graph, content)
    return content


def _in_fp32(backbone: VisionTransformer) -> VisionTransformer:
    """Returns a copy on the CPU whose rotations are computed in float32."""
    network = copy.deepcopy(backbone).cpu()
    if isinstance(position := network.position, Rope):
        network.position = Rope(
            base=position.base,
            periods=position.limits,
            normalise=position.normalise,
            shift=None,
            jitter=None,
            rescale=None,
            dtype="fp32",
        )
    return network


@torch.no_grad()
def _check(graph: Graph, content: bytes) -> None:
    """Raises ValueError where onnxruntime computes something else than the network, for one image of its size and for
    three of another one, if there is another one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    patch, (rows, columns) = graph.network.patch_size, graph.network.grid
    larger = (rows + 3, columns + 1) if any_size(graph.network) else (rows, columns)
    for count, grid in ((1, (rows, columns)), (3, larger)):
        images = torch.randn(count, 3, *(side * patch for side in grid), generator=torch.Generator().manual_seed(count))
        for name, computed, expected in zip(
            graph.outputs, session.run(None, {"images": images.numpy()}), graph(images), strict=True
        ):
            error = float(np.abs(computed - expected.numpy()).max() / expected.abs().max())
            if not error <= TOLERANCE:
                raise ValueError(f"onnxruntime computes other {name} tokens than this network: {error:.1g} of them")
