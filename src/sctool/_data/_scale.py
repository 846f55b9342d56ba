"""On which scale expression values are: counts, linear, or logarithms in some base.

Pure arrays; where the values are in an AnnData is the matter of ``_expression.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

#: log2(CPM + 1) is below log2(1e6) < 20, so larger values than this cannot be logarithmic.
LOG_MAX = 25.0
#: Reasons why values are unusable, by the name of the :class:`Scale`.
UNUSABLE = {
    "text": "values that are not real numbers, or of a type that cannot be read",
    "missing": "missing or infinite values",
    "scaled": "scaled values (negative, or unit variance for every gene)",
    "empty": "only zeros",
    "mixed": "cells on different scales (such as counts beside logarithms)",
    "coarse": "whole numbers that vary less than counts do (such as rounded logarithms, or 1 for "
    "every gene that is expressed)",
    "altered": "values that were counts, but neither these, multiples of them nor their logarithms "
    "(such as square roots, ranks, or logarithms that were normalised; another base than e, 2 and "
    "10 can be noted in uns['log1p']['base'])",
    "unclear": "values on no known scale (taken for log1p, the totals of cells are implausible; "
    "another base than e can be noted in uns['log1p']['base'])",
}
# The limits below were measured on 16 real data sets (UMIs and reads; all genes, variable genes and
# 300 random genes). "Corrected" counts are those after removal of ambient RNA, which are fractions.
#: Standard deviation of the natural logarithm of the cells' totals, on all genes: below 1e-4 after
#: the right inversion of the logarithm, at least 0.05 after a wrong one.
CONSTANT = 0.02
#: The same on a subset of genes: at most 0.67 after the inversion of log1p, and 0.84 to 9.6 if
#: corrected counts are inverted by mistake (0.72 below 60 molecules per cell).
SPREAD = 0.7
#: CPM and TPM sum to 1e6 per cell, RPKM to a few times that; log2 CPM inverted as ln, to over 2e7.
TOTAL = 1e7
#: Ratio of variance to mean, the lowest of the 20 genes with the largest mean: at least 0.94 for
#: corrected counts; 0.02 to 3, mostly below 0.8, for logarithms.
NOISE = 0.85
#: The same for whole numbers, the median of the 20 genes: at least 1.35 for counts, also if 30 % of
#: the molecules are kept; 0 to 0.55 for counts of all genes that were set to 1, and 0.04 to 0.3 for
#: most logarithms that were rounded.
COARSE = 0.7
#: A cell has the levels of counts if at least these fractions of its values are the smallest one,
#: and occur more than once. So have nearly all cells of UMI data (half of them on their 300 most
#: variable genes), whatever function the counts are put through; none if genes were divided by
#: their lengths, corrected each by its own amount, or averaged over cells, and no cells of reads.
SMALLEST, REPEATED = 0.25, 0.8
#: Fraction of integers above which values are estimated counts; logarithms have hardly any.
INTEGERS = 0.25


class Scale(NamedTuple):
    """Scale of expression values, or the reason why they are unusable.

    Attributes
    ----------
    name
        "counts", "linear", "log1p" or a key of ``UNUSABLE``.
    base, times
        Base of the logarithm, and how many times it was taken.
    proven
        Whether the values show the base; otherwise it was assumed.
    """

    name: str
    base: float = np.e
    times: int = 1
    proven: bool = True

    def linear(self, values: np.ndarray) -> np.ndarray:
        """Convert to the linear scale; results are clipped at e^50 to avoid overflow."""
        for _ in range(self.times if self.name == "log1p" else 0):
            values = np.expm1(np.minimum(values * values.dtype.type(np.log(self.base)), 50))
        return values


def cells_of_counts(x: sp.csr_matrix) -> np.ndarray:
    """Find cells that have only integers, at least 10 of them and not all 1.

    Logarithms are not integers, except log2(1 + x) for x = 1, 3, 7, ...

    Returns
    -------
    Mask, (n_cells,).
    """
    large = np.add.reduceat(np.append(x.data > 1, 0), x.indptr[:-1], dtype=int)
    return (np.diff(x.indptr) >= 10) & (n_fractions(x) == 0) & (large > 0)


def n_fractions(x: sp.csr_matrix) -> np.ndarray:
    """Number of values of each cell that are no integers, (n_cells,)."""
    return np.add.reduceat(np.append(np.trunc(x.data) != x.data, 0), x.indptr[:-1], dtype=int)


def multiples(x: sp.csr_matrix, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """Find cells whose values are integer multiples of their smallest, as normalised counts are.

    Parameters
    ----------
    x
        CSR (n_cells, n_genes) without explicit zeros and empty cells.
    scale
        Scale on which the values are tested.

    Returns
    -------
    Mask of cells with multiples, and mask of cells with enough values to decide, each (n_cells,).
    """
    values, least = scale.linear(x.data), np.minimum.reduceat(x.data, x.indptr[:-1])
    ratio = values / np.repeat(scale.linear(least), np.diff(x.indptr))
    telling = (ratio > 1.5) & (ratio < 10.5)
    whole = telling & (np.abs(ratio - np.round(ratio)) < 0.05)
    n_telling, n_whole = (np.add.reduceat(a, x.indptr[:-1], dtype=int) for a in (telling, whole))
    able = n_telling >= 5
    # log(1 + x) is proportional to x for small x, so small values are multiples on any scale. (If
    # none is above 1, as in shares of a cell's total, it does not matter which is taken.)
    blurred = {0.1: np.inf, 0.01: 0.2}.get(resolution(x.data), 0) if scale.name == "log1p" else 0
    least_telling = max(0.002 if x.data.max() > 1 or scale.name == "log1p" else 0, blurred)
    return able & (n_whole >= 0.9 * n_telling) & (least >= least_telling), able


def has_levels(x: sp.csr_matrix) -> np.ndarray:
    """Find cells that have few distinct values, most often the smallest: counts, transformed.

    Counts of 1 are the most frequent and those of 2 come next, and this stays so whatever function
    the counts of a cell are put through. Cells with fewer than 20 values do not say.

    Parameters
    ----------
    x
        CSR (n_cells, n_genes) without explicit zeros and empty cells.

    Returns
    -------
    Mask, (n_cells,).
    """
    levels = np.zeros(x.shape[0], dtype=bool)
    for i, (start, stop) in enumerate(itertools.pairwise(x.indptr)):
        n = np.unique(x.data[start:stop], return_counts=True)[1]
        total = stop - start
        levels[i] = total >= 20 and n[0] >= SMALLEST * total and n[n > 1].sum() >= REPEATED * total
    return levels


def resolution(values: np.ndarray) -> float:
    """0.1 or 0.01 if values have one or two decimals, which blurs the multiples of counts, or 0."""
    for step in (0.1, 0.01):
        if np.allclose(values / step, np.round(values / step), rtol=1e-6, atol=1e-3):
            return step
    return 0.0


def scale_of_counts(x: sp.csr_matrix, scales: list[Scale]) -> tuple[Scale | None, np.ndarray]:
    """Find the scale on which each cell holds multiples of one count.

    On real UMI data the fraction of such cells, among those with enough values, was 0.62 to 1 on
    the right scale. For corrected log values, TPM, RPKM and scaled values it was at most 0.013.
    Cells with the levels of counts are stricter: of them, no cell contradicts the right scale.

    Returns
    -------
    The scale, None if there is none, "mixed" if cells differ, or "altered" if cells have the levels
    of counts on no scale; and a mask of the cells that contradict it, (n_cells,).
    """
    fits, able = map(np.array, zip(*(multiples(x, scale) for scale in scales), strict=True))
    least = np.minimum.reduceat(x.data, x.indptr[:-1])
    levels = has_levels(x) & (least >= 200 * resolution(x.data))
    # No cell expresses every gene, and most of them alike: zeros were shifted.
    fits &= ~(levels & (np.diff(x.indptr) == x.shape[1]))
    n = max(able.any(axis=0).sum(), 0.1 * x.shape[0])
    best = int(fits.sum(axis=1).argmax())
    total = np.add.reduceat(scales[best].linear(x.data), x.indptr[:-1])
    rest = ~fits[best] & (able[best] | (total > TOTAL))
    judged = levels & able.any(axis=0)
    if judged.sum() >= max(5, 0.25 * x.shape[0]) and fits[best][judged].mean() < 0.5:
        return Scale("altered"), rest
    if fits[best].sum() < 0.25 * n:
        return None, rest
    others = fits & rest
    mixed = others.sum(axis=1).max() >= 0.1 * n
    mixed |= (others & levels).sum(axis=1).max() >= max(2, 0.005 * x.shape[0])
    return Scale("mixed") if mixed else scales[best], rest


def is_coarse(x: sp.csr_matrix) -> bool:
    """Whether whole numbers are no counts, but rounded logarithms or 1 for what is expressed.

    The variance of a gene's counts is at least its mean, and the smallest count, if it is the most
    frequent, is the unit of the others.
    """
    if x.shape[0] < 20 or x.data.max() > LOG_MAX:
        return False
    least = np.repeat(np.minimum.reduceat(x.data, x.indptr[:-1]), np.diff(x.indptr))
    above, odd = (
        np.add.reduceat(values, x.indptr[:-1], dtype=int)
        for values in (x.data > least, x.data % least > 0)
    )
    if (has_levels(x) & (odd > 0.1 * above)).mean() > 0.25:
        return True
    ratio = noise(x)  # (0 if all cells are the same, which says nothing)
    return len(ratio) == 20 and bool(0.01 < np.median(ratio) < COARSE)


def noise(x: sp.csr_matrix, n_genes: int = 20) -> np.ndarray:
    """Ratio of variance to mean of the genes with the largest means, (n_genes,)."""
    mean, square = (np.asarray(a.mean(axis=0)).ravel() for a in (x, x.multiply(x)))
    top = np.argsort(mean)[-n_genes:]
    top = top[mean[top] > 0]
    return (square - mean**2)[top] / mean[top]


def is_scaled(x: sp.csr_matrix) -> bool:
    """Whether genes were divided by their standard deviation, and possibly clipped.

    Genes that reach the maximum, or are expressed in few cells, are left out. On real data the 0.8
    quantile of ``|variance - 1|`` was 0.00 for scaled values (0.06 to 0.3 for every other cell) and
    at least 0.30 for others. The maximum was reached by one gene, or by 17 or more if clipped.
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
    """Choose the scale on which the totals of cells are constant, or at least plausible.

    Parameters
    ----------
    x
        CSR (n_cells, n_genes), float64.
    scales
        First the default, which is chosen unless another fits clearly better; then the others.
    """
    x = thinned(x)
    totals = [np.add.reduceat(scale.linear(x.data), x.indptr[:-1]) for scale in scales]
    spread = np.array([np.log(total).std() for total in totals])
    best, enough = int(spread.argmin()), x.shape[0] >= 5
    if spread[best] < min(CONSTANT, 0.2 * spread[0]):
        return scales[best]._replace(proven=enough)
    highest = np.array([total.max() for total in totals])
    likely = (spread <= SPREAD) & (highest <= TOTAL)
    if likely[0]:
        return scales[0]._replace(proven=bool(enough and spread[0] < CONSTANT))
    others = [
        scale
        for scale, fits in zip(scales, likely & (highest[0] > TOTAL), strict=True)
        if fits and scale.name == "log1p" and scale.times == 1
    ]
    noisy = spread[0] > SPREAD and (noise(x) >= NOISE).all()
    if noisy == bool(others):
        return Scale("unclear")
    return Scale("linear") if noisy else others[0]


