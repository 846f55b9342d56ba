"""Tests of the scores, against numbers worked out by hand, brute force and scikit-learn."""

import math

import numpy as np
import pytest
from named import PRED, SEEN, TRUE, best_by_brute_force, random_case
from sklearn.metrics import (
    accuracy_score,
    adjusted_rand_score,
    f1_score,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)

from sctool import metrics

# No score may warn: what is undefined is NaN, in silence.
pytestmark = pytest.mark.filterwarnings("error")

# -- Names of seen cells -----------------------------------------------------------------------


def test_seen_accuracy_by_hand():
    assert metrics.seen_accuracy(TRUE, PRED, SEEN) == pytest.approx(3 / 6)


def test_balanced_accuracy_by_hand():
    # Recall 2/4 for a and 1/2 for b; c is absent from the truth.
    assert metrics.balanced_accuracy(TRUE, PRED, SEEN) == pytest.approx(0.5)


def test_balanced_accuracy_weighs_types_and_not_cells():
    truth, pred = ["a"] * 9 + ["b"], ["a"] * 10
    assert metrics.seen_accuracy(truth, pred, SEEN) == pytest.approx(0.9)
    assert metrics.balanced_accuracy(truth, pred, SEEN) == pytest.approx(0.5)


def test_macro_f1_by_hand():
    # a: 4 true, 2 predicted (the X under "a" is no seen cell), 2 right: F1 = 4/6.
    # b: 2 true, 2 predicted, 1 right: F1 = 2/4.
    assert metrics.macro_f1(TRUE, PRED, SEEN) == pytest.approx((2 / 3 + 1 / 2) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_seen_scores_agree_with_sklearn(seed):
    truth, pred = random_case(seed)
    cells = np.isin(truth, SEEN)
    t, p, labels = truth[cells], pred[cells], np.unique(truth[cells])
    options = {"labels": labels, "average": "macro", "zero_division": 0}
    assert metrics.seen_accuracy(truth, pred, SEEN) == pytest.approx(accuracy_score(t, p))
    assert metrics.macro_f1(truth, pred, SEEN) == pytest.approx(f1_score(t, p, **options))
    expected = recall_score(t, p, **options)
    assert metrics.balanced_accuracy(truth, pred, SEEN) == pytest.approx(expected)


# -- Probabilities -----------------------------------------------------------------------------

# Ranked by p(a): 0.9 a, 0.6 b, 0.4 a, 0.1 b.
RANKED_TRUE = ["a", "a", "b", "b"]
RANKED = np.array([[0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [0.1, 0.9]])


def test_auroc_by_hand():
    # Of the 4 pairs of an a and a b, only (0.4, 0.6) is in the wrong order.
    result = metrics.per_type_auroc(RANKED_TRUE, RANKED, ["a", "b"])
    assert result == pytest.approx({"a": 0.75, "b": 0.75})


def test_auprc_by_hand():
    # Precision is 1/1 at the first a and 2/3 at the second, each worth half of the recall.
    result = metrics.per_type_auprc(RANKED_TRUE, RANKED, ["a", "b"])
    assert result == pytest.approx({"a": 5 / 6, "b": 5 / 6})


def test_areas_take_cells_of_other_types_as_negatives():
    truth, proba = ["a", "X"], [[0.4], [0.6]]
    assert metrics.per_type_auroc(truth, proba, ["a"]) == {"a": 0.0}
    assert metrics.per_type_auprc(truth, proba, ["a"]) == {"a": 0.5}


def test_areas_leave_out_absent_types():
    proba = np.column_stack([RANKED, np.zeros(4)])
    assert list(metrics.per_type_auroc(RANKED_TRUE, proba, SEEN)) == ["a", "b"]
    assert list(metrics.per_type_auprc(RANKED_TRUE, proba, SEEN)) == ["a", "b"]


def test_areas_with_positive_cells_only():
    assert math.isnan(metrics.per_type_auroc(["a", "a"], [[0.1], [0.2]], ["a"])["a"])
    assert metrics.per_type_auprc(["a", "a"], [[0.1], [0.2]], ["a"]) == {"a": 1.0}


TOP_TRUE = ["a", "b", "c", "X"]
TOP = np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])


@pytest.mark.parametrize(("k", "expected"), [(1, 1 / 3), (2, 2 / 3), (3, 1.0), (9, 1.0)])
def test_top_k_accuracy_by_hand(k, expected):
    assert metrics.top_k_accuracy(TOP_TRUE, TOP, SEEN, k=k) == pytest.approx(expected)


