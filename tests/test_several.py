"""Several references: types that are the same or parts of others, and one answer."""

import re
from itertools import permutations
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from synthetic import TYPES, simulate, simulate_sides

import sctool
from sctool import _several
from sctool._expected import Expected
from sctool.cli import main
from sctool.tl import _several as _tool
from sctool.tl import _sources
from sctool.tl._several import _novel_groups
from sctool.tl._sources import Source

QUICK = {"method": "logistic", "train_kwargs": {"enable_progress_bar": False}}
NAN = np.nan


# -- alignment -----------------------------------------------------------------------------------


def align(types, shares=None, terms=None):
    names = [f"ref{i}" for i in range(1, len(types) + 1)]
    return _several.align(names, types, terms or [{}] * len(types), shares or {})


def test_types_are_the_same_by_name_then_by_term():
    found = align([["B", "CD4 T", "x1"], ["CD4+ T cells", "B cell", "x2"], ["B", "x1"]])
    assert found.names == ["B", "CD4 T", "x1", "x2"]
    assert found.members[1].argmax(axis=1).tolist() == [1, 0, 3]
    assert found.table["name"].tolist() == ["B", "CD4 T", "x1", "CD4 T", "B", "x2", "B", "x1"]
    assert found.table["how"].tolist() == [
        *("name", "ontology", "name"),
        *("ontology", "ontology", "only here"),
        *("name", "name"),
    ]


def test_a_type_is_part_of_a_more_general_term():
    found = align([["T cell", "B"], ["CD4 T", "CD8 T", "B"]])
    assert found.names == ["B", "CD4 T", "CD8 T"]
    assert found.members[0].tolist() == [[False, True, True], [True, False, False]]
    table = found.table.set_index("type")
    assert table.loc["T cell", "name"] == "CD4 T / CD8 T"
    assert table.loc["CD8 T", "part_of"] == "T cell"


def test_terms_that_a_reference_brings_go_before_its_names():
    found = align([["x1"], ["y1"]], terms=[{"x1": "CL:0000236"}, {"y1": "CL:0000236"}])
    assert found.names == ["x1"]


def test_types_are_compared_by_cells():
    # a = p; b holds q and r; c and s resemble others but are only here
    there = np.array([[0.9, 0, 0, 0], [0.1, 0.4, 0.5, 0], [0.3, 0.3, 0.3, 0.1]])
    back = np.array([[0.8, 0.1, 0], [0, 0.9, 0], [0, 0.7, 0.2], [0.0, 0.9, 0.0]])
    found = align(
        [["x-a", "x-b", "x-c"], ["y-p", "y-q", "y-r", "y-s"]], {(0, 1): there, (1, 0): back}
    )
    assert found.names == ["x-a", "x-c", "y-q", "y-r", "y-s"]
    holds = dict(zip(found.table["type"], found.table["name"], strict=True))
    assert holds["y-p"] == "x-a"
    assert holds["x-b"] == "y-q / y-r"
    how = dict(zip(found.table["type"], found.table["how"], strict=True))
    assert how["y-q"] == "cells"
    assert how["x-c"] == how["y-s"] == "only here"


def test_a_type_without_an_equal_is_not_part_of_one_that_has_its_own():
    # y-nk is taken for the similar x-t, which y has as well
    there, back = np.array([[0.95, 0.05]]), np.array([[0.9], [1.0]])
    found = align([["x-t"], ["x-t", "y-nk"]], {(0, 1): there, (1, 0): back})
    assert found.names == ["x-t", "y-nk"]
    assert found.members[0].tolist() == [[True, False]]


def test_types_without_cells_are_only_here():
    shares = {(0, 1): np.full((1, 1), NAN), (1, 0): np.full((1, 1), NAN)}
    assert align([["x1"], ["y1"]], shares).names == ["x1", "y1"]


def test_shares_by_type():
    codes, found = np.array([0, 0, 0, 0, 1, -1]), np.array([1, 1, 0, 2, 0, 0])
    shares = _several.shares_by_type(codes, found, 3, 2)  # 2 is a novel group
    np.testing.assert_allclose(shares, [[0.25, 0.5], [1, 0], [NAN, NAN]])


