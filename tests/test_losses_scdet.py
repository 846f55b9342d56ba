"""scDET's losses and its sampling against slow transcriptions of the paper's equations."""

import math

import pytest
import torch
from scdet_equations import ce, dot, log_share, softmax

from sctool import losses

PI = torch.tensor([0.55, 0.25, 0.15, 0.05])


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def unit(n: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, 5), dim=1)


def proba(n: int) -> torch.Tensor:
    return torch.randn(n, 4).mul(2).softmax(1)


# -- contrastive learning ------------------------------------------------------------------------

VIEWS = [0, 1, 2, 3, 0, 1, 2, 3]  # two views of four cells
LABELS = [0, 0, 0, 1, 1, 2, 0, 3]  # the types 2 and 3 have no pair


def pairs(code: list[int]) -> torch.Tensor:
    return torch.tensor(code)[:, None] == torch.tensor(code)


@pytest.mark.parametrize("tau", [0.2, 1.0])
@pytest.mark.parametrize("code", [VIEWS, LABELS], ids=["unsupervised", "supervised"])
def test_contrastive_against_a_loop_whatever_the_diagonal(code, tau):
    v = unit(8)
    rows, anchors = v.tolist(), []
    for i in range(8):
        positive = [j for j in range(8) if j != i and code[j] == code[i]]
        if positive:  # eq. 1 is 0 / 0 otherwise: the mean is over those that have a positive
            anchors.append(-sum(log_share(rows, rows, i, j, tau) for j in positive) / len(positive))
    expected = pytest.approx(sum(anchors) / len(anchors), rel=1e-5)
    assert losses.contrastive(v, pairs(code), tau).item() == expected
    assert losses.contrastive(v, pairs(code).fill_diagonal_(False), tau).item() == expected


def test_a_cell_without_positives_still_repels_the_others():
    v, expected = torch.eye(5)[[0, 0, 1]], math.log(1 + math.exp(-1 / 0.5))  # 0 of the pair alone
    assert losses.contrastive(v, pairs([0, 0, 1]), 0.5).item() == pytest.approx(expected, rel=1e-5)


def test_temperatures_tend_to_the_nearest_cell_and_to_any_cell():
    v = torch.eye(5)[VIEWS]
    assert losses.contrastive(v, pairs(VIEWS), 0.02).item() == pytest.approx(0, abs=1e-6)
    assert losses.contrastive(v, pairs(VIEWS), 1e5).item() == pytest.approx(math.log(7), abs=1e-4)


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_soft_contrastive_against_a_loop(tau):
    v, u, p = unit(6), unit(6), proba(6)
    vs, us, ps, total = v.tolist(), u.tolist(), p.tolist(), 0.0
    for i in range(6):
        w = {j: dot(ps[i], ps[j]) for j in range(6) if j != i}
        total -= sum(w[j] * log_share(vs, us, i, j, tau) for j in w) / sum(w.values())
    assert losses.soft_contrastive(v, u, p, tau).item() == pytest.approx(total / 6, rel=1e-5)


def test_soft_contrastive_of_certain_types_is_the_hard_one_and_of_unknown_takes_all_alike():
    v = unit(8)
    soft = losses.soft_contrastive(v, v, torch.eye(4)[LABELS], 0.5)
    torch.testing.assert_close(soft, losses.contrastive(v, pairs(LABELS), 0.5))
    soft = losses.soft_contrastive(v, v, torch.full((8, 4), 0.25), 0.5)
    torch.testing.assert_close(soft, losses.contrastive(v, pairs([0] * 8), 0.5))


@pytest.mark.parametrize("n", [0, 1, 2, 3])
@pytest.mark.parametrize("alike", [False, True])
def test_few_cells_give_a_finite_loss_and_gradient(n, alike):
    v = unit(n).requires_grad_()
    hard = losses.contrastive(v, torch.ones(n, n).bool() if alike else torch.eye(n).bool(), 0.5)
    soft = losses.soft_contrastive(v, unit(n), proba(n) if alike else torch.eye(4)[:n], 0.5)
    for loss in (hard, soft):
        (gradient,) = torch.autograd.grad(loss, v, retain_graph=True)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        # Otherwise there is no positive, or no third cell to tell it from.
        assert (loss.item() > 0.1) == (gradient.abs().sum().item() > 0.01) == (alike and n == 3)


