"""The data set shipped in the package: tiles of thirteen photographs; the label of a tile is its photograph.

Recognising a tile is texture recognition, as with the tiles of a slide in pathology. The right-hand part of each
photograph is kept for testing, so that no pixel occurs in both parts. Licences: data/files/NOTICE.
"""

from collections.abc import Sequence
from importlib.resources import as_file, files

import numpy as np

from dinoswap.data.images import Images, ImageSource, Pixels
from dinoswap.data.parquet import ParquetData


class EmbeddedData(ImageSource):
    """Square tiles of side `tile`, every `stride` pixels in both directions.

    The rightmost `test_fraction` of each photograph's width gives the test tiles.
    """

    def __init__(self, tile: int = 32, stride: int = 16, test_fraction: float = 0.25) -> None:
        if tile < 1 or stride < 1:
            raise ValueError(f"data.tile={tile}, data.stride={stride}: both are pixels, at least 1")
        if not 0 < test_fraction < 1:
            raise ValueError(f"data.test_fraction={test_fraction}: a share of each photograph, between 0 and 1")
        with as_file(files("dinoswap.data") / "files" / "photos.parquet") as path:
            images = ParquetData(str(path)).train()
        photos = [images.load(row) for row in range(len(images))]
        borders = [int(photo.shape[1] * (1 - test_fraction)) for photo in photos]
        left = [photo[:, :border] for photo, border in zip(photos, borders, strict=True)]
        right = [photo[:, border:] for photo, border in zip(photos, borders, strict=True)]
        smallest = min(min(part.shape[:2]) for part in left + right)
        if smallest < tile:
            raise ValueError(
                f"data.tile={tile}, data.test_fraction={test_fraction}: a part of a photograph is only {smallest} "
                "pixels wide: choose smaller tiles or another fraction"
            )
        self._train = TileImages(left, images.classes or (), tile, stride)
        self._test = TileImages(right, images.classes or (), tile, stride)

    def train(self) -> Images:
        return self._train

    def test(self) -> Images:
        return self._test


class TileImages(Images):
    """The tiles of `photos` (uint8 [H, W, 3]), cut when asked for. Row order: photo, y, x."""

    def __init__(self, photos: Sequence[Pixels], names: Sequence[str], tile: int, stride: int) -> None:
        corners = [
            (label, y, x)
            for label, photo in enumerate(photos)
            for y in range(0, photo.shape[0] - tile + 1, stride)
            for x in range(0, photo.shape[1] - tile + 1, stride)
        ]
        self.photos = photos
        self.tile = tile
        self.corners = np.array(corners, dtype=np.int64)  # [rows, 3]
        self.labels = self.corners[:, 0]
        self.classes = names
        self.blocks = [len(corners)]

    def __len__(self) -> int:
        return len(self.corners)

    def load(self, row: int) -> Pixels:
        photo, y, x = self.corners[row].tolist()
        return np.array(self.photos[photo][y : y + self.tile, x : x + self.tile])

    def name(self, row: int) -> str:
        photo, y, x = self.corners[row].tolist()
        return f"{self.classes[photo]}@{y},{x}"
