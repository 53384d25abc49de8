"""Diagnostics against closed forms and loops, and the verdict on healthy and on three kinds of collapsed networks."""

import math

import pytest
import torch
from torch import Tensor

from allocations import Allocations
from dinoswap.metric import diagnostics as d


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def healthy_targets(rows: int = 256, prototypes: int = 64) -> Tensor:
    return (torch.randn(rows, prototypes, generator=generator()) * 3).softmax(1)


def healthy_features(count: int = 200, dimensions: int = 48) -> Tensor:
    return torch.randn(count, dimensions, generator=generator())


def test_entropy_in_closed_form() -> None:
    rows = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    torch.testing.assert_close(d.entropy(rows), torch.tensor([math.log(4), 0.0, math.log(2)]))


@pytest.mark.parametrize(("prototypes", "known"), [(4096, 8.317765), (65536, 11.090354), (131072, 11.783502)])
def test_uniform_targets_give_the_numbers_that_users_meet(prototypes: int, known: float) -> None:
    values = d.target_diagnostics(torch.full((3, prototypes), 1 / prototypes))
    assert values["target_entropy"] == pytest.approx(known, abs=1e-5)
    assert values["target_entropy_max"] == pytest.approx(known, abs=1e-5)


def test_target_diagnostics_match_the_loops() -> None:
    targets = healthy_targets(20, 6).double()
    log_q = torch.randn(20, 6, generator=generator(1)).double().log_softmax(1)
    values = d.target_diagnostics(targets, log_q)
    p = targets.tolist()
    mean = [sum(row[k] for row in p) / 20 for k in range(6)]
    row_entropy = sum(-x * math.log(x) for row in p for x in row) / 20
    to_mean = sum(x * math.log(x / mean[k]) for row in p for k, x in enumerate(row)) / 20
    kl = sum(x * (math.log(x) - float(log_q[i, k])) for i, row in enumerate(p) for k, x in enumerate(row)) / 20
    assert values["target_entropy"] == pytest.approx(row_entropy, abs=1e-5)
    assert values["target_information"] == pytest.approx(to_mean, abs=1e-5)
    assert values["prototype_perplexity"] == pytest.approx(math.exp(-sum(m * math.log(m) for m in mean)), rel=1e-5)
    assert values["prototypes_used"] == pytest.approx(len({row.index(max(row)) for row in p}) / 6)
    assert values["teacher_student_kl"] == pytest.approx(kl, abs=1e-5)


def test_kl_of_a_distribution_to_itself_is_zero() -> None:
    targets = healthy_targets()
    assert d.kl_divergence(targets, targets.log()).abs().max() < 1e-5


def test_prototype_use_of_balanced_one_hot_targets() -> None:
    values = d.target_diagnostics(torch.eye(8)[:4].repeat(5, 1))
    assert values["prototypes_used"] == 0.5
    assert values["prototype_perplexity"] == pytest.approx(4)
    assert values["target_information"] == pytest.approx(math.log(4))


def test_no_rows_give_no_values() -> None:
    assert d.target_diagnostics(torch.empty(0, 16)) == {}


def test_blocks_of_rows_give_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without another tensor of the size of the targets."""
    targets, predicted = healthy_targets(64), healthy_targets(64).roll(1, 0).log()
    whole = d.target_diagnostics(targets, predicted)
    monkeypatch.setattr("dinoswap.nn.row_blocks.CPU_BLOCK", 5 * targets.shape[1])
    with Allocations() as allocations:
        assert d.target_diagnostics(targets, predicted) == pytest.approx(whole, rel=1e-6)
    assert not allocations.of_at_least(6 * targets.shape[1])


@pytest.mark.parametrize("rank", [1, 5, 32])
def test_rankme_of_orthogonal_directions_of_equal_length(rank: int) -> None:
    basis = torch.linalg.qr(torch.randn(32, 32, generator=generator())).Q[:rank]
    assert d.rankme(basis) == pytest.approx(rank, rel=1e-5)
    assert d.rankme(basis.repeat(3, 1)) == pytest.approx(rank, rel=1e-5)


def test_rankme_of_known_singular_values() -> None:
    """Values 3 and 1: shares 3/4 and 1/4."""
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert d.rankme(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(expected)


def test_mean_cosine_matches_the_loop() -> None:
    features = healthy_features(12, 5) + 0.5
    pairs = [
        float(torch.cosine_similarity(features[i], features[j], dim=0)) for i in range(12) for j in range(12) if i != j
    ]
    assert d.mean_cosine(features) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


def test_feature_std_of_isotropic_and_of_identical_features() -> None:
    assert d.feature_std(healthy_features(5000, 32)) == pytest.approx(1, abs=0.02)
    assert d.feature_std(torch.ones(10, 32) * torch.arange(1, 11)[:, None]) == pytest.approx(0, abs=1e-6)


def test_healthy_has_no_verdict() -> None:
    both = d.target_diagnostics(healthy_targets()) | d.feature_diagnostics(healthy_features())
    assert d.verdict(both) is None
    assert d.verdict({}) is None


def test_verdict_on_uniform_targets() -> None:
    targets = (torch.randn(128, 1024, generator=generator()) * 0.01).softmax(1)
    sentence = d.verdict(d.target_diagnostics(targets), "iBOT's targets")
    assert sentence is not None
    assert sentence.startswith("iBOT's targets are uniform: entropy 6.931 of ln K = 6.931 (K = 1024)")
    assert "lower teacher temperature" in sentence
    assert "more prototypes" in sentence


@pytest.mark.parametrize("sharpness", [1.0, 3.0, 100.0])
def test_verdict_on_constant_targets(sharpness: float) -> None:
    """The same answer for every image, from flat to one-hot: never mistaken for uniform."""
    one = torch.randn(1, 512, generator=generator()) * sharpness
    targets = (one + 0.01 * torch.randn(64, 512, generator=generator(1))).softmax(1)
    sentence = d.verdict(d.target_diagnostics(targets))
    assert sentence is not None
    assert sentence.startswith("teacher targets are constant")
    assert "higher teacher temperature" in sentence


def test_verdict_on_low_rank_features() -> None:
    features = healthy_features(300, 3) @ torch.randn(3, 256, generator=generator(1))
    sentence = d.verdict(d.target_diagnostics(healthy_targets()) | d.feature_diagnostics(features))
    assert sentence is not None
    assert sentence.startswith("features are collapsing: RankMe")
    assert "KoLeo" in sentence


def test_verdict_on_what_is_not_finite() -> None:
    nothing = torch.full((4, 8), float("nan"))
    for values in (d.target_diagnostics(nothing), d.feature_diagnostics(nothing)):
        sentence = d.verdict(values)
        assert sentence is not None
        assert "diverged" in sentence


def test_one_row_is_not_called_constant() -> None:
    assert d.verdict(d.target_diagnostics(healthy_targets(1))) is None


def test_two_images_are_needed() -> None:
    with pytest.raises(ValueError, match="at least two images"):
        d.feature_diagnostics(healthy_features(1))