# -- pooling -------------------------------------------------------------------------------------


def pool(probas, members, weights, novelty=0.0):
    n = len(probas)
    novelty = np.broadcast_to(np.asarray(novelty, dtype=float), n)[:, None]
    return _several.pool(
        [np.array([p]) for p in probas],
        [np.array(m, dtype=bool) for m in members],
        np.array(weights, dtype=float)[:, None],
        novelty,
    )[0]


def test_pooled_probabilities_of_the_same_types_are_their_weighted_mean():
    own = np.eye(3)
    found = pool([[0.8, 0.2, 0], [0.2, 0.2, 0.6]], [own, own], [3, 1])
    np.testing.assert_allclose(found, [0.65, 0.2, 0.15], atol=1e-6)


def test_a_coarser_type_leaves_its_parts_to_others():
    # T, Mono against CD4, CD8, Mono
    found = pool([[0.9, 0.1], [0.1, 0.3, 0.6]], [[[1, 1, 0], [0, 0, 1]], np.eye(3)], [1, 1])
    np.testing.assert_allclose(found[2], 0.35, atol=1e-3)
    np.testing.assert_allclose(found[1] / found[0], 3, rtol=1e-2)


@pytest.mark.parametrize(("novelty", "low", "high"), [(0.0, 0.5, 0.75), (0.9, 0.85, 1.0)])
def test_a_type_that_one_reference_knows_stays_possible(novelty, low, high):
    # CD8 alone against CD8, NK
    found = pool([[1.0], [0.05, 0.95]], [[[1, 0]], np.eye(2)], [1, 1], [novelty, 0])
    assert low < found[1] < high


def test_a_reference_that_hardly_counts_cannot_force_its_own_type():
    found = pool([[1.0], [0.05, 0.95]], [[[1, 0]], np.eye(2)], [9, 1])
    assert found[1] < 0.3


