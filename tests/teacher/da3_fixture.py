"""The tiny networks of tests/parity/da3 with their official outputs, and the formulas of the backbone written out
naively: NumPy, float64, one image, one token at a time."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from dinoswap.teacher.depth_anything.backbone import DA3Backbone
from dinoswap.teacher.depth_anything.variants import Architecture

FOLDER = Path(__file__).parents[1] / "parity" / "da3"
NAMES = ("da3_tiny", "da3_tiny_mono")
PREFIX = "model.backbone.pretrained."
SIZES = ("56x56", "70x42", "98x98")
ATOL = 2e-5  # twice the official code's own largest error, float32 against float64

TINY = Architecture(
    embed_dim=48, depth=6, num_heads=3, alt_start=2, qknorm_start=2, rope_start=2, cat_token=True, img_size=98
)
MONO = Architecture(embed_dim=32, depth=4, num_heads=2, img_size=98)
SPECS = dict(zip(NAMES, (TINY, MONO), strict=True))


@cache
def arrays(name: str) -> dict[str, Tensor]:
    file = np.load(FOLDER / f"{name}_io.npz")
    return {key: torch.from_numpy(file[key]) for key in file.files}


@cache
def weights(name: str) -> dict[str, Tensor]:
    """Those of the backbone."""
    file = load_file(FOLDER / f"{name}.safetensors")
    return {key.removeprefix(PREFIX): value for key, value in file.items() if key.startswith(PREFIX)}


def description(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())


def official(name: str, spec: Architecture | None = None) -> DA3Backbone:
    backbone = DA3Backbone(spec or SPECS[name]).eval().requires_grad_(False)
    backbone.load_state_dict(weights(name))
    return backbone


def random_backbone(spec: Architecture, seed: int = 0) -> DA3Backbone:
    """Every parameter is random, so that all of them matter."""
    generator = torch.Generator().manual_seed(seed)
    backbone = DA3Backbone(spec).eval().requires_grad_(False)
    for name, parameter in backbone.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        around = 1.0 if name.endswith(("gamma", "norm.weight", "norm1.weight", "norm2.weight")) else 0.0
        parameter.copy_(around + noise * (0.2 if parameter.dim() == 1 else fan_in**-0.5))
    return backbone


def worst(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


def token_error(backbone: DA3Backbone, size: str, name: str = "da3_tiny") -> float:
    stored = arrays(name)
    return worst(backbone(stored[f"in_{size}"]), stored[f"s1_tokens_{size}"])


# --- the formulas, naively --------------------------------------------------------------------------------------------


def cubic(distance: float) -> float:
    """The interpolation kernel, with the usual -0.75."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def bicubic_matrix(old: int, new: int) -> np.ndarray:
    """[new, old]: sampled with the scale (new + 0.1) / old, half-pixel centres, border values repeated."""
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / (new + 0.1) - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            matrix[i, min(max(j, 0), old - 1)] += cubic(centre - j)
    return matrix


def norm(x: np.ndarray, state: dict[str, np.ndarray], name: str, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return (
        centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * state[f"{name}.weight"] + state[f"{name}.bias"]
    )


def linear(x: np.ndarray, state: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def turned(vector: np.ndarray, position: tuple[int, int]) -> np.ndarray:
    """One head of one token: pairs of channels as complex numbers."""
    out, width = vector.copy(), len(vector) // 2
    for half, place in enumerate(position):
        for k in range(width // 2):
            a, b = half * width + k, half * width + k + width // 2
            z = complex(vector[a], vector[b]) * np.exp(1j * place * 100 ** (-2 * k / width))
            out[a], out[b] = z.real, z.imag
    return out


def attention(
    x: np.ndarray, state: dict[str, np.ndarray], name: str, spec: Architecture, index: int, grid: tuple[int, int]
) -> np.ndarray:
    patches = [(row + 1, column + 1) for row in range(grid[0]) for column in range(grid[1])]
    if spec.alt_start is not None and index >= spec.alt_start and index % 2:
        patches = [(1, 1)] * len(patches)
    positions = [(0, 0), *patches]
    q, k, v = np.split(linear(x, state, f"{name}.qkv"), 3, axis=-1)
    d, out = spec.embed_dim // spec.num_heads, np.empty_like(v)
    for head in range(spec.num_heads):
        part = slice(head * d, (head + 1) * d)
        qh, kh = q[:, part], k[:, part]
        if spec.qknorm_start is not None and index >= spec.qknorm_start:
            qh, kh = norm(qh, state, f"{name}.q_norm", 1e-5), norm(kh, state, f"{name}.k_norm", 1e-5)
        if spec.rope_start is not None and index >= spec.rope_start:
            qh, kh = (np.array([turned(*pair) for pair in zip(y, positions, strict=True)]) for y in (qh, kh))
        scores = np.exp(qh @ kh.T / math.sqrt(d))
        out[:, part] = scores / scores.sum(-1, keepdims=True) @ v[:, part]
    return linear(out, state, f"{name}.proj")


def feed_forward(x: np.ndarray, state: dict[str, np.ndarray], name: str, spec: Architecture) -> np.ndarray:
    if spec.ffn == "swiglu":
        a, b = np.split(linear(x, state, f"{name}.w12"), 2, axis=-1)
        return linear(a / (1 + np.exp(-a)) * b, state, f"{name}.w3")
    hidden = linear(x, state, f"{name}.fc1")
    return linear(hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2, state, f"{name}.fc2")


def naive(backbone: DA3Backbone, image: Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    """Patch tokens and special token of every block as an out layer, for one image [3, H, W]."""
    spec, p = backbone.architecture, backbone.architecture.patch_size
    state = {name: value.double().numpy() for name, value in backbone.state_dict().items()}
    pixels, grid = image.double().numpy(), (image.shape[1] // p, image.shape[2] // p)
    cut = [pixels[:, y * p : (y + 1) * p, x * p : (x + 1) * p] for y in range(grid[0]) for x in range(grid[1])]
    kernel = state["patch_embed.proj.weight"].reshape(spec.embed_dim, -1)
    patches = np.stack([kernel @ patch.reshape(-1) for patch in cut]) + state["patch_embed.proj.bias"]
    side, table = spec.img_size // p, state["pos_embed"][0]
    rows, columns = (np.eye(side) if grid == (side, side) else bicubic_matrix(side, n) for n in grid)
    places = np.einsum("yi,xj,ijd->yxd", rows, columns, table[1:].reshape(side, side, -1))
    x = np.concatenate([state["cls_token"][0] + table[:1], patches + places.reshape(-1, spec.embed_dim)])
    local, found = x, []
    for i in range(spec.depth):
        name = f"blocks.{i}"
        if i == spec.alt_start:
            x = local = np.concatenate([state["camera_token"][0, :1], x[1:]])
        attended = attention(norm(x, state, f"{name}.norm1", 1e-6), state, f"{name}.attn", spec, i, grid)
        x = x + state[f"{name}.ls1.gamma"] * attended
        fed = feed_forward(norm(x, state, f"{name}.norm2", 1e-6), state, f"{name}.mlp", spec)
        x = x + state[f"{name}.ls2.gamma"] * fed
        if not (spec.alt_start is not None and i >= spec.alt_start and i % 2):
            local = x
        normed = norm(x[1:], state, "norm", 1e-5)
        joined = np.concatenate([local[1:], normed], axis=-1), np.concatenate([local[0], x[0]])
        found.append(joined if spec.cat_token else (normed, x[0]))
    return found
