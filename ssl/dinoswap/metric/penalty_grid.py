"""The linear probe of `logistic_regression` in torch: all penalties of the grid at once, on any device, by all ranks.

The minimised function is the same, divided by C and the number of images n: the mean cross-entropy plus
||W||^2 / (2 C n), of standardised features. The functions of the grid are added up and minimised together by L-BFGS:
features are read once for all penalties, block by block, and each rank reads a part of the images. As a strong penalty
curves its function far more than a weak one, the variables are weights over 1 / sqrt(1 / K + 1 / (C n)), of K classes,
by which each function is curved about equally.

scikit-learn ends at the first gradient below 1e-3, long before the minimum where the penalty is weak. Here minima are
reached to about 1e-4, so that the accuracies of weak penalties are other ones, and with them the penalty picked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dinoswap.distributed import all_reduce_sum, rank, world_size
from dinoswap.metric.logistic_regression import GRID, check_probe, held_out

STEPS, HISTORY = 500, 10
"""The largest number of steps of L-BFGS, and how many of them it remembers."""
EVALUATIONS = STEPS * 5 // 4
"""The largest number of evaluations of the function in so many steps; most fits need more than half of them."""
LEAST_GAIN = 1e-6
"""L-BFGS ends when a step lowers the sum over the grid by less."""
LOGITS = 2**26
"""Number of logits that are held at a time."""


@dataclass(frozen=True)
class Regressions:
    """Logistic regressions of the same features, one for each of G penalties."""

    weight: Tensor  # float32 [G, D + 1, K], of standardised features, and constants
    mean: Tensor  # float32 [D] of the features
    scale: Tensor  # [D]: what they are divided by, infinite for a constant one

    @classmethod
    def fitted(cls, features: Tensor, labels: Tensor, classes: int, grid: Sequence[float]) -> "Regressions":
        """Returns the regressions of all images, of which this rank has the features [n, D], on the device to compute
        on, and the labels [n], 0 to classes - 1; one for each inverse penalty of the grid."""
        count = all_reduce_sum(torch.tensor(len(features))).item()
        mean = (all_reduce_sum(features.sum(0, dtype=torch.float64)) / count).float()
        variance = all_reduce_sum((features - mean).square().sum(0, dtype=torch.float64)) / count
        scale = variance.sqrt().float()
        scale = torch.where(scale > 1e-6, scale, torch.inf)
        x = (features - mean).div_(scale)
        shape = len(grid), x.shape[1] + 1, classes
        inverse = torch.tensor(grid, device=x.device)
        strength = (1 / (inverse * count))[:, None, None].repeat(1, shape[1], 1)  # [G, D + 1, 1]
        strength[:, -1] = 0  # constants are free
        if classes == 2:
            strength *= 2  # scikit-learn has one vector w for two classes; these are w / 2 and -w / 2
        unit = (1 / classes + strength).rsqrt()
        variables = torch.zeros(shape, device=x.device, requires_grad=True)
        solver = torch.optim.LBFGS(
            [variables],
            max_iter=STEPS,
            max_eval=EVALUATIONS,
            history_size=HISTORY,
            tolerance_grad=0,
            tolerance_change=LEAST_GAIN,
            line_search_fn="strong_wolfe",
        )

        def total() -> Tensor:
            """Returns the sum of the functions and sets its gradient, the same on every rank."""
            weight = (variables * unit).detach().requires_grad_()
            weight.grad, loss = torch.zeros_like(weight), torch.zeros((), dtype=torch.float64, device=x.device)
            for rows, answers in _blocks(x, labels, shape):
                logits = rows @ weight[:, :-1] + weight[:, -1:]  # [n, D] x [G, D, K] -> [G, n, K]
                part = F.cross_entropy(logits.flatten(0, 1), answers.repeat(len(grid)), reduction="sum") / count
                part.backward()  # type: ignore[no-untyped-call]
                loss += part.detach()
            penalty = strength * weight.detach()
            variables.grad = (all_reduce_sum(weight.grad) + penalty) * unit
            return all_reduce_sum(loss) + (penalty * weight.detach()).sum(dtype=torch.float64) / 2

        with torch.enable_grad():
            solver.step(total)  # type: ignore[no-untyped-call]
        return cls((variables * unit).detach(), mean, scale)

    def right(self, features: Tensor, labels: Tensor) -> list[int]:
        """Returns how many images of all ranks each regression classifies correctly, [G]. This rank has their features
        [n, D] and labels [n], -1 for a class that was not trained on."""
        hits = torch.zeros(len(self.weight), dtype=torch.int64, device=features.device)
        for rows, answers in _blocks(features, labels, self.weight.shape):
            logits = (rows - self.mean) / self.scale @ self.weight[:, :-1] + self.weight[:, -1:]
            hits += (logits.argmax(2) == answers).sum(1)
        counts: list[int] = all_reduce_sum(hits).tolist()
        return counts


def _blocks(features: Tensor, labels: Tensor, shape: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields features and labels of as many images as have LOGITS logits under weights [G, D + 1, K]."""
    rows = max(LOGITS // (shape[0] * shape[2]), 1)
    return zip(torch.split(features, rows), torch.split(labels, rows), strict=True)


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    grid: Sequence[float] = GRID,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Returns what `logistic_regression.linear_probe` does, computed on `device`, and raises what that does. Ranks call
    it together with the same arguments; between numbers of ranks the sums differ by their rounding."""
    check_probe(train_features, train_labels, test_features, test_labels, grid)
    known, train_classes = torch.unique(train_labels, return_inverse=True)
    numbers = torch.full((int(max(known.max(), test_labels.max())) + 1,), -1)
    numbers[known] = torch.arange(len(known))

    def share(features: Tensor, classes: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Returns this rank's part of the rows that are `chosen`, bool [n]."""
        rows = chosen.nonzero()[:, 0].tensor_split(world_size())[rank()]
        return features[rows].float().to(device), classes[rows].to(device)

    grid, held = sorted(grid), torch.from_numpy(held_out(train_labels.numpy()))
    c = grid[len(grid) // 2]
    if held.any():
        candidates = Regressions.fitted(*share(train_features, train_classes, ~held), len(known), grid)
        right = candidates.right(*share(train_features, train_classes, held))
        c = grid[right.index(max(right))]
    chosen = Regressions.fitted(*share(train_features, train_classes, torch.ones_like(held)), len(known), [c])
    (correct,) = chosen.right(*share(test_features, numbers[test_labels], torch.ones(len(test_labels)).bool()))
    return {"top1": 100 * correct / len(test_labels), "c": c}
