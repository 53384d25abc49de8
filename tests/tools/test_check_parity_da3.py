"""tools/check_parity.py on the fixtures of Depth Anything 3, on copies with one number changed, and on names and
networks that it has not seen."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dinoswap.teacher.depth_anything.backbone import DA3Backbone
from dinoswap.teacher.depth_anything.variants import Architecture

TOOLS = Path(__file__).parents[2] / "tools"
DA3 = Path(__file__).parents[1] / "parity" / "da3"
Arrays = dict[str, Any]
Check = Callable[..., tuple[int, str]]


def test_our_code_passes_and_looks_at_every_stored_array(check: Check, read: set[tuple[str, str]]) -> None:
    """But for those of a batch as one scene."""
    status, last = check("da3", DA3)
    assert status == 0, last
    assert re.fullmatch(r"parity: \d+ quantities, worst \d\.\de[+-]\d\d, PASS", last)
    for path in DA3.glob("*.npz"):
        unread = [key for key in np.load(path).files if (path.stem, key) not in read]
        assert unread
        assert all(re.match("sN2?_", key) for key in unread), path.stem


@pytest.mark.parametrize("variant", ["small", "base", "large", "giant", "mono", "metric", "nested"])
def test_the_published_names_are_covered(variant: str, check: Check) -> None:
    status, last = check("da3", DA3, name=f"keys_{variant}")
    assert status == 0
    assert int(last.split()[1]) == (10 if variant == "nested" else 6)


def copied(folder: Path, name: str, new: str | None = None) -> Path:
    for ending in (".json", ".safetensors", "_io.npz"):
        shutil.copy(DA3 / f"{name}{ending}", folder / f"{new or name}{ending}")
    return folder


@pytest.mark.parametrize(
    "key",
    [
        "s1_tokens_70x42",
        "s1_cam_98x98",
        "s1_tokens_56x56_layer3",
        "s1_cam_56x56_layer2",
        "s1_embed_56x56",
        "s1_blocks_56x56",
    ],
)
def test_a_changed_number_fails(key: str, check: Check, tmp_path: Path) -> None:
    arrays = dict(np.load(DA3 / "da3_tiny_io.npz"))
    arrays[key] = arrays[key].copy()
    arrays[key][np.unravel_index(np.abs(arrays[key]).argmax(), arrays[key].shape)] += 1e-3
    np.savez(copied(tmp_path, "da3_tiny") / "da3_tiny_io.npz", **arrays)
    status, last = check("da3", tmp_path)
    assert status == 1
    assert last.endswith("FAIL")


def test_a_changed_weight_fails(check: Check, tmp_path: Path) -> None:
    weights = load_file(copied(tmp_path, "da3_tiny") / "da3_tiny.safetensors")
    weights["model.backbone.pretrained.blocks.3.attn.k_norm.weight"][2] += 1e-2
    save_file(weights, tmp_path / "da3_tiny.safetensors")
    assert check("da3", tmp_path)[0] == 1


def test_a_name_never_seen(check: Check, tmp_path: Path) -> None:
    copied(tmp_path, "da3_tiny", "da3_another")
    quantities = check("da3", DA3, name="da3_tiny_io")[1].split()[1]
    assert check("da3", tmp_path) == (0, check("da3", tmp_path, name="da3_another_io")[1])
    assert check("da3", tmp_path)[1].split()[1] == quantities
    assert check("da3", tmp_path, scenario="70x42")[0] == 0


def test_a_network_never_seen(check: Check, tmp_path: Path) -> None:
    """Its numbers are our own: it is the description that has to be understood."""
    spec = Architecture(
        embed_dim=32, depth=6, num_heads=2, ffn="swiglu", alt_start=3, qknorm_start=3, rope_start=3, img_size=70,
        cat_token=True,
    )  # fmt: skip
    backbone, images = DA3Backbone(spec), torch.randn(2, 3, 42, 56)
    hyper = {name: -1 if value is None else value for name, value in asdict(spec).items() if name != "ffn"}
    prefix = "model.backbone.pretrained."
    description = {"hyper": {**hyper, "ffn_layer": "swiglu", "out_layers": [3, 4, 5]}, "key_prefix": prefix}
    (tmp_path / "da3_odd.json").write_text(json.dumps(description))
    save_file({prefix + k: v for k, v in backbone.state_dict().items()}, tmp_path / "da3_odd.safetensors")
    tokens = backbone(images).detach().numpy()
    np.savez(tmp_path / "da3_odd_io.npz", in_42x56=images.numpy(), s1_tokens_42x56=tokens)
    assert check("da3", tmp_path) == (0, "parity: 1 quantities, worst 0.0e+00, PASS")
    other = {"hyper": {**description["hyper"], "rope_start": -1}, "key_prefix": prefix}  # type: ignore[dict-item]
    (tmp_path / "da3_odd.json").write_text(json.dumps(other))
    assert check("da3", tmp_path)[0] == 1


def lost(shapes: dict[str, Any]) -> None:
    del shapes["model.backbone.pretrained.blocks.3.norm2.bias"]


def added(shapes: dict[str, Any]) -> None:
    shapes["model.backbone.pretrained.mask_token"] = [1, 384]


def reshaped(shapes: dict[str, Any]) -> None:
    shapes["model.backbone.pretrained.pos_embed"] = [1, 1371, 384]


def elsewhere(shapes: dict[str, Any]) -> None:
    shapes["model.other.backbone.pretrained.cls_token"] = [1, 1, 384]


def shallower(shapes: dict[str, Any]) -> None:
    for name in [name for name in shapes if ".blocks.11." in name]:
        del shapes[name]


def emptied(shapes: dict[str, Any]) -> None:
    for name in [name for name in shapes if ".pretrained." in name]:
        del shapes[name]


@pytest.mark.parametrize("change", [lost, added, reshaped, elsewhere, shallower, emptied])
def test_a_changed_name_fails(change: Callable[[dict[str, Any]], None], check: Check, tmp_path: Path) -> None:
    shapes = json.loads((DA3 / "keys_small.json").read_text())
    change(shapes)
    (tmp_path / "keys_small.json").write_text(json.dumps(shapes))
    assert check("da3", tmp_path)[0] == 1


def test_names_of_a_file_never_seen(check: Check, tmp_path: Path) -> None:
    shutil.copy(DA3 / "keys_base.json", tmp_path / "keys_large-1.1.json")
    assert check("da3", tmp_path)[0] == 0


def test_the_table_of_sizes_is_not_one_of_names(check: Check) -> None:
    assert check("da3", DA3, name="keys_meta")[0] == 2
