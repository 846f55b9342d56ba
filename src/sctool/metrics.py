"""Metrics for cell type annotation with a labelled reference.

Terms
-----
y_true, y_pred
    True and predicted label of each cell. Integers are converted to strings.
seen
    Names of the cell types in the reference. A *seen* cell has a true type among them; all other
    cells are *novel*. A *novel group* is a predicted label that is not among them, such as
    "novel_1"; its name is ignored, and it is scored by matching it to a true type.
proba, classes
    Probability (or any finite score) of each class, and the names of the columns.
score
    Confidence in the predicted label, in [0, 1].
novel_score
    Any finite score that is higher for cells that are more likely novel.
novel
    Whether each cell was flagged as novel.

All except `seen` and `classes` have one entry (or row) per cell, in the same order.

Undefined scores and errors
---------------------------
A score that is undefined because there are no seen or no novel cells is ``float("nan")``. All
functions raise ``ValueError`` if a label is missing (None, NaN), if arguments differ in their
number of cells, or if an argument is not as described above.

Novel cells
-----------
`novel_accuracy` and `overall_accuracy` compare seen types by name and match only novel groups to
novel types: a novel cell that was assigned a seen type is wrong.
"""

from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import (
    accuracy_score,
    adjusted_rand_score,
    average_precision_score,
    f1_score,
    normalized_mutual_info_score,
    recall_score,
    roc_auc_score,
)
from sklearn.metrics.cluster import contingency_matrix

__all__ = [
    "ReliabilityCurve",
    "ari",
    "balanced_accuracy",
    "ece",
    "ece_all",
    "false_novel",
    "macro_f1",
    "nmi",
    "novel_accuracy",
    "novel_auroc",
    "novel_precision",
    "novel_recall",
    "overall_accuracy",
    "per_type_auprc",
    "per_type_auroc",
    "reliability_curve",
    "seen_accuracy",
    "summary",
    "top_k_accuracy",
]

Names = NDArray[np.str_]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Binning = Literal["width", "mass"]
NAN = float("nan")


# -- Reading the arguments ---------------------------------------------------------------------


def _names(values: ArrayLike, what: str) -> Names:
    """Return `values` as a 1-d array of strings; raise if any is missing."""
    is_text = isinstance(values, np.ndarray) and values.dtype.kind == "U"
    # Convert via object: numpy would turn the NaN in ["B cell", nan] into the string "nan".
    array = np.asarray(values, dtype=None if is_text else object)
    if array.ndim != 1:
        raise ValueError(f"{what} must have one dimension, not {array.ndim}")
    if is_text:
        return array
    missing = [i for i, v in enumerate(array) if not isinstance(v, str | int | np.integer)]
    if missing:
        raise ValueError(
            f"{what} has {len(missing)} missing or invalid labels (such as NaN or None), "
            f"the first at cell {missing[0]}: drop these cells first"
        )
    return np.array([str(v) for v in array], dtype=np.str_)


