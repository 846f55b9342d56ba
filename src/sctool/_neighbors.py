"""Principal components, neighbour graphs and clusters, with scikit-learn and scanpy."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("sctool")

#: Above this number of cells, neighbours are approximate and k-means uses minibatches.
MANY_CELLS = 50_000
#: Defaults of scanpy.
N_COMPONENTS, N_NEIGHBORS, RESOLUTION = 50, 15, 1.0
#: Minimum number of cells and of genes for clustering.
MIN_CELLS = 10
#: Maximum steps of the search for a resolution.
STEPS = 20
#: Counting of clusters: number of draws, share of cells, maximum cells, range of resolutions.
DRAWS, SHARE, DRAWN, LOWEST, HIGHEST = 10, 0.8, 5000, 0.5, 2.0


def fit_pca(x: sp.csr_matrix, n: int, seed: int) -> PCA:
    """Fit the first ``n`` principal components (fewer for small data) of sparse data.

    In double precision: in single precision, components of nearly equal variance would depend on
    the order of summation.
    """
    n = _at_most(n, x)
    return PCA(n, svd_solver="arpack", random_state=seed).fit(x.astype(np.float64))


def principal_components(x: sp.csr_matrix, n: int, seed: int) -> np.ndarray:
    """Scores on the first ``n`` principal components (fewer for small data), float32."""
    n = _at_most(n, x)
    return PCA(n, svd_solver="arpack", random_state=seed).fit_transform(x).astype(np.float32)


def _at_most(n: int, x: sp.csr_matrix) -> int:
    """The number of principal components that the data have, of up to ``n``."""
    if min(x.shape) < 2:
        raise ValueError(
            f"{x.shape[0]} cells with {x.shape[1]} genes have no principal components: at least 2 "
            "of each are needed. Use more genes, such as with n_top_genes=2000."
        )
    return min(n, min(x.shape) - 1)


@cache
def _say_what_is_compiled() -> None:
    """Say once in a process what the first approximate search waits for."""
    logger.warning(
        f"Above {MANY_CELLS} cells neighbours are searched approximately, by pynndescent; the "
        "first search of a process compiles it, which takes about half a minute."
    )


def neighbor_graph(z: np.ndarray, n_neighbors: int, seed: int, weights: str = "gauss") -> AnnData:
    """Compute the neighbour graph of cells (n_cells, n_latent) in scanpy's format.

    The search is exact up to ``MANY_CELLS``: scanpy's default is compiled in each process, which
    takes half a minute.

    Parameters
    ----------
    weights
        "gauss" or "umap"; with the latter, a few distant cells form their own cluster.
    """
    import scanpy as sc
    from anndata import AnnData

    cells = AnnData(obs=pd.DataFrame(index=np.arange(len(z)).astype(str)), obsm={"X": z})
    search = sc.Neighbors(cells)
    few = len(z) <= MANY_CELLS
    if not few:
        _say_what_is_compiled()
    with warnings.catch_warnings():
        # Raised by scanpy if a cell has more duplicates than neighbours.
        warnings.simplefilter("ignore", sp.SparseEfficiencyWarning)
        search.compute_neighbors(
            n_neighbors=min(n_neighbors, len(z) - 1),
            use_rep="X",
            method=None if few or weights == "gauss" else weights,
            transformer="sklearn" if few else "pynndescent",
            random_state=seed,
        )
    cells.obsp["distances"] = search.distances
    own = gauss_weights if weights == "gauss" else umap_weights
    cells.obsp["connectivities"] = (
        own(search.distances) if search.connectivities is None else search.connectivities
    )
    return cells


def gauss_weights(distances: sp.csr_matrix) -> sp.csr_matrix:
    """Gaussian weights of a neighbour graph (Haghverdi et al. 2016), as scanpy computes them.

    The squared width of a cell's kernel is the median squared distance of its neighbours. Scanpy
    loops over cells and neighbours in Python, which took a third of the time of a search.

    Parameters
    ----------
    distances
        Distances from each cell to k others, (n_cells, n_cells).
    """
    squared = distances.power(2)
    width = np.median(squared.data.reshape(squared.shape[0], -1), axis=1)
    of_row = np.repeat(width, np.diff(squared.indptr))
    of_column = width[squared.indices]
    total = np.where(of_row + of_column > 0, of_row + of_column, 1)
    overlap = np.sqrt(2 * np.sqrt(of_row) * np.sqrt(of_column) / total)
    weight = np.where(of_row + of_column > 0, overlap, 1) * np.exp(-squared.data / total)
    directed = sp.csr_matrix((weight, squared.indices, squared.indptr), shape=squared.shape)
    return sp.csr_matrix(directed.maximum(directed.T))


def umap_weights(distances: sp.csr_matrix) -> sp.csr_matrix:
    """UMAP's weights of a neighbour graph (McInnes et al. 2018, section 3.1).

    The nearest neighbour of a cell has weight 1; weights decay exponentially with distance, at a
    rate such that they sum to log2(k + 1). Both directions are combined by the probabilistic sum.
    Scanpy uses umap-learn for this, which takes 20 s to compile in each process.

    Parameters
    ----------
    distances
        Distances from each cell to k others, (n_cells, n_cells).
    """
    n = distances.shape[0]
    d = distances.data.astype(np.float64).reshape(n, -1)
    target = np.log2(d.shape[1] + 1)
    nearest = np.min(d, axis=1, where=d > 0, initial=np.inf, keepdims=True)
    nearest[np.isinf(nearest)] = 0  # all neighbours are duplicates
    beyond = np.maximum(d - nearest, 0)
    low, high, width = np.zeros((n, 1)), np.full((n, 1), np.inf), np.ones((n, 1))
    for _ in range(40):  # to single precision
        wide = np.exp(-beyond / width).sum(axis=1, keepdims=True) > target
        low, high = np.where(wide, low, width), np.where(wide, width, high)
        width = np.where(np.isinf(high), 2 * width, (low + high) / 2)
    # umap-learn's lower bounds, which give equidistant cells equal weights
    with_self = d.sum(axis=1, keepdims=True) / (d.shape[1] + 1)
    width = np.maximum(width, 1e-3 * np.where(nearest > 0, with_self, with_self.mean()))
    weight = np.exp(-beyond / np.where(width > 0, width, 1)).ravel()
    directed = sp.csr_matrix((weight, distances.indices, distances.indptr), shape=(n, n))
    back = directed.T.tocsr()
    return sp.csr_matrix(directed + back - directed.multiply(back)).astype(np.float32)


def leiden(graph: AnnData, resolution: float, seed: int) -> np.ndarray:
    """Leiden cluster of each cell of a graph, (n_cells,)."""
    import scanpy as sc

    sc.tl.leiden(
        graph,
        resolution=resolution,
        obsp="connectivities",
        flavor="igraph",
        n_iterations=2,
        directed=False,
        random_state=seed,
    )
    return graph.obs["leiden"].cat.codes.to_numpy().astype(np.int64)


def k_means(h: np.ndarray, n: int, seed: int, n_init: int = 10) -> KMeans:
    """K-means with at most ``n`` centroids; by minibatches for many cells."""
    n = min(n, len(h))
    with warnings.catch_warnings():
        # Raised if there are fewer distinct cells than clusters; some clusters are then empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        if len(h) > MANY_CELLS:
            return MiniBatchKMeans(n, n_init=3, batch_size=4096, random_state=seed).fit(h)
        return KMeans(n, n_init=n_init, random_state=seed).fit(h)


def group_means(x: sp.csr_matrix | np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Mean of each group's rows, (n_groups, n_columns)."""
    n = np.bincount(codes)
    members = sp.csr_matrix((1 / n[codes], (codes, np.arange(len(codes)))))
    means = members @ x
    return means.toarray() if sp.issparse(means) else np.asarray(means)