def test_top_k_accuracy_does_not_depend_on_the_order_of_columns():
    turned = metrics.top_k_accuracy(TOP_TRUE, TOP[:, ::-1], SEEN[::-1], k=2)
    assert turned == pytest.approx(2 / 3)


def test_top_k_accuracy_takes_a_tie_as_wrong():
    flat = np.full((3, 3), 1 / 3)
    assert metrics.top_k_accuracy(SEEN, flat, SEEN, k=2) == 0.0
    assert metrics.top_k_accuracy(SEEN, flat, SEEN, k=3) == 1.0


def test_top_k_accuracy_agrees_with_sklearn():
    rng = np.random.default_rng(0)
    truth, proba = rng.choice(list("abcde"), size=100), rng.random((100, 5))
    expected = top_k_accuracy_score(truth, proba, k=2, labels=list("abcde"))
    assert metrics.top_k_accuracy(truth, proba, list("abcde"), k=2) == pytest.approx(expected)


def test_top_k_accuracy_without_known_types_is_nan():
    assert math.isnan(metrics.top_k_accuracy(["X"], [[1.0, 0.0]], ["a", "b"]))


# -- Novel cells and all cells -----------------------------------------------------------------


def test_novel_and_overall_accuracy_by_hand():
    assert metrics.novel_accuracy(TRUE, PRED, SEEN) == pytest.approx(3 / 4)
    assert metrics.overall_accuracy(TRUE, PRED, SEEN) == pytest.approx(6 / 10)


def test_a_novel_cell_under_a_seen_name_is_wrong():
    truth, pred = ["X", "X", "X", "a", "a"], ["a", "a", "novel_1", "a", "a"]
    assert metrics.novel_accuracy(truth, pred, ["a"]) == pytest.approx(1 / 3)


def test_swapped_seen_names_are_wrong():
    assert metrics.overall_accuracy(["a", "a", "b", "b"], ["b", "b", "a", "a"], SEEN) == 0.0


def test_a_novel_group_full_of_seen_cells_is_never_matched_to_their_type():
    # Unrestricted, novel_1 would be a (3 right cells); strictly it is X (1 right cell).
    truth, pred = ["a", "a", "a", "X"], ["novel_1"] * 4
    assert metrics.overall_accuracy(truth, pred, SEEN) == pytest.approx(1 / 4)
    assert metrics.novel_accuracy(truth, pred, SEEN) == 1.0


def test_matching_is_the_best_and_not_the_greedy_one():
    # Greedy takes (n1, X) = 5, leaving (n2, Y) = 0; the best takes 4 + 4.
    truth = ["X"] * 5 + ["Y"] * 4 + ["X"] * 4
    pred = ["n1"] * 5 + ["n1"] * 4 + ["n2"] * 4
    assert metrics.novel_accuracy(truth, pred, SEEN) == pytest.approx(8 / 13)


def test_splitting_and_merging_novel_types_cost_cells():
    assert metrics.novel_accuracy(["X"] * 4, ["n1", "n1", "n1", "n2"], SEEN) == pytest.approx(3 / 4)
    assert metrics.novel_accuracy(["X", "X", "X", "Y"], ["n1"] * 4, SEEN) == pytest.approx(3 / 4)


def test_all_novel_cells_under_seen_names():
    assert metrics.novel_accuracy(["X", "Y"], ["a", "b"], SEEN) == 0.0


@pytest.mark.parametrize("names", [("X", "Y"), ("Y", "X"), ("7", "a cluster")])
def test_names_of_novel_groups_do_not_matter(names):
    rename = {"novel_1": names[0], "novel_2": names[1]}
    pred = [rename.get(name, name) for name in PRED]
    for score in (
        metrics.seen_accuracy,
        metrics.macro_f1,
        metrics.novel_accuracy,
        metrics.overall_accuracy,
    ):
        assert score(TRUE, pred, SEEN) == score(TRUE, PRED, SEEN)
    for score in (metrics.ari, metrics.nmi):
        assert score(TRUE, pred) == pytest.approx(score(TRUE, PRED))


