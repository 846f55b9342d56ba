"""Multinomial logistic regression by scikit-learn: what all that is linear shares."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import nn

#: What ``C`` is chosen from: where genes are seen, and where a component's few coordinates are.
GENES_GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
COMPONENT_GRID = (0.1, 1.0, 10.0, 100.0)
#: Up to so many values (1 GiB) cells are made dense for a fit, whose products are faster the more
#: types there are; and up to so many one thread fits them, as several would mostly wait.
DENSE_VALUES, SERIAL_VALUES = 2**28, 2**26


def type_weights(n: np.ndarray, min_type_weight: float) -> np.ndarray:
    """Weight of a cell of each type, (n_types,), 1 on average over the cells.

    Together the cells of a type weigh at least ``min_type_weight`` times what those of the type of
    median size do: with 0 every cell weighs the same, with infinity every type.

    Parameters
    ----------
    n
        Cells of each type, (n_types,), all above 0.
    """
    weight = np.maximum(1, min(min_type_weight * np.median(n), n.max()) / n)
    return weight * n.sum() / (weight @ n)


def regress(
    x: sp.csr_matrix | np.ndarray,
    y: np.ndarray,
    C: float,
    max_iter: int,
    min_type_weight: float = 0.0,
) -> tuple[LogisticRegression, list[str]]:
    """Fit scikit-learn's regression of codes ``y`` on cells ``x``; says if it did not converge.

    The types weigh as :func:`type_weights` has it.
    """
    codes, n = np.unique(y, return_counts=True)
    weight = dict(zip(codes, type_weights(n, min_type_weight), strict=True))
    x = _dense(x)
    n_threads = 1 if np.prod(x.shape) <= SERIAL_VALUES else None
    with warnings.catch_warnings(record=True) as caught, threadpool_limits(n_threads, "blas"):
        warnings.simplefilter("always", ConvergenceWarning)
        fitted = LogisticRegression(C=C, max_iter=max_iter, class_weight=weight).fit(x, y)
    if any(issubclass(w.category, ConvergenceWarning) for w in caught):
        return fitted, [f"training: not converged after {max_iter} iterations of L-BFGS"]
    return fitted, []


def choose_C(
    x: sp.csr_matrix | np.ndarray,
    y: np.ndarray,
    train: np.ndarray,
    held_out: np.ndarray,
    max_iter: int,
    min_type_weight: float = 0.0,
    grid: tuple[float, ...] = GENES_GRID,
) -> float:
    """The ``C`` of ``grid`` with the lowest cross entropy on held-out cells; 1 without any.

    The grid goes from strong to weak penalties, and ends where two in a row do no better.
    """
    if not len(held_out):
        return 1.0
    x_train, x_held_out = _dense(x[train]), x[held_out]
    best, chosen, since = np.inf, 1.0, 0
    for C in grid:
        fitted, _ = regress(x_train, y[train], C, max_iter, min_type_weight)
        loss = cross_entropy(fitted, x_held_out, y[held_out])
        best, chosen, since = (loss, C, 0) if loss < best else (best, chosen, since + 1)
        if since == 2:
            break
    return chosen


def _dense(x: sp.csr_matrix | np.ndarray) -> sp.csr_matrix | np.ndarray:
    """Make cells dense unless that takes too much memory."""
    if isinstance(x, sp.csr_matrix) and np.prod(x.shape) <= DENSE_VALUES:
        return x.toarray()
    return x


def cross_entropy(
    fitted: LogisticRegression, x: sp.csr_matrix | np.ndarray, y: np.ndarray
) -> float:
    """Mean over cells of the negative log-probability of their type."""
    proba = fitted.predict_proba(x)[np.arange(len(y)), np.searchsorted(fitted.classes_, y)]
    return float(-np.log(np.clip(proba, 1e-12, None)).mean())


def weights(fitted: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n_types, n_genes) and biases (n_types,) of a regression, also of one on two types.

    There scikit-learn has a single score, for the second type.
    """
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:
        weight, bias = np.vstack([-weight, weight]) / 2, np.r_[-bias, bias] / 2
    return weight, bias


@torch.no_grad()
def set_linear(layer: nn.Linear, fitted: LogisticRegression) -> None:
    """Give a layer (n_genes to n_types) the weights and biases of a regression."""
    for parameter, value in zip((layer.weight, layer.bias), weights(fitted), strict=True):
        parameter.copy_(torch.from_numpy(value))
