"""The figures of a folder of results."""

from pathlib import Path

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
