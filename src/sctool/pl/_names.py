from __future__ import annotations

import numpy as np
from anndata import AnnData


def true_and_predicted(
    adata: AnnData, truth: str, key: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Names of the cells that have a true type.

    Returns
    -------
    Mask of these cells, (n_cells,); their true and predicted names, (n_known,); and the name given
    to those without a predicted one.

    Raises
    ------
    KeyError
        ``key`` or ``truth`` is not in ``obs``.
    ValueError
        No cell has a true type.
    """
    for column in (key, truth):
        if column not in adata.obs:
            raise KeyError(f"{column!r} is not in adata.obs; found {list(adata.obs.columns)!r}.")
    known = adata.obs[truth].notna().to_numpy()
    if not known.any():
        raise ValueError(f"adata.obs[{truth!r}] has only missing values: nothing to compare with.")
    y_true = adata.obs[truth][known].astype(str).to_numpy()
    unassigned = "unassigned"
    while unassigned in y_true or (adata.obs[key] == unassigned).any():
        unassigned = f"({unassigned})"
    y_pred = adata.obs[key][known].astype(object)
    y_pred = y_pred.where(y_pred.notna(), unassigned).astype(str).to_numpy()
    return known, y_true, y_pred, unassigned
