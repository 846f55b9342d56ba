"""Scores that only the benchmark reports, against numbers worked out by hand and brute force."""

import math

import numpy as np
import pytest
from named import PRED, SEEN, TRUE, best_by_brute_force, random_case
from sklearn.metrics import auc, roc_auc_score

from sctool import metrics
from sctool._sets import Hierarchy
from sctool_benchmark._metrics import (
    entropy_of_batch_mixing,
    novel_accuracy_hungarian,
    overall_accuracy_hungarian,
    safe_name_scores,
    seen_novel_curve,
    seen_unflagged,
)

# No score may warn: what is undefined is NaN, in silence.
pytestmark = pytest.mark.filterwarnings("error")


# -- Every group may be matched ------------------------------------------------------------------


def test_accuracies_by_hand():
    # X to novel_1 2, Y to novel_2 1; "a" has nothing left to match.
    assert novel_accuracy_hungarian(TRUE, PRED, SEEN) == pytest.approx(3 / 4)
    # a to "a" 2, b to "b" 1, X to novel_1 2, Y to novel_2 1.
    assert overall_accuracy_hungarian(TRUE, PRED) == pytest.approx(6 / 10)


def test_novel_cells_under_a_seen_name_are_forgiven():
    # Strict: of the three X only the one in novel_1 is right.  Hungarian: "a" is matched to X.
    truth = ["X", "X", "X", "a", "a"]
    pred = ["a", "a", "novel_1", "a", "a"]
    assert metrics.novel_accuracy(truth, pred, ["a"]) == pytest.approx(1 / 3)
    assert novel_accuracy_hungarian(truth, pred, ["a"]) == pytest.approx(2 / 3)


def test_swapped_seen_names_are_forgiven():
    truth, pred = ["a", "a", "b", "b"], ["b", "b", "a", "a"]
    assert metrics.overall_accuracy(truth, pred, SEEN) == 0.0
    assert overall_accuracy_hungarian(truth, pred) == 1.0


def test_a_novel_group_may_be_matched_to_a_seen_type():
    assert overall_accuracy_hungarian(["a", "a", "a", "X"], ["novel_1"] * 4) == pytest.approx(3 / 4)


def test_numbers_may_be_names():
    assert overall_accuracy_hungarian(["a", "a", "b", "c"], np.array([2, 2, 0, 1])) == 1.0


@pytest.mark.parametrize("seed", range(6))
def test_matching_agrees_with_brute_force(seed):
    truth, pred = random_case(seed, n_cells=20)
    novel, groups = ~np.isin(truth, SEEN), sorted(set(pred))
    among_novel = best_by_brute_force(truth[novel], pred[novel], groups, sorted({*truth[novel]}))
    result = novel_accuracy_hungarian(truth, pred, SEEN)
    assert result == pytest.approx(among_novel / novel.sum())
    anything = best_by_brute_force(truth, pred, groups, sorted(set(truth)))
    assert overall_accuracy_hungarian(truth, pred) == pytest.approx(anything / len(truth))


@pytest.mark.parametrize("seed", range(5))
def test_the_strict_accuracies_are_never_higher(seed):
    truth, pred = random_case(seed)
    overall = overall_accuracy_hungarian(truth, pred)
    assert metrics.overall_accuracy(truth, pred, SEEN) <= overall
    novel = novel_accuracy_hungarian(truth, pred, SEEN)
    assert metrics.novel_accuracy(truth, pred, SEEN) <= novel


def test_without_cells_to_score_is_nan():
    assert math.isnan(novel_accuracy_hungarian(["a", "b"], ["a", "novel_1"], SEEN))
    assert math.isnan(overall_accuracy_hungarian([], []))


# -- Seen accuracy against novel recall ----------------------------------------------------------

CURVE_TRUE = ["a", "a", "b", "X", "X"]
CURVE_PRED = ["a", "a", "a", "a", "b"]
CURVE_SCORE = [0.1, 0.6, 0.2, 0.6, 0.9]


