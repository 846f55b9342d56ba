"""Status of cells, names of clusters, and alarms: on arrays, at and beside each threshold."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from sctool import _verdicts
from sctool._label_errors import confused_pairs, describe_pairs
from sctool._quality import Doublets, LowQuality
from sctool._verdicts import (
    STATUSES,
    alarm_agreement,
    alarm_genes,
    alarm_labels,
    alarm_programmes,
    alarm_sensitivity,
    alarm_shares,
    alarm_shift,
    cell_status,
    describe_groups,
    pool_names,
)

CLASSES = ["B", "NK", "T"]


# -- status --------------------------------------------------------------------------------------


def evidence(doublet: list[int], low: list[int]) -> tuple[Doublets, LowQuality]:
    n = len(doublet)
    yes, pair = np.ones(n, dtype=bool), np.tile([0, 2], (n, 1))
    doublets = Doublets(np.array(doublet, dtype=float), pair, yes, [])
    return doublets, LowQuality(np.zeros(n), np.array(low), yes, [])


def test_of_several_verdicts_the_first_counts():
    # each cell has one more of: low quality, doublet, novel, no safe name, a low probability
    score = np.array([0.3, 0.3, 0.3, 0.3, 0.3, 0.9])
    safe = np.array(["B / T"] * 4 + ["B"] * 2, dtype=object)
    doublets, low = evidence([1, 1, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0])
    novel = np.array([1, 1, 1, 0, 0, 0], dtype=bool)
    code, reason = cell_status(score, novel, None, safe, safe == "B", doublets, low, CLASSES)
    assert [STATUSES[i] for i in code] == [
        *["low_quality", "doublet", "novel", "ambiguous", "ambiguous", "assigned"]
    ]
    assert list(reason) == [
        *["few genes", "mixture of B + T", "unlike the known types"],
        *["no name more specific than B / T is safe", "probability 0.30", ""],
    ]


def test_a_cell_without_a_safe_name_is_said_to_have_none():
    safe = np.array(["unknown"], dtype=object)
    score, none = np.array([0.9]), np.zeros(1, dtype=bool)
    code, reason = cell_status(score, None, None, safe, none, None, None, CLASSES)
    assert (STATUSES[code[0]], *reason) == ("ambiguous", "no name is safe")


def test_what_was_not_judged_is_no_verdict():
    code, reason = cell_status(np.array([0.5, 0.499]), *[None] * 6, CLASSES)
    assert [STATUSES[i] for i in code] == ["assigned", "ambiguous"]
    assert list(reason) == ["", "probability 0.50"]


# -- clusters ------------------------------------------------------------------------------------


def test_names_are_pooled_but_minorities_of_twenty_are_kept():
    # in cluster 0 a majority of 0, 20 of 1 and 19 of 2; in cluster 1 all are of 2
    names = np.repeat([0, 1, 2, 2, -1], [50, 20, 19, 3, 2])
    groups = np.r_[np.zeros(89, int), np.ones(3, int), [0, 1]]
    pooled = pool_names(names, groups)
    expected = np.repeat([0, 1, 0, 2, -1], [50, 20, 19, 3, 2])
    np.testing.assert_array_equal(pooled, expected)
    assert names[70] == 2  # the names themselves stay


def test_a_small_cluster_has_a_name_although_none_is_of_twenty_cells():
    np.testing.assert_array_equal(pool_names(np.array([1, 1, 0]), np.zeros(3, int)), [1, 1, 1])


def test_the_table_of_groups_against_pandas():
    rng = np.random.default_rng(0)
    names = rng.choice([-1, 0, 1, 2], 200, p=[0.1, 0.5, 0.3, 0.1])
    groups = pd.Categorical(rng.choice(["10", "2", "x/y"], 200), ["10", "2", "x/y", "empty"])
    groups = groups.remove_categories("empty")
    score, status = rng.random(200), rng.integers(0, 5, 200)
    table = describe_groups(groups, names, CLASSES, score, status)
    cells = pd.DataFrame({"group": groups, "score": score, "status": status, "name": names})
    assert list(table.index) == ["10", "2", "x/y"]
    for group, of in cells.groupby("group", observed=True):
        share = (
            of["name"][of["name"] >= 0].map(dict(enumerate(CLASSES))).value_counts(normalize=True)
        )
        row = table.loc[group]
        assert row["n_cells"] == len(of)
        assert (row["label"], row["second_label"]) == tuple(share.index[:2])
        assert (row["share"], row["second_share"]) == pytest.approx(tuple(share.iloc[:2]))
        assert row["entropy"] == pytest.approx(-(share * np.log2(share)).sum())
        assert row["novel_score"] == pytest.approx(of["score"].mean())
        for code, name in enumerate(STATUSES[1:], start=1):
            assert row[name] == pytest.approx((of["status"] == code).mean())


def test_a_group_of_one_name_or_of_none_has_no_second():
    names, groups = np.array([1, 1, -1]), pd.Categorical(["a", "a", "b"])
    table = describe_groups(groups, names, CLASSES, np.zeros(3), np.zeros(3, int))
    assert list(table["label"]) == ["NK", ""]
    assert list(table["second_label"]) == ["", ""]
    assert list(table["share"]) == [1, 0]
    assert list(table["entropy"]) == [0, 0]
    assert not np.signbit(table["entropy"]).any()  # "-0.0" looks like a fault


# -- alarms --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_query", "of_reference", "alarms"),
    [
        ([45, 5, 50], [99, 1, 100], True),  # 5 % against 0.5 %, ten times as many
        ([45, 5, 50], [99, 2, 99], False),  # 5 % against 1 %
        ([48, 4, 48], [1000, 1, 999], False),  # 80 times as many, but 4 %
        ([45, 5, 50], [50, 0, 50], False),  # of several references, a type of a trained model
    ],
)
def test_an_unlikely_share(of_query, of_reference, alarms):
    names, labels = (np.repeat([0, 1, 2], n) for n in (of_query, of_reference))
    notes = alarm_shares(names, labels, np.array([0.5, 0.012, 0.488]), CLASSES)
    assert len(notes) == alarms
    if notes:
        assert "'NK' are 5.0% of the query" in notes[0]
        assert "1.2% after correction" in notes[0]
        assert "after" not in alarm_shares(names, labels, None, CLASSES)[0]


def test_without_cells_of_known_types_no_share_is_unlikely():
    assert alarm_shares(np.array([], dtype=int), np.array([0, 1]), None, CLASSES) == []


def test_a_low_sensitivity_is_told_of_each_type():
    (note,) = alarm_sensitivity({"B": 0.5, "NK": 0.49, "T": 0.031})
    assert "'NK' 49%, 'T' 3%" in note
    assert "'B'" not in note
    assert alarm_sensitivity({"B": 0.5}) == alarm_sensitivity({}) == []


def test_markers_of_stress_or_of_the_cell_cycle_in_any_case():
    stress, cycle = ["Fos", "JUN", "HSPA8", "ubb"], ["MKI67", "TOP2A", "PCNA", "TYMS"]
    filler = [f"G{i}" for i in range(30)]
    markers = {
        "novel_1": [*stress, *filler],
        "novel_2": [*cycle, *filler],
        "novel_3": [*stress[:3], *cycle[:3], *filler],  # three of each are too few
        "novel_4": [*filler[:17], *stress],  # only three among the best twenty
        "novel_5": [],
    }
    table = pd.DataFrame({"markers": {name: ", ".join(genes) for name, genes in markers.items()}})
    first, second = alarm_programmes(table)
    assert "'novel_1'" in first
    assert "4 of its 20 markers are genes of stress (FOS, HSPA8, JUN, UBB)" in first
    assert "'novel_2'" in second
    assert "cell cycle" in second
    assert all(len(genes) > 20 for genes in _verdicts.PROGRAMMES.values())


def test_names_that_differ_from_those_of_the_groups():
    by_group = np.zeros(100, dtype=int)
    names = by_group.copy()
    names[:10], names[10:15] = 2, 1
    (note,) = alarm_agreement(names, by_group, CLASSES)
    assert "15% of the cells" in note
    assert "'T' in a group of 'B' (10 cells)" in note
    names[0] = 0
    assert alarm_agreement(names, by_group, CLASSES) == []
    assert alarm_agreement(names[:0], by_group[:0], CLASSES) == []


def test_a_score_below_that_of_held_out_cells():
    held_out = np.array([0.875, 1.0])
    (note,) = alarm_shift(np.array([0.75, 0.8]), held_out)
    assert "the mean score is 0.78, but 0.94 for held-out" in note
    assert alarm_shift(np.array([0.84]), held_out) == []
    assert alarm_shift(np.array([]), held_out) == alarm_shift(held_out, np.array([])) == []


def test_few_shared_genes():
    assert alarm_genes(500) == []
    text = "genes: only 499 are shared: similar types may be confused"
    assert alarm_genes(499) == [text]
    pairs = describe_pairs(np.array([[0.9, 0.1, 0], [0.25, 0.75, 0], [0, 0, 1]]), ["A", "B", "C"])
    assert alarm_genes(500, pairs) == []
    assert alarm_genes(499, pairs[:0]) == [text]
    assert alarm_genes(499, pairs) == [
        f"{text}, in held-out cells of the reference 'A' and 'B' (10% of the one and 25% of the "
        "other)"
    ]


def test_only_types_that_the_genes_cannot_tell_apart_are_named():
    # of three types two differ in a gene that is not measured
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2, 3], [300, 60, 60, 1])
    mean = np.where(y[:, None] == 1, [20, 2, 5, 5], [2, 20, 5, 5])
    pairs = confused_pairs(sp.csr_matrix(rng.poisson(mean).astype(np.float32)), y, list("ABCD"), 0)
    assert pairs[["first", "second"]].to_numpy().tolist() == [["A", "C"]]
    assert pairs["overlap"].iloc[0] > 0.8
    alone = confused_pairs(
        sp.csr_matrix(np.ones((3, 2), np.float32)), np.array([0, 0, 1]), ["A", "B"], 0
    )
    assert alone.empty


def test_types_with_too_few_labelled_cells():
    (note,) = alarm_labels(np.repeat([0, 1], [10, 9]), CLASSES)
    assert "'NK' (9)" in note
    assert "'B'" not in note
    assert "'T'" not in note  # of several references, a type of a trained model
    assert alarm_labels(np.repeat([0, 1, 2], 10), CLASSES) == []


def test_of_many_types_with_few_cells_some_are_named():
    """A column of barcodes, say, has as many types as cells."""
    (note,) = alarm_labels(np.arange(300), [f"t{i}" for i in range(300)])
    assert note.count("(1)") == 20
    assert "'t19' (1), and 280 others of 300 types: their cells" in note
