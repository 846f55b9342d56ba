from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sctool._docs import docs
from sctool.pl import _figure

#: Numbered types have their number written into bars of at least this share.
MIN_NUMBERED = 0.015
#: Width of a figure with numbered types, in inches; their legend is below.
WIDTH_NUMBERED = 11.0


@docs.dedent
def composition(
    adata: AnnData,
    groupby: str,
    *,
    key: str = "sctool",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | None = None,
) -> Axes:
    """Plot the share of each predicted type in each sample, as stacked bars.

    Parameters
    ----------
    adata
        Annotated by :func:`sctool.tl.annotate`, or clustered by :func:`sctool.tl.cluster`.
    groupby
        Column of ``obs`` with the sample, donor or condition of each cell; cells with a missing
        value are excluded.
    key
        Key of the annotation or clustering.
    %(axes)s
    %(show_save)s

    Returns
    -------
    The axes. One bar per sample, with its number of cells; types are in the order of the
    annotation, in the colours of ``uns[f"{key}_colors"]``, and cells without a type come last.
    With more than 20 types their numbers in the legend are also written into the bars that are
    long enough.

    Raises
    ------
    KeyError
        There is no annotation under ``key``, or ``groupby`` is not in ``obs``.
    ValueError
        No cell has a value in ``groupby``.
    """
    names = _figure.annotation(adata, key).astype(object)
    samples = _figure.groups(adata, groupby)
    colors = _figure.colors(adata, key)
    if names.isna().any():
        colors["unassigned"] = _figure.UNASSIGNED
    names = names.where(names.notna(), "unassigned").astype(str)
    counts = pd.crosstab(samples, names).reindex(columns=list(colors), fill_value=0)
    share = counts.div(counts.sum(axis=1), axis=0)
    number = _figure.numbers(list(colors))
    below = WIDTH_NUMBERED if ax is None and number else 0
    if ax is None:
        width, height = _figure.legend_size(colors, below=below)
        size = (5.5 + width, max(0.9 + 0.3 * len(share), 0.4 + height))
        if below:
            size = (width, 0.9 + 0.3 * len(share) + height)
        _, ax = plt.subplots(figsize=size, layout="constrained")
    rows, left = np.arange(len(share)), np.zeros(len(share))
    for name, color in colors.items():
        long = share[name].to_numpy()
        ax.barh(rows, long, left=left, color=color, edgecolor="white", linewidth=0.3, height=0.8)
        for row in rows[long >= MIN_NUMBERED] if number else []:
            _figure.write(ax, (left[row] + long[row] / 2, row), number[name])
        left += long
    n_cells = counts.sum(axis=1)
    ax.set_yticks(rows, [f"{sample} ({n_cells[sample]})" for sample in share.index])
    ax.set(xlabel="share of cells", ylabel=f"{groupby} (number of cells)", xlim=(0, 1))
    ax.set_ylim(len(share) - 0.5, -0.5)  # the first sample is at the top
    ax.spines[["top", "right"]].set_visible(False)
    _figure.legend(ax, colors, below=below)
    _figure.finish(ax, "sctool_composition", show, save)
    return ax
