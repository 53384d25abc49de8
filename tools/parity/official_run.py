"""A train_step*.npz, and our classes put together as the official configuration in it says."""

import re
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinoswap.build import build_objectives, objective_schedules
from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import construct, construct_option
from dinoswap.forward.unified import Unified
from dinoswap.layer_decay.layerwise import Layerwise
from dinoswap.model import SelfDistillation
from dinoswap.nn.projection_head import ProjectionHead
from dinoswap.nn.vit import VisionTransformer
from dinoswap.optim.clip import Clip
from dinoswap.optim.param_groups import parameter_groups
from dinoswap.optim.schedules import Schedules
from dinoswap.trainer import Trainer
from dinoswap.values import Batch, Hyper
from dinoswap.weight_decay.all_groups import AllGroups
from parity.recorder import WEIGHT
from parity.rows import Fixture, plain_name
from parity.tables import cosine_section

HEAD = {
    "prototypes": "n_prototypes",
    "hidden_dim": "hidden_dim",
    "bottleneck_dim": "bottleneck_dim",
    "layers": "nlayers",
}
"""Keys of a head, ours and the official ones."""


class TrainStepFile:
    """One train_step*.npz. What it leaves out (initial weights, batches, meta data of a float64 twin) is in another
    file of the folder, as the fixtures' README says."""

    def __init__(self, path: Path) -> None:
        base = path.with_name(path.name.replace("_f64", ""))
        family = dict.fromkeys(p for p in (path, base, *sorted(path.parent.glob("train_step*.npz"))) if p.exists())
        self.path = path
        self.stores = [Fixture(p) for p in family]
        self.own = set(self.stores[0].file.files)
        self.dtype = torch.float64 if path.stem.endswith("_f64") else torch.float32

    @cached_property
    def meta(self) -> dict[str, Any]:
        return next((store.meta for store in self.stores if "configs" in store.meta), self.stores[0].meta)

    @property
    def scenarios(self) -> list[str]:
        return sorted({key.split("/")[0] for key in self.own if re.match(r".+/it\d+/", key)})

    def __getitem__(self, key: str) -> Tensor:
        """From the file itself, else from the first of its family."""
        store = next((store for store in self.stores if key in store), None)
        if store is None:
            raise ValueError(f"{self.path}: neither this file nor one beside it has {key}")
        return store[key]

    swaps_crops = True
    """Whether stored targets of class tokens have the two crops swapped, in the order of the student's rows that they
    are paired with."""

    def weight_tolerance(self, scenario: str) -> float:
        """How far a weight may be off after any number of steps."""
        return WEIGHT[self.dtype]

    def our_name(self, name: str) -> str:
        """Ours for an official name of a parameter."""
        return plain_name(name)

    def terms(self, logs: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
        """Our loss terms as the official log holds them: KoLeo weighted and halved, iBOT halved."""
        nothing = torch.zeros(())
        return {
            "loss_dict/dino_local_crops_loss": logs.get("dino/local", nothing),
            "loss_dict/dino_global_crops_loss": logs.get("dino/global", nothing),
            "loss_dict/koleo_loss": logs.get("koleo/cls", nothing) * config["dino"]["koleo_loss_weight"] / 2,
            "loss_dict/ibot_loss": logs.get("ibot/masked", nothing) / 2,
            "total_loss": logs["loss"],
        }

    def weights(self, hyper: Hyper, config: dict[str, Any]) -> dict[str, float]:
        """Our weights of terms at a step, as the official log holds them."""
        return {}

    def used(self, weights: dict[str, Tensor], at: str) -> dict[str, Tensor]:
        """The weights of a network of the scenario as they are used."""
        return weights

    def below(self, prefix: str) -> dict[str, Tensor]:
        """What this very file holds under a prefix, by plain parameter name."""
        return {plain_name(k): v for k, v in self.stores[0].below(prefix).items()}

    def initial_weights(self, scenario: str, network: str) -> dict[str, Tensor]:
        """The scenario's own, else those of the scenario that stores them for all."""
        for pattern in (f"{re.escape(scenario)}/init/{network}/", f"init/{network}/", rf"[^/]+/init/{network}/"):
            for store in self.stores:
                prefixes = [m[0] for k in store.file.files if (m := re.match(pattern, k))]
                if prefixes:
                    return {plain_name(k): v.to(self.dtype) for k, v in store.below(prefixes[0]).items()}
        raise ValueError(f"{self.path}: no initial weights of the {network} for {scenario}")

    def batch_key(self, scenario: str, iteration: int) -> str:
        """Of the scenario's own batch, else of the one that all share."""
        own = f"{scenario}/batch{iteration}"
        return own if f"{own}/collated_masks" in self.own else f"batch{iteration}"

    def batch(self, scenario: str, iteration: int) -> Batch:
        """Crops are stored as [2 B, ...] and [L B, ...], crop-major."""
        at = self.batch_key(scenario, iteration)
        crops, local = (self[f"{at}/collated_{kind}_crops"].to(self.dtype) for kind in ("global", "local"))
        images = crops.shape[0] // 2
        return Batch(
            global_crops=crops.unflatten(0, (2, images)),
            local_crops=local.unflatten(0, (-1, images)),
            extra_crops=crops[:0].unflatten(0, (0, images)),
            mask=self[f"{at}/collated_masks"].unflatten(0, (2, images)),
            masked_indices=self[f"{at}/mask_indices_list"],
            masked_crops=self[f"{at}/collated_masks"].any(-1).nonzero()[:, 0],
            indices=torch.arange(images),
        )


def architecture_of(file: TrainStepFile, scenario: str) -> tuple[int, int, int]:
    """Width and depth, read off the weights, and the number of heads that the meta data give."""
    weights = file.initial_weights(scenario, "student")
    heads = re.search(r"heads (\d+)", file.meta["arch"])
    if heads is None:
        raise ValueError(f"{file.path}: its meta data do not give the number of attention heads")
    blocks = {m[1] for name in weights if (m := re.match(r"backbone\.blocks\.(\d+)\.", name))}
    return weights["backbone.cls_token"].shape[-1], len(blocks), int(heads[1])


def build_backbone(file: TrainStepFile, scenario: str, config: dict[str, Any]) -> VisionTransformer:
    student, (width, depth, heads) = config["student"], architecture_of(file, scenario)
    return VisionTransformer(
        img_size=config["crops"]["global_crops_size"],
        patch_size=student["patch_size"],
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        ffn="mlp" if student["ffn_layer"] == "mlp" else "swiglu",
        registers=student["num_register_tokens"],
        layerscale=student["layerscale"],
        drop_path=student["drop_path_rate"],
        drop_path_uniform=student["drop_path_uniform"],
        interpolate_offset=student["interpolate_offset"],
        interpolate_antialias=student["interpolate_antialias"],
        qkv_bias=student["qkv_bias"],
    )


def our_config(config: dict[str, Any]) -> dict[str, Any]:
    """`preset=official` with the heads, targets and weights of an official configuration. An objective of weight 0 does
    not exist, as in the official code."""
    dino, ibot = config["dino"], config["ibot"]
    targets = "centering" if config["train"]["centering"] == "centering" else "sinkhorn"
    weights = {"dino": dino["loss_weight"], "ibot": ibot["loss_weight"]}
    weights["koleo"] = dino["loss_weight"] and dino["koleo_loss_weight"]
    overrides = [f"targets@objectives.{name}.targets={targets}" for name in ("dino", "ibot")]
    overrides += [f"objectives.{k}.loss_weight={v}" if v else f"~objectives.{k}" for k, v in weights.items()]
    if ibot["loss_weight"] and not ibot["separate_head"]:
        overrides.append("objectives.ibot.head=dino_head")
    for name, section in (("dino_head", dino), ("ibot_head", ibot)):
        overrides += [f"heads.{name}.{ours}={section[f'head_{theirs}']}" for ours, theirs in HEAD.items()]
    return compose_config(["preset=official", *overrides])


def build_model(file: TrainStepFile, scenario: str, config: dict[str, Any]) -> SelfDistillation:
    backbone, ours = build_backbone(file, scenario, config), our_config(config)
    student: dict[str, nn.Module] = {"backbone": backbone}
    objectives = build_objectives(ours)
    for name in {str(objective.head) for objective in objectives.values() if hasattr(objective, "head")}:
        student[name] = construct(ProjectionHead, ours["heads"][name], f"heads.{name}", in_dim=backbone.embed_dim)
    model = SelfDistillation(student, objectives, Unified()).to(file.dtype)
    for network in ("student", "teacher"):
        own = getattr(model, network).state_dict()
        stored = file.initial_weights(scenario, network)
        getattr(model, network).load_state_dict({k: v for k, v in stored.items() if k in own})
    return model


def build_trainer(file: TrainStepFile, scenario: str, config: dict[str, Any]) -> Trainer:
    optim, train = config["optim"], config["train"]
    schedule = construct_option(cosine_section({**config, **train}, optim["lr"], "none"), "schedule")  # scaled already
    total = int(optim["epochs"] * train["OFFICIAL_EPOCH_LENGTH"])
    model = build_model(file, scenario, config)
    decay = Layerwise(rate=optim["layerwise_decay"], patch_embed_lr_mult=optim["patch_embed_lr_mult"])
    groups = parameter_groups(model.student, decay, AllGroups())
    betas = (optim["adamw_beta1"], optim["adamw_beta2"])
    return Trainer(
        model,
        torch.optim.AdamW(groups, betas=betas, fused=True),
        Schedules(
            {
                **schedule.schedules(total, batch_size=train["batch_size_per_gpu"]),
                **objective_schedules(model, total),
            }
        ),
        Clip(optim["clip_grad"] or None, "per_module"),
        precision="fp32",
        seed=0,
        device=torch.get_default_device(),
        max_nonfinite_steps=1,
    )
