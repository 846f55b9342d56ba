"""Building blocks of the networks: pure torch, no AnnData."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
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


class TransformerLayer(nn.Module):
    """Self-attention, then two linear layers, each added to its input and normalised.

    Vaswani et al. 2017; CICL eqs. 3-7. The heads' width is free of the tokens'.

    Parameters
    ----------
    width
        Of a token.
    n_heads, d_head
        Heads, and the width of each one's queries, keys and values.
    n_hidden
        Units between the two linear layers.
    dropout
        On what is added.
    """

    def __init__(self, width: int, n_heads: int, d_head: int, n_hidden: int, dropout: float):
        super().__init__()
        self.n_heads = n_heads
        self.attend = nn.Linear(width, 3 * n_heads * d_head, bias=False)
        self.join = nn.Linear(n_heads * d_head, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, n_hidden), nn.ReLU(), nn.Linear(n_hidden, width)
        )
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (n_sequences, n_tokens, width) to tokens."""
        heads = self.attend(x).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (n_sequences, n_heads, n_tokens, d_head)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norms[0](x + self.dropout(self.join(attended)))
        return self.norms[1](x + self.dropout(self.feed_forward(x)))
