"""Cells of known faults, planted in a query: doublets, and cells of few counts."""

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

#: Least and greatest share of its counts that a thinned cell keeps.
KEPT = (0.1, 0.2)


def plant(
    query: ad.AnnData, truth: pd.Series, doublets: float, thinned: float, seed: int
) -> tuple[ad.AnnData, pd.Series, np.ndarray]:
    """Add doublets of different types to a query, and thin some of its other cells.

    Parameters
    ----------
    query
        Cells with counts in X.
    truth
        Their types, missing where unknown, (n_cells,).
    doublets, thinned
        Numbers of doublets and of thinned cells, as shares of the query's cells. Doublets are the
        sum of two cells that were not thinned, which stay in the query.
    seed
        Seed of all that is drawn.

    Returns
    -------
    The query with the doublets at its end; its truth, missing for planted cells; and what each cell
    was made, "", "doublet" or "thinned", (n_cells,).

    Raises
    ------
    ValueError
        If X holds no counts, or the query has fewer than two types to make doublets of.
    """
    counts = sp.csr_matrix(query.X, copy=True)
    if (counts.data != np.round(counts.data)).any():
        raise ValueError("doublets and thinned cells are made of counts: X must hold counts")
    rng = np.random.default_rng(seed)
    n = query.n_obs
    thin, rest = np.split(rng.permutation(n), [round(thinned * n)])
    for cell in thin:
        values = counts.data[counts.indptr[cell] : counts.indptr[cell + 1]]
        values[:] = rng.binomial(values.astype(np.int64), rng.uniform(*KEPT))
    counts.eliminate_zeros()

    names = truth.to_numpy(dtype=object)
    rest = rest[truth.notna().to_numpy()[rest]]
    n_doublets = round(doublets * n)
    if n_doublets and len(set(names[rest])) < 2:
        raise ValueError("doublets need cells of two types in the query")
    first = rng.choice(rest, n_doublets)
    second = np.array(
        [rng.choice(rest[names[rest] != names[cell]]) for cell in first], dtype=np.intp
    )
    obs = query.obs.iloc[np.concatenate([np.arange(n), first])]
    obs.index = [*query.obs_names, *(f"doublet-{i}" for i in range(n_doublets))]
    x = sp.vstack([counts, counts[first] + counts[second]], format="csr")
    planted = np.array([""] * n + ["doublet"] * n_doublets, dtype=object)
    planted[thin] = "thinned"
    names = np.concatenate([names, np.full(n_doublets, None)])
    names[planted != ""] = None
    return ad.AnnData(x, obs, query.var), pd.Series(names, obs.index), planted
