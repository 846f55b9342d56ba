"""Scores for the annotation of single cells from a labelled reference.

Vocabulary
----------
y_true, y_pred
    The true and the predicted name of each cell.  Whole numbers are accepted and read as text.
seen
    The names of the types that the reference holds.  A *seen* cell is one whose true type is among
    them, any other cell is *novel*.  A *novel group* is a predicted name that is not among them,
    such as "novel_1".  The name itself carries no meaning: a group is scored by matching it to a
    true type.
proba, classes
    The probability, or any finite score, of each class, and the names of its columns.
score
    The confidence in the predicted name, within [0, 1].
novel_score
    Any finite score that is larger for cells that look novel.
novel
    Whether each cell was called novel.

All are arrays with one entry (or row) per cell, in the same order, except `seen` and `classes`.

Undefined scores and errors
---------------------------
A score that is undefined, for want of seen or of novel cells, is ``float("nan")``.  Every function
raises ``ValueError`` if a name is missing (None, NaN), if the arguments are not of the same cells,
or if an argument is not as described above.

Novel cells
-----------
`novel_accuracy` and `overall_accuracy` take a seen name at its word and match only novel groups to
novel types: a novel cell under the name of a seen type is wrong.
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
    """Return `values` as a 1-d array of text; refuse missing names."""
    is_text = isinstance(values, np.ndarray) and values.dtype.kind == "U"
    # Else through objects: numpy alone would turn the NaN of ["B cell", nan] into the text "nan".
    array = np.asarray(values, dtype=None if is_text else object)
    if array.ndim != 1:
        raise ValueError(f"{what} must have one dimension, not {array.ndim}")
    if is_text:
        return array
    missing = [i for i, v in enumerate(array) if not isinstance(v, str | int | np.integer)]
    if missing:
        raise ValueError(
            f"{what} has {len(missing)} missing values (NaN, None or not a name), "
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
    """Refuse arrays that do not have one entry per entry of the first."""
    (first, reference), *others = arrays.items()
    for name, array in others:
        if len(array) != len(reference):
            raise ValueError(
                f"{first} has {len(reference)} cells but {name} has {len(array)}: "
                "they must be the same cells"
            )


def _pair(y_true: ArrayLike, y_pred: ArrayLike) -> tuple[Names, Names]:
    """Return the true and the predicted names, of one length."""
    truth, pred = _names(y_true, "y_true"), _names(y_pred, "y_pred")
    _same_length(y_true=truth, y_pred=pred)
    return truth, pred


def _scored(y_true: ArrayLike, y_pred: ArrayLike, score: ArrayLike) -> tuple[Names, Names, Floats]:
    """Return the names and the confidences in the predicted ones."""
    truth, pred = _pair(y_true, y_pred)
    confidence = _numbers(score, "score")
    if confidence.size and (confidence.min() < 0 or confidence.max() > 1):
        raise ValueError(
            f"score must lie within [0, 1], but spans [{confidence.min()}, {confidence.max()}]"
        )
    _same_length(y_true=truth, score=confidence)
    return truth, pred, confidence


def _called(y_true: ArrayLike, novel: ArrayLike, seen: Collection[str]) -> tuple[Mask, Mask]:
    """Tell which cells are novel, and which were called so; refuse a score taken for a flag."""
    truth, called = _names(y_true, "y_true"), np.asarray(novel)
    if called.ndim != 1 or (called.size and called.dtype != np.bool_):
        raise ValueError(f"novel must be a 1-d array of bool, not {called.ndim}-d {called.dtype}")
    _same_length(y_true=truth, novel=called)
    return ~_member(truth, seen), called.astype(np.bool_)


def _table(y_true: ArrayLike, proba: ArrayLike, classes: ArrayLike) -> tuple[Names, Floats, Names]:
    """Return the true names, the probabilities and the names of their columns."""
    truth, names = _names(y_true, "y_true"), _names(classes, "classes")
    table = np.asarray(proba, dtype=np.float64)
    if table.ndim != 2:
        raise ValueError(f"proba must have two dimensions, not {table.ndim}")
    _same_length(y_true=truth, proba=table)
    if table.shape[1] != names.size:
        raise ValueError(f"proba has {table.shape[1]} columns but classes has {names.size} names")
    if np.unique(names).size != names.size:
        raise ValueError("classes must not repeat a name")
    if not np.isfinite(table).all():
        raise ValueError("proba must be finite")
    return truth, table, names


def _member(names: Names, seen: Collection[str]) -> Mask:
    """Tell which of `names` are in `seen`."""
    if isinstance(seen, str):
        raise ValueError("seen must be a collection of names, not a single name")
    return np.isin(names, np.array([str(name) for name in seen], dtype=np.str_))


# -- Shared arithmetic -------------------------------------------------------------------------


def _share(count: float, total: float) -> float:
    """Return ``count / total``, NaN where there is nothing to share."""
    return float(count / total) if total else NAN


def _mean(values: Collection[float] | NDArray) -> float:
    """Return the mean of `values`, NaN (and no warning) where there are none."""
    return float(np.mean(np.asarray(values))) if len(values) else NAN


def _n_matched(truth: Names, pred: Names) -> int:
    """Count the cells that agree under the best one-to-one matching of groups to types.

    The matching is found by the Hungarian method (Kuhn 1955) on the table of counts.  Where
    groups outnumber types, the surplus groups stay unmatched and their cells do not agree, and
    the other way round.
    """
    counts = contingency_matrix(truth, pred)
    return int(counts[linear_sum_assignment(counts, maximize=True)].sum())


# -- Names of seen cells -----------------------------------------------------------------------


def _on_seen(y_true: ArrayLike, y_pred: ArrayLike, seen: Collection[str]) -> tuple[Names, Names]:
    """Return the true and the predicted names of the seen cells."""
    truth, pred = _pair(y_true, y_pred)
    cells = _member(truth, seen)
    return truth[cells], pred[cells]


def seen_accuracy(y_true: ArrayLike, y_pred: ArrayLike, seen: Collection[str]) -> float:
    """Return the share of seen cells that got their true name.

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
    """Return the mean F1 over the seen types present in the truth, on the seen cells only.

    A seen cell that is called novel, or given the name of an absent type, is wrong and lowers
    the recall of its own type; the absent type gets no F1 of its own.

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
    """Return the mean recall over the seen types present in the truth.

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
    """Yield the name, the cells and the probabilities of each class present in the truth."""
    truth, table, names = _table(y_true, proba, classes)
    for name, column in zip(names, table.T, strict=True):
        positive = truth == name
        if positive.any():
            yield str(name), positive, column


