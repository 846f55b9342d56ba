"""The contrastive components' losses against slow transcriptions of eqs. 5 and 6."""

import math

import pytest
import torch

from sctool import losses

LABELS = [0, 0, 0, 1, 1, 2, 0, 3]  # the types 2 and 3 have a single cell
N_TYPES = 5  # and type 4 has none


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def circles(n: int = len(LABELS), n_types: int = N_TYPES) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(n, n_types, 2), dim=2)


def at(angle: torch.Tensor) -> torch.Tensor:
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def dot(a: list[float], b: list[float]) -> float:
    return sum(s * t for s, t in zip(a, b, strict=True))


def info_nce(v: list, label: list, tau: float) -> float | None:
    """Eq. 5, its sum over anchors divided by their number."""
    terms = []
    for i in range(len(v)):
        others = [a for a in range(len(v)) if a != i]
        positives = [p for p in others if label[p] == label[i]]
        if not positives:
            continue
        total = sum(math.exp(dot(v[i], v[a]) / tau) for a in others)
        logs = [math.log(math.exp(dot(v[i], v[p]) / tau) / total) for p in positives]
        terms.append(-sum(logs) / len(positives))
    return sum(terms) / len(terms)


def own_circle(v: list, label: list, k: int, tau: float) -> tuple[float, float]:
    """Sum over the anchors of circle k of their weighted losses, and of their weights."""
    own = [value == k for value in label]
    size = {side: own.count(side) for side in (True, False)}
    total = weights = 0.0
    if not size[True]:
        return total, weights
    for i in range(len(v)):
        others = [a for a in range(len(v)) if a != i]
        positives = [p for p in others if own[p] == own[i]]
        if not positives:
            continue
        below = sum(math.exp(dot(v[i], v[a]) / tau) / size[own[a]] for a in others)
        logs = [math.log(math.exp(dot(v[i], v[p]) / tau) / below) for p in positives]
        total -= sum(logs) / len(positives) / size[own[i]]
        weights += 1 / size[own[i]]
    return total, weights


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_eq_5_against_a_loop(tau):
    z = torch.nn.functional.normalize(torch.randn(len(LABELS), 4), dim=1)
    expected = info_nce(z.tolist(), LABELS, tau)
    assert losses.info_nce(z, torch.tensor(LABELS), tau).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_eq_6_as_printed_against_a_loop(tau):
    z = circles()
    each = [info_nce(z[:, k].tolist(), LABELS, tau) for k in range(N_TYPES)]
    result = losses.circles_info_nce(z, torch.tensor(LABELS), tau).item()
    assert result == pytest.approx(sum(each) / N_TYPES, rel=1e-5)


@pytest.mark.parametrize("tau", [0.1, 0.5, 2.0])
def test_our_reading_against_a_loop(tau):
    z = circles()
    each = [own_circle(z[:, k].tolist(), LABELS, k, tau) for k in range(N_TYPES)]
    expected = sum(total for total, _ in each) / sum(weight for _, weight in each)
    result = losses.own_circle_info_nce(z, torch.tensor(LABELS), tau).item()
    assert result == pytest.approx(expected, rel=1e-5)


def test_as_printed_no_circle_is_a_types_and_in_our_reading_it_is():
    z, label, order = circles(), torch.tensor(LABELS), torch.tensor([1, 0, 3, 4, 2])
    printed, own = losses.circles_info_nce, losses.own_circle_info_nce
    assert printed(z[:, order], label, 0.5).item() == pytest.approx(printed(z, label, 0.5).item())
    assert own(z[:, order], label, 0.5).item() != pytest.approx(own(z, label, 0.5).item())


def test_in_its_circle_a_rare_type_weighs_what_the_rest_does():
    # Two cells of type 0 lie among the 38 others: apart is better, however few they are, and as
    # much better as for twenty of forty.
    gain = []
    for n_own in (2, 20):
        label = torch.arange(40).ge(n_own).long()
        among = at(torch.zeros(40, 2))
        apart = at(torch.stack([label * math.pi, label * 0.0], dim=1))
        loss = losses.own_circle_info_nce
        gain.append((loss(among, label, 0.5) - loss(apart, label, 0.5)).item())
    assert gain[0] > 0.1
    assert gain[0] == pytest.approx(gain[1], rel=0.6)


LOSSES = {
    "eq-5": lambda z, label: losses.info_nce(z[:, 0], label, 0.5),
    "eq-6": lambda z, label: losses.circles_info_nce(z, label, 0.5),
    "ours": lambda z, label: losses.own_circle_info_nce(z, label, 0.5),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@every_loss
def test_types_at_opposite_ends_are_better_than_types_among_each_other(loss):
    label = torch.tensor([0, 0, 0, 1, 1, 1])
    apart = at(torch.stack([label * math.pi, label * math.pi], dim=1))
    among = at(torch.rand(6, 2) * 2 * math.pi)
    assert loss(apart, label) < loss(among, label)


@every_loss
@pytest.mark.parametrize("n", [0, 1])
def test_without_any_pair_it_is_0_and_its_gradient_too(loss, n):
    maps = torch.randn(n, 2, 2, requires_grad=True)
    total = loss(torch.nn.functional.normalize(maps, dim=2), torch.zeros(n, dtype=torch.long))
    total.backward()
    assert total.item() == 0
    assert torch.isfinite(maps.grad).all()


@pytest.mark.parametrize("name", ["eq-5", "eq-6"])
def test_anchors_without_a_positive_contribute_nothing(name):
    label = torch.tensor([0, 1, 2, 3])
    assert LOSSES[name](circles(4, 4), label).item() == 0


@every_loss
def test_the_gradient_is_finite_where_types_have_one_cell(loss):
    maps = torch.randn(len(LABELS), N_TYPES, 2, requires_grad=True)
    loss(torch.nn.functional.normalize(maps, dim=2), torch.tensor(LABELS)).backward()
    assert torch.isfinite(maps.grad).all()
    assert maps.grad.abs().sum() > 0
