"""Arguments of ``annotate`` beyond the method: risk, hierarchies, groups, and verdicts on cells."""

from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from synthetic import TYPES, simulate, simulate_sides

import sctool
from sctool import novelty
from sctool._quality import Doublets, LowQuality
from sctool._verdicts import STATUSES
from sctool.model import AutoClassifier, load
from sctool.novelty import QueryNovelty
from sctool.tl import _annotate, _apply

#: Without the networks, which decide nothing here.
LINEAR = {"model_kwargs": {"adversary": False, "mixmatch": False}}
PARENTS = {"B": "lymphoid", "CD4 T/NK": "lymphoid", "DC": "myeloid", "Mono": "myeloid"}


def sides() -> tuple[ad.AnnData, ad.AnnData]:
    """Return a query, with clusters, and a reference, with lineages."""
    adata, ref = simulate_sides(100, 240)
    ref.obs["lineage"] = ref.obs["cell_type"].map(PARENTS)
    adata.obs["leiden"] = pd.Categorical((np.arange(100) % 4 > 1).astype(int).astype(str))
    adata.obs.loc[adata.obs_names[0], "leiden"] = np.nan
    return adata, ref


@cache
def annotated() -> tuple[ad.AnnData, AutoClassifier]:
    """Return a result with everything that can be asked for; no test may change it."""
    levels = ["lineage", "cell_type"]
    asked = {"labels_key": levels, "risk": 0.1, "groupby": "leiden", "key_added": "my"}
    return sctool.tl.annotate(*sides(), **asked, **LINEAR, copy=True, return_model=True)


def test_sets_and_safe_names_at_a_risk():
    adata = annotated()[0]
    sets, safe = adata.obsm["my_set"], adata.obs["my_safe"]
    assert sets.dtype == bool
    assert sets.shape == (100, len(adata.uns["my"]["classes"]))
    assert isinstance(safe.dtype, pd.CategoricalDtype)
    assert set(safe) <= {*TYPES, *PARENTS.values(), "unknown"}
    names = adata.obs["my"].map({name: i for i, name in enumerate(TYPES)}).astype(int)
    assert sets[np.arange(100), names].all()
    truth = adata.obs["truth"].astype(str)
    above = truth.map(PARENTS)
    right = (safe == truth) | (safe == above) | (safe == "unknown")
    assert right.mean() >= 0.85
    assert (safe == truth).any()
    single = safe.isin(TYPES)
    assert set(adata.obs["my_status"][~single]) <= {"ambiguous", "doublet", "low_quality"}
    assert adata.uns["my"]["params"]["risk"] == 0.1


def test_cells_outside_the_coarser_type_of_their_own_are_noted():
    adata, ref = sides()
    lineage = ref.obs["lineage"].astype(str).to_numpy()
    lineage[np.flatnonzero(ref.obs["cell_type"] == "B")[0]] = "myeloid"
    ref.obs["lineage"] = lineage
    levels = ["lineage", "cell_type"]
    result = sctool.tl.annotate(adata, ref, labels_key=levels, novel=0, **LINEAR, copy=True)
    notes = [note for note in result.uns["sctool"]["audit"] if note.startswith("hierarchy")]
    assert len(notes) == 1
    assert "'B' lies in 'lymphoid'" in notes[0]


def test_a_trained_model_has_no_columns_of_coarser_types():
    with pytest.raises(ValueError, match=r"Leave labels_key out .* or pass hierarchy"):
        sctool.tl.annotate(sides()[0], annotated()[1], labels_key=["lineage", "cell_type"])


def test_a_trained_model_takes_a_risk_of_any_type_of_number():
    adata, model = annotated()
    again = sctool.tl.annotate(adata, model, risk=np.float32(0.1), key_added="again", copy=True)
    assert (again.obsm["again_set"].sum(axis=1) >= 1).all()
    closed = sctool.tl.annotate(adata, model, novel=0, key_added="again", copy=True)
    assert "again_novel" not in closed.obs
    assert "novel" not in set(closed.obs["again_status"])


