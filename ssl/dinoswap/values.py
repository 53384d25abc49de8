"""The values that travel from an image to the loss. Shapes are written with these letters:

B  images in this (micro-)batch           L  local crops per image
P  mask-carrying crops per image          E  extra crops per image (0 or 1)
N  patch tokens of a mask-carrying crop   M  masked tokens over all P * B crops
D  width of the backbone                  K  prototypes of a head
R  rows, i.e. tokens gathered from one or more crops

Crops are stacked crop-major: index [c, b] is crop c of image b.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from dinoswap.photometry import changed

Hyper = Mapping[str, float]
"""Value of every schedule at one step, by name: lr, last_layer_lr, weight_decay, momentum, teacher_temp, ..."""


@dataclass(frozen=True)
class Views:
    """The crops of one image, uint8 [3, H, W] each. `clean_crops` have the geometry of the mask-carrying crops without
    any photometric change, by their width in pixels; there are none unless an objective needs them. `photometry` holds
    the rows of the changes that are yet to be made, see photometry.py, by the field of the crops."""

    global_crops: list[Tensor]
    local_crops: list[Tensor]
    extra_crops: list[Tensor]
    clean_crops: dict[int, list[Tensor]]
    photometry: dict[str, list[Tensor]] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """One rank's part of one step. Crops are uint8 as the loader makes them, and normalised floats in the model."""

    global_crops: Tensor  # [2, B, 3, H, W]
    local_crops: Tensor  # [L, B, 3, h, w]
    extra_crops: Tensor  # [E, B, 3, H, W]
    mask: Tensor  # bool [P, B, N], True = hidden from the student
    masked_indices: Tensor  # int64 [M], ascending positions of True in mask.flatten()
    masked_crops: Tensor  # int64 [C], those of the P * B crops that have a masked token, ascending
    indices: Tensor  # int64 [B], rows of the data set
    clean_crops: Mapping[int, Tensor] = field(default_factory=dict)  # by width: [P, B, 3, height, width]
    photometry: Mapping[str, Tensor] = field(default_factory=dict)  # yet to be made, by field: [crops, B, numbers]
    corrupt: tuple[tuple[int, str], ...] = ()  # (row, reason) of images that were replaced

    @property
    def images(self) -> int:
        """Number of images B."""
        return self.global_crops.shape[1]

    @property
    def patch_crops(self) -> Tensor:
        """The crops that carry the mask, [P, B, 3, H, W]: the extra one where there is one, else both globals."""
        return self.extra_crops if self.extra_crops.shape[0] else self.global_crops

    @property
    def visible_indices(self) -> Tensor:
        """Ascending positions of False in mask.flatten(), int64 [P B N - M]."""
        count = self.mask.numel() - len(self.masked_indices)
        return torch.nonzero_static(~self.mask.flatten(), size=count)[:, 0]  # nonzero would wait for the GPU

    def tensors(self) -> dict[str, Tensor]:
        """Returns all tensors by field name, the clean crops by `clean_crops.<width>`, and the changes that are yet to
        be made by `photometry.<field>`."""
        mapped: dict[str, Mapping[Any, Tensor]] = {"clean_crops": self.clean_crops, "photometry": self.photometry}
        single = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name not in (*mapped, "corrupt")
        }
        return single | {f"{name}.{key}": tensor for name, held in mapped.items() for key, tensor in held.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> "Batch":
        """Returns the batch whose `tensors()` these are. Also takes those of earlier versions, which had the clean
        crops of one size in `clean_crops`, [0, B, 3, 0, 0] where there were none."""
        clean = [name for name in tensors if name.startswith("clean_crops")]
        changes = {name: name.partition(".")[2] for name in tensors if name.startswith("photometry.")}
        single: dict[str, Any] = {
            name: tensor for name, tensor in tensors.items() if name not in clean and name not in changes
        }
        return cls(
            **single,
            clean_crops={tensor.shape[-1]: tensor for tensor in map(tensors.__getitem__, clean) if len(tensor)},
            photometry={key: tensors[name] for name, key in changes.items()},
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Returns the batch with `change` made to every tensor, which keeps their shapes."""
        changed = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self.of_tensors(changed), corrupt=self.corrupt)

    def to(self, device: torch.device) -> "Batch":
        """Returns the batch on `device`; the host does not wait for the copy."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Returns the batch in pinned memory, from which copies to a GPU are asynchronous."""
        return self.map(lambda tensor: tensor.pin_memory())

    def normalised(self, mean: Tensor, std: Tensor) -> "Batch":
        """Returns the batch with the changes of `photometry` made, uint8 crops through `normalise` and everything else
        unchanged."""
        made: dict[str, Any] = {
            name: normalise(changed(getattr(self, name), numbers), mean, std)
            for name, numbers in self.photometry.items()
        }
        batch = replace(self, **made, photometry={})
        return batch.map(lambda tensor: normalise(tensor, mean, std) if tensor.dtype == torch.uint8 else tensor)


def masked_positions(mask: Tensor) -> dict[str, Tensor]:
    """Returns `masked_indices` and `masked_crops` of a mask bool [P, B, N]. Their sizes depend on the values of the
    mask, so they are computed on the CPU: on a GPU the host would have to wait for them."""
    return {
        "masked_indices": mask.flatten().nonzero()[:, 0],
        "masked_crops": mask.flatten(0, 1).any(-1).nonzero()[:, 0],  # [P, B, N] -> [P B, N] -> [C]
    }


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Returns levels 0..255 [..., 3, H, W] as float32 in units of `std` around `mean`, both [3] for pixels in 0..1."""
    return (pixels.float() - mean.view(3, 1, 1) * 255).div_(std.view(3, 1, 1) * 255)


@dataclass(frozen=True)
class Features:
    """The features of one network that the objectives read, after the backbone's final norm.

    `patch` holds all tokens and exists only when an objective asks for it (`Objective.reads_student_patches`,
    `reads_teacher_patches`): otherwise the last block computes the masked rows only.
    """

    global_cls: Tensor  # [2, B, D]
    local_cls: Tensor  # [L, B, D]; [0, B, D] for the teacher
    masked_patch: Tensor  # [M, D], rows of `Batch.masked_indices`
    patch: Tensor | None = None  # [P, B, N, D]
