"""vit_legacy*.npz: tokens and head outputs of the legacy networks, converted, and the initial LayerScale of a depth.

Weights and images are those of train_step_legacy.npz beside it.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dinoswap.nn.legacy_weights import from_legacy
from dinoswap.nn.projection_head import ProjectionHead
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.layout import infer_architecture
from dinoswap.nn.weights.load import load_into
from parity.networks import build_head
from parity.rows import EXACT, FORWARD, Fixture, Row, Scenarios, compare

TOKENS = {"clstoken": "cls", "regtokens": "registers", "patchtokens": "patch"}
PACKED = {"global_1_block": "block_mask_1", "global_2_block": "block_mask_2", "local_0": None}
DEPTHS = "layerscale_init_by_depth"


def scenarios(path: Path) -> Scenarios:
    file, training = Fixture(path), Fixture(path.with_name("train_step_legacy.npz"))
    named_checks: Scenarios = {name: partial(check_network, file, training, name) for name in ("student", "teacher")}
    return named_checks | {DEPTHS: partial(check_layerscale, file)}


@torch.no_grad()
def check_network(file: Fixture, training: Fixture, network: str) -> Iterator[Row]:
    """One masked tensor, and a packed call of three entries of which two are masked."""
    state = from_legacy({network: training.below(f"init/{network}/")})
    backbone = build_backbone(training, below(state, f"{network}.backbone."))
    heads = {name: converted_head(below(state, f"{network}.{name}.")) for name in ("dino_head", "ibot_head")}
    batch = training.below("batch0/")
    masked = {"global_3_bernoulli": backbone(batch["global_3"], batch["bernoulli_mask"])}
    crops = [batch[name.removesuffix("_block")] for name in PACKED]
    masks = [None if mask is None else batch[mask] for mask in PACKED.values()]
    packed = dict(zip((f"packed/{name}" for name in PACKED), backbone(crops, masks), strict=True))
    for section, tokens in (masked | packed).items():
        for theirs, ours in TOKENS.items():
            key = f"{section}/{theirs}"
            yield compare(key, getattr(tokens, ours), file[f"{network}/{key}"], FORWARD, scale=1.0)
    outputs = {
        "global_3_bernoulli/patch_outputs": heads["ibot_head"](masked["global_3_bernoulli"].patch),
        "packed/cls_outputs": heads["dino_head"](torch.cat([tokens.cls for tokens in packed.values()])),
    }
    for name, logits in outputs.items():
        yield compare(name, logits, file[f"{network}/{name}"], FORWARD, scale=1.0)


def build_backbone(training: Fixture, state: dict[str, Tensor]) -> VisionTransformer:
    """Its number of heads is not in the weights, but in the arguments that every scenario of the file has."""
    heads = {scenario["args"]["vitheads"] for scenario in training.meta["scenarios"].values()}
    backbone = VisionTransformer(**infer_architecture(state, num_heads=heads.pop()))
    load_into(backbone, state)
    return backbone


def converted_head(state: dict[str, Tensor]) -> ProjectionHead:
    head = build_head(state)
    head.load_state_dict(state)
    return head


def below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def check_layerscale(file: Fixture) -> Iterator[Row]:
    for depth, value in file.meta.get(DEPTHS, {}).items():
        backbone = VisionTransformer(8, 8, embed_dim=8, depth=int(depth), num_heads=1, layerscale="by_depth")
        gammas = torch.stack([block.ls2.gamma for block in backbone.blocks])
        yield compare(f"depth {depth}", gammas, torch.full_like(gammas, value), EXACT)