@pytest.mark.parametrize("seed", range(6))
def test_matching_agrees_with_brute_force(seed):
    truth, pred = random_case(seed, n_cells=20)
    seen_group, novel_groups = set(pred) & set(SEEN), sorted(set(pred) - set(SEEN))
    novel_types = sorted(set(truth) - set(SEEN))
    novel = ~np.isin(truth, SEEN)

    strict = best_by_brute_force(truth, pred, novel_groups, novel_types)
    named = sum(t == p and p in seen_group for t, p in zip(truth, pred, strict=True))
    n_cells = len(truth)
    assert metrics.novel_accuracy(truth, pred, SEEN) == pytest.approx(strict / novel.sum())
    assert metrics.overall_accuracy(truth, pred, SEEN) == pytest.approx((named + strict) / n_cells)


@pytest.mark.parametrize("seed", range(5))
def test_overall_accuracy_is_the_mean_over_seen_and_novel_cells(seed):
    truth, pred = random_case(seed)
    n_novel = (~np.isin(truth, SEEN)).sum()
    n_seen = truth.size - n_novel
    overall = metrics.overall_accuracy(truth, pred, SEEN)
    right = n_seen * metrics.seen_accuracy(truth, pred, SEEN)
    right += n_novel * metrics.novel_accuracy(truth, pred, SEEN)
    assert overall == pytest.approx(right / truth.size)


# -- Clusterings -------------------------------------------------------------------------------


def test_nmi_divides_by_the_larger_entropy():
    # The groups refine the types, so the information is H(truth) = ln 2; H(pred) = ln 4.
    truth, pred = ["a", "a", "b", "b"], ["1", "2", "3", "4"]
    assert metrics.nmi(truth, pred) == pytest.approx(0.5)


def test_ari_by_hand():
    # Pairs together: 2 in the truth, 3 in the groups, 1 in both, of 6: expected 2 * 3 / 6 = 1.
    assert metrics.ari(["a", "a", "b", "b"], ["1", "1", "1", "2"]) == pytest.approx(0.0)
    # Together 4, 4 and 2 of 10 pairs: expected 1.6, at most 4.
    truth, pred = ["a", "a", "a", "b", "b"], ["1", "1", "2", "2", "2"]
    assert metrics.ari(truth, pred) == pytest.approx((2 - 1.6) / (4 - 1.6))


def test_clustering_scores_of_a_perfect_clustering_with_numbers_for_names():
    for score in (metrics.ari, metrics.nmi):
        assert score(["a", "a", "b", "c"], np.array([2, 2, 0, 1])) == pytest.approx(1.0)


# -- Telling novel cells from seen cells -------------------------------------------------------

NOVEL_TRUE = ["a", "a", "b", "X", "X"]


def test_novel_auroc_by_hand():
    # Of 3 x 2 pairs, one is a tie (0.6, 0.6) and counts one half; the others are in order.
    assert metrics.novel_auroc(NOVEL_TRUE, [0.1, 0.6, 0.2, 0.6, 0.9], SEEN) == pytest.approx(
        5.5 / 6
    )


def test_scores_of_the_flag_by_hand():
    # Called novel: one of three seen cells, and one of two novel ones.
    novel = [True, False, False, True, False]
    assert metrics.false_novel(NOVEL_TRUE, novel, SEEN) == pytest.approx(1 / 3)
    assert metrics.novel_recall(NOVEL_TRUE, novel, SEEN) == pytest.approx(1 / 2)
    assert metrics.novel_precision(NOVEL_TRUE, novel, SEEN) == pytest.approx(1 / 2)


def test_scores_of_the_flag_agree_with_sklearn():
    truth, novel = random_case(0)[0], np.random.default_rng(0).random(40) < 0.4
    is_novel = ~np.isin(truth, SEEN)
    recall, precision = recall_score(is_novel, novel), precision_score(is_novel, novel)
    assert metrics.novel_recall(truth, novel, SEEN) == pytest.approx(recall)
    assert metrics.novel_precision(truth, novel, SEEN) == pytest.approx(precision)


# -- Calibration -------------------------------------------------------------------------------

# Right are 3 of the 4 cells at 0.95 and 1 of the 2 at 0.55.
ECE_TRUE = ["a"] * 6
ECE_PRED = ["a", "a", "a", "b", "a", "b"]
ECE_SCORE = [0.95, 0.95, 0.95, 0.95, 0.55, 0.55]


