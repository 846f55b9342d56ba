"""What may be in a query: probabilities by Bayes' rule, and cells that do not fit."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from synthetic import TYPES, simulate, simulate_sides

import sctool
from sctool import novelty
from sctool._expected import Expected, Fit
from sctool._verdicts import alarm_prior, alarm_unexpected, cell_status
from sctool.model import LogisticClassifier
from sctool.novelty import QueryNovelty

CLASSES = ["B", "NK", "T"]
LINEAR = {"model_kwargs": {"adversary": False, "mixmatch": False}}


def random_proba(n: int, k: int) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.full(k, 0.5), n)


def trained() -> tuple[ad.AnnData, LogisticClassifier]:
    """Return a query, whose types are in ``obs["truth"]``, and a model without its cells."""
    adata, ref = simulate_sides(200, 240)
    ref = ref[~((ref.obs["cell_type"] == "B") & (np.arange(240) % 3 > 0))].copy()  # 20 of 200
    return adata, sctool.tl.annotate(adata, ref, method="logistic", copy=True, return_model=True)[1]


# -- probabilities -------------------------------------------------------------------------------


def test_shares_change_probabilities_by_bayes_rule():
    proba, usual = random_proba(50, 3), np.array([0.5, 0.3, 0.2])
    prior = {"T": 30, "B": 10}  # of no sum, in another order, and without NK
    result, fit = Expected.read(None, prior, CLASSES).apply(proba, CLASSES, usual)
    new = {"B": 0.25, "NK": 0.0, "T": 0.75}
    for cell, row in zip(proba, result, strict=True):
        # p(type | x) = p(x | type) p(type), and p(x | type) is p_old(type | x) / p_old(type)
        likelihood = [p / share for p, share in zip(cell, usual, strict=True)]
        joint = [like * new[name] for like, name in zip(likelihood, CLASSES, strict=True)]
        np.testing.assert_allclose(row, np.array(joint) / sum(joint), rtol=1e-12)
    np.testing.assert_allclose(fit.outside, proba[:, 1])
    np.testing.assert_allclose(fit.expected, [0.25, 0, 0.75])
    np.testing.assert_allclose(fit.found, proba.mean(axis=0))


def test_shares_of_training_as_prior_and_all_types_as_allowed_change_nothing():
    proba, usual = random_proba(50, 3), np.array([0.5, 0.3, 0.2])
    prior = dict(zip(CLASSES, usual, strict=True))
    for expected in (Expected.read(None, prior, CLASSES), Expected.read(CLASSES, None, CLASSES)):
        result, fit = expected.apply(proba, CLASSES, usual)
        np.testing.assert_allclose(result, proba, rtol=1e-12)
        assert not fit.unexpected.any()


def test_novel_groups_keep_their_probability():
    proba = random_proba(50, 5)  # the last two are novel
    result, fit = Expected.read(["NK", "T"], None, CLASSES).apply(proba, CLASSES, None)
    np.testing.assert_array_equal(result[:, 3:], proba[:, 3:])
    np.testing.assert_allclose(result.sum(axis=1), 1)
    assert not result[:, 0].any()
    np.testing.assert_allclose(result[:, 1] / result[:, 2], proba[:, 1] / proba[:, 2])
    np.testing.assert_allclose(fit.outside, proba[:, 0] / proba[:, :3].sum(axis=1))
    known = proba[proba.argmax(axis=1) < 3, :3].sum(axis=0)
    np.testing.assert_allclose(fit.found, known / known.sum())


def test_cells_surely_of_a_type_that_is_not_allowed_get_no_certain_name():
    proba = np.array([[1, 0, 0], [0, 0, 0]], dtype=np.float32)  # the second expresses nothing
    result, fit = Expected.read(["NK", "T"], None, CLASSES).apply(proba, CLASSES, None)
    np.testing.assert_array_equal(result, [[0, 0.5, 0.5], [0, 0, 0]])
    assert result.dtype == np.float32
    assert list(fit.unexpected) == [True, False]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"allowed": ["b", "T", "X"]},
            ValueError,
            r"not know: 'b' \(close: 'B'\), 'X'\. It knows 3",
        ),
        ({"allowed": []}, ValueError, "allowed is empty"),
        ({"allowed": "T"}, TypeError, r"allowed='T': pass a list"),
        ({"allowed": 3}, TypeError, "pass a list"),
        ({"allowed": ["T"], "prior": {"T": 1}}, ValueError, "pass one of them"),
        ({"prior": {}}, ValueError, "prior is empty"),
        ({"prior": ["T"]}, TypeError, "pass a dictionary"),
        ({"prior": {"Tcell": 1}}, ValueError, "prior names types"),
        ({"prior": {"T": "many"}}, TypeError, "must be numbers"),
        *(
            ({"prior": {"T": share, "B": other}}, ValueError, "finite, 0 or more, and not all 0")
            for share, other in ((-0.1, 1), (np.nan, 1), (np.inf, 1), (0, 0))
        ),
    ],
    ids=[
        *["unknown", "empty", "text", "number", "both", "empty-prior", "list", "unknown-prior"],
        *["not-a-number", "negative", "nan", "infinite", "all-zero"],
    ],
)
def test_what_is_wrong_is_said(given, error, message):
    with pytest.raises(error, match=message):
        Expected.read(given.get("allowed"), given.get("prior"), CLASSES)


# -- verdicts ------------------------------------------------------------------------------------


def test_cells_that_fit_no_allowed_type_are_told_of_and_novelty_comes_first():
    outside, other = np.array([0.5, 0.51, 0.9]), np.array([2, 2, 1])
    fit = Fit(np.array([1.0, 0, 0]), outside, other, None, np.array([1.0, 0, 0]))
    novel = np.array([False, False, True])
    code, reason = cell_status(np.array([1.0] * 3), novel, fit, None, None, None, None, CLASSES)
    assert list(code) == [0, 2, 3]
    assert reason[1] == "0.51 on types not allowed, most on T"


def test_many_unexpected_cells_raise_an_alarm_with_their_types():
    outside = np.where(np.arange(100) < 5, 0.9, 0.1)
    other = np.where(np.arange(100) < 3, 2, 1)
    fit = Fit(np.array([1.0, 0, 0]), outside, other, None, np.array([1.0, 0, 0]))
    (alarm,) = alarm_unexpected(fit, np.ones(100, dtype=bool), CLASSES)
    assert alarm.startswith("allowed: 5.0% of the query's known cells (5) fit types that are not")
    assert "'T' (3), 'NK' (2):" in alarm
    assert alarm_unexpected(fit, np.arange(100) > 0, CLASSES) == []  # 4 of 99


def test_shares_far_from_those_found_raise_an_alarm():
    nothing, found = np.zeros(0), np.array([0.1, 0.3, 0.6])
    near = Fit(np.ones(3), nothing, nothing, np.array([0.3, 0.3, 0.4]), found)
    assert alarm_prior(near, CLASSES) == []
    far = Fit(np.ones(3), nothing, nothing, np.array([0.5, 0.3, 0.2]), found)
    (alarm,) = alarm_prior(far, CLASSES)
    assert "40.0% of the query" in alarm
    assert "'B', of which 50.0% are expected and 10.0% found" in alarm


# -- annotate ------------------------------------------------------------------------------------


def test_only_allowed_types_are_named_and_the_others_cells_are_flagged(tmp_path):
    adata, model = trained()
    before, weights = adata.copy(), model.module.head.weight.clone()
    allowed = ["Mono", "CD4 T/NK", "B"]
    result = sctool.tl.annotate(adata, model, allowed=allowed, copy=True)
    free = sctool.tl.annotate(adata, model, copy=True)
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert not adata.uns
    assert allowed == ["Mono", "CD4 T/NK", "B"]
    assert (model.module.head.weight == weights).all()

    assert set(result.obs["sctool"]) == set(allowed)
    assert list(result.uns["sctool"]["classes"]) == TYPES
    assert not result.obsm["sctool_proba"][:, TYPES.index("DC")].any()
    np.testing.assert_allclose(result.obsm["sctool_proba"].sum(axis=1), 1, atol=1e-6)
    flagged = result.obs["sctool_status"] == "unexpected"
    is_dc = (adata.obs["truth"] == "DC").to_numpy()
    assert flagged[is_dc].mean() > 0.9
    assert flagged[~is_dc].mean() < 0.05
    own = free.obsm["sctool_proba"][:, TYPES.index("DC")]
    assert list(flagged) == list(own > 0.5)
    reasons = result.uns["sctool"]["reasons"]
    assert reasons["reason"][reasons["status"] == "unexpected"].str.endswith("most on DC").all()
    (alarm,) = [a for a in result.uns["sctool"]["alarms"] if a.startswith("allowed:")]
    assert f"({flagged.sum()})" in alarm
    assert f"'DC' ({flagged.sum()})" in alarm
    assert "allowed: 3 of 4 known types may be named" in result.uns["sctool"]["audit"]

    model.save(tmp_path / "model")
    again = sctool.tl.annotate(adata, tmp_path / "model", allowed=iter(allowed), copy=True)
    np.testing.assert_array_equal(again.obsm["sctool_proba"], result.obsm["sctool_proba"])
    result.write_h5ad(tmp_path / "cells.h5ad")
    params = ad.read_h5ad(tmp_path / "cells.h5ad").uns["sctool"]["params"]
    assert list(params["allowed"]) == allowed


def test_a_saved_model_knows_the_shares_of_its_training(tmp_path):
    adata, model = trained()
    expected = np.array([30, 60, 60, 60]) / 210  # B has 20, and weighs half the median
    np.testing.assert_allclose(model.class_shares_, expected)
    model.save(tmp_path / "model")
    free = sctool.tl.annotate(adata, model, copy=True).obsm["sctool_proba"].astype(float)
    prior = {"B": 0.7, "CD4 T/NK": 0.1, "DC": 0.1, "Mono": 0.1}
    for ref in (model, tmp_path / "model"):
        result = sctool.tl.annotate(adata, ref, prior=prior, copy=True)
        ratio = free * np.array(list(prior.values())) / expected
        by_hand = ratio / ratio.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(result.obsm["sctool_proba"], by_hand, atol=1e-5)
        (alarm,) = [a for a in result.uns["sctool"]["alarms"] if a.startswith("prior:")]
        assert "'B', of which 70.0% are expected" in alarm
    result.write_h5ad(tmp_path / "cells.h5ad")
    stored = ad.read_h5ad(tmp_path / "cells.h5ad").uns["sctool"]["params"]["prior"]
    assert dict(zip(stored["types"], stored["shares"], strict=True)) == pytest.approx(prior)
    model.class_shares_ = None  # as of a model that others trained
    result = sctool.tl.annotate(adata, model, prior=dict.fromkeys(TYPES, 3), copy=True)
    np.testing.assert_allclose(result.obsm["sctool_proba"], free, atol=1e-6)
    assert any("equal shares are assumed" in note for note in result.uns["sctool"]["audit"])


def test_sets_safe_names_and_groups_follow():
    adata, ref = simulate_sides(120, 240)
    adata.obs["cluster"] = adata.obs["truth"].astype(str)
    kwargs = {"risk": 0.1, "novel": 0, "groupby": "cluster", "copy": True, **LINEAR}
    result = sctool.tl.annotate(adata, ref, allowed=["B", "Mono", "DC"], **kwargs)
    at = TYPES.index("CD4 T/NK")
    flagged = (result.obs["sctool_status"] == "unexpected").to_numpy()
    assert flagged[adata.obs["truth"] == "CD4 T/NK"].mean() > 0.8
    sets, safe = result.obsm["sctool_set"], result.obs["sctool_safe"]
    assert not sets[~flagged, at].any()
    assert sets[flagged].all()
    assert set(safe[flagged]) == {"unknown"}
    truth = adata.obs["truth"].astype(str)
    assert (safe == truth)[~flagged & (truth != "CD4 T/NK")].mean() > 0.8
    groups = result.uns["sctool"]["groups"]
    assert groups.loc["CD4 T/NK", "unexpected"] > 0.8
    assert "CD4 T/NK" not in set(groups["label"]) | set(result.obs["sctool_pooled"])


def test_novel_groups_are_found_whatever_is_allowed(monkeypatch):
    adata, ref = simulate(120, seed=1), simulate(240, seed=0)
    ref = ref[ref.obs["cell_type"] != "DC"].copy()
    novel = (adata.obs["cell_type"] == "DC").to_numpy()
    names = np.array([0, 1, 3, 2])[np.arange(120) % 4]
    found = QueryNovelty(np.where(novel, 0.9, 0.1), names, interval={"n": 1, "low": 1, "high": 1})
    monkeypatch.setattr(novelty, "search", lambda *args: found)
    kwargs = {"copy": True, **LINEAR}
    free = sctool.tl.annotate(adata, ref, **kwargs)
    result = sctool.tl.annotate(adata, ref, allowed=["B", "Mono"], **kwargs)
    assert (free.obs["sctool"] == "novel_1").sum() > 20
    quality = free.obs["sctool_status"].isin(["doublet", "low_quality"])
    np.testing.assert_array_equal(free.obs["sctool_novel_score"], result.obs["sctool_novel_score"])
    np.testing.assert_allclose(
        free.obsm["sctool_proba"][~quality, 3], result.obsm["sctool_proba"][~quality, 3], atol=1e-6
    )
    assert "unexpected" not in set(result.obs["sctool_status"][result.obs["sctool_novel"]])
    assert set(result.obs["sctool"]) <= {"B", "Mono", "novel_1"}


def test_wrong_types_are_refused_before_training_and_by_a_trained_model(sides, monkeypatch):
    adata, ref = sides
    model = sctool.tl.annotate(adata, ref, method="logistic", return_model=True, copy=True)[1]
    monkeypatch.delattr("sctool.tl._annotate.train_and_predict")
    for source in (ref, model):
        with pytest.raises(ValueError, match=r"'Monos' \(close: 'Mono'\)"):
            sctool.tl.annotate(adata, source, allowed=["Monos"])
    assert not adata.uns
