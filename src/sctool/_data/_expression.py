"""Detection of the expression values in an AnnData and of their scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

#: Number of cells read at a time.
CHUNK = 8192
#: Maximum number of cells used to detect the scale, and number of runs of consecutive cells that
#: they are read in, spread evenly over the file.
SAMPLE, RUNS = 8192, 16
#: log2(CPM + 1) is below log2(1e6) < 20, so larger values than this cannot be logarithmic.
LOG_MAX = 25.0
COUNT_LAYERS = ("counts", "raw_counts", "count", "umi_counts", "umis")
#: Reasons why values are unusable, by the return value of :func:`detect_scale`.
UNUSABLE = {
    "missing": "missing or infinite values",
    "scaled": "scaled values (negative, or unit variance for every gene)",
    "empty": "only zeros",
}


def rows(matrix: Any, start: int, stop: int) -> sp.csr_matrix:
    """Load rows ``start:stop`` of a dense, sparse, backed or lazy matrix as CSR."""
    block = matrix[start:stop]
    if hasattr(block, "compute"):  # dask
        block = block.compute()
    if hasattr(block, "to_memory"):
        block = block.to_memory()
    x = sp.csr_matrix(block if sp.issparse(block) else np.asarray(block))
    if not x.has_canonical_format:  # duplicate entries of a gene are parts of one value
        x = x.copy()
        x.sum_duplicates()
    return x


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
        "counts", "linear" or "log1p".
    base
        Base of the logarithm.
    """

    matrix: Any
    var: pd.DataFrame
    side: str
    slot: str
    scale: str
    base: float = np.e

    @property
    def n_cells(self) -> int:
        return self.matrix.shape[0]

    def linear(self, column: np.ndarray, n_columns: int) -> Iterator[sp.csr_matrix]:
        """Yield chunks of cells on the linear scale; arguments as in :func:`take_columns`.

        Raises
        ------
        ValueError
            A chunk has values that are impossible on the detected scale.
        """
        for start in range(0, self.n_cells, CHUNK):
            x = rows(self.matrix, start, min(start + CHUNK, self.n_cells))
            self._check(x.data, start)
            if self.scale == "log1p":
                # before columns are summed
                x = sp.csr_matrix(x, dtype=np.float32)
                x.data = np.expm1(x.data * np.float32(np.log(self.base)))
            yield take_columns(x, column, n_columns)

    def _check(self, values: np.ndarray, start: int) -> None:
        """Raise if values contradict the scale, which was detected from a sample of cells."""
        low, high = (values.min(), values.max()) if values.size else (0, 0)
        if not (np.isfinite(low) and np.isfinite(high)):  # min and max propagate NaN
            found = UNUSABLE["missing"]
        elif low < 0:
            found = "negative values"
        elif self.scale == "counts" and (np.trunc(values) != values).any():
            found = "fractions"
        elif self.scale == "log1p" and high > LOG_MAX:
            found = f"values above {LOG_MAX:g}, which cannot be logarithms"
        else:
            return
        raise ValueError(
            f"The {self.side}'s {self.slot} was detected as {self.scale.removesuffix('s')} values "
            f"from a sample of its cells, but cells {start} to {start + CHUNK} have {found}. Put "
            "all cells on the same scale, drop these cells, or pass another layer with layer=..."
        )


def detect_scale(matrix: Any) -> str:
    """Detect the scale of a matrix from a sample of its cells.

    Returns
    -------
    ``"counts"`` (non-negative integers), ``"log1p"``, ``"linear"`` (non-negative, normalised but
    not logarithmic: CPM, TPM, RPKM), or the reason why it is unusable: ``"missing"`` (NaN or
    infinite values), ``"scaled"`` (negative values, or unit variance for every gene), ``"empty"``.
    """
    n_cells = matrix.shape[0]
    if n_cells <= SAMPLE:
        x = rows(matrix, 0, n_cells)
    else:
        size = SAMPLE // RUNS
        starts = np.linspace(0, n_cells - size, RUNS).astype(int)
        x = sp.vstack([rows(matrix, start, start + size) for start in starts], format="csr")
    values = x.data
    if not np.isfinite(values).all():
        return "missing"
    if values.size and values.min() < 0:
        return "scaled"
    top = values.max(initial=0)
    if top == 0:
        return "empty"
    if (np.trunc(values) == values).all():
        return "counts"
    total = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
    if top > LOG_MAX or (len(total) > 1 and total.std() < 1e-3 * total.mean()):
        return "linear"
    # scanpy.pp.scale(zero_center=False) gives unit variance without negative values. The median
    # is used because the sample variance of genes that few cells express is imprecise.
    x = x.astype(np.float64)
    mean = np.asarray(x.mean(axis=0)).ravel()
    variance = np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2
    variance *= len(total) / max(len(total) - 1, 1)
    varying = variance > 0
    if len(total) > 20 and varying.any() and np.median(np.abs(variance[varying] - 1)) < 0.1:
        return "scaled"
    return "log1p"


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
    base = (adata.uns.get("log1p") or {}).get("base") or np.e
    slots: list[tuple[str, Any, pd.DataFrame]] = []
    if layer == "raw" and adata.raw is not None:
        slots.append(("raw.X", adata.raw.X, adata.raw.var))
    elif layer is not None:
        if layer not in adata.layers:
            found = [*filter(None, adata.layers), *(["raw"] if adata.raw is not None else [])]
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
        if sp.issparse(matrix) and matrix.format != "csr":
            matrix = sp.csr_matrix(matrix)  # slow to read by rows otherwise
        scale = detect_scale(matrix)
        if scale not in UNUSABLE:
            notes = [f"{side}: read {scale.removesuffix('s')} values from {slot}"]
            if refused:
                notes[0] += f", because {' and '.join(refused)}"
            return Expression(matrix, var, side, slot, scale, base), notes
        refused.append(f"{slot} holds {UNUSABLE[scale]}")
    raise ValueError(
        f"The {side} has no usable expression values: {'; '.join(refused) or 'X is empty'}. "
        "Pass raw counts or log-normalised values in X, in adata.raw, or in a layer selected with "
        "layer=..."
    )
