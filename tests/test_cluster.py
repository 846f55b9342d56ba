"""``tl.cluster``: what every method of it keeps to, and what it writes."""

import gc
import re
import weakref

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from synthetic import TYPES, simulate, simulate_joint

import sctool
from sctool import _data, metrics
from sctool._batches import Cells
from sctool._data import TrainingData
from sctool.model import CICL, CLUSTER_METHODS, LogisticClassifier

pytestmark = pytest.mark.usefixtures("empty_cwd")
METHODS = ["leiden", *CLUSTER_METHODS]
every_method = pytest.mark.parametrize("method", METHODS)
FAST = {"max_epochs": 4, "enable_progress_bar": False}
#: For what does not ask how good the clusters are: plain k-means after an epoch.
QUICK = {"model_kwargs": {"n_prototypes": 1}, "train_kwargs": FAST | {"max_epochs": 1}}


def blobs(n_cells: int = 80, seed: int = 0) -> ad.AnnData:
    """Cells whose types are easily told apart, of the genes that do so."""
    adata = simulate(n_cells, seed)[:, :60].copy()
    x = adata.X.toarray()
    for i in range(len(TYPES)):
        x[np.ix_(np.arange(n_cells) % len(TYPES) == i, np.arange(8 * i, 8 * i + 8))] *= 8
    adata.X = sp.csr_matrix(x)
    return adata


def cluster(adata: ad.AnnData, method: str, **kwargs) -> ad.AnnData:
    """Return a clustered copy, trained in a moment."""
    if method != "leiden" and kwargs.get("model") is None:
        kwargs = {"train_kwargs": FAST, **kwargs}
    return sctool.tl.cluster(adata, method=method, copy=True, **({"n_clusters": 4} | kwargs))


@pytest.fixture(scope="module")
def runs() -> dict[str, tuple[ad.AnnData, CICL | None]]:
    """Return the synthetic cells, clustered with nothing out of the ordinary, and the models."""
    return {method: cluster(blobs(), method, return_model=True) for method in METHODS}


@pytest.fixture(scope="module")
def baseline(runs) -> dict[str, ad.AnnData]:
    """Return the cells of ``runs``."""
    return {method: adata for method, (adata, _) in runs.items()}


@pytest.fixture(scope="module")
def quick() -> ad.AnnData:
    """Return the cells, clustered by "cicl" in a moment."""
    return cluster(blobs(), "cicl", **QUICK)


@pytest.fixture(scope="module")
def model(runs) -> CICL:
    """Return a trained model."""
    return runs["cicl"][1]


def assert_same(result: ad.AnnData, expected: ad.AnnData, method: str) -> None:
    assert list(result.obs[method]) == list(expected.obs[method])
    for slot in (f"X_{method}",):
        np.testing.assert_allclose(result.obsm[slot], expected.obsm[slot], rtol=0, atol=1e-3)


# -- what must not matter ------------------------------------------------------------------------


@every_method
def test_types_that_lie_apart_are_found(method, baseline):
    result = baseline[method]
    found = metrics.ari(result.obs["cell_type"].astype(str), result.obs[method].astype(str))
    assert found > 0.95


@every_method
def test_the_same_seed_gives_the_same_result(method, baseline):
    torch.rand(7)
    np.random.rand(7)  # noqa: NPY002
    assert_same(cluster(blobs(), method), baseline[method], method)


@every_method
def test_the_order_of_the_genes_is_irrelevant(method, baseline):
    adata = blobs()
    order = np.random.default_rng(0).permutation(adata.n_vars)
    assert_same(cluster(adata[:, order].copy(), method), baseline[method], method)


@pytest.mark.parametrize(
    ("method", "given"),
    [
        *(("leiden", given) for given in ("permuted", "wrong", "missing", "none")),
        ("cicl", "permuted"),
    ],
)
def test_labels_are_irrelevant(method, given, baseline):
    adata = blobs()
    truth = adata.obs.pop("cell_type").astype(str)
    if given != "none":
        adata.obs["cell_type"] = {
            "permuted": np.random.default_rng(0).permutation(truth),
            "wrong": "no such type",
            "missing": np.nan,
        }[given]
    assert_same(cluster(adata, method), baseline[method], method)