def per_type_auprc(y_true: ArrayLike, proba: ArrayLike, classes: ArrayLike) -> dict[str, float]:
    """Return the area under the precision-recall curve of each type, one against the rest.

    The area is the average precision: the precision at each distinct probability, weighted by
    the recall gained there, without interpolation (Davis & Goadrich 2006).

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
        A cell whose type is not in `classes` is a negative for every class.
    proba : array-like of float, shape (n_cells, n_classes)
    classes : array-like of str, shape (n_classes,)

    Returns
    -------
    dict of str to float
        An area between 0 and 1 for each class present in the truth, in the order of `classes`.
    """
    return {
        name: float(average_precision_score(positive, column))
        for name, positive, column in _one_vs_rest(y_true, proba, classes)
    }


def per_type_auroc(y_true: ArrayLike, proba: ArrayLike, classes: ArrayLike) -> dict[str, float]:
    """Return the area under the ROC curve of each type, one against the rest.

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
        A cell whose type is not in `classes` is a negative for every class.
    proba : array-like of float, shape (n_cells, n_classes)
    classes : array-like of str, shape (n_classes,)

    Returns
    -------
    dict of str to float
        An area between 0 and 1 for each class present in the truth, in the order of `classes`;
        NaN for a class that all cells belong to.
    """
    return {
        name: NAN if positive.all() else float(roc_auc_score(positive, column))
        for name, positive, column in _one_vs_rest(y_true, proba, classes)
    }


def top_k_accuracy(y_true: ArrayLike, proba: ArrayLike, classes: ArrayLike, *, k: int = 3) -> float:
    """Return the share of cells whose true type is among their `k` most probable classes.

    Unlike scikit-learn's, it counts a tie against the true class: a flat row must not be right by
    the order of the columns.

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
        Cells whose type is not in `classes` are left out.
    proba : array-like of float, shape (n_cells, n_classes)
    classes : array-like of str, shape (n_classes,)
    k : int, default 3
        How many classes a cell may name, at least 1.

    Returns
    -------
    float
        Between 0 and 1; NaN if no cell has its type in `classes`.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    truth, table, names = _table(y_true, proba, classes)
    is_true = truth[:, None] == names
    known = is_true.any(axis=1)
    rank = (table[known] >= table[is_true][:, None]).sum(axis=1)
    return _mean(rank <= k)


# -- Names of novel cells ----------------------------------------------------------------------


def _n_discovered(truth: Names, pred: Names, seen: Collection[str]) -> int:
    """Count the novel cells that lie in the novel group matched to their type."""
    # Only novel cells in novel groups can be right, so the matching needs no other cells.
    both_novel = ~_member(truth, seen) & ~_member(pred, seen)
    return _n_matched(truth[both_novel], pred[both_novel])


def novel_accuracy(y_true: ArrayLike, y_pred: ArrayLike, seen: Collection[str]) -> float:
    """Return the share of novel cells that lie in the novel group matched to their type.

    Only novel groups are matched, one-to-one, to novel types, so as to make the most cells
    right.  A novel cell under a seen name is wrong.

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
    """Return the share of all cells that are right, seen names being fixed.

    The mean of `seen_accuracy` and `novel_accuracy`, weighted by their numbers of cells.

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
    """Return the mutual information of types and groups over the larger of the two entropies.

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


