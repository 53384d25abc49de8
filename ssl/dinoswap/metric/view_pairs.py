"""Pairs of crops of one image whose geometry is known, and how many of their patches find each other.

A scene has three views: a crop, another crop, which is mirrored in half of the scenes, and the latter with other
colours. Its truth is float64 [2, 3]: left, top and side of both crops, in units of the image's largest centred square,
with a negative side for a mirrored crop, whose `left` is then the right-hand end.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as colour

from dinoswap import rng
from dinoswap.data.images import Images
from dinoswap.dense.base import Scene
from dinoswap.files.pictures import Picture

STRENGTH = 0.4
"""Brightness, contrast and saturation are changed by a factor of 1 - STRENGTH to 1 + STRENGTH."""
WITHIN = 1 + 1e-6
"""A patch is found up to this distance in patches: one, and a rounding error."""
HUE = 0.1
"""The hue is turned by up to so many turns."""


class ViewPairs:
    """Makes one scene of each of at most `limit` images. The crops, `size` pixels square, depend on the number of the
    image alone, so that all runs are judged on the same ones."""

    def __init__(self, images: Images, limit: int, size: int, scale: tuple[float, float]) -> None:
        self.images, self.rows, self.scale = images, rng.fixed_subset(len(images), limit), scale
        self.shape = (3, size, size)

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, index: int) -> Scene:
        row = int(self.rows[index])
        draw = rng.numpy_generator(0, "evaluation/view_pairs", row)
        boxes = [self._box(draw) for _ in range(2)]
        mirrored = bool(draw.random() < 0.5)
        factors = draw.uniform(1 - STRENGTH, 1 + STRENGTH, 3), draw.uniform(-HUE, HUE)
        pixels = self.images.load(row)
        first, second = (self._crop(pixels, box) for box in boxes)
        if mirrored:
            left, top, side = boxes[1]
            second, boxes[1] = second[:, :, ::-1], (left + side, top, -side)
        changed = _recoloured(np.ascontiguousarray(second), *factors)
        return Scene(np.stack([first, second, changed]), np.array(boxes))

    def _box(self, draw: np.random.Generator) -> tuple[float, float, float]:
        """Draws left, top and side of a crop in the unit square."""
        side = float(np.sqrt(draw.uniform(*self.scale)))
        left, top = draw.uniform(0, 1 - side, 2)
        return float(left), float(top), side

    def _crop(self, pixels: NDArray[np.uint8], box: tuple[float, float, float]) -> NDArray[np.uint8]:
        """Returns a crop, uint8 [3, S, S], of an image, uint8 [H, W, 3], in one resampling."""
        height, width = pixels.shape[:2]
        square, size = min(height, width), self.shape[1]
        left, top, side = (number * square for number in box)
        left, top = left + (width - square) / 2, top + (height - square) / 2
        corners = (left, top, min(left + side, width), min(top + side, height))  # rounding may exceed the border
        crop = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box=corners)
        return np.asarray(crop).transpose(2, 0, 1)  # [S, S, 3] -> [3, S, S]


def _recoloured(image: NDArray[np.uint8], factors: NDArray[np.float64], turn: float) -> NDArray[np.uint8]:
    """Returns an image, uint8 [3, S, S], with its brightness, contrast and saturation multiplied and its hue turned."""
    changed = colour.adjust_brightness(torch.from_numpy(image), float(factors[0]))
    changed = colour.adjust_contrast(changed, float(factors[1]))
    changed = colour.adjust_saturation(changed, float(factors[2]))
    recoloured: NDArray[np.uint8] = colour.adjust_hue(changed, turn).numpy()
    return recoloured


def right_places(boxes: NDArray[np.float64], rows: int, columns: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Returns where the centres of the first crop's patches lie in the second: x and y in units of its patches,
    [n, N, 2], a patch's centre being its index plus a half, and whether they lie in it at all, bool [n, N]. `boxes` are
    float64 [n, 2, 3], as in a scene's truth."""
    y, x = np.mgrid[0:rows, 0:columns].reshape(2, -1) + 0.5  # [N]
    first, second = boxes[:, 0, :, None], boxes[:, 1, :, None]  # [n, 3, 1]
    image_x = first[:, 0] + x / columns * first[:, 2]
    image_y = first[:, 1] + y / rows * first[:, 2]
    there_x = (image_x - second[:, 0]) / second[:, 2]  # 0..1 inside of the second crop, for mirrored ones too
    there_y = (image_y - second[:, 1]) / np.abs(second[:, 2])
    inside = (there_x > 0) & (there_x < 1) & (there_y > 0) & (there_y < 1)
    return np.stack([there_x * columns, there_y * rows], -1), inside


