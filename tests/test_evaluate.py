"""``tl.evaluate`` and ``pl.confusion``: an annotation, or a clustering, against known types."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from named import PRED, SEEN, TRUE
from sklearn.metrics import (
    accuracy_score,
    adjusted_rand_score,
    average_precision_score,
    f1_score,
    normalized_mutual_info_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

import sctool
from sctool import _slots

N = len(TRUE)
NOVEL = ["novel_1", "novel_2"]
NAMES = [*SEEN, *NOVEL]
IS_SEEN = np.isin(TRUE, SEEN)


def annotated(
    truth: object = TRUE, pred: list[str] = PRED, novel: list[str] = NOVEL, flags: bool = True
) -> ad.AnnData:
    """Cells as ``tl.annotate`` leaves them, whose names are given."""
    names = [*SEEN, *novel]
    rng = np.random.default_rng(0)
    proba = rng.uniform(0, 0.2, (len(pred), len(names)))
    proba[np.arange(len(pred)), [names.index(name) for name in pred]] += rng.uniform(
        1, 2, len(pred)
    )
    proba = (proba / proba.sum(axis=1, keepdims=True)).astype(np.float32)
    adata = ad.AnnData(obs=pd.DataFrame(index=[f"c{i}" for i in range(len(pred))]))
    adata.obs["type"] = truth
    _slots.write_annotation(
        adata,
        "sctool",
        classes=SEEN,
        novel_classes=novel,
        novel_table=pd.DataFrame(),
        n_novel=None,
        colors={},
        proba=proba,
        latent=proba,
        novel_score=proba[:, len(SEEN) :].sum(axis=1) if novel else 1 - proba.max(axis=1),
        novel=np.isin(pred, novel) if flags else None,
        unseen=np.zeros(len(pred), dtype=bool),
        verdicts=_slots.Verdicts(
            pd.Categorical(["assigned"] * len(pred)),
            np.full(len(pred), "", dtype=object),
            *(None,) * 4,
            alarms=[],
        ),
        params={},
        versions={},
        audit=[],
    )
    return adata


def clustered() -> ad.AnnData:
    """Cells as ``tl.cluster`` leaves them."""
    adata = ad.AnnData(obs=pd.DataFrame({"type": TRUE}, index=[f"c{i}" for i in range(N)]))
    _slots.write_clusters(
        adata,
        "cicl",
        codes=np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 1]),
        names=["0", "1", "2"],
        score=np.ones(N),
        unseen=np.zeros(N, dtype=bool),
        latent=np.ones((N, 2)),
        n_clusters={"n": 3},
        params={},
        versions={},
        audit=[],
    )
    return adata


# -- evaluate ------------------------------------------------------------------------------------


def test_names_are_scored_as_scikit_learn_scores_them():
    adata = annotated()
    score = sctool.tl.evaluate(adata, "type")["value"]
    truth, pred = np.array(TRUE)[IS_SEEN], np.array(PRED)[IS_SEEN]
    present = ["a", "b"]  # no cell is of type c
    expected = {
        "seen_accuracy": accuracy_score(truth, pred),
        "macro_f1": f1_score(truth, pred, labels=present, average="macro"),
        "balanced_accuracy": recall_score(truth, pred, labels=present, average="macro"),
        "ari": adjusted_rand_score(TRUE, PRED),
        "nmi": normalized_mutual_info_score(TRUE, PRED, average_method="max"),
        # novel_1 is matched to X and novel_2 to Y: see named.py
        "novel_accuracy": 3 / 4,
        "overall_accuracy": 6 / 10,
    }
    assert {name: score[name] for name in expected} == pytest.approx(expected)
    assert score["seen_accuracy"] == pytest.approx(0.5)


@pytest.mark.parametrize("text", ["nan", "", "NA", " None "])
@pytest.mark.parametrize("dtype", [object, "category", "string"])
def test_text_for_a_missing_true_type_is_missing(text, dtype, caplog):
    gone = np.arange(N) % 3 == 1
    adata, expected = annotated(), annotated()
    truth = np.array(TRUE, dtype=object)
    adata.obs["type"] = pd.Series(np.where(gone, text, truth), adata.obs_names).astype(dtype)
    expected.obs["type"] = np.where(gone, None, truth)
    found = sctool.tl.evaluate(adata, "type")
    assert [r.message for r in caplog.records] == [
        f"{gone.sum()} cells with [{text!r}] in adata.obs['type'] were treated as cells without a "
        "true type."
    ]
    caplog.clear()
    pd.testing.assert_frame_equal(found, sctool.tl.evaluate(expected, "type"))
    assert caplog.records == []
    assert list(adata.uns["sctool_evaluation"]["types"].index) == list(
        expected.uns["sctool_evaluation"]["types"].index
    )
    drawn = [sctool.pl.confusion(a, "type", ax=plt.subplots()[1]) for a in (adata, expected)]
    assert shares(drawn[0]).tolist() == shares(drawn[1]).tolist()


def test_a_truth_that_is_there_twice_is_refused():
    adata = annotated()
    adata.obs = pd.concat([adata.obs, adata.obs[["type"]]], axis=1)
    with pytest.raises(ValueError, match="truth='type': .* has 2 columns of that name"):
        sctool.tl.evaluate(adata, "type")


def test_novel_cells_are_scored_as_scikit_learn_scores_them():
    adata = annotated()
    score = sctool.tl.evaluate(adata, "type")["value"]
    flagged = np.isin(PRED, NOVEL)
    expected = {
        "novel_recall": recall_score(~IS_SEEN, flagged),
        "novel_precision": precision_score(~IS_SEEN, flagged),
        "false_novel": 1 / 6,
        "novel_auroc": roc_auc_score(~IS_SEEN, adata.obs["sctool_novel_score"]),
    }
    assert {name: score[name] for name in expected} == pytest.approx(expected)


def test_probabilities_are_scored_as_scikit_learn_scores_them():
    adata = annotated()
    score = sctool.tl.evaluate(adata, "type")["value"]
    proba, truth = adata.obsm["sctool_proba"][IS_SEEN], np.array(TRUE)[IS_SEEN]
    columns = {"a": proba[:, 0], "b": proba[:, 1]}
    auprc = {name: average_precision_score(truth == name, p) for name, p in columns.items()}
    auroc = {name: roc_auc_score(truth == name, p) for name, p in columns.items()}
    assert score["mean_auprc"] == pytest.approx(np.mean(list(auprc.values())))
    assert score["mean_auroc"] == pytest.approx(np.mean(list(auroc.values())))
    top = np.argsort(-proba, axis=1)[:, :3]
    assert score["top_3_accuracy"] == pytest.approx(
        np.mean([NAMES.index(t) in row for t, row in zip(truth, top, strict=True)])
    )
    # of ten bins of a probability's width that of a cell, if no two cells share a bin
    confidence, hit = adata.obs["sctool_score"][IS_SEEN], truth == np.array(PRED)[IS_SEEN]
    bins = np.minimum((confidence.to_numpy(dtype=float) * 15).astype(int), 14)
    gaps = [
        abs(confidence[bins == b].mean() - hit[bins == b].mean()) * (bins == b).sum()
        for b in set(bins)
    ]
    assert score["ece"] == pytest.approx(sum(gaps) / IS_SEEN.sum(), abs=1e-6)


def test_every_type_has_a_row():
    adata = annotated()
    sctool.tl.evaluate(adata, "type")
    types = adata.uns["sctool_evaluation"]["types"]
    # c has no cell but was given to one; true types of no name come last
    assert list(types.index) == ["a", "b", "c", "novel_1", "novel_2", "X", "Y"]
    assert types["n_true"].to_dict() == {n: TRUE.count(n) for n in types.index}
    assert types["n_predicted"].to_dict() == {n: PRED.count(n) for n in types.index}
    for name in ("a", "b"):
        truth, pred = np.array(TRUE) == name, np.array(PRED) == name
        assert types.loc[name, "precision"] == pytest.approx(precision_score(truth, pred))
        assert types.loc[name, "recall"] == pytest.approx(recall_score(truth, pred))
        assert types.loc[name, "f1"] == pytest.approx(f1_score(truth, pred))
        column = adata.obsm["sctool_proba"][IS_SEEN, NAMES.index(name)]
        assert types.loc[name, "auprc"] == pytest.approx(
            average_precision_score(truth[IS_SEEN], column)
        )
    # undefined, not 0: c and the groups have no true cell, X and Y no predicted one
    assert np.isnan(types.loc[["c", *NOVEL], "recall"]).all()
    assert np.isnan(types.loc[["X", "Y"], "precision"]).all()
    assert types.loc[["c", *NOVEL], "precision"].eq(0).all()
    assert types.loc[["X", "Y"], "recall"].eq(0).all()
    assert np.isnan(types.loc[["c", *NOVEL, "X", "Y"], "auprc"]).all()


def test_a_clustering_is_scored_without_names():
    adata = clustered()
    scores = sctool.tl.evaluate(adata, "type", key="cicl")["value"]
    codes = adata.obs["cicl"].astype(str)
    assert scores.to_dict() == pytest.approx(
        {
            "ari": adjusted_rand_score(TRUE, codes),
            "nmi": normalized_mutual_info_score(TRUE, codes, average_method="max"),
            "n_types": 4,
            "n_clusters": 3,
        }
    )
    assert set(adata.uns["cicl_evaluation"]) == {"scores"}


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA], ids=["None", "nan", "NA"])
@pytest.mark.parametrize("dtype", ["object", "category", "string"])
def test_cells_without_a_known_type_are_left_out(missing, dtype):
    more = annotated([*TRUE, missing, missing], [*PRED, "a", "novel_1"])
    more.obs["type"] = more.obs["type"].astype(dtype)
    expected = annotated()
    for slot in (more.obs, more.obsm):  # whose first cells are the others
        for name in ("sctool_score", "sctool_novel_score", "sctool_proba"):
            if name in slot:
                values = np.asarray(slot[name])[:N]
                (expected.obs if slot is more.obs else expected.obsm)[name] = values
    scores = sctool.tl.evaluate(more, "type")
    pd.testing.assert_frame_equal(scores, sctool.tl.evaluate(expected, "type"))
    for name in ("scores", "types"):
        tables = [a.uns["sctool_evaluation"][name] for a in (more, expected)]
        pd.testing.assert_frame_equal(*tables)


def test_types_are_compared_by_name_whatever_the_dtype():
    adata = annotated()
    expected = sctool.tl.evaluate(adata, "type")
    adata.obs["type"] = pd.Categorical(TRUE, categories=["Y", "unused", "X", "b", "a"])
    pd.testing.assert_frame_equal(sctool.tl.evaluate(adata, "type"), expected)


def unnamed(adata: ad.AnnData, key: str = "sctool", cells: slice = slice(0, 0)) -> ad.AnnData:
    """Cells as annotate leaves those that express nothing."""
    obs, names = adata.obs, adata.obs_names[cells]
    obs.loc[names, key] = np.nan
    for column in (f"{key}_score", f"{key}_novel_score"):
        if column in obs:
            obs.loc[names, column] = 0
    if f"{key}_novel" in obs:
        obs.loc[names, f"{key}_novel"] = False
    if f"{key}_proba" in adata.obsm:
        adata.obsm[f"{key}_proba"][cells] = 0
    return adata


@pytest.mark.parametrize("called", [None, "unassigned"])
def test_cells_without_a_predicted_name_are_wrong(called):
    # the first was right; the sixth was wrong, the seventh, of X, in the group of its type
    cells = [0, 5, 6]
    truth = [t if called is None or t != "X" else called for t in TRUE]
    adata = unnamed(annotated(truth), cells=cells)
    score = sctool.tl.evaluate(adata, "type")["value"]
    assert score["seen_accuracy"] == pytest.approx(2 / 6)
    assert score["novel_accuracy"] == pytest.approx(2 / 4)
    assert score["overall_accuracy"] == pytest.approx(4 / 10)
    # a stands for any wrong name that is no type of the truth
    pred = np.array(PRED, dtype=object)
    pred[cells] = "other"
    groups = np.unique(pred, return_inverse=True)[1]
    assert score["ari"] == pytest.approx(adjusted_rand_score(truth, groups))
    right = f1_score(
        np.array(TRUE)[IS_SEEN], pred[IS_SEEN].astype(str), labels=["a", "b"], average="macro"
    )
    assert score["macro_f1"] == pytest.approx(right)
    types = adata.uns["sctool_evaluation"]["types"]
    assert list(types.index) == ["a", "b", "novel_1", "novel_2", *sorted({*truth} - {"a", "b"})]
    assert types["n_predicted"].sum() == N - 3
    assert types["n_true"].sum() == N


def test_novel_cells_without_a_predicted_name_are_no_group():
    # of the four novel cells none has a name; as a group they would be the cells of X
    adata = unnamed(annotated(), cells=slice(6, 10))
    score = sctool.tl.evaluate(adata, "type")["value"]
    assert score["novel_accuracy"] == score["novel_recall"] == 0


def test_cells_without_a_cluster_are_no_cluster():
    adata = unnamed(clustered(), "cicl", cells=slice(0, 2))
    score = sctool.tl.evaluate(adata, "type", key="cicl")["value"]
    assert score["n_clusters"] == 3
    codes = adata.obs["cicl"].astype(object).fillna("none").astype(str)
    assert score["ari"] == pytest.approx(adjusted_rand_score(TRUE, codes))


def test_all_cells_without_a_name_are_all_wrong():
    adata = unnamed(annotated(), cells=slice(0, N))
    score = sctool.tl.evaluate(adata, "type")["value"]
    assert score["overall_accuracy"] == score["macro_f1"] == 0
    assert labels(sctool.pl.confusion(adata, "type"))[1] == ["unassigned"]


def test_without_novel_cells_their_scores_are_undefined():
    pred = ["a", "a", "b", "a", "b", "c"]
    adata = annotated(TRUE[:6], pred, novel=[], flags=False)
    scores = sctool.tl.evaluate(adata, "type")["value"]
    assert np.isnan(scores[["novel_accuracy", "novel_auroc"]]).all()
    assert not {"novel_recall", "novel_precision", "false_novel"} & set(scores.index)
    assert scores["overall_accuracy"] == scores["seen_accuracy"] == pytest.approx(4 / 6)


def test_a_score_above_1_by_rounding_is_no_error():
    adata = annotated()
    adata.obs["sctool_score"] = np.float32(1) + np.finfo(np.float32).eps
    assert np.isfinite(sctool.tl.evaluate(adata, "type").loc["ece", "value"])


@pytest.mark.parametrize("make", [annotated, clustered], ids=["annotation", "clustering"])
def test_the_tables_are_kept_with_the_cells(make, tmp_path):
    adata = make()
    key = "sctool" if make is annotated else "cicl"
    before = adata.copy()
    scores = sctool.tl.evaluate(adata, "type", key=key)
    assert type(scores) is pd.DataFrame
    assert list(scores.columns) == ["value"]
    assert scores["value"].dtype == float
    pd.testing.assert_frame_equal(scores, adata.uns[f"{key}_evaluation"]["scores"])
    assert scores is not adata.uns[f"{key}_evaluation"]["scores"]
    assert set(adata.uns) == set(before.uns) | {f"{key}_evaluation"}
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    for name, table in adata.uns[f"{key}_evaluation"].items():
        again = read.uns[f"{key}_evaluation"][name]
        pd.testing.assert_frame_equal(again, table, check_index_type=False)
    read_scores = sctool.tl.evaluate(read, "type", key=key)
    pd.testing.assert_frame_equal(read_scores, scores)


def test_a_view_becomes_an_object_of_its_own():
    adata = annotated()
    view = adata[:6]
    scores = sctool.tl.evaluate(view, "type")
    assert not view.is_view
    assert "sctool_evaluation" in view.uns
    assert "sctool_evaluation" not in adata.uns
    pd.testing.assert_frame_equal(scores, sctool.tl.evaluate(adata[:6].copy(), "type"))


def test_a_real_annotation_is_scored(adata, ref):
    sctool.tl.annotate(adata, ref, method="logistic", key_added="mine")
    scores = sctool.tl.evaluate(adata, "truth", key="mine")["value"]
    share = (adata.obs["mine"].astype(str) == adata.obs["truth"].astype(str)).mean()
    assert scores["seen_accuracy"] == pytest.approx(share)
    assert list(adata.uns["mine_evaluation"]["types"].index) == list(adata.uns["mine"]["classes"])


# -- confusion -----------------------------------------------------------------------------------


def shares(ax: Axes) -> np.ndarray:
    """What is drawn, in per cent."""
    return 100 * np.asarray(ax.images[0].get_array())


def labels(ax: Axes) -> tuple[list[str], list[str]]:
    rows, columns = ax.get_yticklabels(), ax.get_xticklabels()
    return [label.get_text() for label in rows], [label.get_text() for label in columns]


def test_rows_are_true_types_in_per_cent():
    ax = sctool.pl.confusion(annotated(), "type")
    assert isinstance(ax, Axes)
    rows, columns = labels(ax)
    # in the order of the names; true types of no name come last
    assert rows == ["a (4)", "b (2)", "X (3)", "Y (1)"]
    assert columns == NAMES
    expected = [
        [50, 25, 0, 25, 0],
        [0, 50, 50, 0, 0],
        [100 / 3, 0, 0, 200 / 3, 0],
        [0, 0, 0, 0, 100],
    ]
    np.testing.assert_allclose(shares(ax), expected)
    np.testing.assert_allclose(shares(ax).sum(axis=1), 100)


def test_types_that_were_never_predicted_keep_their_place():
    adata = annotated(truth=["b", *TRUE[1:]], pred=["c"] * len(TRUE), novel=[])
    rows, columns = labels(sctool.pl.confusion(adata, "type"))
    assert columns == ["c"]
    assert [row.split()[0] for row in rows] == ["a", "b", "X", "Y"]


def test_shares_are_written_into_the_cells():
    ax = sctool.pl.confusion(annotated(), "type")
    written = {text.get_position(): text.get_text() for text in ax.texts}
    drawn = shares(ax)
    expected = {(j, i): f"{drawn[i, j]:.0f}" for i, j in zip(*np.nonzero(drawn), strict=True)}
    assert written == expected
    assert written[(3, 2)] == "67"


def test_a_clustering_is_drawn_too():
    ax = sctool.pl.confusion(clustered(), "type", key="cicl")
    assert labels(ax) == (["X (3)", "Y (1)", "a (4)", "b (2)"], ["0", "1", "2"])
    np.testing.assert_allclose(shares(ax), [[0, 0, 100], [0, 100, 0], [100, 0, 0], [0, 100, 0]])


def test_cells_without_a_known_type_are_not_drawn():
    adata = annotated([*TRUE, None, None], [*PRED, "a", "novel_1"])
    ax = sctool.pl.confusion(adata, "type")
    np.testing.assert_allclose(shares(ax), shares(sctool.pl.confusion(annotated(), "type")))


@pytest.mark.parametrize("called", ["X", "unassigned"])
def test_cells_without_a_predicted_name_have_a_column_of_their_own(called):
    truth = [called if t == "X" else t for t in TRUE]
    adata = unnamed(annotated(truth), cells=[0, 6])
    ax = sctool.pl.confusion(adata, "type")
    rows, columns = labels(ax)
    assert rows == ["a (4)", "b (2)", *sorted([f"{called} (3)", "Y (1)"])]
    assert columns == [*NAMES, "(unassigned)" if called == "unassigned" else "unassigned"]
    np.testing.assert_allclose(
        shares(ax)[:, -1], [25, 0, *([100 / 3, 0] if called == "X" else [0, 100 / 3])]
    )
    np.testing.assert_allclose(shares(ax).sum(axis=1), 100)


def test_sixty_types_are_drawn_without_numbers():
    names = [f"type {i:02d}" for i in range(60)]
    rng = np.random.default_rng(0)
    truth = np.repeat(names, 5)
    pred = np.where(rng.random(300) < 0.8, truth, rng.permutation(truth))
    adata = ad.AnnData(obs=pd.DataFrame({"type": truth}, index=[f"c{i}" for i in range(300)]))
    adata.obs["sctool"] = pd.Categorical(pred, categories=names)
    ax = sctool.pl.confusion(adata, "type")
    ax.figure.canvas.draw()
    rows, columns = labels(ax)
    assert rows == [f"{name} (5)" for name in names]
    assert columns == names
    np.testing.assert_allclose(shares(ax).sum(axis=1), 100)
    assert not ax.texts
    width, height = ax.figure.get_size_inches()
    assert min(width, height) > 15


def test_given_axes_are_drawn_on():
    figure, (left, right) = plt.subplots(1, 2)
    assert sctool.pl.confusion(annotated(), "type", ax=right) is right
    assert not left.has_data()
    assert plt.get_fignums() == [figure.number]
    figure.canvas.draw()


# -- what is refused, of both --------------------------------------------------------------------

BOTH = pytest.mark.parametrize(
    "compare", [sctool.tl.evaluate, sctool.pl.confusion], ids=["evaluate", "confusion"]
)


@BOTH
def test_a_missing_annotation_is_named(compare):
    with pytest.raises(KeyError, match="'other'"):
        compare(annotated(), "type", key="other")


@BOTH
def test_a_missing_truth_is_named_with_what_there_is(compare):
    with pytest.raises(KeyError, match=r"'truth'.* is not in adata.obs; found \['type', 'sctool'"):
        compare(annotated(), "truth")


@BOTH
def test_no_known_type_at_all_is_an_error(compare):
    with pytest.raises(ValueError, match=r"adata.obs\['type'\] has only missing values"):
        compare(annotated([np.nan] * N), "type")


def test_a_column_that_is_no_annotation_is_refused():
    adata = annotated()
    adata.obs["mine"] = adata.obs["sctool"]
    with pytest.raises(KeyError, match=r"key='mine' is not in adata: call sctool.tl.annotate"):
        sctool.tl.evaluate(adata, "type", key="mine")
    del adata.obs["sctool"]
    with pytest.raises(KeyError, match=r"key='sctool' is not in adata"):
        sctool.tl.evaluate(adata, "type")
