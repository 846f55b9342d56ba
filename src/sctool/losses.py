"""Losses and the operations inside them: pure torch functions of tensors, no AnnData.

Each is tested against a slow transcription of its paper's equation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sharpen(p: Tensor, temperature: float = 0.5) -> Tensor:
    """Less entropic pseudo-labels: ``p ** (1 / T)``, renormalised (scNym section 2 has T = 1/2).

    Parameters
    ----------
    p
        Probabilities, (n_cells, n_types).
    """
    q = p.pow(1 / temperature)
    return q / q.sum(dim=1, keepdim=True)


def mixup(x: Tensor, y: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Each cell and its label mixed with those of a random partner, itself remaining dominant.

    Weights are drawn per cell from Beta(alpha, alpha), and the larger of the pair goes to the cell
    itself, so that row ``i`` of the output still stands for cell ``i`` (scNym, section 2).

    Parameters
    ----------
    x
        (n_cells, n_genes).
    y
        Probabilities, (n_cells, n_types).
    """
    a = torch.full((len(x), 1), alpha)
    lam = torch.distributions.Beta(a, a).sample().to(x.device)
    lam = torch.maximum(lam, 1 - lam)
    partner = torch.randperm(len(x), device=x.device)
    return torch.lerp(x[partner], x, lam), torch.lerp(y[partner], y, lam)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over cells of ``H(target, softmax(logits))``, both (n_cells, n_types); 0 of no cell."""
    loss = -(target * logits.log_softmax(dim=1)).sum(dim=1)
    return loss.mean() if len(loss) else logits.sum() * 0


def squared_error(logits: Tensor, target: Tensor, n: int | None = None) -> Tensor:
    """Mean over cells of ``||target - softmax(logits)||^2`` (scNym's L_SSL).

    ``n`` divides instead of the number of cells, where cells have been left out.
    """
    loss = (target - logits.softmax(dim=1)).pow(2).sum(dim=1)
    return loss.sum() / max(len(loss) if n is None else n, 1)


def sigmoid_ramp(step: float, length: float) -> float:
    """Weight that rises from about 0 to 1 over ``length``: ``exp(-5 (1 - step / length)^2)``.

    scNym states "a sigmoid schedule"; this is the usual one of consistency training.
    """
    if length <= 0:
        return 1.0
    t = min(max(step / length, 0.0), 1.0)
    return math.exp(-5.0 * (1.0 - t) ** 2)
