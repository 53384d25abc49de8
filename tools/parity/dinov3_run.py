"""A train_step_dinov3*.npz, and the trainer that preset=dinov3 builds with the numbers of the configuration in it."""

import itertools
import tempfile
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dinoswap.build import build_trainer as built
from dinoswap.config.command_line import compose_config
from dinoswap.trainer import Trainer
from dinoswap.values import Batch, Hyper
from parity.dinov3_tables import phases, schedule_section
from parity.official_run import TrainStepFile, architecture_of
from parity.rows import DRAWN, draws_otherwise

AUGMENTED = ("shift_coords", "jitter_coords", "rescale_coords")
FOLLOW_FROM_CONFIG = ("rope_embed.periods", "qkv.bias_mask")
"""Buffers of the official networks that ours do without."""


class Dinov3File(TrainStepFile):
    """One train_step_dinov3*.npz."""

    swaps_crops = False

    def weight_tolerance(self, scenario: str) -> float:
        """More where queries and keys are rounded to bfloat16: one that lies between two of its numbers may be rounded
        the other way, which moves it by 2^-9. In float32 instead, weights are 4e-3 off."""
        rounded = self.meta["configs"][scenario]["student"]["pos_embed_rope_dtype"] == "bf16"
        return 2e-5 if rounded else super().weight_tolerance(scenario)

    def our_name(self, name: str) -> str:
        return our_name(super().our_name(name))

    def terms(self, logs: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
        """The official log holds every term without its weight, means over pairs of crops included."""
        local_pairs = 2 * config["crops"]["local_crops_number"]
        global_pairs = 2 if config["dino"]["global_ignore_diagonal"] else 4
        pairs = local_pairs + global_pairs
        terms = {
            "loss_dict/dino_local_crops_loss": logs["dino/local"] * pairs / local_pairs,
            "loss_dict/dino_global_crops_loss": logs["dino/global"] * pairs / global_pairs,
            "loss_dict/koleo_loss": logs["koleo/cls"] / 2,
            "loss_dict/ibot_loss": logs["ibot/masked"],
            "total_loss": logs["loss"],
        }
        gram = {
            "loss_dict/gram_loss": "gram/matrix",
            "loss_dict/stats_only/masked_gram_loss": "gram/masked",
            "loss_dict/stats_only/unmasked_gram_loss": "gram/unmasked",
        }
        return terms | {theirs: logs[ours] for theirs, ours in gram.items() if ours in logs}

    def weights(self, hyper: Hyper, config: dict[str, Any]) -> dict[str, float]:
        weights = {"loss_dict/dino_local_loss_weight": hyper["dino_local_weight"]}
        if "gram_weight" in hyper:
            by_schedule = config["gram"]["loss_weight_schedule"]
            factor = 1.0 if by_schedule else config["gram"]["loss_weight"]
            weights["loss_dict/gram_loss_weight"] = factor * hyper["gram_weight"]
        return weights

    def batch(self, scenario: str, iteration: int) -> Batch:
        """With the crops of a Gram teacher of its own, which the meta data name."""
        batch, source = super().batch(scenario, iteration), self.meta["gram_crops"].get(scenario, "")
        if source == "the global crops themselves":
            clean = batch.global_crops
        elif source:
            clean = self[f"batch{iteration}/collated_gram_teacher_crops"].to(self.dtype)
            clean = clean.unflatten(0, (2, batch.images))
        else:
            return batch
        return replace(batch, clean_crops={clean.shape[-1]: clean})

    def below(self, prefix: str) -> dict[str, Tensor]:
        return our_names(super().below(prefix))

    def used(self, weights: dict[str, Tensor], at: str) -> dict[str, Tensor]:
        """With a masked bias of the keys, which ours is loaded without."""
        if not self.meta["configs"][at.split("/")[0]]["student"]["mask_k_bias"]:
            return weights
        of_keys = {name: value.clone() for name, value in weights.items() if name.endswith("attn.qkv.bias")}
        for bias in of_keys.values():
            bias.chunk(3)[1].zero_()
        return weights | of_keys

    def released(self, network: str, scenario: str) -> dict[str, Tensor]:
        """The initial weights by the official names, as in a file of theirs."""
        return super().initial_weights(self.meta["init_of"][scenario], network)

    def initial_weights(self, scenario: str, network: str) -> dict[str, Tensor]:
        """Those of the scenario that the meta data name, without registers where this one has none."""
        weights = our_names(self.released(network, scenario))
        if not self.meta["configs"][scenario]["student"]["n_storage_tokens"]:
            weights.pop("backbone.register_tokens", None)
        return weights


def our_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, their gradients, or the norms of these, by our names, in which w1 and w2 of a SwiGLU are one."""
    ours: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.endswith(FOLLOW_FROM_CONFIG):
            continue
        known = our_name(name)
        if known in ours:
            first = ours[known]
            value = torch.cat([first, value]) if value.ndim else torch.hypot(first, value)
        ours[known] = value
    return ours


def our_name(name: str) -> str:
    """Registers are called storage tokens there."""
    for theirs, own in (("storage_tokens", "register_tokens"), (".mlp.w1.", ".mlp.w12."), (".mlp.w2.", ".mlp.w12.")):
        name = name.replace(theirs, own)
    return name


def reasons_to_leave_out(file: Dinov3File, scenario: str) -> dict[str, bool]:
    """Whether each applies to a scenario."""
    config = file.meta["configs"][scenario]
    drawn = [value for key, value in config["student"].items() if key.endswith((*AUGMENTED, "drop_path_rate"))]
    return {
        "no option stands for distillation.enabled": config["distillation"]["enabled"],
        DRAWN: draws_otherwise() and any(drawn),
        "weights and activations in bf16 are for orientation": file.path.stem.endswith("_bf16"),
    }


def our_gram(config: dict[str, Any], epoch: int) -> dict[str, Any]:
    """The keys of objectives.gram that an official configuration decides, but for the weights to begin with."""
    gram = config["gram"]
    negatives = "clear" if gram["remove_neg"] else "clear_teacher" if gram["remove_only_teacher_neg"] else "keep"
    ours = {
        "loss_weight": gram["loss_weight"],
        "normalise": gram["normalized"],
        "per_image": gram["img_level"],
        "tokens": gram["tokens_used"],
        "negatives": negatives,
        "stats": gram["compute_stats"],
    }
    if gram["loss_weight_schedule"]:
        ours |= {"loss_weight": 1.0, "weight_schedule": phases(gram["loss_weight_schedule"], epoch)}
    if gram["ema_teacher"]:
        return ours
    return ours | {
        "crop_scale": config["crops"]["gram_teacher_crops_size"] / config["crops"]["global_crops_size"],
        "refresh_first": gram["it_first_update"],
        "refresh_every": gram["update_frequency"],
        "refresh_times": gram["max_updates"] if gram["rep_update"] else 0,
        "resize": gram["global_teacher_resize_method"],
        "resize_antialias": gram["global_teacher_resize_antialias"],
    }


def our_config(file: Dinov3File, scenario: str, config: dict[str, Any]) -> dict[str, Any]:
    """The config of preset=dinov3 with the numbers of an official one."""
    student, optim, train, crops = config["student"], config["optim"], config["train"], config["crops"]
    gram, dino, epoch = config["gram"], config["dino"], int(train["OFFICIAL_EPOCH_LENGTH"])
    option = "disabled" if not gram["use_loss"] else "ema" if gram["ema_teacher"] else "snapshot"
    ours = compose_config(["preset=dinov3", f"gram={option}"])
    if gram["use_loss"]:
        ours["objectives"]["gram"] |= our_gram(config, epoch)
    width, depth, heads = architecture_of(file, scenario)
    swiglu = student["ffn_layer"].startswith("swiglu")
    ours["model"] |= {
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "patch_size": student["patch_size"],
        "mlp_ratio": student["ffn_ratio"],
        "ffn": "swiglu" if swiglu else "mlp",
        "ffn_align": int(student["ffn_layer"].removeprefix("swiglu") or 8) if swiglu else 8,
        "registers": student["n_storage_tokens"],
        "layerscale": student["layerscale"],
        "drop_path": student["drop_path_rate"],
        "qkv_bias": student["qkv_bias"],
        "key_bias": not student["mask_k_bias"],
        "norm": "rmsnorm" if student["norm_layer"] == "rmsnorm" else "layernorm",
        "norm_eps": 1e-6 if student["norm_layer"] == "layernorm" else 1e-5,
        "cls_norm": student["untie_cls_and_patch_norms"],
        "local_cls_norm": student["untie_global_and_local_cls_norm"],
    }
    rope = {key.removeprefix("pos_embed_rope_"): value for key, value in student.items() if "pos_embed_rope" in key}
    ours["position"] |= {
        "base": rope["base"],
        "periods": None if rope["min_period"] is None else [rope["min_period"], rope["max_period"]],
        "normalise": rope["normalize_coords"],
        "shift": rope["shift_coords"],
        "jitter": rope["jitter_coords"],
        "rescale": rope["rescale_coords"],
        "dtype": rope["dtype"],
    }
    ours["crops"] = {
        "global_size": crops["global_crops_size"],
        "local_size": crops["local_crops_size"],
        "local_number": crops["local_crops_number"],
    }
    for name in ("dino", "ibot"):
        official = config[name]
        ours["heads"][f"{name}_head"] |= {
            "prototypes": official["head_n_prototypes"],
            "hidden_dim": official["head_hidden_dim"],
            "bottleneck_dim": official["head_bottleneck_dim"],
            "layers": official["head_nlayers"],
        }
        ours["objectives"][name]["loss_weight"] = official["loss_weight"]
    if dino["reweight_dino_local_loss"]:
        ours["objectives"]["dino"]["local_weight"] = phases(dino["local_loss_weight_schedule"], epoch)
    ours["objectives"]["dino"]["global_pairs"] = "cross" if dino["global_ignore_diagonal"] else "all"
    ours["objectives"]["koleo"] |= {
        "loss_weight": dino["koleo_loss_weight"],
        "neighbours": dino["koleo_topk"],
        "gather": dino["koleo_loss_distributed"],
        "group": dino["koleo_distributed_loss_group_size"],
    }
    ours["layer_decay"] |= {"rate": optim["layerwise_decay"], "patch_embed_lr_mult": optim["patch_embed_lr_mult"]}
    ours["optimizer"] |= {
        "betas": [optim["adamw_beta1"], optim["adamw_beta2"]],
        "clip_grad": optim["clip_grad"] or None,
    }
    scaled = {"optim": {**optim, "scaling_rule": "none"}, "lr_before_scaling": optim["lr"]}  # this lr is scaled already
    ours["schedule"] = schedule_section({**config, **train, **scaled})
    ours["trainer"] |= {
        "max_steps": int(optim["epochs"] * train["OFFICIAL_EPOCH_LENGTH"]),
        "precision": "fp32",
        "device": str(torch.get_default_device()),
        "max_nonfinite_steps": 1,
    }
    ours["data"]["batch_size"] = train["batch_size_per_gpu"]
    return ours


def build_trainer(file: Dinov3File, scenario: str, config: dict[str, Any]) -> Trainer:
    ours = our_config(file, scenario, config)
    with tempfile.TemporaryDirectory() as folder:
        if "path" in ours["objectives"].get("gram", {}):
            ours["objectives"]["gram"]["path"] = f"{folder}/gram.pth"
            weights = {name: value.cpu() for name, value in file.released("gram_teacher", scenario).items()}
            torch.save(weights, f"{folder}/gram.pth")
        trainer = built(ours)
    seed_forwards(trainer)
    trainer.model.to(file.dtype)
    for network in ("student", "teacher"):
        own = getattr(trainer.model, network).state_dict()
        stored = file.initial_weights(scenario, network)
        getattr(trainer.model, network).load_state_dict({name: stored[name] for name in own})
    return trainer


def seed_forwards(trainer: Trainer) -> None:
    """Has each forward pass draw what the official one drew, whose generator was seeded with 1000 + iteration."""
    seeds = itertools.count(1000)

    def seed(*_: object) -> None:
        torch.manual_seed(next(seeds))

    trainer.model.register_forward_pre_hook(seed)
