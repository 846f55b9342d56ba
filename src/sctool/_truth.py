"""True types of annotated cells, beside the predicted ones."""

from __future__ import annotations

import logging

import numpy as np
from anndata import AnnData

from sctool import _data

logger = logging.getLogger("sctool")


def true_and_predicted(
    adata: AnnData, truth: str, key: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """Names of the cells that have a true type.

    Strings such as "" and "nan" are missing types, as in a reference; a warning names them.

    Returns
    -------
    Mask of these cells, (n_cells,); their true and predicted names, (n_known,); and the name given
    to those without a predicted one.

    Raises
    ------
    KeyError
        ``key`` or ``truth`` is not in ``obs``.
    ValueError
        No cell has a true type, or ``obs`` has several columns ``truth``.
    """
    for column in (key, truth):
        if column not in adata.obs:
            raise KeyError(f"{column!r} is not in adata.obs; found {list(adata.obs.columns)!r}.")
    values = _data.obs_column(adata, truth, "truth", "query")
    # cells that their authors could not name are of no type of the reference
    types = _data.clean_labels(values, keep=["unassigned"])
    known = types.codes >= 0
    if not known.any():
        raise ValueError(f"adata.obs[{truth!r}] has only missing values: nothing to compare with.")
    as_text = values[~known].dropna().astype(str)
    if len(as_text):
        logger.warning(
            f"{len(as_text)} cells with {sorted(set(as_text))!r} in adata.obs[{truth!r}] were "
            "treated as cells without a true type."
        )
    y_true = np.asarray(types[known], dtype=object)
    unassigned = "unassigned"
    while unassigned in y_true or (adata.obs[key] == unassigned).any():
        unassigned = f"({unassigned})"
    y_pred = adata.obs[key][known].astype(object)
    y_pred = y_pred.where(y_pred.notna(), unassigned).astype(str).to_numpy()
    return known, y_true, y_pred, unassigned
