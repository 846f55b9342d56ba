"""From values on a linear scale to the dense inputs of a model, in one compiled step."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from numba import njit
from torch import Tensor

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
    out: np.ndarray,
    unseen: np.ndarray,
) -> None:  # pragma: no cover (compiled)
    known = np.empty(SMALL, dtype=np.float32)
    cell_of = np.full(SMALL, -1, dtype=np.int64)
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
            unseen[i] = False
            small = np.int64(min(value, SMALL))
            if small != value or small >= SMALL:
                out[i, j] = np.log1p(value * factor)
            else:
                if cell_of[small] != i:
                    cell_of[small] = i
                    known[small] = np.log1p(value * factor)
                out[i, j] = known[small]


class Inputs:
    """Cells as a model sees them, made dense by rows.

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
    fill
        Values of the inputs that are not among the genes, (n_inputs,).
    n_inputs
        Number of genes that the model uses.
    """

    def __init__(
        self,
        x: sp.csr_matrix,
        column: np.ndarray,
        target_sum: float,
        fill: np.ndarray | None,
        n_inputs: int,
    ):
        self.values, self.genes = x.data, x.indices.astype(np.int32, copy=False)
        self.ends = x.indptr.astype(np.int64)
        self.column = column.astype(np.int32)
        self.target_sum, self.fill, self.n_inputs = float(target_sum), fill, n_inputs
        #: Cells that express none of the inputs, known once they are dense.
        self.unseen = np.ones(x.shape[0], dtype=np.bool_)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, cells: slice) -> dict[str, Tensor]:
        ends = self.ends[cells.start : cells.stop + 1]
        out = np.zeros((len(ends) - 1, self.n_inputs), dtype=np.float32)
        if self.fill is not None:
            out += self.fill
        _fill(
            self.values,
            self.genes,
            ends,
            self.column,
            self.target_sum,
            out,
            self.unseen[cells],
        )
        return {"x": torch.from_numpy(out)}
