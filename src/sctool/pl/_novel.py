from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from sctool._docs import docs
from sctool.pl import _figure


@docs.dedent
def novel(
    adata: AnnData,
    *,
    key: str = "sctool",
    n_genes: int = 5,
    layer: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: bool | str | None = None,
) -> Axes:
    """Plot the marker genes of the novel groups in these groups and in their nearest known types.

    Parameters
    ----------
    adata
        Annotated by :func:`sctool.tl.annotate` with a method that groups novel cells.
    key
        Key of the annotation.
    n_genes
        Number of marker genes of each group.
    layer
        Layer with the expression to draw, log1p CP10k or similar. Default: ``raw`` if there is
        one, else ``X``, as in scanpy.
    ax
        Axes whose place the figure takes.
    %(show_save)s

    Returns
    -------
    The axes of the dots, drawn by scanpy (:class:`scanpy.pl.DotPlot`). Each group is followed by
    its nearest known type, if cells of the query have its name. Colours show the mean
    expression on the scale of the values, and sizes the fraction of cells that express the gene.

    Raises
    ------
    KeyError
        There is no annotation under ``key``, or none of the marker genes is in ``adata``.
    ValueError
        There are no novel groups with marker genes.
    """
    from scanpy.pl import DotPlot

    names = _figure.annotation(adata, key).astype(object)
    table = _groups(adata, key)
    use_raw = layer is None and adata.raw is not None
    genes = adata.raw.var_names if use_raw else adata.var_names
    markers = {
        str(group): [gene for gene in listed.split(", ") if gene in genes][:n_genes]
        for group, listed in table["markers"].items()
    }
    markers = {group: found for group, found in markers.items() if found}
    if not markers:
        first = [listed.split(", ")[0] for listed in table["markers"]]
        raise KeyError(
            f"none of the marker genes in adata.uns[{key!r}]['novel'], such as {first!r}, is in "
            f"the index of adata{'.raw' if use_raw else ''}.var, such as {list(genes[:3])!r}."
        )
    order = [name for group in markers for name in (group, str(table.loc[group, "nearest"]))]
    rows = [name for name in dict.fromkeys(order) if (names == name).any()]
    shown = names.isin(rows).to_numpy()
    labels = {name: f"{name} ({(names == name).sum()})" for name in rows}
    wanted = list(dict.fromkeys(gene for found in markers.values() for gene in found))
    part = (adata.raw if use_raw else adata)[shown, wanted]
    cells = AnnData(
        part.X if layer is None else part.layers[layer],
        obs=pd.DataFrame(
            {key: pd.Categorical(names[shown].map(labels), [*labels.values()])},
            index=adata.obs_names[shown],
        ),
        var=pd.DataFrame(index=pd.Index(wanted)),
    )
    plot = DotPlot(cells, markers, key, use_raw=False, var_group_rotation=0, vmin=0, ax=ax)
    plot.style(cmap="Blues", dot_edge_color="0.3", dot_edge_lw=0.5)
    plot.legend(colorbar_title="mean expression", size_title="% of cells")
    main = plot.get_axes()["mainplot_ax"]
    _figure.finish(main, "sctool_novel", show, save)
    return main


def _groups(adata: AnnData, key: str) -> pd.DataFrame:
    """Rows of the table of novel groups that have marker genes."""
    result = adata.uns.get(key)
    table = result.get("novel") if isinstance(result, Mapping) else None
    if table is None:
        raise KeyError(f"adata.uns[{key!r}]['novel'] is missing: call sctool.tl.annotate first.")
    table = table[table["markers"].astype(str) != ""]
    if table.empty:
        raise ValueError(
            f"there are no novel groups with marker genes under key={key!r}: no cells were "
            f"grouped as novel, or a trained model grouped them. adata.uns[{key!r}]['audit'] says "
            "how novel types were searched for."
        )
    return table
