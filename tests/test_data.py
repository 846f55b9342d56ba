"""From a user's AnnData to a model's inputs: scales, genes, labels, and what is said about them."""

import logging
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from synthetic import GENES, TYPES, simulate, simulate_sides

import sctool
from sctool import _data
from sctool._data import Features, clean_labels, find_expression, join, match_genes
from sctool.tl._annotate import annotate_with_model


def cp10k(x: sp.csr_matrix) -> np.ndarray:
    x = x.toarray().astype(np.float64)
    return 1e4 * x / x.sum(axis=1, keepdims=True)


def scaled(x: np.ndarray, centre: bool = True) -> np.ndarray:
    """Unit variance by gene."""
    x = x - centre * x.mean(axis=0)
    deviation = x.std(axis=0, ddof=1)
    return (x / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def linear(expression: _data.Expression) -> np.ndarray:
    """All the values on the linear scale."""
    everything = sp.identity(expression.matrix.shape[1], dtype=np.float32, format="csr")
    return sp.vstack(list(expression.linear(everything))).toarray()


def of(values, names=None) -> ad.AnnData:
    """Values as AnnData."""
    values = np.asarray(values, dtype=np.float32)
    names = [f"g{i}" for i in range(values.shape[1])] if names is None else names
    obs = pd.DataFrame(index=[f"c{i}" for i in range(len(values))])
    return ad.AnnData(sp.csr_matrix(values), obs=obs, var=pd.DataFrame(index=pd.Index(names)))


def logistic(adata: ad.AnnData, ref: ad.AnnData, **kwargs) -> ad.AnnData:
    """Return the query, annotated in place by the fastest method."""
    sctool.tl.annotate(adata, ref, method="logistic", **kwargs)
    return adata


def audit(adata: ad.AnnData) -> str:
    return "\n".join(adata.uns["sctool"]["audit"])


@pytest.fixture
def few_genes(monkeypatch):
    """Let hand-made cases of a few genes through."""
    monkeypatch.setattr(_data, "MIN_SHARED", 1)
    monkeypatch.setattr(_data, "FEW_SHARED", 1)


# -- scales --------------------------------------------------------------------------------------

SCALES = {
    "counts": (lambda x: x.toarray(), "counts"),
    "counts-of-few-molecules": (lambda x: np.minimum(x.toarray(), 1), "counts"),
    "log1p": (lambda x: np.log1p(cp10k(x)), "log1p"),
    "log1p-of-some-genes": (lambda x: np.log1p(cp10k(x))[:, :100], "log1p"),
    "log1p-of-one-cell": (lambda x: np.log1p(cp10k(x))[:1], "log1p"),
    "log2p1-cpm": (lambda x: np.log2(1 + 100 * cp10k(x)), "log1p"),
    "cpm": (lambda x: 100 * cp10k(x), "linear"),
    "cp10k-of-few-genes": (lambda x: cp10k(x) / 1000, "linear"),
    "tpm-of-some-genes": (lambda x: 100 * cp10k(x)[:, :100], "linear"),
    "corrected-counts": (lambda x: 0.93 * x.toarray(), "linear"),
    "scaled": (lambda x: scaled(np.log1p(cp10k(x))), "scaled"),
    "scaled-not-centred": (lambda x: scaled(np.log1p(cp10k(x)), centre=False), "scaled"),
    "negative": (lambda x: x.toarray() - 1, "scaled"),
    "nan": (lambda x: np.where(x.toarray() > 9, np.nan, x.toarray()), "missing"),
    "infinite": (lambda x: np.where(x.toarray() > 9, np.inf, x.toarray()), "missing"),
    "zero": (lambda x: 0 * x.toarray(), "empty"),
}


@pytest.mark.parametrize("chunk", [8192, 7], ids=["one-chunk", "chunks"])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix], ids=["dense", "sparse"])
@pytest.mark.parametrize(("make", "scale"), SCALES.values(), ids=SCALES)
def test_scale(make, scale, form, chunk, monkeypatch):
    monkeypatch.setattr(_data, "CHUNK", chunk)
    assert _data.detect_scale(form(make(simulate().X).astype(np.float32))) == scale


