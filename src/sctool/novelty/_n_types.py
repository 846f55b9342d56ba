"""Estimate the number of novel types and assign cells to them.

The separation of types is learnt from the reference: its cells are clustered into small groups,
and pairs of groups of the same type are compared with pairs of different types.
``docs/methods/scdet.md`` describes the algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sctool._neighbors import (
    fit_pca,
    group_means,
    leiden,
    neighbor_graph,
    order_by_size,
    principal_components,
)

#: Fewer cells than this are not split into types.
MIN_CELLS = 50
N_COMPONENTS, N_NEIGHBORS = 30, 15
#: Leiden resolution of the small groups that are merged into types.
RESOLUTION = 2.0
#: Smaller groups are merged into the nearest: the mean of few cells is too noisy.
MIN_GROUP = 20
#: Number of training episodes, and maximum number of cells in each.
EPISODES, EPISODE_CELLS = 20, 2500
#: Pairs of groups count as two types if the probability that two cells, one of each, share a
#: type is below ``TWO``, and as one type above ``ONE``.
TWO, ONE = 0.3, 0.6


# -- Groups of cells -----------------------------------------------------------------------------


def join_smallest(z: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Merge the smallest group into the one with the nearest mean."""
    codes = order_by_size(codes)
    means = group_means(z, codes)
    nearest = ((means[:-1] - means[-1]) ** 2).sum(axis=1).argmin()
    return np.where(codes == len(means) - 1, nearest, codes)


def split_largest(z: np.ndarray, codes: np.ndarray, seed: int) -> np.ndarray:
    """Split the largest group in two."""
    n = np.bincount(codes)
    cells = np.flatnonzero(codes == n.argmax())
    codes = codes.copy()
    codes[cells[KMeans(2, n_init=3, random_state=seed).fit_predict(z[cells]) == 1]] = len(n)
    return codes


def small_groups(
    x: sp.csr_matrix,
    seed: int,
    n: int = 1,
    weights: str = "gauss",
    z: np.ndarray | None = None,
) -> np.ndarray:
    """Cluster cells into groups finer than types.

    Parameters
    ----------
    x
        Cells, log1p CP10k, CSR (n_cells, n_genes).
    n
        Minimum number of groups, if there are as many distinct cells.
    weights
        Weights of the neighbour graph: "gauss" or "umap".
    z
        Principal components, (n_cells, n_components); None computes them.

    Returns
    -------
    Group of each cell, (n_cells,).
    """
    z = principal_components(x, N_COMPONENTS, seed) if z is None else z
    codes = leiden(neighbor_graph(z, N_NEIGHBORS, seed, weights), RESOLUTION, seed)
    while codes.max() > 0 and np.bincount(codes).min() < MIN_GROUP:
        codes = join_smallest(z, codes)
    if codes.max() + 1 < n:
        rows = pairwise(x.indptr)
        n_different = len({(x.indices[a:b].tobytes(), x.data[a:b].tobytes()) for a, b in rows})
        for _ in range(codes.max() + 1, min(n, n_different)):
            codes = split_largest(z, codes, seed)
    return codes


# -- Types from groups ---------------------------------------------------------------------------


def differences(means: np.ndarray) -> np.ndarray:
    """Differences between each pair of groups, (n_pairs, 4).

    Pairs are in the order of ``np.triu_indices(n_groups, 1)``. Columns: one minus the correlation
    over genes; logarithms of the mean difference of the 5 and of the 20 most different genes, and
    of the number of genes that differ by more than 1.

    Parameters
    ----------
    means
        Mean log1p CP10k of each group, (n_groups, n_genes).
    """
    first, second = np.triu_indices(len(means), 1)
    values = np.zeros((len(first), 4))
    values[:, 0] = 1 - np.corrcoef(means)[first, second]
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        difference = np.sort(np.abs(means[a] - means[b]))[::-1]
        values[row, 1] = np.log(difference[:5].mean() + 0.01)
        values[row, 2] = np.log(difference[:20].mean() + 0.01)
        values[row, 3] = np.log1p(np.count_nonzero(difference > 1))
    return values


@dataclass(frozen=True)
class TypeSeparation:
    """Learnt separation of types.

    Attributes
    ----------
    model
        Classifier from :func:`differences` to the probability that two groups are of different
        types; None if there was nothing to learn from: groups are then compared by correlation.
    off
        True number of types divided by the estimated number, for each episode.
    weights
        Weights of the graphs whose small groups it was learnt from, see :func:`small_groups`.
    """

    model: Pipeline | None = None
    off: tuple[float, ...] = (0.5, 1.0, 2.0)
    weights: str = "gauss"

    def distance(self, means: np.ndarray) -> np.ndarray:
        """Distance of each pair of groups, (n_groups, n_groups); above 0.5: different types.

        Parameters
        ----------
        means
            See :func:`differences`.
        """
        n = len(means)
        values = differences(means)
        apart = values[:, 0] if self.model is None else self.model.predict_proba(values)[:, 1]
        distance = np.zeros((n, n))
        distance[np.triu_indices(n, 1)] = apart
        return distance + distance.T

    def types(self, x: sp.csr_matrix, codes: np.ndarray, n: int | None = None) -> np.ndarray:
        """Merge groups into types (average linkage), into ``n`` types if given."""
        if codes.max() == 0:
            return codes
        clusters = AgglomerativeClustering(
            n_clusters=n,
            distance_threshold=0.5 if n is None else None,
            metric="precomputed",
            linkage="average",
        ).fit_predict(self.distance(group_means(x, codes)))
        return clusters[codes]


