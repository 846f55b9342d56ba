"""Floors that are no method of the library: k-means, and "reject, then cluster the rejected"."""

import warnings
from contextlib import chdir
from tempfile import TemporaryDirectory
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from sctool import _data, novelty
from sctool._data._features import normalize, variable_genes
from sctool._neighbors import count_clusters
from sctool._train import seeded
from sctool_benchmark._tasks import LABELS

N_GENES = 2000
#: Principal components that the number of clusters is counted on, and those of k-means.
N_COUNTED, N_CLUSTERED = 50, 20
#: Fewer rejected cells than this are one group; components of the others.
MIN_REJECTED, N_REJECTED = 50, 30


def cluster(
    cells: ad.AnnData,
    name: str,
    n_clusters: int | None,
    layer: str | None,
    train_kwargs: dict[str, Any],
    seed: int,
) -> tuple[np.ndarray, dict[str, int]]:
    """Cluster cells by k-means, on principal components or on what scVI makes of the counts.

    Parameters
    ----------
    cells
        The cells.
    name
        ``"kmeans"``, ``"scvi"`` or ``"simlr"``, which needs the package simlr-py3.
    n_clusters
        Number of clusters; None estimates it as the library does.
    layer
        Layer with the expression; None finds it.
    train_kwargs
        Passed to the training of scVI.
    seed
        Seed of the run.

    Returns
    -------
    The cluster of each cell, (n_cells,) of str, and the number of clusters: ``n``, with ``low`` and
    ``high`` if it was estimated.
    """
    counts, x = _inputs(cells, layer)
    n_counted = min(N_COUNTED, min(x.shape) - 1)
    pca = PCA(n_counted, svd_solver="arpack", random_state=seed)
    z = pca.fit_transform(_standardised(x)).astype(np.float32)
    number = {"n": n_clusters} if n_clusters else count_clusters(z, np.random.default_rng(seed))
    if name == "scvi":
        z = _scvi(counts, train_kwargs, seed)
    elif name == "simlr":
        z = _simlr(z, number["n"], seed)
    else:
        z = z[:, :N_CLUSTERED]
    codes = KMeans(number["n"], n_init=10, random_state=seed).fit_predict(z)
    return codes.astype(str), number


def recluster_rejected(
    prediction: np.ndarray,
    novel: np.ndarray,
    query: ad.AnnData,
    reference: ad.AnnData,
    how: str,
    n_novel: int | None,
    layer: str | None,
    seed: int,
) -> np.ndarray:
    """Name the cells that a method rejects anew, "novel_1", "novel_2", ... by size.

    Parameters
    ----------
    prediction, novel
        Name of each cell of the query, and whether it is rejected, (n_cells,).
    query, reference
        The cells.
    how
        ``"leiden"`` or ``"kmeans"``.
    n_novel
        True number of novel types for k-means; None estimates it.
    layer
        Layer with the expression; None finds it.
    seed
        Seed of the run.

    Returns
    -------
    Names, (n_cells,).
    """
    renamed = np.array(prediction, dtype=object)
    cells = np.flatnonzero(novel)
    codes = np.zeros(len(cells), dtype=int)
    if len(cells) >= MIN_REJECTED:
        x_ref, y, x = _sides(query, reference, layer)
        if how == "kmeans" and n_novel is None:
            n_novel = _n_novel_types(x_ref, y, x, seed)
        codes = _group(x[cells], how, n_novel, seed)
    sizes = np.bincount(codes)
    rank = np.argsort(np.argsort(-sizes, kind="stable"))
    renamed[cells] = [f"novel_{i + 1}" for i in rank[codes]]
    return renamed


def _group(x: sp.csr_matrix, how: str, n_novel: int | None, seed: int) -> np.ndarray:
    """Return the group of each cell, by log1p values (n_cells, n_genes)."""
    import scanpy as sc

    some = ad.AnnData(x)
    sc.pp.highly_variable_genes(some, n_top_genes=min(N_GENES, some.n_vars))
    n_genes = int(some.var["highly_variable"].sum())
    sc.pp.pca(some, n_comps=min(N_REJECTED, n_genes - 1, some.n_obs - 1), random_state=seed)
    if how == "leiden":
        sc.pp.neighbors(some, random_state=seed)
        sc.tl.leiden(some, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
        return some.obs["leiden"].cat.codes.to_numpy().astype(int)
    # That they were rejected says that they are of one novel type at least.
    n = min(max(n_novel or 0, 1), some.n_obs)
    return KMeans(n, n_init=10, random_state=seed).fit_predict(some.obsm["X_pca"])


def _simlr(z: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Return the embedding that SIMLR learns from components, (n_cells, n_clusters)."""
    from simlr_py3 import SIMLR_LARGE

    # It writes its index of neighbours into the working directory.
    with seeded(seed), TemporaryDirectory() as folder, chdir(folder), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="simlr_py3")
        return SIMLR_LARGE(n_clusters, min(30, len(z) // 2 - 1)).fit(z.astype(np.float64))[1]


def _standardised(x: sp.csr_matrix) -> sp.csr_matrix:
    """Return genes over their standard deviations, at most ten of these above the mean."""
    scaler = StandardScaler(with_mean=False)
    x = sp.csr_matrix(scaler.fit_transform(sp.csr_matrix(x, dtype=np.float64)))
    x.data = np.minimum(x.data, (scaler.mean_ / scaler.scale_ + 10)[x.indices])
    return x


# -- What is taken from the library's internals, and nowhere else --------------------------------


def _inputs(cells: ad.AnnData, layer: str | None) -> tuple[ad.AnnData, sp.csr_matrix]:
    """Return the counts of the most variable genes, and what the library's models see of them.

    Both are of shape (n_cells, n_genes).
    """
    data = _data.read_cells(cells, layer, "data")
    features, x = _data.Features.fit(data, N_GENES, None)
    positions = data.genes.index.get_indexer(features.selected)
    return ad.AnnData(data.x[:, positions]), x


def _scvi(counts: ad.AnnData, train_kwargs: dict[str, Any], seed: int) -> np.ndarray:
    """Return the embedding of scVI, (n_cells, n_latent)."""
    from scvi.model import SCVI

    with seeded(seed):
        SCVI.setup_anndata(counts)
        model = SCVI(counts)
        model.train(**({"enable_progress_bar": False} | train_kwargs))
        return model.get_latent_representation()


def _sides(
    query: ad.AnnData, reference: ad.AnnData, layer: str | None
) -> tuple[sp.csr_matrix, np.ndarray, sp.csr_matrix]:
    """Return the reference's log1p values, the codes of its types, and the query's log1p values."""
    data = _data.join(query, reference, labels_key=LABELS, layer=layer)
    x, n_ref = normalize(data.x), reference.n_obs
    return x[:n_ref], data.labels.codes[:n_ref].astype(int), x[n_ref:]


def _n_novel_types(x_ref: sp.csr_matrix, y: np.ndarray, x: sp.csr_matrix, seed: int) -> int:
    """Return the library's estimate of the number of novel types, 0 where it finds none."""
    both = sp.vstack([x_ref, x], format="csr")
    is_query = np.arange(both.shape[0]) >= len(y)
    genes = variable_genes(both, is_query, min(N_GENES, both.shape[1]))
    return novelty.find(x_ref[:, genes], y, x[:, genes], None, np.random.default_rng(seed)).n