@pytest.mark.parametrize("base", [None, 2, 10], ids=["e", "2", "10"])
def test_the_base_of_the_logarithm_is_read(base):
    adata = simulate()
    expected = cp10k(adata.X)
    adata.X = np.log1p(expected) / np.log(base or np.e)
    adata.uns["log1p"] = {"base": base}
    expression, _ = find_expression(adata, None, "query")
    assert expression.scale == "log1p"
    np.testing.assert_allclose(linear(expression), expected, rtol=1e-4, atol=1e-3)


def test_scaled_values_fall_back_to_raw():
    adata = simulate()
    counts = adata.X.toarray()
    adata.X = np.log1p(cp10k(adata.X))
    adata.raw = adata
    adata = adata[:, :250].copy()
    adata.X = scaled(adata.X)
    expression, notes = find_expression(adata, None, "query")
    assert (expression.slot, expression.scale) == ("raw.X", "log1p")
    assert expression.matrix.shape == (120, 300)
    assert list(expression.var.index) == GENES
    assert notes[0].startswith("query: read log1p values from raw.X, because X holds scaled values")
    np.testing.assert_allclose(linear(expression), cp10k(sp.csr_matrix(counts)), rtol=1e-4)


@pytest.mark.parametrize("name", ["counts", "raw_counts", "UMIs"])
def test_scaled_values_fall_back_to_a_layer_of_counts(name):
    adata = simulate()
    adata.layers[name] = adata.X.copy()
    adata.X = scaled(np.log1p(cp10k(adata.X)))
    adata.layers["other"] = adata.X
    expression, notes = find_expression(adata, None, "ref")
    assert (expression.slot, expression.scale) == (f"layers['{name}']", "counts")
    assert f"ref: read counts values from layers['{name}'], because X holds scaled" in notes[0]


def test_usable_values_in_x_come_first():
    adata = simulate()
    adata.raw = adata
    adata.layers["counts"] = 2 * adata.X
    assert find_expression(adata, None, "query")[0].slot == "X"


@pytest.mark.parametrize("layer", ["mine", "raw"])
def test_a_named_layer_is_taken_and_nothing_else(layer):
    adata = simulate()
    adata.layers["mine"] = np.log1p(cp10k(adata.X))
    adata.raw = adata
    expression, _ = find_expression(adata, layer, "query")
    assert expression.slot == ("raw.X" if layer == "raw" else "layers['mine']")
    adata.layers["mine"] = -np.ones(adata.shape)
    adata.raw = ad.AnnData(-np.ones(adata.shape), obs=adata.obs, var=adata.var)
    with pytest.raises(ValueError, match=r"query has no usable .*\['mine'\]|raw.X holds scaled"):
        find_expression(adata, layer, "query")


def test_a_missing_layer_names_those_that_are_there():
    adata = simulate()
    adata.layers["mine"] = adata.X
    with pytest.raises(
        KeyError, match=r"layer='raw' is not in the query's layers; found \['mine'\]"
    ):
        find_expression(adata, "raw", "query")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda x: scaled(np.log1p(cp10k(x))), "X holds scaled values"),
        (lambda x: scaled(np.log1p(cp10k(x)), centre=False), "X holds scaled values"),
        (lambda x: -x.toarray(), "X holds scaled values .negative"),
        (lambda x: np.full(x.shape, np.nan), "X holds missing or infinite values"),
        (lambda x: 0 * x.toarray(), "X holds only zeros"),
        (lambda x: None, "X is empty"),
    ],
    ids=["scaled", "scaled-not-centred", "negative", "nan", "zero", "none"],
)
@pytest.mark.parametrize("side", ["query", "ref"])
def test_what_cannot_be_used_is_refused_with_what_to_do(make, reason, side):
    adata, ref = simulate_sides()
    bad = adata if side == "query" else ref
    bad.X = make(bad.X)
    with pytest.raises(
        ValueError, match=rf"The {side} has no usable expression values: {reason}"
    ) as e:
        logistic(adata, ref)
    assert "Pass raw counts or log1p-normalised values in X, in adata.raw, or in a layer" in str(
        e.value
    )


