from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes


def explain(
    adata: AnnData,
    *,
    names: Sequence[str] | None = None,
    key: str = "sctool_explain",
    n_genes: int = 8,
    ax: Axes | None = None,
) -> Axes:
    """Show the genes with the highest attributions for each type or cell.

    Parameters
    ----------
    adata
        Explained by :func:`sctool.tl.explain`.
    names
        Types or cells to show. Default: all.
    key
        Key of the explanation.
    n_genes
        Number of genes per row.
    ax
        Axes to draw on.

    Returns
    -------
    The axes: one row per type or cell, with genes by rank, shaded by their score relative to the
    row's highest.

    Raises
    ------
    KeyError
        ``key`` is missing, or one of ``names`` was not explained.
    """
    if key not in adata.uns:
        raise KeyError(f"{key!r} is not in adata.uns: call sctool.tl.explain first.")
    result = adata.uns[key]
    all_names = [str(n) for n in result["names"]]
    shown = all_names if names is None else list(names)
    unknown = [n for n in shown if n not in all_names]
    if unknown:
        raise KeyError(f"{unknown!r} were not explained; found {all_names!r}.")
    rows = [all_names.index(n) for n in shown]
    genes = np.asarray(result["genes"])[rows, :n_genes]
    scores = np.clip(np.asarray(result["scores"])[rows, :n_genes], 0, None)
    share = scores / np.maximum(scores[:, :1], 1e-12)
    if ax is None:
        _, ax = plt.subplots(figsize=(1.0 + 0.95 * genes.shape[1], 0.6 + 0.35 * len(rows)))
    ax.imshow(share, cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
    for i, row in enumerate(genes):
        for j, gene in enumerate(row):
            ax.text(j, i, gene, ha="center", va="center", fontsize=8)
    ax.set_yticks(range(len(rows)), shown)
    ax.set_xticks(range(genes.shape[1]), [str(j + 1) for j in range(genes.shape[1])])
    ax.set_xlabel("rank")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax
