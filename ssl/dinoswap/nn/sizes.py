"""The sizes of the vision transformer that have a name, and the initial LayerScale that a depth calls for."""

from typing import Any, Literal

from dinoswap.nn.block import Ffn

Size = Literal["tiny", "small", "base", "large", "so400m", "huge", "giant", "7b"]
InitialScale = float | Literal["by_depth"] | None

SIZES: dict[Size, tuple[int, int, int, Ffn]] = {  # embed_dim, depth, num_heads, ffn
    "tiny": (192, 12, 3, "mlp"),
    "small": (384, 12, 6, "mlp"),
    "base": (768, 12, 12, "mlp"),
    "large": (1024, 24, 16, "mlp"),
    "so400m": (1152, 27, 18, "mlp"),
    "huge": (1280, 32, 20, "mlp"),
    "giant": (1536, 40, 24, "swiglu"),
    "7b": (4096, 40, 32, "mlp"),
}


def size_arguments(size: Size, **given: Any) -> dict[str, Any]:
    """Returns embed_dim, depth, num_heads and ffn of a size name. Those `given` with a value other than None take
    precedence. Raises ValueError for an unknown name."""
    if size not in SIZES:
        raise ValueError(
            f"size={size!r}: use one of {', '.join(SIZES)}, or any of them with embed_dim, depth, num_heads"
        )
    named = zip(("embed_dim", "depth", "num_heads", "ffn"), SIZES[size], strict=True)
    return dict(named) | {name: value for name, value in given.items() if value is not None}


def initial_scale(layerscale: InitialScale, depth: int) -> float | None:
    """Returns the initial LayerScale that `layerscale` means, None for none. `by_depth` follows the legacy trainer
    @ 67f6a87. Raises ValueError for any other word."""
    if not isinstance(layerscale, str):
        return layerscale
    if layerscale != "by_depth":
        raise ValueError(f"layerscale={layerscale!r}: use a number, by_depth, or null for none")
    return 0.1 if depth < 18 else 1e-5 if depth < 24 else 1e-6