def test_seen_novel_curve_by_hand():
    curve = seen_novel_curve(CURVE_TRUE, CURVE_PRED, CURVE_SCORE, SEEN)
    np.testing.assert_array_equal(curve.thresholds, [np.inf, 0.9, 0.6, 0.2, 0.1])
    np.testing.assert_allclose(curve.seen_accuracy, [2 / 3, 2 / 3, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(curve.novel_recall, [0, 1 / 2, 1, 1, 1])


def test_seen_novel_curve_agrees_with_each_threshold_in_turn():
    truth, pred = random_case(0, n_cells=100)
    score = np.random.default_rng(0).integers(-5, 6, size=100) / 10
    curve = seen_novel_curve(truth, pred, score, SEEN)
    assert curve.thresholds.size == 12
    novel = ~np.isin(truth, SEEN)
    for threshold, accuracy, recall in zip(*curve, strict=True):
        called = score >= threshold
        named = np.where(called, "novel", pred)
        assert accuracy == pytest.approx(metrics.seen_accuracy(truth, named, SEEN))
        assert recall == pytest.approx(called[novel].mean())


def test_area_under_the_curve_of_perfect_names_is_the_auroc():
    # With every seen cell named right, seen accuracy is the true negative rate.
    rng = np.random.default_rng(0)
    truth, score = rng.choice(["a", "b", "X"], size=200), rng.random(200).round(2)
    curve = seen_novel_curve(truth, truth, score, SEEN)
    area = auc(1 - curve.seen_accuracy, curve.novel_recall)
    assert area == pytest.approx(roc_auc_score(truth == "X", score))
    assert area == pytest.approx(metrics.novel_auroc(truth, score, SEEN))


def test_the_curve_without_seen_or_without_novel_cells():
    curve = seen_novel_curve(["a"], ["a"], [0.5], SEEN)
    assert np.isnan(curve.novel_recall).all()
    np.testing.assert_array_equal(curve.seen_accuracy, [1, 0])
    curve = seen_novel_curve(["X"], ["a"], [0.5], SEEN)
    assert np.isnan(curve.seen_accuracy).all()
    np.testing.assert_array_equal(curve.novel_recall, [0, 1])


# -- Seen cells that keep their name -------------------------------------------------------------


def test_a_flag_is_an_error_whether_or_not_the_cell_is_named():
    truth, seen = np.array(["a", "a", "a", "b", "X", "X"]), ["a", "b"]
    named = ["a", "a", "b", "b", "a", "b"]  # as scNym does, flags beside
    flags = np.array([False, True, False, True, True, False])
    grouped = np.where(flags, "novel_1", named)  # as scDET does
    assert metrics.seen_accuracy(truth, named, seen) == pytest.approx(3 / 4)
    assert metrics.seen_accuracy(truth, grouped, seen) == pytest.approx(1 / 4)
    for prediction in (named, grouped):
        assert seen_unflagged(truth, prediction, flags, seen) == pytest.approx(1 / 4)
    none = np.zeros(6, dtype=bool)
    assert seen_unflagged(truth, named, none, seen) == pytest.approx(3 / 4)
    assert seen_unflagged(truth, named, ~none, seen) == 0
    assert np.isnan(seen_unflagged(["X"], ["a"], none[:1], seen))


def test_only_flags_are_taken():
    with pytest.raises(ValueError, match="novel must be a 1-d array of bool"):
        seen_unflagged(["a"], ["a"], [0.5], ["a"])


# -- Mixing of batches -------------------------------------------------------------------------

# The score of a cell with one neighbour of one batch and two of the other.
ONE_AND_TWO = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3) / math.log(2)


def test_entropy_shrinks_the_neighbourhood_to_all_other_cells():
    embedding = np.arange(4.0)[:, None]
    result = entropy_of_batch_mixing(embedding, ["1", "2", "1", "2"])
    assert result == pytest.approx(ONE_AND_TWO)


def test_entropy_is_relative_to_the_number_of_batches():
    # Each of three cells sees the two other batches, once each.
    result = entropy_of_batch_mixing(np.arange(3.0)[:, None], ["1", "2", "3"])
    assert result == pytest.approx(math.log(2) / math.log(3))


def test_entropy_of_duplicated_cells_leaves_out_the_cell_itself():
    # The three cells of batch 1 see two of their own and one other; the fourth sees batch 1 only.
    result = entropy_of_batch_mixing(np.zeros((4, 2)), ["1", "1", "1", "2"])
    assert result == pytest.approx(3 / 4 * ONE_AND_TWO)


def test_entropy_of_duplicates_beyond_the_neighbourhood():
    # Among 100 cells at one place, a cell may not be found among its own 4 nearest.
    result = entropy_of_batch_mixing(np.zeros((100, 2)), ["1", "2"] * 50, n_neighbors=3)
    assert 0 <= result <= 1


def test_entropy_of_separate_batches_is_zero():
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(200, 5)) + 1000 * np.repeat([0, 1], 100)[:, None]
    batch = np.repeat(["1", "2"], 100)
    assert entropy_of_batch_mixing(embedding, batch, n_neighbors=20) == 0.0