def _numbers(values: ArrayLike, what: str) -> Floats:
    """Return `values` as a 1-d array of finite floats."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{what} must have one dimension, not {array.ndim}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what} must be finite")
    return array


def _same_length(**arrays: NDArray) -> None:
    """Raise unless all arrays have the length of the first."""
    (first, reference), *others = arrays.items()
    for name, array in others:
        if len(array) != len(reference):
            raise ValueError(
                f"{first} has {len(reference)} cells but {name} has {len(array)}: "
                "pass values for the same cells"
            )


def _pair(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[Names, Names]:
    """Return the validated true and predicted labels."""
    truth, pred = _names(y_true, "y_true"), _names(y_pred, "y_pred")
    _same_length(y_true=truth, y_pred=pred)
    return truth, pred


def _scored(y_true: ArrayLike, y_pred: ArrayLike, score: ArrayLike) -> tuple[Names, Names, Floats]:
    """Return the validated labels and confidences."""
    truth, pred = _pair(y_true, y_pred)
    confidence = _numbers(score, "score")
    if confidence.size and (confidence.min() < 0 or confidence.max() > 1):
        raise ValueError(
            f"score must be within [0, 1], but ranges from {confidence.min()} to {confidence.max()}"
        )
    _same_length(y_true=truth, score=confidence)
    return truth, pred, confidence


def _called(y_true: ArrayLike, novel: ArrayLike, seen: Collection[str]) -> tuple[Mask, Mask]:
    """Return which cells are novel and which were flagged; raise if scores are passed as flags."""
    truth, called = _names(y_true, "y_true"), np.asarray(novel)
    if called.ndim != 1 or (called.size and called.dtype != np.bool_):
        raise ValueError(f"novel must be a 1-d array of bool, not {called.ndim}-d {called.dtype}")
    _same_length(y_true=truth, novel=called)
    return ~_member(truth, seen), called.astype(np.bool_)


def _table(y_true: ArrayLike, proba: ArrayLike, classes: ArrayLike) -> tuple[Names, Floats, Names]:
    """Return the validated true labels, probabilities and column names."""
    truth, names = _names(y_true, "y_true"), _names(classes, "classes")
    table = np.asarray(proba, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"proba must have two dimensions, not {table.ndim}")
    _same_length(y_true=truth, proba=table)
    if table.shape[1] != names.size:
        raise ValueError(f"proba has {table.shape[1]} columns but classes has {names.size} names")
    if np.unique(names).size != names.size:
        raise ValueError("classes must not contain repeated names")
    if not np.isfinite(table).all():
        raise ValueError("proba must be finite")
    return truth, table, names


def _member(names: Names, seen: Collection[str]) -> Mask:
    """Return which of `names` are in `seen`."""
    if isinstance(seen, str):
        raise ValueError("seen must be a collection of names, not a single name")
    return np.isin(names, np.array([str(name) for name in seen], dtype=np.str_))


# -- Shared arithmetic -------------------------------------------------------------------------


def _share(count: float, total: float) -> float:
    """Return ``count / total``, NaN if `total` is 0."""
    return float(count / total) if total else NAN


def _mean(values: Collection[float] | NDArray) -> float:
    """Return the mean of `values`, NaN (without a warning) if empty."""
    return float(np.mean(np.asarray(values))) if len(values) else NAN


def _n_matched(truth: Names, pred: Names) -> int:
    """Count the cells that agree under the optimal one-to-one matching of groups to types.

    The matching is computed with the Hungarian method (Kuhn 1955) on the contingency table. Cells
    of unmatched groups or types do not agree.
    """
    counts = contingency_matrix(truth, pred)
    return int(counts[linear_sum_assignment(counts, maximize=True)].sum())


# -- Labels of seen cells ----------------------------------------------------------------------


def _on_seen(y_true: ArrayLike, y_pred: ArrayLike, seen: Collection[str]) -> tuple[Names, Names]:
    """Return the true and predicted labels of the seen cells."""
    truth, pred = _pair(y_true, y_pred)
    cells = _member(truth, seen)
    return truth[cells], pred[cells]


def seen_accuracy(y_true: ArrayLike, y_pred: ArrayLike, seen: Collection[str]) -> float:
    """Return the fraction of seen cells whose predicted type is correct.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
    seen : collection of str

    Returns
    -------
    float
        Between 0 and 1; NaN without seen cells.
    """
    truth, pred = _on_seen(y_true, y_pred, seen)
    return float(accuracy_score(truth, pred)) if truth.size else NAN


def macro_f1(y_true: ArrayLike, y_pred: ArrayLike, seen: Collection[str]) -> float:
    """Return the mean F1 score over the seen types present in `y_true`, on seen cells only.

    A seen cell predicted as novel, or as a type absent from `y_true`, lowers the recall of its
    true type. Absent types are not part of the mean.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
    seen : collection of str

    Returns
    -------
    float
        Between 0 and 1; NaN without seen cells.
    """
    truth, pred = _on_seen(y_true, y_pred, seen)
    if not truth.size:
        return NAN
    types = np.unique(truth)
    return float(f1_score(truth, pred, labels=types, average="macro", zero_division=0))


def balanced_accuracy(y_true: ArrayLike, y_pred: ArrayLike, seen: Collection[str]) -> float:
    """Return the mean recall over the seen types present in `y_true`.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
    seen : collection of str

    Returns
    -------
    float
        Between 0 and 1; NaN without seen cells.
    """
    truth, pred = _on_seen(y_true, y_pred, seen)
    if not truth.size:
        return NAN
    return float(recall_score(truth, pred, labels=np.unique(truth), average="macro"))


# -- Probabilities -----------------------------------------------------------------------------


def _one_vs_rest(
    y_true: ArrayLike, proba: ArrayLike, classes: ArrayLike
) -> Iterator[tuple[str, Mask, Floats]]:
    """Yield name, cell mask and probabilities of each class present in `y_true`."""
    truth, table, names = _table(y_true, proba, classes)
    for name, column in zip(names, table.T, strict=True):
        positive = truth == name
        if positive.any():
            yield str(name), positive, column


def per_type_auprc(y_true: ArrayLike, proba: ArrayLike, classes: ArrayLike) -> dict[str, float]:
    """Return the area under the precision-recall curve of each type, one-vs-rest.

    Computed as the average precision: precision at each distinct probability, weighted by the
    increase in recall, without interpolation (Davis & Goadrich 2006).

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
        A cell whose type is not in `classes` is a negative for every class.
    proba : array-like of float, shape (n_cells, n_classes)
    classes : array-like of str, shape (n_classes,)

    Returns
    -------
    dict of str to float
        Area between 0 and 1 for each class present in `y_true`, in the order of `classes`.
    """
    return {
        name: float(average_precision_score(positive, column))
        for name, positive, column in _one_vs_rest(y_true, proba, classes)
    }


def per_type_auroc(y_true: ArrayLike, proba: ArrayLike, classes: ArrayLike) -> dict[str, float]:
    """Return the area under the ROC curve of each type, one-vs-rest.

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
        A cell whose type is not in `classes` is a negative for every class.
    proba : array-like of float, shape (n_cells, n_classes)
    classes : array-like of str, shape (n_classes,)

    Returns
    -------
    dict of str to float
        Area between 0 and 1 for each class present in `y_true`, in the order of `classes`; NaN if
        all cells belong to the class.
    """
    return {
        name: NAN if positive.all() else float(roc_auc_score(positive, column))
        for name, positive, column in _one_vs_rest(y_true, proba, classes)
    }


def top_k_accuracy(y_true: ArrayLike, proba: ArrayLike, classes: ArrayLike, *, k: int = 3) -> float:
    """Return the fraction of cells whose true type is among their `k` most probable classes.

    Unlike in scikit-learn, ties count against the true class, so that the order of the columns
    does not matter.

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
        Cells whose type is not in `classes` are excluded.
    proba : array-like of float, shape (n_cells, n_classes)
    classes : array-like of str, shape (n_classes,)
    k : int, default 3
        Number of classes, at least 1.

    Returns
    -------
    float
        Between 0 and 1; NaN if no cell has a type in `classes`.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    truth, table, names = _table(y_true, proba, classes)
    is_true = truth[:, None] == names
    known = is_true.any(axis=1)
    rank = (table[known] >= table[is_true][:, None]).sum(axis=1)
    return _mean(rank <= k)