def scale_of_fractions(x: sp.csr_matrix, scales: list[Scale]) -> Scale:
    """Detect the scale of values that are not multiples of counts."""
    total = np.asarray(x.sum(axis=1)).ravel()
    if len(total) > 1 and total.std() < 1e-3 * total.mean():
        return Scale("linear")
    below = x.data[x.data < x.data.max()]  # values may be clipped at an integer
    if (np.trunc(below) == below).sum() > INTEGERS * x.nnz:
        return Scale("linear")
    if is_scaled(x):
        return Scale("scaled")
    if x.data.max() > LOG_MAX:
        return Scale("linear")
    return scale_of_totals(x, scales)


def thinned(x: sp.csr_matrix, most: int = 2048) -> sp.csr_matrix:
    """Take every k-th cell, so that at most ``most`` are left."""
    return x[:: -(-x.shape[0] // most)]


def scale_of(x: sp.csr_matrix, bases: Sequence[float] = ()) -> Scale:
    """Detect the scale of some cells.

    Counts are integers. If they were multiplied by a factor per cell, and possibly log-transformed,
    only the inversion in the right base makes the values of a cell multiples of its smallest. If
    they are not counts, it makes the totals of cells constant, provided all genes are present. If
    neither decides, values are log1p in the first base, unless that gives implausible totals.

    Parameters
    ----------
    x
        CSR (n_cells, n_genes).
    bases
        Bases of the logarithm to try before e, 2 and 10.

    Returns
    -------
    "counts" (non-negative integers), "log1p", "linear" (normalised but not logarithmic: CPM, TPM,
    RPKM), or a key of ``UNUSABLE``.
    """
    if not np.isfinite(x.data).all():
        return Scale("missing")
    if x.data.min(initial=0) < 0:
        return Scale("scaled")
    if x.data.max(initial=0) == 0:
        return Scale("empty")
    x = x.astype(np.float64)
    x.eliminate_zeros()
    x = x[np.flatnonzero(x.getnnz(axis=1))]
    if (np.trunc(x.data) == x.data).all():
        return Scale("coarse" if is_coarse(thinned(x)) else "counts")
    if cells_of_counts(x).sum() >= 0.5 * x.shape[0]:  # and some cells of estimated counts
        others = scale_of(x[np.flatnonzero(n_fractions(x))], bases)
        linear = others.name == "linear" or not others.proven
        return Scale("linear" if linear else "mixed")
    logs = [Scale("log1p", base) for base in dict.fromkeys([*bases, np.e, 2.0, 10.0])]
    scales = [*logs, Scale("log1p", np.e, 2), Scale("linear")]
    some = thinned(x)
    scale, rest = scale_of_counts(some, [scales[-1], *scales[:-1]])
    if scale is None:
        scale = scale_of_fractions(x, scales)
    elif scale.name not in UNUSABLE and rest.sum() >= 0.2 * some.shape[0]:
        others = scale_of_fractions(some[np.flatnonzero(rest)], [scale, *scales])
        scale = scale if others._replace(proven=True) == scale else Scale("mixed")
    if scale.name == "log1p" and scale.base != 2 and cells_of_counts(x).any():
        return Scale("mixed")
    return scale