FORMS = {
    "log1p": lambda x: np.log1p(cp10k(x)),
    "cpm": lambda x: 100 * cp10k(x),
    "log1p-cpm": lambda x: np.log1p(100 * cp10k(x)),
}


def inputs(adata: ad.AnnData, ref: ad.AnnData) -> np.ndarray:
    """What a model sees of both sides."""
    joint, unlabelled, _ = join(adata, ref, labels_key="cell_type")
    expression, _ = find_expression(joint, None, "joint")
    labelled = (joint.obs["labels"] != unlabelled).to_numpy()
    return Features.fit(expression, labelled, labelled.astype(int), None)[1].toarray()


@pytest.mark.parametrize("changed", ["query", "ref", "both"])
@pytest.mark.parametrize("form", list(FORMS))
def test_the_scale_of_the_same_cells_does_not_matter(form, changed):
    adata, ref = simulate_sides()
    expected, names = inputs(adata, ref), list(logistic(adata, ref).obs["sctool"])
    for side, cells in (("query", adata), ("ref", ref)):
        if changed in (side, "both"):
            cells.X = sp.csr_matrix(FORMS[form](cells.X).astype(np.float32))
    np.testing.assert_allclose(inputs(adata, ref), expected, atol=1e-4)
    assert list(logistic(adata, ref).obs["sctool"]) == names


def test_the_scale_of_the_query_does_not_matter_to_a_trained_model():
    adata, ref = simulate_sides()
    model = train_logistic(adata, ref)
    expected = logistic(adata, model).obsm["sctool_proba"]
    adata.layers["log"] = np.log1p(cp10k(adata.X))
    result = logistic(adata, model, layer="log")
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=1e-4)
    assert "query: read log1p values from layers['log']" in audit(result)


def test_scaled_bundled_cells_are_read_from_raw():
    adata, ref = sctool.datasets.blood()
    result = logistic(adata, ref)
    for side in ("query", "ref"):
        assert f"{side}: read log1p values from raw.X, because X holds scaled values" in audit(
            result
        )
    right = result.obs["sctool"].astype(str) == result.obs["truth"].astype(str)
    assert right.mean() > 0.8


# -- size factors, selection, missing genes ------------------------------------------------------


def test_size_factors_are_of_the_shared_genes(few_genes):
    ref = of([[1, 3, 96], [2, 2, 0]], ["a", "b", "ref_only"])
    adata = of([[900, 4, 1], [0, 0, 5]], ["query_only", "b", "a"])
    ref.obs["cell_type"] = ["x", "y"]
    joint, unlabelled, _ = join(adata, ref, labels_key="cell_type")
    assert list(joint.var_names) == ["a", "b"]
    assert joint.X.toarray().tolist() == [[1, 3], [2, 2], [1, 4], [5, 0]]
    expression, _ = find_expression(joint, None, "joint")
    labelled = (joint.obs["labels"] != unlabelled).to_numpy()
    features, x, _ = Features.fit(expression, labelled, np.array([0, 0, 1, 1]), None)
    shares = np.array([[0.25, 0.75], [0.5, 0.5], [0.2, 0.8], [1, 0]])
    np.testing.assert_allclose(x.toarray(), np.log(1 + 1e4 * shares), rtol=1e-6)
    mean = (np.log(2501) + np.log(5001)) / 2, (np.log(7501) + np.log(5001)) / 2
    np.testing.assert_allclose(features.mean, mean, rtol=1e-6)

    # a cell that the model is given later is brought to the same genes first
    chunks, fill, _ = features.transform(adata)
    assert fill is None
    np.testing.assert_allclose(sp.vstack(list(chunks)).toarray(), x[2:].toarray(), rtol=1e-6)


