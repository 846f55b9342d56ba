"""Leiden on the neighbour graph of principal components: scanpy's pipeline, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from sctool.model._parting import by_size, leiden, neighbour_graph, principal_components

#: Scanpy's own defaults, and Leiden's default resolution.
N_COMPONENTS, N_NEIGHBORS, RESOLUTION = 50, 15, 1.0
#: Fewer cells, or genes, than this cannot be clustered.
MIN_CELLS = 10
#: Steps of the search for a resolution.
STEPS = 20
#: Draws of cells to count clusters in, their share, their number at most, and the resolutions.
DRAWS, SHARE, DRAWN, LOWEST, HIGHEST = 10, 0.8, 5000, 0.5, 2.0


@dataclass(frozen=True)
class Groups:
    """What the pipeline ends with.

    Attributes
    ----------
    codes
        Cluster of each cell, (n_cells,), by size.
    score
        Share of each cell's neighbours, weighted as the graph has them, in its cluster, (n_cells,).
    z
        Principal components, (n_cells, n_components) float32.
    resolution
        Of Leiden.
    """

    codes: np.ndarray
    score: np.ndarray
    z: np.ndarray
    resolution: float


def check(x: sp.csr_matrix) -> None:
    """Refuse cells (n_cells, n_genes) that cannot be clustered.

    Raises
    ------
    ValueError
        Too few cells or genes, or all cells are alike.
    """
    if min(x.shape) < MIN_CELLS:
        raise ValueError(
            f"{x.shape[0]} cells and {x.shape[1]} genes are too few: at least {MIN_CELLS} of both "
            "are needed."
        )
    if (x.max(axis=0) != x.min(axis=0)).nnz == 0:
        raise ValueError(
            f"All {x.shape[0]} cells have the same values: there is nothing to cluster."
        )


def pipeline(x: sp.csr_matrix, n_clusters: int | None, seed: int) -> Groups:
    """Principal components, neighbours and Leiden with scanpy's default settings.

    Parameters
    ----------
    x
        Log1p CP10k of informative genes, (n_cells, n_genes).
    n_clusters
        None keeps the default resolution; a number searches for one that gives it, or comes as
        near as resolutions can.
    """
    z = principal_components(x, N_COMPONENTS, seed)
    graph = neighbour_graph(z, N_NEIGHBORS, seed, "umap")
    resolution = RESOLUTION
    codes = leiden(graph, resolution, seed)
    if n_clusters is not None:
        low, high, best = 1e-3, 1e2, (codes, resolution)
        for _ in range(STEPS):
            n = codes.max() + 1
            if n == n_clusters:
                break
            low, high = (resolution, high) if n < n_clusters else (low, resolution)
            resolution = float(np.sqrt(low * high))
            codes = leiden(graph, resolution, seed)
            if abs(codes.max() + 1 - n_clusters) < abs(best[0].max() + 1 - n_clusters):
                best = codes, resolution
        codes, resolution = best
    codes = by_size(codes)
    weights = graph.obsp["connectivities"]
    member = sp.csr_matrix((np.ones(len(codes)), (np.arange(len(codes)), codes)))
    within = np.asarray((weights @ member).multiply(member).sum(axis=1)).ravel()
    total = np.asarray(weights.sum(axis=1)).ravel()
    score = np.divide(within, total, out=np.zeros(len(codes)), where=total > 0)
    return Groups(codes, np.minimum(score, 1).astype(np.float32), z, resolution)


def count(z: np.ndarray, rng: np.random.Generator) -> dict[str, int]:
    """Estimate the number of clusters, and how far it depends on the cells and on the resolution.

    Leiden counts them in ten draws of four fifths of the cells, at resolutions from 0.5 to 2.

    Parameters
    ----------
    z
        Principal components, (n_cells, n_components).

    Returns
    -------
    The median "n", and "low" and "high", the 10 % and 90 % quantiles.
    """
    size = max(min(int(SHARE * len(z)), DRAWN), min(len(z), 3))
    counts = []
    for resolution in np.geomspace(LOWEST, HIGHEST, DRAWS):
        drawn = np.sort(rng.permutation(len(z))[:size])
        seed = int(rng.integers(2**31))
        graph = neighbour_graph(z[drawn], N_NEIGHBORS, seed, "umap")
        counts.append(leiden(graph, resolution, seed))
    n = [int(codes.max()) + 1 for codes in counts]
    low, median, high = np.quantile(n, [0.1, 0.5, 0.9])
    return {"n": round(median), "low": int(np.floor(low)), "high": int(np.ceil(high))}