def test_ece_by_hand():
    # 4/6 of the cells are off by 0.2, and 2/6 by 0.05.
    expected = (4 * 0.2 + 2 * 0.05) / 6
    assert metrics.ece(ECE_TRUE, ECE_PRED, ECE_SCORE, n_bins=10) == pytest.approx(expected)


def test_ece_by_hand_with_one_bin():
    # Mean score (4 * 0.95 + 2 * 0.55) / 6 = 4.9 / 6, accuracy 4 / 6.
    assert metrics.ece(ECE_TRUE, ECE_PRED, ECE_SCORE, n_bins=1) == pytest.approx(0.9 / 6)


def test_ece_by_hand_with_equal_mass():
    # Bins (0.1 wrong, 0.2 right) and (0.8 right, 0.9 wrong): off by 0.35 each.
    result = metrics.ece(
        ["a"] * 4, ["a", "b", "a", "b"], [0.8, 0.9, 0.2, 0.1], n_bins=2, binning="mass"
    )
    assert result == pytest.approx(0.35)


def test_reliability_curve_by_hand():
    curve = metrics.reliability_curve(ECE_TRUE, ECE_PRED, ECE_SCORE, n_bins=4)
    np.testing.assert_array_equal(curve.n_cells, [0, 0, 2, 4])
    np.testing.assert_allclose(curve.mean_score, [np.nan, np.nan, 0.55, 0.95])
    np.testing.assert_allclose(curve.accuracy, [np.nan, np.nan, 0.5, 0.75])


def test_bins_of_equal_width_are_closed_on_the_right():
    curve = metrics.reliability_curve(["a"] * 4, ["a"] * 4, [0, 0.25, 0.5, 1], n_bins=4)
    np.testing.assert_array_equal(curve.n_cells, [2, 1, 0, 1])


@pytest.mark.parametrize(("n_cells", "expected"), [(5, [3, 2]), (4, [2, 2]), (1, [1, 0])])
def test_bins_of_equal_mass(n_cells, expected):
    names, score = ["a"] * n_cells, np.linspace(0, 1, n_cells)
    curve = metrics.reliability_curve(names, names, score, n_bins=2, binning="mass")
    np.testing.assert_array_equal(curve.n_cells, expected)


@pytest.mark.parametrize("order", ["right cells first", "wrong cells first"])
def test_ties_across_bins_of_equal_mass_do_not_depend_on_the_order_of_cells(order):
    pred = ["a"] * 8 + ["b"] * 2
    if order == "wrong cells first":
        pred.reverse()
    result = metrics.ece(["a"] * 10, pred, [0.8] * 10, n_bins=5, binning="mass")
    assert result == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_ece_of_exactly_calibrated_cells_is_zero(binning):
    # 20 cells at each of 0.05, 0.15, ... 0.95, of which 1, 3, ... 19 are right.
    score = np.repeat(np.arange(1, 20, 2) / 20, 20)
    right = np.tile(np.arange(20), 10) < np.repeat(np.arange(1, 20, 2), 20)
    pred = np.where(right, "a", "b")
    result = metrics.ece(["a"] * 200, pred, score, n_bins=10, binning=binning)
    assert result == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_ece_of_calibrated_random_cells_is_small(binning):
    rng = np.random.default_rng(0)
    score = rng.random(20_000)
    pred = np.where(rng.random(20_000) < score, "a", "b")
    truth = np.full(20_000, "a")
    # The standard error of a bin is at most 0.5 / sqrt(20 000 / 15) = 0.014.
    assert metrics.ece(truth, pred, score, binning=binning) < 0.02
    # Certainty where half of the cells are right is off by one half.
    assert metrics.ece(truth, pred, np.ones(20_000), binning=binning) == pytest.approx(
        0.5, abs=0.02
    )


def test_ece_on_seen_cells_and_on_all_cells():
    # Seen: 0.8 and right, off by 0.2.  All: one of two right, 0.8 off by 0.3.
    truth, pred, score = ["a", "X"], ["a", "a"], [0.8, 0.8]
    assert metrics.ece(truth, pred, score, seen=["a"]) == pytest.approx(0.2)
    assert metrics.ece(truth, pred, score) == pytest.approx(0.3)
    assert metrics.ece_all(truth, pred, score, ["a"]) == pytest.approx(0.3)


def test_ece_all_takes_a_novel_cell_as_wrong_whatever_its_name():
    assert metrics.ece(["X"], ["X"], [0.75]) == pytest.approx(0.25)
    assert metrics.ece_all(["X"], ["X"], [0.75], ["a"]) == pytest.approx(0.75)


