from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from sctool import _slots, metrics


def evaluate(adata: AnnData, truth: str, *, key: str = "sctool") -> pd.DataFrame:
    """Compare an annotation, or a clustering, with types that are known.

    Cells without a known type are left out. Types are compared by name: those among the
    reference's are "seen", all others "novel". Novel groups ("novel_1", ...) are matched to novel
    types one to one, so as to make the most cells right.

    Parameters
    ----------
    adata
        Annotated by :func:`annotate`, or clustered by :func:`cluster`.
    truth
        Column of ``obs`` with the true types, of any dtype.
    key
        Name of the slots of the annotation or clustering.

    Returns
    -------
    The scores, one row each: ``value``, NaN where it is undefined (as without novel cells). Of an
    annotation those of :func:`sctool.metrics.summary`, of a clustering ``ari``, ``nmi``, and the
    numbers of types and of clusters. Written as well:

    ``uns[f"{key}_evaluation"]`` : dict
        ``scores``, that table. Of an annotation also ``types``, a row for each true or predicted
        type: ``n_true`` and ``n_predicted`` cells, ``precision``, ``recall`` and ``f1``, and
        ``auprc`` (area under the precision-recall curve of its probability) of seen types.

    Raises
    ------
    KeyError
        ``key`` was not annotated or clustered, or ``truth`` is not in ``obs``.
    ValueError
        No cell has a known type.

    Examples
    --------
    >>> import sctool
    >>> adata, ref = sctool.datasets.blood()
    >>> sctool.tl.annotate(adata, ref, method="logistic")
    >>> scores = sctool.tl.evaluate(adata, "truth")
    >>> bool(scores.loc["seen_accuracy", "value"] > 0.75)
    True
    """
    if key not in adata.uns or key not in adata.obs:
        raise KeyError(f"key={key!r} is not in adata: call sctool.tl.annotate or cluster first.")
    if truth not in adata.obs:
        raise KeyError(f"truth={truth!r} is not in adata.obs; found {list(adata.obs.columns)!r}.")
    known = adata.obs[truth].notna().to_numpy()
    if not known.any():
        raise ValueError(f"adata.obs[{truth!r}] has no value: there is nothing to compare with.")
    y_true = adata.obs[truth][known].astype(str).to_numpy()
    y_pred = adata.obs[key][known].astype(str).to_numpy()
    result = adata.uns[key]
    tables = {}
    if "classes" in result:
        classes = [str(name) for name in result["classes"]]
        novel_classes = {str(name) for name in result.get("novel_classes", [])}
        seen = [name for name in classes if name not in novel_classes]
        cells = adata.obs[known]
        proba = np.asarray(adata.obsm[f"{key}_proba"])[known]
        scores = metrics.summary(
            y_true,
            y_pred,
            seen,
            proba=proba,
            classes=classes,
            score=np.clip(cells[f"{key}_score"].to_numpy(dtype=float), 0, 1),
            novel_score=cells[f"{key}_novel_score"].to_numpy(),
            novel=cells[f"{key}_novel"].to_numpy() if f"{key}_novel" in cells else None,
        )
        tables["types"] = _by_type(y_true, y_pred, proba, classes, seen)
    else:
        scores = {
            "ari": metrics.ari(y_true, y_pred),
            "nmi": metrics.nmi(y_true, y_pred),
            "n_types": float(len(np.unique(y_true))),
            "n_clusters": float(len(np.unique(y_pred))),
        }
    tables["scores"] = pd.DataFrame({"value": pd.Series(scores, dtype=float)})
    _slots.write_evaluation(adata, key, tables)
    return tables["scores"].copy()


def _by_type(
    y_true: np.ndarray,
    y_pred: np.ndarray,
    proba: np.ndarray,
    classes: list[str],
    seen: list[str],
) -> pd.DataFrame:
    """One row for each type that a cell has, or was given."""
    from sklearn.metrics import precision_recall_fscore_support

    others = sorted(set(y_true) - set(classes))
    names = [name for name in [*classes, *others] if name in y_true or name in y_pred]
    precision, recall, f1, n_true = precision_recall_fscore_support(
        y_true, y_pred, labels=names, zero_division=np.nan
    )
    is_seen = np.isin(y_true, seen)
    auprc = metrics.per_type_auprc(y_true[is_seen], proba[is_seen], classes)
    return pd.DataFrame(
        {
            "n_true": n_true,
            "n_predicted": [int((y_pred == name).sum()) for name in names],
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "auprc": [auprc.get(name, np.nan) for name in names],
        },
        index=pd.Index(names, dtype=object),
    )
