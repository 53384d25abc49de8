"""Masked-image distillation from a frozen teacher, an option of the group `teacher`: by default Depth Anything 3.

The teacher reads the clean crop (the geometry of the mask-carrying crop without its photometry), the student the masked
one. At every masked position, with t the teacher's token and p the projected token of the student's backbone,

    loss = reduction over the masked positions of 1 - cos(p, t)

The teacher is in no optimiser, EMA or checkpoint: the objective holds it outside its module tree. Only crops with a
masked token are sent through it. The objective follows no published code; the teacher follows
ByteDance-Seed/Depth-Anything-3 @ 2c21ea8.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from dinoswap.da3.centre import TokenCentre
from dinoswap.da3.frozen import FrozenTeacher, Grid, GridMatching, TeacherPrecision
from dinoswap.distributed import all_reduce_mean, all_reduce_sum, rows_per_rank
from dinoswap.distributed.sharding import norms
from dinoswap.nn.precision import emulation_notice
from dinoswap.nn.vit import VisionTransformer
from dinoswap.objectives.base import Context, Objective, Reduction, TokenComparison
from dinoswap.teacher.base import Teacher, Triple
from dinoswap.values import Batch, Hyper

PROJECTOR = "da3_projector"


class Projector(nn.Sequential):
    """An MLP (Linear, GELU, Linear) from the student's tokens [R, dim] to the teacher's space [R, out_dim], initialised
    like the heads."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int, lr_multiplier: float = 1.0) -> None:
        first, last = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, out_dim)
        super().__init__(first, nn.GELU(), last)
        for linear in (first, last):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.group_options = {"lr_multiplier": lr_multiplier}


