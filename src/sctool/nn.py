"""Building blocks of the networks: pure torch, no AnnData."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _ReverseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * grads[0], None


def reverse_gradient(x: Tensor, weight: float) -> Tensor:
    """Identity whose gradient is multiplied by ``-weight`` (Ganin et al. 2016)."""
    return _ReverseGradient.apply(x, weight)


def mlp(n_input: int, n_hidden: int, n_layers: int, dropout: float) -> nn.Sequential:
    """Hidden layers, each Linear, BatchNorm, Dropout, ReLU.

    PyTorch's own BatchNorm settings (momentum 0.1, eps 1e-5), every layer with its own weights,
    and every activation a module of its own, as guided backpropagation needs.
    """
    layers: list[nn.Module] = []
    for i in range(n_layers):
        layers += [
            nn.Linear(n_input if i == 0 else n_hidden, n_hidden),
            nn.BatchNorm1d(n_hidden),
            nn.Dropout(dropout),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
