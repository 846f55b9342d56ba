"""Larger data without copies of cells: new cells between neighbours, with counts drawn anew."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD
from sklearn.neighbors import NearestNeighbors

#: Cells that are drawn at a time.
BLOCK = 8192


def neighbours(x: sp.csr_matrix, labels: np.ndarray, n: int = 10) -> np.ndarray:
    """Positions of each cell's nearest neighbours of its own type, (n_cells, n)."""
    log = x.multiply(1e4 / np.maximum(x.sum(axis=1), 1)).tocsr().log1p()
    z = TruncatedSVD(min(30, x.shape[1] - 1), random_state=0).fit_transform(log)
    found = np.repeat(np.arange(len(labels))[:, None], n, axis=1)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        k = min(n + 1, len(own))
        near = (
            NearestNeighbors(n_neighbors=k).fit(z[own]).kneighbors(return_distance=False, X=z[own])
        )
        found[own, : k - 1] = own[near[:, 1:]]
    return found


def mixed(
    x: sp.csr_matrix, near: np.ndarray, cells: np.ndarray, rng: np.random.Generator
) -> sp.csr_matrix:
    """Draw one new cell for each of ``cells``, CSR of counts.

    Its expected counts lie between those of the cell and of one of its neighbours.
    """
    share = rng.uniform(size=(len(cells), 1))
    other = near[cells, rng.integers(near.shape[1], size=len(cells))]
    new = (x[cells].multiply(1 - share) + x[other].multiply(share)).tocsr()
    new.data = rng.poisson(new.data).astype(np.float32)
    new.eliminate_zeros()
    return new


def larger(
    x: sp.csr_matrix, labels: np.ndarray, n_cells: int, seed: int
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Draw ``n_cells`` new cells from labelled ones.

    Parameters
    ----------
    x, labels
        Counts, CSR (n, n_genes), and types as str, (n,).

    Returns
    -------
    Counts of the new cells, float32 CSR (n_cells, n_genes), and the cell that each was drawn from,
    (n_cells,), in ascending order.
    """
    if (x.data != np.round(x.data)).any():
        raise ValueError("n_cells needs counts in X, to draw counts anew")
    rng = np.random.default_rng(seed)
    near = neighbours(x, labels)
    cells = np.sort(rng.choice(len(labels), n_cells))
    parts = np.array_split(cells, -(-n_cells // BLOCK))
    return sp.vstack([mixed(x, near, part, rng) for part in parts], format="csr"), cells
