"""Statistics of labelled cells that travel with a model, and cells that are drawn from them.

They are means over groups of at least 20 cells, so that no cell can be read from them; but a type
of fewer cells is a single group, and that of a type with one cell is this cell.
``docs/methods/auto.md`` has the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from sklearn.cluster import KMeans

from sctool._neighbors import group_means, principal_components
from sctool.novelty._n_types import MIN_GROUP, N_COMPONENTS, join_smallest

#: Maximum number of groups of a type, and of its cells that they are made of.
MAX_GROUPS, MAX_CELLS = 10, 2000
#: Number of cells that are drawn of a type: as many as it had, within these bounds.
MIN_DRAWN, MAX_DRAWN = 50, 300
#: Bounds of the dispersion.
DISPERSION = (1e-3, 10.0)


@dataclass(frozen=True)
class Profiles:
    """Groups of similar cells of each type, described by moments.

    Groups have at least 20 cells, unless the type has fewer.

    Attributes
    ----------
    mean
        Log1p of the mean expression (CP10k) of each group, (n_groups, n_genes) float16.
    dispersion
        By what the variance exceeds that of counts, divided by the squared mean,
        (n_groups, n_genes) float16.
    unit
        Mean and standard deviation over a group's cells of the logarithm of one count in CP10k,
        (n_groups, 2) float32.
    n_cells
        Number of labelled cells that each group stands for, (n_groups,) float32.
    types
        Type code of each group, (n_groups,) int64, sorted.
    """

    mean: np.ndarray
    dispersion: np.ndarray
    unit: np.ndarray
    n_cells: np.ndarray
    types: np.ndarray

    @classmethod
    def fit(cls, x: sp.csr_matrix, labels: np.ndarray, unit: np.ndarray) -> Profiles:
        """Describe labelled cells.

        Parameters
        ----------
        x
            Cells, log1p CP10k, CSR (n_cells, n_genes).
        labels
            Their type codes, (n_cells,).
        unit
            One count in CP10k, (n_cells,), see :func:`one_count`.
        """
        groups = []
        for t in np.unique(labels):
            members = np.flatnonzero(labels == t)
            cells = np.random.default_rng(0).permutation(members)[:MAX_CELLS]
            codes = _groups(x[cells])
            linear = x[cells].astype(np.float64)
            linear.data = np.expm1(linear.data)
            squared = linear.copy()
            squared.data **= 2
            mean = group_means(linear, codes)
            of_counts = mean * group_means(unit[cells, None], codes)
            excess = group_means(squared, codes) - mean**2 - of_counts
            log_unit = np.log(unit[cells])
            spread = [log_unit[codes == g].std() for g in range(len(mean))]
            groups.append(
                (
                    np.log1p(mean),
                    np.clip(excess / np.maximum(mean, 1e-9) ** 2, *DISPERSION),
                    np.stack([group_means(log_unit[:, None], codes)[:, 0], spread], axis=1),
                    np.bincount(codes) * (len(members) / len(cells)),
                    np.full(len(mean), t),
                )
            )
        mean, dispersion, units, n_cells, types = map(np.concatenate, zip(*groups, strict=True))
        return cls(
            mean.astype(np.float16),
            dispersion.astype(np.float16),
            units.astype(np.float32),
            n_cells.astype(np.float32),
            types.astype(np.int64),
        )

    def draw(self, rng: np.random.Generator) -> tuple[sp.csr_matrix, np.ndarray]:
        """Draw cells: counts of a negative binomial distribution, at a depth like the group's.

        Returns
        -------
        Cells, log1p CP10k, CSR (n_cells, n_genes) float32; and their type codes, (n_cells,).
        """
        x, labels = [], []
        for t in np.unique(self.types):
            groups = np.flatnonzero(self.types == t)
            weight = self.n_cells[groups].astype(np.float64)
            n = int(np.clip(weight.sum(), MIN_DRAWN, MAX_DRAWN))
            group = rng.choice(groups, n, p=weight / weight.sum())
            unit = np.exp(rng.normal(*self.unit[group].T.astype(np.float64)))[:, None]
            dispersion = self.dispersion[group].astype(np.float64)
            rate = np.expm1(self.mean[group].astype(np.float64))
            rate *= rng.gamma(1 / dispersion, dispersion)
            counts = rng.poisson(rate / unit)
            x.append(sp.csr_matrix(np.log1p(counts * unit).astype(np.float32)))
            labels.append(np.full(n, t))
        return sp.vstack(x, format="csr"), np.concatenate(labels)


def one_count(x: sp.csr_matrix) -> np.ndarray:
    """One count in CP10k of each cell, (n_cells,): its smallest value above 0.

    Nearly every cell has a gene with a single count. Of data that are not counts it is no more than
    the resolution of their values. Cells without any get the median.

    Parameters
    ----------
    x
        Cells, log1p CP10k of all genes, CSR (n_cells, n_genes).
    """
    unit = np.full(x.shape[0], np.nan)
    filled = np.flatnonzero(np.diff(x.indptr))
    unit[filled] = np.expm1(np.minimum.reduceat(x.data.astype(np.float64), x.indptr[filled]))
    return np.where(unit > 0, unit, np.nanmedian(unit))


def _groups(x: sp.csr_matrix) -> np.ndarray:
    """Group of each of a type's cells, (n_cells,)."""
    n = min(x.shape[0] // (2 * MIN_GROUP), MAX_GROUPS)
    if n < 2:
        return np.zeros(x.shape[0], dtype=np.int64)
    z = principal_components(x, N_COMPONENTS, 0)
    codes = np.unique(KMeans(n, n_init=1, random_state=0).fit_predict(z), return_inverse=True)[1]
    while codes.max() > 0 and np.bincount(codes).min() < MIN_GROUP:
        codes = join_smallest(z, codes)
    return codes
