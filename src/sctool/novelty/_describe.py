"""Description of novel types."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sctool._data._features import normalize

N_MARKERS = 20


def describe(
    linear: sp.csr_matrix,
    genes: pd.Index,
    names: np.ndarray,
    novel: list[str],
    reference: sp.csr_matrix,
    labels: np.ndarray,
) -> pd.DataFrame:
    """Compute size, nearest known type and marker genes of each novel type.

    Parameters
    ----------
    linear
        Query, linear scale, CSR (n_cells, n_genes).
    genes
        Names of the genes.
    names
        Assigned type of each cell, (n_cells,).
    novel
        Names of the novel types, in order.
    reference, labels
        Labelled cells, linear scale, with the same genes; and their types.

    Returns
    -------
    One row per novel type: "n_cells"; "nearest", the known type whose mean profile (log1p CP10k)
    has the highest correlation; "distance", 1 minus that correlation; "markers", genes higher than
    in the rest of the query by scanpy's t-test, best first, joined by ", ". Without cells all but
    "n_cells" are empty; a single cell has no markers.
    """
    import scanpy as sc

    table = group_sizes(names, novel)
    if not novel:
        return table
    x, x_ref = normalize(linear.copy()), normalize(reference.copy())
    types = pd.unique(labels)
    profiles = np.stack([np.asarray(x_ref[labels == t].mean(axis=0)).ravel() for t in types])
    sizes = table["n_cells"]
    if testable := [n for n in novel if 1 < sizes[n] < len(names)]:
        cells = AnnData(
            x,
            obs=pd.DataFrame(
                {"name": pd.Categorical(names)}, index=np.arange(len(names)).astype(str)
            ),
            var=pd.DataFrame(index=genes),
        )
        with warnings.catch_warnings():
            # Raised by scanpy about groups of one cell, which are not tested.
            warnings.filterwarnings("ignore", "Group counts matches dof")
            sc.tl.rank_genes_groups(
                cells, "name", groups=testable, reference="rest", method="t-test", n_genes=N_MARKERS
            )
        for name in testable:
            markers = cells.uns["rank_genes_groups"]["names"][name]
            table.loc[name, "markers"] = ", ".join(map(str, markers))
    for name in table.index[sizes > 0]:
        profile = np.asarray(x[names == name].mean(axis=0)).ravel()
        correlation = np.corrcoef(profile, profiles)[0, 1:]
        table.loc[name, "nearest"] = str(types[correlation.argmax()])
        table.loc[name, "distance"] = 1 - correlation.max()
    return table


def group_sizes(names: np.ndarray, novel: list[str]) -> pd.DataFrame:
    """The table of :func:`describe` with only the number of cells filled in."""
    sizes = pd.Series(names, dtype=object).value_counts().reindex(novel, fill_value=0)
    return pd.DataFrame(
        {
            "n_cells": sizes.to_numpy(dtype=np.int64),
            "nearest": np.full(len(novel), "", dtype=object),
            "distance": np.full(len(novel), np.nan),
            "markers": np.full(len(novel), "", dtype=object),
        },
        index=pd.Index(novel, dtype=object),
    )
