"""Scores for the annotation of single cells from a labelled reference.

Vocabulary
----------
y_true, y_pred
    The true and the predicted name of each cell, array-like of str, shape (n_cells,).
    Whole numbers are accepted and read as text.  A missing name (None, NaN) is refused.
seen
    The names of the types that the reference holds.
seen cell, novel cell
    A cell whose true type is, or is not, in `seen`.
novel group
    A predicted name that is not in `seen`, such as "novel_1".  The name itself carries no
    meaning: a novel group is scored by matching it to a true type.

A score that is undefined, for want of seen or of novel cells, is ``float("nan")``.

Two conventions for novel cells
-------------------------------
The *strict* scores (`novel_accuracy`, `overall_accuracy`) take a seen name at its word and match
only novel groups to novel types.  The *hungarian* scores match every predicted group, whatever
its name, and so may forgive a method that calls a novel type by the name of a seen one.  They
are there for comparison with papers that report them.
"""

from collections.abc import Collection, Iterator
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import entr
from sklearn.metrics import (
    adjusted_rand_score,
    average_precision_score,
    normalized_mutual_info_score,
    roc_auc_score,
)
from sklearn.neighbors import NearestNeighbors

__all__ = [
    "ReliabilityCurve",
    "SeenNovelCurve",
    "ari",
    "balanced_accuracy",
    "clustering_accuracy",
    "ece",
    "ece_all",
    "entropy_of_batch_mixing",
    "false_novel",
    "macro_f1",
    "nmi",
    "novel_accuracy",
    "novel_accuracy_hungarian",
    "novel_auroc",
    "overall_accuracy",
    "overall_accuracy_hungarian",
    "per_type_auprc",
    "per_type_auroc",
    "reliability_curve",
    "seen_accuracy",
    "seen_novel_curve",
    "summary",
    "top_k_accuracy",
]

Names = NDArray[np.str_]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Binning = Literal["width", "mass"]


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


def _confidences(values: ArrayLike) -> Floats:
    """Return `values` as a 1-d array of floats within [0, 1]."""
    array = _numbers(values, "score")
    if array.size and (array.min() < 0 or array.max() > 1):
        raise ValueError(f"score must lie within [0, 1], but spans [{array.min()}, {array.max()}]")
    return array


