from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sctool._truth import true_and_predicted

#: Maximum number of types per axis for which percentages are printed.
MAX_NUMBERED = 20


def confusion(
    adata: AnnData,
    truth: str,
    *,
    key: str = "sctool",
    ax: Axes | None = None,
) -> Axes:
    """Plot the confusion matrix of true and predicted types.

    Parameters
    ----------
    adata
        Annotated by :func:`sctool.tl.annotate`, or clustered by :func:`sctool.tl.cluster`.
    truth
        Column of ``obs`` with the true types; cells with a missing value are excluded.
    key
        Key of the annotation or clustering.
    ax
        Axes to draw on.

    Returns
    -------
    The axes. Rows are true types with their numbers of cells, and columns are predicted types.
    Colours show the fraction of each row's cells, also printed as a percentage for up to 20 types.
    True types absent from the reference come last, as does the column "unassigned", of cells
    without a predicted type.

    Raises
    ------
    KeyError
        ``key`` or ``truth`` is not in ``obs``.
    ValueError
        No cell has a true type.
    """
    _, y_true, y_pred, unassigned = true_and_predicted(adata, truth, key)
    # The categories are only those that were predicted; "classes" are all, in the same order.
    occurring = adata.obs[key].astype("category").cat.categories
    classes = adata.uns.get(key, {}).get("classes", [])
    order = list(dict.fromkeys(map(str, [*classes, *occurring])))
    columns = [name for name in [*order, unassigned] if name in y_pred]
    rows = [name for name in order if name in y_true]
    rows += sorted(set(y_true) - set(order))
    counts = pd.crosstab(y_true, y_pred).reindex(index=rows, columns=columns, fill_value=0)
    n = counts.sum(axis=1)
    share = counts.div(n, axis=0).to_numpy()
    if ax is None:
        size = (2.5 + 0.34 * len(columns), 2.0 + 0.3 * len(rows))
        _, ax = plt.subplots(figsize=size, layout="constrained")
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if max(share.shape) <= MAX_NUMBERED:
        for i, j in zip(*np.nonzero(share >= 0.005), strict=True):
            color = "white" if share[i, j] > 0.6 else "black"
            text = f"{100 * share[i, j]:.0f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color=color)
    ax.set_xticks(range(len(columns)), columns, rotation=90)
    ax.set_yticks(range(len(rows)), [f"{name} ({n[name]})" for name in rows])
    ax.set(xlabel="predicted", ylabel="true (number of cells)")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
    bar.set_label("fraction of true type")
    return ax
