"""Training from released weights: files of timm and transformers with random weights, through the trainer."""

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dinoswap.build import build_model, build_trainer
from dinoswap.config.command_line import check_arguments, compose_config
from dinoswap.config.facts import weight_facts
from dinoswap.config.identity import identity
from dinoswap.config.schema import ConfigError
from dinoswap.config.settings import check
from dinoswap.nn.architecture import fitted
from dinoswap.nn.vit import VisionTransformer
from dinoswap.nn.weights.load import load_backbone
from dinoswap.nn.weights.save import exported, own
from dinoswap.run.run_folder import planned_id
from run_folders import write_run
from small_models import small_batch, state_tensors

SMALL = ["recipe=smoke", "trainer.device=cpu", "model.drop_path=0", "model.token_std=0"]
FROM_PATH = "start.architecture=from_path"
SIZES = (64, 112, 224)


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """With weights that all matter: LayerScale and registers would begin at almost nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def dinov3_of_timm(folder: Path) -> tuple[Path, Callable[[Tensor], Tensor], list[str]]:
    network = shaken(timm.create_model("vit_small_patch16_dinov3_qkvb", depth=2))
    save_file(network.state_dict(), folder / "timm.safetensors")
    return folder / "timm.safetensors", network.forward_features, ["preset=dinov3", "position.dtype=fp32"]


def dinov2_of_timm(folder: Path) -> tuple[Path, Callable[[Tensor], Tensor], list[str]]:
    """Timm resamples its table as torch's default does, with antialiasing."""
    network = timm.create_model("vit_small_patch14_dinov2", depth=2, img_size=112, patch_size=16, dynamic_img_size=True)
    torch.save(shaken(network).state_dict(), folder / "timm.pth")
    return folder / "timm.pth", network.forward_features, []


def folder_of_transformers(folder: Path) -> tuple[Path, Callable[[Tensor], Tensor], list[str]]:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel  # takes seconds

    sizes = {"hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 2, "num_attention_heads": 3}
    network = shaken(DINOv3ViTModel(DINOv3ViTConfig(**sizes, num_register_tokens=4)))
    network.save_pretrained(folder / "hub")
    overrides = ["preset=dinov3", "position.dtype=fp32"]
    return folder / "hub", lambda images: network(images).last_hidden_state, overrides


@pytest.mark.parametrize("made", [dinov3_of_timm, dinov2_of_timm, folder_of_transformers])
def test_features_are_those_of_the_library(made: Any, tmp_path: Path) -> None:
    """Of student and teacher, at three sizes of crops, to which a table is resampled; no number of the network was
    typed."""
    path, theirs, overrides = made(tmp_path)
    for size in SIZES:
        crops = [f"crops.global_size={size}", "crops.local_size=32"]
        cfg = compose_config([*SMALL, "start=weights", f"start.path={path}", FROM_PATH, *overrides, *crops])
        if "dinov2" in made.__name__:
            cfg["model"] |= {"interpolate_offset": 0.0, "interpolate_antialias": True}
        model = build_model(cfg).eval()
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = theirs(images)
            for network in (model.student, model.teacher):
                found = network["backbone"](images)
                prefix = network["backbone"].prefix
                torch.testing.assert_close(found.cls, expected[:, 0], rtol=0, atol=1e-5)
                torch.testing.assert_close(found.patch, expected[:, prefix:], rtol=0, atol=1e-5)


# --- the very weights -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of the backbone of `recipe=smoke` with other weights."""
    backbone = shaken(small_backbone())
    weights, metadata = exported(backbone)
    path = tmp_path_factory.mktemp("released") / "backbone.safetensors"
    save_file(weights, path, metadata)
    return path


def small_backbone(*overrides: str) -> VisionTransformer:
    return build_model(compose_config([*SMALL, *overrides])).student["backbone"]


def from_released(path: Path, *overrides: str) -> dict[str, Any]:
    return compose_config([*SMALL, "start=weights", f"start.path={path}", *overrides])


def test_a_step_is_that_of_weights_copied_by_hand(released: Path) -> None:
    """Bit for bit, and so are the heads, which are those of the seed."""
    started, by_hand = build_trainer(from_released(released)), build_trainer(compose_config(SMALL))
    for networks in (by_hand.model.student, by_hand.model.teacher):
        networks["backbone"].load_state_dict(load_backbone(released).state)
    for step in range(3):
        found, wanted = state_tensors(started), state_tensors(by_hand)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())
        for trainer in (started, by_hand):
            trainer.step(5 + step, [small_batch(step)])


def test_a_frozen_copy_of_the_teacher_has_them_too(released: Path) -> None:
    model = build_model(from_released(released, "gram=snapshot"))
    held = model.objectives["gram"].backbone.state_dict()
    assert all(torch.equal(value, held[name]) for name, value in load_backbone(released).state.items())


