"""How many types some cells are of, and which cell is of which. Ours.

What sets two types apart is learnt from the reference: its cells are cut into small groups, and
pairs of groups of one type are set beside pairs of groups of two. Steps and reasons are in
``docs/methods/scdet.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

if TYPE_CHECKING:
    from anndata import AnnData

#: Fewer cells than this are not parted into types.
MIN_PARTED = 50
N_COMPONENTS, N_NEIGHBORS = 30, 15
#: Resolution of the groups that types are put together from.
RESOLUTION = 2.0
#: Smaller groups are joined to the nearest: the mean of a few cells differs from any other.
MIN_GROUP = 20
#: Times that cells of some types are parted, and cells used each time at most.
EPISODES, EPISODE_CELLS = 20, 2500
#: A pair of groups whose cells are less often of one type is of two types, one above is of one.
TWO, ONE = 0.3, 0.6
#: More cells than this are searched for neighbours approximately.
MANY_CELLS = 50_000


# -- Groups of cells -----------------------------------------------------------------------------


def principal_components(x: sp.csr_matrix, n: int, seed: int) -> np.ndarray:
    """Scores on the first ``n`` components (fewer for small data), float32, never densified."""
    n = min(n, min(x.shape) - 1)
    return PCA(n, svd_solver="arpack", random_state=seed).fit_transform(x).astype(np.float32)


def neighbour_graph(z: np.ndarray, n_neighbors: int, seed: int, weights: str = "gauss") -> AnnData:
    """Nearest neighbours of cells (n_cells, n_latent), as scanpy keeps them.

    The search is exact up to ``MANY_CELLS``: scanpy's default one is compiled anew in each process,
    which takes half a minute.

    Parameters
    ----------
    weights
        "gauss", or "umap", by which a handful of cells that lie apart form a group of their own,
        but which is compiled as well (12 s).
    """
    import scanpy as sc
    from anndata import AnnData

    cells = AnnData(obs=pd.DataFrame(index=np.arange(len(z)).astype(str)), obsm={"X": z})
    sc.pp.neighbors(
        cells,
        use_rep="X",
        n_neighbors=min(n_neighbors, len(z) - 1),
        method=weights,
        transformer="sklearn" if len(z) <= MANY_CELLS else "pynndescent",
        random_state=seed,
    )
    return cells


def leiden(graph: AnnData, resolution: float, seed: int) -> np.ndarray:
    """Leiden group of each cell of a graph, (n_cells,)."""
    import scanpy as sc

    sc.tl.leiden(
        graph,
        resolution=resolution,
        flavor="igraph",
        n_iterations=2,
        directed=False,
        random_state=seed,
    )
    return graph.obs["leiden"].cat.codes.to_numpy().astype(np.int64)


def group_means(x: sp.csr_matrix | np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Mean of each group's rows, (n_groups, n_columns)."""
    n = np.bincount(codes)
    members = sp.csr_matrix((1 / n[codes], (codes, np.arange(len(codes)))))
    means = members @ x
    return means.toarray() if sp.issparse(means) else np.asarray(means)


def by_size(codes: np.ndarray) -> np.ndarray:
    """The same groups, numbered from the largest on."""
    return np.argsort(np.argsort(-np.bincount(codes), kind="stable"))[codes]


