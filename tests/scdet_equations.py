"""ScDET's equations, transcribed by loops over cells and numbers; and a small module to try."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sctool.model._scdet import SCDETModule, SCDETSettings


def dot(a: list[float], b: list[float]) -> float:
    return sum(s * t for s, t in zip(a, b, strict=True))


def softmax(row: list[float], tau: float = 1.0) -> list[float]:
    e = [math.exp(v / tau) for v in row]
    return [v / sum(e) for v in e]


def ce(target: list[float], p: list[float]) -> float:
    return -sum(t * math.log(v) for t, v in zip(target, p, strict=True))


def log_share(v: list, u: list, i: int, j: int, tau: float) -> float:
    others = sum(math.exp(dot(v[i], u[a]) / tau) for a in range(len(v)) if a != i)
    return math.log(math.exp(dot(v[i], u[j]) / tau) / others)


# -- a small module, and cells -------------------------------------------------------------------

N_SEEN, N_TYPES, N_GENES = 3, 5, 6
#: All different, so that no setting can stand for another.
SETTINGS = {
    "n_components": None,
    "n_hidden": (16, 8),
    "tau": 0.3,
    "tau_sharp": 0.15,
    "tau_contrast": 0.5,
    "rho": 0.7,
    "gamma": 0.6,
    "alpha": 0.9,
    "beta": 0.4,
    "classify_weight": 0.8,
    "contrast_weight": 1.3,
}
PI = [0.4, 0.25, 0.05, 0.2, 0.1]


def make_module(
    kind: type[SCDETModule] = SCDETModule, options: Any = SCDETSettings, **settings
) -> SCDETModule:
    """A module of any kind, with settings of its kind."""
    module = kind(N_GENES, N_TYPES, N_SEEN, options(**(SETTINGS | settings)))
    module.pi.copy_(torch.tensor(PI))
    module.mean.copy_(torch.rand(N_GENES))
    module.scale.copy_(torch.rand(N_GENES) + 0.5)
    return module.double()


def make_batch(n_unlabelled: int = 16) -> dict:
    """A minibatch of two of the known types, and of unlabelled cells that have names or none."""
    labelled = torch.tensor([0, 1, 0, 0, 1, 1])  # the third type is not in this minibatch
    names = torch.tensor([-1, 3, 0, -1, 4, 2, 1, 3] * 2)[:n_unlabelled]
    batch = {"labelled": {"x": torch.rand(6, N_GENES).double() * 2, "name": labelled}}
    if n_unlabelled:
        x = torch.rand(n_unlabelled, N_GENES).double() * 2
        batch["unlabelled"] = {"x": x, "name": names}
    return batch


def see(module: nn.Module, batch: dict, monkeypatch) -> list[torch.Tensor]:
    """Two views of a minibatch, and let the module see these."""
    n = sum(len(side["x"]) for side in batch.values())
    views = [torch.randn(n, N_GENES).double() for _ in range(2)]
    # prototypes among the cells, so that these are predicted to be of several types; long enough
    # that inner products, too, tell them apart
    h = module.hidden(module.encoder(views[0])).detach()
    module.prototypes.data[:] = 20 * (h[:N_TYPES] - h.mean(dim=0))
    coming = iter(views)
    monkeypatch.setattr(module, "view", lambda x: next(coming))
    return views


# -- the objective -------------------------------------------------------------------------------


def similarities(module: SCDETModule, z: torch.Tensor) -> list[list[float]]:
    """What eq. 2 divides by tau, of embedded cells, under the module's reading of it."""
    rows = []
    for h in module.hidden(z).tolist():
        rows.append([])
        for mu in module.prototypes.tolist():
            length = math.sqrt(dot(h, h)) * math.sqrt(dot(mu, mu))
            rows[-1].append(dot(h, mu) / (length if module.settings.similarity == "cosine" else 1))
    return rows


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def normalized(values: list[float]) -> list[float]:
    return [v / sum(values) for v in values]