# -- classification ------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", losses.SIMILARITIES)
def test_prototype_similarity_against_a_loop(similarity):
    h, mu, expected = torch.randn(6, 5) * 3, torch.randn(4, 5) / 3, []
    for a in h.tolist():
        lengths = [math.sqrt(dot(a, a) * dot(b, b)) for b in mu.tolist()]
        by = lengths if similarity == "cosine" else [1] * 4
        compared = [dot(a, b) / length for b, length in zip(mu.tolist(), by, strict=True)]
        expected.append(softmax(compared, 0.3))
    p = (losses.prototype_similarity(h, mu, similarity) / 0.3).softmax(1)
    torch.testing.assert_close(p, torch.tensor(expected))
    nowhere = losses.prototype_similarity(torch.zeros(1, 5), mu, similarity)
    assert (nowhere == 0).all()  # no direction: no type


def test_only_the_cosine_is_blind_to_lengths_and_both_agree_at_unit_length():
    h, mu = torch.randn(6, 5), torch.randn(4, 5)
    cosine, inner = (losses.prototype_similarity(h, mu, name) for name in losses.SIMILARITIES)
    longer = [losses.prototype_similarity(7 * h, mu / 2, name) for name in losses.SIMILARITIES]
    torch.testing.assert_close(longer[0], cosine)
    torch.testing.assert_close(longer[1], 3.5 * inner)
    opposite = losses.prototype_similarity(-7 * mu, mu, "cosine").diagonal()
    torch.testing.assert_close(opposite, -torch.ones(4))
    h, mu = unit(6), unit(4)
    both = [losses.prototype_similarity(h, mu, name) for name in losses.SIMILARITIES]
    torch.testing.assert_close(*both)


def test_two_views_cross_entropy_against_a_loop():
    a, b, y = torch.randn(6, 4), torch.randn(6, 4), proba(6)
    total = 0.0
    for row, other, target in zip(a.tolist(), b.tolist(), y.tolist(), strict=True):
        total += ce(target, softmax(row)) + ce(target, softmax(other))
    assert losses.two_views_cross_entropy(a, b, y).item() == pytest.approx(total / 12, rel=1e-5)


def test_swapped_cross_entropy_and_its_gradient_against_a_loop():
    tau, sharp = 0.7, 0.2
    a, b = (torch.rand(6, 4).mul(2).sub(1).requires_grad_() for _ in range(2))
    total, gradient, gradient_other = 0.0, [], []
    for row, other in zip(a.tolist(), b.tolist(), strict=True):
        p, q = softmax(row, tau), softmax(row, sharp)
        p2, q2 = softmax(other, tau), softmax(other, sharp)
        total += ce(q2, p) + ce(q, p2)
        # That of cross entropy with fixed targets: they let nothing through.
        gradient.append([(s - t) / tau / 12 for s, t in zip(p, q2, strict=True)])
        gradient_other.append([(s - t) / tau / 12 for s, t in zip(p2, q, strict=True)])
    loss = losses.swapped_cross_entropy(a, b, tau, sharp)
    loss.backward()
    assert loss.item() == pytest.approx(total / 12, rel=1e-5)
    torch.testing.assert_close(a.grad, torch.tensor(gradient))
    torch.testing.assert_close(b.grad, torch.tensor(gradient_other))


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_distribution_divergence_against_a_loop_and_0_at_equality(rho):
    powers = [v**rho for v in PI.tolist()]
    smooth = [v / sum(powers) for v in powers]  # uniform at 0, the estimate itself at 1
    mean = proba(9).mean(0)
    expected = sum(m * math.log(m / s) for m, s in zip(mean.tolist(), smooth, strict=True))
    value = losses.distribution_divergence(mean, PI, rho)
    assert value.item() == pytest.approx(expected, rel=1e-4)
    value = losses.distribution_divergence(torch.tensor(smooth), PI, rho)
    assert value.item() == pytest.approx(0, abs=1e-6)
    value = losses.distribution_divergence(torch.tensor([1.0, 0, 0, 0]), PI, rho)
    assert value.item() == pytest.approx(-math.log(smooth[0]), rel=1e-5)