def test_size_factors_come_before_the_selection():
    adata, ref = simulate_sides()
    joint, unlabelled, _ = join(adata, ref, labels_key="cell_type")
    expression, _ = find_expression(joint, None, "joint")
    labelled = (joint.obs["labels"] != unlabelled).to_numpy()
    domain = joint.obs["domain"].cat.codes.to_numpy()
    features, x, _ = Features.fit(expression, labelled, domain, 60)
    assert len(features.selected) == 60
    assert list(features.genes.index) == GENES
    columns = joint.var_names.get_indexer(features.selected)
    expected = np.log1p(cp10k(joint.X))[:, columns]
    np.testing.assert_allclose(x.toarray(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(features.mean, expected[labelled].mean(axis=0), rtol=1e-5)


def test_informative_genes_are_those_that_vary(few_genes):
    _, ref = simulate_sides(n_ref=400)
    expression, _ = find_expression(ref, None, "ref")
    features, _, _ = Features.fit(expression, np.ones(400, bool), np.zeros(400, int), 32)
    markers = set(GENES[:32])
    assert len(markers & set(features.selected)) >= 16  # 3 by chance


def test_all_genes_means_those_that_a_cell_expresses():
    _, ref = simulate_sides()
    x = ref.X.toarray()
    x[:, [3, 7]] = 0
    ref.X = sp.csr_matrix(x)
    expression, _ = find_expression(ref, None, "ref")
    features, _, _ = Features.fit(expression, np.ones(120, bool), np.zeros(120, int), None)
    assert set(GENES) - set(features.selected) == {GENES[3], GENES[7]}


def test_missing_genes_take_the_mean_of_the_reference():
    genes = pd.DataFrame(index=pd.Index(["a", "b", "c", "unselected"], dtype=object))
    features = Features(
        genes, pd.Index(["a", "b", "c"], dtype=object), np.array([0.5, 1.5, 2.5], dtype=np.float32)
    )
    adata = of([[6, 1, 3, 1], [0, 2, 0, 2]], ["unselected", "other", "c", "a"])
    chunks, fill, notes = features.transform(adata)
    np.testing.assert_array_equal(fill, np.array([0, 1.5, 0], dtype=np.float32))
    x = sp.vstack(list(chunks)).toarray()
    # of ten molecules on the model's genes the first cell has one of a and three of c
    np.testing.assert_allclose(x[0], [np.log(1001), 0, np.log(3001)], rtol=1e-6)
    np.testing.assert_allclose(x[1], [np.log(10001), 0, 0], rtol=1e-6)
    assert "genes: 2 of the model's 3 genes (67%) are in the query" in notes[-1]


def test_empty_cells_are_named_nonsense(caplog):
    adata, ref = simulate_sides()
    x = adata.X.toarray()
    x[:3] = 0
    adata.X = sp.csr_matrix(x)
    result = logistic(adata, ref)
    assert "3 express none of the shared genes; their labels mean nothing" in audit(result)
    assert "3 cells express none of the shared genes" in caplog.text
    assert np.isfinite(result.obsm["sctool_proba"]).all()
    model = train_logistic(adata, ref)
    assert "3 express none of the shared genes" in audit(logistic(adata, model))


# -- genes ---------------------------------------------------------------------------------------


def train_logistic(adata: ad.AnnData, ref: ad.AnnData, **kwargs):
    """Return a trained model."""
    defaults = {
        "labels_key": "cell_type",
        "method": "logistic",
        "batch_key": None,
        "layer": None,
        "novel": "auto",
        "ignore_case": False,
        "key_added": "sctool",
        "random_state": 0,
        "copy": True,
        "model_kwargs": None,
        "train_kwargs": None,
    }
    return annotate_with_model(adata, ref, **(defaults | kwargs))[1]


def test_genes_of_one_side_only_are_left_out():
    adata, ref = simulate_sides()
    expected = logistic(adata[:, 20:280].copy(), ref[:, 20:280].copy()).obsm["sctool_proba"]
    result = logistic(adata[:, :280].copy(), ref[:, 20:].copy())
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=1e-5)


def split_gene(adata: ad.AnnData, gene: int) -> ad.AnnData:
    """The molecules of a gene spread over two genes of the same name, the second at the end."""
    x = adata.X.toarray()
    half = np.floor(x[:, gene] / 2)
    x = np.column_stack([x, x[:, gene] - half])
    x[:, gene] = half
    var = pd.DataFrame(index=pd.Index([*adata.var_names, adata.var_names[gene]]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata advises against names that are not unique
        return ad.AnnData(sp.csr_matrix(x), obs=adata.obs, var=var)


@pytest.mark.parametrize("side", ["query", "ref"])
def test_duplicated_genes_are_added_up(side):
    adata, ref = simulate_sides()
    expected = logistic(adata, ref).obsm["sctool_proba"]
    if side == "query":
        adata = split_gene(adata, 2)
    else:
        ref = split_gene(ref, 2)
    result = logistic(adata, ref)
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=1e-3)
    assert f"{side}: added up 1 duplicated genes" in audit(result)


def test_duplicated_genes_are_added_up_for_a_trained_model():
    adata, ref = simulate_sides()
    model = train_logistic(adata, ref)
    expected = logistic(adata, model).obsm["sctool_proba"]
    result = logistic(split_gene(adata, 2), model)
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=1e-6)
    assert "query: added up 1 duplicated genes" in audit(result)


ENSEMBL = [f"ENSG{i:011d}" for i in range(len(GENES))]
VERSIONED = [f"{name}.{i % 9 + 1}" for i, name in enumerate(ENSEMBL)]


def renamed(adata: ad.AnnData, names: list[str], **columns: object) -> ad.AnnData:
    """A copy with other gene names, and columns of ``var``."""
    adata = adata.copy()
    adata.var_names = names
    for name, values in columns.items():
        adata.var[name] = values
    return adata


def named(names: list[str], **columns: object) -> dict[str, object]:
    """Names of a side's genes, and columns of its ``var``."""
    return {"names": names, **columns}


NAMING = {
    "version-in-query": (named(names=VERSIONED), named(names=ENSEMBL)),
    "version-in-ref": (named(names=ENSEMBL), named(names=VERSIONED)),
    "two-versions": (named(names=VERSIONED), named(names=[f"{n}.77" for n in ENSEMBL])),
    "symbols-beside-ids-in-query": (named(names=VERSIONED, symbol=GENES), named(names=GENES)),
    "symbols-beside-ids-in-ref": (named(names=GENES), named(names=ENSEMBL, feature_name=GENES)),
    "ids-beside-symbols-in-query": (named(names=GENES, gene_ids=VERSIONED), named(names=ENSEMBL)),
    "ids-beside-symbols-in-ref": (named(names=ENSEMBL), named(names=GENES, gene_ids=VERSIONED)),
    "categorical-column": (named(names=ENSEMBL, symbol=pd.Categorical(GENES)), named(names=GENES)),
    "string-column": (
        named(names=ENSEMBL, symbol=pd.array(GENES, dtype="string")),
        named(names=GENES),
    ),
    "spaces": (named(names=[f" {g} " for g in GENES]), named(names=GENES)),
}


@pytest.mark.parametrize(("query_names", "ref_names"), NAMING.values(), ids=NAMING)
@pytest.mark.parametrize("trained", [False, True], ids=["reference", "trained-model"])
def test_genes_meet_under_whatever_name_both_sides_have(query_names, ref_names, trained):
    adata, ref = simulate_sides()
    expected = logistic(adata, ref).obsm["sctool_proba"]
    adata, ref = renamed(adata, **query_names), renamed(ref, **ref_names)
    if trained:
        # the model's own query has the reference's names; the other comes later
        ref = train_logistic(renamed(simulate(8, seed=5), **ref_names), ref)
    result = logistic(adata, ref)
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=0.02)
    if len(query_names) + len(ref_names) > 2:
        assert "genes: matched the reference's " in audit(result)


