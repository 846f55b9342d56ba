"""One run without a reference: cluster the cells, and compare with their types."""

import time
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

from sctool_benchmark._tasks import Method, Split, Task

#: Baselines that are no method of `sctool.tl.cluster`.
BASELINES = ("kmeans", "scvi")
KEY = "clusters"
N_COMPONENTS = 20


def cluster(parts: Split, task: Task, method: Method, job: dict[str, Any]) -> dict[str, Any]:
    """Cluster the query of a split.

    Parameters
    ----------
    parts
        Without a reference.
    task, method, job
        As `sctool_benchmark._worker.work` has them; the protocol ``"paper"`` gives the true number
        of types, ``"honest"`` none.

    Returns
    -------
    ``prediction`` (n_cells,), ``score`` or None, ``n_clusters`` (a dict) and ``seconds``.
    """
    import scanpy  # noqa: F401  (used further in: imports are not counted in the seconds)

    from sctool import tl
    from sctool.model import CLUSTER_METHODS

    name, cells = str(method.method), parts.query
    n = int(parts.truth.nunique()) if job["protocol"] == "paper" else None
    known = ["leiden", *CLUSTER_METHODS]
    if name not in [*known, *BASELINES]:
        raise ValueError(f"method={name!r} cannot cluster; known: {[*known, *BASELINES]!r}")
    start = time.perf_counter()
    if name in BASELINES:
        answer = _baseline(name, cells, task, method, n, job["seed"])
    else:
        tl.cluster(
            cells,
            n_clusters=n,
            method=name,
            layer=task.layer,
            key_added=KEY,
            random_state=job["seed"],
            model_kwargs=method.model_kwargs or None,
            train_kwargs=method.train_kwargs or None,
        )
        answer = {
            "prediction": cells.obs[KEY].astype(str).to_numpy(),
            "n_clusters": cells.uns[KEY]["n_clusters"],
        }
    return answer | {"seconds": time.perf_counter() - start}


def cluster_scores(truth: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
    """Return what is measured of clusters, by name."""
    from sctool import metrics

    return {
        "ari": metrics.ari(truth, prediction),
        "nmi": metrics.nmi(truth, prediction),
        "clustering_accuracy": metrics.clustering_accuracy(truth, prediction),
    }


def _baseline(
    name: str, cells: ad.AnnData, task: Task, method: Method, n: int | None, seed: int
) -> dict[str, Any]:
    """K-means on principal components or on what scVI makes of the counts."""
    from sklearn.cluster import KMeans

    from sctool import _data, _leiden
    from sctool._train import seeded
    from sctool.model._parting import principal_components

    private, _ = _data.alone(cells, task.layer)
    expression, _ = _data.find_expression(private, None, "data")
    n_cells = private.n_obs
    features, x, _ = _data.Features.fit(
        expression, np.ones(n_cells, dtype=bool), np.zeros(n_cells, dtype=np.int64), 2000, None
    )
    z = principal_components(_standardised(x), _leiden.N_COMPONENTS, seed)
    n_clusters = {"n": n} if n else _leiden.count(z, np.random.default_rng(seed))
    z = z[:, :N_COMPONENTS]
    if name == "scvi":
        from scvi.model import SCVI

        some = private[:, features.selected].copy()
        with seeded(seed):
            SCVI.setup_anndata(some)
            model = SCVI(some)
            model.train(**({"enable_progress_bar": False} | method.train_kwargs))
            z = model.get_latent_representation()
    codes = KMeans(n_clusters["n"], n_init=10, random_state=seed).fit_predict(z)
    return {"prediction": codes.astype(str), "n_clusters": n_clusters}


def _standardised(x: sp.csr_matrix) -> sp.csr_matrix:
    """Return genes over their standard deviations, at most ten of these above the mean."""
    x = sp.csr_matrix(x, dtype=np.float64, copy=True)
    mean = np.asarray(x.mean(axis=0)).ravel()
    variance = np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2
    scale = np.sqrt(np.where(variance > 1e-8, variance, 1))
    x.data = np.minimum(x.data / scale[x.indices], (mean / scale + 10)[x.indices])
    return x
