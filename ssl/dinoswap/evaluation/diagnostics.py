"""Is the network collapsing, and how? Numbers from the teacher's targets and from frozen features, and a plain verdict.

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

UNIFORM = 0.995
"""Targets are called uniform from this share of ln K on. An untrained network may be there as well."""
CONSTANT = 0.005
"""Targets are called constant when they tell fewer than this share of the nats that they could."""
FEW_STEPS = 50
"""After so many there was hardly anything to learn: an untrained network looks collapsed, and there is no verdict."""
LOW_RANK = 0.02
"""Features are called collapsed below this share of the dimensions, or below 2 of them."""


def entropy(probabilities: Tensor) -> Tensor:
    """-sum_k p_k ln p_k of each row, in nats: [..., K] -> [...]."""
    terms: Tensor = torch.special.entr(probabilities.float())
    return terms.sum(-1)


def kl_divergence(p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of each row, in nats: probabilities p [..., K] and logarithms of q [..., K] -> [...]."""
    return -entropy(p) - (p.float() * log_q.float()).sum(-1)


def target_diagnostics(targets: Tensor, student_log_probabilities: Tensor | None = None) -> dict[str, float]:
    """Of teacher targets [R, K] (rows sum to 1), and the KL from them to the student's predictions of the same rows.

    The rows are those of all ranks, which call it together with R each. Without rows (nothing was masked) there is
    nothing to say, and the result is empty.
    """
    prototypes = targets.shape[1]
    rows = int(all_reduce_sum(torch.tensor(len(targets))))
    if rows == 0:
        return {}
    row = all_reduce_sum(entropy(targets).sum()) / rows
    mean = entropy(all_reduce_sum(targets.float().sum(0)) / rows)
    used = torch.zeros(prototypes).index_fill(0, targets.argmax(1).cpu(), 1)
    values = {
        "target_entropy": row,
        "target_entropy_max": torch.tensor(math.log(prototypes)),
        "target_information": mean - row,
        "target_information_max": torch.tensor(math.log(min(rows, prototypes))),
        "prototype_perplexity": mean.exp(),
        "prototypes_used": all_reduce_max(used).mean(),
    }
    if student_log_probabilities is not None:
        divergence = kl_divergence(targets, student_log_probabilities)
        values["teacher_student_kl"] = all_reduce_sum(divergence.sum()) / rows
    return {name: float(value) for name, value in values.items()}


def feature_std(features: Tensor) -> float:
    """Of features [n, D], n >= 2: 0 when all directions agree, 1 when they fill the sphere evenly."""
    return float(F.normalize(features.float(), dim=1).std(0, correction=0).mean()) * math.sqrt(features.shape[1])


def rankme(features: Tensor) -> float:
    """Effective number of dimensions of features [n, D], not centred, as in the paper. 0 when all are zero, nan when
    one is not finite."""
    if not features.isfinite().all():
        return math.nan
    singular = torch.linalg.svdvals(features.double())
    total = singular.sum()
    return float(torch.special.entr(singular / total).sum().exp()) if total > 0 else 0.0


def mean_cosine(features: Tensor) -> float:
    """Mean cosine over pairs of different rows of [n, D], n >= 2, from the length of the sum of unit rows."""
    unit = F.normalize(features.double(), dim=1)
    count = len(unit)
    return float((unit.sum(0).square().sum() - unit.square().sum()) / (count * (count - 1)))


def feature_diagnostics(features: Tensor) -> dict[str, float]:
    """Of features [n, D] of n >= 2 different images."""
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features={list(features.shape)}: needs [n, D] of at least two images")
    return {
        "feature_std": feature_std(features),
        "rankme": rankme(features),
        "rankme_max": float(min(features.shape)),
        "mean_cosine": mean_cosine(features),
    }


def verdict(diagnostics: Mapping[str, float], targets: str = "teacher targets") -> str | None:
    """A sentence on what is collapsing and what to try, or None while nothing is.

    `diagnostics`: the values of `target_diagnostics` or `feature_diagnostics`, or both together; `targets` names the
    first in the sentence. Trust it after the warm-up: an untrained network can look uniform.
    """
    broken = [name for name, value in diagnostics.items() if not math.isfinite(value)]
    if broken:
        return f"{', '.join(broken)} not finite: training has diverged; lower the learning rate, or use bf16 or fp32"
    found = _target_verdict(diagnostics, targets) if "target_entropy" in diagnostics else None
    return found or (_feature_verdict(diagnostics) if "rankme" in diagnostics else None)


def _target_verdict(d: Mapping[str, float], targets: str) -> str | None:
    row, top = d["target_entropy"], d["target_entropy_max"]
    if row > UNIFORM * top:
        return (
            f"{targets} are uniform: entropy {row:.3f} of ln K = {top:.3f} (K = {math.exp(top):.0f}), so nothing can "
            "be learnt from them; try a lower teacher temperature, a lower learning rate, more prototypes, or more "
            "images per batch"
        )
    if d["target_information"] < CONSTANT * d["target_information_max"]:
        return (
            f"{targets} are constant: every image gets the same one, of entropy {row:.3f} "
            f"({d['prototype_perplexity']:.1f} of {math.exp(top):.0f} prototypes in use); try Sinkhorn-Knopp instead "
            "of centering, a higher teacher temperature, or a lower learning rate"
        )
    return None


def _feature_verdict(d: Mapping[str, float]) -> str | None:
    if d["rankme_max"] <= 2 or d["rankme"] >= max(2.0, LOW_RANK * d["rankme_max"]):
        return None
    return (
        f"features are collapsing: RankMe {d['rankme']:.1f} of {d['rankme_max']:.0f} dimensions (mean cosine "
        f"{d['mean_cosine']:.3f}); try a larger KoLeo weight, a lower learning rate, or more images per batch"
    )