def test_the_log_says_what_each_network_began_with(released: Path) -> None:
    model = build_model(from_released(released, "crops.global_size=48"))
    assert model.origin == [
        f"student.backbone: the weights of {released}, its position table resampled from 16 to 36 patches",
        "student.dino_head, student.ibot_head: fresh, as the file holds a backbone alone",
        f"teacher.backbone: the weights of {released}, its position table resampled from 16 to 36 patches",
    ]
    backbone = small_backbone()
    backbone.load_state_dict(load_backbone(released).state)
    assert torch.equal(model.student["backbone"].pos_embed, backbone.positions((6, 6)))


def test_a_table_that_is_not_square_is_resampled_from_its_own_grid() -> None:
    there, here = VisionTransformer((32, 72), 8, 32, 1, 2), VisionTransformer((48, 48), 8, 32, 1, 2)
    tensors = dict(there.state_dict())
    assert fitted(here, tensors, (4, 9)) == ", its position table resampled from 36 to 36 patches"
    assert torch.equal(tensors["pos_embed"], there.positions((6, 6)))


@pytest.mark.parametrize(
    ("without", "line"),
    [
        ("model.layerscale=null", "model.layerscale=0.1: LayerScale starts at 1"),
        ("model.qkv_bias=false", "model.qkv_bias=true: the biases of queries, keys and values start at 0"),
    ],
)
def test_what_the_weights_lack_begins_as_they_mean_it(without: str, line: str, tmp_path: Path) -> None:
    backbone = shaken(small_backbone(without))
    weights, metadata = exported(backbone)
    save_file(weights, tmp_path / "weights.safetensors", metadata)
    model = build_model(from_released(tmp_path / "weights.safetensors"))
    assert line in model.origin
    images = torch.randn(2, 3, 32, 32)
    found, expected = model.student["backbone"].eval()(images), backbone(images)
    torch.testing.assert_close(found.patch, expected.patch)


def test_own_norms_begin_as_the_common_one(tmp_path: Path) -> None:
    rope = ["preset=dinov3", "model.norm_eps=1e-5"]
    backbone = shaken(small_backbone(*rope))
    weights, metadata = exported(backbone)
    save_file(weights, tmp_path / "weights.safetensors", metadata)
    model = build_model(
        from_released(tmp_path / "weights.safetensors", *rope, "model.cls_norm=true", "model.local_cls_norm=true")
    )
    for norm in (model.student["backbone"].cls_norm, model.student["backbone"].local_cls_norm):
        assert all(torch.equal(value, backbone.norm.state_dict()[name]) for name, value in norm.state_dict().items())
    assert "model.cls_norm=true: the own norm of class token and registers starts as the common one" in model.origin


# --- refused, or taken from the file ----------------------------------------------------------------------------------

OTHER = [
    *("model.size=small", "model.embed_dim=null", "model.depth=null", "model.num_heads=null", "model.patch_size=16"),
    *("model.registers=0", "model.layerscale=null"),
]