def _flags(values: ArrayLike, what: str) -> Mask:
    """Return `values` as a 1-d array of bool; refuse numbers, lest a score be taken for a flag."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype != np.bool_):
        raise ValueError(f"{what} must be a 1-d array of bool, not {array.ndim}-d {array.dtype}")
    return array.astype(np.bool_)


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
    return float(count / total) if total else float("nan")


def _mean(values: Collection[float] | NDArray) -> float:
    """Return the mean of `values`, NaN (and no warning) where there are none."""
    return float(np.mean(np.asarray(values))) if len(values) else float("nan")


def _tallies(truth: Names, pred: Names) -> tuple[NDArray, NDArray, NDArray]:
    """Count, for each type present in the truth, its true, its predicted and its right cells."""
    names, codes = np.unique(np.concatenate([truth, pred]), return_inverse=True)
    true_code, pred_code = np.split(codes, 2)
    n_true = np.bincount(true_code, minlength=names.size)
    n_pred = np.bincount(pred_code, minlength=names.size)
    n_right = np.bincount(true_code[true_code == pred_code], minlength=names.size)
    present = n_true > 0
    return n_true[present], n_pred[present], n_right[present]


def _n_matched(truth: Names, pred: Names) -> int:
    """Count the cells that agree under the best one-to-one matching of groups to types.

    The matching is found by the Hungarian method (Kuhn 1955) on the table of counts.  Where
    groups outnumber types, the surplus groups stay unmatched and their cells do not agree, and
    the other way round.
    """
    types, row = np.unique(truth, return_inverse=True)
    groups, column = np.unique(pred, return_inverse=True)
    counts = np.bincount(row * groups.size + column, minlength=types.size * groups.size)
    counts = counts.reshape(types.size, groups.size)
    return int(counts[linear_sum_assignment(counts, maximize=True)].sum())


# -- Names of seen cells -----------------------------------------------------------------------


def seen_accuracy(y_true: ArrayLike, y_pred: ArrayLike, seen: Collection[str]) -> float:
    """Return the share of seen cells that got their true name.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
        True and predicted names.
    seen : collection of str
        Names of the types in the reference.

    Returns
    -------
    float
        Between 0 and 1; NaN without seen cells.

    Raises
    ------
    ValueError
        If a name is missing or the lengths differ.
    """
    truth, pred = _pair(y_true, y_pred)
    is_seen = _member(truth, seen)
    return _share((truth == pred)[is_seen].sum(), is_seen.sum())


def macro_f1(y_true: ArrayLike, y_pred: ArrayLike, seen: Collection[str]) -> float:
    """Return the mean F1 over the seen types present in the truth, on the seen cells only.

    A seen cell that is called novel, or given the name of an absent type, is wrong and lowers
    the recall of its own type; the absent type gets no F1 of its own.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
        True and predicted names.
    seen : collection of str
        Names of the types in the reference.

    Returns
    -------
    float
        Between 0 and 1; NaN without seen cells.

    Raises
    ------
    ValueError
        If a name is missing or the lengths differ.
    """
    truth, pred = _pair(y_true, y_pred)
    is_seen = _member(truth, seen)
    n_true, n_pred, n_right = _tallies(truth[is_seen], pred[is_seen])
    return _mean(2 * n_right / (n_true + n_pred))


def balanced_accuracy(y_true: ArrayLike, y_pred: ArrayLike, seen: Collection[str]) -> float:
    """Return the mean recall over the seen types present in the truth.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
        True and predicted names.
    seen : collection of str
        Names of the types in the reference.

    Returns
    -------
    float
        Between 0 and 1; NaN without seen cells.

    Raises
    ------
    ValueError
        If a name is missing or the lengths differ.
    """
    truth, pred = _pair(y_true, y_pred)
    is_seen = _member(truth, seen)
    n_true, _, n_right = _tallies(truth[is_seen], pred[is_seen])
    return _mean(n_right / n_true)


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
        True names.  All the given cells count: a cell whose type is not in `classes` is a
        negative for every class.
    proba : array-like of float, shape (n_cells, n_classes)
        Probability, or any finite score, of each class.
    classes : array-like of str, shape (n_classes,)
        Names of the columns of `proba`.

    Returns
    -------
    dict of str to float
        One area, between 0 and 1, for each class present in the truth, in the order of
        `classes`.

    Raises
    ------
    ValueError
        If a name is missing or repeated, the shapes differ, or `proba` is not finite.
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
        True names.  All the given cells count: a cell whose type is not in `classes` is a
        negative for every class.
    proba : array-like of float, shape (n_cells, n_classes)
        Probability, or any finite score, of each class.
    classes : array-like of str, shape (n_classes,)
        Names of the columns of `proba`.

    Returns
    -------
    dict of str to float
        One area, between 0 and 1, for each class present in the truth, in the order of
        `classes`; NaN for a class that all cells belong to.

    Raises
    ------
    ValueError
        If a name is missing or repeated, the shapes differ, or `proba` is not finite.
    """
    return {
        name: float("nan") if positive.all() else float(roc_auc_score(positive, column))
        for name, positive, column in _one_vs_rest(y_true, proba, classes)
    }


