"""Cells and tasks that the benchmark's tests share."""

import anndata as ad
import numpy as np
import pandas as pd

from sctool_benchmark import Task

TYPES = ["B", "CD4 T/NK", "DC", "Mono"]


def make_adata(split: bool = False) -> ad.AnnData:
    """Return 120 cells of four well-separated types, three cells without a label."""
    rng = np.random.default_rng(0)
    codes = np.arange(120) % 4
    x = rng.poisson(1 + 20 * np.eye(4, 10)[codes]).astype(np.float32)
    labels = pd.Series(np.array(TYPES, dtype=object)[codes])
    labels[[0, 1, 2]] = None
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(labels),
            "cell_type_orig": np.array(TYPES)[codes],
            "donor": np.array(["d1", "d2", "d3"])[rng.integers(3, size=120)],
        }
    ).set_axis([f"cell{i}" for i in range(120)])
    if split:
        obs["split"] = np.where(np.arange(120) < 60, "reference", "query")
    adata = ad.AnnData(x, obs=obs)
    adata.uns["query_only_types"] = TYPES
    adata.obsm["X_pca"] = x[:, :2]
    return adata


def make_task(kind: str, **entries) -> Task:
    return Task(name="t", data="t", kind=kind, file="t.h5ad", **entries)