def test_genes_without_a_name_meet_no_other():
    adata, ref = simulate_sides()
    symbols = [*GENES[:-2], None, None]
    adata = renamed(adata, ENSEMBL, symbol=pd.Series(symbols, index=ENSEMBL, dtype="string"))
    ref = renamed(ref, VERSIONED[::-1], symbol=pd.Series(symbols, index=VERSIONED[::-1]))
    ref.var_names = [f"x{i}" for i in range(300)]
    names, others, notes = match_genes(ref.var, adata.var)
    assert notes == ["genes: matched the reference's var['symbol'] with the query's var['symbol']"]
    assert list(names) == list(others) == [*GENES[:-2], "", ""]
    assert join(adata, ref, labels_key="cell_type")[0].n_vars == 298


def test_a_column_is_not_used_where_the_names_match_as_well():
    adata, ref = simulate_sides()
    adata.var["alias"] = list(reversed(GENES))
    names, others, notes = match_genes(ref.var, adata.var)
    assert list(names) == GENES
    assert list(others) == GENES
    assert notes == []


@pytest.mark.parametrize("trained", [False, True], ids=["reference", "trained-model"])
def test_case_is_ignored_only_when_asked(trained):
    adata, ref = simulate_sides()
    expected = logistic(adata, ref).obsm["sctool_proba"]
    mouse = renamed(adata, [g.capitalize() for g in GENES])
    with pytest.raises(ValueError, match=r"share 0 genes.*they share 300: pass ignore_case=True"):
        logistic(mouse, ref)
    if trained:
        ref = train_logistic(adata, ref, ignore_case=True)
        result = logistic(mouse, ref)
    else:
        result = logistic(mouse, ref, ignore_case=True)
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=1e-5)
    assert "genes: compared without regard to case" in audit(result)