def test_entropy_of_well_mixed_batches_is_near_one():
    embedding = np.random.default_rng(0).normal(size=(2000, 5))
    # Chance costs about (2 - 1) / (2 * 50 * ln 2) = 0.014.
    result = entropy_of_batch_mixing(embedding, np.arange(2000) % 2, n_cells=500)
    assert result == pytest.approx(0.986, abs=0.005)


def test_entropy_of_unbalanced_batches_stays_below_one():
    rng = np.random.default_rng(0)
    embedding, batch = rng.normal(size=(2000, 5)), rng.choice(["1", "2"], 2000, p=[0.9, 0.1])
    # H(0.9, 0.1) is 0.469 bits.
    result = entropy_of_batch_mixing(embedding, batch, n_cells=500)
    assert result == pytest.approx(0.469, abs=0.03)


def test_entropy_is_repeatable_and_depends_on_the_seed():
    rng = np.random.default_rng(0)
    embedding, batch = rng.normal(size=(300, 2)), rng.choice(["1", "2", "3"], 300)

    def entropy(seed):
        return entropy_of_batch_mixing(
            embedding, batch, n_neighbors=10, n_cells=50, random_state=seed
        )

    assert entropy(0) == entropy(0)
    assert entropy(0) != entropy(1)


def test_entropy_of_a_single_batch_is_nan():
    assert math.isnan(entropy_of_batch_mixing(np.zeros((5, 2)), ["1"] * 5))


# -- Refused arguments ---------------------------------------------------------------------------

REFUSED = {
    "names of another length": (
        novel_accuracy_hungarian,
        (["a"], ["a", "b"], SEEN),
        "y_pred has 2",
    ),
    "groups of another length": (overall_accuracy_hungarian, (["a"], ["a", "b"]), "y_pred has 2"),
    "name missing": (overall_accuracy_hungarian, ([None], ["a"]), "y_true has 1 missing"),
    "novel score of another length": (
        seen_novel_curve,
        (["a"], ["a"], [0.1, 0.2], SEEN),
        "1 cells but novel_score has 2",
    ),
    "batch of another length": (
        entropy_of_batch_mixing,
        (np.ones((3, 2)), ["1"]),
        "3 cells but batch has 1",
    ),
    "batch missing": (entropy_of_batch_mixing, (np.ones((2, 2)), ["1", None]), "1 missing"),
    "embedding of one dimension": (
        entropy_of_batch_mixing,
        (np.ones(2), ["1", "2"]),
        "two dimensions",
    ),
}


@pytest.mark.parametrize(("function", "arguments", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


@pytest.mark.parametrize("option", ["n_neighbors", "n_cells"])
def test_no_neighbours_and_no_cells_are_refused(option):
    with pytest.raises(ValueError, match="at least 1"):
        entropy_of_batch_mixing(np.ones((2, 2)), ["1", "2"], **{option: 0})


# -- Names at a risk of error --------------------------------------------------------------------


def test_names_and_sets_at_a_risk_by_hand():
    types = ["B", "NK", "T"]
    tree = Hierarchy.from_parents(types, {"NK": "NK or T", "T": "NK or T"})
    truth = ["B", "NK", "NK", "T", "T"]
    safe = ["B", "NK or T", "B", "unknown", "NK"]  # right, right, wrong, right, wrong
    sets = np.array([[1, 0, 0], [0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 1, 0]], dtype=bool)
    pred = ["B", "NK", "B", "novel_1", "NK"]
    scores = safe_name_scores(truth, safe, sets, pred, [0.9, 0.8, 0.7, 0.99, 0.6], tree, types)
    assert scores == pytest.approx(
        {
            "error": 2 / 5,
            "specificity": (1 + 0.5 + 1 + 0 + 1) / 5,
            "named": 3 / 5,
            "unknown": 1 / 5,
            "missed": 2 / 5,
            "set_size": 8 / 5,
            "rejection": 4 / 5,  # all but the novel cell, with the same two errors
        }
    )
    # one error less is allowed: the least certain of the two is not named
    safe[4] = "unknown"
    scores = safe_name_scores(truth, safe, sets, pred, [0.9, 0.8, 0.7, 0.99, 0.6], tree, types)
    assert scores["error"] == 1 / 5
    assert scores["rejection"] == 3 / 5
    empty = safe_name_scores([], [], np.zeros((0, 3)), [], [], tree, types)
    assert all(math.isnan(value) for value in empty.values())
