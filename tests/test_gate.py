"""Groups of a query judged as a whole to be novel or known, and what becomes of novel ones."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from synthetic import MARKERS, simulate, simulate_sides

import sctool
from sctool._data._features import normalize
from sctool.model import GroupNoveltyClassifier, load
from sctool.novelty import _clusters

RNG = np.random.default_rng
#: Settings that do where what is learnt need not be good.
FEW = {"episodes": 4}


@pytest.fixture(scope="module")
def hidden() -> tuple[ad.AnnData, ad.AnnData]:
    """Return a query of four types and a reference that lacks one of them, "DC"."""
    adata, ref = simulate(400, seed=1), simulate(400, seed=0)
    adata.obs = adata.obs.rename(columns={"cell_type": "truth"})
    return adata, ref[ref.obs["cell_type"] != "DC"].copy()


@pytest.fixture(scope="module")
def annotated(hidden) -> tuple[ad.AnnData, GroupNoveltyClassifier]:
    """Return the annotated query, and the model."""
    return sctool.tl.annotate(*hidden, method="gate", copy=True, return_model=True)


@pytest.fixture(scope="module")
def found(annotated) -> ad.AnnData:
    """Return the annotated query, which no test may change."""
    return annotated[0]


@pytest.fixture(scope="module")
def found_two(hidden) -> ad.AnnData:
    """Return the query annotated with two novel groups and colours; no test may change it."""
    adata, ref = hidden[0], hidden[1].copy()
    ref.uns["cell_type_colors"] = ["#111111", "#222222", "#333333"]
    return sctool.tl.annotate(adata, ref, method="gate", novel=2, copy=True)


# -- the whole -----------------------------------------------------------------------------------


def test_a_hidden_type_is_found_as_a_group_of_its_own(hidden, found):
    truth = hidden[0].obs["truth"]
    novel = found.obs["sctool_novel"].to_numpy()
    assert novel[truth == "DC"].mean() > 0.9
    assert novel[truth != "DC"].mean() < 0.05
    assert list(found.obs["sctool"].cat.categories) == ["B", "CD4 T/NK", "Mono", "novel_1"]
    names = found.obs["sctool"].astype(str).replace("novel_1", "DC")
    assert (names == truth.astype(str)).mean() > 0.9
    assert any("types: 1, interval" in note for note in found.uns["sctool"]["audit"])


def test_what_is_said_of_the_group(found):
    table = found.uns["sctool"]["novel"]
    assert list(table.index) == list(found.uns["sctool"]["novel_classes"]) == ["novel_1"]
    assert table["n_cells"].item() == (found.obs["sctool"] == "novel_1").sum()
    assert table["nearest"].item() in {"B", "CD4 T/NK", "Mono"}
    assert 0 < table["distance"].item() < 2
    best = table["markers"].item().split(", ")[: len(MARKERS["DC"])]
    assert len(set(best) & set(MARKERS["DC"])) >= 6


def test_the_result_survives_a_file(found, tmp_path):
    found.write_h5ad(tmp_path / "found.h5ad")
    read = ad.read_h5ad(tmp_path / "found.h5ad")
    assert list(read.uns["sctool"]["novel"]["markers"]) == list(
        found.uns["sctool"]["novel"]["markers"]
    )
    sctool.tl.rename_novel(read, {"novel_1": "DC"})
    assert "novel_1" not in read.obs["sctool"].cat.categories


def test_nothing_is_found_where_nothing_is_novel():
    adata, ref = simulate_sides(400, 400)  # with a shift between the two
    sctool.tl.annotate(adata, ref, method="gate")
    assert adata.obs["sctool_novel"].mean() <= 0.05


def test_a_number_of_types_is_kept_to(found_two):
    assert list(found_two.uns["sctool"]["novel_classes"]) == ["novel_1", "novel_2"]
    counts = found_two.obs["sctool"].value_counts()
    assert counts["novel_1"] + counts["novel_2"] > 80


def test_a_closed_set_is_a_logistic_regression(hidden):
    closed = sctool.tl.annotate(*hidden, method="gate", novel=0, copy=True)
    settings = {"C": 1.0, "min_type_weight": 0.0}
    plain = sctool.tl.annotate(*hidden, method="logistic", model_kwargs=settings, copy=True)
    np.testing.assert_allclose(closed.obsm["sctool_proba"], plain.obsm["sctool_proba"], atol=1e-5)


def test_a_saved_model_knows_the_groups(hidden, annotated, tmp_path):
    adata, model = hidden[0], annotated[1]
    assert type(model) is GroupNoveltyClassifier
    assert model.names_ == ["B", "CD4 T/NK", "Mono", "novel_1"]
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.names_ == model.names_
    np.testing.assert_array_equal(again.predict(adata), model.predict(adata))
    result = sctool.tl.annotate(adata, again, copy=True)
    assert result.obs["sctool_novel"][adata.obs["truth"] == "DC"].mean() > 0.9
    assert any("no new type can be found" in note for note in result.uns["sctool"]["audit"])
    table = result.uns["sctool"]["novel"]
    assert table["n_cells"].to_dict() == {"novel_1": (result.obs["sctool"] == "novel_1").sum()}
    assert (table["nearest"] == "").all()  # the reference is not there


def test_a_reference_that_has_a_novel_1_keeps_it(hidden):
    adata, ref = hidden[0], hidden[1].copy()
    ref.obs["cell_type"] = ref.obs["cell_type"].cat.rename_categories({"B": "novel_1"})
    result = sctool.tl.annotate(adata, ref, method="gate", novel=1, copy=True, model_kwargs=FEW)
    assert list(result.uns["sctool"]["novel_classes"]) == ["novel_2"]


@pytest.mark.parametrize(
    ("n_query", "types", "said"),
    [(30, None, "30 cells are too few"), (300, ["B", "Mono"], "too few types")],
)
def test_where_groups_cannot_be_sought_the_audit_says_so(n_query, types, said):
    adata, ref = simulate_sides(n_query, 200)
    if types:
        ref = ref[ref.obs["cell_type"].isin(types)].copy()
    sctool.tl.annotate(adata, ref, method="gate")
    assert not adata.obs["sctool_novel"].any()
    assert any(said in note for note in adata.uns["sctool"]["audit"])


def test_a_query_of_one_type_is_not_novel():
    query = simulate(1200, seed=1, shift=0.3)
    adata = query[query.obs["cell_type"] == "B"].copy()
    sctool.tl.annotate(adata, simulate(400, seed=0), method="gate")
    assert (adata.obs["sctool"] == "B").mean() > 0.95


def test_cells_that_are_all_alike_are_named_and_the_audit_says_so():
    cell = simulate(4, seed=1)[:1]
    adata = ad.AnnData(sp.vstack([cell.X] * 250, format="csr"), var=cell.var.copy())
    sctool.tl.annotate(adata, simulate(400, seed=0), method="gate")
    assert set(adata.obs["sctool"]) == {"B"}
    assert any("query have the same values" in note for note in adata.uns["sctool"]["audit"])


# -- naming the groups ---------------------------------------------------------------------------


def test_a_promoted_group_is_a_type_of_a_new_reference(found):
    named = sctool.tl.rename_novel(found, {"novel_1": "DC"}, copy=True)
    assert "novel_1" in found.obs["sctool"].cat.categories
    assert list(named.obs["sctool"].cat.categories) == ["B", "CD4 T/NK", "Mono", "DC"]
    assert not named.obs["sctool_novel"].any()
    assert len(named.uns["sctool"]["novel"]) == len(named.uns["sctool"]["novel_classes"]) == 0
    assert "'novel_1' to 'DC'" in named.uns["sctool"]["audit"][-1]

    other = simulate(200, seed=5)
    other.obs = other.obs.rename(columns={"cell_type": "truth"})
    sctool.tl.annotate(other, named, labels_key="sctool", method="logistic")
    right = other.obs["sctool"].astype(str) == other.obs["truth"].astype(str)
    assert right[other.obs["truth"] == "DC"].mean() > 0.8


def test_groups_of_one_name_become_one(found_two):
    result = found_two.copy()
    proba = result.obsm["sctool_proba"].copy()
    assert len(set(result.uns["sctool_colors"])) == 5
    sctool.tl.rename_novel(result, {"novel_1": "DC", "novel_2": "DC"})
    np.testing.assert_allclose(
        result.obsm["sctool_proba"], np.c_[proba[:, :3], proba[:, 3:].sum(1)], atol=1e-6
    )
    assert list(result.obs["sctool"].cat.categories) == ["B", "CD4 T/NK", "Mono", "DC"]
    assert len(result.uns["sctool_colors"]) == 4
    score = np.take_along_axis(
        result.obsm["sctool_proba"], result.obs["sctool"].cat.codes.to_numpy()[:, None], axis=1
    )
    np.testing.assert_array_equal(result.obs["sctool_score"], score[:, 0])


def test_a_group_may_join_a_known_type_and_others_stay_novel(found_two):
    result = found_two.copy()
    sctool.tl.rename_novel(result, {"novel_1": "Mono"})
    assert list(result.obs["sctool"].cat.categories) == ["B", "CD4 T/NK", "Mono", "novel_2"]
    assert list(result.uns["sctool"]["novel"].index) == ["novel_2"]
    assert set(result.obs["sctool"][result.obs["sctool_novel"]]) == {"novel_2"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"novel_9": "x"}, "'novel_9'.*'novel_1'"),
        ({"novel_1": " "}, "not valid names"),
        ({"novel_1": 3}, "not valid names"),
    ],
)
def test_what_cannot_be_renamed_is_refused(names, message, found):
    with pytest.raises(ValueError, match=message):
        sctool.tl.rename_novel(found, names, copy=True)


def test_there_must_be_groups_to_rename(hidden, found):
    with pytest.raises(KeyError, match="other"):
        sctool.tl.rename_novel(found, {"novel_1": "x"}, key="other")
    plain = sctool.tl.annotate(*hidden, method="logistic", copy=True)
    with pytest.raises(ValueError, match="no novel groups"):
        sctool.tl.rename_novel(plain, {"novel_1": "x"})


# -- the pieces ----------------------------------------------------------------------------------


def test_the_evidence_is_relative_to_the_anchor():
    adata, ref = simulate(300, seed=1), simulate(300, seed=0)
    x, x_ref = (normalize(a.X.copy()) for a in (adata, ref))
    labels = ref.obs["cell_type"].cat.codes.to_numpy().astype(int)
    regression = _clusters.fit_regression(x_ref, labels)
    plain = _clusters.judge(x_ref, labels, x, 0, regression=regression)
    assert plain.evidence.shape == (plain.codes.max() + 1, len(_clusters.EVIDENCE))
    is_anchor = plain.evidence[:, _clusters.EVIDENCE.index("is_anchor")]
    assert 2 <= is_anchor.sum() <= 4
    # relative to the best group of the same type: never above it
    assert (plain.evidence[:, :6] <= 1e-9).all()
    # an anchor is perfectly correlated with itself
    own = plain.evidence[is_anchor == 1, _clusters.EVIDENCE.index("anchor_correlation")]
    np.testing.assert_allclose(own, 1)


def test_shifted_cells_keep_their_totals_and_zeros():
    x = normalize(simulate(50).X.copy())
    y = _clusters.shift_genes(x, 0.5, RNG(0))
    np.testing.assert_allclose(
        np.expm1(y.toarray()).sum(axis=1), np.expm1(x.toarray()).sum(axis=1), rtol=1e-3
    )
    np.testing.assert_array_equal(y.toarray() > 0, x.toarray() > 0)
    assert _clusters.shift_genes(x, 0.0, RNG(0)) is x
    shown = x.toarray() > 0
    ratio = np.full(shown.shape, np.nan)
    ratio[shown] = np.log(np.expm1(y.toarray()[shown]) / np.expm1(x.toarray()[shown]))
    per_gene = pd.DataFrame(ratio).std()
    assert per_gene.median() < 0.2  # one factor per gene, up to each cell's total


def test_nothing_is_learnt_from_two_types():
    x = normalize(simulate(200).X.copy())
    labels = np.arange(200) % 2
    assert _clusters.learn_to_judge(x, labels, RNG(0)) is None