def test_too_few_shared_genes_is_an_error_with_examples_of_both():
    adata, ref = simulate_sides()
    adata = renamed(adata, GENES[:199] + [f"other{i}" for i in range(101)])
    with pytest.raises(ValueError, match=r"share 199 genes by name; at least 200") as error:
        logistic(adata, ref)
    for text in (GENES[0], "Reference: [", "query: [", "Give both sides gene symbols"):
        assert text in str(error.value)


@pytest.mark.parametrize("side", ["query", "ref"])
def test_ids_against_symbols_is_an_error_that_says_so(side):
    adata, ref = simulate_sides()
    if side == "query":
        adata = renamed(adata, VERSIONED)
    else:
        ref = renamed(ref, VERSIONED)
    with pytest.raises(ValueError, match=r"One side has Ensembl ids and the other symbols: add"):
        logistic(adata, ref)


def test_few_shared_genes_are_warned_of(caplog):
    adata, ref = simulate_sides()
    result = logistic(adata, ref)
    assert "genes: only 300 are shared" in audit(result)
    records = [r for r in caplog.records if r.name == "sctool" and "only 300" in r.message]
    assert [r.levelno for r in records] == [logging.WARNING]


def test_enough_shared_genes_are_not_warned_of(caplog, monkeypatch):
    monkeypatch.setattr(_data, "FEW_SHARED", 300)
    adata, ref = simulate_sides()
    result = logistic(adata, ref)
    assert "are shared" not in audit(result)
    assert [r for r in caplog.records if r.name == "sctool"] == []


