"""Prediction sets, hierarchies and safe names: coverage, nesting, and what is refused."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sctool._regression import regress
from sctool._sets import (
    Calibration,
    Hierarchy,
    label_shift,
    prediction_sets,
    safe_names,
    thresholds,
)

TYPES = ["B", "CD4 T", "CD8 T", "Mono", "NK"]
PARENTS = {"CD4 T": "T", "CD8 T": "T", "T": "T/NK", "NK": "T/NK", "Mono": "Myeloid"}


def simulate(n: int, shares, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, too confident, and true codes of ``n`` cells; CD4 T and CD8 T are alike."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(len(TYPES), n, p=shares)
    centres = 3.0 * np.eye(len(TYPES))
    centres[1, 2] = centres[2, 1] = 2.0
    logits = 2 * (centres[codes] + rng.normal(size=(n, len(TYPES))))
    proba = np.exp(logits - logits.max(axis=1, keepdims=True))
    return proba / proba.sum(axis=1, keepdims=True), codes


EVEN = np.full(5, 0.2)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return Calibration(*simulate(4000, EVEN, 0))


@pytest.fixture(scope="module")
def hierarchy() -> Hierarchy:
    return Hierarchy.from_parents(TYPES, PARENTS)


def covered(sets: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return sets[np.arange(len(codes)), codes]


def wrong(names: np.ndarray, codes: np.ndarray, hierarchy: Hierarchy) -> np.ndarray:
    node = np.array([list(hierarchy.names).index(name) for name in names])
    return ~hierarchy.members[node, codes]


# -- Thresholds ----------------------------------------------------------------------------------


def test_the_threshold_is_the_quantile_with_the_cell_to_be_named_at_infinity():
    scores, codes = np.arange(1.0, 20.0)[::-1], np.zeros(19, dtype=int)
    # of 20 ranks, 19 are kept at a risk of 0.05 and 18 at 0.10
    assert thresholds(scores, codes, 1, 0.05, by_type=False) == [19]
    assert thresholds(scores, codes, 1, 0.10, by_type=False) == [18]
    # 19 cells cannot support less
    assert thresholds(scores, codes, 1, 0.049, by_type=False) == [np.inf]


def test_a_type_has_its_own_threshold_from_the_number_of_cells_that_supports_the_risk():
    # type 0 with 9 cells, enough for 0.10, has scores above 10; type 1 with 8 has scores above 20
    codes = np.r_[np.zeros(9, int), np.ones(8, int), np.full(90, 2)]
    scores = np.r_[10 + np.arange(9), 20 + np.arange(8), np.linspace(0, 1, 90)]
    found = thresholds(scores, codes, 3, 0.10, by_type=True)
    shared = np.sort(scores)[98 - 1]  # rank ceil(0.9 * 108)
    assert found[0] == 18
    assert found[1] == shared
    assert found[2] == np.sort(scores[codes == 2])[82 - 1]
    assert (thresholds(scores, codes, 3, 0.10, by_type=False) == shared).all()


@pytest.mark.parametrize("risk", [0, 1, -0.1, 5, np.nan])
def test_a_risk_out_of_range_is_refused(risk, calibration):
    with pytest.raises(ValueError, match=r"risk=.* must lie between 0 and 1"):
        prediction_sets(calibration.proba, calibration, risk)


@pytest.mark.parametrize(
    ("proba", "codes", "message"),
    [
        (EVEN, [0], "cells x types"),
        (2 * EVEN[None], [0], "sums are 2 to 2"),
        (np.full((1, 5), np.nan), [0], "not probabilities"),
        (EVEN[None], [0, 1], r"codes has shape \(2,\), but proba has 1 cells"),
        (EVEN[None], [-1], "outside 0 to 4"),
        (EVEN[None], [5], "outside 0 to 4"),
    ],
)
def test_a_calibration_that_is_none_is_refused(proba, codes, message):
    with pytest.raises(ValueError, match=message):
        Calibration(proba, np.array(codes))


# -- Sets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("risk", [0.02, 0.05, 0.2])
def test_sets_miss_the_true_type_as_often_as_the_risk_says(risk, calibration):
    proba, codes = simulate(20000, EVEN, 1)
    sets = prediction_sets(proba, calibration, risk, by_type=False)
    error = 1 - covered(sets, codes).mean()
    # the most probable type is always in the set: below the share of wrong labels nothing is lost
    assert error <= risk + 0.01
    assert error >= min(risk, (proba.argmax(axis=1) != codes).mean()) - 0.01
    assert sets[np.arange(len(proba)), proba.argmax(axis=1)].all()


def test_by_type_each_type_is_covered_and_not_their_mean_alone(calibration):
    proba, codes = simulate(20000, EVEN, 1)

    def worst(by_type: bool) -> float:
        sets = prediction_sets(proba, calibration, 0.05, by_type=by_type)
        return max(1 - covered(sets, codes)[codes == k].mean() for k in range(5))

    assert worst(by_type=True) <= 0.05 + 0.02
    assert worst(by_type=False) >= 0.08


def test_a_lower_risk_only_adds_types(calibration):
    proba, _ = simulate(500, EVEN, 1)
    sets = [prediction_sets(proba, calibration, risk) for risk in (0.3, 0.1, 0.03, 0.01)]
    for smaller, larger in pairwise(sets):
        assert (smaller <= larger).all()
    assert sets[-1].sum() > sets[0].sum()


def test_too_few_calibration_cells_rule_out_nothing(hierarchy):
    few = Calibration(*simulate(18, EVEN, 0))
    proba, _ = simulate(50, EVEN, 1)
    assert prediction_sets(proba, few, 0.05).all()
    names, specificity = safe_names(proba, few, hierarchy, 0.05)
    assert set(names) == {"unknown"}
    assert (specificity == 0).all()


def test_sets_are_those_of_crepes(calibration):
    crepes = pytest.importorskip("crepes")
    proba, _ = simulate(1000, EVEN, 1)
    # a risk that no number of cells meets exactly: there the two differ by rounding
    risk = 0.0937
    scores = 1 - calibration.proba[np.arange(4000), calibration.codes]
    top = np.arange(1000), proba.argmax(axis=1)
    settings = {"confidence": 1 - risk, "smoothing": False}

    classifier = crepes.ConformalClassifier()
    classifier.fit(scores)
    expected = classifier.predict_set(1 - proba, **settings).astype(bool)
    expected[top] = True
    found = prediction_sets(proba, calibration, risk, by_type=False)
    np.testing.assert_array_equal(found, expected)

    for k in range(5):
        classifier.fit(scores[calibration.codes == k])
        expected[:, k] = classifier.predict_set(1 - proba[:, [k]], **settings)[:, 0]
    expected[top] = True
    np.testing.assert_array_equal(prediction_sets(proba, calibration, risk), expected)
    assert (expected != found).any()


# -- Label shift ---------------------------------------------------------------------------------

#: More T cells, which are hard to tell apart.
SHIFTED = np.array([0.05, 0.45, 0.35, 0.05, 0.10])


def test_a_planted_shift_of_the_shares_is_found(calibration):
    planted = np.array([0.10, 0.70, 0.05, 0.10, 0.05])
    proba, _ = simulate(5000, planted, 1)
    np.testing.assert_allclose(label_shift(proba, calibration), planted / EVEN, atol=0.15)
    # by the labels alone, CD8 T would have four times its share
    assert (proba.argmax(axis=1) == 2).mean() > 0.18


def test_without_a_shift_or_without_cells_the_weights_are_near_1(calibration):
    proba, _ = simulate(5000, EVEN, 1)
    np.testing.assert_allclose(label_shift(proba, calibration), 1, atol=0.15)
    np.testing.assert_allclose(label_shift(proba[:0], calibration), 1)
    # three cells of one type are little evidence
    few = label_shift(np.repeat(np.eye(5)[:1], 3, axis=0), calibration)
    assert 1 < few[0] < 3.5
    assert few.min() > 0.3


def test_a_type_without_calibration_cells_keeps_its_weight():
    proba, codes = simulate(2000, EVEN, 0)
    some = Calibration(proba[codes != 3], codes[codes != 3])
    assert label_shift(simulate(2000, EVEN, 1)[0], some)[3] == pytest.approx(1, abs=0.05)


# -- Hierarchies ---------------------------------------------------------------------------------


def as_dict(hierarchy: Hierarchy) -> dict[str, list[str]]:
    return {
        name: list(np.array(TYPES)[inside])
        for name, inside in zip(hierarchy.names, hierarchy.members, strict=True)
    }


def test_parents_of_any_depth_become_nodes(hierarchy):
    nodes = as_dict(hierarchy)
    assert nodes.pop("unknown") == TYPES
    assert nodes.pop("T") == ["CD4 T", "CD8 T"]
    assert nodes.pop("T/NK") == ["CD4 T", "CD8 T", "NK"]
    # "Myeloid" holds a single type here, so that the type's own name says more
    assert nodes == {name: [name] for name in TYPES}
    assert hierarchy.names[0] == "unknown"


def test_parents_of_all_types_are_the_root():
    every = dict.fromkeys(TYPES, "blood")
    assert as_dict(Hierarchy.from_parents(TYPES, every)) == as_dict(
        Hierarchy.from_parents(TYPES, {})
    )


def test_specificity_is_the_share_of_other_types_ruled_out(hierarchy):
    found = dict(zip(hierarchy.names, hierarchy.specificity, strict=True))
    assert (found["unknown"], found["T/NK"], found["T"], found["B"]) == (0, 0.5, 0.75, 1)


def test_the_lowest_node_contains_the_set(hierarchy):
    sets = np.array(
        [
            [0, 1, 0, 0, 0],
            [0, 1, 1, 0, 0],
            [0, 1, 0, 0, 1],
            [1, 1, 0, 0, 0],
        ],
        dtype=bool,
    )
    assert list(hierarchy.names[hierarchy.lowest(sets)]) == ["CD4 T", "T", "T/NK", "unknown"]


@pytest.mark.parametrize(
    ("parents", "message"),
    [
        ({"CD4 T": "T", "T": "CD4+", "CD4+": "T"}, "cycle.*'T' -> 'CD4\\+' -> 'T'"),
        ({"X": "Y", "Y": "X"}, "cycle"),
        ({"B": "L", "Bcell": "L"}, r"a parent for \['Bcell'\], which are neither"),
        ({"CD4 T": "NK", "CD8 T": "NK"}, r"\['NK'\] as parents, but these are cell types"),
        ({"B": "B"}, r"\['B'\] as parents"),
        ({"CD4 T": "unknown", "CD8 T": "unknown"}, "'unknown' is the name of cells for which"),
    ],
)
def test_parents_that_are_no_hierarchy_are_refused(parents, message):
    with pytest.raises(ValueError, match=message):
        Hierarchy.from_parents(TYPES, parents)


def levels(n_stray: int = 0, coarse_of_nk: str = "T/NK") -> pd.DataFrame:
    """100 cells of each type; the first of CD4 T stray into Myeloid."""
    fine = np.repeat(TYPES, 100)
    middle = pd.Series(fine).replace({"CD4 T": "T", "CD8 T": "T"})
    top = pd.Series(fine).replace({"CD4 T": "T/NK", "CD8 T": "T/NK", "NK": coarse_of_nk})
    top[100 : 100 + n_stray] = "Myeloid"
    return pd.DataFrame({"lineage": top, "group": middle, "cell_type": fine})


def test_columns_of_labels_give_the_hierarchy_of_the_parents(hierarchy):
    for labels in (levels(), levels().to_numpy(), levels().astype("category")):
        found, notes = Hierarchy.from_levels(TYPES, labels)
        assert as_dict(found) == as_dict(hierarchy)
        assert notes == []


def test_missing_labels_say_nothing(hierarchy):
    labels = levels()
    labels.loc[::7, "lineage"] = None
    labels.loc[::5, "cell_type"] = None
    found, notes = Hierarchy.from_levels(TYPES, labels)
    assert as_dict(found) == as_dict(hierarchy)
    assert notes == []


def test_a_few_cells_in_another_coarse_type_are_noted_and_more_are_refused(hierarchy):
    found, notes = Hierarchy.from_levels(TYPES, levels(n_stray=5))
    assert as_dict(found) == as_dict(hierarchy)
    assert notes == [
        "hierarchy: 'CD4 T' lies in 'T/NK' of 'lineage', although 5 of its 100 cells are labelled "
        "otherwise"
    ]
    with pytest.raises(ValueError, match="'CD4 T' lies in several types.*'lineage'.*'Myeloid': 6"):
        Hierarchy.from_levels(TYPES, levels(n_stray=6))


def test_levels_that_cross_or_share_a_name_are_refused():
    crossing = levels().replace({"lineage": {"B": "T/NK"}})
    crossing.loc[crossing["cell_type"] == "CD8 T", "lineage"] = "Myeloid"
    with pytest.raises(ValueError, match="overlap, but neither contains the other"):
        Hierarchy.from_levels(TYPES, crossing)
    with pytest.raises(ValueError, match="two different groups of types called 'NK'"):
        Hierarchy.from_levels(TYPES, levels().replace({"lineage": {"T/NK": "NK"}}))


def test_a_tree_of_profiles_joins_what_is_alike():
    rng = np.random.default_rng(0)
    profiles = rng.random((5, 200))
    profiles[2] = profiles[1] + 0.1 * rng.random(200)
    profiles[4] = profiles[1] + 0.6 * rng.random(200)
    nodes = as_dict(Hierarchy.from_profiles(TYPES, profiles))
    assert nodes["CD4 T / CD8 T"] == ["CD4 T", "CD8 T"]
    assert nodes["CD4 T / CD8 T / NK"] == ["CD4 T", "CD8 T", "NK"]
    # a binary tree, whose root is "unknown"
    assert len(nodes) == 2 * 5 - 1
    # what the level of all genes is does not matter
    scaled = profiles * np.arange(1, 6)[:, None] + np.arange(5)[:, None]
    assert as_dict(Hierarchy.from_profiles(TYPES, scaled)) == nodes


def test_a_joined_name_never_stands_for_two_things():
    types = ["A", "B", "A / B", "C"]
    profiles = np.array([[1, 0, 0, 0], [1, 0.1, 0, 0], [0, 0, 1, 0], [0, 0, 0.9, 1]])
    names = Hierarchy.from_profiles(types, profiles).names
    assert sorted(names) == ["A", "A / B", "A / B / C", "B", "C", "unknown"]


# -- Safe names ----------------------------------------------------------------------------------


@pytest.mark.parametrize("by_confidence", [False, True])
@pytest.mark.parametrize("risk", [0.02, 0.05, 0.10])
def test_safe_names_err_as_often_as_the_risk_says(risk, by_confidence, calibration, hierarchy):
    proba, codes = simulate(20000, EVEN, 1)
    names, specificity = safe_names(
        proba, calibration, hierarchy, risk, by_confidence=by_confidence
    )
    label = np.array(TYPES)[proba.argmax(axis=1)]
    assert (label != np.array(TYPES)[codes]).mean() > 0.12
    error = wrong(names, codes, hierarchy).mean()
    assert error <= risk + 0.01
    if not by_confidence:
        # not less than the risk either: that would be names that say too little
        assert error >= risk - 0.01
    assert (names[specificity == 1] == label[specificity == 1]).all()
    # it is T cells that are hard to tell apart
    assert {"T", "unknown"} <= set(names)


def test_names_by_confidence_hold_among_the_cells_that_the_model_is_unsure_of(
    calibration, hierarchy
):
    proba, codes = simulate(20000, EVEN, 1)
    unsure = proba.max(axis=1) < 0.7

    def errors(by_confidence: bool) -> np.ndarray:
        names, _ = safe_names(proba, calibration, hierarchy, 0.10, by_confidence=by_confidence)
        return wrong(names, codes, hierarchy)[unsure]

    assert 500 < unsure.sum() < 5000
    assert errors(by_confidence=True).mean() <= 0.12
    assert errors(by_confidence=False).mean() >= 0.2


def test_few_cells_have_fewer_bands(hierarchy):
    # 60 cells: bands of 9 could not support a risk of 0.05, two of 30 could not twice over
    few = Calibration(*simulate(60, EVEN, 0))
    proba, _ = simulate(500, EVEN, 1)
    names, _ = safe_names(proba, few, hierarchy, 0.05)
    np.testing.assert_array_equal(
        names, safe_names(proba, few, hierarchy, 0.05, by_confidence=False)[0]
    )
    assert len(set(names)) > 2


def test_safe_names_say_more_than_the_node_around_the_set(calibration, hierarchy):
    proba, _ = simulate(20000, EVEN, 1)
    _, specificity = safe_names(proba, calibration, hierarchy, 0.05, by_confidence=False)
    sets = prediction_sets(proba, calibration, 0.05, by_type=False)
    assert specificity.mean() > hierarchy.specificity[hierarchy.lowest(sets)].mean() + 0.01


def test_a_lower_risk_only_moves_names_up(calibration, hierarchy):
    proba, _ = simulate(500, EVEN, 1)
    found = [safe_names(proba, calibration, hierarchy, risk)[1] for risk in (0.1, 0.05, 0.02)]
    assert (found[0] >= found[1]).all()
    assert (found[1] >= found[2]).all()


def test_where_labels_are_right_often_enough_each_cell_has_its_type(hierarchy):
    # 4 % of the calibration cells are wrong, however sure the model is
    codes = np.arange(1000) % 5
    shown = np.where(np.arange(1000) % 25 == 0, (codes + 1) % 5, codes)
    proba = 0.9 * np.eye(5)[shown] + 0.02
    names, specificity = safe_names(proba, Calibration(proba, codes), hierarchy, 0.05)
    assert (names == np.array(TYPES)[shown]).all()
    assert (specificity == 1).all()
    names, specificity = safe_names(proba, Calibration(proba, codes), hierarchy, 0.03)
    assert specificity.max() < 1


def test_a_hierarchy_of_other_types_is_refused(calibration):
    other = Hierarchy.from_parents(["A", "B"], {})
    with pytest.raises(ValueError, match="hierarchy has 2 types, but the probabilities are of 5"):
        safe_names(calibration.proba, calibration, other, 0.05)


# -- Real cells ----------------------------------------------------------------------------------

#: The first four chose the scores, the tree and the groups of thresholds; the last two did not.
REAL = (
    "zheng_pbmc_facs",
    "pbmc3k_seurat",
    "kang_pbmc_ctrl",
    "paul15_myeloid",
    "cite_cbmc",
    "young_kidney",
)
N_SPLITS, N_CELLS, N_GENES = 20, 3000, 500


def exchangeable(cells, seed: int) -> dict[tuple[float, bool], dict[str, float]]:
    """Errors and sizes of one random split, by risk and whether thresholds are in groups.

    Sets have groups by type, safe names by confidence. Half of the cells train a regression, a
    fifth calibrate, the others test.
    """
    rng = np.random.default_rng(seed)
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    chosen = rng.permutation(np.flatnonzero(labels != "nan"))[:N_CELLS]
    counts, labels = sp.csr_matrix(cells.X)[chosen], labels[chosen]
    part = np.repeat([0, 1, 2], np.diff([0, *(len(chosen) * np.array([5, 7, 10]) // 10)]))
    keep = np.isin(labels, labels[part == 0])
    counts, labels, part = counts[keep], labels[keep], part[keep]
    x = np.log1p(counts.toarray() * (1e4 / np.maximum(counts.sum(axis=1).A1, 1))[:, None])
    x = x[:, np.argsort(-x[part == 0].var(axis=0))[:N_GENES]]
    types, codes = np.unique(labels, return_inverse=True)

    fitted, _ = regress(x[part == 0], codes[part == 0], 1.0, 300)
    proba = fitted.predict_proba(x)
    calibration = Calibration(proba[part == 1], codes[part == 1])
    profiles = [x[(part == 0) & (codes == k)].mean(axis=0) for k in range(len(types))]
    hierarchy = Hierarchy.from_profiles(types, np.array(profiles))

    proba, codes = proba[part == 2], codes[part == 2]
    found = {}
    for risk in (0.05, 0.10):
        for grouped in (False, True):
            sets = prediction_sets(proba, calibration, risk, by_type=grouped)
            names, specificity = safe_names(
                proba, calibration, hierarchy, risk, by_confidence=grouped
            )
            found[risk, grouped] = {
                "accuracy": (proba.argmax(axis=1) == codes).mean(),
                "set error": 1 - covered(sets, codes).mean(),
                "set size": sets.sum(axis=1).mean(),
                "error": wrong(names, codes, hierarchy).mean(),
                "specificity": specificity.mean(),
                "types": (specificity == 1).mean(),
                "unknown": (specificity == 0).mean(),
            }
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_risk_holds_on_real_cells(name, read_real):
    cells = read_real(name)
    splits = [pd.DataFrame(exchangeable(cells, seed)) for seed in range(N_SPLITS)]
    table = (sum(splits) / N_SPLITS).T
    print(f"\n{name}\n{table.round(3)}")  # shown by `pytest -s`
    risk = table.index.get_level_values(0)
    assert (table["set error"] <= risk + 0.01).all()
    assert (table["error"] <= risk + 0.01).all()
    # as specific as the errors of the labels allow: not simply coarse names
    assert (table["specificity"] >= 0.6).all()
