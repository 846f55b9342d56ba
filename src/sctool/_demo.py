"""``sctool demo``: the three answers on the cells that come with scanpy, beside a baseline."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

#: The type that is removed from the reference.
HIDDEN = "CD19+ B"
BASELINE = "logistic"


def run(folder: Path, method: str, seed: int) -> None:
    """Hide a type from the reference, annotate, report what became of its cells, and draw.

    Parameters
    ----------
    folder
        Where ``annotated.h5ad`` and ``annotated.png`` are written.
    method
        Method that is shown beside logistic regression.
    seed
        Random seed of the split and of the method.
    """
    from sctool import _files, datasets, tl
    from sctool._progress import note_lines

    adata, ref = datasets.blood(random_state=seed)
    ref = ref[ref.obs["cell_type"] != HIDDEN].copy()
    hidden = (adata.obs["truth"] == HIDDEN).to_numpy()
    print(
        f"reference: {ref.n_obs} blood cells of {ref.obs['cell_type'].nunique()} types; query: "
        f"{adata.n_obs} cells, {hidden.sum()} of them {HIDDEN} cells, which the reference lacks"
    )
    start = time.perf_counter()
    tl.annotate(adata, ref, method=method, random_state=seed)
    seconds = time.perf_counter() - start
    result = adata.uns["sctool"]
    print(*note_lines(result["audit"], result["alarms"]), sep="\n")
    tl.annotate(adata, ref, method=BASELINE, random_state=seed, key_added=BASELINE)

    print(f"{'':<22}{method:>12}{'regression':>12}")
    rows = {"known types, accuracy": ~hidden, f"{HIDDEN} called novel": hidden}
    for name, cells in rows.items():
        values = [_share(adata[cells], key) for key in ("sctool", BASELINE)]
        print(f"{name:<22}" + "".join(f"{value:>12.3f}" for value in values))
    for name, group in result["novel"].iterrows():
        print(
            f"{name}: {group['n_cells']} cells, nearest to {group['nearest']}; markers "
            f"{', '.join(group['markers'].split(', ')[:5])}"
        )
    names, n = np.unique(adata.obs.loc[hidden, BASELINE].astype(str), return_counts=True)
    most = names[n.argmax()]
    score = adata.obs.loc[hidden, f"{BASELINE}_score"].mean()
    print(
        f"The regression calls {n.max()} of the {HIDDEN} cells {most}; its mean score on them is "
        f"{score:.2f}."
    )
    folder.mkdir(parents=True, exist_ok=True)
    _draw(adata, folder / "annotated.png", method)
    _files.write(adata, folder / "annotated.h5ad")
    print(f"{seconds:.1f} s; wrote annotated.h5ad and annotated.png to {folder.resolve()}")


def _share(cells: AnnData, key: str) -> float:
    """Share of cells that have their true name, or are called novel where they are."""
    right = cells.obs[key].astype(str) == cells.obs["truth"].astype(str)
    unknown = cells.obs["truth"] == HIDDEN
    return float(np.where(unknown, _is_novel(cells.obs, key), right).mean())


def _is_novel(obs: pd.DataFrame, key: str) -> np.ndarray:
    return obs[key].astype(str).str.startswith("novel_").to_numpy()


def _draw(adata: AnnData, path: Path, method: str) -> None:
    """UMAP of the model's embedding: names beside the baseline and the truth, and how sure."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import scanpy as sc

    sc.pp.neighbors(adata, use_rep="X_sctool")
    sc.tl.umap(adata, random_state=0)
    panels = {
        "sctool": f"sctool ({method})",
        BASELINE: "logistic regression",
        "truth": f"truth ({HIDDEN} not in the reference)",
        "sctool_score": "score",
        "sctool_novel_score": "novelty score",
        "sctool_status": "status",
    }
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    for ax, (color, title) in zip(axes.flat, panels.items(), strict=True):
        # Names have the same colours in all panels; the legend of the truth is that of all.
        legend = None if color in ("sctool", BASELINE) else "right margin"
        style = {"frameon": False, "legend_loc": legend, "size": 60}
        sc.pl.umap(adata, color=color, title=title, ax=ax, show=False, **style)
    names = adata.obs["sctool"].astype(str)
    categories = adata.obs["sctool"].cat.categories
    colors = dict(zip(categories, adata.uns["sctool_colors"], strict=True))
    for name in adata.uns["sctool"]["novel"].index:
        x, y = adata.obsm["X_umap"][names == name].T  # (some cells may lie elsewhere)
        right = (np.quantile(x, 0.95), np.median(y))
        beside = {"xytext": (12, 0), "textcoords": "offset points", "ha": "left", "va": "center"}
        # In the colour of the group, for cells of other types may lie below it.
        axes[0, 0].annotate(name, right, weight="bold", color=colors[name], **beside)
    figure.savefig(path, dpi=150)
    plt.close(figure)
