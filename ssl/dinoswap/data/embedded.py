"""Provides the data set shipped in the package: texture tiles of thirteen photographs; the label of a tile is its
photograph.

Tiles are grey and each is scaled to the same mean and contrast, as is usual in texture recognition (Ojala et al. 2002,
on local binary patterns). Otherwise the shade of a tile would reveal its photograph, and views that differ in colour
and brightness would train the network to ignore what the label depends on. Tiles without contrast are left out, since
scaling them leaves noise. The right-hand part of each photograph is kept for testing, so that no pixel occurs in both
parts. Licences: data/files/NOTICE.
"""

import hashlib
from collections.abc import Sequence
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from dinoswap.data.images import Images, ImageSource, Pixels
from dinoswap.data.parquet import ParquetData

MEAN, CONTRAST = 128.0, 40.0  # of every tile, in 8-bit levels


class EmbeddedData(ImageSource):
    """Provides square tiles of side `tile`, every `stride` pixels in both directions, whose standard deviation is at
    least `min_contrast` 8-bit levels. The rightmost `test_fraction` of each photograph's width gives the test tiles.
    Raises ValueError for values out of range, and for tiles that are larger than a part of a photograph."""

    def __init__(self, *, tile: int, stride: int, test_fraction: float, min_contrast: float) -> None:
        if tile < 1 or stride < 1:
            raise ValueError(f"data.tile={tile}, data.stride={stride}: both are pixels, at least 1")
        if not 0 < test_fraction < 1:
            raise ValueError(f"data.test_fraction={test_fraction}: a share of each photograph, between 0 and 1")
        if not min_contrast > 0:
            raise ValueError(f"data.min_contrast={min_contrast}: must be above 0: a flat tile shows no texture")
        with as_file(_photos()) as path:
            images = ParquetData(path=str(path), image_column="image", label_column="label", memory_gb=1.0).train()
        photos = [_gray(images.load(row)) for row in range(len(images))]
        borders = [int(photo.shape[1] * (1 - test_fraction)) for photo in photos]
        left = [photo[:, :border] for photo, border in zip(photos, borders, strict=True)]
        right = [photo[:, border:] for photo, border in zip(photos, borders, strict=True)]
        smallest = min(min(part.shape) for part in left + right)
        if smallest < tile:
            raise ValueError(
                f"data.tile={tile}, data.test_fraction={test_fraction}: a part of a photograph is only {smallest} "
                "pixels wide: choose smaller tiles or another fraction"
            )
        self._train = TileImages(left, images.classes or (), tile, stride, min_contrast)
        self._test = TileImages(right, images.classes or (), tile, stride, min_contrast)

    def fingerprint(self) -> str:
        """Returns the hexadecimal digest of the shipped file. How tiles are cut from it is part of the
        configuration."""
        return hashlib.sha256(_photos().read_bytes()).hexdigest()

    def train(self) -> Images:
        return self._train

    def test(self) -> Images:
        return self._test


class TileImages(Images):
    """Holds the tiles of `photos` (uint8 [H, W]), in the order of photo, y, x."""

    def __init__(
        self, photos: Sequence[NDArray[np.uint8]], names: Sequence[str], tile: int, stride: int, min_contrast: float
    ) -> None:
        tiles, labels, places = [], [], []
        for label, photo in enumerate(photos):
            windows = sliding_window_view(photo, (tile, tile))[::stride, ::stride]  # [rows, columns, tile, tile]
            kept = windows.std((2, 3)) >= min_contrast
            tiles.append(_standardised(windows[kept]))
            labels.append(np.full(kept.sum(), label))
            places += [f"{names[label]}@{y * stride},{x * stride}" for y, x in np.argwhere(kept)]
        self.tiles = np.concatenate(tiles)  # uint8 [n, tile, tile]
        self.labels = np.concatenate(labels)
        self.places = places
        self.classes = names
        self.blocks = [len(places)]

    def __len__(self) -> int:
        return len(self.places)

    def load(self, row: int) -> Pixels:
        return np.repeat(self.tiles[row][..., None], 3, axis=2)  # [tile, tile] -> [tile, tile, 3]

    def name(self, row: int) -> str:
        return self.places[row]


def _photos() -> Traversable:
    return files("dinoswap.data") / "files" / "photos.parquet"


def _gray(photo: Pixels) -> NDArray[np.uint8]:
    """Converts uint8 [H, W, 3] to uint8 [H, W] (ITU-R 601 luma)."""
    return np.array(Image.fromarray(photo).convert("L"))


def _standardised(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns tiles, uint8 [n, tile, tile], none of them flat, scaled to the mean MEAN and the standard deviation
    CONTRAST; values outside 0..255 are clipped."""
    pixels = tiles.astype(np.float32)
    centred = pixels - pixels.mean((1, 2), keepdims=True)
    scaled = centred / pixels.std((1, 2), keepdims=True) * CONTRAST + MEAN
    standardised: NDArray[np.uint8] = scaled.round().clip(0, 255).astype(np.uint8)
    return standardised
