"""Detection of the expression values in an AnnData."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSRDataset

from sctool._data._genes import other_features
from sctool._data._scale import LOG_MAX, UNUSABLE, Scale, cells_of_counts, scale_of
from sctool._data._stores import RowsOfCSC, RowsOfDask, by_rows

logger = logging.getLogger("sctool")

#: Number of cells read at a time.
CHUNK = 8192
#: Number of values read at a time from a dense matrix (128 MB of float64), at least one cell.
DENSE = 2**24
#: Maximum number of cells used to detect the scale, and number of runs of consecutive cells that
#: they are read in, spread evenly over the file.
SAMPLE, RUNS = 8192, 16
COUNT_LAYERS = ("counts", "raw_counts", "count", "umi_counts", "umis")


class NotNumbersError(TypeError):
    """Values that are not real numbers."""


def numbers(values: np.ndarray) -> np.ndarray:
    """Convert values to a type that sparse matrices support.

    Raises
    ------
    NotNumbersError
        The values are not real numbers.
    """
    kind = values.dtype.kind
    if kind == "O":
        found = pd.api.types.infer_dtype(values.ravel(), skipna=False)
        if found in ("floating", "integer", "mixed-integer-float", "boolean"):
            return values.astype(np.float64)
    if kind not in "biuf":
        raise NotNumbersError(values.dtype)
    if kind in "iu":
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    return values.astype(np.float32 if values.dtype.itemsize <= 4 else np.float64, copy=False)


def as_csr(matrix: Any) -> Any:
    """Convert a sparse matrix in memory to CSR; return any other unchanged."""
    if not sp.issparse(matrix):
        return matrix
    data = numbers(matrix.data)
    if data.dtype != matrix.data.dtype:
        matrix = type(matrix)((data, matrix.indices, matrix.indptr), shape=matrix.shape)
    return matrix if matrix.format == "csr" else sp.csr_matrix(matrix)  # rows of CSC are slow


def genes_of(var: pd.DataFrame) -> np.ndarray | None:
    """Positions of the genes among all features; None if all are genes."""
    other = other_features(var)
    return np.flatnonzero(~other) if other.any() else None


def rows(matrix: Any, start: int, stop: int, columns: np.ndarray | None = None) -> sp.csr_matrix:
    """Load rows ``start:stop`` of a dense, sparse, backed or lazy matrix as CSR.

    ``columns`` are the positions of the columns to keep; None keeps all.

    Raises
    ------
    NotNumbersError
        The values are not real numbers.
    """
    step = stop - start if _is_sparse(matrix) else max(DENSE // max(matrix.shape[1], 1), 1)
    if step < stop - start:  # the dense copy of all would be large
        parts = [rows(matrix, i, min(i + step, stop), columns) for i in range(start, stop, step)]
        return sp.vstack(parts, format="csr")
    try:
        block = matrix[start:stop]
    except ValueError as error:
        if "does not support dtype" in str(error):  # SciPy, on a sparse matrix in a file
            raise NotNumbersError(str(error)) from None
        raise
    if hasattr(block, "compute"):  # of Dask, in large blocks
        block = block.compute()
    if hasattr(block, "to_memory"):
        block = block.to_memory()
    x = sp.csr_matrix(as_csr(block) if sp.issparse(block) else numbers(np.asarray(block)))
    if not x.has_canonical_format:  # duplicate entries of a gene are parts of one value
        x = x.copy()
        x.sum_duplicates()
    return x if columns is None else x[:, columns]


def _is_sparse(matrix: Any) -> bool:
    return sp.issparse(matrix) or isinstance(matrix, CSRDataset | RowsOfCSC)


def take_columns(x: sp.csr_matrix, column: np.ndarray, n_columns: int) -> sp.csr_matrix:
    """Select and reorder columns of ``x``, as float32.

    Parameters
    ----------
    x
        CSR (n_cells, n_genes).
    column
        New position of each column, (n_genes,); -1 drops it. Columns with the same position are
        summed.
    """
    source = np.flatnonzero(column >= 0)
    target = column[source]
    x = sp.csr_matrix(x, dtype=np.float32)
    if len(np.unique(target)) < len(target):
        ones = np.ones(len(source), dtype=np.float32)
        return x @ sp.csr_matrix((ones, (source, target)), shape=(x.shape[1], n_columns))
    taken = x[:, source]
    indices = target.astype(taken.indices.dtype)[taken.indices]
    return sp.csr_matrix((taken.data, indices, taken.indptr), shape=(x.shape[0], n_columns))


@dataclass(frozen=True)
class Expression:
    """Expression values of an AnnData, not yet read, and their scale.

    Attributes
    ----------
    matrix, var
        Values, (n_cells, n_genes), and genes.
    side, slot
        Dataset that they belong to ("ref", "query", ...), and their location in it.
    scale
        Scale of the values, a usable one.
    first
        Position of the first cell, if these are only some of the dataset's.
    """

    matrix: Any
    var: pd.DataFrame
    side: str
    slot: str
    scale: Scale
    first: int = 0

    @property
    def n_cells(self) -> int:
        return self.matrix.shape[0]

    def linear(
        self, column: np.ndarray, n_columns: int, some: np.ndarray | None = None
    ) -> Iterator[sp.csr_matrix]:
        """Yield chunks of cells on the linear scale; arguments as in :func:`take_columns`.

        Features that are not genes are left out, whatever ``column`` is for them. ``some`` is a
        mask of the cells to keep, (n_cells,); default all.

        Raises
        ------
        ValueError
            A chunk has values that are impossible on the detected scale.
        """
        genes = genes_of(self.var)
        column = column if genes is None else column[genes]
        for x in self.chunks(some):
            yield take_columns(x, column, n_columns)

    def chunks(self, some: np.ndarray | None = None) -> Iterator[sp.csr_matrix]:
        """Yield chunks of cells on the linear scale, CSR (at most ``CHUNK``, n_genes) float32.

        Their columns are the features that are genes. ``some`` and errors as of :meth:`linear`.
        """
        genes = genes_of(self.var)
        for start in range(0, self.n_cells, CHUNK):
            kept = None if some is None else some[start : start + CHUNK]
            if kept is not None and not kept.any():
                continue
            try:
                x = rows(self.matrix, start, min(start + CHUNK, self.n_cells), genes)
            except NotNumbersError:
                raise self._contradiction(UNUSABLE["text"], start) from None
            self._check(x, start)
            x = x if kept is None else x[kept]
            x = sp.csr_matrix(x, dtype=np.float32)
            if self.scale.name == "log1p":
                x.data = self.scale.linear(x.data)
            yield x

    def _check(self, x: sp.csr_matrix, start: int) -> None:
        """Raise if values contradict the scale, which was detected from a sample of cells."""
        values, scale = x.data, self.scale
        low, high = (values.min(), values.max()) if values.size else (0, 0)
        if not (np.isfinite(low) and np.isfinite(high)):  # min and max propagate NaN
            found = UNUSABLE["missing"]
        elif low < 0:
            found = "negative values"
        elif scale.name == "counts" and (np.trunc(values) != values).any():
            found = "fractions"
        elif scale.name == "log1p" and high > LOG_MAX:
            found = f"values above {LOG_MAX:g}, which cannot be logarithms"
        elif scale.name == "log1p" and scale.base != 2 and cells_of_counts(x).any():
            found = "only integers, which are counts, for some cells"
        else:
            return
        raise self._contradiction(found, start)

    def _contradiction(self, found: str, start: int) -> ValueError:
        return ValueError(
            f"The {self.side}'s {self.slot} was detected as {self.scale.name.removesuffix('s')} "
            f"values from a sample of its cells, but cells {self.first + start} to "
            f"{self.first + min(start + CHUNK, self.n_cells)} have {found}. Put all cells on the "
            "same scale, "
            "drop these cells, or pass another layer with layer=..."
        )


def detect_scale(
    matrix: Any, bases: Sequence[float] = (), columns: np.ndarray | None = None
) -> Scale:
    """Detect the scale of a matrix from a sample of its cells.

    ``bases`` as in :func:`scale_of`, ``columns`` as in :func:`rows`.
    """
    n_cells = matrix.shape[0]
    if n_cells <= SAMPLE:
        return scale_of(rows(matrix, 0, n_cells, columns), bases)
    size = SAMPLE // RUNS
    starts = [int(start) for start in np.linspace(0, n_cells - size, RUNS)]
    if isinstance(matrix, RowsOfCSC | RowsOfDask):
        some = matrix.take([slice(start, start + size) for start in starts])
        return scale_of(rows(some, 0, some.shape[0], columns), bases)
    runs = [rows(matrix, start, start + size, columns) for start in starts]
    return scale_of(sp.vstack(runs, format="csr"), bases)


def noted_base(uns: Any) -> float | None:
    """The base recorded in ``uns`` by ``scanpy.pp.log1p``; None if there is none."""
    noted = uns.get("log1p")
    base = noted.get("base") if isinstance(noted, Mapping) else None
    try:
        number = float(base)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if 1 < number < np.inf else None


def notes_on_logarithm(scale: Scale, noted: float | None, logged: bool) -> list[str]:
    """Notes on a logarithm other than log1p in base e, than ``uns`` has it, or of unknown base.

    ``logged`` says that scanpy took the logarithm, so that the base is known.
    """
    if scale.name != "log1p":
        return []
    notes = []
    if scale.times > 1:
        notes.append("was log-transformed twice; both were undone")
    if scale.base != np.e or noted not in (None, np.e):
        base = "e" if scale.base == np.e else f"{scale.base:g}"
        instead = f", not {noted:g} as in uns['log1p']" if noted not in (None, scale.base) else ""
        notes.append(f"is in logarithms to base {base}{instead}")
    if not scale.proven and not logged and scale.base == np.e:
        notes.append(
            "was taken for natural logarithms, the usual ones, since its values do not show the "
            "base; note another in uns['log1p']['base']"
        )
    return notes


def note_slow(side: str, slot: str, matrix: RowsOfCSC) -> str:
    """Note on a matrix in a file that is slow to read."""
    return (
        f"{side}: {slot} is stored by genes (CSC), which is slow to read by cells: the file is "
        f"read {matrix.n_passes + 1} times. If it fits into memory, convert it once: "
        "adata.X = scipy.sparse.csr_matrix(adata.X)"
    )


def find_expression(adata: AnnData, layer: str | None, side: str) -> tuple[Expression, list[str]]:
    """Find the expression values of ``adata``; returns them with notes for the audit.

    ``layer`` selects a layer (``"raw"`` for ``adata.raw``). By default ``X`` is used or, if ``X``
    is unusable, ``raw`` or a counts layer.

    Raises
    ------
    KeyError
        ``layer`` is missing.
    ValueError
        There are no cells, or no values on a usable scale.
    """
    if adata.n_obs == 0:
        raise ValueError(f"The {side} has no cells: found shape {adata.shape}.")
    noted = noted_base(adata.uns)
    logged = isinstance(adata.uns.get("log1p"), Mapping)
    slots: list[tuple[str, Any, pd.DataFrame]] = []
    if layer == "raw" and adata.raw is not None:
        slots.append(("raw.X", adata.raw.X, adata.raw.var))
    elif layer is not None:
        if layer not in adata.layers:
            found = [*filter(None, adata.layers), *(["raw"] if adata.raw is not None else [])]
            if layer == "raw":
                raise KeyError(f"layer='raw': the {side} has no raw; found layers {found!r}.")
            raise KeyError(f"layer={layer!r} is not in the {side}'s layers; found {found!r}.")
        slots.append((f"layers[{layer!r}]", adata.layers[layer], adata.var))
    else:
        if adata.X is not None:
            slots.append(("X", adata.X, adata.var))
        if adata.raw is not None:
            slots.append(("raw.X", adata.raw.X, adata.raw.var))
        names = [n for n in adata.layers if isinstance(n, str) and n.lower() in COUNT_LAYERS]
        slots += [(f"layers[{name!r}]", adata.layers[name], adata.var) for name in names]

    refused: list[str] = []
    for slot, matrix, var in slots:
        var = var.to_memory() if hasattr(var, "to_memory") else var  # of a lazy AnnData
        again = var.columns.duplicated()
        repeated = sorted(set(map(str, var.columns[again])))
        var = var.loc[:, ~again] if repeated else var
        try:
            matrix = by_rows(as_csr(matrix))
            # The base noted for X is that of ``raw`` only if the values say so.
            bases = [np.e] if slot == "raw.X" else [noted or np.e]
            scale = detect_scale(matrix, [*bases, noted or np.e], genes_of(var))
        except NotNumbersError:
            scale = Scale("text")
        if scale.name in UNUSABLE:
            refused.append(f"{slot} holds {UNUSABLE[scale.name]}")
            continue
        note = f"{side}: read {scale.name.removesuffix('s')} values from {slot}"
        if refused:
            note += f", because {' and '.join(refused)}"
        said = notes_on_logarithm(scale, noted, logged)
        notes = [note, *(f"{side}: {slot} {text}" for text in said)]
        if isinstance(matrix, RowsOfCSC):
            notes.append(note_slow(side, slot, matrix))
            logger.warning("%s.", notes[-1])
        if repeated:
            notes.append(
                f"{side}: var has several columns {repeated!r}; the first of each was used"
            )
        return Expression(matrix, var, side, slot, scale), notes
    raise ValueError(
        f"The {side} has no usable expression values: {'; '.join(refused) or 'X is empty'}. "
        "Pass raw counts or log-normalised values in X, in adata.raw, or in a layer selected with "
        "layer=..."
    )
