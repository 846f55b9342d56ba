from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sctool._docs import docs
from sctool._truth import true_and_predicted
from sctool.pl import _figure

#: Maximum number of types per axis for which percentages are printed.
MAX_NUMBERED = 20


@docs.dedent
def confusion(
    adata: AnnData,
    truth: str,
    *,
    key: str = "sctool",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | None = None,
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
    %(axes)s
    %(show_save)s

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
    order = _order(adata, key)
    columns = [name for name in [*order, unassigned] if name in y_pred]
    rows = [name for name in order if name in y_true]
    rows += sorted(set(y_true) - set(order))
    counts = pd.crosstab(y_true, y_pred).reindex(index=rows, columns=columns, fill_value=0)
    ax = _heat_map(counts, ax, rows="true", columns="predicted")
    _figure.finish(ax, "sctool_confusion", show, save)
    return ax


@docs.dedent
def agreement(
    adata: AnnData,
    groupby: str,
    *,
    key: str = "sctool",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | None = None,
) -> Axes:
    """Plot how the cells of each cluster, or of each earlier label, were annotated.

    Unlike :func:`sctool.pl.confusion` it takes neither side for the truth, and the names of the two
    sides need not be the same.

    Parameters
    ----------
    adata
        Annotated by :func:`sctool.tl.annotate`, or clustered by :func:`sctool.tl.cluster`.
    groupby
        Column of ``obs`` with clusters or earlier labels; cells with a missing value are excluded.
    key
        Key of the annotation or clustering.
    %(axes)s
    %(show_save)s

    Returns
    -------
    The axes. Rows are clusters with their numbers of cells, sorted by their most frequent predicted
    type, and columns are predicted types in the order of the annotation. Colours show the fraction
    of each row's cells, also printed as a percentage for up to 20 rows and columns. The last column
    is "unassigned", of cells without a predicted type, if there are any.

    Raises
    ------
    KeyError
        ``key`` or ``groupby`` is not in ``obs``.
    ValueError
        No cell has a value in ``groupby``.
    """
    _figure.annotation(adata, key)
    _figure.groups(adata, groupby)
    _, group, named, unassigned = true_and_predicted(adata, groupby, key)
    columns = [name for name in [*_order(adata, key), unassigned] if name in named]
    counts = pd.crosstab(group, named)[columns]
    share = counts.div(counts.sum(axis=1), axis=0).to_numpy()
    # by the most frequent type, then from the purest to the most mixed
    counts = counts.iloc[np.lexsort([-share.max(axis=1), share.argmax(axis=1)])]
    ax = _heat_map(counts, ax, rows=groupby, columns="predicted")
    _figure.finish(ax, "sctool_agreement", show, save)
    return ax


def _order(adata: AnnData, key: str) -> list[str]:
    """Names of the types of an annotation or clustering, in its order."""
    # The categories are only those that were predicted; "classes" are all, in the same order.
    occurring = adata.obs[key].astype("category").cat.categories
    classes = adata.uns.get(key, {}).get("classes", [])
    return list(dict.fromkeys(map(str, [*classes, *occurring])))


def _heat_map(counts: pd.DataFrame, ax: Axes | None, *, rows: str, columns: str) -> Axes:
    """Draw a table of numbers of cells, each as a fraction of its row."""
    n = counts.sum(axis=1)
    share = counts.div(n, axis=0).to_numpy()
    labels = [f"{name} ({n[name]})" for name in counts.index]
    if ax is None:
        width = max(0.34 * counts.shape[1], 1.8) + 0.085 * max(map(len, labels))
        height = max(0.3 * len(counts), 1.9) + 0.085 * max(map(len, counts.columns))
        _, ax = plt.subplots(figsize=(width + 1.4, height + 0.5), layout="constrained")
    image = ax.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if max(share.shape) <= MAX_NUMBERED:
        for i, j in zip(*np.nonzero(share >= 0.005), strict=True):
            color = "white" if share[i, j] > 0.6 else "black"
            text = f"{100 * share[i, j]:.0f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color=color)
    ax.set_xticks(range(counts.shape[1]), counts.columns, rotation=90)
    ax.set_yticks(range(len(counts)), labels)
    ax.set(xlabel=columns, ylabel=f"{rows} (number of cells)")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
    bar.set_label("fraction of the row's cells")
    return ax
