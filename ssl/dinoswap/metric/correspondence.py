"""The metric family `correspondence`: whether the patch tokens of two crops of one image find each other.

Two crops of an image overlap, and where each patch of the first lies in the second is known. A patch is found when the
most similar patch of the second crop, by cosine, lies within one patch of the right place. Neither labels nor training
are needed.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dinoswap.dense.base import Scene, SceneParts
from dinoswap.metric.base import DenseMetric, Score

if TYPE_CHECKING:
    from torch import Tensor

    from dinoswap.data.images import Images

NEAR_CHANCE = 1.2
"""Patch tokens are called collapsed when they find each other less often than so many times by chance."""


class Correspondence(DenseMetric):
    """Gives the per cent of patches that are found, in crops of the same colours and in crops whose second one has been
    changed in brightness, contrast, saturation and hue, and the per cent that random guesses would find."""

    supervised = False
    scores: ClassVar[Mapping[str, Score]] = {
        "correspondence": Score("higher", "%", "correspondence"),
        "correspondence_photometric": Score("higher", "%", "photometric"),
        "correspondence_chance": Score(),
    }

    def __init__(self, *, in_loop: bool, images: int, scale: tuple[float, float]) -> None:
        """`images` is the largest number of test images, or of training images where there are none. `scale` is the
        range of a crop's area as a share of the image's largest centred square; from a quarter on crops overlap."""
        super().__init__(in_loop=in_loop)
        if images < 1:
            raise ValueError(f"images={images}: must be at least 1")
        if not 0.25 <= scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale={list(scale)}: two shares of the image's area, from 0.25, as crops overlap, to 1")
        self.images, self.scale = images, scale

    def scenes(self, train: "Images", test: "Images | None", size: int, patch: int) -> SceneParts:
        from dinoswap.metric.view_pairs import ViewPairs

        return SceneParts(None, ViewPairs(train if test is None else test, self.images, size, self.scale))

    def judge(self, fitted: Any, tokens: "Tensor", truth: Sequence[NDArray[Any]]) -> "Tensor":
        from dinoswap.metric.view_pairs import match_counts

        return match_counts(tokens, np.stack(truth))

    def values(self, counts: "Tensor") -> Mapping[str, float]:
        same, changed, chance, patches = counts.tolist()
        numbers = {"": same, "_photometric": changed, "_chance": chance}
        return {f"correspondence{name}": 100 * number / patches for name, number in numbers.items() if patches}

    def verdict(self, values: Mapping[str, float]) -> str | None:
        share, chance = values.get("correspondence"), values.get("correspondence_chance")
        if share is None or chance is None or share >= NEAR_CHANCE * chance:
            return None
        return (
            f"patch tokens are collapsing: those of two crops of an image find each other in {share:.1f} % of cases, "
            f"by chance in {chance:.1f} %; try a larger weight of the patch losses or a lower learning rate"
        )

    def pictures(self, fitted: Any, tokens: "Tensor", scenes: Sequence[Scene]) -> Mapping[str, NDArray[np.uint8]]:
        from dinoswap.metric.view_pairs import matches_figure

        return {"correspondence": matches_figure(tokens, scenes)}