# -- Labels of novel cells ---------------------------------------------------------------------


def _n_discovered(truth: Names, pred: Names, seen: Collection[str]) -> int:
    """Count the novel cells assigned to the novel group matched to their type."""
    # Only novel cells in novel groups can be correct, so the matching ignores all others.
    both_novel = ~_member(truth, seen) & ~_member(pred, seen)
    return _n_matched(truth[both_novel], pred[both_novel])


def novel_accuracy(y_true: ArrayLike, y_pred: ArrayLike, seen: Collection[str]) -> float:
    """Return the fraction of novel cells assigned to the novel group matched to their type.

    Novel groups are matched one-to-one to novel types to maximise the number of correct cells. A
    novel cell that was assigned a seen type is wrong.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
    seen : collection of str

    Returns
    -------
    float
        Between 0 and 1; NaN without novel cells.
    """
    truth, pred = _pair(y_true, y_pred)
    return _share(_n_discovered(truth, pred, seen), (~_member(truth, seen)).sum())


def overall_accuracy(y_true: ArrayLike, y_pred: ArrayLike, seen: Collection[str]) -> float:
    """Return the fraction of all cells that are correct.

    Mean of `seen_accuracy` and `novel_accuracy`, weighted by their numbers of cells.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
    seen : collection of str

    Returns
    -------
    float
        Between 0 and 1; NaN without cells.
    """
    truth, pred = _pair(y_true, y_pred)
    n_named = (_member(truth, seen) & (truth == pred)).sum()
    return _share(n_named + _n_discovered(truth, pred, seen), truth.size)


