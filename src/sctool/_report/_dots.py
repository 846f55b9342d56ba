"""The dot plot: marker genes of novel groups beside the known types that they resemble."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sctool import _data
from sctool._data._features import normalize
from sctool._data._genes import clean_names, identifiers, locate

#: Markers of each novel group that are drawn.
N_MARKERS = 5
REST = "all other cells"


@dataclass(frozen=True)
class Dots:
    """Expression of marker genes.

    Attributes
    ----------
    mean, share
        Mean expression, log1p CP10k, and share of the cells that express the gene, (n_rows,
        n_genes): the novel groups, their nearest known types, and the other cells.
    """

    mean: pd.DataFrame
    share: pd.DataFrame

    @property
    def relative(self) -> pd.DataFrame:
        """Mean expression relative to the highest of each gene, 0 to 1."""
        return (self.mean / self.mean.max().replace(0, 1)).clip(0, 1)


def dot_plot(
    adata: AnnData, types: pd.Series, novel: pd.DataFrame, params: Mapping[str, Any]
) -> Dots | None:
    """Expression of the novel groups' best markers; None if there are none, or no values.

    Parameters
    ----------
    types
        Type of each cell, (n_cells,).
    novel
        Table of the novel groups; "markers" are lists.
    params
        Parameters of the annotation, of which ``layer`` and ``ignore_case`` matter here.
    """
    markers = [gene for genes in novel["markers"] for gene in genes[:N_MARKERS]]
    genes = pd.Index(dict.fromkeys(markers), dtype=object)
    if not len(genes):
        return None
    layer = params.get("layer")
    if layer not in adata.layers and not (layer == "raw" and adata.raw is not None):
        layer = None  # it was the reference's
    try:
        expression, _ = _data.find_expression(adata, layer, "query")
    except (KeyError, ValueError):  # the values may have been scaled or removed since
        return None
    column = _columns(expression.var, genes, bool(params.get("ignore_case")))
    found = np.isin(np.arange(len(genes)), column)
    if not found.any():
        return None
    rows = [*map(str, novel.index)]
    rows += [str(name) for name in dict.fromkeys(novel["nearest"]) if name and name not in rows]
    code = pd.Index([*rows, REST]).get_indexer(types.astype(object))
    code[code < 0] = len(rows)
    n = np.bincount(code, minlength=len(rows) + 1)
    total, expressing = np.zeros((2, len(n), len(genes)))
    for start, x in _log_normalized(expression, column, len(genes)):
        member = code[start : start + x.shape[0]]
        of_row = sp.csr_matrix(
            (np.ones(len(member)), (member, np.arange(len(member)))), shape=(len(n), len(member))
        )
        total += (of_row @ x).toarray()
        expressing += (of_row @ (x > 0).astype(float)).toarray()
    table = {
        name: pd.DataFrame(sums / np.maximum(n, 1)[:, None], index=[*rows, REST], columns=genes)
        for name, sums in {"mean": total, "share": expressing}.items()
    }
    return Dots(**{name: values.loc[n > 0, found] for name, values in table.items()})


def _columns(var: pd.DataFrame, genes: pd.Index, ignore_case: bool) -> np.ndarray:
    """Position of each feature among ``genes``, -1 for all others, by whatever name finds most."""
    wanted = clean_names(genes, ignore_case)
    names = [var.index, *(values for _, values in identifiers(var).items())]
    found = [locate(clean_names(values, ignore_case), wanted) for values in names]
    return max(found, key=lambda column: len(np.unique(column)))


def _log_normalized(
    expression: _data.Expression, column: np.ndarray, n_genes: int
) -> Iterator[tuple[int, sp.csr_matrix]]:
    """Yield first position and log1p CP10k values, (n_cells, n_genes), of chunks of cells.

    Cells are scaled over all their genes, of which those that are not wanted are summed into one.
    """
    start = 0
    for x in expression.linear(np.where(column < 0, n_genes, column), n_genes + 1):
        total = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
        yield start, normalize(sp.csr_matrix(x[:, :n_genes]), total=total)
        start += x.shape[0]