def test_clusters_are_described_and_their_names_pooled():
    adata = annotated()[0]
    table = adata.uns["my"]["groups"]
    assert list(table.index) == ["0", "1"]
    assert list(table["n_cells"]) == [49, 50]
    assert {*STATUSES[1:], "nearest", "distance", "markers"} <= set(table.columns)
    pooled, names = adata.obs["my_pooled"], adata.obs["my"]
    assert pooled.iloc[0] == names.iloc[0]  # of no cluster
    for cluster, expected in (("0", {"B", "CD4 T/NK"}), ("1", {"DC", "Mono"})):
        inside = adata.obs["leiden"] == cluster
        n = names[inside].value_counts()
        assert set(pooled[inside]) == set(n.index[n >= 20]) == expected
        assert table.loc[cluster, "label"] in expected
        assert table.loc[cluster, "share"] == pytest.approx(n.iloc[0] / n.sum())


def test_everything_survives_a_file(tmp_path):
    adata = annotated()[0]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    for column in ("my", "my_status", "my_safe", "my_pooled"):
        pd.testing.assert_series_equal(read.obs[column], adata.obs[column])
    np.testing.assert_array_equal(read.obsm["my_set"], adata.obsm["my_set"])
    for name in ("groups", "reasons"):
        expected = adata.uns["my"][name]
        assert list(read.uns["my"][name].index) == list(expected.index)
        assert list(read.uns["my"][name].columns) == list(expected.columns)
    assert list(read.uns["my"]["groups"]["markers"]) == list(adata.uns["my"]["groups"]["markers"])
    assert list(read.uns["my"]["alarms"]) == list(adata.uns["my"]["alarms"])


def test_a_hierarchy_that_is_given_is_that_of_the_columns():
    expected, model = annotated()
    result = sctool.tl.annotate(sides()[0], model, hierarchy=PARENTS, risk=0.1, copy=True)
    assert list(result.obs["sctool_safe"]) == list(expected.obs["my_safe"])


def test_the_hierarchy_of_training_is_kept_with_the_model(tmp_path):
    expected, model = annotated()
    assert set(model.hierarchy_.names) == {"unknown", *TYPES, *PARENTS.values()}
    model.save(tmp_path / "model")
    saved = load(tmp_path / "model")
    assert list(saved.hierarchy_.names) == list(model.hierarchy_.names)
    again = sctool.tl.annotate(sides()[0], saved, risk=0.1, copy=True)
    assert list(again.obs["sctool_safe"]) == list(expected.obs["my_safe"])
    # another one holds for one call
    other = {"B": "blood", "Mono": "blood"}
    sctool.tl.annotate(sides()[0], model, hierarchy=other, risk=0.1, copy=True)
    assert "blood" not in model.hierarchy_.names


def test_without_a_hierarchy_the_model_keeps_the_tree_that_it_has_learnt():
    adata, ref = sides()
    model = sctool.tl.annotate(adata, ref, **LINEAR, return_model=True)
    assert not set(model.hierarchy_.names) & set(PARENTS.values())
    inner = set(model.hierarchy_.names) - {"unknown", *TYPES}
    assert inner
    assert all(" / " in name for name in inner)


@pytest.mark.parametrize(("n", "told"), [(1, True), (9, True), (10, False)])
@pytest.mark.parametrize("method", ["auto", "logistic"])
def test_a_type_with_too_few_labelled_cells_is_told_of(method, n, told):
    adata, ref = sides()
    of_type = np.flatnonzero(ref.obs["cell_type"] == "DC")
    ref = ref[np.setdiff1d(np.arange(ref.n_obs), of_type[n:])].copy()
    kwargs = {**LINEAR, "method": "auto"} if method == "auto" else {"method": method}
    sctool.tl.annotate(adata, ref, **kwargs)
    for slot in ("audit", "alarms"):
        notes = [note for note in adata.uns["sctool"][slot] if note.startswith("labels:")]
        assert len(notes) == told
        assert all(f"the types 'DC' ({n}):" in note for note in notes)


def test_nothing_is_written_that_was_not_asked_for():
    adata = sctool.tl.annotate(sides()[0], annotated()[1], copy=True)
    assert not {"sctool_safe", "sctool_pooled"} & set(adata.obs)
    assert "sctool_set" not in adata.obsm
    assert "groups" not in adata.uns["sctool"]