def join_smallest(z: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The groups but for the smallest, which joins the one whose mean is nearest."""
    codes = by_size(codes)
    means = group_means(z, codes)
    nearest = ((means[:-1] - means[-1]) ** 2).sum(axis=1).argmin()
    return np.where(codes == len(means) - 1, nearest, codes)


def split_largest(z: np.ndarray, codes: np.ndarray, seed: int) -> np.ndarray:
    """The groups, the largest cut in two."""
    n = np.bincount(codes)
    cells = np.flatnonzero(codes == n.argmax())
    codes = codes.copy()
    codes[cells[KMeans(2, n_init=3, random_state=seed).fit_predict(z[cells]) == 1]] = len(n)
    return codes


def small_groups(x: sp.csr_matrix, seed: int, n: int = 1) -> np.ndarray:
    """Cut cells into groups finer than types.

    Parameters
    ----------
    x
        Cells, log1p CP10k, CSR (n_cells, n_genes).
    n
        As many groups at least, if there are as many different cells.

    Returns
    -------
    Group of each cell, (n_cells,).
    """
    z = principal_components(x, N_COMPONENTS, seed)
    codes = leiden(neighbour_graph(z, N_NEIGHBORS, seed), RESOLUTION, seed)
    while codes.max() > 0 and np.bincount(codes).min() < MIN_GROUP:
        codes = join_smallest(z, codes)
    n_different = len(np.unique(z.round(3), axis=0))  # copies differ by rounding alone
    for _ in range(codes.max() + 1, min(n, n_different)):
        codes = split_largest(z, codes, seed)
    return codes


# -- Types of groups -----------------------------------------------------------------------------


def differences(x: sp.csr_matrix, codes: np.ndarray) -> np.ndarray:
    """What sets the mean expression of each two groups apart, (n_pairs, 4).

    Pairs are those of ``np.triu_indices(n_groups, 1)``. By column: one minus the correlation over
    genes; the logarithms of the mean difference of the 5 and of the 20 genes that differ most, and
    of the number of genes that differ by more than 1.
    """
    means = group_means(x, codes)
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
class Parting:
    """What tells two types from one.

    Attributes
    ----------
    model
        From :func:`differences` to the probability that two groups are of two types; None if there
        was nothing to learn it from, and groups are then compared by their correlation alone.
    off
        True number of types over the number found, each time that types were parted.
    """

    model: Pipeline | None = None
    off: tuple[float, ...] = (0.5, 1.0, 2.0)

    def distance(self, x: sp.csr_matrix, codes: np.ndarray) -> np.ndarray:
        """Of each two groups, (n_groups, n_groups); above a half they are of two types."""
        n = codes.max() + 1
        values = differences(x, codes)
        apart = values[:, 0] if self.model is None else self.model.predict_proba(values)[:, 1]
        distance = np.zeros((n, n))
        distance[np.triu_indices(n, 1)] = apart
        return distance + distance.T

    def types(self, x: sp.csr_matrix, codes: np.ndarray, n: int | None = None) -> np.ndarray:
        """Put groups together, by mean distance, to types: to ``n`` of them, if that is given."""
        if codes.max() == 0:
            return codes
        clusters = AgglomerativeClustering(
            n_clusters=n,
            distance_threshold=0.5 if n is None else None,
            metric="precomputed",
            linkage="average",
        ).fit_predict(self.distance(x, codes))
        return clusters[codes]


def learn_parting(x: sp.csr_matrix, labels: np.ndarray, rng: np.random.Generator) -> Parting:
    """Part the cells of some types of the reference as if they were new, two fifths or more.

    Parameters
    ----------
    x
        Reference, log1p CP10k, CSR (n_cells, n_genes).
    labels
        Its types as codes from 0.
    """
    n_types = labels.max() + 1
    episodes, values, two, weight = [], [], [], []
    for _ in range(EPISODES):
        share = rng.uniform(0.4, 1.0)
        chosen = rng.permutation(n_types)[: max(round(share * n_types), 2)]
        cells = rng.permutation(len(labels))[:EPISODE_CELLS]
        cells = cells[np.isin(labels[cells], chosen)]
        if len(cells) < MIN_PARTED:
            continue
        # (so many that there are pairs of one type)
        n = 2 * len(np.unique(labels[cells]))
        codes = small_groups(x[cells], int(rng.integers(2**31)), n)
        episodes.append((cells, codes))
        if codes.max() == 0:
            continue
        of_type = group_means(np.eye(n_types)[labels[cells]], codes)
        first, second = np.triu_indices(len(of_type), 1)
        alike = (of_type[first] * of_type[second]).sum(axis=1)
        clear = (alike < TWO) | (alike > ONE)  # what a mixed group is has no answer
        size = np.bincount(codes)
        values.append(differences(x[cells], codes)[clear])
        two.append(alike[clear] < TWO)
        weight.append(np.sqrt(size[first] * size[second])[clear])
    if not two or len(np.unique(np.concatenate(two))) < 2:
        return Parting()
    y, w = np.concatenate(two), np.concatenate(weight)
    w *= len(w) / 2 / np.where(y, w[y].sum(), w[~y].sum())  # pairs of one type are few
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.3))
    model.fit(np.concatenate(values), y, logisticregression__sample_weight=w)
    found = [Parting(model).types(x[cells], codes).max() + 1 for cells, codes in episodes]
    true = [len(np.unique(labels[cells])) for cells, _ in episodes]
    return Parting(model, tuple(np.array(true) / np.array(found)))


def number_range(n: int, off: tuple[float, ...]) -> tuple[int, int]:
    """The interval about ``n`` types, from how far off the number was when types were hidden.

    One more either way, for types that were not found and known cells taken for novel ones, of
    which parting cells of the reference knows nothing.
    """
    low, high = np.quantile(off, [0.05, 0.95])
    return max(min(int(np.floor(n * low)), n) - 1, 0), max(int(np.ceil(n * high)), n) + 1


def part(
    x: sp.csr_matrix, parting: Parting, n: int | None, seed: int
) -> tuple[np.ndarray, int, int]:
    """Part cells into types.

    Parameters
    ----------
    x
        Cells, log1p CP10k, CSR (n_cells, n_genes).
    n
        Number of types; None estimates it. There may be fewer: one of fewer than 50 cells, and as
        many as there are groups.

    Returns
    -------
    Code of each cell, (n_cells,), the largest type first; lowest and highest number of types.
    """
    n_cells = x.shape[0]
    if n_cells < MIN_PARTED or n == 1:
        low, high = (1, max(n, 1)) if n else number_range(1, parting.off)
        return np.zeros(n_cells, dtype=int), low, high
    groups = small_groups(x, seed, n or 1)
    codes = by_size(parting.types(x, groups, n and min(n, int(groups.max()) + 1)))
    found = int(codes.max()) + 1
    return codes, *((found, found) if n else number_range(found, parting.off))


def note_on_number(n: int, low: int, high: int, asked: int | None) -> str:
    """What the audit says of the number of novel types."""
    if asked:
        return f"novel: types: {n}, of {asked} asked for"
    return f"novel: types: {n}, between {low} and {high} as far as hiding known types can tell"