def top_k_accuracy(y_true: ArrayLike, proba: ArrayLike, classes: ArrayLike, *, k: int = 3) -> float:
    """Return the share of cells whose true type is among their `k` most probable classes.

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
        True names.  Cells whose type is not in `classes` are left out.
    proba : array-like of float, shape (n_cells, n_classes)
        Probability, or any finite score, of each class.
    classes : array-like of str, shape (n_classes,)
        Names of the columns of `proba`.
    k : int, default 3
        How many classes a cell may name.

    Returns
    -------
    float
        Between 0 and 1; NaN if no cell has its type in `classes`.

    Raises
    ------
    ValueError
        If a name is missing or repeated, the shapes differ, `proba` is not finite, or `k` is
        less than 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    truth, table, names = _table(y_true, proba, classes)
    known = np.isin(truth, names)
    order = np.argsort(names)
    column = order[np.searchsorted(names[order], truth[known])]
    table = table[known]
    of_truth = np.take_along_axis(table, column[:, None], axis=1)
    # A tie counts against the true class: a flat row must not be right by the order of columns.
    rank = (table >= of_truth).sum(axis=1)
    return _share((rank <= k).sum(), rank.size)


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
        True and predicted names.
    seen : collection of str
        Names of the types in the reference.

    Returns
    -------
    float
        Between 0 and 1; NaN without novel cells.

    Raises
    ------
    ValueError
        If a name is missing or the lengths differ.
    """
    truth, pred = _pair(y_true, y_pred)
    return _share(_n_discovered(truth, pred, seen), (~_member(truth, seen)).sum())


def novel_accuracy_hungarian(y_true: ArrayLike, y_pred: ArrayLike, seen: Collection[str]) -> float:
    """Return the accuracy on novel cells when every predicted group may be matched.

    Novel cells under a seen name are forgiven if that name is the best match of their type.
    The score is never below `novel_accuracy`.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
        True and predicted names.
    seen : collection of str
        Names of the types in the reference.

    Returns
    -------
    float
        Between 0 and 1; NaN without novel cells.

    Raises
    ------
    ValueError
        If a name is missing or the lengths differ.
    """
    truth, pred = _pair(y_true, y_pred)
    is_novel = ~_member(truth, seen)
    return _share(_n_matched(truth[is_novel], pred[is_novel]), is_novel.sum())


# -- All cells ---------------------------------------------------------------------------------


def overall_accuracy(y_true: ArrayLike, y_pred: ArrayLike, seen: Collection[str]) -> float:
    """Return the share of all cells that are right, seen names being fixed.

    A cell under a seen name is right only if that is its true name.  Novel groups are matched,
    one-to-one, to novel types, so as to make the most cells right.  The score is the mean of
    `seen_accuracy` and `novel_accuracy`, weighted by their numbers of cells.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
        True and predicted names.
    seen : collection of str
        Names of the types in the reference.

    Returns
    -------
    float
        Between 0 and 1; NaN without cells.

    Raises
    ------
    ValueError
        If a name is missing or the lengths differ.
    """
    truth, pred = _pair(y_true, y_pred)
    n_named = (_member(truth, seen) & (truth == pred)).sum()
    return _share(n_named + _n_discovered(truth, pred, seen), truth.size)


