"""How often the most similar patch of the same scene, by cosine, shows the same class: nothing is fitted."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dinoswap.dense.base import AnnotatedSource, SceneParts
from dinoswap.metric.base import DenseMetric, Score

if TYPE_CHECKING:
    from torch import Tensor

    from dinoswap.data.images import Images


class Twins(DenseMetric):
    """Gives the per cent of patches, of those most of whose pixels have a class, whose twin has the same one."""

    scores: ClassVar[Mapping[str, Score]] = {"twins": Score("higher", "%", "twins")}
    supervised = True

    def __init__(self, *, in_loop: bool, dense: AnnotatedSource) -> None:
        super().__init__(in_loop=in_loop)
        self.dense, self.classes = dense, 0

    def scenes(self, train: "Images", test: "Images | None", size: int, patch: int) -> SceneParts | None:
        parts = self.dense.parts(train, test, size, patch)
        if parts is None:
            return None
        self.classes = len(parts.classes)
        return SceneParts(None, parts.test)

    def judge(self, fitted: Any, tokens: "Tensor", truth: Sequence[NDArray[Any]]) -> "Tensor":
        import torch

        from dinoswap.metric.patch_classifiers import majority

        grid = tokens.shape[2], tokens.shape[3]
        shown = torch.from_numpy(np.stack([majority(pixels, grid, self.classes) for pixels in truth])).flatten(1)
        unit = torch.nn.functional.normalize(tokens[:, 0].flatten(1, 2), dim=-1)  # [n, N, D]
        others = (unit @ unit.mT).masked_fill(torch.eye(unit.shape[1], dtype=torch.bool), -2)
        same = shown.gather(1, others.argmax(-1)) == shown
        known = shown >= 0
        return torch.stack([same[known].double().sum(), known.double().sum()])

    def values(self, counts: "Tensor") -> Mapping[str, float]:
        return {"twins": float(100 * counts[0] / counts[1])}
