"""Genes: selected, matched by name, and filled in where they are missing."""

import logging
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from stages import (
    ENSEMBL,
    assert_read_alike,
    audit,
    cp10k,
    every_stage,
    expected,
    logistic,
    of,
    train_logistic,
    transformed,
)
from synthetic import GENES, simulate, simulate_sides

from sctool._data import Features, _genes, join, read_cells
from sctool._data._genes import clean_names, match_genes


@pytest.fixture
def few_genes(monkeypatch):
    """Let hand-made cases of a few genes through."""
    monkeypatch.setattr(_genes, "MIN_SHARED", 1)
    monkeypatch.setattr(_genes, "FEW_SHARED", 1)


# -- size factors, selection, missing genes ------------------------------------------------------


def test_size_factors_are_of_the_shared_genes(few_genes):
    ref = of([[1, 3, 96], [2, 2, 0]], ["a", "b", "ref_only"])
    adata = of([[900, 4, 1], [0, 0, 5]], ["query_only", "b", "a"])
    ref.obs["cell_type"] = ["x", "y"]
    data = join(adata, ref, labels_key="cell_type")
    assert list(data.genes.index) == ["a", "b"]
    assert data.x.toarray().tolist() == [[1, 3], [2, 2], [1, 4], [5, 0]]
    features, x = Features.fit(data, None)
    shares = np.array([[0.25, 0.75], [0.5, 0.5], [0.2, 0.8], [1, 0]])
    np.testing.assert_allclose(x.toarray(), np.log(1 + 1e4 * shares), rtol=1e-6)
    mean = (np.log(2501) + np.log(5001)) / 2, (np.log(7501) + np.log(5001)) / 2
    np.testing.assert_allclose(features.mean, mean, rtol=1e-6)

    # a cell that the model is given later is brought to the same genes first
    seen, fill, _ = transformed(features, adata)
    assert fill is None
    np.testing.assert_allclose(seen, x[2:].toarray(), rtol=1e-6)


def test_size_factors_come_before_the_selection():
    adata, ref = simulate_sides()
    data = join(adata, ref, labels_key="cell_type")
    features, x = Features.fit(data, 60)
    assert len(features.selected) == 60
    assert list(features.genes.index) == GENES
    columns = data.genes.index.get_indexer(features.selected)
    expected = np.log1p(cp10k(data.x))[:, columns]
    np.testing.assert_allclose(x.toarray(), expected, rtol=1e-5, atol=1e-6)
    labelled = data.labels.codes >= 0
    assert labelled.tolist() == [True] * 120 + [False] * 80
    np.testing.assert_allclose(features.mean, expected[labelled].mean(axis=0), rtol=1e-5)


def test_variable_genes_are_those_that_vary():
    _, ref = simulate_sides(n_ref=400)
    features, _ = Features.fit(read_cells(ref, None, "ref"), 32)
    markers = set(GENES[:32])
    assert len(markers & set(features.selected)) >= 16  # 3 by chance


def test_domains_of_few_cells_have_no_say_in_the_selection():
    _, ref = simulate_sides(n_ref=200)
    few = simulate(40, seed=9)
    x = few.X.toarray()
    x[::2, 200:232] = 200  # what varies most among them
    few.X = sp.csr_matrix(x)
    data = read_cells(ad.concat([ref, few]), None, "data")
    data.domain = np.repeat([0, 1], [200, 40])
    alone = set(Features.fit(read_cells(ref, None, "ref"), 32)[0].selected)
    assert set(Features.fit(data, 32)[0].selected) == alone
    data.domain = np.zeros(240, dtype=int)  # of the same domain they have
    assert set(Features.fit(data, 32)[0].selected) != alone


def test_all_genes_means_those_that_a_cell_expresses():
    _, ref = simulate_sides()
    x = ref.X.toarray()
    x[:, [3, 7]] = 0
    ref.X = sp.csr_matrix(x)
    features, _ = Features.fit(read_cells(ref, None, "ref"), None)
    assert set(GENES) - set(features.selected) == {GENES[3], GENES[7]}


def test_missing_genes_take_the_mean_of_the_reference():
    genes = pd.DataFrame(index=pd.Index(["a", "b", "c", "unselected"], dtype=object))
    features = Features(
        genes, pd.Index(["a", "b", "c"], dtype=object), np.array([0.5, 1.5, 2.5], dtype=np.float32)
    )
    adata = of([[6, 1, 3, 1], [0, 2, 0, 2]], ["unselected", "other", "c", "a"])
    x, fill, notes = transformed(features, adata)
    np.testing.assert_array_equal(fill, np.array([0, 1.5, 0], dtype=np.float32))
    # of ten molecules on the model's genes the first cell has one of a and three of c
    np.testing.assert_allclose(x[0], [np.log(1001), 0, np.log(3001)], rtol=1e-6)
    np.testing.assert_allclose(x[1], [np.log(10001), 0, 0], rtol=1e-6)
    assert "genes: 2 of the model's 3 genes (67%) are in the query" in notes[-1]