@every_method
def test_neither_container_nor_file_is_relevant(method, baseline, tmp_path):
    # of others see test_data_containers.py
    adata = blobs()
    x = adata.X.toarray().astype(np.int64)
    ad.AnnData(x, obs=adata.obs, var=adata.var).write_h5ad(tmp_path / "cells.h5ad")
    adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    assert_same(cluster(adata, method), baseline[method], method)
    assert adata.isbacked
    adata.file.close()


@pytest.mark.parametrize(
    ("method", "where"),
    [("leiden", "layer"), ("leiden", "raw"), ("leiden", "named"), ("cicl", "named")],
)
def test_values_are_found_where_they_are(method, where, baseline):
    adata = blobs()
    kwargs = {}
    if where == "raw":
        adata.raw = adata
    else:
        name = "counts" if where == "layer" else "mine"
        adata.layers[name] = adata.X.copy()
        kwargs = {"layer": "mine"} if where == "named" else {}
    adata.X = adata.X.toarray() - 3
    assert_same(cluster(adata, method, **kwargs), baseline[method], method)


@every_method
def test_log1p_values_are_recognised(method):
    adata = blobs()
    # CICL scales counts to their median total, which log1p values do not tell.
    settings = {"target_sum": 1e4} if method == "cicl" else None
    expected = cluster(adata, method, model_kwargs=settings)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    result = cluster(adata, method)
    assert "data: read log1p values from X" in result.uns[method]["audit"]
    assert list(result.obs[method]) == list(expected.obs[method])


# -- what is written -----------------------------------------------------------------------------


@every_method
def test_the_slots_are_those_documented(method):
    text = sctool.tl.cluster.__doc__.split("Returns\n")[1].split("Raises\n")[0]
    slots = set(re.findall(r"``((?:obs|obsm|uns)\[.+\])`` :", text))
    assert slots == {"obs[key]", 'obs[f"{key}_score"]', 'obsm[f"X_{key}"]', "uns[key]"}
    adata = blobs()
    before = adata.copy()
    kwargs = {} if method == "leiden" else QUICK
    assert sctool.tl.cluster(adata, n_clusters=4, method=method, key_added="my", **kwargs) is None
    assert set(adata.obs) == {"cell_type", "my", "my_score"}
    assert set(adata.obsm) == {"X_my"}
    assert set(adata.uns) == {"my"}
    assert not adata.varm
    assert not adata.layers
    assert not adata.obsp
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())
    pd.testing.assert_frame_equal(adata.var, before.var)
    assert list(adata.obs["my"].cat.categories) == ["0", "1", "2", "3"]
    sizes = adata.obs["my"].value_counts(sort=False).to_numpy()
    assert (np.diff(sizes) <= 0).all()
    assert adata.obs["my_score"].dtype == np.float32
    assert adata.obs["my_score"].between(0, 1).all()
    assert adata.obsm["X_my"].dtype == np.float32
    uns = adata.uns["my"]
    assert set(uns) == {"n_clusters", "params", "versions", "audit"}
    assert uns["n_clusters"] == {"n": 4}
    assert uns["params"]["method"] == method


@every_method
def test_a_number_that_is_estimated_has_an_interval(method):
    result = cluster(blobs(120), method, n_clusters=None)
    n = result.uns[method]["n_clusters"]
    assert n["low"] <= n["n"] <= n["high"]
    assert n["n"] == result.obs[method].nunique()


@every_method
def test_the_result_is_kept_in_a_file(method, baseline, tmp_path):
    baseline[method].write_h5ad(tmp_path / "out.h5ad")
    again = ad.read_h5ad(tmp_path / "out.h5ad")
    assert_same(again, baseline[method], method)
    assert again.uns[method]["n_clusters"]["n"] == 4


@every_method
def test_a_second_call_replaces_the_first(method, baseline):
    adata = baseline[method].copy()
    adata.uns[f"{method}_colors"] = np.array(["#ff0000"] * 4)
    result = cluster(adata, method)
    assert f"{method}_colors" not in result.uns
    assert_same(result, baseline[method], method)


