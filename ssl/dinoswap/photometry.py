"""The changes of augmentation/photometric.py to a batch of crops at once, on any device.

A crop's changes are its row of numbers, see `numbers_of`. They are made to all crops of a batch by the same few
operations, whose sizes depend on no number, so that the host waits for nothing: an operation that a crop does not have
leaves it as it is. Pixels are whole levels of 255 in float32, rounded after each operation as uint8 images are there.

Levels are those of OpenCV on a CPU that has fused products: what it rounds once is computed in float64 and rounded
once. The blur alone, whose sums are in another order, is the same to 1 level; a level that lies at the threshold of a
solarization may then be inverted on one side alone, which makes 1 level of it at the usual threshold of 128.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

SLOTS = 3
"""The number of linear operations that a crop has at most before a turn of its hue, and after it."""
RADIUS = 4
"""The largest distance in pixels, along each side, of a pixel that a blur reads."""
_UNCHANGED = (1.0, 0.0, 0.0)
_LINEAR = {"brightness": (0.0, 0.0), "contrast": (1.0, 0.0), "saturation": (0.0, 1.0)}
"""Whether the rest of an operation's factor multiplies the mean gray level, or the gray level of a pixel."""
_TRUNCATE = -0.4999
_EPSILON = torch.finfo(torch.float32).eps


def numbers_of(
    jitter: Sequence[tuple[str, float]], grayscale: bool, blur: tuple[float, int] | None, threshold: int | None
) -> Tensor:
    """Returns the row of one crop, float64: for each slot before the hue what multiplies the pixels, their mean gray
    level, and the gray level of each; the turn of the hue in 255ths; the slots after it; grayscale; deviation and
    radius of the blur; threshold of the solarization. `blur` is a deviation in pixels and the size of the window. What
    a crop does not have is told by a value that changes nothing."""
    names = [name for name, _ in jitter]
    at = names.index("hue") if "hue" in names else len(names)
    turn = int(jitter[at][1] * 255) % 256 if at < len(names) else -1
    sigma, kernel = blur or (0.0, 1)
    before, after = _slots(jitter[:at]), _slots(jitter[at + 1 :])
    row = [*before, turn, *after, grayscale, sigma, kernel // 2, 256 if threshold is None else threshold]
    return torch.tensor(row, dtype=torch.float64)


def _slots(operations: Sequence[tuple[str, float]]) -> list[float]:
    used = [(factor, *((1 - factor) * share for share in _LINEAR[name])) for name, factor in operations]
    return [number for slot in [*used, *[_UNCHANGED] * (SLOTS - len(used))] for number in slot]


def changed(pixels: Tensor, numbers: Tensor) -> Tensor:
    """Returns crops [crops, B, 3, H, W] of levels 0..255, of which H and W exceed RADIUS, after the changes of their
    rows [crops, B, numbers], as float32."""
    columns = iter(numbers[..., None, None, None].unbind(2))  # [crops, B, 1, 1, 1] each
    rounded = map(Tensor.float, columns)  # those of which no product is fused
    pixels = pixels.float()
    for _ in range(SLOTS):
        pixels = _linear(pixels, next(columns), next(columns), next(columns))
    pixels = _turned(pixels, next(rounded))
    for _ in range(SLOTS):
        pixels = _linear(pixels, next(columns), next(columns), next(columns))
    pixels = torch.where(next(rounded) > 0, _gray(pixels), pixels)
    pixels = _blurred(pixels, next(rounded), next(rounded))
    return torch.where(pixels >= next(rounded), 255 - pixels, pixels)


def _linear(pixels: Tensor, factor: Tensor, of_mean: Tensor, of_gray: Tensor) -> Tensor:
    """Brightness, contrast or saturation, whichever each crop has."""
    gray = _gray(pixels)
    mean = (gray.mean((-2, -1), keepdim=True, dtype=torch.float64) + 0.5).floor()
    level = _fused(of_gray, gray, (of_mean * mean + _TRUNCATE).float())
    return _whole(_fused(factor, pixels, level))


def _fused(factor: Tensor, levels: Tensor, offset: Tensor | float) -> Tensor:
    """factor x levels + offset of float32 numbers, rounded once to float32."""
    return (factor.float().double() * levels + offset).float()


def _gray(pixels: Tensor) -> Tensor:
    """The gray level [crops, B, 1, H, W], in the whole 32768ths of OpenCV; float32 holds all of these sums."""
    red, green, blue = pixels.chunk(3, dim=2)
    whole = torch.add(9798 * red, green, alpha=19235).add_(blue, alpha=3735).add_(16384)
    return whole.div_(32768).floor_()


def _turned(pixels: Tensor, turn: Tensor) -> Tensor:
    """The hue moved by `turn` 255ths of the colour circle; a negative turn is none."""
    red, green, blue = pixels.chunk(3, dim=2)
    value = pixels.amax(2, keepdim=True)
    spread = value - pixels.amin(2, keepdim=True)
    scale = 60 / (spread + _EPSILON)
    other = torch.where(value == green, (blue - red) * scale + 120, (red - green) * scale + 240)
    degrees = torch.where(value == red, (green - blue) * scale, other)
    degrees = torch.where(degrees < 0, degrees + 360, degrees)
    hue = (_whole((degrees * (255 / 360) + _TRUNCATE).abs()) + turn) % 256
    saturation = _whole((spread / (value + _EPSILON) * 255 + _TRUNCATE).abs()) * (1 / 255)
    sectors = hue * (360 / 255) * (6 / 360)
    whole = sectors.floor()
    part = sectors - whole
    channel = torch.arange(5, 0, -2, device=pixels.device).view(3, 1, 1)
    sector = (whole + channel) % 6  # away from value in 0, at the other end in 1 and 2, back in 3
    share = torch.minimum((sector + part).clamp(max=1), (3 - sector + (1 - part)).clamp(0, 1))
    kept = _fused(-saturation, share, 1.0)
    return torch.where(turn < 0, pixels, _whole(value * kept))


def _blurred(pixels: Tensor, sigma: Tensor, radius: Tensor) -> Tensor:
    """A Gaussian window, border reflected; a deviation of 0 is none."""
    crops, height, width = pixels.shape[0] * pixels.shape[1], *pixels.shape[-2:]
    offsets = torch.arange(-RADIUS, RADIUS + 1, device=pixels.device)
    window = torch.exp(-((offsets / sigma.clamp_min(1e-3)) ** 2) / 2) * (offsets.abs() <= radius)
    window = (window / window.sum(-1, keepdim=True)).expand(-1, -1, 3, -1, -1).reshape(crops * 3, 1, 1, -1)
    padded = pad(pixels.reshape(crops, 3, height, width), (RADIUS,) * 4, mode="reflect")
    planes = padded.reshape(1, crops * 3, height + 2 * RADIUS, width + 2 * RADIUS)
    across = conv2d(planes, window, groups=crops * 3)
    return _whole(conv2d(across, window.transpose(-1, -2), groups=crops * 3).reshape(pixels.shape))


def _whole(levels: Tensor) -> Tensor:
    return levels.round().clamp(0, 255)