# -- Everything at once ------------------------------------------------------------------------


def test_summary_of_names_only():
    scores = metrics.summary(TRUE, PRED, SEEN)
    assert scores == {
        "seen_accuracy": pytest.approx(3 / 6),
        "macro_f1": pytest.approx(7 / 12),
        "balanced_accuracy": pytest.approx(1 / 2),
        "novel_accuracy": pytest.approx(3 / 4),
        "overall_accuracy": pytest.approx(6 / 10),
        "ari": pytest.approx(adjusted_rand_score(TRUE, PRED)),
        "nmi": pytest.approx(metrics.nmi(TRUE, PRED)),
    }


def test_summary_of_everything():
    # The novel cell is ranked first for "a" and would lower its areas if it counted.
    scores = metrics.summary(
        [*RANKED_TRUE, "X"],
        ["a", "b", "a", "b", "a"],
        ["a", "b"],
        proba=np.vstack([RANKED, [[0.95, 0.05]]]),
        classes=["a", "b"],
        score=[0.9, 0.6, 0.6, 0.9, 0.95],
        novel_score=[0.1, 0.2, 0.3, 0.4, 0.35],
        novel=[False, False, False, True, True],
    )
    assert scores["mean_auroc"] == pytest.approx(0.75)
    assert scores["mean_auprc"] == pytest.approx(5 / 6)
    assert scores["top_3_accuracy"] == 1.0
    # Both at 0.9 are right and both at 0.6 are wrong: off by 0.1 and 0.6.
    assert scores["ece"] == pytest.approx(0.35)
    # One cell to a bin, each off by as much as before.
    assert scores["ece_mass"] == pytest.approx(0.35)
    # 0.9 and 0.95 lie on either side of 14/15: 2 * 0.1 + 2 * 0.6 + 0.95.
    assert scores["ece_all"] == pytest.approx(2.35 / 5)
    assert scores["novel_auroc"] == pytest.approx(3 / 4)
    assert scores["false_novel"] == pytest.approx(1 / 4)
    assert scores["novel_recall"] == 1.0
    assert scores["novel_precision"] == pytest.approx(1 / 2)
    assert all(type(value) is float for value in scores.values())


def test_summary_of_perfect_names():
    scores = metrics.summary(TRUE, TRUE, SEEN)
    assert all(value == pytest.approx(1.0) for value in scores.values())


# -- Undefined scores --------------------------------------------------------------------------

ONLY_NOVEL = (["X", "Y"], ["a", "novel_1"], SEEN)
ONLY_SEEN = (["a", "b"], ["a", "novel_1"], SEEN)


@pytest.mark.parametrize(
    "score",
    [metrics.seen_accuracy, metrics.macro_f1, metrics.balanced_accuracy],
    ids=lambda f: f.__name__,
)
def test_without_seen_cells_is_nan(score):
    assert math.isnan(score(*ONLY_NOVEL))
    assert math.isnan(score(["a"], ["a"], []))


def test_without_novel_cells_is_nan():
    assert math.isnan(metrics.novel_accuracy(*ONLY_SEEN))


def test_scores_of_novelty_need_both_kinds_of_cells():
    assert math.isnan(metrics.novel_auroc(["a", "b"], [0, 1], SEEN))
    assert math.isnan(metrics.novel_auroc(["X", "Y"], [0, 1], SEEN))
    assert math.isnan(metrics.false_novel(["X"], [True], SEEN))
    assert math.isnan(metrics.novel_recall(["a"], [True], SEEN))
    assert math.isnan(metrics.novel_precision(["a", "X"], [False, False], SEEN))
    assert math.isnan(metrics.ece(["X"], ["a"], [0.5], seen=SEEN))


def test_without_cells_everything_is_nan():
    scores = metrics.summary(
        [],
        [],
        SEEN,
        proba=np.empty((0, 3)),
        classes=SEEN,
        score=[],
        novel_score=[],
        novel=[],
    )
    assert len(scores) == 17
    assert all(math.isnan(value) for value in scores.values())


# -- Refused arguments -------------------------------------------------------------------------


def as_objects(values):
    """Return `values` as an array of objects, which is how a table column comes."""
    return np.array(values, dtype=object)