def test_references_count_by_what_they_are_worth():
    ones, none = np.ones(2), np.zeros((2, 3))

    def weigh(
        reliability=ones, transfer=ones, retained=ones, distance=ones, novelty=none, unseen=none
    ):
        given = (reliability, transfer, retained, distance, novelty, unseen.astype(bool))
        return _several.weigh(*given)

    np.testing.assert_allclose(weigh(), 0.5)
    assert weigh(reliability=np.array([0.9, 0.1]))[0].min() > 0.98
    assert weigh(reliability=np.array([0.9, NAN]))[0].max() == pytest.approx(0.5)
    np.testing.assert_allclose(weigh(transfer=np.array([0.8, 0.4]))[0], 0.8)
    np.testing.assert_allclose(weigh(transfer=np.array([0.8, NAN]))[0], 0.5)
    assert weigh(retained=np.array([1.0, 0.8]))[0].min() > 0.8
    np.testing.assert_allclose(weigh(distance=np.array([0.1, 0.3]))[0], 0.75)
    novelty = np.array([[0.9, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(weigh(novelty=novelty)[0, 1:], 0.5)
    assert weigh(novelty=novelty)[0, 0] < 0.1
    unseen = np.array([[1, 0, 1], [0, 0, 1]])
    np.testing.assert_allclose(weigh(unseen=unseen), [[0, 0.5, 0.5], [1, 0.5, 0.5]])


def test_transfer_is_how_well_the_types_of_the_others_are_found_again():
    # X, Y against X, Z, of which X is related, and against one whose labels are wrong
    names, types = ["good", "other", "wrong"], [["X", "Y"], ["X", "Z"], ["X", "Y"]]
    right, half = np.array([[1.0, 0], [0, 1]]), np.array([[0.5, 0.5], [0, 1]])
    shares = dict.fromkeys(permutations(range(3), 2), right)
    shares |= {(0, 1): half, (2, 0): np.array([[0.2, 0.8], [0.8, 0.2]])}
    aligned = _several.align(names, types, [{}] * 3, {})
    found = _sources.transfer_to_others(aligned, shares, np.array([0.9, 0.9, 0.0]))
    np.testing.assert_allclose(found, [1, 0.5, 1])
    found = _sources.transfer_to_others(aligned, shares, np.array([0.9, 0.9, 0.9]))
    np.testing.assert_allclose(found, [0.6, 0.75, 1])
    assert np.isnan(_sources.transfer_to_others(aligned, {}, np.ones(3))).all()


def test_a_model_that_cannot_judge_novelty_is_unsure_of_known_cells():
    unsure = SimpleNamespace(proba=np.full((2, 4), 0.25))
    model = SimpleNamespace(_novel_score=lambda prediction: 1 - prediction.proba.max(axis=1))
    source = Source("ref1", model, result=SimpleNamespace(novel=None, model=model))
    np.testing.assert_array_equal(_sources.novel_score(source, unsure), [0, 0])
    source.result.novel = np.zeros(2, dtype=bool)
    np.testing.assert_allclose(_sources.novel_score(source, unsure), [0.75, 0.75])


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_is_found_again(temperature):
    rng = np.random.default_rng(0)
    honest = rng.dirichlet([0.7, 0.7, 0.7], 4000)
    codes = (honest.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    given = _several.sharpen(honest, 1 / temperature)
    assert _several.fit_temperature(given, codes) == pytest.approx(temperature, rel=0.1)


# -- the tool ------------------------------------------------------------------------------------


def lacking(seed, *types):
    ref = simulate(240, seed=seed)
    return ref[~ref.obs["cell_type"].isin(types)].copy()


def query():
    return simulate_sides(120, 4)[0]


@pytest.fixture(scope="module")
def annotated():
    adata = query()
    adata.obs["leiden"] = pd.Categorical(np.where(np.arange(120) % 2, "0", "1"))
    refs = [lacking(0, "Mono"), lacking(5, "B")]
    sctool.tl.annotate(adata, refs, risk=0.1, groupby="leiden", **QUICK)
    return adata


def test_types_that_one_reference_lacks_are_found(annotated):
    result = annotated.uns["sctool"]
    assert set(result["classes"]) == set(TYPES)
    assert (annotated.obs["sctool"].astype(str) == annotated.obs["truth"].astype(str)).mean() > 0.9
    proba = annotated.obsm["sctool_proba"]
    assert proba.shape == (120, 4)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    table = result["alignment"]
    assert len(table) == 6
    only = table[table["how"] == "only here"]
    assert dict(zip(only["type"], only["reference"], strict=True)) == {"B": "ref1", "Mono": "ref2"}
    assert table.loc[table["how"] == "name", "share"].min() > 0.8
    assert result["params"]["method"] == "logistic"


def test_risk_and_clusters_work(annotated):
    named = ~annotated.obs["sctool_safe"].isin(["unknown"])
    single = annotated.obs["sctool_safe"].isin(TYPES)
    truth = annotated.obs["truth"].astype(str)
    assert named.any()
    assert (annotated.obs["sctool_safe"].astype(str) != truth)[single].mean() <= 0.1
    assert list(annotated.uns["sctool"]["groups"].index) == ["0", "1"]


def test_the_result_is_stored(annotated, tmp_path):
    annotated.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad").uns["sctool"]["alignment"]
    assert again["type"].tolist() == annotated.uns["sctool"]["alignment"]["type"].tolist()


def test_wrong_labels_count_little_and_raise_an_alarm():
    bad = simulate(240, seed=7)
    bad.obs["cell_type"] = np.random.default_rng(0).permutation(bad.obs["cell_type"].astype(str))
    adata = query()
    sctool.tl.annotate(adata, [bad, simulate(240)], **QUICK)
    assert (adata.obs["sctool"].astype(str) == adata.obs["truth"].astype(str)).mean() > 0.9
    alarms = [a for a in adata.uns["sctool"]["alarms"] if a.startswith("references:")]
    assert any("'ref1'" in alarm and "wrong" in alarm for alarm in alarms)
    note = next(n for n in adata.uns["sctool"]["audit"] if "mean weights" in n)
    weight = {name: int(w) for name, w in re.findall(r"'(ref\d)' (\d+)%", note)}
    assert weight["ref1"] < 10
    assert weight["ref2"] > 90


def test_types_of_other_names_are_found_by_their_cells():
    coarse = simulate(240, seed=5)
    names = {"B": "K1", "CD4 T/NK": "K1", "DC": "K2", "Mono": "K3"}
    coarse.obs["cell_type"] = coarse.obs["cell_type"].map(names).astype("category")
    adata = query()
    sctool.tl.annotate(adata, [simulate(240), coarse], **QUICK)
    table = adata.uns["sctool"]["alignment"].set_index("type")
    assert list(adata.uns["sctool"]["classes"]) == TYPES
    assert table.loc[["K1", "K2", "K3"], "name"].tolist() == ["B / CD4 T/NK", "DC", "Mono"]
    assert set(table["how"]) == {"cells"}


def test_models_without_cells_and_cells_together(tmp_path):
    adata, other = query(), simulate(120, seed=9)
    models = [
        sctool.tl.annotate(other.copy(), lacking(seed, lack), return_model=True, **QUICK)
        for seed, lack in ((0, "Mono"), (5, "B"))
    ]
    models[1].save(tmp_path / "model")
    truth = adata.obs["truth"].astype(str)
    for refs in (models, [str(tmp_path / "model"), lacking(0, "Mono")]):
        sctool.tl.annotate(adata, refs, **QUICK)
        assert (adata.obs["sctool"].astype(str) == truth).mean() > 0.9
    assert str(tmp_path / "model") in set(adata.uns["sctool"]["alignment"]["reference"])


def trained(ref):
    other = simulate(120, seed=9)
    return sctool.tl.annotate(other, ref, return_model=True, **QUICK)


def test_models_alone_do_not_merge_types_that_each_lacks():
    """Each is sure that the type which it lacks is one that the other lacks."""
    adata = query()
    models = [trained(lacking(0, "B")), trained(lacking(0, "Mono"))]
    sctool.tl.annotate(adata, models, **QUICK)
    result = adata.uns["sctool"]
    assert set(result["classes"]) == set(TYPES)
    assert "cells" not in set(result["alignment"]["how"])
    assert (adata.obs["sctool"].astype(str) == adata.obs["truth"].astype(str)).mean() > 0.85
    with pytest.raises(ValueError, match="but ref is a trained Logistic"):
        sctool.tl.annotate(adata, models, method="scdet")


def test_types_of_a_model_without_cells_raise_no_alarm():
    adata = query()
    refs = [trained(lacking(0, "B")), lacking(0, "Mono")]
    sctool.tl.annotate(adata, refs, **QUICK)
    # "B" and "Mono" each have cells of one side alone; neither is too rare to learn, or to be there
    alarms = adata.uns["sctool"]["alarms"]
    assert not [a for a in alarms if a.startswith(("labels:", "shares:")) and "'Mono'" in a]
    assert not [a for a in alarms if "(0)" in a or "0.0%" in a]


def test_values_in_raw_are_those_that_are_compared():
    adata, refs = query(), [lacking(0, "Mono"), lacking(5, "B")]
    expected = sctool.tl.annotate(adata, refs, copy=True, **QUICK)
    for cells in (adata, *refs):
        cells.raw = cells.copy()
    rng = np.random.default_rng(0)
    for cells in refs:
        cells.X = rng.poisson(2.0, cells.shape).astype(np.float32)
    sctool.tl.annotate(adata, refs, layer="raw", **QUICK)
    np.testing.assert_allclose(adata.obsm["sctool_proba"], expected.obsm["sctool_proba"], atol=1e-4)


def test_a_layer_that_one_reference_has_is_read_there():
    adata, refs = query(), [lacking(0, "Mono"), lacking(5, "B")]
    expected = sctool.tl.annotate(adata, refs, copy=True, **QUICK)
    refs[1].layers["c"] = refs[1].X.copy()
    refs[1].X = np.ones(refs[1].shape, np.float32)
    sctool.tl.annotate(adata, refs, layer="c", **QUICK)
    np.testing.assert_allclose(adata.obsm["sctool_proba"], expected.obsm["sctool_proba"], atol=1e-4)


def test_errors_name_the_reference():
    adata, refs = query(), [lacking(0), lacking(5)]
    refs[1].var_names = [f"x{i}" for i in range(refs[1].n_vars)]
    with pytest.raises(ValueError, match=r"^ref2: "):
        sctool.tl.annotate(adata, refs, **QUICK)
    with pytest.raises(ValueError, match="same reference twice.*element 2"):
        sctool.tl.annotate(adata, [refs[0], refs[0]], **QUICK)


def test_ids_beside_the_labels_relate_types_and_group_them():
    ids = dict(zip(TYPES, ["CL:0000236", "CL:0000624", "CL:0000451", "CL:0000576"], strict=True))
    refs = []
    for i, ref in enumerate([lacking(0), lacking(5)]):
        names = ref.obs["cell_type"].astype(str)
        ref.obs["cell_type_ontology_term_id"] = names.map(ids).to_numpy()
        ref.obs["cell_type"] = [f"t{i}{n}" for n in names.map({n: k for k, n in enumerate(TYPES)})]
        refs.append(ref)
    adata = query()
    sctool.tl.annotate(adata, refs, hierarchy="ontology", risk=0.1, **QUICK)
    assert set(adata.uns["sctool"]["alignment"]["how"]) == {"ontology"}
    assert "CL:0000236" in set(adata.obs["sctool_ontology_term_id"])
    assert any("groups of types with a name" in note for note in adata.uns["sctool"]["audit"])


def of_types(seed: int, *types: str) -> ad.AnnData:
    cells = simulate(400, seed=seed)
    return cells[cells.obs["cell_type"].isin(types)].copy()


@pytest.mark.parametrize("in_common", [[], TYPES[1:3]], ids=["none", "two"])
def test_a_type_that_is_outvoted_raises_an_alarm(in_common):
    adata = query()
    refs = [
        of_types(3, TYPES[0], TYPES[2], *in_common),
        of_types(5, TYPES[1], TYPES[3], *in_common),
    ]
    sctool.tl.annotate(adata, refs, **QUICK)
    alarms = [a for a in adata.uns["sctool"]["alarms"] if a.startswith("references: held-out")]
    found = (adata.obs["sctool"] == "Mono")[adata.obs["truth"] == "Mono"].mean()
    assert found > 0.9 if in_common else found < 0.2
    if in_common:
        assert alarms == []
    else:
        assert "recognised: 'Mono' 0%. Join" in alarms[0]


def test_a_type_that_its_own_reference_confuses_is_not_said_to_be_outvoted():
    right = np.array([[20, 18, 8], [20, 18, 9], [20, 9, 0], [9, 9, 0]])
    (alarm,) = _tool._alarm_overruled(["a", "b", "c", "d"], right)
    assert re.findall(r"'(\w)' (\d+%)", alarm) == [("a", "40%")]
    assert _tool._alarm_overruled(["b"], right[1:2]) == []


def test_references_that_disagree_are_told():
    swapped = simulate(240, seed=7)
    swap = {"B": "DC", "DC": "B"}
    swapped.obs["cell_type"] = swapped.obs["cell_type"].astype(str).map(lambda n: swap.get(n, n))
    adata = query()
    sctool.tl.annotate(adata, [simulate(240), swapped], **QUICK)
    result = adata.uns["sctool"]
    assert any("take for something else" in alarm for alarm in result["alarms"])
    told = result["reasons"]["reason"].str.startswith("references disagree: ref1 says")
    swapped_cells = adata.obs_names[adata.obs["truth"].isin(["B", "DC"])]
    cells = result["reasons"].index[told]
    assert len(cells) > 10
    assert cells.isin(swapped_cells).all()
    assert (adata.obs.loc[cells, "sctool_status"] == "ambiguous").all()


def test_only_allowed_types_are_named():
    adata = query()
    sctool.tl.annotate(adata, [simulate(240), lacking(5, "B")], allowed=["B", "DC"], **QUICK)
    assert set(adata.obs["sctool"]) == {"B", "DC"}
    assert (adata.obs["sctool_status"] == "unexpected").mean() > 0.3


def source(classes, proba, n_novel=1, judges=True):
    """A reference with what it says of three cells."""
    proba = np.array(proba)
    names = [f"novel_{i}" for i in range(1, n_novel + 1)]
    table = pd.DataFrame({"n_cells": 9, "nearest": classes[0], "markers": "G"}, index=names)
    novel = proba.argmax(axis=1) >= len(classes) if judges else None
    model = SimpleNamespace(classes_=classes, novel_classes_=names)
    result = SimpleNamespace(
        model=model, novel=novel, prediction=SimpleNamespace(proba=proba), novel_table=table
    )
    return Source("ref", model, result=result)


def test_a_cell_is_novel_if_it_is_so_to_every_reference():
    # of the first two cells one is novel to both, one is known to the second as x-dc
    one = source(["x-b", "x-t"], [[0.1, 0, 0.9], [0, 0.2, 0.8], [0, 1, 0]])
    other = source(["x-t", "x-dc"], [[0, 0.2, 0.1, 0.7], [0, 0.9, 0.1, 0], [1, 0, 0, 0]], 2)
    aligned = align([["x-b", "x-t"], ["x-t", "x-dc"]])
    known = np.array([[0.5, 0.2, 0.3], [0, 0.1, 0.9], [0, 1, 0]])
    mass, names, table = _novel_groups([one, other], aligned, known, other)
    np.testing.assert_allclose(mass, [[0.7], [0], [0]])  # the less sure, and one group
    assert names == ["novel_1"]
    assert table.index.tolist() == ["novel_1"]
    assert table["n_cells"].tolist() == [1]
    # one that cannot judge novelty knows the first cell, and no other does
    third = source(["x-nk"], np.ones((3, 1)), 0, judges=False)
    aligned = align([["x-b", "x-t"], ["x-t", "x-dc"], ["x-nk"]])
    known = np.array([[0.1, 0.1, 0.1, 0.7], [0, 0.1, 0.9, 0], [0, 1, 0, 0]])
    assert _novel_groups([one, other, third], aligned, known, other)[1] == []


@pytest.mark.parametrize(
    ("refs", "options", "message"),
    [
        ([], {}, "empty list"),
        ([[0]], {}, "list within a list"),
        ([0], {}, "ref must be an AnnData"),
        (2, {"return_model": True}, "Train one model of each"),
        (2, {"labels_key": ["cell_type", "cell_type"]}, "pass one column"),
        (2, {"novel": 1}, "pass 'auto' or 0"),
        (2, {"labels_key": "no"}, "'no' is not in the ref1's obs"),
        (2, {"allowed": ["no"]}, "allowed names types"),
        ([simulate(60), simulate(60)[:0]], {}, r"ref2 has 0 cell type\(s\)"),
    ],
)
def test_what_cannot_work_is_refused(refs, options, message):
    refs = [simulate(60), simulate(60, seed=3)] if refs == 2 else refs
    with pytest.raises((ValueError, TypeError, KeyError), match=message):
        sctool.tl.annotate(query(), refs, **QUICK, **options)


def test_the_command_takes_several(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    query().write_h5ad("query.h5ad")
    lacking(0, "Mono").write_h5ad("one.h5ad")
    lacking(5, "B").write_h5ad("other.h5ad")
    words = ["annotate", "query.h5ad", "--ref", "one.h5ad", "--ref", "other.h5ad"]
    assert main([*words, "--method", "logistic", "-o", "out.h5ad"]) == 0
    assert len(ad.read_h5ad("out.h5ad").uns["sctool"]["alignment"]) == 6
    assert main([*words, "-o", "again.h5ad", "--save-model", "m"]) == 2
    assert "single --ref" in capsys.readouterr().err


def test_allowed_shares_and_groups_may_have_a_references_own_names():
    """One reference says "B cells" for what the answer calls "B"."""
    adata, refs = query(), [lacking(0), lacking(5)]
    names = dict(zip(TYPES, ["B", "T cell", "DC", "Mono"], strict=True))
    for ref, changes in zip(refs, [{}, {"B": "B cells", "DC": "dendritic cells"}], strict=True):
        ref.obs["cell_type"] = ref.obs["cell_type"].astype(str).map(names).replace(changes)
    sctool.tl.annotate(adata, refs, allowed=["B cells", "T cell"], key_added="a", **QUICK)
    assert set(adata.obs["a"]) == {"B", "T cell"}
    sctool.tl.annotate(adata, refs, prior={"B cells": 0.4, "Mono": 0.6}, key_added="p", **QUICK)
    assert set(adata.obs["p"]) == {"B", "Mono"}
    tree = {"B cells": "lymphoid", "T cell": "lymphoid"}
    sctool.tl.annotate(adata, refs, hierarchy=tree, risk=0.01, key_added="h", **QUICK)
    assert set(adata.obs["h_safe"]) <= {"B", "T cell", "DC", "Mono", "lymphoid", "unknown"}
    with pytest.raises(ValueError, match="neither cell types"):
        sctool.tl.annotate(adata, refs, hierarchy={"no": "lymphoid"}, risk=0.1, **QUICK)


def test_the_parts_of_a_coarser_type_share_what_is_said_of_it():
    aligned = align([["T cell", "B"], ["CD4 T", "CD8 T", "B"]])
    sources = [
        SimpleNamespace(model=SimpleNamespace(classes_=classes))
        for classes in (["T cell", "B"], ["CD4 T", "CD8 T", "B"])
    ]
    parts = _tool._parts(sources, aligned)
    assert parts["T cell"] == ["CD4 T", "CD8 T"]
    found = _tool._of_answer(Expected(["T cell", "B"], [0.6, 0.4]), parts)
    assert dict(zip(found.names, found.shares, strict=True)) == pytest.approx(
        {"CD4 T": 0.3, "CD8 T": 0.3, "B": 0.4}
    )
    assert _tool._of_answer(Expected(["T cell", "lost"], None), parts).names == ["CD4 T", "CD8 T"]
    tree = {"T cell": "lymphocyte", "CD4 T": "T cell", "B": "lymphocyte"}
    assert _tool._of_parts(tree, parts) == tree
    assert _tool._of_parts({"T cell": "lymphocyte"}, parts) == {
        "CD4 T": "lymphocyte",
        "CD8 T": "lymphocyte",
    }


def test_types_that_the_ontology_keeps_apart_are_not_matched_by_their_cells():
    """Each model has to call the other's cells something."""
    there, back = np.array([[0.1, 0.9]]), np.array([[0.9], [1.0]])
    shares = {(0, 1): there, (1, 0): back}
    kept = align([["Monocytes"], ["B cell", "dendritic cell"]], shares)
    assert kept.names == ["Monocytes", "B cell", "dendritic cell"]
    unknown = align([["Monocytes"], ["x-1", "x-2"]], shares)
    assert unknown.names == ["x-1", "x-2"]  # parts of the first


def test_doubtful_matches_by_cells_raise_an_alarm():
    adata = query()
    refs = [lacking(0, "DC", "Mono"), lacking(5, "B", "CD4 T/NK")]
    for i, ref in enumerate(refs):
        ref.obs["cell_type"] = [f"{i}-{name}" for name in ref.obs["cell_type"]]
    sctool.tl.annotate(adata, refs, **QUICK)
    table = adata.uns["sctool"]["alignment"]
    doubtful = table[(table["how"] == "cells") & (table["share"] < 0.9)]
    assert len(doubtful)
    (alarm,) = [a for a in adata.uns["sctool"]["alarms"] if "by their cells alone" in a]
    assert all(repr(name) in alarm for name in doubtful["type"])


def test_an_object_and_the_path_of_a_model(tmp_path):
    model = trained(lacking(0, "Mono"))
    model.save(tmp_path / "model")
    adata = query()
    sctool.tl.annotate(adata, [lacking(5, "B"), str(tmp_path / "model")], **QUICK)
    assert set(adata.uns["sctool"]["classes"]) == set(TYPES)
    twice = [str(tmp_path / "model"), tmp_path / "model"]
    with pytest.raises(ValueError, match="same reference twice"):
        sctool.tl.annotate(adata, twice, **QUICK)
    with pytest.raises(TypeError, match=r"^ref2: ref must be an AnnData.* or a list of these"):
        sctool.tl.annotate(adata, [lacking(5), None], **QUICK)