def test_another_network_is_refused_with_all_that_would_make_it_the_same(released: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        build_trainer(from_released(released, *OTHER))
    text = str(refused.value)
    assert text.startswith(f"start.path={released}: is of another network than model.embed_dim=384 model.depth=12 ")
    given = text.partition("; give ")[2].partition(", or start.architecture=from_path")[0].split()
    assert set(given) == {
        *("model.embed_dim=32", "model.depth=2", "model.num_heads=2", "model.patch_size=8", "model.registers=1"),
        "model.layerscale=1e-05",
    }
    build_trainer(from_released(released, *OTHER, *given))


def test_convolutions_before_the_patches_are_taken_or_told(tmp_path: Path) -> None:
    backbone, path = small_backbone("model.stem=[[4,1],[6,2]]"), tmp_path / "own.safetensors"
    weights, metadata = own(backbone, {})
    save_file(weights, path, metadata)
    with pytest.raises(
        ConfigError, match=r"than model\.stem=\[\]; give model\.stem=\[\[4,1\],\[6,2\]\], or start\.arch"
    ):
        build_model(from_released(path))
    taken = from_released(path, FROM_PATH, "model.patch_size=16")
    assert identity(taken) == identity(from_released(path, "model.stem=[[4,1],[6,2]]"))
    kernel = build_model(taken).student["backbone"].patch_embed.stem[1].conv.weight
    assert torch.equal(kernel, backbone.patch_embed.stem[1].conv.weight)


def test_a_size_is_named_where_it_says_all(tmp_path: Path) -> None:
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32)
    save_file(network.state_dict(), tmp_path / "tiny.safetensors")
    with pytest.raises(ConfigError, match=r"than model.size=small; give model.size=tiny, or start.arch"):
        build_model(compose_config(["recipe=none", "start=weights", f"start.path={tmp_path / 'tiny.safetensors'}"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["preset=dinov3"], "than position=rope; give position=learned"),
        (["preset=dinov3", FROM_PATH], "position=learned: has to be chosen for these weights, beside start.arch"),
        (["start.num_heads=4"], "than model.num_heads=2; give model.num_heads=4"),
        (["start.freeze_backbone=11"], "start.freeze_backbone=11: is longer than the run of trainer.max_steps=10"),
        (["start.freeze_backbone=-1"], "start.freeze_backbone=-1: must not be negative"),
        (["start.path=''"], "start.path='': names nothing"),
    ],
)
def test_refused(overrides: list[str], message: str, released: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        cfg = from_released(released, *overrides)
        check(cfg)
        build_model(cfg)


def test_a_file_that_is_not_there_or_not_of_weights(tmp_path: Path) -> None:
    missing = from_released(tmp_path / "missing.pth", FROM_PATH)
    for read in (build_model, weight_facts):
        with pytest.raises(ConfigError, match=r"start\.path=.*missing\.pth: no such file; .*COPY.*start=run"):
            read(missing)
    write_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"start\.path=.*run: is a run, no file of weights; choose start=run"):
        weight_facts(from_released(tmp_path / "run"))
    (tmp_path / "cut.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(ConfigError, match=r"start\.path: .*cut\.pth: not a whole file of tensors alone"):
        from_released(tmp_path / "cut.pth", FROM_PATH)


def test_from_path_is_the_run_of_the_typed_network(released: Path) -> None:
    typed = from_released(released, "model.size=small", "model.layerscale=1e-5")
    taken = from_released(released, FROM_PATH, *OTHER)
    assert identity(taken) == identity(typed)
    assert taken["model"]["embed_dim"] == 32
    check_arguments([*SMALL, "start=weights", f"start.path={released}", FROM_PATH, "crops.global_size=24"])


def test_a_file_on_another_machine_may_have_other_patches() -> None:
    """What is planned here is checked there."""
    elsewhere = ["start=weights", "start.path=/nodes/only.pth", "crops.global_size=42", "crops.local_size=14"]
    check_arguments([*SMALL, *elsewhere, FROM_PATH])
    with pytest.raises(ConfigError, match=r"crops\.global_size=42: must be a multiple of model\.patch_size=8"):
        check_arguments([*SMALL, *elsewhere])


def test_a_command_is_checked_without_torch(released: Path) -> None:
    code = (
        "import sys; from dinoswap.config.command_line import check_arguments\n"
        f"check_arguments(['recipe=smoke', 'start=weights', 'start.path={released}', 'start.freeze_backbone=0.5'])\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- identity ---------------------------------------------------------------------------------------------------------


def test_a_run_is_known_by_the_bytes_that_it_begins_with(released: Path, tmp_path: Path) -> None:
    (tmp_path / "renamed.safetensors").write_bytes(released.read_bytes())
    (tmp_path / "other.safetensors").write_bytes(released.read_bytes() + b" ")
    paths = released, tmp_path / "renamed.safetensors", tmp_path / "other.safetensors"
    first, renamed, other = (planned_id(from_released(path)) for path in paths)
    assert first == renamed
    assert len({first, other, planned_id(compose_config(SMALL))}) == 3
    assert weight_facts(from_released(released)) == {
        "start.weights": hashlib.sha256(released.read_bytes()).hexdigest()[:16]
    }
    assert planned_id(from_released(released, "start.freeze_backbone=0.5")) != first


# --- a frozen backbone ------------------------------------------------------------------------------------------------


def test_a_frozen_backbone_lets_all_else_learn(released: Path) -> None:
    """Student and teacher alike, bit for bit, for so many steps and no more."""
    frozen = ["start.freeze_backbone=0.3", "schedule.warmup=0", "schedule.freeze_last_layer=0", "clustering=masked"]
    trainer = build_trainer(from_released(released, *frozen))
    state, began = load_backbone(released).state, state_tensors(trainer)
    for step in range(4):
        for network in (trainer.model.student, trainer.model.teacher):
            held = network["backbone"].state_dict()
            assert all(torch.equal(value, state[name]) for name, value in held.items())
        trainer.step(step, [small_batch(step)])
    moved = {name for name, value in state_tensors(trainer).items() if not torch.equal(value, began.get(name, value))}
    trained = {f"student.{name}" for name, p in trainer.model.student.named_parameters() if p.requires_grad}
    assert trained <= moved
    assert {group["lr_schedule"] for group in trainer.optimizer.param_groups if group["module"] == "backbone"} == {
        "backbone_lr"
    }
