"""Matrices that are slow to read by rows: each part is read as few times as possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata.abc import CSCDataset

#: Maximum number of values that are held at a time (8 bytes each), and read at a time.
HELD, READ = 2**26, 2**22
#: Size of a dense block in bytes above which only the rows that are needed are computed.
LARGEST = 2**31


def by_rows(matrix: Any) -> Any:
    """Wrap a matrix that is slow to read by rows; return any other unchanged."""
    if isinstance(matrix, CSCDataset):
        return RowsOfCSC(matrix)
    if hasattr(matrix, "dask") and not _is_large(matrix):
        return RowsOfDask(matrix)
    return matrix


def _is_large(array: Any) -> bool:
    """Whether blocks of a Dask array are dense and larger than should be held at a time."""
    size = max(array.chunks[0]) * array.shape[1] * array.dtype.itemsize
    return isinstance(array._meta, np.ndarray) and size > LARGEST


class RowsOfCSC:
    """Rows of a sparse matrix in a file that stores it by columns.

    Any of its rows takes a pass through the whole file, so that many rows are taken in each.

    Parameters
    ----------
    matrix
        Sparse matrix in a file, (n_cells, n_vars).
    """

    def __init__(self, matrix: Any):
        self.matrix, self.shape = matrix, matrix.shape
        n_values = max(len(matrix.group["data"]), 1)
        self.n_passes = -(-n_values // HELD)
        self._size = -(-self.shape[0] // self.n_passes)
        self._width = max(self.shape[1] * READ // n_values, 1)
        self._start, self._held = 0, sp.csr_matrix((0, self.shape[1]))

    def __getitem__(self, cells: slice) -> sp.csr_matrix:
        if not self._start <= cells.start <= cells.stop <= self._start + self._held.shape[0]:
            stop = min(max(cells.start + self._size, cells.stop), self.shape[0])
            self._held = sp.csr_matrix((0, self.shape[1]))  # freed first
            self._start, self._held = cells.start, self.take([slice(cells.start, stop)])
        return self._held[cells.start - self._start : cells.stop - self._start]

    def take(self, runs: list[slice]) -> sp.csr_matrix:
        """Runs of rows in any place, in one pass."""
        cells = np.unique(np.concatenate([np.arange(run.start, run.stop) for run in runs]))
        parts = []
        for start in range(0, self.shape[1], self._width):
            columns = self.matrix[:, start : start + self._width]
            parts.append(sp.csc_matrix(columns)[cells])
        return sp.hstack(parts, format="csr")


class RowsOfDask:
    """Rows of a Dask array, each of whose blocks is computed once if rows are read in order.

    Parameters
    ----------
    array
        Dask array, (n_cells, n_vars), of dense or sparse blocks.
    """

    def __init__(self, array: Any):
        self.array, self.shape = array, array.shape
        self._ends = np.cumsum(array.chunks[0])
        self._blocks: dict[int, Any] = {}

    def __getitem__(self, cells: slice) -> Any:
        import dask

        first, last = np.searchsorted(self._ends, [cells.start, cells.stop - 1], side="right")
        needed = range(first, last + 1)
        self._blocks = {i: block for i, block in self._blocks.items() if i in needed}
        new = [i for i in needed if i not in self._blocks]
        self._blocks |= zip(new, dask.compute(*(self.array.blocks[i] for i in new)), strict=True)
        parts = []
        for i in needed:
            begin = self._ends[i] - self.array.chunks[0][i]
            part = slice(max(cells.start - begin, 0), cells.stop - begin)
            parts.append(self._blocks[i][part])
        return _stacked(parts)

    def take(self, runs: list[slice]) -> Any:
        """Runs of rows in any place; no more than these is kept of their blocks."""
        import dask

        return _stacked(dask.compute(*(self.array[run] for run in runs)))


def _stacked(parts: Sequence[Any]) -> Any:
    """Rows of dense or sparse parts in one matrix."""
    if len(parts) == 1:
        return parts[0]
    return sp.vstack(parts, format="csr") if sp.issparse(parts[0]) else np.concatenate(parts)
