"""The official pipeline by torchvision on PIL: drawn with torch's generator in the official order, and applied."""

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


def differences(ours: np.ndarray, theirs: np.ndarray | Image.Image) -> np.ndarray:
    """In 8-bit levels."""
    return np.abs(ours.astype(int) - np.asarray(theirs).astype(int))


def photograph(name: str = "china.jpg") -> np.ndarray:
    return np.ascontiguousarray(load_sample_image(name))


def torch_draw(image: Image.Image, scale: tuple[float, float], blur: float, solarize: float | None) -> Draw:
    """One view of the official pipeline, from torch's default generator."""
    top, left, height, width = T.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])
    crop = Crop(top, left, height, width, horizontal_flip=bool(torch.rand(1) < 0.5))
    jitter: tuple[tuple[str, float], ...] = ()
    if torch.rand(1) <= 0.8:
        order, *factors = T.ColorJitter.get_params((0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1))
        jitter = tuple((NAMES[i], factors[i]) for i in order.tolist())
    grayscale = bool(torch.rand(1) < 0.2)
    sigma = T.GaussianBlur.get_params(0.1, 2.0) if torch.rand(1) <= blur else None
    threshold = 128 if solarize is not None and torch.rand(1) < solarize else None
    return crop, Photometry(jitter, grayscale, sigma, solarize_threshold=threshold)


def pil_crop(image: np.ndarray, crop: Crop, size: tuple[int, int], width_first: bool = True) -> Image.Image:
    """torch and Pillow before 13 resize the width first; Pillow 13 begins with the height of tall crops."""
    right, bottom = crop.left + crop.width, crop.top + crop.height
    cut = Image.fromarray(image).crop((crop.left, crop.top, right, bottom))
    between = (size[1], crop.height) if width_first else (crop.width, size[0])
    cut = cut.resize(between, Image.Resampling.BICUBIC).resize(size[::-1], Image.Resampling.BICUBIC)
    cut = F.hflip(cut) if crop.horizontal_flip else cut
    return F.vflip(cut) if crop.vertical_flip else cut


def pil_apply(cut: Image.Image, photometry: Photometry) -> Image.Image:
    for name, factor in photometry.jitter:
        cut = JITTER[name](cut, factor)
    if photometry.grayscale:
        cut = F.to_grayscale(cut, 3)
    if photometry.blur_sigma is not None:
        cut = F.gaussian_blur(cut, [photometry.blur_kernel] * 2, [photometry.blur_sigma] * 2)
    return cut if photometry.solarize_threshold is None else F.solarize(cut, photometry.solarize_threshold)
