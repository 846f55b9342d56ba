"""Inputs as people have them: what is repaired, with a note, and what is refused."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from synthetic import GENES, TYPES

import sctool
from sctool._data import clean_labels, join, palette
from sctool._data._genes import match_genes
from sctool.model import load


def annotated(adata: ad.AnnData, ref: ad.AnnData, **settings) -> ad.AnnData:
    """The query annotated by a regression."""
    return sctool.tl.annotate(adata, ref, method="logistic", copy=True, **settings)


def audit(adata: ad.AnnData) -> str:
    """The notes in one text."""
    return "\n".join(adata.uns["sctool"]["audit"])


@pytest.fixture
def baseline(sides) -> list[str]:
    """Return the labels that clean inputs get."""
    return list(annotated(*sides).obs["sctool"])


# -- layers and raw ------------------------------------------------------------------------------


@pytest.mark.parametrize("having", ["query", "ref"])
def test_a_layer_that_one_side_has_is_used_there(having, adata, ref, baseline):
    side = {"query": adata, "ref": ref}[having]
    side.layers["counts"] = side.X.copy()
    side.X = side.X * 0
    result = annotated(adata, ref, layer="counts")
    assert list(result.obs["sctool"]) == baseline
    other = {"query": "ref", "ref": "query"}[having]
    assert f"{other}: has no layer 'counts'; other values were looked for" in audit(result)
    assert f"{having}: read count values from layers['counts']" in audit(result)


def test_raw_is_used_where_x_holds_each_sides_variable_genes(adata, ref, baseline):
    halves = [GENES[:140], GENES[120:]]  # 20 of 300 genes in both
    for side, genes in zip((adata, ref), halves, strict=True):
        side.raw = side.copy()
        side._inplace_subset_var(genes)
    result = annotated(adata, ref)
    assert list(result.obs["sctool"]) == baseline
    for side in ("ref", "query"):
        assert (
            f"{side}: read count values from raw.X, where 300 genes are shared instead of 20"
            in (audit(result))
        )
    assert "genes: 300 are shared" in audit(result)


def test_raw_of_one_side_is_enough(adata, ref, baseline):
    adata.raw = adata.copy()
    adata._inplace_subset_var(GENES[:50])
    result = annotated(adata, ref)
    assert list(result.obs["sctool"]) == baseline
    assert "query: read count values from raw.X, where 300 genes are shared instead of 50" in (
        audit(result)
    )
    assert "ref: read count values from X" in audit(result)


def test_a_trained_model_uses_raw_where_it_has_far_more_of_its_genes(adata, ref, baseline):
    model = sctool.tl.annotate(adata, ref, method="logistic", return_model=True)
    adata.raw = adata.copy()
    adata._inplace_subset_var(GENES[:40])
    result = annotated(adata, model)
    assert list(result.obs["sctool"]) == baseline
    assert "read count values from raw.X, which has 300 of the genes instead of 40" in audit(result)
    asked = annotated(adata, model, layer="raw")
    assert list(asked.obs["sctool"]) == baseline


def test_raw_that_is_not_there_is_said(adata, ref):
    with pytest.raises(KeyError, match="layer='raw': the ref has no raw; found layers"):
        annotated(adata, ref, layer="raw")


def test_x_is_used_where_raw_is_unusable(adata, ref, monkeypatch):
    monkeypatch.setattr("sctool._data._genes.MIN_SHARED", 50)
    adata.raw = adata.copy()
    adata.raw.X.data[:] = np.nan
    adata._inplace_subset_var(GENES[:60])
    result = annotated(adata, ref)
    assert "query: read count values from X" in audit(result)


def test_x_is_used_where_raw_shares_hardly_more(adata, ref):
    adata.raw = adata.copy()
    adata._inplace_subset_var(GENES[:250])
    assert "query: read count values from X\n" in audit(annotated(adata, ref))


# -- labels and colours --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", " ", "nan", "NA", "<NA>", "None", "n/a", "NULL", "NaT", "#N/A", "-", "?", "missing"],
)
@pytest.mark.parametrize("dtype", [object, "category", "string"])
def test_text_for_a_missing_label_is_missing(text, dtype, adata, ref):
    gone = ref.obs["cell_type"] == "DC"
    ref.obs["cell_type"] = ref.obs["cell_type"].astype(str).where(~gone, text).astype(dtype)
    result = annotated(adata, ref)
    assert "DC" not in result.uns["sctool"]["classes"]
    assert text not in result.uns["sctool"]["classes"]
    assert f"ref: labels [{text!r}] were treated as missing" in audit(result)
    assert f"ref: {gone.sum()} cells without a label were left out" in audit(result)


def test_labels_that_only_look_missing_stay():
    names = ["NAN cell", "none of these", "NA+", "nan"]
    assert list(clean_labels(pd.Series(names)).categories) == sorted(names[:3])


def test_numbers_are_labels_and_missing_ones_are_not():
    labels = clean_labels(pd.Series([1, 2, np.nan, 1]))
    assert list(labels.categories) == ["1.0", "2.0"]
    assert labels.codes.tolist() == [0, 1, -1, 0]


@pytest.mark.parametrize("key", ["labels_key", "batch_key"])
def test_a_column_that_is_there_twice_is_refused(key, adata, ref):
    adata.obs["donor"] = ref.obs["donor"] = "a"
    name = {"labels_key": "cell_type", "batch_key": "donor"}[key]
    ref.obs = pd.concat([ref.obs, ref.obs[[name]]], axis=1)
    with pytest.raises(ValueError, match=f"{key}='{name}': the ref's obs has 2 columns"):
        annotated(adata, ref, **({} if key == "labels_key" else {"batch_key": "donor"}))


@pytest.mark.parametrize("kind", ["hex", "names", "rgb", "rgba", "mapping", "list"])
def test_colours_in_any_form_are_kept(kind, adata, ref):
    ref.obs["cell_type"] = ref.obs["cell_type"].astype("category")
    colors = ["#ff0000", "#00ff00", "#0000ff", "#000000"]
    rgb = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=float)
    ref.uns["cell_type_colors"] = {
        "hex": np.array(colors, dtype=object),
        "names": ["red", "lime", "blue", "black"],
        "rgb": rgb,
        "rgba": np.hstack([rgb, np.ones((4, 1))]),
        "mapping": dict(zip(TYPES, colors, strict=True)),
        "list": colors,
    }[kind]
    result = palette(ref, "cell_type")
    from matplotlib.colors import to_hex

    assert {name: to_hex(c) for name, c in result.items()} == dict(zip(TYPES, colors, strict=True))
    assert len(annotated(adata, ref).uns["sctool_colors"]) == 4


# -- genes ---------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_antibodies_named_like_genes_are_left_out(adata, ref, baseline):
    proteins = sp.csr_matrix(np.full((adata.n_obs, 5), 300.0))
    both = ad.AnnData(sp.hstack([adata.X, proteins], format="csr"), obs=adata.obs)
    both.var_names = [*GENES, *GENES[:5]]
    both.var["feature_types"] = ["Gene Expression"] * 300 + ["Antibody Capture"] * 5
    result = annotated(both, ref)
    assert list(result.obs["sctool"]) == baseline
    assert "query: left out 5 features that are not genes (Antibody Capture)" in audit(result)
    assert "duplicate" not in audit(result)
    model = sctool.tl.annotate(adata, ref, method="logistic", return_model=True)
    assert list(annotated(both, model).obs["sctool"]) == baseline
    clusters = sctool.tl.cluster(both, method="leiden", n_clusters=4, copy=True)
    assert "left out 5 features" in "\n".join(clusters.uns["leiden"]["audit"])


@pytest.mark.parametrize("gene", ["Gene Expression", "gene_expression", "GEX", "RNA", "gene"])
def test_genes_have_several_names(gene, adata, ref, baseline):
    both = ad.AnnData(sp.hstack([adata.X, adata.X[:, :5] * 100], format="csr"), obs=adata.obs)
    both.var_names = [*GENES, *(f"protein{i}" for i in range(5))]
    both.var["feature_types"] = pd.Categorical([gene] * 300 + ["ADT"] * 5)
    result = annotated(both, ref)
    assert list(result.obs["sctool"]) == baseline
    assert "query: left out 5 features that are not genes (ADT)" in audit(result)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("column", ["feature_types", "feature_biotype"])
def test_every_column_that_tells_genes_from_antibodies_is_heeded(column, adata, ref, baseline):
    proteins = sp.csr_matrix(np.full((adata.n_obs, 5), 300.0))
    both = ad.AnnData(sp.hstack([adata.X, proteins], format="csr"), obs=adata.obs)
    both.var_names = [*GENES, *GENES[:5]]
    # one column tells kinds of genes apart, and the other the genes from what is none
    other = {"feature_types": "feature_biotype", "feature_biotype": "feature_types"}[column]
    both.var[other] = ["protein_coding"] * 200 + ["lncRNA"] * 105
    both.var[column] = ["gene"] * 300 + ["antibody"] * 5
    result = annotated(both, ref)
    assert list(result.obs["sctool"]) == baseline
    assert "query: left out 5 features that are not genes (antibody)" in audit(result)
    both.var[column] = ["gene"] * 300 + ["gene", "spike-in", "antibody", "gene", "gene"]
    both.var[other] = ["gene"] * 303 + ["peptide", "gene"]
    notes = "features that are not genes (antibody, peptide, spike-in)"
    assert f"query: left out 3 {notes}" in audit(annotated(both, ref))


PROTEINS = {
    "clr": lambda rng: rng.normal(size=(80, 5)),
    "log1p": lambda rng: np.log1p(rng.poisson(50, (80, 5))),
    "counts": lambda rng: rng.poisson(200, (80, 5)),
    "missing": lambda rng: np.full((80, 5), np.nan),
}


@pytest.mark.parametrize("genes", ["counts", "log1p"])
@pytest.mark.parametrize("proteins", PROTEINS)
def test_the_scale_is_that_of_the_genes(proteins, genes, adata, ref, baseline):
    x = adata.X.toarray()
    if genes == "log1p":
        x = np.log1p(1e4 * x / x.sum(axis=1, keepdims=True))
    both = ad.AnnData(
        np.hstack([x, PROTEINS[proteins](np.random.default_rng(0))]).astype(np.float32),
        obs=adata.obs,
    )
    both.var_names = [*GENES, *(f"protein{i}" for i in range(5))]
    both.var["feature_types"] = ["Gene Expression"] * 300 + ["Antibody Capture"] * 5
    result = annotated(both, ref)
    assert list(result.obs["sctool"]) == baseline
    assert f"query: read {genes.removesuffix('s')} values from X" in audit(result)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize(
    ("column", "gene", "protein"),
    [
        ("modality", "RNA", "ADT"),
        ("feature_type", "Gene Expression", "protein"),
        ("feature_types", "mRNA", "prot"),
        ("feature_types", np.nan, "Antibody Capture"),
        ("feature_types", None, "HTO"),
    ],
)
def test_antibodies_are_known_in_whatever_way_they_are_marked(
    column, gene, protein, adata, ref, baseline
):
    proteins = sp.csr_matrix(np.full((adata.n_obs, 5), 300.0))
    both = ad.AnnData(sp.hstack([adata.X, proteins], format="csr"), obs=adata.obs)
    both.var_names = [*GENES, *GENES[:5]]
    both.var[column] = [gene] * 300 + [protein] * 5
    result = annotated(both, ref)
    assert list(result.obs["sctool"]) == baseline
    assert f"query: left out 5 features that are not genes ({protein})" in audit(result)


def test_features_of_one_unknown_kind_are_genes(adata, ref, baseline):
    adata.var["feature_types"] = "RNA"
    assert list(annotated(adata, ref).obs["sctool"]) == baseline


def test_the_audit_says_how_many_genes_are_shared(adata, ref):
    result = annotated(adata[:, :250].copy(), ref)
    assert "genes: 250 are shared (reference: 300, query: 250)" in audit(result)
    model = sctool.tl.annotate(adata, ref, method="logistic", return_model=True)
    assert "genes: 300 of the model's 300 genes (100%) are in the query" in audit(
        annotated(adata, model)
    )


def test_another_species_is_named(adata, ref):
    ids = {prefix: [f"{prefix}{i:011d}" for i in range(300)] for prefix in ("ENSG", "ENSMUSG")}
    adata.var_names, ref.var_names = ids["ENSMUSG"], ids["ENSG"]
    with pytest.raises(ValueError, match=r"different species \(ENSG..., ENSMUSG...\)"):
        annotated(adata, ref)
    adata.var_names = ids["ENSG"]
    model = sctool.tl.annotate(adata, ref, method="logistic", return_model=True)
    adata.var_names = ids["ENSMUSG"]
    with pytest.raises(ValueError, match=r"different species \(ENSG..., ENSMUSG...\)"):
        sctool.tl.annotate(adata, model)


# -- lazy and other containers -------------------------------------------------------------------


@pytest.fixture
def lazy(tmp_path):
    """Return a function that reads an object lazily."""
    for module in ("xarray", "dask"):
        pytest.importorskip(module)

    def read(adata: ad.AnnData, name: str) -> ad.AnnData:
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
        return ad.experimental.read_lazy(tmp_path / f"{name}.h5ad")

    return read


def test_lazy_objects_are_like_others(adata, ref, baseline, lazy):
    for side in (adata, ref):
        side.var["symbol"] = [f"S{i}" for i in range(300)]
        side.var["number"] = np.arange(300)
        side.obs["donor"] = ["a", "b"] * (side.n_obs // 2)
    query, reference = lazy(adata, "query"), lazy(ref, "ref")
    sctool.tl.annotate(query, reference, method="logistic")
    assert list(query.obs["sctool"]) == baseline
    sctool.tl.annotate(query, reference, method="logistic", batch_key="donor")
    assert list(query.obs["sctool"]) == baseline
    assert list(annotated(query, reference).obs["sctool"]) == baseline


def test_a_number_of_novel_types_may_be_numpys(adata, ref):
    result = annotated(adata, ref, novel=np.int64(0))
    assert "sctool_novel" not in result.obs


def test_a_usual_scanpy_workflow_after_it(adata, ref, tmp_path):
    model = sctool.tl.annotate(adata, ref, method="logistic", return_model=True)
    sc.tl.rank_genes_groups(adata, "sctool", method="t-test")
    sc.pp.pca(adata, n_comps=5)
    sc.tl.dendrogram(adata, "sctool")
    model.save(tmp_path / "model")
    assert load(tmp_path / "model").classes_ == TYPES
    _, _, notes = match_genes(ref.var, adata.var)
    assert notes == []
    assert join(adata, ref, labels_key="cell_type").x.shape == (200, 300)
