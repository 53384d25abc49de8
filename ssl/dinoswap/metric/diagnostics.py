"""Diagnostics of collapse, computed from the teacher's targets and from frozen features, and a verdict in a sentence.

Targets p_r over K prototypes, r = 1..R, with mean m (entropies in nats):
  * target_entropy          mean_r H(p_r): near ln K when uniform, near 0 when one-hot
  * target_information      H(m) - mean_r H(p_r) = mean_r KL(p_r || m): 0 when every row has the same target
  * prototype_perplexity    exp H(m), how many prototypes share the mass; prototypes_used counts the argmaxes, / K
Features z_i of n images in D dimensions:
  * feature_std             deviation per dimension of z / |z|, mean over dimensions, times sqrt(D): 1 when isotropic
  * rankme                  exp of the entropy of the singular values (Garrido et al. 2023): 1 .. min(n, D)
  * mean_cosine             over all pairs of different images
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from dinoswap.distributed import all_reduce_max, all_reduce_sum
from dinoswap.nn.row_blocks import row_blocks

UNIFORM = 0.995
"""Targets are called uniform when their entropy exceeds this share of ln K, as that of an untrained network may."""
CONSTANT = 0.005
"""Targets are called constant when their information is below this share of its maximum."""
FEW_STEPS = 50
"""No verdict is given after so many steps or fewer, as a network that is hardly trained looks collapsed."""
LOW_RANK = 0.02
"""Features are called collapsed when RankMe is below this share of the dimensions, or below 2."""


def entropy(probabilities: Tensor) -> Tensor:
    """Returns -sum_k p_k ln p_k of each row, in nats: float32 [..., K] -> [...]. Terms are computed in blocks of
    rows."""
    entropies = probabilities.new_empty(probabilities.shape[:-1], dtype=torch.float32)
    for rows in row_blocks(probabilities):
        entropies[rows] = torch.special.entr(probabilities[rows].float()).sum(-1)
    return entropies


def kl_divergence(p: Tensor, log_q: Tensor) -> Tensor:
    """Returns KL(p || q) of each row, in nats: probabilities p [..., K] and logarithms of q [..., K] -> [...]."""
    crossed = p.new_empty(p.shape[:-1], dtype=torch.float32)
    for rows in row_blocks(p):
        crossed[rows] = (p[rows].float() * log_q[rows].float()).sum(-1)
    return -entropy(p) - crossed


def target_diagnostics(targets: Tensor, student_log_probabilities: Tensor | None = None) -> dict[str, float]:
    """Returns the diagnostics of teacher targets [R, K] (rows sum to 1), and the KL divergence from them to the
    student's predictions of the same rows, where they are given.

    All ranks call it together, each with its own R rows, and get the values for the rows of all. The result is empty
    where there are no rows, because nothing was masked.
    """
    prototypes = targets.shape[1]
    rows = int(all_reduce_sum(torch.tensor(len(targets))))
    if rows == 0:
        return {}
    row_entropy = all_reduce_sum(entropy(targets).sum()) / rows
    mean_entropy = entropy(all_reduce_sum(targets.sum(0, dtype=torch.float32)) / rows)
    is_used = torch.zeros(prototypes).index_fill(0, targets.argmax(1).cpu(), 1)
    values = {
        "target_entropy": row_entropy,
        "target_entropy_max": torch.tensor(math.log(prototypes)),
        "target_information": mean_entropy - row_entropy,
        "target_information_max": torch.tensor(math.log(min(rows, prototypes))),
        "prototype_perplexity": mean_entropy.exp(),
        "prototypes_used": all_reduce_max(is_used).mean(),
    }
    if student_log_probabilities is not None:
        divergence = kl_divergence(targets, student_log_probabilities)
        values["teacher_student_kl"] = all_reduce_sum(divergence.sum()) / rows
    return {name: float(value) for name, value in values.items()}


def feature_std(features: Tensor) -> float:
    """Returns the deviation of the directions of features [n, D], n >= 2: 0 when all agree, 1 when they fill the sphere
    evenly."""
    return float(F.normalize(features.float(), dim=1).std(0, correction=0).mean()) * math.sqrt(features.shape[1])


def rankme(features: Tensor) -> float:
    """Returns the effective number of dimensions of features [n, D], not centred, as in the paper. 0 when all are zero,
    nan when one is not finite."""
    if not features.isfinite().all():
        return math.nan
    singular = torch.linalg.svdvals(features.double())
    total = singular.sum()
    return float(torch.special.entr(singular / total).sum().exp()) if total > 0 else 0.0


def mean_cosine(features: Tensor) -> float:
    """Returns the mean cosine over pairs of different rows of [n, D], n >= 2, computed from the length of the sum of
    unit rows."""
    unit = F.normalize(features.double(), dim=1)
    count = len(unit)
    return float((unit.sum(0).square().sum() - unit.square().sum()) / (count * (count - 1)))


def feature_diagnostics(features: Tensor) -> dict[str, float]:
    """Returns feature_std, rankme, its maximum, and mean_cosine of features [n, D] of n >= 2 different images. Raises
    ValueError for another shape."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features={list(features.shape)}: needs [n, D] of at least two images")
    return {
        "feature_std": feature_std(features),
        "rankme": rankme(features),
        "rankme_max": float(min(features.shape)),
        "mean_cosine": mean_cosine(features),
    }