# -- genes ---------------------------------------------------------------------------------------


@every_stage
def test_the_order_of_the_querys_genes_is_irrelevant(stage):
    adata, ref = simulate_sides()
    order = np.random.default_rng(0).permutation(adata.n_vars)
    if stage == "read_cells":  # of one object the order is its own
        data = read_cells(adata[:, order].copy(), None, "data")
        assert list(data.genes.index) == [GENES[i] for i in order]
        np.testing.assert_array_equal(data.x.toarray(), adata.X.toarray()[:, order])
    else:
        assert_read_alike(stage, adata[:, order].copy(), ref)


@pytest.mark.parametrize("n_top_genes", [None, 100], ids=["all-genes", "top-genes"])
def test_the_order_of_the_references_genes_is_irrelevant(n_top_genes):
    adata, ref = simulate_sides()
    order = np.random.default_rng(1).permutation(ref.n_vars)
    data = join(adata, ref[:, order].copy(), labels_key="cell_type")
    assert list(data.genes.index) == [GENES[i] for i in order]
    wanted, x = Features.fit(expected("join"), n_top_genes)
    features, y = Features.fit(data, n_top_genes)
    assert list(features.selected) == list(wanted.selected) == sorted(wanted.selected)
    np.testing.assert_allclose(y.toarray(), x.toarray(), rtol=1e-6)
    np.testing.assert_allclose(features.mean, wanted.mean, rtol=1e-5)


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
    assert f"{side}: summed 1 genes with duplicate names" in audit(result)


def test_duplicated_genes_are_added_up_for_a_trained_model():
    adata, ref = simulate_sides()
    model = train_logistic(adata, ref)
    expected = logistic(adata, model).obsm["sctool_proba"]
    result = logistic(split_gene(adata, 2), model)
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=1e-6)
    assert "query: summed 1 genes with duplicate names" in audit(result)


VERSIONED = [f"{name}.{i % 9 + 1}" for i, name in enumerate(ENSEMBL)]


#: Names that R's make.names changes, some of them, and what it makes of them.
DASHES = [*(f"HLA-{g}" for g in GENES[:150]), *(f"7{g}" for g in GENES[150:200]), *GENES[200:]]
BY_R = [*(f"HLA.{g}" for g in GENES[:150]), *(f"X7{g}" for g in GENES[150:200]), *GENES[200:]]


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
    "changed-by-r-in-query": (named(names=BY_R), named(names=DASHES)),
    "changed-by-r-in-ref": (named(names=DASHES), named(names=BY_R)),
    "genome-in-query": (named(names=[f"GRCh38_{g}" for g in GENES]), named(names=GENES)),
    "genome-in-ref": (named(names=GENES), named(names=[f"mm10___{g}" for g in GENES])),
    "two-genomes": (
        named(names=[f"hg38_{n}" for n in VERSIONED]),
        named(names=[f"GRCh38______{n}" for n in ENSEMBL]),
    ),
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


@pytest.mark.parametrize(
    ("names", "ref_names", "note"),
    [
        (BY_R, DASHES, "query: 200 names of genes, changed by R, were changed back"),
        (DASHES, BY_R, "ref: 200 names of genes, changed by R, were changed back"),
        (
            [f"mm10_{g}" for g in GENES],
            GENES,
            "query: 'mm10_' before the names of genes was removed",
        ),
    ],
    ids=["r-in-query", "r-in-ref", "genome"],
)
def test_the_audit_says_how_names_were_changed(names, ref_names, note):
    adata, ref = simulate_sides()
    data = join(renamed(adata, names), renamed(ref, ref_names), labels_key="cell_type")
    assert note in data.audit
    assert data.x.shape[1] == 300


@pytest.mark.parametrize(
    ("names", "others", "shared"),
    [
        (["A.1", "B"], ["A-1", "A_1", "B"], {"B", "A-1"}),
        (["A.1", "B"], ["A-1", "A.1", "B"], {"B", "A.1"}),
        (["A.1", "B"], ["A-1", "A 1", "B"], {"B"}),
        (["A.1", "B-2"], ["A-1", "B-2"], {"B-2"}),
    ],
    ids=["underscores-stay", "there-as-it-is", "two-originals", "not-of-r"],
)
def test_what_r_changed_is_changed_back_only_if_it_is_sure(names, others, shared):
    ref_names, query_names, _ = match_genes(pd.DataFrame(index=others), pd.DataFrame(index=names))
    assert set(ref_names) & set(query_names) == shared


