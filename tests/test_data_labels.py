"""What a model is trained on: cells, batches, colours and labels."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from stages import (
    ENSEMBL,
    assert_read_alike,
    assert_same_data,
    audit,
    cp10k,
    expected,
    logistic,
    train_logistic,
)
from synthetic import GENES, TYPES, simulate, simulate_sides

from sctool._data import clean_labels, join, palette, read_cells

# -- training data -------------------------------------------------------------------------------


def test_join_keeps_cells_and_genes_in_order():
    adata, ref = simulate_sides()
    data = join(adata[:, ::-1].copy(), ref, labels_key="cell_type")
    assert list(data.genes.index) == GENES
    assert data.x.format == "csr"
    assert data.x.dtype == np.float32
    expected = np.vstack([ref.X.toarray(), adata.X.toarray()])
    np.testing.assert_array_equal(data.x.toarray(), expected)
    assert list(data.labels[: ref.n_obs]) == list(ref.obs["cell_type"])
    assert (data.labels.codes[ref.n_obs :] == -1).all()
    assert list(data.labels.categories) == TYPES
    # codes in the order of the names: "query", "ref"
    assert data.domain.tolist() == [1] * ref.n_obs + [0] * adata.n_obs
    assert data.is_counts
    assert data.audit == [
        "ref: read count values from X",
        "query: read count values from X",
        "genes: 300 are shared (reference: 300, query: 300)",
    ]


def test_cells_of_one_object_are_unlabelled_and_of_one_domain():
    adata = simulate()
    adata.var["gene_ids"] = ENSEMBL
    data = read_cells(adata, None, "data")
    np.testing.assert_array_equal(data.x.toarray(), adata.X.toarray())
    assert data.x.dtype == np.float32
    assert list(data.genes.index) == GENES
    assert list(data.genes["gene_ids"]) == ENSEMBL
    assert (data.labels.codes == -1).all()
    assert list(data.labels.categories) == []
    assert set(data.domain) == {0}
    assert data.is_counts
    assert data.audit == ["data: read count values from X"]


def test_only_counts_on_both_sides_are_counts():
    adata, ref = simulate_sides()
    adata.X = sp.csr_matrix(cp10k(adata.X).astype(np.float32))
    assert not join(adata, ref, labels_key="cell_type").is_counts
    assert not read_cells(adata, None, "data").is_counts


def test_cells_of_the_same_name_on_both_sides_are_two_cells():
    adata, ref = simulate_sides()
    expected = join(adata, ref, labels_key="cell_type")
    adata.obs_names = ref.obs_names[: adata.n_obs]
    assert_same_data(join(adata, ref, labels_key="cell_type"), expected)


def test_batches_are_domains_of_their_side():
    adata, ref = simulate_sides()
    for side in (adata, ref):
        side.obs["donor"] = pd.Categorical(["1", "2"] * (side.n_obs // 2))
    data = join(adata, ref, labels_key="cell_type", batch_key="donor")
    # codes in the order of the names: "query:1", "query:2", "ref:1", "ref:2"
    assert data.domain.tolist() == [2, 3] * (ref.n_obs // 2) + [0, 1] * (adata.n_obs // 2)


@pytest.mark.parametrize("kind", ["object", "category", "float"])
def test_cells_without_a_batch_are_one_more_batch(kind):
    adata, ref = simulate_sides()
    for side in (adata, ref):
        donor = pd.Series([1.0, np.nan] * (side.n_obs // 2), index=side.obs_names)
        side.obs["donor"] = donor if kind == "float" else donor.astype(object).astype(kind)
    data = join(adata, ref, labels_key="cell_type", batch_key="donor")
    assert data.domain.tolist() == [2, 3] * (ref.n_obs // 2) + [0, 1] * (adata.n_obs // 2)


def test_colours_are_by_name_of_the_type():
    _, ref = simulate_sides()
    assert palette(ref, "cell_type") == {}
    ref.uns["cell_type_colors"] = ["#111111", "#222222", "#333333", "#444444"]
    colors = dict(zip(TYPES, ref.uns["cell_type_colors"], strict=True))
    assert palette(ref, "cell_type") == colors
    adata = simulate(8, seed=5)
    assert join(adata, ref, labels_key="cell_type").colors == colors
    ref.obs["cell_type"] = ref.obs["cell_type"].astype(object)  # whose colours they are, is unknown
    assert palette(ref, "cell_type") == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels_key": "celltype"}, "labels_key='celltype' is not in the ref's obs.*cell_type"),
        ({"batch_key": "donor"}, "batch_key='donor' is not in the ref's obs.*cell_type"),
        ({"layer": "counts"}, "layer='counts' is not in the ref's layers"),  # nor in the query's
    ],
    ids=["labels_key", "batch_key", "layer"],
)
def test_a_missing_column_or_layer_is_named(changes, message):
    adata, ref = simulate_sides()
    with pytest.raises(KeyError, match=message):
        logistic(adata, ref, **changes)


def test_a_batch_key_must_be_in_the_query_too():
    adata, ref = simulate_sides()
    ref.obs["donor"] = "1"
    with pytest.raises(KeyError, match=r"batch_key='donor' is not in the query's obs.*truth"):
        logistic(adata, ref, batch_key="donor")


def test_one_type_is_not_enough():
    adata, ref = simulate_sides()
    ref.obs["cell_type"] = "B"
    with pytest.raises(ValueError, match=r"has 1 cell type.*2 are needed"):
        logistic(adata, ref)


def test_no_cells_is_an_error():
    adata, ref = simulate_sides()
    with pytest.raises(ValueError, match=r"query has no cells"):
        logistic(adata[:0].copy(), ref)
    with pytest.raises(ValueError, match=r"0 cell type"):
        logistic(adata, ref[:0].copy())
    with pytest.raises(ValueError, match=r"query has no cells"):
        logistic(adata[:0].copy(), train_logistic(adata, ref))


# -- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["join", "annotate"])
@pytest.mark.parametrize("given", ["true", "permuted", "wrong", "missing"])
def test_the_querys_labels_are_irrelevant(given, stage):
    adata, ref = simulate_sides()
    truth = adata.obs["truth"]
    adata.obs["cell_type"] = {
        "true": truth,
        "permuted": np.random.default_rng(0).permutation(truth.astype(str)),
        "wrong": "no such type",
        "missing": np.nan,
    }[given]
    assert_read_alike(stage, adata, ref)


@pytest.mark.parametrize(
    "dtype", ["int", "bool", "object", "str", "string", "categorical", "int-categorical"]
)
def test_the_dtype_of_the_labels_is_irrelevant(dtype):
    adata, ref = simulate_sides()
    codes = ref.obs["cell_type"].cat.codes.to_numpy().astype(int)
    names = np.array(TYPES, dtype=object)[codes]
    ref.obs["cell_type"] = {
        "int": lambda: codes,
        "bool": lambda: codes > 1,
        "object": lambda: pd.Series(names, index=ref.obs_names, dtype=object),
        "str": lambda: pd.Series(names, index=ref.obs_names).astype(str),
        "string": lambda: pd.Series(names, index=ref.obs_names, dtype="string"),
        "categorical": lambda: pd.Categorical(names, categories=TYPES),
        "int-categorical": lambda: pd.Categorical(codes),
    }[dtype]()
    classes = {"int": ["0", "1", "2", "3"], "bool": ["False", "True"]}.get(
        dtype.split("-")[0], TYPES
    )
    labels = join(adata, ref, labels_key="cell_type").labels
    assert list(labels.categories) == classes
    assert labels.codes[: ref.n_obs].tolist() == list(codes > 1 if dtype == "bool" else codes)
    result = logistic(adata, ref)
    assert list(result.obs["sctool"].cat.categories) == classes
    if dtype != "bool":
        np.testing.assert_allclose(result.obsm["sctool_proba"], expected("annotate"), atol=1e-5)


@pytest.mark.parametrize("dtype", ["object", "string", "categorical", "float"])
def test_cells_without_a_label_are_left_out(dtype):
    # among the query's cells they would make these look novel
    adata, ref = simulate_sides()
    missing = np.arange(ref.n_obs) < 20
    if dtype == "float":
        ref.obs["cell_type"] = ref.obs["cell_type"].cat.codes.astype(float).where(~missing)
    else:
        dtype = "category" if dtype == "categorical" else dtype
        ref.obs["cell_type"] = ref.obs["cell_type"].astype(object).where(~missing).astype(dtype)
    names = ["0.0", "1.0", "2.0", "3.0"] if dtype == "float" else TYPES
    labels = join(adata, ref, labels_key="cell_type").labels
    assert list(labels.categories) == names
    assert np.flatnonzero(labels.codes < 0).tolist() == [*range(100, 180)]
    result = logistic(adata, ref)
    without = logistic(simulate_sides()[0], ref[~missing].copy())
    np.testing.assert_array_equal(result.obsm["sctool_proba"], without.obsm["sctool_proba"])
    assert list(result.uns["sctool"]["classes"]) == names
    assert "ref: 20 cells without a label were left out" in audit(result)


@pytest.mark.parametrize("stage", ["join", "annotate"])
def test_unused_categories_are_no_types(stage):
    adata, ref = simulate_sides()
    ref.obs["cell_type"] = ref.obs["cell_type"].cat.add_categories(["unused", "a/b"])
    assert_read_alike(stage, adata, ref)


def test_a_type_may_be_called_unknown():
    adata, ref = simulate_sides()
    ref.obs["cell_type"] = ref.obs["cell_type"].cat.rename_categories({"Mono": "Unknown"})
    result = logistic(adata, ref)
    assert list(result.obs["sctool"].cat.categories) == ["B", "CD4 T/NK", "DC", "Unknown"]
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected("annotate"), atol=1e-5)


@pytest.mark.parametrize(
    ("values", "codes", "categories"),
    [
        (["b", "a", None, "b"], [1, 0, -1, 1], ["a", "b"]),
        ([2, 10, 2, 1], [2, 1, 2, 0], ["1", "10", "2"]),
        ([True, False, True, True], [1, 0, 1, 1], ["False", "True"]),
        ([0.5, np.nan, 1.5, 0.5], [0, -1, 1, 0], ["0.5", "1.5"]),
        (pd.array(["b", pd.NA, "a/c", "b"], dtype="string"), [1, -1, 0, 1], ["a/c", "b"]),
        (pd.array([3, pd.NA, 1, 3], dtype="Int64"), [1, -1, 0, 1], ["1", "3"]),
        (pd.array([True, pd.NA, False, True], dtype="boolean"), [1, -1, 0, 1], ["False", "True"]),
        (pd.Categorical(["b", None, "a", "b"], ["z", "b", "a"]), [0, -1, 1, 0], ["b", "a"]),
        (pd.Categorical([2, 1, None, 2], [2, 1]), [0, 1, -1, 0], ["2", "1"]),
        ([None] * 4, [-1] * 4, []),
        (["b", "b ", "\ta", "a"], [1, 1, 0, 0], ["a", "b"]),
        (pd.Categorical(["b", "b ", " a", "b"], ["b ", "b", " a"]), [0, 0, 1, 0], ["b", "a"]),
        (["b", "Unassigned", "unassigned ", "b"], [0, -1, -1, 0], ["b"]),
        ([1.0, np.inf, -np.inf, 2.0], [0, -1, -1, 1], ["1.0", "2.0"]),
    ],
    ids=[
        "object",
        "int",
        "bool",
        "float",
        "string",
        "Int64",
        "boolean",
        "categorical",
        "int-categorical",
        "none",
        "spaces",
        "spaces-categorical",
        "unassigned",
        "infinite",
    ],
)
def test_labels_become_text(values, codes, categories):
    labels = clean_labels(pd.Series(values, index=list("wxyz")))
    assert list(labels.codes) == codes
    assert list(labels.categories) == categories


def test_labels_that_only_their_type_tells_apart_are_refused():
    with pytest.raises(ValueError, match=r"equal once converted to strings"):
        clean_labels(pd.Series(pd.Categorical([1, "1"], [1, "1"])))


def test_some_texts_may_be_kept():
    labels = clean_labels(pd.Series(["Unassigned", "nan", "a"]), keep=["unassigned"])
    assert list(labels.codes) == [0, -1, 1]


def test_spaces_around_labels_make_no_types_and_are_told():
    adata, ref = simulate_sides()
    wanted = logistic(adata.copy(), ref).obs["sctool"]
    names = ref.obs["cell_type"].astype(str)
    ref.obs["cell_type"] = [n + " " * (i % 2) for i, n in enumerate(names)]
    result = logistic(adata, ref)
    assert list(result.obs["sctool"]) == list(wanted)
    assert "ref: spaces around the labels ['B ', " in audit(result) or "['CD4 T/NK ', " in audit(
        result
    )


@pytest.mark.parametrize(
    ("labels_key", "error"),
    [([], ValueError), (None, TypeError), (3, TypeError), ([None], TypeError)],
    ids=str,
)
def test_a_labels_key_is_the_name_of_a_column(labels_key, error):
    adata, ref = simulate_sides()
    with pytest.raises(error, match=r"labels_key=.*: pass (the name of a|at least one) column"):
        logistic(adata, ref, labels_key=labels_key)


def test_a_type_of_empty_cells_is_missed_aloud():
    adata, ref = simulate_sides()
    x = ref.X.tolil()
    x[(ref.obs["cell_type"] == "DC").to_numpy().nonzero()[0]] = 0
    ref.X = x.tocsr()
    ref.obs["cell_type"] = ref.obs["cell_type"].cat.add_categories(["never there"])
    result = logistic(adata, ref)
    assert "DC" not in list(result.uns["sctool"]["classes"])
    assert "ref: no cell of ['DC'] expresses a gene that is used" in audit(result)
    assert any("no reference cell of ['DC'] expresses" in a for a in result.uns["sctool"]["alarms"])
    x[(ref.obs["cell_type"] != "B").to_numpy().nonzero()[0]] = 0
    ref.X = x.tocsr()
    with pytest.raises(ValueError, match=r"'DC', 'Mono'\] expresses any .* fewer than 2 types"):
        logistic(adata, ref)
