from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sctool import metrics
from sctool._docs import docs
from sctool._truth import true_and_predicted
from sctool.pl import _figure


@docs.dedent
def reliability(
    adata: AnnData,
    truth: str,
    *,
    key: str = "sctool",
    n_bins: int = 15,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | None = None,
) -> Axes:
    """Plot the reliability diagram of the score, accuracy against mean score per bin.

    Parameters
    ----------
    adata
        Annotated by :func:`sctool.tl.annotate`.
    truth
        Column of ``obs`` with the true types; cells with a missing value are excluded.
    key
        Key of the annotation.
    n_bins
        Number of equal-width bins of the score.
    %(axes)s
    %(show_save)s

    Returns
    -------
    The axes. A perfectly calibrated score lies on the diagonal. Point sizes show the numbers of
    cells, and the title the expected calibration error. Cells without a predicted type are wrong.

    Raises
    ------
    KeyError
        There is no annotation under ``key``, or ``truth`` is not in ``obs``.
    ValueError
        No cell has a true type, or no true type is among the annotation's types.
    """
    known, y_true, y_pred, _ = true_and_predicted(adata, truth, key)
    scores = _figure.annotation(adata, key, "_score")
    types = [str(name) for name in adata.uns.get(key, {}).get("classes", np.unique(y_pred))]
    if not np.isin(y_true, types).any():
        raise ValueError(
            f"adata.obs[{truth!r}] has none of the types of {key!r}: found "
            f"{list(map(str, np.unique(y_true)[:5]))!r}; the types are {types[:5]!r}. Give both "
            "the same names."
        )
    score = np.clip(scores[known].to_numpy(dtype=float), 0, 1)
    curve = metrics.reliability_curve(y_true, y_pred, score, n_bins=n_bins)
    error = metrics.ece(y_true, y_pred, score, n_bins=n_bins)
    if ax is None:
        _, ax = plt.subplots(figsize=(4.2, 4.2), layout="constrained")
    used = curve.n_cells > 0
    ax.plot([0, 1], [0, 1], color="0.7", linewidth=1, zorder=0)
    sizes = 20 + 180 * curve.n_cells[used] / curve.n_cells.max()
    ax.plot(curve.mean_score[used], curve.accuracy[used], color="C0", linewidth=1)
    ax.scatter(curve.mean_score[used], curve.accuracy[used], s=sizes, color="C0", alpha=0.8)
    ax.set(
        xlabel=f"{key}_score",
        ylabel="accuracy",
        xlim=(0, 1.02),
        ylim=(0, 1.02),
        aspect="equal",
        title=f"expected calibration error {error:.3f}",
    )
    ax.spines[["top", "right"]].set_visible(False)
    _figure.finish(ax, "sctool_reliability", show, save)
    return ax
