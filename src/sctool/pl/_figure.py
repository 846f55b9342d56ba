"""What the figures share: the columns they read, colours, legends, and saving."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import patheffects
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

#: Colours that people with any colour vision tell apart (Okabe & Ito 2008).
COLOR_BLIND_SAFE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
#: Colour of cells without a name.
UNASSIGNED = "#D9D9D9"
#: With more types than this, colours alone do not tell them apart, and the figures number them.
MAX_COLORS = 20
#: Entries of a legend one below the other.
LEGEND_ROWS = 20
FONT_SIZE = 8
MARKER: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 6}


def column(adata: AnnData, name: str, tool: str = "") -> pd.Series:
    """Return a column of ``obs``; the error names the tool that writes it, if one does."""
    if name in adata.obs:
        return adata.obs[name]
    todo = f"call {tool} first" if tool else f"found {list(adata.obs.columns)!r}"
    raise KeyError(f"{name!r} is not in adata.obs: {todo}.")


def annotation(adata: AnnData, key: str, ending: str = "") -> pd.Series:
    """Return a column that :func:`sctool.tl.annotate` writes."""
    return column(adata, f"{key}{ending}", f"sctool.tl.annotate(..., key_added={key!r})")


def groups(adata: AnnData, name: str) -> pd.Series:
    """Return a column as categories of text without unused ones; some cell must have a value."""
    values = column(adata, name)
    if values.isna().all():
        raise ValueError(f"adata.obs[{name!r}] has only missing values: there is nothing to draw.")
    values = values.astype("category").cat.remove_unused_categories()
    return values.cat.rename_categories([str(c) for c in values.cat.categories])


def colors(adata: AnnData, name: str) -> dict[str, str]:
    """Colours of a column's categories: those stored for scanpy, else colour-blind safe ones.

    There are eight of the latter; more categories have scanpy's palettes.
    """
    from scanpy.plotting import palettes

    names = [str(c) for c in column(adata, name).astype("category").cat.categories]
    stored = list(adata.uns.get(f"{name}_colors", []))
    if len(stored) < len(names):
        choice = (COLOR_BLIND_SAFE, palettes.default_20, palettes.default_28, palettes.default_102)
        stored = list(next((p for p in choice if len(p) >= len(names)), choice[-1]))
    return dict(zip(names, map(str, cycle(stored)), strict=False))


def numbers(names: Sequence[str]) -> dict[str, str]:
    """Numbers by which a figure names its types, from 1; none where colours are enough."""
    if len(names) <= MAX_COLORS:
        return {}
    return {name: str(i) for i, name in enumerate(names, 1)}


def legend(ax: Axes, colors: Mapping[str, str], *, below: float = 0) -> None:
    """Add a legend of colours, with the types' numbers if they have any.

    It is on the right of the axes or, if a width in inches is given, ``below`` the whole figure.
    """
    number = numbers(list(colors))
    handles = [
        Line2D([], [], color=color, label=f"{number.get(name, '')} {name}".strip(), **MARKER)
        for name, color in colors.items()
    ]
    style: dict[str, Any] = {
        "handles": handles,
        "columnspacing": 1,
        "handletextpad": 0.2,
        "fontsize": FONT_SIZE,
        "frameon": False,
    }
    if below:
        n_columns = max(int(below / _width(colors)), 1)
        ax.figure.legend(loc="outside lower center", ncols=n_columns, **style)
    else:
        n_columns = -(-len(handles) // LEGEND_ROWS)
        style |= {"bbox_to_anchor": (1.02, 1), "borderaxespad": 0}
        ax.legend(loc="upper left", ncols=n_columns, **style)


def legend_size(names: Collection[str], *, below: float = 0) -> tuple[float, float]:
    """Width and height in inches that :func:`legend` takes for these names, about."""
    if below:
        return below, 0.2 + 0.17 * -(-len(names) // max(int(below / _width(names)), 1))
    n_columns = -(-len(names) // LEGEND_ROWS)
    return n_columns * _width(names), 0.2 + 0.17 * min(len(names), LEGEND_ROWS)


def _width(names: Collection[str]) -> float:
    """Width of a column of a legend, about, in inches."""
    return 0.5 + 0.065 * max(map(len, names), default=0)


def write(ax: Axes, position: Sequence[float] | np.ndarray, text: str) -> None:
    """Write a short text that is legible on any colour."""
    outline = patheffects.withStroke(linewidth=1.5, foreground="white")
    x, y = position
    ax.text(x, y, text, ha="center", va="center", fontsize=6, path_effects=[outline])


def finish(ax: Axes, name: str, show: bool | None, save: bool | str | None) -> None:
    """Save and show the figure as scanpy does, but show it only if asked to."""
    from scanpy import settings

    if save or (save is None and settings.autosave):
        ending = save if isinstance(save, str) else ""
        if not ending.endswith((".pdf", ".png", ".svg")):
            ending += f".{settings.file_format_figs}"
        path = Path(settings.figdir) / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        dpi = plt.rcParams["savefig.dpi"]
        figure = ax.figure.canvas.figure  # also of a subfigure
        figure.savefig(path, dpi=150 if dpi == "figure" else dpi, bbox_inches="tight")
    if show:
        plt.show()
