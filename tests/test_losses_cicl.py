"""CICL's losses, each against a slow transcription of the paper's equation."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sctool import losses

N, D, K = 7, 5, 3


@pytest.fixture
def views() -> tuple[Tensor, Tensor, Tensor]:
    """Return projections of two views of some cells, and the cells' clusters."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(N, D, generator=generator, dtype=torch.float64)
    other = z + torch.randn(N, D, generator=generator, dtype=torch.float64)
    return z, other, torch.tensor([0, 1, 2, 0, 1, 0, 1])


def sim(a: Tensor, b: Tensor) -> float:
    """Eq. 13."""
    return float(a @ b / (a.norm() * b.norm()))


# -- eq. 8 ---------------------------------------------------------------------------------------


def test_assignment_is_equation_8():
    rng = np.random.default_rng(0)
    h, c = torch.tensor(rng.normal(size=(N, D))), torch.tensor(rng.normal(size=(K, D)))
    alpha = 1
    expected = torch.zeros(N, K, dtype=torch.float64)
    for i in range(N):
        q = [
            (1 + float(((h[i] - c[j]) ** 2).sum()) / alpha) ** (-(alpha + 1) / 2) for j in range(K)
        ]
        expected[i] = torch.tensor([value / sum(q) for value in q], dtype=torch.float64)
    torch.testing.assert_close(losses.student_t(h, c), expected)


def test_a_cell_goes_to_the_nearest_centroid_and_is_sure_when_the_others_are_far():
    h = torch.zeros(1, D)
    c = torch.stack([torch.zeros(D), torch.full((D,), 1e4)])
    torch.testing.assert_close(
        losses.student_t(h, c), torch.tensor([[1.0, 0.0]]), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(losses.student_t(h, c[[0, 0]]), torch.full((1, 2), 0.5))


# -- eqs. 12-14 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 0.05])
def test_instance_contrast_is_equations_12_to_14(views, temperature):
    z, other, _ = views

    def of(anchor: Tensor, twin: Tensor, i: int) -> float:
        def e(a: Tensor, b: Tensor) -> float:
            return math.exp(sim(a, b) / temperature)

        below = sum(e(anchor[i], anchor[m]) for m in range(N) if m != i)
        below += sum(e(anchor[i], twin[m]) for m in range(N))
        return -math.log(e(anchor[i], twin[i]) / below)

    total = sum(of(z, other, i) + of(other, z, i) for i in range(N))
    value = losses.instance_contrast(z, other, temperature)
    assert float(value) == pytest.approx(total / (2 * N))


def test_instance_contrast_of_equal_cells_is_that_of_chance():
    z = torch.ones(N, D)
    value = losses.instance_contrast(z, 3 * z, 0.5)
    assert float(value) == pytest.approx(math.log(2 * N - 1), rel=1e-5)


def test_instance_contrast_falls_to_zero_when_only_twins_are_alike():
    z = torch.eye(N)
    assert float(losses.instance_contrast(z, z, 0.01)) == pytest.approx(0, abs=1e-6)


def test_one_cell_alone_costs_nothing():
    z = torch.ones(1, D)
    assert float(losses.instance_contrast(z, z, 0.5)) == pytest.approx(0, abs=1e-6)


# -- eqs. 15-16 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 0.05])
def test_cluster_contrast_is_equations_15_and_16(views, temperature):
    z, other, labels = views

    def of(anchor: Tensor, twin: Tensor, i: int) -> float:
        above = below = 0.0
        for j in range(N):
            across = math.exp(sim(anchor[i], twin[j]) / temperature)
            within = math.exp(sim(anchor[i], anchor[j]) / temperature)
            if labels[j] == labels[i]:
                above += across + (within if j != i else 0.0)
            else:
                below += across + within
        return -math.log(above / below)

    total = sum(of(z, other, i) + of(other, z, i) for i in range(N))
    value = losses.cluster_contrast(z, other, labels, temperature)
    assert float(value) == pytest.approx(total / (2 * N))


def test_cluster_contrast_compares_no_names(views):
    z, other, labels = views
    value = losses.cluster_contrast(z, other, labels, 0.5)
    renamed = losses.cluster_contrast(z, other, torch.tensor([7, 0, 3])[labels], 0.5)
    torch.testing.assert_close(renamed, value)


def test_cluster_contrast_is_lower_for_the_clusters_that_are_there():
    z = torch.eye(2).repeat_interleave(4, dim=0)
    right, wrong = torch.tensor([0] * 4 + [1] * 4), torch.tensor([0, 1] * 4)
    values = [float(losses.cluster_contrast(z, z, labels, 0.5)) for labels in (right, wrong)]
    assert values[0] == pytest.approx(math.log(8 / 7) - 2, rel=1e-5)
    assert values[1] > values[0] + 1


@pytest.mark.parametrize("n", [1, N])
def test_cluster_contrast_of_a_single_cluster_is_zero_with_a_gradient(n):
    z = torch.randn(n, D, requires_grad=True)
    value = losses.cluster_contrast(z, z, torch.zeros(n, dtype=torch.long), 0.5)
    assert float(value.detach()) == 0
    value.backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


def test_a_cluster_of_one_cell_has_its_other_view():
    z = torch.randn(N, D, requires_grad=True)
    labels = torch.tensor([0] * (N - 1) + [1])
    value = losses.cluster_contrast(z, z + 0.1, labels, 0.05)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("loss", ["instance", "cluster"])
def test_vanishing_projections_have_finite_gradients(loss):
    z = torch.zeros(4, D, requires_grad=True)
    if loss == "instance":
        value = losses.instance_contrast(z, z * 1, 0.5)
    else:
        value = losses.cluster_contrast(z, z * 1, torch.tensor([0, 0, 1, 1]), 0.5)
    value.backward()
    assert torch.isfinite(z.grad).all()