# -- Clusterings -------------------------------------------------------------------------------


def ari(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the adjusted Rand index of types and groups (Hubert & Arabie 1985).

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)

    Returns
    -------
    float
        At most 1; 0 is the expectation of a random grouping; NaN without cells.
    """
    truth, pred = _pair(y_true, y_pred)
    return float(adjusted_rand_score(truth, pred)) if truth.size else NAN


def nmi(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the normalised mutual information of types and groups (by the larger entropy).

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)

    Returns
    -------
    float
        Between 0 and 1; NaN without cells.
    """
    truth, pred = _pair(y_true, y_pred)
    if not truth.size:
        return NAN
    return float(normalized_mutual_info_score(truth, pred, average_method="max"))


# -- Detection of novel cells ------------------------------------------------------------------


def novel_auroc(y_true: ArrayLike, novel_score: ArrayLike, seen: Collection[str]) -> float:
    """Return the area under the ROC curve of a novelty score (novel against seen cells).

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
    novel_score : array-like of float, shape (n_cells,)
    seen : collection of str

    Returns
    -------
    float
        Between 0 and 1, 0.5 for a random score; NaN without seen or without novel cells.
    """
    truth, score = _names(y_true, "y_true"), _numbers(novel_score, "novel_score")
    _same_length(y_true=truth, novel_score=score)
    is_novel = ~_member(truth, seen)
    if is_novel.all() or not is_novel.any():
        return NAN
    return float(roc_auc_score(is_novel, score))


def false_novel(y_true: ArrayLike, novel: ArrayLike, seen: Collection[str]) -> float:
    """Return the fraction of seen cells that were flagged as novel.

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
    novel : array-like of bool, shape (n_cells,)
    seen : collection of str

    Returns
    -------
    float
        Between 0 and 1; NaN without seen cells.
    """
    is_novel, called = _called(y_true, novel, seen)
    return _mean(called[~is_novel])


def novel_recall(y_true: ArrayLike, novel: ArrayLike, seen: Collection[str]) -> float:
    """Return the fraction of novel cells that were flagged as novel.

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
    novel : array-like of bool, shape (n_cells,)
    seen : collection of str

    Returns
    -------
    float
        Between 0 and 1; NaN without novel cells.
    """
    is_novel, called = _called(y_true, novel, seen)
    return _mean(called[is_novel])


def novel_precision(y_true: ArrayLike, novel: ArrayLike, seen: Collection[str]) -> float:
    """Return the fraction of flagged cells that are novel.

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
    novel : array-like of bool, shape (n_cells,)
    seen : collection of str

    Returns
    -------
    float
        Between 0 and 1; NaN if no cell was flagged.
    """
    is_novel, called = _called(y_true, novel, seen)
    return _mean(is_novel[called])


