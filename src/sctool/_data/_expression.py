"""Where the expression values of an AnnData are, and on which scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

#: Cells that are read at a time.
CHUNK = 8192
#: The scale is decided on at most so many cells, in so many runs spread evenly over the file.
SAMPLE, RUNS = 8192, 16
#: The largest log2(CPM + 1) is log2(1e6) < 20; what exceeds this cannot be logarithmic.
LOG_MAX = 25.0
COUNT_LAYERS = ("counts", "raw_counts", "count", "umi_counts", "umis")
#: Why values cannot be used, by the name of what :func:`detect_scale` returns.
UNUSABLE = {
    "text": "values that are not real numbers, or of a type that cannot be read",
    "missing": "missing or infinite values",
    "scaled": "scaled values (negative, or unit variance for every gene)",
    "empty": "only zeros",
    "mixed": "cells on different scales (such as counts beside logarithms)",
    "unclear": "values on no known scale (taken for log1p, the totals of cells are implausible; "
    "another base than e can be noted in uns['log1p']['base'])",
}
# Limits below are for real data sets (16 of them, UMIs and reads, each with all genes, variable
# genes and 300 genes at random; "corrected" means ambient RNA was removed, so that fractions stay).
#: Totals of normalised cells: their standard deviation in natural logarithms was below 1e-4 with
#: the right inversion, on all genes, and at least 0.05 with a wrong one.
CONSTANT = 0.02
#: On some of the genes it was at most 0.67 after the inversion of log1p, and 0.84 to 9.6 where
#: corrected counts (0.72 below 60 molecules a cell) were taken for log1p.
SPREAD = 0.7
#: CPM and TPM add up to 1e6, RPKM to a few times that; log2 CPM taken for ln, to 2e7 and more.
TOTAL = 1e7
#: The variance of a gene is at least about its mean in counts (0.94 of it in corrected ones, least
#: of the 20 genes of the largest mean); of logarithms it was 0.02 to 3, mostly less than 0.8.
NOISE = 0.85
#: Share of integers, of which logarithms have none, that makes fractions estimates of counts.
INTEGERS = 0.25


class Scale(NamedTuple):
    """What values are: the name of a scale, or why they cannot be used.

    Attributes
    ----------
    name
        "counts", "linear", "log1p" or a key of ``UNUSABLE``.
    base, times
        Of the logarithm, and how often it was taken.
    """

    name: str
    base: float = np.e
    times: int = 1

    def linear(self, values: np.ndarray) -> np.ndarray:
        """Values on the linear scale; what is far beyond any (e^50) is cut off there."""
        for _ in range(self.times if self.name == "log1p" else 0):
            values = np.expm1(np.minimum(values * values.dtype.type(np.log(self.base)), 50))
        return values


class NotNumbersError(TypeError):
    """Values that are not real numbers."""


def numbers(values: np.ndarray) -> np.ndarray:
    """The same values in a type that sparse matrices can have.

    Raises
    ------
    NotNumbersError
        They are not real numbers.
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
    """A sparse matrix in memory as CSR of numbers; any other as it is."""
    if not sp.issparse(matrix):
        return matrix
    data = numbers(matrix.data)
    if data.dtype != matrix.data.dtype:
        matrix = type(matrix)((data, matrix.indices, matrix.indptr), shape=matrix.shape)
    return matrix if matrix.format == "csr" else sp.csr_matrix(matrix)  # rows of CSC are slow


def rows(matrix: Any, start: int, stop: int) -> sp.csr_matrix:
    """Rows ``start:stop`` of a dense, sparse, backed or lazy matrix as CSR in memory.

    Raises
    ------
    NotNumbersError
        They do not hold real numbers.
    """
    try:
        block = matrix[start:stop]
    except ValueError as error:
        if "does not support dtype" in str(error):  # of SciPy, about a sparse matrix in a file
            raise NotNumbersError(str(error)) from None
        raise
    if hasattr(block, "compute"):  # dask
        block = block.compute()
    if hasattr(block, "to_memory"):
        block = block.to_memory()
    x = sp.csr_matrix(as_csr(block) if sp.issparse(block) else numbers(np.asarray(block)))
    if not x.has_canonical_format:  # entries of a gene in several parts are one value
        x = x.copy()
        x.sum_duplicates()
    return x