def verdict(diagnostics: Mapping[str, float], targets: str = "teacher targets") -> str | None:
    """Returns a sentence on what is collapsing and what to try, or None where nothing is.

    `diagnostics`: the values of `target_diagnostics` or `feature_diagnostics`, or both together; `targets` names the
    first in the sentence. Trust it after the warm-up: an untrained network can look uniform.
    """
    broken = [name for name, value in diagnostics.items() if not math.isfinite(value)]
    if broken:
        return f"{', '.join(broken)} not finite: training has diverged; lower the learning rate, or use bf16 or fp32"
    target_warning = _target_verdict(diagnostics, targets) if "target_entropy" in diagnostics else None
    return target_warning or (_feature_verdict(diagnostics) if "rankme" in diagnostics else None)


def _target_verdict(diagnostics: Mapping[str, float], targets: str) -> str | None:
    """Returns a sentence where teacher targets are uniform or constant, else None. `targets` names them."""
    level, maximum = diagnostics["target_entropy"], diagnostics["target_entropy_max"]
    prototypes = math.exp(maximum)
    if level > UNIFORM * maximum:
        return (
            f"{targets} are uniform: entropy {level:.3f} of ln K = {maximum:.3f} (K = {prototypes:.0f}), so nothing "
            "can be learnt from them; try a lower teacher temperature, a lower learning rate, more prototypes, or more "
            "images per batch"
        )
    if diagnostics["target_information"] < CONSTANT * diagnostics["target_information_max"]:
        return (
            f"{targets} are constant: every image gets the same one, of entropy {level:.3f} "
            f"({diagnostics['prototype_perplexity']:.1f} of {prototypes:.0f} prototypes in use); try Sinkhorn-Knopp "
            "instead of centering, a higher teacher temperature, or a lower learning rate"
        )
    return None


def _feature_verdict(diagnostics: Mapping[str, float]) -> str | None:
    """Returns a sentence where features span few dimensions, else None."""
    dimensions, maximum = diagnostics["rankme"], diagnostics["rankme_max"]
    if maximum <= 2 or dimensions >= max(2.0, LOW_RANK * maximum):
        return None
    return (
        f"features are collapsing: RankMe {dimensions:.1f} of {maximum:.0f} dimensions (mean cosine "
        f"{diagnostics['mean_cosine']:.3f}); try a larger KoLeo weight, a lower learning rate, or more images per batch"
    )