def learn_separation(
    x: sp.csr_matrix,
    labels: np.ndarray,
    rng: np.random.Generator,
    weights: str = "gauss",
    z: np.ndarray | None = None,
) -> TypeSeparation:
    """Learn the separation of types from random subsets of the types of labelled cells.

    Parameters
    ----------
    x
        Cells, log1p CP10k, CSR (n_cells, n_genes).
    labels
        Their type codes from 0.
    weights
        Weights of the graphs of their small groups, "gauss" or "umap".
    z
        Principal components, (n_cells, n_components); None computes those of each subset.
    """
    n_types = labels.max() + 1
    episodes, values, two, weight = [], [], [], []
    for _ in range(EPISODES):
        share = rng.uniform(0.4, 1.0)
        chosen = rng.permutation(n_types)[: max(round(share * n_types), 2)]
        cells = rng.permutation(len(labels))[:EPISODE_CELLS]
        cells = cells[np.isin(labels[cells], chosen)]
        if len(cells) < MIN_CELLS:
            continue
        # enough groups that some pairs are of the same type
        n = 2 * len(np.unique(labels[cells]))
        of_cells = None if z is None else z[cells]
        codes = small_groups(x[cells], int(rng.integers(2**31)), n, weights, of_cells)
        episodes.append((cells, codes))
        if codes.max() == 0:
            continue
        of_type = group_means(np.eye(n_types)[labels[cells]], codes)
        first, second = np.triu_indices(len(of_type), 1)
        alike = (of_type[first] * of_type[second]).sum(axis=1)
        clear = (alike < TWO) | (alike > ONE)  # mixed groups are neither
        size = np.bincount(codes)
        values.append(differences(group_means(x[cells], codes))[clear])
        two.append(alike[clear] < TWO)
        weight.append(np.sqrt(size[first] * size[second])[clear])
    if not two or len(np.unique(np.concatenate(two))) < 2:
        return TypeSeparation(weights=weights)
    y, w = np.concatenate(two), np.concatenate(weight)
    w *= len(w) / 2 / np.where(y, w[y].sum(), w[~y].sum())  # pairs of the same type are rare
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3))
    model.fit(np.concatenate(values), y, logisticregression__sample_weight=w)
    found = [TypeSeparation(model).types(x[cells], codes).max() + 1 for cells, codes in episodes]
    true = [len(np.unique(labels[cells])) for cells, _ in episodes]
    return TypeSeparation(model, tuple(np.array(true) / np.array(found)), weights)


def number_range(n: int, off: tuple[float, ...]) -> tuple[int, int]:
    """Interval of the number of types ``n``, from the errors ``off`` of the training episodes.

    Extended by one type in each direction, because these errors do not reflect novel types that
    were missed or known cells taken for novel.
    """
    low, high = np.quantile(off, [0.05, 0.95])
    return max(min(int(np.floor(n * low)), n) - 1, 0), max(int(np.ceil(n * high)), n) + 1


def split_into_types(
    x: sp.csr_matrix, separation: TypeSeparation, n: int | None, seed: int
) -> tuple[np.ndarray, int, int]:
    """Assign cells to types.

    The types are those of a random sample of as many cells as the training episodes had at most,
    because many cells form more and smaller groups. The others get the type of their neighbours.

    Parameters
    ----------
    x
        Cells, log1p CP10k, CSR (n_cells, n_genes).
    n
        Number of types; None estimates it. Fewer are returned if there are fewer groups, and one
        type for fewer than 50 cells.

    Returns
    -------
    Type code of each cell, (n_cells,), by size; and the bounds of the number of types.
    """
    n_cells = x.shape[0]
    if n_cells < MIN_CELLS or n == 1:
        low, high = (1, max(n, 1)) if n else number_range(1, separation.off)
        return np.zeros(n_cells, dtype=int), low, high
    some = np.sort(np.random.default_rng(seed).permutation(n_cells)[:EPISODE_CELLS])
    pca = fit_pca(x[some], N_COMPONENTS, seed)
    z = pca.transform(x).astype(np.float32)
    groups = small_groups(x[some], seed, n or 1, separation.weights, z[some])
    codes = separation.types(x[some], groups, n and min(n, int(groups.max()) + 1))
    if len(some) < n_cells:
        k = min(N_NEIGHBORS, len(some))
        codes = KNeighborsClassifier(k).fit(z[some], codes).predict(z)
    codes = order_by_size(np.unique(codes, return_inverse=True)[1])
    found = int(codes.max()) + 1
    return codes, *((found, found) if n else number_range(found, separation.off))


def describe_number(n: int, low: int, high: int, asked: int | None) -> str:
    """Audit note on the number of novel types."""
    if asked:
        return f"novel: number of types: {n}, requested: {asked}"
    return f"novel: number of types: {n}, interval estimated by hiding known types: {low} to {high}"
