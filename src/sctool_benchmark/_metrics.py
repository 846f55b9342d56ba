"""Scores that only the benchmark reports; names and errors are as `sctool.metrics` has them."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import entropy
from sklearn.neighbors import NearestNeighbors

from sctool._sets import Hierarchy
from sctool.metrics import (
    _called,
    _member,
    _n_matched,
    _names,
    _numbers,
    _pair,
    _same_length,
    _share,
)

# -- Every group may be matched ------------------------------------------------------------------
#
# Here every predicted group is matched, whatever its name, and so a method is forgiven that calls a
# novel type by the name of a seen one.  For comparison with papers that report these scores.


def novel_accuracy_hungarian(y_true: ArrayLike, y_pred: ArrayLike, seen: Collection[str]) -> float:
    """Return the accuracy on novel cells when every predicted group may be matched.

    Novel cells under a seen name are forgiven if that name is the best match of their type.
    The score is never below `sctool.metrics.novel_accuracy`.

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
    """
    truth, pred = _pair(y_true, y_pred)
    is_novel = ~_member(truth, seen)
    return _share(_n_matched(truth[is_novel], pred[is_novel]), is_novel.sum())


def overall_accuracy_hungarian(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Return the accuracy on all cells when every group may be matched to every type.

    One matching over all predicted groups and all true types, as scGAD and scDET report it.
    The names of seen types are not used, so a method that swaps two of them is not punished.
    The score is never below `sctool.metrics.overall_accuracy`.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
        True and predicted names, or types and clusters.

    Returns
    -------
    float
        Between 0 and 1; NaN without cells.
    """
    truth, pred = _pair(y_true, y_pred)
    return _share(_n_matched(truth, pred), truth.size)


# -- Seen cells that keep their name ---------------------------------------------------------------


def seen_unflagged(
    y_true: ArrayLike, y_pred: ArrayLike, novel: ArrayLike, seen: Collection[str]
) -> float:
    """Return the fraction of seen cells with the right name that are not flagged as novel.

    Some methods flag a cell and still name it, others give it the name of a novel group instead.
    In `sctool.metrics.seen_accuracy` a false flag is an error of the latter alone; here it is one
    of both.

    Parameters
    ----------
    y_true, y_pred : array-like of str, shape (n_cells,)
        True and predicted names.
    novel : array-like of bool, shape (n_cells,)
        Which cells are flagged.
    seen : collection of str
        Names of the types in the reference.

    Returns
    -------
    float
        Between 0 and 1, at most the seen accuracy; NaN without seen cells.
    """
    truth, pred = _pair(y_true, y_pred)
    is_novel, flagged = _called(truth, novel, seen)
    return _share((~is_novel & ~flagged & (truth == pred)).sum(), (~is_novel).sum())


# -- Seen accuracy against novel recall ----------------------------------------------------------


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

    thresholds: NDArray[np.float64]
    seen_accuracy: NDArray[np.float64]
    novel_recall: NDArray[np.float64]


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
    """
    truth, pred = _pair(y_true, y_pred)
    score = _numbers(novel_score, "novel_score")
    _same_length(y_true=truth, novel_score=score)
    is_seen = _member(truth, seen)
    thresholds = np.append(np.inf, np.unique(score)[::-1])

    def n_called_novel(cells: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Count those of `cells` at or above each threshold."""
        return cells.sum() - np.searchsorted(np.sort(score[cells]), thresholds)

    right = is_seen & (truth == pred)
    # "or nan": a division by NaN is NaN without a warning, one by zero is not.
    return SeenNovelCurve(
        thresholds=thresholds,
        seen_accuracy=(right.sum() - n_called_novel(right)) / (is_seen.sum() or np.nan),
        novel_recall=n_called_novel(~is_seen) / ((~is_seen).sum() or np.nan),
    )


# -- Names that hold at a risk of error ------------------------------------------------------------


def safe_name_scores(
    y_true: ArrayLike,
    safe: ArrayLike,
    sets: ArrayLike,
    y_pred: ArrayLike,
    score: ArrayLike,
    hierarchy: Hierarchy,
    classes: Collection[str],
) -> dict[str, float]:
    """Return what names along a hierarchy, and sets of types, say and how often they are wrong.

    Parameters
    ----------
    y_true : array-like of str, shape (n_cells,)
        True types, all of them known ones.
    safe : array-like of str, shape (n_cells,)
        Names of nodes of the hierarchy; "unknown", its root, is never wrong.
    sets : array-like of bool, shape (n_cells, n_classes)
        Possible types.
    y_pred, score : array-like, shape (n_cells,)
        Most probable name, and its probability.
    hierarchy : Hierarchy
        Of the known types.
    classes : collection of str
        The known types, in the order of the columns of `sets`.

    Returns
    -------
    dict of str to float
        ``error``, the share of cells whose safe name does not hold their type; ``specificity``,
        the mean share of the other types that it rules out; ``named`` and ``unknown``, the shares
        of cells with the name of a type and with none; ``missed``, the share of sets without the
        true type; ``set_size``, their mean size; and ``rejection``, the mean specificity if cells
        have the name of a type from the highest score on, and no name below, until as many are
        wrong. Predicted names that are no known type are rejected first. NaN without cells.
    """
    truth, found = _pair(y_true, safe)
    pred = _names(y_pred, "y_pred")
    possible = np.asarray(sets, dtype=bool)
    place = {str(name): i for i, name in enumerate(classes)}
    node = {str(name): i for i, name in enumerate(hierarchy.names)}
    own = np.array([place[name] for name in truth], dtype=np.intp)
    at = np.array([node[name] for name in found], dtype=np.intp)
    wrong, specificity = ~hierarchy.members[at, own], hierarchy.specificity[at]

    known = _member(pred, classes)
    order = np.argsort(-_numbers(score, "score")[known], kind="stable")
    n_wrong = np.cumsum((pred != truth)[known][order])
    n_named = np.searchsorted(n_wrong, wrong.sum(), side="right")
    values = {
        "error": wrong,
        "specificity": specificity,
        "named": specificity == 1,
        "unknown": specificity == 0,
        "missed": ~possible[np.arange(own.size), own],
        "set_size": possible.sum(axis=1),
    }
    scores = {name: _share(value.sum(), own.size) for name, value in values.items()}
    return scores | {"rejection": _share(n_named, own.size)}


# -- Mixing of batches ---------------------------------------------------------------------------


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
    counts = np.stack([(neighbours == i).sum(axis=1) for i in range(batches.size)], axis=1)
    return float(entropy(counts, base=batches.size, axis=1).mean())