# -- Calibration -------------------------------------------------------------------------------


class ReliabilityCurve(NamedTuple):
    """Accuracy as a function of confidence; see `reliability_curve`.

    Attributes
    ----------
    mean_score : ndarray of float, shape (n_bins,)
        Mean score of the cells of each bin; NaN for an empty bin.
    accuracy : ndarray of float, shape (n_bins,)
        Fraction of correct cells in each bin; NaN for an empty bin.
    n_cells : ndarray of int, shape (n_bins,)
        Number of cells in each bin.
    """

    mean_score: Floats
    accuracy: Floats
    n_cells: NDArray[np.intp]


def _reliability(right: Mask, score: Floats, n_bins: int, binning: Binning) -> ReliabilityCurve:
    """Bin the cells by score and compute the mean score and accuracy of each bin."""
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, not {n_bins}")
    if binning == "width":
        # Bins are closed on the right, as in Guo et al. 2017; the first also holds 0.
        edges = np.linspace(0, 1, n_bins + 1)
        bins = np.searchsorted(edges[1:-1], score, side="left")
    elif binning == "mass":
        bins = np.empty(score.size, dtype=np.intp)
        for i, cells in enumerate(np.array_split(np.argsort(score), n_bins)):
            bins[cells] = i
    else:
        raise ValueError(f'binning must be "width" or "mass", not {binning!r}')

    # Bins of equal mass may split cells with equal scores. Each such cell gets the mean accuracy
    # of its ties, so that the arbitrary order of the cells does not matter.
    _, tie = np.unique(score, return_inverse=True)
    rightness = (np.bincount(tie, weights=right) / np.bincount(tie))[tie]

    n_cells = np.bincount(bins, minlength=n_bins)
    divisor = np.where(n_cells > 0, n_cells, np.nan)
    return ReliabilityCurve(
        mean_score=np.bincount(bins, weights=score, minlength=n_bins) / divisor,
        accuracy=np.bincount(bins, weights=rightness, minlength=n_bins) / divisor,
        n_cells=n_cells,
    )


def _gap(curve: ReliabilityCurve) -> float:
    """Return the mean absolute difference of score and accuracy, weighted by the bins' cells."""
    distance = np.abs(curve.mean_score - curve.accuracy)
    return _share(float(np.nansum(curve.n_cells * distance)), int(curve.n_cells.sum()))


def reliability_curve(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    score: ArrayLike,
    *,
    n_bins: int = 15,
    binning: Binning = "width",
) -> ReliabilityCurve:
    """Return mean score, accuracy and number of cells per bin of the score.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
    score : array-like of float, shape (n_cells,)
    n_bins : int, default 15
        Number of bins, at least 1.
    binning : {"width", "mass"}, default "width"
        Bins of equal width over [0, 1], closed on the right (Guo et al. 2017), or with equal
        numbers of cells (Nguyen & O'Connor 2015). Cells with equal scores in different bins are
        all given their mean accuracy.

    Returns
    -------
    ReliabilityCurve
        Arrays of length `n_bins`, by increasing score.
    """
    truth, pred, confidence = _scored(y_true, y_pred, score)
    return _reliability(truth == pred, confidence, n_bins, binning)


def ece(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    score: ArrayLike,
    *,
    seen: Collection[str] | None = None,
    n_bins: int = 15,
    binning: Binning = "width",
) -> float:
    """Return the expected calibration error (Guo et al. 2017).

    Mean absolute difference of mean score and accuracy over the bins of the `reliability_curve`,
    weighted by their numbers of cells.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
    score : array-like of float, shape (n_cells,)
    seen : collection of str, optional
        If given, only seen cells are used.
    n_bins : int, default 15
    binning : {"width", "mass"}, default "width"

    Returns
    -------
    float
        Between 0 (calibrated) and 1; NaN without cells.
    """
    truth, pred, confidence = _scored(y_true, y_pred, score)
    cells = np.ones(truth.size, dtype=np.bool_) if seen is None else _member(truth, seen)
    return _gap(_reliability((truth == pred)[cells], confidence[cells], n_bins, binning))


