from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sctool._docs import docs
from sctool._truth import true_and_predicted
from sctool.pl import _figure


@docs.dedent
def risk(
    adata: AnnData,
    truth: str,
    *,
    key: str = "sctool",
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | None = None,
) -> Axes:
    """Plot the error among the cells with the highest scores against the share of cells kept.

    Parameters
    ----------
    adata
        Annotated by :func:`sctool.tl.annotate`.
    truth
        Column of ``obs`` with the true types; cells with a missing value are excluded.
    key
        Key of the annotation.
    %(axes)s
    %(show_save)s

    Returns
    -------
    The axes. If the score ranks the cells well, the line is far below the dashed one, the error
    of all cells. The dot shows the cells with the status "assigned". Cells of equal score are kept
    together. A cell is wrong if its predicted type is not its true type, so cells without a
    predicted type and novel groups without the true name are wrong.

    Raises
    ------
    KeyError
        There is no annotation under ``key``, or ``truth`` is not in ``obs``.
    ValueError
        No cell has a true type.

    References
    ----------
    El-Yaniv and Wiener, On the foundations of noise-free selective classification, JMLR 2010.
    """
    known, y_true, y_pred, _ = true_and_predicted(adata, truth, key)
    score = _figure.annotation(adata, key, "_score")[known].to_numpy(dtype=float)
    wrong = y_true != y_pred
    order = np.argsort(-score, kind="stable")
    n_kept = np.arange(1, len(score) + 1)
    kept, error = n_kept / len(score), np.cumsum(wrong[order]) / n_kept
    last = np.append(np.diff(score[order]) != 0, True)  # of the cells with the same score
    if ax is None:
        _, ax = plt.subplots(figsize=(4.6, 3.8), layout="constrained")
    ax.plot(kept[last], error[last], color="C0", label="highest scores")
    ax.axhline(error[-1], color="0.5", linestyle="--", linewidth=1, label="all cells")
    if f"{key}_status" in adata.obs:
        assigned = (adata.obs[f"{key}_status"][known] == "assigned").to_numpy()
        if assigned.any():
            point = (assigned.mean(), wrong[assigned].mean())
            ax.scatter(*point, color="#D55E00", zorder=3, label='status "assigned"')
    ax.set(xlabel="share of cells kept", ylabel="error among them", xlim=(0, 1.02))
    ax.set_ylim(0, max(1.05 * error[last].max(), 0.05))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(  # above the axes, where no line is
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=3,
        fontsize=_figure.FONT_SIZE,
        columnspacing=1,
        frameon=False,
    )
    _figure.finish(ax, "sctool_risk", show, save)
    return ax
