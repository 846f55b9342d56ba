"""Cells made up for the tests: four types with planted markers, two data sets, a shift."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

#: In alphabetical order, so that labels of every dtype give the classes in the same order.
TYPES = ["B", "CD4 T/NK", "DC", "Mono"]
N_GENES, N_MARKERS = 300, 8
GENES = [f"GENE{i:03d}" for i in range(N_GENES)]
#: Genes that a type, and no other, expresses more than the rest does.
MARKERS = {name: GENES[i * N_MARKERS : (i + 1) * N_MARKERS] for i, name in enumerate(TYPES)}
#: Training that every model takes and that is over in a moment.
FAST = {"max_epochs": 6, "batch_size": 16, "enable_progress_bar": False}


def simulate(n_cells: int = 120, seed: int = 0, shift: float = 0.0) -> AnnData:
    """Counts of cells whose types, in ``obs["cell_type"]``, take turns.

    ``shift`` is the standard deviation of the genes' log factors against the unshifted data.
    """
    fixed = np.random.default_rng(12345)
    rate = np.tile(fixed.lognormal(0.0, 0.7, N_GENES), (len(TYPES), 1))
    for i in range(len(TYPES)):
        rate[i, i * N_MARKERS : (i + 1) * N_MARKERS] *= 8
    rate = rate * np.exp(shift * fixed.standard_normal(N_GENES))
    rng = np.random.default_rng(seed)
    codes = np.arange(n_cells) % len(TYPES)
    mean = rate[codes] * rng.lognormal(0.0, 0.3, (n_cells, 1))
    counts = rng.poisson(mean * rng.gamma(3.0, 1 / 3, mean.shape)).astype(np.float32)
    return AnnData(
        sp.csr_matrix(counts),
        obs=pd.DataFrame(
            {"cell_type": pd.Categorical.from_codes(codes, TYPES)},
            index=[f"cell{seed}-{i}" for i in range(n_cells)],
        ),
        var=pd.DataFrame(index=pd.Index(GENES)),
    )


def simulate_sides(n_query: int = 80, n_ref: int = 120) -> tuple[AnnData, AnnData]:
    """A query, its types in ``obs["truth"]``, and a labelled reference, with a shift between."""
    adata, ref = simulate(n_query, seed=1, shift=0.3), simulate(n_ref, seed=0)
    adata.obs = adata.obs.rename(columns={"cell_type": "truth"})
    return adata, ref


def simulate_joint(n_query: int = 80, n_ref: int = 120) -> AnnData:
    """Both sides in one object, the query's cells labelled "Unknown"."""
    adata, ref = simulate_sides(n_query, n_ref)
    labels = [*ref.obs["cell_type"].astype(str), *["Unknown"] * adata.n_obs]
    obs = pd.DataFrame({"cell_type": labels}, index=[*ref.obs_names, *adata.obs_names])
    return AnnData(sp.vstack([ref.X, adata.X], format="csr"), obs=obs, var=ref.var.copy())


def write_blocks(path: Path, block: sp.csr_matrix, obs: pd.DataFrame, var: pd.DataFrame) -> None:
    """Write a file whose cells repeat a block, of which only one copy is held in memory."""
    AnnData(obs=obs, var=var).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        if "X" in file:
            del file["X"]
        ad.io.write_elem(file, "X", block)
        matrix = ad.io.sparse_dataset(file["X"])
        for _ in range(len(obs) // block.shape[0] - 1):
            matrix.append(block)


def without_pulling() -> AbstractContextManager:
    """Before mudata 0.4 a new MuData warns unless it is told not to copy columns."""
    import mudata

    if not hasattr(mudata, "set_options"):
        return nullcontext()
    return mudata.set_options(pull_on_update=False)
