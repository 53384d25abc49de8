"""The metric family `depth`: the depth of pixels, told from frozen patch tokens.

Two linear heads, a ridge regression and dinov2's mean over bins of depth, learn the mean depth of a patch. What they
say is interpolated to the resolution of the depth map and compared with it. Means are over the pixels of known depth of
all scenes together: a scene counts by the number of its pixels.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dinoswap.dense.base import Scene, SceneParts
from dinoswap.depth.base import DepthSource
from dinoswap.metric.base import DenseMetric, Score

if TYPE_CHECKING:
    from torch import Tensor

    from dinoswap.data.images import Images


class Depth(DenseMetric):
    """Gives for both heads the root of the mean squared error in metres, the mean of the error as a share of the true
    depth, and the per cent of pixels whose depth is right within a factor of 1.25."""

    supervised = False
    scores: ClassVar[Mapping[str, Score]] = {
        "depth_rmse": Score("lower", "m", "depth RMSE"),
        "depth_abs_rel": Score("lower"),
        "depth_delta1": Score("higher", "%"),
        "depth_bins_rmse": Score("lower", "m", "depth RMSE bins"),
        "depth_bins_abs_rel": Score("lower"),
        "depth_bins_delta1": Score("higher", "%"),
    }

    def __init__(self, *, in_loop: bool, patches: int, bins: int, depth: DepthSource) -> None:
        """`patches` is the largest number of training patches, drawn evenly from all scenes, `bins` the number of
        depths that the second head weights, and `depth` what images with depth maps are read from."""
        super().__init__(in_loop=in_loop)
        if patches < 100:
            raise ValueError(f"patches={patches}: must be at least 100")
        if bins < 2:
            raise ValueError(f"bins={bins}: must be at least 2")
        self.patches, self.bins, self.depth = patches, bins, depth
        self.per_scene = patches

    def scenes(self, train: "Images", test: "Images | None", size: int, patch: int) -> SceneParts | None:
        from dinoswap.metric.patches import at_most

        parts = self.depth.parts(train, test, size, patch)
        if parts is None:
            return None
        train_scenes = at_most(parts.train, self.patches)
        self.valid, self.per_scene = parts.valid, self.patches // len(train_scenes)
        return SceneParts(train_scenes, parts.test)

    def keep(self, tokens: "Tensor", truth: Sequence[NDArray[Any]], first: int) -> Mapping[str, "Tensor"]:
        from dinoswap.metric.patch_regression import patches_of_known_depth

        return patches_of_known_depth(tokens[:, 0], truth, self.per_scene, first)

    def fit(self, kept: Mapping[str, "Tensor"]) -> Any:
        from dinoswap.metric.patch_regression import PatchRegressors

        return PatchRegressors.fitted(kept["tokens"], kept["depths"], kept["scenes"], self.valid, self.bins)

    def judge(self, fitted: Any, tokens: "Tensor", truth: Sequence[NDArray[Any]]) -> "Tensor":
        from dinoswap.metric.patch_regression import errors

        return errors(fitted, tokens[:, 0], truth)

    def values(self, counts: "Tensor") -> Mapping[str, float]:
        values = {}
        for head, (squared, relative, within, pixels) in zip(("depth", "depth_bins"), counts.tolist(), strict=True):
            if pixels:
                values[f"{head}_rmse"] = (squared / pixels) ** 0.5
                values[f"{head}_abs_rel"] = relative / pixels
                values[f"{head}_delta1"] = 100 * within / pixels
        return values

    def pictures(self, fitted: Any, tokens: "Tensor", scenes: Sequence[Scene]) -> Mapping[str, NDArray[np.uint8]]:
        from dinoswap.metric.patch_regression import depth_figure

        return {"depth": depth_figure(fitted, tokens[:, 0], scenes)}
