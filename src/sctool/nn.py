"""Building blocks of the networks, in pure torch."""

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
    """Stack hidden layers of Linear, BatchNorm, Dropout and ReLU.

    BatchNorm uses PyTorch's defaults (momentum 0.1, eps 1e-5). Each activation is a separate module
    as required by guided backpropagation.
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
    """Transformer encoder layer (Vaswani et al. 2017; CICL, eqs. 3-7).

    Self-attention and two linear layers, each with a residual connection and layer normalisation.
    The width of the heads is independent of the width of the tokens.

    Parameters
    ----------
    width
        Width of a token.
    n_heads, d_head
        Number of heads, and the width of their queries, keys and values.
    n_hidden
        Hidden units between the two linear layers.
    dropout
        Dropout rate before each residual addition.
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
        """Transform tokens, (n_sequences, n_tokens, width), to the same shape."""
        heads = self.attend(x).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (n_sequences, n_heads, n_tokens, d_head)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norms[0](x + self.dropout(self.join(attended)))
        return self.norms[1](x + self.dropout(self.feed_forward(x)))
