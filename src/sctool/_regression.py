"""Multinomial logistic regression with scikit-learn, shared by all linear models."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits
from torch import nn

#: Grids for the choice of ``C``: for genes, and for the few dimensions of a component.
GENES_GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
COMPONENT_GRID = (0.1, 1.0, 10.0, 100.0)
#: The default ``C`` is this over the number of cells, so that the penalty weighs the same beside
#: the mean loss however many there are. A penalty that is fixed beside the sum of the losses
#: vanishes with many cells, and the regression learns what is particular to their experiment. The
#: default minimum weight of a type, as in :func:`type_weights`, keeps rare types from being lost.
C_TIMES_CELLS, MIN_TYPE_WEIGHT = 100.0, 0.5
#: Inputs of up to this many values (1 GiB) are made dense, which is faster with many types; up to
#: the second number a single thread is used, because several would mostly wait.
DENSE_VALUES, SERIAL_VALUES = 2**28, 2**26


def type_weights(n: np.ndarray, min_type_weight: float) -> np.ndarray:
    """Weight per cell of each type, (n_types,), with a mean of 1 over the cells.

    The total weight of a type is at least ``min_type_weight`` times that of the type of median
    size: 0 weights all cells equally, infinity all types.

    Parameters
    ----------
    n
        Number of cells of each type, (n_types,), all above 0.
    """
    weight = np.maximum(1, min(min_type_weight * np.median(n), n.max()) / n)
    return weight * n.sum() / (weight @ n)


def regress(
    x: sp.csr_matrix | np.ndarray,
    y: np.ndarray,
    C: float | None,
    max_iter: int,
    min_type_weight: float = 0.0,
) -> tuple[LogisticRegression, list[str]]:
    """Fit a logistic regression of type codes ``y`` on ``x``, weighted by :func:`type_weights`.

    If ``C`` is None it is ``C_TIMES_CELLS`` over the number of cells. Returns the regression, and
    an audit note if it did not converge.
    """
    if C is None:
        C = C_TIMES_CELLS / len(y)
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
    """Choose the ``C`` of ``grid`` with the lowest cross entropy on held-out cells; 1 without any.

    The grid goes from strong to weak penalties; the search stops after two values in a row without
    improvement.
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
    """Make inputs dense unless that takes too much memory."""
    if isinstance(x, sp.csr_matrix) and np.prod(x.shape) <= DENSE_VALUES:
        return x.toarray()
    return x


def cross_entropy(
    fitted: LogisticRegression, x: sp.csr_matrix | np.ndarray, y: np.ndarray
) -> float:
    """Mean cross entropy of the cells."""
    proba = fitted.predict_proba(x)[np.arange(len(y)), np.searchsorted(fitted.classes_, y)]
    return float(-np.log(np.clip(proba, 1e-12, None)).mean())


def weights(fitted: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Weights (n_types, n_genes) and biases (n_types,) of a logistic regression.

    For two types, scikit-learn has a single score, that of the second type.
    """
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:
        weight, bias = np.vstack([-weight, weight]) / 2, np.r_[-bias, bias] / 2
    return weight, bias


@torch.no_grad()
def set_linear(layer: nn.Linear, fitted: LogisticRegression) -> None:
    """Copy weights and biases of a logistic regression to a layer (n_genes to n_types)."""
    for parameter, value in zip((layer.weight, layer.bias), weights(fitted), strict=True):
        parameter.copy_(torch.from_numpy(value))