def order_by_size(codes: np.ndarray) -> np.ndarray:
    """Renumber groups by decreasing size."""
    return np.argsort(np.argsort(-np.bincount(codes), kind="stable"))[codes]


# -- Clusters ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clusters:
    """Leiden clusters from scanpy's standard pipeline.

    Attributes
    ----------
    codes
        Cluster of each cell, (n_cells,), numbered by size.
    score
        Share of each cell's neighbours in its own cluster, by graph weight, (n_cells,).
    z
        Principal components, (n_cells, n_components) float32.
    resolution
        Leiden resolution.
    """

    codes: np.ndarray
    score: np.ndarray
    z: np.ndarray
    resolution: float


def all_alike(x: sp.csr_matrix) -> bool:
    """Whether all cells (n_cells, n_genes) have the same values."""
    return (x.max(axis=0) != x.min(axis=0)).nnz == 0


def check_clusterable(x: sp.csr_matrix) -> None:
    """Raise an error if cells (n_cells, n_genes) cannot be clustered.

    Raises
    ------
    ValueError
        There are too few cells or genes, or all cells have the same values.
    """
    if min(x.shape) < MIN_CELLS:
        raise ValueError(
            f"{x.shape[0]} cells and {x.shape[1]} genes are too few to cluster: at least "
            f"{MIN_CELLS} of both are needed."
        )
    if all_alike(x):
        raise ValueError(
            f"All {x.shape[0]} cells have the same values: there is nothing to cluster."
        )


def leiden_clusters(x: sp.csr_matrix, n_clusters: int | None, seed: int) -> Clusters:
    """Cluster by principal components, neighbours and Leiden, with scanpy's default settings.

    Parameters
    ----------
    x
        Log1p CP10k of highly variable genes, (n_cells, n_genes).
    n_clusters
        Search for a resolution that gives this number of clusters, or comes closest to it. None
        uses the default resolution.
    """
    z = principal_components(x, N_COMPONENTS, seed)
    graph = neighbor_graph(z, N_NEIGHBORS, seed, "umap")
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
    codes = order_by_size(codes)
    weights = graph.obsp["connectivities"]
    member = sp.csr_matrix((np.ones(len(codes)), (np.arange(len(codes)), codes)))
    within = np.asarray((weights @ member).multiply(member).sum(axis=1)).ravel()
    total = np.asarray(weights.sum(axis=1)).ravel()
    score = np.divide(within, total, out=np.zeros(len(codes)), where=total > 0)
    return Clusters(codes, np.minimum(score, 1).astype(np.float32), z, resolution)


def count_clusters(z: np.ndarray, rng: np.random.Generator) -> dict[str, int]:
    """Estimate the number of clusters and its dependence on the cells and on the resolution.

    Clusters are counted by Leiden in ten subsamples of four fifths of the cells (at most 5,000),
    at resolutions from 0.5 to 2.

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
        graph = neighbor_graph(z[drawn], N_NEIGHBORS, seed, "umap")
        counts.append(leiden(graph, resolution, seed))
    n = [int(codes.max()) + 1 for codes in counts]
    low, median, high = np.quantile(n, [0.1, 0.5, 0.9])
    return {"n": round(median), "low": int(np.floor(low)), "high": int(np.ceil(high))}
