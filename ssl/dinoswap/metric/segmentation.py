"""The metric family `segmentation`: the classes of pixels, told from frozen patch tokens.

Two classifiers of patches, a logistic regression and weighted k-nearest neighbours, learn the class that most pixels of
a patch have. Their scores per class are interpolated to the resolution of the annotation, and the largest decides.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dinoswap.dense.base import AnnotatedSource, Scene, SceneParts
from dinoswap.metric.base import DenseMetric, Score

if TYPE_CHECKING:
    from torch import Tensor

    from dinoswap.data.images import Images


class Segmentation(DenseMetric):
    """Gives the mean over classes of intersection over union, the share of pixels whose class is right, both for both
    classifiers, and the regression's IoU of each class, all in per cent."""

    supervised = True
    scores: ClassVar[Mapping[str, Score]] = {
        "seg_miou": Score("higher", "%", "mIoU linear"),
        "seg_accuracy": Score("higher", "%"),
        "seg_knn_miou": Score("higher", "%", "mIoU k-NN"),
        "seg_knn_accuracy": Score("higher", "%"),
        "seg_iou": Score(unit="%"),
    }

    def __init__(self, *, in_loop: bool, patches: int, dense: AnnotatedSource) -> None:
        """`patches` is the largest number of training patches, drawn evenly from all scenes, and `dense` what annotated
        images are read from."""
        super().__init__(in_loop=in_loop)
        if patches < 100:
            raise ValueError(f"patches={patches}: must be at least 100")
        self.patches, self.dense = patches, dense
        self.classes: Sequence[str] = ()
        self.per_scene = patches

    def scenes(self, train: "Images", test: "Images | None", size: int, patch: int) -> SceneParts | None:
        from dinoswap.metric.patches import at_most

        parts = self.dense.parts(train, test, size, patch)
        if parts is None:
            return None
        train_scenes = at_most(parts.train, self.patches)
        self.classes, self.per_scene = parts.classes, self.patches // len(train_scenes)
        return SceneParts(train_scenes, parts.test)

    def keep(self, tokens: "Tensor", truth: Sequence[NDArray[Any]], first: int) -> Mapping[str, "Tensor"]:
        from dinoswap.metric.patch_classifiers import labelled_patches

        return labelled_patches(tokens[:, 0], truth, len(self.classes), self.per_scene, first)

    def fit(self, kept: Mapping[str, "Tensor"]) -> Any:
        from dinoswap.metric.patch_classifiers import PatchClassifiers

        return PatchClassifiers.fitted(kept["tokens"], kept["labels"], kept["scenes"], len(self.classes))

    def judge(self, fitted: Any, tokens: "Tensor", truth: Sequence[NDArray[Any]]) -> "Tensor":
        from dinoswap.metric.patch_classifiers import confusions

        return confusions(fitted, tokens[:, 0], truth)

    def values(self, counts: "Tensor") -> Mapping[str, float]:
        from dinoswap.metric.patch_classifiers import intersection_over_union

        linear, neighbours = counts.numpy()
        iou = intersection_over_union(linear)
        values = {"seg_miou": float(np.nanmean(iou)), "seg_accuracy": 100 * float(np.trace(linear) / linear.sum())}
        values |= {"seg_knn_miou": float(np.nanmean(intersection_over_union(neighbours)))}
        values |= {"seg_knn_accuracy": 100 * float(np.trace(neighbours) / neighbours.sum())}
        known = zip(self.classes, iou.tolist(), strict=True)
        return values | {f"seg_iou/{name}": value for name, value in known if value == value}

    def pictures(self, fitted: Any, tokens: "Tensor", scenes: Sequence[Scene]) -> Mapping[str, NDArray[np.uint8]]:
        from dinoswap.metric.patch_classifiers import segmentation_figure

        return {"segmentation": segmentation_figure(fitted, tokens[:, 0], scenes)}