@pytest.mark.parametrize(
    "missing", [None, float("nan"), np.float64("nan"), np.datetime64("NaT", "ns")], ids=repr
)
@pytest.mark.parametrize("container", [list, as_objects], ids=["list", "array"])
def test_missing_truth_is_refused(missing, container):
    with pytest.raises(ValueError, match="y_true has 1 missing .* cell 1: drop these cells"):
        metrics.seen_accuracy(container(["a", missing]), ["a", "a"], SEEN)


def test_missing_prediction_is_refused():
    with pytest.raises(ValueError, match="y_pred has 2 missing"):
        metrics.ari(["a", "a"], [None, float("nan")])


WITH_SEEN = [
    metrics.seen_accuracy,
    metrics.macro_f1,
    metrics.balanced_accuracy,
    metrics.novel_accuracy,
    metrics.overall_accuracy,
    metrics.summary,
]
WITHOUT_SEEN = [metrics.ari, metrics.nmi]


@pytest.mark.parametrize("score", WITH_SEEN + WITHOUT_SEEN, ids=lambda f: f.__name__)
def test_names_of_different_length_are_refused(score):
    rest = [SEEN] if score in WITH_SEEN else []
    with pytest.raises(ValueError, match="y_true has 3 cells but y_pred has 2"):
        score(["a", "a", "a"], ["a", "a"], *rest)


ONE = (["a"], ["a"])
REFUSED = {
    "score of another length": (metrics.ece, (*ONE, [0.1, 0.2]), {}, "1 cells but score has 2"),
    "score of another length, all cells": (
        metrics.ece_all,
        (*ONE, [0.1, 0.2], SEEN),
        {},
        "1 cells but score has 2",
    ),
    "novel score of another length": (
        metrics.novel_auroc,
        (["a"], [0.1, 0.2], SEEN),
        {},
        "1 cells but novel_score has 2",
    ),
    "flags of another length": (
        metrics.false_novel,
        (["a"], [True, True], SEEN),
        {},
        "1 cells but novel has 2",
    ),
    "proba of another length": (
        metrics.per_type_auroc,
        (["a"], np.ones((2, 3)), SEEN),
        {},
        "1 cells but proba has 2",
    ),
    "one name for a collection": (metrics.seen_accuracy, (*ONE, "a"), {}, "not a single name"),
    "table of names": (metrics.ari, ([["a"]], ["a"]), {}, "one dimension"),
    "score above 1": (metrics.ece, (*ONE, [1.1]), {}, r"within \[0, 1\]"),
    "score below 0": (metrics.reliability_curve, (*ONE, [-0.1]), {}, r"within \[0, 1\]"),
    "score missing": (metrics.ece_all, (*ONE, [np.nan], SEEN), {}, "finite"),
    "no bins": (metrics.ece, (*ONE, [0.5]), {"n_bins": 0}, "n_bins"),
    "unknown bins": (metrics.ece, (*ONE, [0.5]), {"binning": "depth"}, "binning"),
    "novel score infinite": (metrics.novel_auroc, (["a"], [np.inf], SEEN), {}, "finite"),
    "flags of another length, recall": (
        metrics.novel_recall,
        (["a"], [True, True], SEEN),
        {},
        "1 cells but novel has 2",
    ),
    "flags that are scores, precision": (
        metrics.novel_precision,
        (["a"], [0.5], SEEN),
        {},
        "bool",
    ),
    "flags that are scores": (metrics.false_novel, (["a"], [0.5], SEEN), {}, "bool"),
    "too few columns": (
        metrics.per_type_auprc,
        (["a"], [[1.0]], SEEN),
        {},
        "1 columns but classes has 3",
    ),
    "class twice": (metrics.per_type_auprc, (["a"], [[1, 1]], ["a", "a"]), {}, "repeat"),
    "proba missing": (metrics.top_k_accuracy, (["a"], [[np.nan]], ["a"]), {}, "finite"),
    "proba of one dimension": (metrics.top_k_accuracy, (["a"], [1.0], ["a"]), {}, "dimensions"),
    "k of 0": (metrics.top_k_accuracy, (["a"], [[1.0]], ["a"]), {"k": 0}, "k must"),
    "proba without classes": (metrics.summary, (*ONE, SEEN), {"proba": [[1.0]]}, "together"),
}


@pytest.mark.parametrize(
    ("function", "arguments", "options", "message"), REFUSED.values(), ids=REFUSED.keys()
)
def test_refuses(function, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments, **options)
