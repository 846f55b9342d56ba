"""The floor of open-world methods: reject cells, then cluster the rejected."""

from typing import Any

import anndata as ad
import numpy as np

from sctool_benchmark._tasks import LABELS, Method, Split, Task

#: Fewer rejected cells than this are one group.
MIN_CELLS = 50
N_GENES, N_COMPONENTS = 2000, 30


def rejected(answer: dict[str, Any], below: float) -> np.ndarray:
    """Return which cells a method rejects, (n_cells,) bool: its own word, or else by score."""
    if answer["novel"] is not None:
        return np.asarray(answer["novel"], dtype=bool)
    return np.asarray(answer["score"]) < below


def regroup(
    answer: dict[str, Any],
    parts: Split,
    task: Task,
    method: Method,
    n_novel: int | None,
    seed: int,
) -> dict[str, Any]:
    """Name the rejected cells anew, "novel_1", "novel_2", ... by size.

    Parameters
    ----------
    answer
        What the method says of each cell of the query: ``prediction``, ``score`` and ``novel``
        (None if it marks no cell).
    parts, task, method
        The cells, the task and the method, which says how to group.
    n_novel
        True number of novel types for k-means; None estimates it.
    seed
        Seed of the run.

    Returns
    -------
    ``prediction`` and ``novel``, (n_cells,) each; scores and probabilities stay what they were.
    """
    novel = rejected(answer, method.reject_below)
    prediction = np.array(answer["prediction"], dtype=object)
    cells = np.flatnonzero(novel)
    codes = np.zeros(len(cells), dtype=int)
    if len(cells) >= MIN_CELLS:
        codes = _group(parts, task, cells, method.regroup, n_novel, seed)
    sizes = np.bincount(codes)
    rank = np.argsort(np.argsort(-sizes, kind="stable"))
    prediction[cells] = [f"novel_{i + 1}" for i in rank[codes]]
    return {"prediction": prediction, "novel": novel}


def _group(
    parts: Split, task: Task, cells: np.ndarray, how: str | None, n_novel: int | None, seed: int
) -> np.ndarray:
    """Return the group of each of some cells of the query, (len(cells),)."""
    import scanpy as sc
    from sklearn.cluster import KMeans

    from sctool import _data

    joint, _, _ = _data.join(parts.query, parts.reference, labels_key=LABELS, layer=task.layer)
    x, n_ref = _data.normalize(joint.X), parts.reference.n_obs
    some = ad.AnnData(x[n_ref + cells])
    sc.pp.highly_variable_genes(some, n_top_genes=min(N_GENES, some.n_vars))
    n_genes = int(some.var["highly_variable"].sum())
    sc.pp.pca(some, n_comps=min(N_COMPONENTS, n_genes - 1, len(cells) - 1), random_state=seed)
    if how == "leiden":
        sc.pp.neighbors(some, random_state=seed)
        sc.tl.leiden(some, flavor="igraph", n_iterations=2, directed=False, random_state=seed)
        return some.obs["leiden"].cat.codes.to_numpy().astype(int)
    if n_novel is None:
        from sctool.model import _novelty

        is_query = np.arange(joint.n_obs) >= n_ref
        x = x[:, _data.informative_genes(x, is_query, min(N_GENES, joint.n_vars))]  # as a model
        y = joint.obs["labels"].cat.codes.to_numpy()[:n_ref].astype(int)
        found = _novelty.find(x[:n_ref], y, x[n_ref:], None, np.random.default_rng(seed))
        n_novel = 1 if isinstance(found, str) else found.n
    # That they were rejected says that they are of one novel type at least.
    n = min(max(n_novel, 1), len(cells))
    return KMeans(n, n_init=10, random_state=seed).fit_predict(some.obsm["X_pca"])
