"""Some of many cells, for what would take too long with all of them.

A search for novel types compares cells with each other; a model that learnt from its result names
the others. With a fixed number of cells its time does not grow, nor does the number of groups that
many cells of one type fall into.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from sklearn.cluster import MiniBatchKMeans

from sctool._data._sample import sample
from sctool._neighbors import fit_pca

#: Largest number of unlabelled, and of labelled, cells that are searched.
MOST = 10_000
#: Cells that are taken of a region or of a type at least, if it has so many.
FEW = 10
#: Number of components and of regions, and of cells that they are found with.
N_COMPONENTS, N_REGIONS, FITTED = 30, 100, 20_000


def sketch_regions(x: sp.csr_matrix) -> np.ndarray:
    """Choose cells so that rare regions keep some of theirs.

    Regions are clusters of k-means on principal components. Of each the same share is taken, which
    leaves proportions as they are, but at least ``FEW`` cells.

    Parameters
    ----------
    x
        Cells, log1p CP10k, CSR (n_cells, n_genes).

    Returns
    -------
    Positions in ascending order, at most ``MOST``.
    """
    n = x.shape[0]
    if n <= MOST:
        return np.arange(n)
    some = np.linspace(0, n - 1, min(FITTED, n)).astype(int)
    pca = fit_pca(x[some], N_COMPONENTS, 0)
    z = pca.transform(x).astype(np.float32)
    regions = MiniBatchKMeans(N_REGIONS, n_init=1, batch_size=4096, random_state=0)
    return _chosen(regions.fit(z[some]).predict(z))


def sketch_types(labels: np.ndarray) -> np.ndarray:
    """Choose labelled cells in the same way, by their type codes (n_cells,)."""
    return _chosen(labels)


def _chosen(codes: np.ndarray) -> np.ndarray:
    mask = sample(codes, MOST, FEW)
    return np.arange(len(codes)) if mask is None else np.flatnonzero(mask)