class MaskedImageDistillation(Objective):
    """The objective: its term `cosine` is the loss, all others are only logged."""

    checks_first_batch = True

    def __init__(
        self,
        reduction: Reduction,
        teacher: Callable[..., Teacher],
        *,
        mean: Triple,
        std: Triple,
        loss_weight: float,
        embed_dim: int | None,
        projector_hidden_dim: int,
        projector_lr_multiplier: float,
        ckpt_path: str,
        grid_matching: GridMatching,
        pool: int,
        input_size: int | None,
        centre_momentum: float | None,
        precision: TeacherPrecision,
        use_fsdp: bool,
    ) -> None:
        """`teacher` builds the teacher with the weights at `ckpt_path`, random ones where that is "". `mean` and `std`
        are those of the crops, see `FrozenTeacher`. `embed_dim` None is the teacher's own width. Raises ValueError for
        a value out of range and for a teacher that cannot be built."""
        super().__init__(loss_weight)
        if projector_hidden_dim < 1:
            raise ValueError(f"projector_hidden_dim={projector_hidden_dim}: must be at least 1")
        if not projector_lr_multiplier >= 0:
            raise ValueError(f"projector_lr_multiplier={projector_lr_multiplier}: must be 0 or more")
        network = teacher(ckpt_path=ckpt_path)
        check_width(network, embed_dim)
        self.reduction = reduction
        self.centre = nn.Identity() if centre_momentum is None else TokenCentre(network.embed_dim, centre_momentum)
        frozen = FrozenTeacher(network, mean, std, grid_matching, pool, input_size, precision)
        self._outside = [frozen]  # in a list, so that it is no submodule
        self.use_fsdp = use_fsdp
        self._projector = partial(
            Projector,
            hidden_dim=projector_hidden_dim,
            out_dim=network.embed_dim,
            lr_multiplier=projector_lr_multiplier,
        )

    @property
    def teacher(self) -> FrozenTeacher:
        """The frozen teacher, which is no submodule."""
        return self._outside[0]

    def _apply(self, fn: Any, recurse: bool = True) -> "MaskedImageDistillation":
        """Moves the teacher with the objective: `.to()`, `.cuda()` and `.half()` call this method."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.teacher._apply(fn)  # type: ignore[no-untyped-call]
        return self

    def networks(self) -> Mapping[str, Callable[[int], nn.Module]]:
        """Returns the projector, which is a part of the student."""
        return {PROJECTOR: self._projector}

    def clean_size(self, crop_size: int) -> int:
        """Returns the width of the mask-carrying crops: the clean crops are these without their photometry."""
        return crop_size

    def frozen_models(self) -> Sequence[nn.Module]:
        """Returns the teacher."""
        return [self.teacher]

    def inference_only_models(self) -> Sequence[nn.Module]:
        """Returns the teacher where it is to be sharded, with use_fsdp."""
        return [self.teacher] if self.use_fsdp else []

    def identity(self) -> Mapping[str, str]:
        """Returns the identity of the teacher, which decides the result beside the config."""
        return {"teacher": self.teacher.network.identity}

    def notices(self) -> Sequence[str]:
        """Returns the teacher's notice, and a warning where the device emulates its precision."""
        precision = torch.bfloat16 if self.teacher.bf16 else None
        emulated = emulation_notice("da3.precision", precision, self.teacher.scale.device)
        return [self.teacher.network.notice, *([emulated] if emulated else [])]

    def weight(self, term: str, hyper: Hyper) -> float | None:
        """Returns the loss weight for `cosine`, None for all other terms."""
        return self.loss_weight if term == "cosine" else None

    def forward(self, context: Context) -> dict[str, Tensor]:
        """Returns the loss `cosine`, and for the log the mean and deviation of cosines and the mean norms of the tokens
        before they are normalised, over the masked tokens of all ranks."""
        batch = context.batch
        targets = self.centre(self.masked_targets(batch, grid_of(context.student, batch.patch_crops)))  # [M, D]
        projected = context.student[PROJECTOR](context.student_features.masked_patch).float()  # [M, D]
        cosines = functional.cosine_similarity(projected, targets, dim=-1)  # [M]
        logged = torch.stack([cosines, cosines.square(), projected.norm(dim=-1), targets.norm(dim=-1)])  # [4, M]
        means = all_reduce_mean(logged.detach().sum(1)) / rows_per_rank(cosines)  # 0 without a masked token
        return {
            "cosine": self.reduction(1 - cosines, batch.mask, batch.masked_indices),
            "cosine_mean": means[0],
            "cosine_std": (means[1] - means[0].square()).clamp(min=0).sqrt(),
            "student_norm": means[2],
            "teacher_norm": means[3],
        }

    def masked_targets(self, batch: Batch, grid: Grid) -> Tensor:
        """Returns the teacher's tokens [M, D] at the masked positions, brought to the student's `grid` of patches."""
        width = self.clean_size(batch.patch_crops.shape[-1])
        crops = batch.clean_crops[width].flatten(0, 1)  # [P, B, 3, H, W] -> [P B, 3, H, W]
        all_ranks = self.use_fsdp and not len(batch.masked_crops)  # all ranks have to run a sharded network together
        crops = crops[:1] if all_ranks else crops[batch.masked_crops]  # [C, 3, H, W]
        tokens = self.teacher(crops, grid) if len(crops) else crops.new_empty(0, 1, self.teacher.network.embed_dim)
        patches = batch.mask.shape[-1]
        place = batch.mask.flatten(0, 1).any(-1).cumsum(0) - 1  # [P, B, N] -> [P B]: which of the C crops each one is
        rows = place[batch.masked_indices // patches] * patches + batch.masked_indices % patches
        return tokens.flatten(0, 1).index_select(0, rows)  # [C, N, D] -> [C N, D] -> [M, D]

    def check_first_batch(self, context: Context) -> str:
        """Returns a sentence on the teacher and the first loss. Raises ValueError where the loss is not finite or its
        gradient does not reach the backbone, and where shapes do not match."""
        teacher = self.teacher.network
        tokens = int(all_reduce_sum(torch.tensor(float(len(context.batch.masked_indices)))))
        if not tokens:
            return f"teacher {teacher.identity}; the first batch has no masked token to check the loss on"
        values = self(context)
        values["cosine"].backward()  # as in a step: FSDP2 makes sharded gradients in a backward pass only
        gradients = [
            parameter.grad for parameter in context.student["backbone"].parameters() if parameter.grad is not None
        ]
        norm = float(norms(gradients).norm()) if gradients else 0.0
        context.student.zero_grad(set_to_none=True)
        means = dict(zip(values, all_reduce_mean(torch.stack([*values.values()]).detach()).tolist(), strict=True))
        report = (
            f"teacher {teacher.identity}, {teacher.embed_dim} channels; {tokens} masked tokens: loss "
            f"{means['cosine']:.4f}, cosine {means['cosine_mean']:.3f} +- {means['cosine_std']:.3f}, norms "
            f"{means['student_norm']:.3g} (student) and {means['teacher_norm']:.3g} (teacher), gradient {norm:.3g}"
        )
        if not (torch.tensor([norm, *means.values()]).isfinite().all() and norm > 0):
            raise ValueError(
                f"da3: nothing can be learnt from this teacher: {report}; are its weights what they should be?"
            )
        return report

    def compare_tokens(self, student: nn.ModuleDict, images: Tensor, mask: Tensor) -> TokenComparison:
        """Returns the tokens of teacher and student, float32 [n, N, D] each, of images [n, 3, H, W] without and
        with the mask bool [n, N]."""
        backbone = cast(VisionTransformer, student["backbone"])
        clean, masked = backbone([images, images], [None, mask])
        project = student[PROJECTOR]
        teacher = self.centre(self.teacher(images, grid_of(student, images)))
        return TokenComparison(teacher, project(clean.patch).float(), project(masked.patch).float())


def check_width(teacher: Teacher, embed_dim: int | None) -> None:
    """Raises ValueError where `embed_dim` is given and is not the width of the teacher's tokens."""
    if embed_dim not in (None, teacher.embed_dim):
        raise ValueError(
            f"embed_dim={embed_dim}: the tokens of this teacher ({teacher.identity}) have {teacher.embed_dim} "
            f"channels; set da3.embed_dim={teacher.embed_dim}, or null for whatever the teacher has"
        )


def grid_of(student: nn.ModuleDict, crops: Tensor) -> Grid:
    """Returns the rows and columns of patches that the student cuts crops [..., H, W] into."""
    return cast(VisionTransformer, student["backbone"]).patch_embed.grid(crops.shape[-2], crops.shape[-1])
