"""Labels that the expression of their cells contradicts, by regressions that have not seen them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sctool._batches import assign_folds
from sctool._data._features import marker_genes, normalize
from sctool._data._sample import at_most
from sctool._regression import regress

#: Folds, marker genes and penalty of the regressions. The penalty is strong, so that a wrong label
#: is contradicted by its neighbours rather than fitted.
FOLDS, N_GENES, C, MIN_TYPE_WEIGHT, MAX_ITER = 5, 2000, 0.01, 0.5, 500
#: A type with fewer cells is called too small to learn.
MIN_CELLS = 10
#: Overlap from which two types are listed as a pair.
MIN_OVERLAP = 0.2
#: Cells of each type that are enough to see which types few genes cannot tell apart.
ENOUGH_CELLS = 200


def out_of_fold(x: sp.csr_matrix, y: np.ndarray, seed: int) -> np.ndarray:
    """Probability of each type by a regression that was not fitted to the cell.

    Its genes, too, are chosen without the cell.

    Parameters
    ----------
    x, y
        Log1p CP10k, CSR (n_cells, n_genes), and type codes, (n_cells,), of at least two types.

    Returns
    -------
    Probabilities, (n_cells, n_types); NaN for the only cell of a type, without which no regression
    knows the type.
    """
    fold = assign_folds(y, FOLDS, seed)
    proba = np.full((len(y), y.max() + 1), np.nan)
    for i in np.unique(fold[fold >= 0]):
        some, apart = np.flatnonzero(fold != i), np.flatnonzero(fold == i)
        genes = marker_genes(x[some], y[some], N_GENES)
        fitted, _ = regress(x[some][:, genes], y[some], C, MAX_ITER, MIN_TYPE_WEIGHT)
        proba[apart] = fitted.predict_proba(x[apart][:, genes])
    return proba


def find_suspects(proba: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells that are probably mislabelled, by confident learning (Northcutt et al. 2021).

    A cell is a suspect if its most probable type is not its label, and at least as probable as this
    type is, on average, for the cells labelled with it. The average adapts the rule to types that
    are easy or hard to recognise.

    Parameters
    ----------
    proba, y
        As in :func:`out_of_fold`.

    Returns
    -------
    given
        Probability of the label, (n_cells,); NaN if not judged.
    best
        Code of the most probable type, (n_cells,); -1 if not judged.
    suspect
        Whether the cell is a suspect, (n_cells,).
    """
    judged = ~np.isnan(proba[:, 0])
    filled = np.where(judged[:, None], proba, 0)
    given, best = proba[np.arange(len(y)), y], np.where(judged, filled.argmax(axis=1), -1)
    n_types = proba.shape[1]
    total = np.bincount(y[judged], given[judged], n_types)
    n = np.bincount(y[judged], minlength=n_types)
    # a type without judged cells cannot contradict a label
    usual = np.where(n > 0, total / np.maximum(n, 1), np.inf)
    suspect = judged & (best != y) & (filled.max(axis=1) >= usual[best])
    return given, best, suspect


def confusion(y: np.ndarray, best: np.ndarray, n_types: int) -> np.ndarray:
    """Share of the judged cells of each type (row) whose most probable type is each (column).

    Rows of types without a judged cell are NaN.
    """
    judged = best >= 0
    n = np.zeros((n_types, n_types))
    np.add.at(n, (y[judged], best[judged]), 1)
    with np.errstate(invalid="ignore"):
        return n / n.sum(axis=1, keepdims=True)


def describe_types(
    y: np.ndarray, shares: np.ndarray, suspect: np.ndarray, names: list[str]
) -> pd.DataFrame:
    """One row for each type, as documented in :func:`sctool.tl.check_reference`."""
    n = np.bincount(y, minlength=len(names))
    others = np.nan_to_num(shares - np.diag(np.diag(shares)))
    nearest = others.argmax(axis=1)
    share = others.max(axis=1)
    judged = ~np.isnan(shares[:, 0])
    return pd.DataFrame(
        {
            "n_cells": n,
            "recall": np.diag(shares),
            "confused_with": np.where(share > 0, np.array(names, dtype=object)[nearest], ""),
            "confused": np.where(judged, share, np.nan),
            "suspect": np.where(judged, np.bincount(y, suspect, len(names)) / n, np.nan),
            "too_small": n < MIN_CELLS,
        },
        index=pd.Index(names, dtype=object),
    )


def describe_pairs(shares: np.ndarray, names: list[str]) -> pd.DataFrame:
    """One row for each pair of similar types, as in :func:`sctool.tl.check_reference`."""
    shares = np.nan_to_num(shares)
    first, second = np.triu_indices(len(names), 1)
    there, back = shares[first, second], shares[second, first]
    table = pd.DataFrame(
        {
            "first": np.array(names, dtype=object)[first],
            "second": np.array(names, dtype=object)[second],
            "first_as_second": there,
            "second_as_first": back,
            "overlap": np.minimum(there + back, 1),
        }
    )
    table = table[table["overlap"] >= MIN_OVERLAP].sort_values("overlap", ascending=False)
    return table.set_axis(np.arange(len(table)).astype(str), axis=0)


def confused_pairs(x: sp.csr_matrix, y: np.ndarray, names: list[str], seed: int) -> pd.DataFrame:
    """Pairs of types that some genes hardly tell apart, by cells that the regression has not seen.

    Parameters
    ----------
    x, y
        Values of these genes on a linear scale, CSR (n_cells, n_genes), and type codes, (n_cells,).
        Of each type up to ``ENOUGH_CELLS`` are used.

    Returns
    -------
    As :func:`describe_pairs`; without rows if there are not two types with two cells.
    """
    cells = at_most(y, ENOUGH_CELLS, np.random.default_rng(seed))
    n = np.bincount(y[cells], minlength=len(names))
    cells = cells[n[y[cells]] > 1]  # the only cell of a type cannot be judged
    codes, own = np.unique(y[cells], return_inverse=True)
    if len(codes) < 2:
        return describe_pairs(np.zeros((1, 1)), names[:1])
    proba = out_of_fold(normalize(x[cells].copy()), own, seed)
    shares = confusion(own, proba.argmax(axis=1), len(codes))
    return describe_pairs(shares, [names[code] for code in codes])