def test_genomes_of_two_species_are_kept_apart():
    names = [f"{'GRCh38' if i % 2 else 'mm10'}_{g}" for i, g in enumerate(GENES)]
    assert list(clean_names(names)) == names


def test_genes_without_a_name_meet_no_other():
    adata, ref = simulate_sides()
    symbols = [*GENES[:-2], None, None]
    adata = renamed(adata, ENSEMBL, symbol=pd.Series(symbols, index=ENSEMBL, dtype="string"))
    ref = renamed(ref, VERSIONED[::-1], symbol=pd.Series(symbols, index=VERSIONED[::-1]))
    ref.var_names = [f"x{i}" for i in range(300)]
    names, others, notes = match_genes(ref.var, adata.var)
    assert notes == ["genes: matched the reference's var['symbol'] with the query's var['symbol']"]
    assert list(names) == list(others) == [*GENES[:-2], "", ""]
    assert join(adata, ref, labels_key="cell_type").x.shape[1] == 298


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
    assert "genes: case was ignored when matching names" in audit(result)


def test_some_names_in_common_do_not_hide_that_names_differ_in_case(monkeypatch):
    adata, ref = simulate_sides()
    names = adata.var_names.to_series()
    adata.var_names = np.where(np.arange(len(names)) < 50, names, names.str.capitalize())
    monkeypatch.setattr(_genes, "MIN_SHARED", 40)
    with pytest.raises(ValueError, match=r"share 50 genes by name; many more if case.*share 300"):
        logistic(adata, ref)
    result = logistic(adata, ref, ignore_case=True)
    assert "genes: 300 are shared (reference: 300, query: 300)" in audit(result)
    # as many as that can be panels that differ
    adata.var_names = np.where(np.arange(len(names)) < 70, names, names.str.capitalize())
    assert "genes: 70 are shared (reference: 300, query: 300)" in audit(logistic(adata, ref))


def test_too_few_shared_genes_is_an_error_with_examples_of_both():
    adata, ref = simulate_sides()
    adata = renamed(adata, GENES[:99] + [f"other{i}" for i in range(201)])
    with pytest.raises(ValueError, match=r"share 99 genes by name; at least 100") as error:
        logistic(adata, ref)
    for text in (GENES[0], "Reference: [", "query: [", "Use gene symbols in both"):
        assert text in str(error.value)


@pytest.mark.parametrize("side", ["query", "ref"])
def test_ids_against_symbols_is_an_error_that_says_so(side):
    adata, ref = simulate_sides()
    if side == "query":
        adata = renamed(adata, VERSIONED)
    else:
        ref = renamed(ref, VERSIONED)
    with pytest.raises(ValueError, match=r"One has Ensembl ids and the other gene symbols: add"):
        logistic(adata, ref)


def test_ids_of_another_species_against_symbols_are_said_to_be_so():
    adata, ref = simulate_sides()
    fish = renamed(adata, [f"ENSDARG{i:011d}" for i in range(adata.n_vars)])
    with pytest.raises(
        ValueError, match=r"Ensembl ids \(ENSDARG\.\.\.\) of a species that is neither"
    ):
        logistic(fish, ref)


def test_few_shared_genes_are_warned_of_once(caplog):
    adata, ref = simulate_sides()
    result = logistic(adata, ref)
    assert "genes: 300 are shared (reference: 300, query: 300)" in audit(result)
    records = [r for r in caplog.records if r.name == "sctool" and "300" in r.message]
    assert [r.levelno for r in records] == [logging.WARNING]  # one, that of the alarm
    assert records[0].message.startswith("genes: only 300 are shared")


def test_enough_shared_genes_are_not_warned_of(caplog, monkeypatch):
    monkeypatch.setattr(_genes, "FEW_SHARED", 300)
    adata, ref = simulate_sides()
    logistic(adata, ref)
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
    assert ("missing genes were set to the reference's mean" in audit(result)) == (
        outcome != "nothing"
    )
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


@pytest.mark.parametrize("side", ["ref", "query"])
def test_of_several_columns_of_one_name_the_first_is_used(side):
    adata, ref = simulate_sides()
    expected = logistic(adata, ref).obsm["sctool_proba"]
    changed = ref if side == "ref" else adata
    kinds = pd.DataFrame({"feature_types": "Gene Expression", "symbol": GENES}, changed.var_names)
    changed.var = pd.concat([kinds, kinds[::-1].set_axis(kinds.index)], axis=1)
    result = logistic(adata, ref)
    note = (
        f"{side}: var has several columns ['feature_types', 'symbol']; the first of each was used"
    )
    assert note in audit(result)
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=1e-5)