def nearest(tokens: Tensor) -> Tensor:
    """Returns the most similar patches, by cosine, of the second and of the third view for each patch of the first:
    float32 [n, 3, rows, columns, D] to int64 [n, 2, N]."""
    first, *others = F.normalize(tokens.flatten(2, 3), dim=-1).unbind(1)  # [n, N, D] each
    return torch.stack([(first @ other.mT).argmax(-1) for other in others], 1)


def match_counts(tokens: Tensor, boxes: NDArray[np.float64]) -> Tensor:
    """Returns, of the patches of all first crops that lie in the second one: how many are found in the second and in
    the third view, how many would be by chance, and how many there are; float64 [4]. Tokens are float32
    [n, 3, rows, columns, D], `boxes` float64 [n, 2, 3]."""
    rows, columns = tokens.shape[2:4]
    right, inside = (torch.from_numpy(values) for values in right_places(boxes, rows, columns))
    centres = torch.from_numpy(np.mgrid[0:rows, 0:columns].reshape(2, -1)[::-1].T + 0.5)  # x, y: [N, 2]
    distance = (right[:, :, None] - centres).norm(dim=-1)  # [n, N, N of the second crop]
    near = distance <= WITHIN
    hits = [near.gather(2, index[..., None])[..., 0] for index in nearest(tokens).unbind(1)]
    chance = near.double().mean(-1)
    return torch.stack([values[inside].double().sum() for values in (*hits, chance, torch.ones_like(chance))])


def matches_figure(tokens: Tensor, scenes: Sequence[Scene], cell: int = 160, lines: int = 12) -> Picture:
    """Returns a picture with a row for each scene: the first crop beside the second, with some patches and what they
    find joined by lines, green where it is within one patch of the right place and red elsewhere."""
    rows, columns = tokens.shape[2:4]
    places = nearest(tokens)[:, 0].numpy()
    right, inside = right_places(np.stack([scene.truth for scene in scenes]), rows, columns)
    canvas = Image.new("RGB", (2 * cell + 12, len(scenes) * (cell + 4) + 4), "white")
    draw = ImageDraw.Draw(canvas)
    green, red = (tuple(int(255 * part) for part in colormaps["RdYlGn"](end)[:3]) for end in (1.0, 0.0))
    for number, scene in enumerate(scenes):
        top = 4 + number * (cell + 4)
        for place, view in enumerate(scene.views[:2]):
            shown = Image.fromarray(view.transpose(1, 2, 0)).resize((cell, cell))
            canvas.paste(shown, (4 + place * (cell + 4), top))
        patches = np.flatnonzero(inside[number])
        for patch in patches[:: max(len(patches) // lines, 1)]:
            y, x = divmod(int(patch), columns)
            other_y, other_x = divmod(int(places[number, patch]), columns)
            hit = np.hypot(other_x + 0.5 - right[number, patch, 0], other_y + 0.5 - right[number, patch, 1]) <= WITHIN
            start = (4 + (x + 0.5) / columns * cell, top + (y + 0.5) / rows * cell)
            end = (8 + cell + (other_x + 0.5) / columns * cell, top + (other_y + 0.5) / rows * cell)
            draw.line([start, end], fill=green if hit else red, width=1)
    return np.asarray(canvas)