def ece_all(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    score: ArrayLike,
    seen: Collection[str],
    *,
    n_bins: int = 15,
    binning: Binning = "width",
) -> float:
    """Return the expected calibration error over all cells, counting novel cells as wrong.

    Any confidence in the label of a novel cell is thus overconfidence. See `ece`.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
    score : array-like of float, shape (n_cells,)
    seen : collection of str
    n_bins : int, default 15
    binning : {"width", "mass"}, default "width"

    Returns
    -------
    float
        Between 0 (calibrated) and 1; NaN without cells.
    """
    truth, pred, confidence = _scored(y_true, y_pred, score)
    right = _member(truth, seen) & (truth == pred)
    return _gap(_reliability(right, confidence, n_bins, binning))


# -- Summary -----------------------------------------------------------------------------------


def summary(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    seen: Collection[str],
    *,
    proba: ArrayLike | None = None,
    classes: ArrayLike | None = None,
    score: ArrayLike | None = None,
    novel_score: ArrayLike | None = None,
    novel: ArrayLike | None = None,
) -> dict[str, float]:
    """Return all scalar scores that can be computed from the given arguments.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
    seen : collection of str
    proba : array-like of float, shape (n_cells, n_classes), optional
        Requires `classes`. Adds ``top_3_accuracy``, and ``mean_auprc`` and ``mean_auroc``, the
        means over the types of the seen cells, on seen cells only.
    classes : array-like of str, shape (n_classes,), optional
    score : array-like of float, shape (n_cells,), optional
        Adds ``ece`` and ``ece_mass`` on the seen cells, with bins of equal width and of equal
        mass, and ``ece_all`` on all cells.
    novel_score : array-like of float, shape (n_cells,), optional
        Adds ``novel_auroc``.
    novel : array-like of bool, shape (n_cells,), optional
        Adds ``false_novel``, ``novel_recall`` and ``novel_precision``.

    Returns
    -------
    dict of str to float
        Scores keyed by function name or by the names above; NaN where undefined.
    """
    if (proba is None) != (classes is None):
        raise ValueError("proba and classes must be given together")
    truth, pred = _pair(y_true, y_pred)
    scores = {
        "seen_accuracy": seen_accuracy(truth, pred, seen),
        "macro_f1": macro_f1(truth, pred, seen),
        "balanced_accuracy": balanced_accuracy(truth, pred, seen),
        "novel_accuracy": novel_accuracy(truth, pred, seen),
        "overall_accuracy": overall_accuracy(truth, pred, seen),
        "ari": ari(truth, pred),
        "nmi": nmi(truth, pred),
    }
    if proba is not None and classes is not None:
        truth, table, names = _table(truth, proba, classes)
        cells = _member(truth, seen)
        scores["top_3_accuracy"] = top_k_accuracy(truth, table, names, k=3)
        auprc = per_type_auprc(truth[cells], table[cells], names)
        auroc = per_type_auroc(truth[cells], table[cells], names)
        scores["mean_auprc"] = _mean(list(auprc.values()))
        scores["mean_auroc"] = _mean(list(auroc.values()))
    if score is not None:
        scores["ece"] = ece(truth, pred, score, seen=seen)
        scores["ece_mass"] = ece(truth, pred, score, seen=seen, binning="mass")
        scores["ece_all"] = ece_all(truth, pred, score, seen)
    if novel_score is not None:
        scores["novel_auroc"] = novel_auroc(truth, novel_score, seen)
    if novel is not None:
        scores["false_novel"] = false_novel(truth, novel, seen)
        scores["novel_recall"] = novel_recall(truth, novel, seen)
        scores["novel_precision"] = novel_precision(truth, novel, seen)
    return scores
