"""Small example datasets that need no download."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from anndata import AnnData

__all__ = ["blood"]


def blood(reference_share: float = 0.5, random_state: int = 0) -> tuple[AnnData, AnnData]:
    """Load blood cells of one donor as a query and a labelled reference.

    700 peripheral blood cells of 10 types that are shipped with scanpy
    (:func:`scanpy.datasets.pbmc68k_reduced`; Zheng et al. 2017), split at random within each type.
    ``X`` holds scaled values and ``raw`` log1p values of 765 genes, as in many published files.

    Parameters
    ----------
    reference_share
        Fraction of each type's cells in the reference, in (0, 1); both query and reference keep at
        least one cell of each type.
    random_state
        Random seed of the split.

    Returns
    -------
    adata
        Query, with the true types in ``obs["truth"]`` (never read by annotation).
    ref
        Reference, with the cell types in ``obs["cell_type"]`` and their colours.

    Raises
    ------
    ValueError
        ``reference_share`` is not between 0 and 1.

    Examples
    --------
    >>> adata, ref = blood()
    >>> adata.n_obs, ref.n_obs
    (353, 347)
    """
    if not 0 < reference_share < 1:
        raise ValueError(f"reference_share={reference_share!r}: it must be between 0 and 1.")
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file was written by an old anndata
        cells = sc.datasets.pbmc68k_reduced()
    labels = cells.obs["bulk_labels"].astype("category")
    rng = np.random.default_rng(random_state)
    in_ref = np.zeros(cells.n_obs, dtype=bool)
    for name in labels.cat.categories:
        members = rng.permutation(np.flatnonzero(labels == name))
        n = min(max(int(reference_share * len(members)), 1), len(members) - 1)
        in_ref[members[:n]] = True
    sides = []
    for mask, column in ((~in_ref, "truth"), (in_ref, "cell_type")):
        side = cells[mask].copy()
        side.obs = pd.DataFrame({column: labels[mask]}, index=side.obs_names)
        side.uns = {f"{column}_colors": list(cells.uns["bulk_labels_colors"])}
        for slot in (side.obsm, side.obsp, side.varm):
            for key in list(slot):
                del slot[key]
        sides.append(side)
    return sides[0], sides[1]
