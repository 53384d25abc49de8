"""Linear classifiers of frozen features, one for each learning rate and input, trained together by SGD.

Momentum is 0.9, there is no weight decay, the learning rates fall to 0 by a cosine, weights begin at deviations of 0.01
and constants at 0, as in facebookresearch/dinov2 @ 05c66df. The classifiers of one input are one tensor, whose gradient
is that of the sum of their losses, each times its learning rate: so one step with the rate of the cosine is a step of
each with its own. Here the classifiers of an input begin with the same weights and see the same batches.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dinoswap import rng
from dinoswap.distributed import gathered, rank, together, world_size
from dinoswap.metric.base import Part
from dinoswap.metric.neighbours import check_labelled

MOMENTUM, DEVIATION = 0.9, 0.01
RATE_OF = 256
"""The learning rates of the grid are those of a batch of so many images."""
ROWS = 4096
"""Number of test images that are classified at a time."""


def accuracies(
    train: Part, test: Part, learning_rates: Sequence[float], epochs: int, batch_size: int
) -> dict[tuple[float, int], float]:
    """Returns the per cent of test images that each classifier gets right, by its learning rate and the number of kinds
    of features that it reads, the first of them or all; those that read fewer come first, and of them those of small
    rates.

    Ranks call it together with the same arguments and train a part of the rates each, on all images, so that no sum
    goes over ranks. Raises ValueError for features or labels that `check_labelled` refuses.
    """
    for name, part in (("train", train), ("test", test)):
        for features in part.features.values():
            check_labelled(features, part.labels, name)
    rates = sorted(learning_rates)

    def of_this_rank() -> dict[tuple[float, int], float]:
        """Returns the accuracies of this rank's learning rates."""
        own = rates[rank() :: world_size()]
        if not own:
            return {}
        train_features, test_features = (
            [values.float().to(test.device) for values in part.features.values()] for part in (train, test)
        )
        top1s: dict[tuple[float, int], float] = {}
        for kinds, classifiers in trained(train_features, train.labels, own, epochs, batch_size).items():
            hits = right(classifiers, torch.cat(test_features[:kinds], dim=1), test.labels)
            top1s |= {(rate, kinds): 100 * count / len(test.labels) for rate, count in zip(own, hits, strict=True)}
        return top1s

    top1s = {key: top1 for part in gathered(together(of_this_rank)) for key, top1 in part.items()}
    return dict(sorted(top1s.items(), key=lambda entry: entry[0][::-1]))


def trained(
    features: Sequence[Tensor], labels: Tensor, learning_rates: Sequence[float], epochs: int, batch_size: int
) -> Mapping[int, Tensor]:
    """Returns classifiers [L, D + 1, K], weights and constants, of L learning rates by the number of kinds of features
    that they read, 1 and all: features [n, D] of each kind, on the device to compute on, labels [n]. A batch is no
    larger than n."""
    device, size = features[0].device, min(batch_size, len(labels))
    rates = torch.tensor(learning_rates, device=device) * (size / RATE_OF)
    answers, classes = labels.long().to(device), int(labels.max()) + 1
    grids = {
        kinds: initial(sum(part.shape[1] for part in features[:kinds]), classes, len(rates)).to(device).requires_grad_()
        for kinds in dict.fromkeys((1, len(features)))
    }
    optimizer = torch.optim.SGD([*grids.values()], lr=1.0, momentum=MOMENTUM)
    order = batches(len(labels), size, epochs)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order))
    with torch.enable_grad():
        for rows in order.to(device):
            parts, batch_labels = [part[rows] for part in features], answers[rows].repeat(len(rates))
            total = torch.zeros((), device=device)
            for kinds, classifiers in grids.items():
                logits = scores(classifiers, torch.cat(parts[:kinds], dim=1)).flatten(0, 1)
                losses = F.cross_entropy(logits, batch_labels, reduction="none").view(len(rates), size).mean(1)
                total = total + (rates * losses).sum()
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            cosine.step()
    return {kinds: classifiers.detach() for kinds, classifiers in grids.items()}


def initial(width: int, classes: int, count: int) -> Tensor:
    """Returns the classifiers that `count` learning rates begin with, [count, width + 1, classes]."""
    weight = torch.zeros(width + 1, classes)
    weight[:-1].normal_(std=DEVIATION, generator=rng.torch_generator(0, "evaluation/linear_sgd", width))
    return weight.repeat(count, 1, 1)


def batches(images: int, size: int, epochs: int) -> Tensor:
    """Returns the rows of each batch, int64 [steps, size]: every epoch has all images once, in another order, and what
    is left at the end is left out."""
    orders = [rng.numpy_generator(0, "evaluation/sgd_order", epoch).permutation(images) for epoch in range(epochs)]
    rows = torch.from_numpy(np.concatenate(orders))
    return rows[: len(rows) // size * size].view(-1, size)


def scores(classifiers: Tensor, inputs: Tensor) -> Tensor:
    """Returns the logits of classifiers [L, D + 1, K] for inputs [n, D]: [L, n, K]."""
    return inputs @ classifiers[:, :-1] + classifiers[:, -1:]


def right(classifiers: Tensor, inputs: Tensor, labels: Tensor) -> list[int]:
    """Returns how many inputs [n, D] each of L classifiers gives their label [n]."""
    hits = torch.zeros(len(classifiers), dtype=torch.int64, device=inputs.device)
    for rows, answers in zip(torch.split(inputs, ROWS), torch.split(labels.to(inputs.device), ROWS), strict=True):
        hits += (scores(classifiers, rows).argmax(2) == answers).sum(1)
    counts: list[int] = hits.tolist()
    return counts