@every_method
def test_the_embedding_serves_scanpys_neighbours(method, baseline):
    adata = baseline[method].copy()
    # "umap" and "pynndescent", the defaults, are compiled for 20 s each
    sc.pp.neighbors(adata, use_rep=f"X_{method}", method="gauss", transformer="sklearn")
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False, resolution=0.5)
    truth = adata.obs["cell_type"].astype(str)
    assert metrics.ari(truth, adata.obs["leiden"].astype(str)) > 0.9


def test_a_view_becomes_an_object_of_its_own():
    adata = ad.concat([blobs(), blobs()], index_unique="-")
    view = adata[:80]
    sctool.tl.cluster(view, method="leiden", n_clusters=4)
    assert not view.is_view
    assert "leiden" not in adata.obs


def test_nothing_of_the_cells_stays_behind(monkeypatch):
    refs = []
    for cls in (Cells, TrainingData):
        make = cls.__init__

        def watched(self, *args, make=make, **kwargs):
            refs.append(weakref.ref(self))
            make(self, *args, **kwargs)

        monkeypatch.setattr(cls, "__init__", watched)

    def run() -> CICL:
        adata = blobs()
        refs.append(weakref.ref(adata))
        return sctool.tl.cluster(adata, n_clusters=4, return_model=True, **QUICK)

    stores = CICL._setup_adata_manager_store, CICL._per_instance_manager_store
    before = [set(store) for store in stores]
    model = run()
    gc.collect()
    assert len(refs) >= 3
    assert [ref() for ref in refs] == [None] * len(refs)
    assert [set(store) for store in stores] == before
    with pytest.raises(RuntimeError, match=r"has no training cells.*pass adata"):
        model.predict()


@pytest.mark.parametrize("return_model", [False, True], ids=["", "return_model"])
@pytest.mark.parametrize("copy", [False, True], ids=["", "copy"])
@pytest.mark.parametrize(
    ("method", "given"),
    [("leiden", "cells"), ("cicl", "cells"), ("cicl", "trained-model")],
    ids=["leiden", "cicl", "cicl-trained-model"],
)
def test_what_is_returned(method, given, copy, return_model, baseline, quick, model):
    adata, kwargs, expected = blobs(), {"n_clusters": 4}, baseline[method]
    if given == "trained-model":
        kwargs = {"model": model}
    elif method == "cicl":
        kwargs, expected = kwargs | QUICK, quick
    returned = sctool.tl.cluster(
        adata, method=method, copy=copy, return_model=return_model, **kwargs
    )
    assert (method in adata.obs) != copy
    result, got = adata, None
    if copy and return_model:
        assert type(returned) is tuple
        result, got = returned
    elif copy:
        result = returned
    else:
        got = returned
    assert_same(result, expected, method)
    if method == "leiden" or not return_model:
        assert got is None
    else:
        assert type(got) is CICL
        assert (got is model) == (given == "trained-model")
        assert_same(cluster(blobs(), method, model=got, n_clusters=None), result, method)


# -- sizes ---------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("n_clusters", [1, None])
def test_few_cells_are_enough(method, n_clusters):
    result = cluster(blobs(12), method, n_clusters=n_clusters)
    assert result.obs[method].notna().all()
    assert np.isfinite(result.obs[f"{method}_score"]).all()
    if n_clusters == 1:
        assert result.obs[method].nunique() == 1


@every_method
def test_too_few_cells_are_refused(method):
    with pytest.raises(ValueError, match="too few"):
        cluster(blobs(8), method)


def test_one_cell_more_than_full_batches():
    result = cluster(blobs(33), "cicl", train_kwargs=FAST | {"batch_size": 16})
    assert np.isfinite(result.obsm["X_cicl"]).all()


# -- trained models ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["model", "path"])
def test_a_trained_model_clusters_new_cells(how, model, tmp_path):
    adata = blobs(40, seed=5)
    given = model
    if how == "path":
        model.save(tmp_path / "model")
        given = tmp_path / "model"
    assert sctool.tl.cluster(adata, model=given) is None
    truth = adata.obs["cell_type"].astype(str)
    assert metrics.ari(truth, adata.obs["cicl"].astype(str)) > 0.9
    assert adata.uns["cicl"]["audit"][-1].endswith("nothing was trained")
    order = np.random.default_rng(0).permutation(adata.n_vars)
    assert_same(
        cluster(adata[:, order].copy(), "cicl", model=given, n_clusters=None), adata, "cicl"
    )


