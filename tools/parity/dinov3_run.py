"""A train_step_dinov3*.npz, and our classes put together as the official DINOv3 configuration in it says."""

from typing import Any

import torch
from torch import Tensor, nn

from dinoswap.forward.unified import Unified
from dinoswap.layer_decay.layerwise import Layerwise
from dinoswap.model import SelfDistillation
from dinoswap.nn.projection_head import ProjectionHead
from dinoswap.nn.vit import VisionTransformer
from dinoswap.objectives.base import Objective
from dinoswap.objectives.dino import DINO
from dinoswap.objectives.ibot import IBOT
from dinoswap.objectives.koleo import KoLeo
from dinoswap.optim.clip import Clip
from dinoswap.optim.param_groups import parameter_groups
from dinoswap.optim.schedules import build_schedules
from dinoswap.position.rope import Rope
from dinoswap.reduction.per_sample import PerSample
from dinoswap.targets.sinkhorn import SinkhornKnopp
from dinoswap.trainer import Trainer
from dinoswap.weight_decay.all_groups import AllGroups
from parity.official_run import TrainStepFile, architecture_of
from parity.tables import schedule_settings

NOT_OURS = ("rope_embed.periods", "qkv.bias_mask")
"""Buffers that follow from the configuration."""


def our_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights by our names: registers are called storage tokens there."""
    kept = {name: value for name, value in weights.items() if not name.endswith(NOT_OURS)}
    return {name.replace("storage_tokens", "register_tokens"): value for name, value in kept.items()}


class Dinov3File(TrainStepFile):
    """One train_step_dinov3*.npz."""

    def below(self, prefix: str) -> dict[str, Tensor]:
        return our_names(super().below(prefix))

    def initial_weights(self, scenario: str, network: str) -> dict[str, Tensor]:
        """Those of the scenario that the meta data name."""
        weights = our_names(super().initial_weights(self.meta["init_of"][scenario], network))
        without = ["register_tokens"] * (not self.meta["configs"][scenario]["student"]["n_storage_tokens"])
        return {name: value for name, value in weights.items() if not name.endswith(tuple(without) or "/")}


def require_known(config: dict[str, Any]) -> None:
    """Raises ValueError for what no option of ours stands for yet."""
    dino, student = config["dino"], config["student"]
    unknown = {
        "gram.use_loss": config["gram"]["use_loss"],
        "distillation.enabled": config["distillation"]["enabled"],
        "dino.reweight_dino_local_loss": dino["reweight_dino_local_loss"],
        "dino.global_ignore_diagonal=false": not dino["global_ignore_diagonal"],
        "dino.koleo_topk": dino["koleo_topk"] != 1,
        "schedules": "schedules" in config and config["schedules"],
        "student.pos_embed_type": student["pos_embed_type"] != "rope",
    }
    if found := [name for name, value in unknown.items() if value]:
        raise ValueError(f"{', '.join(found)}: no option of ours stands for it yet")


def build_backbone(file: Dinov3File, scenario: str, config: dict[str, Any]) -> VisionTransformer:
    student = config["student"]
    width, depth, heads = architecture_of(file, scenario)
    smallest, largest = (student[f"pos_embed_rope_{end}_period"] for end in ("min", "max"))
    position = Rope(
        base=student["pos_embed_rope_base"],
        periods=None if smallest is None else [smallest, largest],
        normalise=student["pos_embed_rope_normalize_coords"],
        shift=student["pos_embed_rope_shift_coords"],
        jitter=student["pos_embed_rope_jitter_coords"],
        rescale=student["pos_embed_rope_rescale_coords"],
        dtype=student["pos_embed_rope_dtype"],
    )
    return VisionTransformer(
        img_size=config["crops"]["global_crops_size"],
        patch_size=student["patch_size"],
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=student["ffn_ratio"],
        ffn="mlp" if student["ffn_layer"] == "mlp" else "swiglu",
        ffn_align=int(student["ffn_layer"].removeprefix("swiglu") or 8) if student["ffn_layer"] != "mlp" else 8,
        registers=student["n_storage_tokens"],
        layerscale=student["layerscale"],
        drop_path=student["drop_path_rate"],
        qkv_bias=student["qkv_bias"],
        key_bias=not student["mask_k_bias"],
        norm="rmsnorm" if student["norm_layer"] == "rmsnorm" else "layernorm",
        norm_eps=1e-6 if student["norm_layer"] == "layernorm" else 1e-5,
        cls_norm=student["untie_cls_and_patch_norms"],
        local_cls_norm=student["untie_global_and_local_cls_norm"],
        position=position,
    )


def build_model(file: Dinov3File, scenario: str, config: dict[str, Any]) -> SelfDistillation:
    backbone, dino, ibot = build_backbone(file, scenario, config), config["dino"], config["ibot"]
    student: dict[str, nn.Module] = {"backbone": backbone}
    for name, section in (("dino_head", dino), ("ibot_head", ibot)):
        sizes = (section[f"head_{key}"] for key in ("n_prototypes", "hidden_dim", "bottleneck_dim", "nlayers"))
        student[name] = ProjectionHead(backbone.embed_dim, *sizes, weight_norm=False)
    objectives: dict[str, Objective] = {
        "dino": DINO(SinkhornKnopp(3), "dino_head", dino["loss_weight"]),
        "koleo": KoLeo(dino["koleo_loss_weight"]),
        "ibot": IBOT(SinkhornKnopp(3), PerSample(), "ibot_head", ibot["loss_weight"]),
    }
    model = SelfDistillation(student, objectives, Unified()).to(file.dtype)
    for network in ("student", "teacher"):
        getattr(model, network).load_state_dict(file.initial_weights(scenario, network))
    return model


def build_trainer(file: Dinov3File, scenario: str, config: dict[str, Any]) -> Trainer:
    require_known(config)
    optim, train = config["optim"], config["train"]
    settings = schedule_settings({**config, **train}, optim["lr"], "none")  # this lr is scaled already
    model = build_model(file, scenario, config)
    groups = parameter_groups(
        model.student, Layerwise(optim["layerwise_decay"], optim["patch_embed_lr_mult"]), AllGroups()
    )
    return Trainer(
        model,
        torch.optim.AdamW(groups, betas=(optim["adamw_beta1"], optim["adamw_beta2"]), fused=True),
        build_schedules(
            settings,
            total=int(optim["epochs"] * train["OFFICIAL_EPOCH_LENGTH"]),
            batch_size=train["batch_size_per_gpu"],
        ),
        Clip(optim["clip_grad"] or None),
        precision="fp32",
        seed=0,
        device=torch.device("cpu"),
        max_nonfinite_steps=1,
    )