def take_columns(x: sp.csr_matrix, column: np.ndarray, n_columns: int) -> sp.csr_matrix:
    """The columns of ``x`` that are wanted, in float32 and where they are wanted.

    Parameters
    ----------
    x
        CSR (n_cells, n_genes).
    column
        Where each of its columns goes, (n_genes,); -1 leaves it out. Columns that go to the same
        place are added up.
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
    """Expression values where they lie in an AnnData, and the scale that they are on.

    Attributes
    ----------
    matrix, var
        The values, (n_cells, n_genes), and the genes.
    side, slot
        Whose they are ("ref", "query", ...), and where they lie.
    scale
        "counts", "linear" or "log1p".
    base, times
        Of the logarithm, and how often it was taken.
    """

    matrix: Any
    var: pd.DataFrame
    side: str
    slot: str
    scale: str
    base: float = np.e
    times: int = 1

    @property
    def n_cells(self) -> int:
        return self.matrix.shape[0]

    def linear(self, column: np.ndarray, n_columns: int) -> Iterator[sp.csr_matrix]:
        """Chunks of cells on the linear scale, genes placed as :func:`take_columns` has it.

        Raises
        ------
        ValueError
            A chunk holds values that the scale does not admit.
        """
        scale = Scale(self.scale, self.base, self.times)
        for start in range(0, self.n_cells, CHUNK):
            try:
                x = rows(self.matrix, start, min(start + CHUNK, self.n_cells))
            except NotNumbersError:
                raise self._contradiction(UNUSABLE["text"], start) from None
            self._check(x, start)
            if self.scale == "log1p":
                # before columns are added up
                x = sp.csr_matrix(x, dtype=np.float32)
                x.data = scale.linear(x.data)
            yield take_columns(x, column, n_columns)

    def _check(self, x: sp.csr_matrix, start: int) -> None:
        """Refuse values that contradict the scale, which was decided on a sample."""
        values = x.data
        low, high = (values.min(), values.max()) if values.size else (0, 0)
        if not (np.isfinite(low) and np.isfinite(high)):  # NaN is the least and the largest
            found = UNUSABLE["missing"]
        elif low < 0:
            found = "negative values"
        elif self.scale == "counts" and (np.trunc(values) != values).any():
            found = "fractions"
        elif self.scale == "log1p" and high > LOG_MAX:
            found = f"values above {LOG_MAX:g}, which are no logarithms"
        elif self.scale == "log1p" and self.base != 2 and cells_of_counts(x):
            found = "cells of nothing but integers, which are counts"
        else:
            return
        raise self._contradiction(found, start)

    def _contradiction(self, found: str, start: int) -> ValueError:
        return ValueError(
            f"The {self.side}'s {self.slot} was read as {self.scale} values, as a sample of its "
            f"cells has it, but the cells from {start} to {start + CHUNK} hold {found}. Bring all "
            "cells to one scale, drop those, or name other values with layer=..."
        )


def cells_of_counts(x: sp.csr_matrix) -> int:
    """The number of cells with nothing but integers, 10 or more and not all of them 1.

    Logarithms are no integers, but for those in base 2 of 1, 3, 7, ...
    """
    fractions = np.add.reduceat(np.append(np.trunc(x.data) != x.data, 0), x.indptr[:-1], dtype=int)
    large = np.add.reduceat(np.append(x.data > 1, 0), x.indptr[:-1], dtype=int)
    return int(((np.diff(x.indptr) >= 10) & (fractions == 0) & (large > 0)).sum())


def multiples(x: sp.csr_matrix, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """Cells whose values are multiples of their least, as counts are after any normalisation.

    Parameters
    ----------
    x
        CSR (n_cells, n_genes) without zeros and empty cells.
    scale
        The scale that its values may be on.

    Returns
    -------
    Whether they are, and whether there are values that can tell, each (n_cells,).
    """
    values, least = scale.linear(x.data), np.minimum.reduceat(x.data, x.indptr[:-1])
    ratio = values / np.repeat(scale.linear(least), np.diff(x.indptr))
    telling = (ratio > 1.5) & (ratio < 10.5)
    whole = telling & (np.abs(ratio - np.round(ratio)) < 0.05)
    n_telling, n_whole = (np.add.reduceat(a, x.indptr[:-1], dtype=int) for a in (telling, whole))
    able = n_telling >= 5
    # the logarithm of 1 + far less than 1 is proportional to that: on any scale they are multiples
    return able & (n_whole >= 0.9 * n_telling) & (least >= 0.002), able


def scale_of_counts(x: sp.csr_matrix, scales: list[Scale]) -> tuple[Scale | None, np.ndarray]:
    """The scale on which the cells hold multiples of one count each.

    On real UMIs the share of such cells (of those that can tell) was 0.62 to 1 on the right scale;
    for corrected log-values, TPM, RPKM and scaled values it was at most 0.013 on any scale.

    Returns
    -------
    The scale, None if there is none, "mixed" if cells differ in it; and which cells are evidence
    against it, (n_cells,).
    """
    fits, able = map(np.array, zip(*(multiples(x, scale) for scale in scales), strict=True))
    n = max(able.any(axis=0).sum(), 0.1 * x.shape[0])
    best = int(fits.sum(axis=1).argmax())
    total = np.add.reduceat(scales[best].linear(x.data), x.indptr[:-1])
    rest = ~fits[best] & (able[best] | (total > TOTAL))
    if fits[best].sum() < 0.25 * n:
        return None, rest
    mixed = (fits & rest).sum(axis=1).max() >= 0.1 * n
    return Scale("mixed") if mixed else scales[best], rest


def is_scaled(x: sp.csr_matrix) -> bool:
    """Whether each gene was divided by its standard deviation, and maybe cut off at a maximum.

    Genes that reach the maximum, and those of few cells, do not count. On real data the 0.8
    quantile of ``|variance - 1|`` was 0.00 (on every other cell mostly 0.06 to 0.3), otherwise 0.30
    or more; and one gene had the maximum, but 17 or more where it was a limit (of 10, all genes).
    """
    n_cells, top = x.shape[0], x.data.max()
    if n_cells <= 20:
        return False
    if len(np.unique(x.indices[x.data == top])) >= 5:
        return True
    mean, square = (np.asarray(a.mean(axis=0)).ravel() for a in (x, x.multiply(x)))
    variance = (square - mean**2) * n_cells / (n_cells - 1)
    highest = x.max(axis=0).toarray().ravel()
    take = (highest < top) & (x.getnnz(axis=0) >= 0.05 * n_cells) & (variance > 0)
    return bool(take.any() and np.quantile(np.abs(variance[take] - 1), 0.8) < 0.2)


def scale_of_totals(x: sp.csr_matrix, scales: list[Scale]) -> Scale:
    """The scale that makes the totals of cells alike, or at least likely.

    Parameters
    ----------
    x
        CSR (n_cells, n_genes), float64.
    scales
        "log1p" in the base that is taken unless another fits clearly better, in other bases and
        repeated, and "linear".
    """
    x = thinned(x)
    totals = [np.add.reduceat(scale.linear(x.data), x.indptr[:-1]) for scale in scales]
    spread = np.array([np.log(total).std() for total in totals])
    best = int(spread.argmin())
    if spread[best] < min(CONSTANT, 0.2 * spread[0]):
        return scales[best]
    highest = np.array([total.max() for total in totals])
    likely = (spread <= SPREAD) & (highest <= TOTAL)
    if likely[0]:
        return scales[0]
    others = [
        scale
        for scale, fits in zip(scales, likely & (highest[0] > TOTAL), strict=True)
        if fits and scale.name == "log1p" and scale.times == 1
    ]
    mean, square = (np.asarray(a.mean(axis=0)).ravel() for a in (x, x.multiply(x)))
    top = np.argsort(mean)[-20:]
    noisy = spread[0] > SPREAD and ((square - mean**2)[top] >= NOISE * mean[top]).all()
    if noisy == bool(others):
        return Scale("unclear")
    return Scale("linear") if noisy else others[0]


def scale_of_fractions(x: sp.csr_matrix, scales: list[Scale]) -> Scale:
    """The scale of values that are no multiples of counts, "scaled" or "unclear"."""
    total = np.asarray(x.sum(axis=1)).ravel()
    if len(total) > 1 and total.std() < 1e-3 * total.mean():
        return Scale("linear")
    below = x.data[x.data < x.data.max()]  # a limit may be an integer
    if (np.trunc(below) == below).sum() > INTEGERS * x.nnz:
        return Scale("linear")
    if is_scaled(x):
        return Scale("scaled")
    if x.data.max() > LOG_MAX:
        return Scale("linear")
    return scale_of_totals(x, scales)


def sample(matrix: Any) -> sp.csr_matrix:
    """All cells if they are few, else some runs of them."""
    n_cells = matrix.shape[0]
    if n_cells <= SAMPLE:
        return rows(matrix, 0, n_cells)
    size = SAMPLE // RUNS
    starts = np.linspace(0, n_cells - size, RUNS).astype(int)
    return sp.vstack([rows(matrix, start, start + size) for start in starts], format="csr")


def thinned(x: sp.csr_matrix, most: int = 2048) -> sp.csr_matrix:
    """Every cell, or every second, third, ..., so that at most ``most`` are left."""
    return x[:: -(-x.shape[0] // most)]


def detect_scale(matrix: Any, bases: Sequence[float] = ()) -> Scale:
    """Scale of a matrix, by a sample of its cells.

    Counts are integers. Where they were multiplied by a factor for each cell, and maybe
    log-transformed, the inversion in the right base, and in no other, makes the values of a cell
    multiples of its least. Otherwise it makes the totals of cells constant, if all genes are there.
    If neither decides, it is log1p in the first base, unless that gives totals that are
    implausible.

    Parameters
    ----------
    bases
        That the logarithm may have, besides e, 2 and 10.

    Returns
    -------
    ``"counts"`` (non-negative integers), ``"log1p"``, ``"linear"`` (non-negative, normalised but
    not logarithmic: CPM, TPM, RPKM), or why it cannot be used: a key of ``UNUSABLE``.
    """
    x = sample(matrix)
    if not np.isfinite(x.data).all():
        return Scale("missing")
    if x.data.min(initial=0) < 0:
        return Scale("scaled")
    if x.data.max(initial=0) == 0:
        return Scale("empty")
    if (np.trunc(x.data) == x.data).all():
        return Scale("counts")
    x = x.astype(np.float64)
    x.eliminate_zeros()
    x = x[np.flatnonzero(x.getnnz(axis=1))]
    logs = [Scale("log1p", base) for base in dict.fromkeys([*bases, np.e, 2.0, 10.0])]
    scales = [*logs, Scale("log1p", np.e, 2), Scale("linear")]
    some = thinned(x)
    scale, rest = scale_of_counts(some, [scales[-1], *scales[:-1]])
    if scale is None:
        scale = scale_of_fractions(x, scales)
    elif rest.sum() >= 0.2 * some.shape[0]:
        others = scale_of_fractions(some[np.flatnonzero(rest)], [scale, *scales])
        scale = scale if others == scale else Scale("mixed")
    if scale.name == "log1p" and scale.base != 2 and cells_of_counts(x):
        return Scale("mixed")
    return scale


def noted_base(uns: Any) -> float | None:
    """The base that ``scanpy.pp.log1p`` noted in ``uns``; None if it noted none, or no number."""
    noted = uns.get("log1p")
    base = noted.get("base") if isinstance(noted, Mapping) else None
    try:
        number = float(base)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if 1 < number < np.inf else None


def find_expression(adata: AnnData, layer: str | None, side: str) -> tuple[Expression, list[str]]:
    """The usable expression values of ``adata``, and what was noted on the way.

    ``layer`` names where to look (``"raw"`` for ``adata.raw``). Without it ``X`` is taken, or, if
    ``X`` cannot be used, ``raw`` or a layer of counts.

    Raises
    ------
    KeyError
        ``layer`` is not there.
    ValueError
        No cells, or no values on a scale that can be used.
    """
    if adata.n_obs == 0:
        raise ValueError(f"{side} has no cells: found shape {adata.shape}.")
    noted = noted_base(adata.uns)
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
        try:
            matrix = as_csr(matrix)
            bases = [noted or np.e, np.e]  # of X: that raw has it too, it must show
            name, base, times = detect_scale(matrix, bases[:: -1 if slot == "raw.X" else 1])
        except NotNumbersError:
            name = "text"
        if name not in UNUSABLE:
            notes = [f"{side}: read {name} values from {slot}"]
            if refused:
                notes[0] += f", because {' and '.join(refused)}"
            if name == "log1p" and times > 1:
                notes.append(f"{side}: {slot} was log-transformed twice; both were undone")
            if name == "log1p" and not base == (noted or np.e) == np.e:
                was = f", not {noted:g} as uns['log1p'] has it" if noted and noted != base else ""
                is_base = "e" if base == np.e else f"{base:g}"
                notes.append(f"{side}: {slot} is in logarithms to base {is_base}{was}")
            return Expression(matrix, var, side, slot, name, base, times), notes
        refused.append(f"{slot} holds {UNUSABLE[name]}")
    raise ValueError(
        f"The {side} has no usable expression values: {'; '.join(refused) or 'X is empty'}. "
        "Pass raw counts or log1p-normalised values in X, in adata.raw, or in a layer named with "
        "layer=..."
    )
