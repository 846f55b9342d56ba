from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.legend_handler import HandlerTuple

from sctool._docs import docs
from sctool.pl import _figure

#: Maximum number of circles side by side.
MAX_COLUMNS = 5


@docs.dedent
def mls(
    adata: AnnData,
    *,
    types: str | Sequence[str] | None = None,
    color: str | None = None,
    key: str = "sctool",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | None = None,
) -> Axes:
    """Plot the embedding of an MLS component, one circle per type.

    A type is well separated if its cells lie on one side of its circle, away from all other cells.

    Parameters
    ----------
    adata
        Annotated by :func:`sctool.tl.annotate` with a method whose component is "mls".
    types
        Types whose circles are drawn, one or several, in rows of five. Default: all.
    color
        Column of ``obs`` with each cell's type, such as the true types. Default: ``key``, the
        predicted types.
    key
        Key of the annotation.
    %(axes)s
    %(show_save)s

    Returns
    -------
    The axes. Cells of the circle's type are drawn on the circle in the type's colour (that of
    ``uns[f"{color}_colors"]``, if there are any), all others in grey just inside it to
    avoid overlap. Cells without an embedding are not drawn.

    Raises
    ------
    KeyError
        There is no annotation under ``key``, ``color`` is not in ``obs``, or a type is not one of
        the classes.
    ValueError
        The embedding does not come from an MLS component, or ``types`` is empty.
    """
    if key not in adata.uns or f"X_{key}" not in adata.obsm:
        raise KeyError(f"{key!r} is not in adata.uns: call sctool.tl.annotate first.")
    color = key if color is None else color
    if color not in adata.obs:
        raise KeyError(f"{color!r} is not in adata.obs; found {list(adata.obs.columns)!r}.")
    classes = [str(name) for name in adata.uns[key]["classes"]]
    z = np.asarray(adata.obsm[f"X_{key}"])
    embedded = z.any(axis=1)
    z = z[embedded]
    if z.shape[1] != 2 * len(classes) or not np.allclose(
        np.linalg.norm(z.reshape(len(z), -1, 2), axis=2), 1, atol=1e-3
    ):
        raise ValueError(
            f"obsm['X_{key}'] of shape {z.shape!r} is not an MLS embedding of {len(classes)} types "
            "(one circle per type): annotate with method='contrastive', or with another method "
            "that supports model_kwargs={'component': 'mls'}."
        )
    shown = classes if types is None else [types] if isinstance(types, str) else list(types)
    if not shown:
        raise ValueError("types=[]: pass at least one type, or None to draw all.")
    if unknown := [name for name in shown if name not in classes]:
        raise KeyError(f"types {unknown!r} are unknown; found {classes!r}.")
    named = adata.obs[color][embedded].astype(str).to_numpy()
    colors = _figure.colors(adata, color)
    n_columns = min(len(shown), MAX_COLUMNS)
    n_rows = -(-len(shown) // n_columns)
    if ax is None:
        size = (2.2 * n_columns, 0.4 + 2.2 * n_rows)
        _, ax = plt.subplots(figsize=size, layout="constrained")
    turn = np.linspace(0, 2 * np.pi, 200)
    owns, others = [], []  # for the legend: at most three colours, and the grey
    for i, name in enumerate(shown):
        x0, y0 = 2.6 * (i % n_columns), -2.6 * (i // n_columns)
        ax.plot(x0 + np.cos(turn), y0 + np.sin(turn), color="0.85", linewidth=1, zorder=0)
        x, y = z[:, 2 * classes.index(name)], z[:, 2 * classes.index(name) + 1]
        own = named == name
        inside_x, inside_y = x0 + 0.88 * x[~own], y0 + 0.88 * y[~own]
        others.append(ax.scatter(inside_x, inside_y, s=6, color="0.6", alpha=0.4, linewidths=0))
        if own.any():
            x, y, c = x0 + x[own], y0 + y[own], colors[name]
            owns.append(ax.scatter(x, y, s=10, color=c, alpha=0.7, linewidths=0))
        label = f"{textwrap.fill(name, 16)}\n{own.sum()} cells"
        ax.text(x0, y0, label, ha="center", va="center", fontsize=8)
    ax.set(
        aspect="equal",
        xlim=(-1.2, 2.6 * n_columns - 1.4),
        ylim=(1.4 - 2.6 * n_rows, 1.2),
    )
    ax.axis("off")
    keys: dict[str, Any] = {}
    if owns:
        keys[f"cells of the circle's type (obs[{color!r}])"] = tuple(owns[:3])
    keys["other cells"] = others[0]
    ax.legend(
        keys.values(),
        keys.keys(),
        handler_map={tuple: HandlerTuple(ndivide=None)},
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        ncols=2,
        markerscale=2,
        fontsize=8,
        frameon=False,
    )
    _figure.finish(ax, "sctool_mls", show, save)
    return ax
