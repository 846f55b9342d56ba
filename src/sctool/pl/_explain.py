from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from sctool._docs import docs
from sctool.pl import _figure

#: Unit of the attributions, and what the expression of the explained cells is compared with.
UNITS = {
    "guided": ("logits per unit of log1p CP10k", "other cells"),
    "integrated_gradients": ("logits", "the reference"),
    "expected_gradients": ("logits", "other cells"),
}


@docs.dedent
def explain(
    adata: AnnData,
    *,
    names: str | Sequence[str] | None = None,
    key: str = "sctool_explain",
    n_genes: int = 8,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | None = None,
) -> Axes:
    """Show the genes with the highest attributions for each type, cell or group.

    Parameters
    ----------
    adata
        Explained by :func:`sctool.tl.explain`.
    names
        Types, cells or groups to show, one or several. Default: all.
    key
        Key of the explanation.
    n_genes
        Number of genes per row.
    %(axes)s
    %(show_save)s

    Returns
    -------
    The axes: one row per type, cell or group, with genes by rank, shaded by their score relative
    to the row's highest, which is printed on the right. Genes that the explained cells express less
    than the baseline are orange and marked with an arrow; see :func:`sctool.tl.explain` for the
    meaning. If types were compared (``versus``), the title says with which, and if there are
    several rivals, so do the labels of the rows.

    Raises
    ------
    KeyError
        There is no explanation under ``key``, or one of ``names`` was not explained.
    """
    result = adata.uns.get(key)
    if not isinstance(result, Mapping) or "differences" not in result:
        raise KeyError(f"adata.uns[{key!r}] is not an explanation: call sctool.tl.explain first.")
    all_names = [str(n) for n in result["names"]]
    shown = all_names if names is None else [names] if isinstance(names, str) else list(names)
    unknown = [n for n in shown if n not in all_names]
    if unknown:
        raise KeyError(f"{unknown!r} were not explained; found {all_names!r}.")
    rows = [all_names.index(n) for n in shown]
    genes = np.asarray(result["genes"])[rows, :n_genes]
    scores = np.asarray(result["scores"])[rows, :n_genes]
    less = np.asarray(result["differences"])[rows, :n_genes] < 0
    unit, others = UNITS[str(result["params"]["method"])]
    shade = np.clip(scores / np.maximum(scores[:, :1], 1e-12), 0, None) / 1.6
    blues, oranges = plt.get_cmap("Blues"), plt.get_cmap("Oranges")
    if ax is None:
        size = (max(2.5 + 0.95 * genes.shape[1], 6.0), 1.3 + 0.35 * len(rows))
        _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.imshow(np.where(less[..., None], oranges(shade), blues(shade)), aspect="auto")
    for (i, j), gene in np.ndenumerate(genes):
        text = f"{gene} ↓" if less[i, j] else gene
        ax.text(j, i, text, ha="center", va="center", fontsize=8)
    labels, title = _versus(result, rows)
    ax.set_yticks(range(len(rows)), labels)
    ax.set_title(title, loc="left", fontsize=8)
    ax.set_xticks(range(genes.shape[1]), [str(j + 1) for j in range(genes.shape[1])])
    ax.set_xlabel("rank")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    highest = ax.secondary_yaxis("right")
    highest.set_yticks(range(len(rows)), [f"{score:.2g}" for score in scores[:, 0]])
    highest.tick_params(length=0)
    highest.spines[:].set_visible(False)
    ax.set_title(f"highest score ({unit})", loc="right", fontsize=8)
    handles = [
        Patch(color=blues(0.5), label=f"more expressed than in {others}"),
        Patch(color=oranges(0.5), label=f"↓ less expressed than in {others}"),
    ]
    ax.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=4,
        ncols=2,
        fontsize=8,
        frameon=False,
    )
    _figure.finish(ax, "sctool_explain", show, save)
    return ax


def _versus(result: Mapping, rows: list[int]) -> tuple[list[str], str]:
    """Labels of the rows, and a title that says what types they are compared with, or ""."""
    names = [str(result["names"][i]) for i in rows]
    if "rivals" not in result:
        return names, ""
    types, rivals = ([str(result[key][i]) for i in rows] for key in ("types", "rivals"))
    labels = [n if n == t else f"{n} ({t})" for n, t in zip(names, types, strict=True)]
    if len(set(rivals)) == 1:
        return labels, f"and not {rivals[0]}"
    return [f"{a}, not {b}" for a, b in zip(labels, rivals, strict=True)], "and not the runner-up"