# -- what is no argument -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        *(({"risk": risk}, ValueError, "risk=") for risk in (0.0, 1.0, -0.1, 1, "0.05")),
        ({"risk": 0.1, "method": "logistic"}, ValueError, "holds out no labelled cells"),
        ({"labels_key": ["lineage", "cell_type"], "hierarchy": PARENTS}, ValueError, "one of them"),
        ({"hierarchy": {"B": "x", "x": "y", "y": "x"}}, ValueError, "cycle"),
        ({"hierarchy": {"nothing": "x"}}, ValueError, "neither cell types"),
        ({"labels_key": ["no", "cell_type"]}, KeyError, "no"),
        ({"labels_key": ["cell_type", "lineage"]}, ValueError, "lies in several"),
        ({"groupby": "no"}, KeyError, "no"),
    ],
    ids=[
        *["risk-0", "risk-1", "risk-negative", "risk-int", "risk-text", "risk-of-another-method"],
        *["hierarchy-and-levels", "cycle", "stray", "no-level", "levels-reversed", "no-groupby"],
    ],
)
def test_what_is_wrong_is_said_before_training(given, error, message, monkeypatch):
    monkeypatch.delattr(_annotate, "train_and_predict")
    adata, ref = sides()
    before = adata.obs.copy()
    with pytest.raises(error, match=message):
        sctool.tl.annotate(adata, ref, **given)
    pd.testing.assert_frame_equal(adata.obs, before)
    assert not adata.uns


def test_a_risk_is_refused_for_a_trained_model_of_another_method():
    adata, ref = sides()
    model = sctool.tl.annotate(adata, ref, method="logistic", return_model=True)
    with pytest.raises(ValueError, match=r"LogisticClassifier holds out no labelled cells"):
        sctool.tl.annotate(adata, model, risk=0.1)


# -- verdicts on cells ---------------------------------------------------------------------------


def test_doublets_and_cells_of_low_quality_are_not_novel(monkeypatch):
    adata, ref = simulate(80, seed=1), simulate(120, seed=0)
    ref = ref[ref.obs["cell_type"] != "DC"].copy()
    novel = (adata.obs["cell_type"] == "DC").to_numpy()
    names = np.array([0, 1, 3, 2])[np.arange(80) % 4]
    doublet, low = np.arange(80) < 8, (np.arange(80) >= 4) & (np.arange(80) < 12)
    yes = np.ones(80, dtype=bool)
    doublets = Doublets(doublet.astype(float), np.tile([0, 2], (80, 1)), yes, ["doublets: 8"])
    quality = LowQuality(np.zeros(80), low.astype(int), yes, ["low quality: 8"])
    found = QueryNovelty(np.where(novel, 0.9, 0.1), names, interval={"n": 1, "low": 1, "high": 1})
    monkeypatch.setattr(novelty, "search", lambda *args: found)
    monkeypatch.setattr(_apply, "find_doublets", lambda *args: doublets)
    monkeypatch.setattr(_apply, "find_low_quality", lambda *args: quality)
    sctool.tl.annotate(adata, ref, **LINEAR)
    neither = doublet | low
    assert list(adata.obs["sctool_novel"]) == list(novel & ~neither)
    assert set(adata.obs["sctool_status"][doublet & ~low]) == {"doublet"}
    assert set(adata.obs["sctool_status"][low]) == {"low_quality"}
    assert set(adata.obs["sctool_status"][novel & ~neither]) == {"novel"}
    assert not (adata.obs["sctool"][neither] == "novel_1").any()
    proba = adata.obsm["sctool_proba"]
    np.testing.assert_array_equal(proba[neither, 3], 0)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(proba.max(axis=1), adata.obs["sctool_score"])
    reasons = adata.uns["sctool"]["reasons"]["reason"]
    assert reasons[adata.obs_names[0]] == "mixture of B + Mono"
    assert reasons[adata.obs_names[4]] == "few counts"
    assert {"doublets: 8", "low quality: 8"} <= set(adata.uns["sctool"]["audit"])
    assert adata.uns["sctool"]["novel"]["n_cells"].item() == (novel & ~neither).sum()