def overall_accuracy_hungarian(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the accuracy on all cells when every group may be matched to every type.

    One matching over all predicted groups and all true types, as scGAD and scDET report it.
    The names of seen types are not used, so a method that swaps two of them is not punished.
    The score is never below `overall_accuracy`.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
        True and predicted names.

    Returns
    -------
    float
        Between 0 and 1; NaN without cells.

    Raises
    ------
    ValueError
        If a name is missing or the lengths differ.
    """
    truth, pred = _pair(y_true, y_pred)
    return _share(_n_matched(truth, pred), truth.size)


# -- Clusterings -------------------------------------------------------------------------------


def clustering_accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the accuracy of a clustering under its best one-to-one matching to the types.

    The same number as `overall_accuracy_hungarian`, under the name used for clusterings.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
        True types and predicted groups.

    Returns
    -------
    float
        Between 0 and 1; NaN without cells.

    Raises
    ------
    ValueError
        If a name is missing or the lengths differ.
    """
    return overall_accuracy_hungarian(y_true, y_pred)


def ari(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the adjusted Rand index (Hubert & Arabie 1985).

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
        True types and predicted groups.

    Returns
    -------
    float
        At most 1; 0 is the expectation of a random grouping; NaN without cells.

    Raises
    ------
    ValueError
        If a name is missing or the lengths differ.
    """
    truth, pred = _pair(y_true, y_pred)
    return float(adjusted_rand_score(truth, pred)) if truth.size else float("nan")


def nmi(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the mutual information divided by the larger of the two entropies (CICL eq. 1).

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
        True types and predicted groups.

    Returns
    -------
    float
        Between 0 and 1; NaN without cells.

    Raises
    ------
    ValueError
        If a name is missing or the lengths differ.
    """
    truth, pred = _pair(y_true, y_pred)
    if not truth.size:
        return float("nan")
    return float(normalized_mutual_info_score(truth, pred, average_method="max"))


# -- Telling novel cells from seen cells -------------------------------------------------------


class SeenNovelCurve(NamedTuple):
    """What each threshold on the novelty score costs and brings; see `seen_novel_curve`.

    Attributes
    ----------
    thresholds : ndarray of float, shape (n_points,)
        Decreasing, from +inf.
    seen_accuracy : ndarray of float, shape (n_points,)
        Share of seen cells that keep their right name.
    novel_recall : ndarray of float, shape (n_points,)
        Share of novel cells that are called novel.
    """

    thresholds: Floats
    seen_accuracy: Floats
    novel_recall: Floats


def novel_auroc(y_true: ArrayLike, novel_score: ArrayLike, seen: Collection[str]) -> float:
    """Return the area under the ROC curve of a score for "not in the reference".

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
        True names.
    novel_score : array-like of float, shape (n_cells,)
        Any finite score, larger for cells that look novel.
    seen : collection of str
        Names of the types in the reference.

    Returns
    -------
    float
        Between 0 and 1, 0.5 by chance; NaN without seen or without novel cells.

    Raises
    ------
    ValueError
        If a name is missing, the lengths differ, or the score is not finite.
    """
    truth, score = _names(y_true, "y_true"), _numbers(novel_score, "novel_score")
    _same_length(y_true=truth, novel_score=score)
    is_novel = ~_member(truth, seen)
    if is_novel.all() or not is_novel.any():
        return float("nan")
    return float(roc_auc_score(is_novel, score))


def false_novel(y_true: ArrayLike, novel: ArrayLike, seen: Collection[str]) -> float:
    """Return the share of seen cells that were called novel.

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
        True names.
    novel : array-like of bool, shape (n_cells,)
        Whether each cell was called novel.
    seen : collection of str
        Names of the types in the reference.

    Returns
    -------
    float
        Between 0 and 1; NaN without seen cells.

    Raises
    ------
    ValueError
        If a name is missing, the lengths differ, or `novel` is not of bool.
    """
    truth, called = _names(y_true, "y_true"), _flags(novel, "novel")
    _same_length(y_true=truth, novel=called)
    is_seen = _member(truth, seen)
    return _share(called[is_seen].sum(), is_seen.sum())


def seen_novel_curve(
    y_true: ArrayLike, y_pred: ArrayLike, novel_score: ArrayLike, seen: Collection[str]
) -> SeenNovelCurve:
    """Return seen accuracy against novel recall, over all thresholds on the novelty score.

    A cell whose score is at or above the threshold is called novel; a seen cell called novel is
    wrong.  The curve is that of Dhamija et al. 2018, with novel recall in place of one minus it.

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
        True names.
    y_pred : array-like of str, shape (n_cells,)
        The name each cell would get if it were not called novel.  A cell that bears the name of
        a novel group here cannot be a right seen cell at any threshold.
    novel_score : array-like of float, shape (n_cells,)
        Any finite score, larger for cells that look novel.
    seen : collection of str
        Names of the types in the reference.

    Returns
    -------
    SeenNovelCurve
        One point at +inf, where no cell is novel, then one for each distinct score, in
        decreasing order.  Seen accuracy is NaN without seen cells, novel recall is NaN without
        novel cells.

    Raises
    ------
    ValueError
        If a name is missing, the lengths differ, or the score is not finite.
    """
    truth, pred = _pair(y_true, y_pred)
    score = _numbers(novel_score, "novel_score")
    _same_length(y_true=truth, novel_score=score)
    is_seen = _member(truth, seen)

    # np.unique sorts upwards, so the negative score puts the highest threshold first.
    distinct, point = np.unique(-score, return_inverse=True)

    def n_called_novel(cells: Mask) -> NDArray:
        """Count those of `cells` at or above each threshold, from +inf down."""
        per_point = np.bincount(point[cells], minlength=distinct.size)
        return np.concatenate([[0], np.cumsum(per_point)])

    right = is_seen & (truth == pred)
    # "or nan": a division by NaN is NaN without a warning, one by zero is not.
    return SeenNovelCurve(
        thresholds=np.concatenate([[np.inf], -distinct]),
        seen_accuracy=(right.sum() - n_called_novel(right)) / (is_seen.sum() or np.nan),
        novel_recall=n_called_novel(~is_seen) / ((~is_seen).sum() or np.nan),
    )


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
        True and predicted names.
    score : array-like of float, shape (n_cells,)
        Confidence in the predicted name, within [0, 1].
    n_bins : int, default 15
        Number of bins.
    binning : {"width", "mass"}, default "width"
        Bins of equal width over [0, 1], closed on the right (Guo et al. 2017), or of equal
        numbers of cells, cut from the sorted scores (Nguyen & O'Connor 2015).  Cells of equal
        score that fall into different bins share their accuracy evenly.

    Returns
    -------
    ReliabilityCurve
        Arrays of length `n_bins`, by increasing score.

    Raises
    ------
    ValueError
        If a name is missing, the lengths differ, the score leaves [0, 1], or an option is not
        among those above.
    """
    truth, pred = _pair(y_true, y_pred)
    confidence = _confidences(score)
    _same_length(y_true=truth, score=confidence)
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
        True and predicted names.
    score : array-like of float, shape (n_cells,)
        Confidence in the predicted name, within [0, 1].
    seen : collection of str, optional
        Names of the types in the reference.  If given, only seen cells count.
    n_bins : int, default 15
        Number of bins.
    binning : {"width", "mass"}, default "width"
        Bins of equal width or of equal numbers of cells.

    Returns
    -------
    float
        Between 0 (calibrated) and 1; NaN without cells.

    Raises
    ------
    ValueError
        If a name is missing, the lengths differ, the score leaves [0, 1], or an option is not
        among those above.
    """
    truth, pred = _pair(y_true, y_pred)
    confidence = _confidences(score)
    _same_length(y_true=truth, score=confidence)
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
        True and predicted names.
    score : array-like of float, shape (n_cells,)
        Confidence in the predicted name, within [0, 1].
    seen : collection of str
        Names of the types in the reference.
    n_bins : int, default 15
        Number of bins.
    binning : {"width", "mass"}, default "width"
        Bins of equal width or of equal numbers of cells.

    Returns
    -------
    float
        Between 0 (calibrated) and 1; NaN without cells.

    Raises
    ------
    ValueError
        If a name is missing, the lengths differ, the score leaves [0, 1], or an option is not
        among those above.
    """
    truth, pred = _pair(y_true, y_pred)
    confidence = _confidences(score)
    _same_length(y_true=truth, score=confidence)
    right = _member(truth, seen) & (truth == pred)
    return _gap(_reliability(right, confidence, n_bins, binning))


# -- Mixing of batches -------------------------------------------------------------------------


def entropy_of_batch_mixing(
    embedding: ArrayLike,
    batch: ArrayLike,
    *,
    n_neighbors: int = 50,
    n_cells: int = 2000,
    random_state: int = 0,
) -> float:
    """Return how evenly the batches mix among the nearest cells of a cell.

    The mean, over a random subset of cells, of the Shannon entropy of the batches of the
    nearest other cells (Haghverdi et al. 2018), divided by the logarithm of the number of
    batches.

    Parameters
    ----------
    embedding : array-like of float, shape (n_cells_total, n_dimensions)
        Coordinates of the cells; neighbours are nearest in Euclidean distance.
    batch : array-like of str, shape (n_cells_total,)
        Batch of each cell.
    n_neighbors : int, default 50
        Number of nearest cells, the cell itself excluded; all other cells if there are fewer.
    n_cells : int, default 2000
        Size of the random subset; all cells if there are fewer.
    random_state : int, default 0
        Seed of the subset.

    Returns
    -------
    float
        From 0, where the neighbours of every cell are of one batch, to 1, where every batch is
        as frequent as any other among them; NaN with a single batch.

    Raises
    ------
    ValueError
        If a batch is missing, the shapes differ, the embedding is not finite, or a number is
        less than 1.

    Notes
    -----
    Batches of different sizes cap the score below 1: cells mixed at random reach about the
    entropy of the batch sizes, divided by the logarithm of their number (0.47 for two batches of
    90 % and 10 %).  Compare methods on the same cells only.

    Only the subset looks for neighbours, and the search works in chunks, so memory grows with
    ``n_cells * (n_neighbors + n_batches)`` and never with the square of the number of cells.
    """
    if n_neighbors < 1 or n_cells < 1:
        raise ValueError(
            f"n_neighbors and n_cells must be at least 1, not {n_neighbors} and {n_cells}"
        )
    batches, code = np.unique(_names(batch, "batch"), return_inverse=True)
    points = np.asarray(embedding)
    if points.ndim != 2:
        raise ValueError(f"embedding must have two dimensions, not {points.ndim}")
    _same_length(embedding=points, batch=code)
    if batches.size < 2:
        return float("nan")

    total = len(points)
    n_neighbors = min(n_neighbors, total - 1)
    rng = np.random.default_rng(random_state)
    cells = rng.choice(total, size=min(n_cells, total), replace=False)

    search = NearestNeighbors(n_neighbors=n_neighbors + 1).fit(points)
    nearest = search.kneighbors(points[cells], return_distance=False)
    # A cell is its own neighbour, though not always the first: duplicates of it may come before
    # it, and enough of them push it out, in which case the farthest neighbour goes instead.
    other = nearest != cells[:, None]
    other[other.all(axis=1), -1] = False
    neighbours = code[nearest[other]].reshape(cells.size, n_neighbors)

    row = np.arange(cells.size)[:, None]
    counts = np.bincount(
        (row * batches.size + neighbours).ravel(), minlength=cells.size * batches.size
    ).reshape(cells.size, batches.size)
    entropy = entr(counts / n_neighbors).sum(axis=1)
    return float(entropy.mean() / np.log(batches.size))


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
        True and predicted names.
    seen : collection of str
        Names of the types in the reference.
    proba : array-like of float, shape (n_cells, n_classes), optional
        Probability of each class, together with `classes`.  Adds ``top_3_accuracy``, and
        ``mean_auprc`` and ``mean_auroc``, which are means over the types present among the seen
        cells, on the seen cells only.
    classes : array-like of str, shape (n_classes,), optional
        Names of the columns of `proba`.
    score : array-like of float, shape (n_cells,), optional
        Confidence in the predicted name, within [0, 1].  Adds ``ece`` and ``ece_mass`` on the
        seen cells, with bins of equal width and of equal mass, and ``ece_all`` on all cells.
    novel_score : array-like of float, shape (n_cells,), optional
        Score for "not in the reference".  Adds ``novel_auroc``.
    novel : array-like of bool, shape (n_cells,), optional
        Whether each cell was called novel.  Adds ``false_novel``.

    Returns
    -------
    dict of str to float
        Scores by the name of their function, or by the names above; NaN where undefined.

    Raises
    ------
    ValueError
        If one of `proba` and `classes` comes without the other, or if a score refuses its
        arguments.
    """
    if (proba is None) != (classes is None):
        raise ValueError("proba and classes must be given together")
    truth, pred = _pair(y_true, y_pred)
    scores = {
        "seen_accuracy": seen_accuracy(truth, pred, seen),
        "macro_f1": macro_f1(truth, pred, seen),
        "balanced_accuracy": balanced_accuracy(truth, pred, seen),
        "novel_accuracy": novel_accuracy(truth, pred, seen),
        "novel_accuracy_hungarian": novel_accuracy_hungarian(truth, pred, seen),
        "overall_accuracy": overall_accuracy(truth, pred, seen),
        "overall_accuracy_hungarian": overall_accuracy_hungarian(truth, pred),
        "clustering_accuracy": clustering_accuracy(truth, pred),
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
    return scores
