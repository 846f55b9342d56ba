from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from sctool import _slots, metrics
from sctool._ontology import cell_ontology, compare
from sctool._truth import true_and_predicted


def evaluate(adata: AnnData, truth: str, *, key: str = "sctool") -> pd.DataFrame:
    """Evaluate an annotation or a clustering against known cell types.

    Cells without a true type are excluded; cells without a predicted type are wrong. Types are
    compared by name: types of the reference are "seen", all others "novel". Novel groups
    ("novel_1", ...) are matched one-to-one to novel types to maximise the number of correct cells.
    In ``ari`` and ``nmi``, cells without a predicted type or cluster are a group of their own.

    Parameters
    ----------
    adata
        Annotated by :func:`annotate`, or clustered by :func:`cluster`.
    truth
        Column of ``obs`` with the true cell types, of any dtype. Strings such as "" and "nan" are
        missing types, as in the reference of :func:`annotate`; a warning names them.
    key
        Key of the annotation or clustering.

    Returns
    -------
    DataFrame with one row per score and the column ``value``, NaN where undefined (such as novelty
    scores without novel cells): for an annotation the scores of :func:`sctool.metrics.summary`, for
    a clustering ``ari``, ``nmi``, ``n_types`` and ``n_clusters``. If :func:`map_to_ontology` has
    written ids for both ``key`` and ``truth``, also the shares of cells, of those whose true type
    has an id, that are ``ontology_right``, the true type or a kind of it, and
    ``ontology_less_specific``, a type that the true one is a kind of (as scTab judges them, Fischer
    et al. 2024). Also written:

    ``uns[f"{key}_evaluation"]`` : dict
        ``scores``, the same table. For an annotation also ``types``, with a row for each true or
        predicted type: ``n_true`` and ``n_predicted`` cells, ``precision``, ``recall``, ``f1`` and,
        for seen types, ``auprc`` (area under the precision-recall curve).

    Raises
    ------
    KeyError
        ``key`` was not written by :func:`annotate` or :func:`cluster`, or ``truth`` is not in
        ``obs``.
    ValueError
        No cell has a true type.

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
        raise KeyError(
            f"key={key!r} is not in adata: call sctool.tl.annotate or sctool.tl.cluster first."
        )
    known, y_true, y_pred, unassigned = true_and_predicted(adata, truth, key)
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
            [*seen, unassigned],  # else these cells would be a novel group
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
            "n_clusters": float(adata.obs[key][known].nunique()),
        }
    scores |= _by_ontology(adata.obs[known], truth, key)
    tables["scores"] = pd.DataFrame({"value": pd.Series(scores, dtype=float)})
    _slots.write_evaluation(adata, key, tables)
    return tables["scores"].copy()


def _by_ontology(cells: pd.DataFrame, truth: str, key: str) -> dict[str, float]:
    """Shares of cells that are right, and less specific, by ids of terms; empty without these."""
    columns = [f"{name}_ontology_term_id" for name in (truth, key)]
    if not set(columns) <= set(cells):
        return {}
    ontology = cell_ontology()
    pairs = cells[columns].astype(str).value_counts()
    pairs = pairs[[true in ontology.labels for true, _ in pairs.index]]
    verdicts = [compare(ontology, found, true) for true, found in pairs.index]
    share = pairs.groupby(verdicts).sum() / max(pairs.sum(), 1)
    return (
        {
            "ontology_right": float(share.get("right", 0.0)),
            "ontology_less_specific": float(share.get("less specific", 0.0)),
        }
        if len(pairs)
        else {}
    )


def _by_type(
    y_true: np.ndarray,
    y_pred: np.ndarray,
    proba: np.ndarray,
    classes: list[str],
    seen: list[str],
) -> pd.DataFrame:
    """Scores of each true or predicted type, one row per type."""
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
