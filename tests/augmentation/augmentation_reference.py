"""The official and the legacy pipeline by torchvision on PIL: composed, or drawn and applied one after the other."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torchvision.transforms.functional as F
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision import transforms as T

from dinoswap.augmentation.geometry import Crop
from dinoswap.augmentation.multicrop import Draw
from dinoswap.augmentation.photometric import Photometry

NAMES = ("brightness", "contrast", "saturation", "hue")
JITTER = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}
RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class View:
    """What one view is drawn from. None: the pipeline has no such step, or (blur) takes it without drawing."""

    scale: tuple[float, float]
    vertical_flip: float | None = None
    widths: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grayscale: float | None = 0.2
    blur: float | None = None
    kernel: int = 9
    sigma: tuple[float, float] = (0.1, 2.0)
    solarize: float | None = None
    threshold: int = 128

    @property
    def intervals(self) -> list[tuple[float, float]]:
        """Of the jitter's factors, by NAMES."""
        return [(c - width, c + width) for c, width in zip((1, 1, 1, 0), self.widths, strict=True)]


LARGE, SMALL = (0.4, 1.0), (0.05, 0.4)
WEAK = {"grayscale": 0.01, "kernel": 3, "sigma": (0.1, 0.15)}
GLOBAL3 = View(LARGE, 0.3, (0.3, 0.3, 0.15, 0.05), grayscale=None, kernel=3, sigma=(0.1, 0.2))
VIEWS = {  # global 1, global 2, extra, local
    "official": [
        View((0.32, 1.0), blur=0.0),
        View((0.32, 1.0), blur=0.9, solarize=0.2),
        View((0.32, 1.0), blur=0.0),
        View((0.05, 0.32), blur=0.5),
    ],
    "legacy": [View(LARGE, **WEAK), View(LARGE, **WEAK, solarize=0.5, threshold=64), GLOBAL3, View(SMALL, **WEAK)],
}


def differences(ours: np.ndarray | torch.Tensor, theirs: np.ndarray | Image.Image) -> np.ndarray:
    """In 8-bit levels, [H, W, 3]; `ours` may be a view, [3, H, W]."""
    pixels = ours.permute(1, 2, 0).numpy() if isinstance(ours, torch.Tensor) else ours
    return np.abs(pixels.astype(int) - np.asarray(theirs).astype(int))


def photograph(name: str = "china.jpg") -> np.ndarray:
    return np.ascontiguousarray(load_sample_image(name))


def composed(view: View, size: tuple[int, int]) -> T.Compose:
    """A view of `size` = (height, width) by torchvision's random transforms."""
    steps = [T.RandomResizedCrop(size, view.scale, RATIO, T.InterpolationMode.BICUBIC), T.RandomHorizontalFlip()]
    if view.vertical_flip is not None:
        steps.append(T.RandomVerticalFlip(view.vertical_flip))
    steps.append(T.RandomApply([T.ColorJitter(*view.widths)], p=0.8))
    if view.grayscale is not None:
        steps.append(T.RandomGrayscale(view.grayscale))
    blur = T.GaussianBlur(view.kernel, view.sigma)
    steps.append(blur if view.blur is None else T.RandomApply([blur], p=view.blur))
    if view.solarize is not None:
        steps.append(T.RandomSolarize(view.threshold, view.solarize))
    return T.Compose(steps)


def torch_colours(view: View) -> Photometry:
    """The jitter and the grayscale that torchvision draws from torch's default generator."""
    jitter: tuple[tuple[str, float], ...] = ()
    if torch.rand(1) <= 0.8:
        order, *factors = T.ColorJitter.get_params(*view.intervals)
        jitter = tuple((NAMES[i], factors[i]) for i in order.tolist())
    return Photometry(jitter, view.grayscale is not None and bool(torch.rand(1) < view.grayscale))


def torch_draw(view: View, height: int, width: int, shared: Photometry | None = None) -> Draw:
    """What `composed` draws for a height x width image, from torch's default generator. `shared`: its jitter and
    grayscale, where they were drawn before."""
    box = T.RandomResizedCrop.get_params(torch.empty(3, height, width), list(view.scale), list(RATIO))
    horizontal = bool(torch.rand(1) < 0.5)
    vertical = view.vertical_flip is not None and bool(torch.rand(1) < view.vertical_flip)
    colours = torch_colours(view) if shared is None else shared
    blurred = view.blur is None or torch.rand(1) <= view.blur
    sigma = T.GaussianBlur.get_params(*view.sigma) if blurred else None
    threshold = view.threshold if view.solarize is not None and torch.rand(1) < view.solarize else None
    blurring = {"blur_sigma": sigma, "blur_kernel": view.kernel}
    return Crop(*box, horizontal, vertical), replace(colours, **blurring, solarize_threshold=threshold)


def pil_crop(image: np.ndarray, crop: Crop, size: tuple[int, int], width_first: bool = True) -> Image.Image:
    """torch and Pillow before 13 resize the width first; Pillow 13 begins with the height of tall crops."""
    right, bottom = crop.left + crop.width, crop.top + crop.height
    cut = Image.fromarray(image).crop((crop.left, crop.top, right, bottom))
    between = (size[1], crop.height) if width_first else (crop.width, size[0])
    cut = cut.resize(between, Image.Resampling.BICUBIC).resize(size[::-1], Image.Resampling.BICUBIC)
    cut = F.hflip(cut) if crop.horizontal_flip else cut
    return F.vflip(cut) if crop.vertical_flip else cut


def pil_squash(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(pil_crop(image, Crop(0, 0, *image.shape[:2]), size))


def pil_apply(cut: Image.Image, photometry: Photometry) -> Image.Image:
    for name, factor in photometry.jitter:
        cut = JITTER[name](cut, factor)
    if photometry.grayscale:
        cut = F.to_grayscale(cut, 3)
    if photometry.blur_sigma is not None:
        cut = F.gaussian_blur(cut, [photometry.blur_kernel] * 2, [photometry.blur_sigma] * 2)
    return cut if photometry.solarize_threshold is None else F.solarize(cut, photometry.solarize_threshold)
