from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sctool._docs import docs
from sctool.pl import _figure

#: Ends of the whiskers and of the box, and the median.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@docs.dedent
def confidence(
    adata: AnnData,
    *,
    key: str = "sctool",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | None = None,
) -> Axes:
    """Plot the scores of the cells of each predicted type, as boxes.

    Parameters
    ----------
    adata
        Annotated by :func:`sctool.tl.annotate`, or clustered by :func:`sctool.tl.cluster`.
    key
        Key of the annotation or clustering.
    %(axes)s
    %(show_save)s

    Returns
    -------
    The axes. One row per type that occurs, with its number of cells, sorted by the median score,
    the highest at the top. Boxes, in the types' colours, hold the middle half of the cells and
    whiskers nine tenths; the line is the median. Cells without a type are left out.

    Raises
    ------
    KeyError
        There is no annotation under ``key``.
    ValueError
        No cell has a predicted type.
    """
    _figure.annotation(adata, key)
    names = _figure.groups(adata, key)
    score = _figure.annotation(adata, key, "_score").astype(float)
    by_type = score.groupby(names, observed=True)
    table = by_type.quantile(list(QUANTILES)).unstack()
    table = table.sort_values([0.5, 0.25], ascending=False, kind="stable")
    colors, n_cells = _figure.colors(adata, key), by_type.size()
    if ax is None:
        width = 4.5 + 0.07 * max(map(len, table.index))
        _, ax = plt.subplots(figsize=(width, 0.9 + 0.24 * len(table)), layout="constrained")
    rows = np.arange(len(table))
    low, first, median, third, high = table.to_numpy().T
    ax.hlines(rows, low, high, color="0.4", linewidth=1, zorder=1)
    ax.barh(
        rows,
        third - first,
        left=first,
        height=0.7,
        color=[colors[name] for name in table.index],
        edgecolor="0.2",
        linewidth=0.6,
        zorder=2,
    )
    ax.vlines(median, rows - 0.35, rows + 0.35, color="white", linewidth=3.5, zorder=3)
    ax.vlines(median, rows - 0.35, rows + 0.35, color="black", linewidth=1.5, zorder=4)
    ax.set_yticks(rows, [f"{name} ({n_cells[name]})" for name in table.index], fontsize=9)
    ax.set(xlabel=f"{key}_score", ylabel="predicted type (number of cells)", xlim=(0, 1.02))
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.grid(axis="x", color="0.9", zorder=0)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    _figure.finish(ax, "sctool_confidence", show, save)
    return ax