# -- Telling novel cells from seen cells -------------------------------------------------------


def novel_auroc(y_true: ArrayLike, novel_score: ArrayLike, seen: Collection[str]) -> float:
    """Return the area under the ROC curve of a score for "not in the reference".

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
    novel_score : array-like of float, shape (n_cells,)
    seen : collection of str

    Returns
    -------
    float
        Between 0 and 1, 0.5 by chance; NaN without seen or without novel cells.
    """
    truth, score = _names(y_true, "y_true"), _numbers(novel_score, "novel_score")
    _same_length(y_true=truth, novel_score=score)
    is_novel = ~_member(truth, seen)
    if is_novel.all() or not is_novel.any():
        return NAN
    return float(roc_auc_score(is_novel, score))


def false_novel(y_true: ArrayLike, novel: ArrayLike, seen: Collection[str]) -> float:
    """Return the share of seen cells that were called novel.

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
    """Return the share of novel cells that were called novel.

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
    """Return the share of the cells called novel that are novel.

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
    novel : array-like of bool, shape (n_cells,)
    seen : collection of str

    Returns
    -------
    float
        Between 0 and 1; NaN if no cell was called novel.
    """
    is_novel, called = _called(y_true, novel, seen)
    return _mean(is_novel[called])


# -- Calibration -------------------------------------------------------------------------------


class ReliabilityCurve(NamedTuple):
    """What cells of like confidence deserve; see `reliability_curve`.

    Attributes
    ----------
    mean_score : ndarray of float, shape (n_bins,)
        Mean score of the cells of each bin; NaN for an empty bin.
    accuracy : ndarray of float, shape (n_bins,)
        Share of right cells in each bin; NaN for an empty bin.
    n_cells : ndarray of int, shape (n_bins,)
        Number of cells in each bin.
    """

    mean_score: Floats
    accuracy: Floats
    n_cells: NDArray[np.intp]


def _reliability(right: Mask, score: Floats, n_bins: int, binning: Binning) -> ReliabilityCurve:
    """Bin the cells by score, and compare the score with the share of right cells."""
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

    # Equal masses may part cells of equal score.  Each of them gets the mean of its ties, so
    # that the order of the cells, which is arbitrary, does not matter.
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
    """Return the mean distance between score and accuracy, weighted by the cells of the bins."""
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
    """Return the mean score, the accuracy and the number of cells of bins of the score.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
    score : array-like of float, shape (n_cells,)
    n_bins : int, default 15
        Number of bins, at least 1.
    binning : {"width", "mass"}, default "width"
        Bins of equal width over [0, 1], closed on the right (Guo et al. 2017), or of equal
        numbers of cells, cut from the sorted scores (Nguyen & O'Connor 2015).  Cells of equal
        score that fall into different bins share their accuracy evenly.

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
    """Return the expected calibration error: by how much confidence and accuracy differ.

    The mean over the bins of the `reliability_curve` of the distance between mean score and
    accuracy, weighted by the number of cells (Guo et al. 2017).

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
    score : array-like of float, shape (n_cells,)
    seen : collection of str, optional
        If given, only seen cells count.
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
    """Return the expected calibration error over all cells, novel cells being wrong.

    A cell of a novel type counts as wrong whatever name it got, so confidence in its name is
    over-confidence.  See `ece` for the error itself.

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


# -- Everything at once ------------------------------------------------------------------------


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
    """Return every scalar score that can be computed from what is given.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
    seen : collection of str
    proba : array-like of float, shape (n_cells, n_classes), optional
        Together with `classes`.  Adds ``top_3_accuracy``, and ``mean_auprc`` and ``mean_auroc``,
        which are means over the types present among the seen cells, on the seen cells only.
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
        Scores by the name of their function, or by the names above; NaN where undefined.
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
