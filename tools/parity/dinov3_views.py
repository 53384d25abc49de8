"""augment_dinov3*.npz: the crops that stored boxes and flips make of a stored image, without photometric changes.

Ours differ as resizing by torch and by Pillow differ (augmentation/geometry.py). Where Pillow began with the height of
a crop, ours is cut from the image with its axes exchanged.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoswap.augmentation.geometry import Crop, resized_crop
from dinoswap.augmentation.multicrop import MultiCrop
from dinoswap.augmentation.photometric import Photometry
from dinoswap.config.command_line import compose_config
from dinoswap.config.schema import construct_option
from parity.rows import Fixture, Row, Scenarios, compare, is_left_out

LARGEST, MEAN = 2 / 255, 0.02 / 255
"""How far a value of a crop may be off, and all of them on average, where white is 1: 2 levels, and 0.02."""

Crops = dict[str, list[Tensor]]
"""Crops [3, H, W] by the official name of their kind."""


def scenarios(path: Path) -> Scenarios:
    file = Fixture(path)
    return {
        name: partial(check_case, file, name, file.meta["args"] | case)
        for name, case in file.meta["cases"].items()
        if not is_left_out(path, name, reasons_to_leave_out(name, case))
    }


def reasons_to_leave_out(name: str, case: dict[str, Any]) -> dict[str, bool]:
    """Whether each applies to a case."""
    distorted = "gram_teacher_crops_size" in case and not case.get("gram_teacher_no_distortions", False)
    return {
        "no option stands for local_crops_subset_of_global_crops": "local_crops_subset_of_global_crops" in case,
        "no option stands for gram_teacher_no_distortions=false": distorted,
        "torchvision drew its photometric changes": name.endswith("_full"),
    }


def check_case(file: Fixture, name: str, args: dict[str, Any]) -> Iterator[Row]:
    augment, image = build_augmentation(args), file["image"].numpy()
    for seed in file.meta["seeds"]:
        stored = file.below(f"{name}/seed{seed}/")
        boxes, flips = stored["boxes_top_left_height_width"].tolist(), stored["flips"].tolist()
        crops = [Crop(*box, horizontal_flip=flip) for box, flip in zip(boxes, flips, strict=True)]
        orders = [rendered(augment, image, crops), rendered_height_first(augment, image, crops)]
        for kind in orders[0]:
            ours = [order[kind] for order in orders]
            if kind == "global_crops" and args.get("gram_teacher_crops_size", 0) > args["global_crops_size"]:
                # the official student's crop is made of the Gram teacher's: a second resampling, which we do not have
                ours = [[resized(crop, args["global_crops_size"]) for crop in stored["gram_teacher_crops"]]]
            yield from compare_crops(f"seed{seed}/{kind}", ours, stored[kind])


def build_augmentation(args: dict[str, Any]) -> MultiCrop:
    """The augmentation of preset=dinov3 with the sizes and numbers of an official one."""
    augmentation: MultiCrop = construct_option(
        compose_config(["preset=dinov3", "recipe=none"])["augmentation"],
        "augmentation",
        **{key: args[key] for key in ("global_crops_size", "local_crops_size", "local_crops_number")},
        clean_sizes=[args[key] for key in ("gram_teacher_crops_size",) if key in args],
    )
    return augmentation


def rendered(augment: MultiCrop, image: np.ndarray, crops: list[Crop]) -> Crops:
    views = augment.render(image, [(crop, Photometry()) for crop in crops])
    by_kind = {"global_crops": views.global_crops, "local_crops": views.local_crops}
    for clean in views.clean_crops.values():  # of one size, if any
        by_kind["gram_teacher_crops"] = clean
    return by_kind


def rendered_height_first(augment: MultiCrop, image: np.ndarray, crops: list[Crop]) -> Crops:
    """The same for square crops, each resized in its height before its width."""
    exchanged = [Crop(c.left, c.top, c.width, c.height, vertical_flip=c.horizontal_flip) for c in crops]
    by_kind = rendered(augment, image.transpose(1, 0, 2), exchanged)
    return {kind: [view.transpose(1, 2) for view in views] for kind, views in by_kind.items()}


def resized(crop: Tensor, size: int) -> Tensor:
    """A whole crop [3, H, W] at another size, [3, size, size]."""
    pixels = resized_crop(crop.permute(1, 2, 0).numpy(), Crop(0, 0, *crop.shape[1:]), (size, size))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def compare_crops(name: str, orders: list[list[Tensor]], theirs: Tensor) -> Iterator[Row]:
    """Two rows for crops uint8 [n, 3, H, W], each resized in one order or the other: the one that is nearer counts."""
    ours = torch.stack([torch.stack(crops) for crops in orders]) / 255.0  # [orders, n, 3, H, W]
    means = (ours - theirs / 255.0).abs().mean((2, 3, 4))  # [orders, n]
    nearer = ours[means.argmin(0), range(len(theirs))]
    yield compare(name, nearer, theirs / 255.0, LARGEST)
    yield compare(f"{name} on average", means.amin(0), torch.zeros(len(theirs)), MEAN)
