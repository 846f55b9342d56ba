"""From values on a linear scale to the inputs of a model, in one compiled step."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numba import njit

#: Counts below this have their logarithm computed once per cell: most are 1, 2 or 3.
SMALL = 64
#: Instead of a position: genes that only count towards the total of a cell, and all others.
COUNTED, OTHER = -1, -2


@njit(nogil=True, cache=True, error_model="numpy")
def _fill(
    values: np.ndarray,
    genes: np.ndarray,
    ends: np.ndarray,
    column: np.ndarray,
    target_sum: float,
    out_values: np.ndarray,
    out_genes: np.ndarray,
    out_ends: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    known = np.empty(SMALL, dtype=np.float32)
    cell_of = np.full(SMALL, -1, dtype=np.int64)
    n = 0
    for i in range(len(ends) - 1):
        total = 0.0
        for k in range(ends[i], ends[i + 1]):
            if column[genes[k]] != OTHER:
                total += values[k]
        factor = target_sum / total
        for k in range(ends[i], ends[i + 1]):
            j, value = column[genes[k]], values[k]
            if j < 0 or value == 0:
                continue
            small = np.int64(min(value, SMALL))
            if small != value or small >= SMALL:
                out_values[n] = np.log1p(value * factor)
            else:
                if cell_of[small] != i:
                    cell_of[small] = i
                    known[small] = np.log1p(value * factor)
                out_values[n] = known[small]
            out_genes[n] = j
            n += 1
        out_ends[i + 1] = n


@njit(nogil=True, cache=True)
def _product(
    values: np.ndarray, genes: np.ndarray, ends: np.ndarray, weight: np.ndarray, out: np.ndarray
) -> None:  # pragma: no cover (compiled)
    for i in range(len(ends) - 1):
        for k in range(ends[i], ends[i + 1]):
            for j in range(weight.shape[1]):
                out[i, j] += values[k] * np.float64(weight[genes[k], j])


def product(x: sp.csr_matrix, weight: np.ndarray) -> np.ndarray:
    """The product of cells and weights.

    Sums are of double precision, so that the order of the genes makes no difference.

    Parameters
    ----------
    x
        Cells, CSR (n_cells, n_genes) float32.
    weight
        Dense (n_genes, n_outputs) float32, contiguous by genes.

    Returns
    -------
    (n_cells, n_outputs) float64.
    """
    out = np.zeros((x.shape[0], weight.shape[1]))
    _product(x.data, x.indices, x.indptr, weight, out)
    return out


def to_inputs(
    x: sp.csr_matrix, column: np.ndarray, target_sum: float, n_inputs: int
) -> sp.csr_matrix:
    """Cells as a model sees them.

    What :func:`~sctool._data._features.normalize` and then a selection of genes give, without the
    sparse matrices between.

    Parameters
    ----------
    x
        Values on a linear scale, CSR (n_cells, n_vars) float32.
    column
        Position of each gene among the inputs, (n_vars,), ``COUNTED`` or ``OTHER``. No position is
        twice.
    target_sum
        Total that each cell is scaled to before log1p.
    n_inputs
        Number of genes that the model uses.

    Returns
    -------
    Inputs, CSR (n_cells, n_inputs) float32.
    """
    values, genes = np.empty(x.nnz, dtype=np.float32), np.empty(x.nnz, dtype=np.int32)
    ends = np.zeros(x.shape[0] + 1, dtype=np.int64)
    _fill(
        x.data,
        x.indices.astype(np.int32, copy=False),
        x.indptr.astype(np.int64, copy=False),
        column.astype(np.int32, copy=False),
        float(target_sum),
        values,
        genes,
        ends,
    )
    return sp.csr_matrix(
        (values[: ends[-1]], genes[: ends[-1]], ends), shape=(x.shape[0], n_inputs)
    )