def test_the_model_gives_what_training_gave(model, baseline):
    result = cluster(blobs(), "cicl", model=model, n_clusters=None)
    assert_same(result, baseline["cicl"], "cicl")


def test_a_trained_model_takes_one_cell(model):
    assert cluster(blobs(1), "cicl", model=model, n_clusters=None).obs["cicl"].notna().all()


def test_a_model_that_annotates_cannot_cluster(model, tmp_path):
    joint = simulate_joint()
    LogisticClassifier.setup_anndata(joint, "cell_type")
    logistic = LogisticClassifier(joint)
    logistic.train()
    with pytest.raises(TypeError, match="sctool model that clusters.* not LogisticClassifier"):
        sctool.tl.cluster(blobs(), model=logistic)
    logistic.save(tmp_path / "logistic")
    with pytest.raises(TypeError, match="sctool model that clusters.* not LogisticClassifier"):
        sctool.tl.cluster(blobs(), model=tmp_path / "logistic")
    with pytest.raises(TypeError, match="ref must be an AnnData, a sctool model or a path"):
        sctool.tl.annotate(blobs(), model)


# -- what is refused -----------------------------------------------------------------------------


def test_bad_arguments_are_refused_by_name(model):
    adata = blobs()
    with pytest.raises(TypeError, match="adata must be an AnnData, not list"):
        sctool.tl.cluster([1])
    with pytest.raises(ValueError, match=r"method='louvain' is unknown; known methods: \['leiden'"):
        sctool.tl.cluster(adata, method="louvain")
    for n in (0, -1, 2.5, True, "auto"):
        with pytest.raises(ValueError, match=f"n_clusters={n!r}"):
            sctool.tl.cluster(adata, n_clusters=n)
    with pytest.raises(ValueError, match=r"nothing is trained: \['n_clusters'\] cannot be used"):
        sctool.tl.cluster(adata, model=model, n_clusters=3)
    with pytest.raises(ValueError, match="method='leiden', but model is a trained CICL"):
        sctool.tl.cluster(adata, model=model, method="leiden")
    with pytest.raises(ValueError, match=r"'leiden' has no settings: \['model_kwargs'\]"):
        sctool.tl.cluster(adata, method="leiden", model_kwargs={"preset": "paper"})
    with pytest.raises(KeyError, match="layer='counts' is not in"):
        sctool.tl.cluster(adata, layer="counts")
    with pytest.raises(TypeError, match="CICL has no settings"):
        sctool.tl.cluster(adata, model_kwargs={"clusters": 3})
    assert list(adata.obs) == ["cell_type"]


@every_method
@pytest.mark.parametrize(
    ("values", "what"), [(-1.0, "scaled values"), (np.nan, "missing"), (0.0, "only zeros")]
)
def test_values_that_cannot_be_used_are_refused(method, values, what):
    adata = blobs()
    adata.X = np.full(adata.shape, values, dtype=np.float32)
    with pytest.raises(ValueError, match=what):
        cluster(adata, method)


@every_method
def test_clusters_are_numbered_by_size(method):
    adata = blobs()
    some = adata[~((adata.obs["cell_type"] == "B") & (np.arange(adata.n_obs) % 3 > 0))].copy()
    sizes = cluster(some, method).obs[method].value_counts(sort=False)
    assert list(sizes.index) == [str(i) for i in range(len(sizes))]
    assert (np.diff(sizes) <= 0).all()


@every_method
def test_an_error_leaves_nothing_behind(method, monkeypatch):
    monkeypatch.setattr(_data.Features, "fit", lambda *a, **k: 1 / 0)
    adata, before = blobs(), set(CICL._setup_adata_manager_store)
    with pytest.raises(ZeroDivisionError):
        cluster(adata, method)
    assert list(adata.obs) == ["cell_type"]
    assert set(CICL._setup_adata_manager_store) == before


@every_method
def test_cells_that_are_all_alike_are_refused(method):
    adata = simulate(40)
    adata.X = np.repeat(adata.X[:1].toarray(), adata.n_obs, axis=0)
    with pytest.raises(ValueError, match="same values"):
        sctool.tl.cluster(adata, method=method)