def test_a_type_never_predicted_leaves_the_gradient_finite():
    similarity = torch.tensor([[1.0, 0.9, 0.8, -1.0]], requires_grad=True)
    mean = (similarity / 0.01).softmax(1).mean(0)
    assert mean[3] == 0  # as such a low temperature makes it
    losses.distribution_divergence(mean, PI, 0.5).backward()
    assert torch.isfinite(similarity.grad).all()


# -- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_rectify_against_a_loop(gamma):
    logits, bias = torch.randn(6, 4), [gamma * math.log(v) for v in PI.tolist()]
    expected = [softmax([v - b for v, b in zip(r, bias, strict=True)]) for r in logits.tolist()]
    p = losses.rectify(logits, PI, gamma)
    torch.testing.assert_close(p, torch.tensor(expected))
    assert (gamma == 0) == p.allclose(logits.softmax(1))
    # Logits that know nothing but the distribution are left without preference.
    torch.testing.assert_close(losses.rectify(gamma * PI.log()[None], PI, gamma)[0], PI * 0 + 0.25)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.2), (0.0, 1.0), (1.0, 0.0)])
def test_sampling_rate_against_a_loop(alpha, beta):
    exponents = [alpha, beta, alpha, beta]
    expected = [(v / min(PI.tolist())) ** -e for v, e in zip(PI.tolist(), exponents, strict=True)]
    rate = losses.sampling_rate(PI, torch.tensor([True, False, True, False]), alpha, beta)
    torch.testing.assert_close(rate, torch.tensor(expected))


def used(n: list[int], exponent: float) -> list[int]:
    """How many pseudo-labels of each type are used of a minibatch with ``n`` of each."""
    code = torch.arange(len(n)).repeat_interleave(torch.tensor(n))[torch.randperm(sum(n))]
    p = (torch.eye(len(n))[code] * 5 + torch.rand(sum(n), len(n))).softmax(1)
    in_batch = torch.arange(len(n)) < 2
    rate = losses.sampling_rate(torch.tensor(n) / sum(n), in_batch, exponent, exponent)
    return torch.bincount(code[losses.most_confident(p, rate)], minlength=len(n)).tolist()


def test_exponents_of_0_use_all_and_of_1_as_many_of_every_type():
    assert used([32, 16, 8, 4], 0.0) == [32, 16, 8, 4]
    assert used([32, 16, 8, 4], 0.5) == [12, 8, 6, 4]  # 11.3 and 5.7 are rounded up
    assert used([32, 16, 8, 4], 1.0) == [4] * 4
    assert used([9, 2, 3], 1.0) == [2] * 3  # though 9 times the rate is a little over 2


def test_an_exponent_of_1_uses_as_many_of_every_type_of_a_large_minibatch():
    assert used([73, 66, 40, 84, 46], 1.0) == [40] * 5


def test_most_confident_against_a_loop_in_any_order_of_cells():
    p, rate = proba(60), [0.9, 0.55, 0.3, 1.0]
    rows, expected = p.tolist(), []
    for c in range(4):
        cells = [i for i in range(60) if max(rows[i]) == rows[i][c]]
        cells.sort(key=lambda i: -max(rows[i]))
        expected += cells[: math.ceil(rate[c] * len(cells))]
    assert losses.most_confident(p, torch.tensor(rate)).tolist() == sorted(expected)
    order = torch.randperm(60)
    again = losses.most_confident(p[order], torch.tensor(rate))
    assert sorted(order[again].tolist()) == sorted(expected)


def test_most_confident_prefers_the_surest_within_each_type_and_rounds_up():
    # Any of the first type is surer than all of the third; no cell is of the second.
    p = [[0.8, 0.1, 0.1], [0.3, 0.3, 0.4], [0.9, 0, 0.1], [0.7, 0, 0.3], [0.2, 0.25, 0.55]]
    p, rate = torch.tensor(p), torch.tensor([0.5, 1.0, 0.01])
    assert losses.most_confident(p, rate).tolist() == [0, 2, 4]
    assert losses.most_confident(p, torch.ones(3)).tolist() == [0, 1, 2, 3, 4]


def test_most_confident_counts_ties_once_and_takes_no_or_one_cell():
    assert len(losses.most_confident(torch.full((10, 4), 0.25), torch.full((4,), 0.45))) == 5
    assert losses.most_confident(torch.zeros(0, 4), torch.ones(4)).tolist() == []
    assert losses.most_confident(proba(1), torch.full((4,), 0.1)).tolist() == [0]