def one_hot(code: int) -> list[float]:
    return [float(j == code) for j in range(N_TYPES)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def transcribed(module: SCDETModule, batch: dict, views: list, share: float) -> dict[str, float]:
    """Every term of eq. 11, by loops over cells, and their sum."""
    s, tau = module.settings, module.settings.tau
    prior, contrast_by = getattr(s, "prior", "estimated"), getattr(s, "contrast", "soft")
    x = torch.cat([side["x"] for side in batch.values()])
    name = torch.cat([side["name"] for side in batch.values()]).tolist()
    n, n_all = len(batch["labelled"]["x"]), len(x)
    labelled, unlabelled = range(n), range(n, n_all)
    types = range(N_TYPES)
    compared, v, error = [], [], []
    for view in views:
        z = module.encoder(view)
        compared.append(similarities(module, z))
        v.append([[a / math.sqrt(dot(w, w)) for a in w] for w in module.projector(z).tolist()])
        # a denoising auto-encoder: what is decoded from a view is held against the cells as are
        clean = ((x - module.mean) / module.scale).tolist()
        for row, out in zip(clean, module.decoder(z).tolist(), strict=True):
            error += [(a - b) ** 2 for a, b in zip(row, out, strict=True)]
    p = [[softmax(row, tau) for row in side] for side in compared]
    q = [[softmax(row, s.tau_sharp) for row in side] for side in compared]
    terms = {"reconstruction": mean(error)}

    # eqs. 3 and 4
    terms["labelled"] = mean([ce(one_hot(name[i]), side[i]) for side in p for i in labelled])
    classify = terms["labelled"]
    if unlabelled:
        swapped = [ce(q[1][i], p[0][i]) + ce(q[0][i], p[1][i]) for i in unlabelled]
        terms["unlabelled"] = mean(swapped) / 2
        classify += terms["unlabelled"]
    # eq. 5; minibatches hold other shares of both sides than the data set, which is what it is of
    kept = range(N_SEEN) if prior == "reference" else types
    terms["regularizer"] = 0.0
    for side in p:
        average = [mean([side[i][j] for i in labelled]) for j in types]
        if unlabelled:
            rest = [mean([side[i][j] for i in unlabelled]) for j in types]
            average = [share * a + (1 - share) * b for a, b in zip(average, rest, strict=True)]
        target = normalized([PI[j] ** s.rho for j in kept])
        terms["regularizer"] += kl(normalized([average[j] for j in kept]), target)
    classify += terms["regularizer"]
    # ours: names given before training, averaged over all unlabelled cells
    if s.initial_names and unlabelled:
        terms["initial_names"] = sum(
            -math.log(side[i][name[i]]) for side in p for i in unlabelled if name[i] >= 0
        ) / (2 * len(unlabelled))
        classify += terms["initial_names"]

    # eq. 10: eq. 1 of all cells and of the labelled ones, then eqs. 7 to 9
    both = v[0] + v[1]
    terms["unsupervised"] = mean(
        [
            -log_share(both, both, i, (i + n_all) % (2 * n_all), s.tau_contrast)
            for i in range(2 * n_all)
        ]
    )

    def by_type(cells: list[int], code: list[int]) -> float:
        u, codes, anchors = [side[i] for side in v for i in cells], code * 2, []
        for i in range(len(u)):
            positive = [j for j in range(len(u)) if j != i and codes[j] == codes[i]]
            anchors.append(mean([-log_share(u, u, i, j, s.tau_contrast) for j in positive]))
        return mean(anchors)

    terms["supervised"] = by_type(list(labelled), name[:n])
    contrast = terms["unsupervised"] + terms["supervised"]
    if contrast_by == "none":
        terms["pseudo"] = 0.0
    else:
        debiased = []
        for i in range(n_all):
            adjusted = [
                softmax([side[i][j] / tau - s.gamma * math.log(PI[j]) for j in types])
                for side in compared
            ]
            debiased.append([mean([a[j] for a in adjusted]) for j in types])
        sampled = []
        for c in types:
            exponent = s.alpha if c in name[:n] else s.beta
            rate = (PI[c] / min(PI)) ** -exponent
            cells = [i for i in unlabelled if max(debiased[i]) == debiased[i][c]]
            cells.sort(key=lambda i: -max(debiased[i]))
            sampled += cells[: math.ceil(rate * len(cells))]
        assert not unlabelled or 0 < len(sampled) < len(unlabelled), "sampling goes untested"
        cells = [*labelled, *sorted(sampled)]
        if contrast_by == "soft":
            anchors = []
            a, b = ([side[i] for i in cells] for side in v)
            for i in range(len(cells)):
                others = [j for j in range(len(cells)) if j != i]
                w = {j: dot(debiased[cells[i]], debiased[cells[j]]) for j in others}
                total = sum(w[j] * log_share(a, b, i, j, s.tau_contrast) for j in others)
                anchors.append(-total / sum(w.values()))
            terms["pseudo"] = mean(anchors)
        else:
            terms["pseudo"] = by_type(cells, [np.argmax(debiased[i]) for i in cells])
        contrast += terms["pseudo"]
    total = terms["reconstruction"] + s.classify_weight * classify + s.contrast_weight * contrast
    return terms | {"total": total}


def assert_is_transcribed(module: SCDETModule, batch: dict, share: float, monkeypatch) -> None:
    """The module's terms and their total are those of :func:`transcribed`."""
    views = see(module, batch, monkeypatch)
    total, terms = module.loss(batch, share)
    expected = transcribed(module, batch, views, share)
    found = {k: v.item() for k, v in terms.items()} | {"total": total.item()}
    assert found == pytest.approx(expected, rel=1e-6)
