"""Every single change to a preset, as it is typed: `preset=legacy masking=block`.

These are the options of every axis, read from configs/, and the settings beside the axes that the two sides differ in,
each with both of its values. The pages, the table of costs and the tests go through them.
"""

from dinoswap.config.explain import SIDES, comment, options, presets

Switch = tuple[str, ...]
"""The overrides of one change, mostly a single one."""

DETAILS: dict[Switch, str] = {
    ("targets@objectives.dino.targets=sinkhorn",): "DINO's Sinkhorn with 3 iterations.",
    ("targets@objectives.dino.targets=sinkhorn_5",): "DINO's Sinkhorn with 5 iterations.",
    ("targets@objectives.clustering.targets=sinkhorn",): "The prototypes' Sinkhorn without a floor.",
    ("targets@objectives.clustering.targets=sinkhorn_floored",): "The prototypes' Sinkhorn with an absolute floor.",
    ("model.residual_dropout=0.0", "teacher_dropout=false"): "No element-wise dropout, and the teacher in eval mode.",
    (
        "model.residual_dropout=0.4",
        "model.drop_path=0.0",
        "teacher_dropout=true",
    ): "Element-wise dropout on the residual branches instead of stochastic depth, in the teacher too.",
    ("model.ffn=mlp",): "MLP feed-forward layers.",
    ("model.ffn=swiglu",): "SwiGLU feed-forward layers.",
    ("model.registers=0",): "No register tokens.",
    ("model.registers=4",): "4 register tokens.",
    ("model.layerscale=1.0e-5",): "LayerScale starts at 1e-5.",
    ("model.layerscale=by_depth",): "LayerScale starts at a value that depends on the depth.",
    ("model.mask_token_std=0.0",): "The mask token starts at zero.",
    ("model.mask_token_std=1.0e-6",): "The mask token starts at random values.",
    (
        "heads.dino_head.train_weight_g=true",
        "heads.ibot_head.train_weight_g=true",
    ): "The lengths of the prototypes of the heads are trained.",
    (
        "heads.dino_head.train_weight_g=false",
        "heads.ibot_head.train_weight_g=false",
    ): "The lengths of the prototypes of the heads stay 1.",
    (
        "heads.dino_head.weight_norm=true",
        "heads.ibot_head.weight_norm=true",
    ): "The last layers of the heads are weight-normalised.",
    (
        "heads.dino_head.weight_norm=false",
        "heads.ibot_head.weight_norm=false",
        "heads.dino_head.train_weight_g=true",
        "heads.ibot_head.train_weight_g=true",
    ): "The last layers of the heads are plain linear maps.",
    ("model.token_std=1.0e-6",): "Class token and registers start near zero.",
    ("model.token_std=0.02",): "Class token and registers start at the deviation of the linear maps.",
    ("objectives.koleo.over_crops=sum",): "KoLeo summed over the global crops.",
    ("objectives.koleo.over_crops=mean",): "KoLeo averaged over the global crops.",
    ("schedule.lr_scaling=sqrt_1024",): "The lr grows with the square root of the batch.",
    ("schedule.lr_scaling=linear_256",): "The lr grows linearly with the batch.",
    ("schedule.freeze_by=zero_lr",): "The last layer frozen by a lr of 0.",
    ("schedule.freeze_by=drop_gradients",): "The last layer frozen by dropping its gradients.",
    ("schedule.weight_decay_warmup=0",): "Weight decay rises from the first step.",
    ("schedule.weight_decay_warmup=${.warmup}",): "Weight decay is constant while the lr warms up.",
    ("schedule.teacher_temp_shape=linear",): "The teacher temperature warms up on a line.",
    ("schedule.teacher_temp_shape=cosine",): "The teacher temperature warms up on half a cosine.",
    ("optimizer.clip=per_module",): "Gradients clipped by the norm of their submodule.",
    ("optimizer.clip=per_tensor",): "Gradients clipped by their own norm, tensor by tensor.",
}
"""The settings beside the axes, both values of each, in words."""


def switches() -> dict[Switch, str]:
    """Returns, for each switch, what it does in a sentence: the axes first."""
    axes = {
        (f"{axis}={option.name}",): comment(axis.partition("@")[0], option.name)[0]
        for axis in presets()["official"]
        for option in options(axis)
        if len(option.sides) < len(SIDES)  # what all presets choose changes none of them
    }
    return axes | DETAILS


def typed(switch: Switch) -> str:
    """Returns a switch as it stands on a command line."""
    return " ".join(switch)
