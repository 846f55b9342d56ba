"""The figures of a folder of results."""

from pathlib import Path

import numpy as np
import pandas as pd


def plot_rejection(by_risk: pd.DataFrame, path: Path) -> None:
    """Draw how specific names are against how many are wrong, for two ways to reject.

    A panel for each group of data, tuned and other; the points of a line are risks.

    Parameters
    ----------
    by_risk
        One row per run and risk: ``tuned``, ``task``, ``method``, ``protocol``, ``risk``,
        ``error``, and the ``specificity`` of names along the hierarchy and, with as many errors,
        of the ``rejection`` of cells by their score.
    path
        File to write.
    """
    from matplotlib.figure import Figure

    keys, values = ["tuned", "method", "protocol", "risk"], ["error", "specificity", "rejection"]
    points = by_risk.groupby(["task", *keys])[values].mean().groupby(keys).mean().reset_index()
    groups = sorted(points["tuned"].unique(), reverse=True)
    figure = Figure(figsize=(4.5 * len(groups), 3.5), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for ax, tuned in zip(panels, groups, strict=True):
        some = points[points["tuned"] == tuned].sort_values("error")
        for (method, protocol), line in some.groupby(["method", "protocol"]):
            title = method if protocol == "blind" else f"{method}, {protocol}"
            ax.plot(line["error"], line["specificity"], "o-", label=f"{title}: partial")
            ax.plot(line["error"], line["rejection"], "s--", label=f"{title}: full")
        ax.set_title("data that may choose settings" if tuned else "other data")
        ax.set_xlabel("share of wrong names")
        ax.legend()
    panels[0].set_ylabel("share of the other types ruled out")
    figure.savefig(path, dpi=150)


def plot_cells(rows: list[list[tuple[str, np.ndarray, np.ndarray]]], path: Path) -> None:
    """Draw cells in the plane, a row of panels each; panels of equal names have equal colours.

    Parameters
    ----------
    rows
        Of each panel the title, the places of its cells, (n_cells, 2), and their names, (n_cells,).
    path
        File to write.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    n = max(len(row) for row in rows)
    figure = Figure(figsize=(3.4 * n + 1.6, 3.2 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), n, squeeze=False)
    colours = colormaps["tab20"]
    of_rows = [set(np.concatenate([name for *_, name in row])) for row in rows]
    if set.intersection(*of_rows):  # predicted types and true ones, unlike clusters and types
        of_rows = [set.union(*of_rows)] * len(rows)
    for row, axes, found in zip(rows, panels, of_rows, strict=True):
        # counted in the order of their names: 2, 10, B
        names = sorted(found, key=lambda name: (int(name) if name.isdigit() else np.inf, name))
        for ax in axes[len(row) :]:
            ax.set_axis_off()
        for ax, (title, place, name) in zip(axes, row, strict=False):
            for i, one in enumerate(names):
                cells = place[name == one]
                size = 300 / len(place) ** 0.6
                ax.scatter(*cells.T, s=size, color=colours(i % 20), label=one)
            ax.set(xticks=[], yticks=[])
            ax.set_title(title, fontsize=9)
        handles, labels = axes[0].get_legend_handles_labels()
        axes[len(row) - 1].legend(
            handles, labels, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, frameon=False
        )
    figure.savefig(path, dpi=120)


def plot_epochs(rows: pd.DataFrame, path: Path) -> None:
    """Draw the agreement of clusters with types after each epoch.

    Parameters
    ----------
    rows
        ``epoch``, ``ari`` and ``nmi``, an epoch a row.
    path
        File to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    ax = figure.subplots()
    for name in ("ari", "nmi"):
        ax.plot(rows["epoch"], rows[name], label=name.upper())
    ax.set_xlabel("epoch")
    ax.set_ylim(0, 1)
    ax.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def plot_scale(rows: pd.DataFrame, path: Path) -> None:
    """Draw CPU seconds and memory against the number of cells, a line a method.

    Parameters
    ----------
    rows
        ``cells``, ``method``, ``reference`` (cells trained on, 0 for a saved model), ``cpu``,
        ``peak_rss_gb`` and ``ended``, why a run was ended, a run a row; values may be missing.
    path
        File to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    rows = rows.reindex(columns=["cells", "method", "reference", "cpu", "peak_rss_gb", "ended"])
    for (method, n), line in rows.groupby(["method", "reference"], sort=False):
        title = f"{method}, trained on {n:,}" if n else method
        line = line[line["ended"].isna()].sort_values("cells")
        for ax, column in zip(panels, ("cpu", "peak_rss_gb"), strict=True):
            ax.plot(line["cells"], line[column], "o-", label=title)
    for ax, title in zip(panels, ("CPU seconds", "GB, peak"), strict=True):
        ax.set(xscale="log", xlabel="cells", ylabel=title)
    panels[0].set_yscale("log")
    panels[1].set_ylim(bottom=0)
    panels[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
