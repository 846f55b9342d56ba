from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sctool._docs import docs
from sctool.pl import _figure

#: Colours of the statuses, told apart with any colour vision; "assigned" is in the background.
STATUS_COLORS = {
    "assigned": "#C6DBEF",
    "ambiguous": "#E69F00",
    "unexpected": "#009E73",
    "novel": "#D55E00",
    "doublet": "#CC79A7",
    "low_quality": "#000000",
}
#: Width of a panel, and of the three with their gaps and the colour bar, in inches.
PANEL = 3.4
WIDTH = 3 * PANEL + 1.0


@docs.dedent
def annotation(
    adata: AnnData,
    *,
    basis: str = "umap",
    key: str = "sctool",
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: bool | str | None = None,
) -> list[Axes]:
    """Plot predicted type, score and status beside each other on an embedding.

    Parameters
    ----------
    adata
        Annotated by :func:`sctool.tl.annotate`.
    basis
        Embedding of which the first two dimensions are drawn: a name of ``obsm``, with or without
        ``X_``.
    key
        Key of the annotation.
    ax
        Three axes to draw on.
    %(show_save)s

    Returns
    -------
    The three axes. Types have the colours of ``uns[f"{key}_colors"]``; with more than 20 types,
    each type's number in the legend is also written at the median of its cells. Cells with low
    scores, and those that are not simply assigned, are drawn on top.

    Raises
    ------
    KeyError
        There is no annotation under ``key``, or no such embedding.
    ValueError
        ``ax`` is not three axes.
    """
    names = _figure.annotation(adata, key).astype("category")
    score = _figure.annotation(adata, key, "_score").to_numpy(dtype=float)
    status = _figure.annotation(adata, key, "_status").astype(object)
    xy = _coordinates(adata, basis, key)
    colors = _figure.colors(adata, key)
    if names.isna().any():
        colors["unassigned"] = _figure.UNASSIGNED
    shown = {name: c for name, c in STATUS_COLORS.items() if (status == name).any()}
    # In a figure of its own, many types go below all panels.
    below = WIDTH if ax is None and _figure.numbers(list(colors)) else 0
    axes = _three_axes(colors, shown, below) if ax is None else list(ax)
    if len(axes) != 3:
        raise ValueError(f"ax has {len(axes)} axes: pass three, or None for a new figure.")
    style: dict[str, Any] = {
        "s": np.clip(8000 / len(xy), 0.5, 12),
        "linewidths": 0,
        "rasterized": True,
    }

    label = names.astype(object).where(names.notna(), "unassigned").astype(str)
    axes[0].scatter(xy[:, 0], xy[:, 1], c=list(label.map(colors)), **style)
    for name, number in _figure.numbers(list(colors)).items():
        own = (label == name).to_numpy() & np.isfinite(xy).all(axis=1)
        if own.any():
            _figure.write(axes[0], np.median(xy[own], axis=0), number)
    _figure.legend(axes[0], colors, below=below)

    order = np.argsort(-score, kind="stable")
    points = axes[1].scatter(
        xy[order, 0], xy[order, 1], c=score[order], cmap="viridis", vmin=0, vmax=1, **style
    )
    axes[1].figure.colorbar(points, ax=axes[1], shrink=0.6, aspect=15, pad=0.02)

    for name, color in shown.items():
        own = (status == name).to_numpy()
        axes[2].scatter(xy[own, 0], xy[own, 1], color=color, **style)
    _figure.legend(axes[2], shown)

    for panel, title in zip(axes, ("predicted type", "score", "status"), strict=True):
        panel.set(title=title, xticks=[], yticks=[], box_aspect=1)
        panel.spines[:].set_visible(False)
    _figure.finish(axes[0], "sctool_annotation", show, save)
    return axes


def _coordinates(adata: AnnData, basis: str, key: str) -> np.ndarray:
    """First two dimensions of an embedding, (n_cells, 2)."""
    for name in (basis, f"X_{basis}"):
        if name in adata.obsm:
            return np.asarray(adata.obsm[name])[:, :2]
    raise KeyError(
        f"basis={basis!r}: neither {basis!r} nor 'X_{basis}' is in adata.obsm; found "
        f"{list(adata.obsm)!r}. Make a UMAP of the annotation's embedding with "
        f"sc.pp.neighbors(adata, use_rep='X_{key}', key_added='{key}_neighbors') and "
        f"sc.tl.umap(adata, neighbors_key='{key}_neighbors'), or name another embedding."
    )


def _three_axes(types: dict[str, str], statuses: dict[str, str], below: float) -> list[Axes]:
    """Axes of a new figure that has room for the legends."""
    size = [WIDTH + _figure.legend_size(statuses)[0], PANEL + 0.3]
    if below:
        size[1] += _figure.legend_size(types, below=below)[1]
    else:
        size[0] += _figure.legend_size(types)[0]
    _, axes = plt.subplots(1, 3, figsize=size, layout="compressed")
    return list(axes)
