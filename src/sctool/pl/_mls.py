from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes


def mls(
    adata: AnnData,
    *,
    types: Sequence[str] | None = None,
    color: str | None = None,
    key: str = "sctool",
    ax: Axes | None = None,
) -> Axes:
    """Plot the embedding of an MLS component, one circle per type.

    A type is well separated if its cells lie on one side of its circle, away from all other cells.

    Parameters
    ----------
    adata
        Annotated by :func:`sctool.tl.annotate` with a method whose component is "mls".
    types
        Types whose circles are drawn, side by side. Default: all.
    color
        Column of ``obs`` with each cell's type, such as the true types. Default: ``key``, the
        predicted types.
    key
        Key of the annotation.
    ax
        Axes to draw on.

    Returns
    -------
    The axes. Cells of the circle's type are drawn on the circle in the type's colour, all others in
    grey just inside it to avoid overlap.

    Raises
    ------
    KeyError
        There is no annotation under ``key``, ``color`` is not in ``obs``, or a type is not one of
        the classes.
    ValueError
        The embedding does not come from an MLS component.
    """
    if key not in adata.uns or f"X_{key}" not in adata.obsm:
        raise KeyError(f"{key!r} is not in adata.uns: call sctool.tl.annotate first.")
    color = key if color is None else color
    if color not in adata.obs:
        raise KeyError(f"{color!r} is not in adata.obs; found {list(adata.obs.columns)!r}.")
    classes = [str(name) for name in adata.uns[key]["classes"]]
    z = np.asarray(adata.obsm[f"X_{key}"])
    if z.shape[1] != 2 * len(classes) or not np.allclose(
        np.linalg.norm(z.reshape(len(z), -1, 2), axis=2), 1, atol=1e-3
    ):
        raise ValueError(
            f"obsm['X_{key}'] of shape {z.shape!r} is not an MLS embedding of {len(classes)} types "
            "(one circle per type): annotate with method='contrastive', or with another method "
            "that supports model_kwargs={'component': 'mls'}."
        )
    shown = classes if types is None else list(types)
    if unknown := [name for name in shown if name not in classes]:
        raise KeyError(f"types {unknown!r} are unknown; found {classes!r}.")
    named = adata.obs[color].astype(str).to_numpy()
    colors = _colors(adata, color)
    if ax is None:
        _, ax = plt.subplots(figsize=(2.4 * len(shown), 2.8))
    turn = np.linspace(0, 2 * np.pi, 200)
    for i, name in enumerate(shown):
        x, y = z[:, 2 * classes.index(name)] + 2.6 * i, z[:, 2 * classes.index(name) + 1]
        ax.plot(np.cos(turn) + 2.6 * i, np.sin(turn), color="0.85", linewidth=1, zorder=0)
        own = named == name
        inside = 0.88 * (x[~own] - 2.6 * i) + 2.6 * i
        ax.scatter(inside, 0.88 * y[~own], s=6, color="0.6", alpha=0.4, linewidths=0)
        ax.scatter(x[own], y[own], s=10, color=colors.get(name, "C3"), alpha=0.7, linewidths=0)
        label = f"{textwrap.fill(name, 16)}\n{own.sum()} cells"
        ax.text(2.6 * i, 0, label, ha="center", va="center", fontsize=8)
    ax.set(aspect="equal", xlim=(-1.2, 2.6 * (len(shown) - 1) + 1.2), ylim=(-1.2, 1.2))
    ax.axis("off")
    return ax


def _colors(adata: AnnData, column: str) -> dict[str, str]:
    """Scanpy's colours of a column's categories; empty if there are none."""
    if f"{column}_colors" not in adata.uns or not hasattr(adata.obs[column], "cat"):
        return {}
    names = map(str, adata.obs[column].cat.categories)
    return dict(zip(names, map(str, adata.uns[f"{column}_colors"]), strict=False))