@pytest.mark.parametrize(
    ("share", "outcome"),
    [(0.49, "error"), (0.5, "warning"), (0.79, "warning"), (0.8, "note"), (1.0, "nothing")],
)
def test_genes_that_a_trained_model_misses(share, outcome, caplog):
    adata, ref = simulate_sides()
    model = train_logistic(adata, ref)
    caplog.clear()
    n = round(share * 300)
    part = adata[:, :n].copy()
    if outcome == "error":
        with pytest.raises(ValueError, match=rf"Only {n} of the model's 300 genes") as error:
            logistic(part, model)
        assert "at least 50% are needed. Model: ['GENE000'" in str(error.value)
        return
    result = logistic(part, model)
    assert ("the others took the reference's mean" in audit(result)) == (outcome != "nothing")
    warned = [r.message for r in caplog.records if r.name == "sctool"]
    assert [m.startswith(f"Only {n} of") for m in warned] == [True] * (outcome == "warning")


def test_the_fill_reaches_the_prediction():
    adata, ref = simulate_sides()
    model = train_logistic(adata, ref)
    part = adata[:, 100:].copy()
    x = np.zeros((part.n_obs, 300))
    x[:, 100:] = np.log1p(cp10k(part.X))
    x[:, :100] = model.features_.mean[:100]
    weight, bias = (p.detach().numpy() for p in model.module.head.parameters())
    logits = x @ weight.T + bias
    np.testing.assert_allclose(logistic(part, model).obsm["X_sctool"], logits, rtol=0, atol=1e-3)


# -- the joint object ----------------------------------------------------------------------------


def test_join_keeps_cells_and_genes_in_order():
    adata, ref = simulate_sides()
    joint, unlabelled, notes = join(adata[:, ::-1].copy(), ref, labels_key="cell_type")
    assert unlabelled == "Unknown"
    assert list(joint.var_names) == GENES
    assert joint.X.format == "csr"
    assert joint.X.dtype == np.float32
    expected = np.vstack([ref.X.toarray(), adata.X.toarray()])
    np.testing.assert_array_equal(joint.X.toarray(), expected)
    labels = [*ref.obs["cell_type"].astype(str), *["Unknown"] * adata.n_obs]
    assert list(joint.obs["labels"]) == labels
    assert list(joint.obs["labels"].cat.categories) == [*TYPES, "Unknown"]
    assert list(joint.obs["domain"]) == ["ref"] * ref.n_obs + ["query"] * adata.n_obs
    assert joint.obs_names.is_unique
    assert notes[:2] == [
        "ref: read counts values from X",
        "query: read counts values from X",
    ]


def test_join_takes_cells_of_the_same_name_on_both_sides():
    adata, ref = simulate_sides()
    adata.obs_names = ref.obs_names[: adata.n_obs]
    assert join(adata, ref, labels_key="cell_type")[0].obs_names.is_unique


def test_batches_are_domains_of_their_side():
    adata, ref = simulate_sides()
    for side in (adata, ref):
        side.obs["donor"] = pd.Categorical(["1", "2"] * (side.n_obs // 2))
    joint, _, _ = join(adata, ref, labels_key="cell_type", batch_key="donor")
    assert list(joint.obs["domain"].cat.categories) == ["query:1", "query:2", "ref:1", "ref:2"]
    assert list(joint.obs["domain"][:2]) == ["ref:1", "ref:2"]


@pytest.mark.parametrize("kind", ["object", "category", "float"])
def test_cells_without_a_batch_are_one_more_batch(kind):
    adata, ref = simulate_sides()
    for side in (adata, ref):
        donor = pd.Series([1.0, np.nan] * (side.n_obs // 2), index=side.obs_names)
        side.obs["donor"] = donor if kind == "float" else donor.astype(object).astype(kind)
    joint, _, _ = join(adata, ref, labels_key="cell_type", batch_key="donor")
    assert joint.obs["domain"].notna().all()
    assert joint.obs["domain"].nunique() == 4


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
    ],
)
def test_labels_become_text(values, codes, categories):
    labels = clean_labels(pd.Series(values, index=list("wxyz")))
    assert list(labels.codes) == codes
    assert list(labels.categories) == categories


def test_labels_that_only_their_type_tells_apart_are_refused():
    with pytest.raises(ValueError, match=r"differ in type only"):
        clean_labels(pd.Series(pd.Categorical([1, "1"], [1, "1"])))
