from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from sctool import _data
from sctool._data._features import normalize
from sctool._docs import docs
from sctool.pl import _figure

#: Marker genes of each type; of many types one, so that the figure stays legible.
N_GENES = 3


@docs.dedent
def markers(
    adata: AnnData,
    ref: AnnData,
    *,
    labels_key: str = "cell_type",
    key: str = "sctool",
    n_genes: int | None = None,
    layer: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | None = None,
) -> Axes:
    """Plot the reference's marker genes of the predicted types, in the reference and in the query.

    If the cells that are named after a type do not express its markers, the name is doubtful. For
    novel groups see :func:`novel`.

    Parameters
    ----------
    adata
        Annotated by :func:`sctool.tl.annotate`.
    ref
        The reference. Genes are matched and values found as in :func:`sctool.tl.annotate`.
    labels_key
        Column of ``ref.obs`` with the cell types.
    key
        Key of the annotation.
    n_genes
        Number of marker genes of each type. Default: three, or one of more than 20 types.
    layer
        Layer with the values. Default: as in :func:`sctool.tl.annotate`.
    ax
        Axes whose place the figure takes.
    %(show_save)s

    Returns
    -------
    The axes of the dots, drawn by scanpy (:class:`scanpy.pl.DotPlot`). Each type has a row of the
    reference and one of the query, with their numbers of cells. Colours show the mean log1p CP10k
    over the shared genes, and sizes the fraction of cells that express the gene. The markers are
    ranked by scanpy (:func:`scanpy.tl.rank_genes_groups`, ``method="t-test_overestim_var"``), each
    type against the rest of the reference; a gene is drawn for the first type that it marks.

    Raises
    ------
    KeyError
        There is no annotation under ``key``, or a column or layer is missing.
    ValueError
        No predicted type has two cells in the reference; too few shared genes; unusable values.
    """
    import scanpy as sc

    found = _figure.annotation(adata, key).astype(object)
    result = adata.uns.get(key, {})
    ignore_case = bool(result.get("params", {}).get("ignore_case"))
    data = _data.join(adata, ref, labels_key=labels_key, layer=layer, ignore_case=ignore_case)
    x, genes = normalize(data.x), pd.DataFrame(index=pd.Index(data.genes.index.astype(str)))
    true = data.labels.astype(object)[: ref.n_obs]
    n_ref, n_query = pd.Series(true).value_counts(), found.value_counts()
    types = [n for n in data.labels.categories if n in n_query.index and n_ref[n] > 1]
    if not types:
        raise ValueError(
            f"adata.obs[{key!r}] has no type with two cells in the reference; it has "
            f"{list(n_query.index[:5])!r}, and the reference {list(data.labels.categories[:5])!r}."
        )
    labelled = np.flatnonzero(pd.notna(true))
    known = AnnData(x[labelled], _column("type", pd.Categorical(true[labelled])), genes)
    if n_genes is None:
        n_genes = 1 if len(types) > _figure.MAX_COLORS else N_GENES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.PerformanceWarning)  # scanpy's, of many types
        sc.tl.rank_genes_groups(known, "type", groups=types, method="t-test_overestim_var")
    chosen = _first(known.uns["rank_genes_groups"]["names"], types, n_genes)

    rows, label = [], np.full(x.shape[0], None, dtype=object)
    for name in types:
        for side, of_side, n in (("reference", true, n_ref), ("query", found, n_query)):
            rows.append(f"{name}, {side} ({n[name]})")
            own = np.flatnonzero(np.asarray(of_side == name))
            label[own + (ref.n_obs if side == "query" else 0)] = rows[-1]
    drawn = np.flatnonzero(pd.notna(label))
    cells = AnnData(x[drawn], _column("row", pd.Categorical(label[drawn], rows)), genes)
    plot = sc.pl.DotPlot(cells, chosen, "row", use_raw=False, var_group_rotation=90, vmin=0, ax=ax)
    plot.style(cmap="Blues", dot_edge_color="0.3", dot_edge_lw=0.5)
    plot.legend(colorbar_title="mean expression", size_title="% of cells")
    main = plot.get_axes()["mainplot_ax"]
    for i in range(2, len(rows), 2):  # between types
        main.axhline(i, color="0.8", linewidth=0.6, zorder=0)
    _figure.finish(main, "sctool_markers", show, save)
    return main


def _column(name: str, values: pd.Categorical) -> pd.DataFrame:
    return pd.DataFrame({name: values}, index=np.arange(len(values)).astype(str))


def _first(names: Any, types: list[str], n: int) -> dict[str, list[str]]:
    """The first ``n`` genes of each type that no earlier type has."""
    chosen: dict[str, list[str]] = {}
    taken: set[str] = set()
    for name in types:
        own = [str(gene) for gene in names[name] if gene not in taken][:n]
        taken.update(own)
        chosen[name] = own
    return {name: genes for name, genes in chosen.items() if genes}
