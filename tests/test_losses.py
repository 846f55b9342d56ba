"""The losses and the network's parts against slow transcriptions of the paper's equations."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from synthetic import TYPES

from sctool.losses import mixup, sharpen, sigmoid_ramp, soft_cross_entropy, squared_error
from sctool.model import SCNYM
from sctool.model import _scnym as scnym
from sctool.model._scnym import SCNYMModule
from sctool.nn import mlp, reverse_gradient

N_GENES, N_TYPES = 12, len(TYPES)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def proba(n: int) -> torch.Tensor:
    return torch.randn(n, N_TYPES).mul(2).softmax(1)


def softmax(row: list[float]) -> list[float]:
    e = [math.exp(v) for v in row]
    return [v / sum(e) for v in e]


# -- sharpening ----------------------------------------------------------------------------------


def test_sharpen_squares_and_renormalises():
    p = proba(5)
    expected = []
    for row in p.tolist():
        squares = [v**2 for v in row]
        expected.append([v / sum(squares) for v in squares])
    torch.testing.assert_close(sharpen(p, 0.5), torch.tensor(expected))


def test_sharpen_leaves_everything_as_it_is_at_temperature_1():
    p = proba(5)
    torch.testing.assert_close(sharpen(p, 1.0), p)


def test_sharpen_tends_to_one_hot_at_temperature_0():
    p = torch.tensor([[0.3, 0.4, 0.2, 0.1]])
    torch.testing.assert_close(sharpen(p, 0.01), torch.tensor([[0.0, 1.0, 0.0, 0.0]]))


def test_sharpen_stays_finite_where_other_types_are_ruled_out():
    p = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(sharpen(p), p)


# -- MixUp ---------------------------------------------------------------------------------------


def test_mixup_is_a_weighted_mean_with_one_partner_for_cell_and_label(monkeypatch):
    x, y = torch.randn(50, N_GENES), proba(50)
    partner, lam = torch.randperm(50), torch.rand(50, 1)
    monkeypatch.setattr(torch, "randperm", lambda n, device=None: partner)
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: lam)
    xm, ym = mixup(x, y, 0.3)
    for i in range(50):
        weight = max(lam[i].item(), 1 - lam[i].item())
        other = int(partner[i])
        torch.testing.assert_close(xm[i], weight * x[i] + (1 - weight) * x[other])
        torch.testing.assert_close(ym[i], weight * y[i] + (1 - weight) * y[other])


def test_mixup_keeps_the_dominant_cell_in_its_row():
    x = torch.eye(200)  # the row of the mixture is then its weights
    xm, ym = mixup(x, x, 0.3)
    assert (xm.diagonal() >= 0.5 - 1e-6).all()
    assert (xm.argmax(1) == torch.arange(200)).float().mean() > 0.99
    torch.testing.assert_close(xm, ym)
    torch.testing.assert_close(xm.sum(1), torch.ones(200))
    assert ((xm > 0).sum(1) <= 2).all()
    assert ((xm > 1e-3).sum(1) == 2).float().mean() > 0.3  # most do have a partner
    assert len({round(v, 6) for v in xm.diagonal().tolist()}) > 100  # a weight for each cell


def test_mixup_draws_from_a_symmetric_beta():
    x = torch.eye(4000)
    for alpha in (0.3, 2.0):
        weight = mixup(x, x, alpha)[0].diagonal().double()
        b = torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha)).sample((400_000,))
        expected = torch.maximum(b, 1 - b).double()
        assert weight.mean().item() == pytest.approx(expected.mean().item(), abs=0.01)
        assert weight.std().item() == pytest.approx(expected.std().item(), abs=0.01)


def test_mixup_of_one_cell_is_the_cell():
    x, y = torch.randn(1, N_GENES), proba(1)
    xm, ym = mixup(x, y, 0.3)
    torch.testing.assert_close(xm, x)
    torch.testing.assert_close(ym, y)


# -- errors --------------------------------------------------------------------------------------


def test_soft_cross_entropy_against_a_loop():
    logits, target = torch.randn(7, N_TYPES), proba(7)
    total = 0.0
    for row, wanted in zip(logits.tolist(), target.tolist(), strict=True):
        total -= sum(q * math.log(p) for q, p in zip(wanted, softmax(row), strict=True))
    assert soft_cross_entropy(logits, target).item() == pytest.approx(total / 7, rel=1e-5)


def test_soft_cross_entropy_of_hard_labels_is_pytorchs():
    logits, label = torch.randn(7, N_TYPES), torch.arange(7) % N_TYPES
    hard = torch.nn.functional.one_hot(label, N_TYPES).float()
    expected = torch.nn.functional.cross_entropy(logits, label)
    torch.testing.assert_close(soft_cross_entropy(logits, hard), expected)


@pytest.mark.parametrize("n", [None, 20], ids=["mean", "of-20"])
def test_squared_error_against_a_loop(n):
    logits, target = torch.randn(7, N_TYPES), proba(7)
    total = 0.0
    for row, wanted in zip(logits.tolist(), target.tolist(), strict=True):
        total += sum((q - p) ** 2 for q, p in zip(wanted, softmax(row), strict=True))
    assert squared_error(logits, target, n).item() == pytest.approx(total / (n or 7), rel=1e-5)


@pytest.mark.parametrize("loss", [soft_cross_entropy, squared_error])
def test_no_cells_cost_nothing_and_have_a_gradient(loss):
    logits = torch.randn(0, N_TYPES, requires_grad=True)
    value = loss(logits, proba(0))
    value.backward()
    assert value.item() == 0
    assert logits.grad.shape == (0, N_TYPES)


# -- ramps ---------------------------------------------------------------------------------------


def test_the_ramp_rises_from_almost_0_to_1_and_stays():
    values = [sigmoid_ramp(step, 100) for step in range(0, 201)]
    assert values[0] == pytest.approx(math.exp(-5))
    assert all(a < b for a, b in pairwise(values[:101]))
    assert values[100:] == [1.0] * 101
    assert values[50] == pytest.approx(math.exp(-5 * 0.25))


@pytest.mark.parametrize("length", [0, -1])
def test_without_a_ramp_the_weight_is_whole_at_once(length):
    assert sigmoid_ramp(0, length) == 1.0


# -- gradient reversal and the network -----------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_reversal_is_the_identity_with_a_negative_gradient(weight):
    x = torch.randn(5, 3, requires_grad=True)
    y = reverse_gradient(x, weight)
    assert torch.equal(y, x)
    factor = torch.randn(5, 3)
    (y * factor).sum().backward()
    torch.testing.assert_close(x.grad, -weight * factor)


def test_every_hidden_layer_has_weights_of_its_own():
    network = mlp(N_GENES, 8, 3, 0.5)
    kinds = [type(layer).__name__ for layer in network]
    assert kinds == ["Linear", "BatchNorm1d", "Dropout", "ReLU"] * 3
    assert [tuple(m.weight.shape) for m in network[::4]] == [(8, N_GENES), (8, 8), (8, 8)]
    assert len({id(layer) for layer in network}) == 12
    assert len({p.data_ptr() for p in network.parameters()}) == 12


# -- scNym's objective ---------------------------------------------------------------------------


def make_module(**changes) -> SCNYMModule:
    """A small module without dropout."""
    settings = SCNYM._resolve("paper", {"dropout": 0.0, "n_hidden": 8, "n_layers": 1} | changes)
    return SCNYMModule(N_GENES, N_TYPES, 2, settings)


def make_batch(n: int = 6, n_u: int = 4) -> dict:
    """A labelled minibatch of domain 0, and an unlabelled one of domain 1."""

    def part(n: int, domain: int) -> dict:
        return {
            "x": torch.rand(n, N_GENES) * 3,
            "label": torch.arange(n) % N_TYPES if domain == 0 else torch.full((n,), -1),
            "domain": torch.full((n,), domain),
        }

    batch = {"labelled": part(n, 0)}
    return batch | ({"unlabelled": part(n_u, 1)} if n_u else {})


def dense(x: list[float], layer: torch.nn.Linear) -> list[float]:
    weight, bias = layer.weight.tolist(), layer.bias.tolist()
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(weight, bias, strict=True)
    ]


def encode(cells: list[list[float]], module: SCNYMModule, train: bool) -> list[list[float]]:
    """One hidden layer: Linear, BatchNorm over these cells (or its running values), ReLU."""
    linear, norm = module.encoder[0], module.encoder[1]
    hidden = [dense(x, linear) for x in cells]
    out = [[0.0] * len(hidden[0]) for _ in cells]
    for j in range(len(hidden[0])):
        column = [h[j] for h in hidden]
        if train:
            mean = sum(column) / len(column)
            variance = sum((v - mean) ** 2 for v in column) / len(column)
        else:
            mean, variance = norm.running_mean[j].item(), norm.running_var[j].item()
        for i, v in enumerate(column):
            z = (v - mean) / math.sqrt(variance + norm.eps)
            out[i][j] = max(0.0, z * norm.weight[j].item() + norm.bias[j].item())
    return out


def slow_loss(module, batch, lam, partner, ssl_weight) -> dict[str, float]:
    """Algorithm 1 of the paper for one minibatch, one number at a time."""
    s = module.settings
    x, u = batch["labelled"]["x"].tolist(), batch["unlabelled"]["x"].tolist()
    labels = batch["labelled"]["label"].tolist()
    y = [[float(k == label) for k in range(N_TYPES)] for label in labels]
    # pseudo-labels z = f(u), sharpened; those below the confidence are dropped
    used, z = [], []
    for cell, hidden in zip(u, encode(u, module, train=False), strict=True):
        p = softmax(dense(hidden, module.head))
        if max(p) >= s.confidence:
            powers = [v ** (1 / s.temperature) for v in p]
            z.append([v / sum(powers) for v in powers])
            used.append(cell)
    # MixUp over the concatenation, each cell with the larger weight in its own row
    w, q = x + used, y + z
    wm, qm = [], []
    for i in range(len(w)):
        weight, k = max(lam[i], 1 - lam[i]), partner[i]
        wm.append([weight * a + (1 - weight) * b for a, b in zip(w[i], w[k], strict=True)])
        qm.append([weight * a + (1 - weight) * b for a, b in zip(q[i], q[k], strict=True)])
    p = [softmax(dense(h, module.head)) for h in encode(wm, module, train=True)]
    n = len(x)
    supervised = ssl = 0.0
    for i in range(n):
        supervised -= sum(a * math.log(b) for a, b in zip(qm[i], p[i], strict=True)) / n
    for i in range(n, len(w)):
        ssl += sum((a - b) ** 2 for a, b in zip(qm[i], p[i], strict=True)) / len(u)
    # the adversary sees the cells that were not mixed
    adversary = 0.0
    domains = [0] * n + [1] * len(used)
    for hidden, domain in zip(encode(w, module, train=True), domains, strict=True):
        first = [max(0.0, v) for v in dense(hidden, module.adversary[0])]
        adversary -= math.log(softmax(dense(first, module.adversary[2]))[domain]) / len(w)
    return {
        "supervised": supervised,
        "unlabelled": ssl,
        "adversary": adversary,
        "total": supervised + ssl_weight * ssl + adversary,
    }


@pytest.mark.parametrize("confidence", [0.0, 0.35], ids=["every-cell", "confident-cells"])
@pytest.mark.parametrize("ssl_weight", [0.0, 0.3, 1.0])
def test_the_objective_against_a_loop(confidence, ssl_weight, monkeypatch):
    module, batch = make_module(confidence=confidence), make_batch(6, 8)
    with torch.no_grad():
        module.encoder[1].running_mean.normal_()
        module.encoder[1].running_var.uniform_(0.5, 2)
        module.encoder[1].weight.uniform_(0.5, 2)
    _, confident = module.pseudo_labels(batch["unlabelled"]["x"])
    n = 6 + int(confident.sum())
    assert n == 14 if confidence == 0 else 6 < n < 14
    partner, lam = torch.randperm(n), torch.rand(n, 1)
    monkeypatch.setattr(torch, "randperm", lambda n, device=None: partner)
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: lam)
    expected = slow_loss(module, batch, lam.ravel().tolist(), partner.tolist(), ssl_weight)
    total, terms = module.loss(batch, ssl_weight, 0.1)
    assert set(terms) == {"supervised", "unlabelled", "adversary"}
    for name, value in {**terms, "total": total}.items():
        assert value.item() == pytest.approx(expected[name], rel=1e-4), name


def gradients(module: SCNYMModule, *loss_arguments) -> dict[str, torch.Tensor]:
    """The gradient of every parameter, from the same draws and BatchNorm values each time."""
    state = copy.deepcopy(module.state_dict())
    module.zero_grad()
    torch.manual_seed(7)
    module.loss(*loss_arguments)[0].backward()
    module.load_state_dict(state)
    return {k: None if p.grad is None else p.grad.clone() for k, p in module.named_parameters()}


def test_pseudo_labels_are_made_without_dropout_and_leave_the_mode():
    module = make_module(dropout=0.9).train()
    u = make_batch()["unlabelled"]["x"]
    before = {k: v.clone() for k, v in module.state_dict().items()}
    first, _ = module.pseudo_labels(u)
    assert torch.equal(first, module.pseudo_labels(u)[0])
    assert module.training
    assert module.encoder[2].training
    assert not first.requires_grad
    for name, value in module.state_dict().items():  # running values of BatchNorm included
        assert torch.equal(value, before[name])


def test_no_cell_is_confident_enough_to_reach_1(monkeypatch):
    # ... and the objective is that of the labelled cells alone
    batch = make_batch()
    module = make_module(confidence=1.0)
    torch.manual_seed(3)
    total, terms = module.loss(batch, 1.0, 0.1)
    torch.manual_seed(3)
    alone, _ = module.loss({"labelled": batch["labelled"]}, 1.0, 0.1)
    assert terms["unlabelled"].item() == 0
    assert "adversary" not in terms
    torch.testing.assert_close(total, alone)


def test_without_weight_and_adversary_it_is_supervised_mixup():
    batch = make_batch(n_u=0)
    module = make_module(adversary=False)
    torch.manual_seed(3)
    total, _ = module.loss(batch, 0.0, 0.0)
    torch.manual_seed(3)
    x, label = batch["labelled"]["x"], batch["labelled"]["label"]
    xm, ym = mixup(x, torch.eye(N_TYPES)[label], module.settings.alpha)
    torch.testing.assert_close(total, soft_cross_entropy(module(xm)[0], ym))


def test_the_ssl_weight_scales_its_term_alone():
    module, batch = make_module(), make_batch()
    totals, state = [], copy.deepcopy(module.state_dict())
    for weight in (0.0, 0.5, 1.0):
        torch.manual_seed(3)
        total, terms = module.loss(batch, weight, 0.1)
        module.load_state_dict(state)
        totals.append(total.item())
    assert totals[0] == pytest.approx((terms["supervised"] + terms["adversary"]).item(), rel=1e-5)
    assert totals[2] - totals[0] == pytest.approx(terms["unlabelled"].item(), rel=1e-4)
    assert totals[1] - totals[0] == pytest.approx(terms["unlabelled"].item() / 2, rel=1e-4)


def test_without_mixmatch_and_adversary_it_is_plain_cross_entropy():
    module, batch = make_module(mixmatch=False, adversary=False), make_batch()
    total, terms = module.loss(batch, 1.0, 0.1)
    logits, _ = module(batch["labelled"]["x"])
    expected = torch.nn.functional.cross_entropy(logits, batch["labelled"]["label"])
    torch.testing.assert_close(total, expected)
    assert set(terms) == {"supervised"}


def test_an_adversary_without_weight_learns_but_does_not_teach():
    batch = make_batch()
    module = make_module()
    with_it = gradients(module, batch, 1.0, 0.0)
    module.settings = SCNYM._resolve("paper", {"adversary": False})
    without = gradients(module, batch, 1.0, 0.0)
    for name, gradient in without.items():
        if name.startswith("adversary"):
            assert gradient is None
            assert with_it[name].abs().sum() > 0
        else:
            torch.testing.assert_close(with_it[name], gradient)


def test_the_adversarys_gradient_reaches_the_encoder_reversed_and_weighted():
    # the head is not concerned, the encoder descends on -w times the adversary's loss, and the
    # adversary itself learns at full speed whatever the weight
    module, batch = make_module(), make_batch()
    reference, small, large = (gradients(module, batch, 1.0, w) for w in (0.0, 0.1, 0.2))
    x = torch.cat([batch[side]["x"] for side in ("labelled", "unlabelled")])
    domain = torch.cat([batch[side]["domain"] for side in ("labelled", "unlabelled")])
    module.zero_grad()
    loss = torch.nn.functional.cross_entropy(module.adversary(module.encoder(x)), domain)
    loss.backward()
    plain = {k: p.grad for k, p in module.named_parameters()}
    for name in reference:
        if name.startswith("encoder"):
            for weight, gradient in ((0.1, small), (0.2, large)):
                torch.testing.assert_close(
                    gradient[name] - reference[name], -weight * plain[name], rtol=1e-3, atol=1e-6
                )
        elif name.startswith("adversary"):
            torch.testing.assert_close(small[name], large[name])
            torch.testing.assert_close(small[name], plain[name])
        else:
            torch.testing.assert_close(small[name], reference[name])


def test_the_pseudo_labels_themselves_are_not_learnt():
    # if they were, the gradient would change with their graph; here they are constants
    module, batch = make_module(adversary=False), make_batch()
    expected = gradients(module, batch, 1.0, 0.0)
    z, confident = module.pseudo_labels(batch["unlabelled"]["x"])
    module.pseudo_labels = lambda u: (z.clone(), confident)
    for name, gradient in gradients(module, batch, 1.0, 0.0).items():
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize("step", [0, 10, 200, 400])
def test_both_weights_follow_their_ramps(step, monkeypatch):
    module = make_module(ssl_weight=2.0)
    plan = scnym.SCNYMPlan(module, module.settings, total_steps=400)
    monkeypatch.setattr(scnym.SCNYMPlan, "global_step", step)
    monkeypatch.setattr(plan, "log_losses", lambda *args: None)
    seen = []
    monkeypatch.setattr(
        module, "loss", lambda batch, ssl, adv: seen.append((ssl, adv)) or (torch.zeros(()), {})
    )
    plan.training_step(make_batch(), 0)
    # over 100 of 400 epochs to 1 (here 2), and over 20 to 0.1
    ssl = 2.0 * math.exp(-5 * max(0.0, 1 - step / 100) ** 2)
    adversary = 0.1 * math.exp(-5 * max(0.0, 1 - step / 20) ** 2)
    np.testing.assert_allclose(seen[0], (ssl, adversary), rtol=1e-6)
