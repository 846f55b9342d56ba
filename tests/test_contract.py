"""What every method keeps to: a new one is covered by entering the registry."""

import gc
import os
import random
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from synthetic import FAST, TYPES, simulate_joint, simulate_sides

import sctool
from sctool import _data
from sctool.model import AUTO, METHODS
from sctool.tl._annotate import annotate_with_model

pytestmark = pytest.mark.usefixtures("empty_cwd")
every_method = pytest.mark.parametrize("method", list(METHODS))

DEFAULTS = {
    "labels_key": "cell_type",
    "batch_key": None,
    "layer": None,
    "novel": "auto",
    "ignore_case": False,
    "key_added": "sctool",
    "random_state": 0,
    "copy": True,
    "model_kwargs": None,
    "train_kwargs": FAST,
}


def annotate(adata: ad.AnnData, ref, method: str = "auto", **kwargs) -> ad.AnnData:
    """Return an annotated copy, trained in a moment."""
    if isinstance(ref, ad.AnnData):
        kwargs = {"train_kwargs": FAST, **kwargs}
    return sctool.tl.annotate(adata, ref, method=method, copy=True, **kwargs)


def train(adata: ad.AnnData, ref: ad.AnnData, method: str, **kwargs):
    """Return the annotated copy and the model."""
    return annotate_with_model(adata, ref, method=method, **(DEFAULTS | kwargs))


@cache
def baseline(method: str) -> ad.AnnData:
    """Return the synthetic query, annotated with nothing out of the ordinary."""
    return annotate(*simulate_sides(), method)


def assert_same_result(result: ad.AnnData, expected: ad.AnnData, atol: float = 1e-5) -> None:
    # not to the last bit: the order of sums may depend on where in memory an array lies
    assert list(result.uns["sctool"]["classes"]) == list(expected.uns["sctool"]["classes"])
    for slot in ("sctool_proba", "X_sctool"):
        np.testing.assert_allclose(result.obsm[slot], expected.obsm[slot], rtol=0, atol=atol)
    assert list(result.obs["sctool"]) == list(expected.obs["sctool"])


def assert_equal(a: object, b: object) -> None:
    """Deep equality of what an AnnData may hold, types included."""
    assert type(a) is type(b)
    if isinstance(a, ad.AnnData):
        assert a.shape == b.shape
        for slot in ("X", "obs", "var", "uns", "obsm", "varm", "obsp", "varp", "layers"):
            assert_equal(getattr(a, slot), getattr(b, slot))
        assert (a.raw is None) == (b.raw is None)
        if a.raw is not None:
            assert_equal(a.raw.X, b.raw.X)
            assert_equal(a.raw.var, b.raw.var)
    elif isinstance(a, Mapping):
        assert set(a) == set(b)
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b)
    elif sp.issparse(a):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a.toarray(), b.toarray())
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


def documented_slots(key: str = "sctool") -> dict[str, set[str]]:
    """Return the slots that the Returns section of ``annotate`` names."""
    text = sctool.tl.annotate.__doc__.split("Returns\n")[1].split("Raises\n")[0]
    slots: dict[str, set[str]] = {"obs": set(), "obsm": set(), "uns": set()}
    for slot, name in re.findall(r"(obsm|obs|uns)\[(key|f\"[^\"]+\")\]", text):
        slots[slot].add(key if name == "key" else name[2:-1].replace("{key}", key))
    return slots


def strip(adata: ad.AnnData, key: str = "sctool") -> ad.AnnData:
    """Return a copy without the documented slots."""
    adata = adata.copy()
    slots = documented_slots(key)
    adata.obs = adata.obs.drop(columns=slots["obs"] & set(adata.obs))
    for name in slots["obsm"] & set(adata.obsm):
        del adata.obsm[name]
    for name in slots["uns"] & set(adata.uns):
        del adata.uns[name]
    return adata


def furnished(adata: ad.AnnData) -> ad.AnnData:
    """Return a copy with something in every slot."""
    adata = adata.copy()
    adata.raw = adata
    adata.layers["counts"] = adata.X.copy()
    adata.obs["donor"] = pd.Categorical(["d1", "d2"] * (adata.n_obs // 2))
    adata.obs["n"] = np.arange(adata.n_obs)
    adata.var["symbol"] = adata.var_names.str.lower()
    adata.obsm["X_pca"] = np.ones((adata.n_obs, 2))
    adata.varm["PCs"] = np.ones((adata.n_vars, 2))
    adata.obsp["distances"] = sp.identity(adata.n_obs, format="csr")
    adata.uns["nested"] = {"list": np.arange(3), "text": "a/b"}
    adata.uns["donor_colors"] = np.array(["#ff0000", "#00ff00"])
    return adata


def buffers(adata: ad.AnnData) -> list[bytes]:
    matrices = [adata.X, adata.raw.X, adata.layers["counts"]]
    return [part.tobytes() for m in matrices for part in (m.data, m.indices, m.indptr)]


# -- what must not matter ------------------------------------------------------------------------


@every_method
def test_the_baseline_names_the_types(method):
    result = baseline(method)
    assert (result.obs["sctool"].astype(str) == result.obs["truth"].astype(str)).mean() > 0.8


@every_method
@pytest.mark.parametrize("n_top_genes", [None, 100], ids=["all-genes", "top-genes"])
def test_the_order_of_the_querys_genes_is_irrelevant(method, n_top_genes, adata, ref):
    settings = {"model_kwargs": {"n_top_genes": n_top_genes}}
    order = np.random.default_rng(0).permutation(adata.n_vars)
    expected = annotate(adata, ref, method, **settings)
    assert_same_result(annotate(adata[:, order].copy(), ref, method, **settings), expected)


@every_method
@pytest.mark.parametrize("n_top_genes", [None, 100], ids=["all-genes", "top-genes"])
def test_the_order_of_the_references_genes_is_irrelevant(method, n_top_genes, adata, ref):
    settings = {"model_kwargs": {"n_top_genes": n_top_genes}}
    order = np.random.default_rng(1).permutation(ref.n_vars)
    expected = annotate(adata, ref, method, **settings)
    result = annotate(adata, ref[:, order].copy(), method, **settings)
    assert_same_result(result, expected, atol=1e-4)


@every_method
def test_the_order_of_the_genes_is_irrelevant_to_a_trained_model(method, adata, ref):
    expected, model = train(adata, ref, method)
    order = np.random.default_rng(2).permutation(adata.n_vars)
    result = annotate(adata[:, order].copy(), model)
    assert_same_result(result, expected, atol=1e-6)


@every_method
@pytest.mark.parametrize("given", ["true", "permuted", "wrong", "missing"])
def test_the_querys_labels_are_irrelevant(method, given, adata, ref):
    truth = adata.obs["truth"]
    adata.obs["cell_type"] = {
        "true": truth,
        "permuted": np.random.default_rng(0).permutation(truth.astype(str)),
        "wrong": "no such type",
        "missing": np.nan,
    }[given]
    adata.obs["sctool"] = adata.obs["cell_type"]
    assert_same_result(annotate(adata, ref, method), baseline(method))


@every_method
def test_the_same_seed_gives_the_same_result(method, adata, ref):
    torch.rand(7)
    np.random.rand(7)  # noqa: NPY002
    assert_same_result(annotate(adata, ref, method), baseline(method))


CONTAINERS: dict[str, Callable[[sp.csr_matrix], object]] = {
    "csr_matrix": sp.csr_matrix,
    "csc_matrix": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
    "csr-float64": lambda x: x.astype(np.float64),
    "csr-int64": lambda x: x.astype(np.int64),
    "csr-int64-indices": lambda x: sp.csr_matrix(
        (x.data, x.indices.astype(np.int64), x.indptr.astype(np.int64)), shape=x.shape
    ),
    "csr-unsorted": lambda x: x[:, ::-1].tocsc()[:, ::-1].tocsr()[:, np.arange(x.shape[1])],
    "dense-float32": lambda x: x.toarray(),
    "dense-float64": lambda x: x.toarray().astype(np.float64),
    "dense-int64": lambda x: x.toarray().astype(np.int64),
    "dense-uint16": lambda x: x.toarray().astype(np.uint16),
    "dense-column-major": lambda x: np.asfortranarray(x.toarray()),
}


@every_method
@pytest.mark.parametrize("container", list(CONTAINERS))
def test_the_container_of_the_values_is_irrelevant(method, container, adata, ref):
    convert = CONTAINERS[container]
    adata = ad.AnnData(convert(adata.X), obs=adata.obs, var=adata.var)
    ref = ad.AnnData(convert(ref.X), obs=ref.obs, var=ref.var)
    assert_same_result(annotate(adata, ref, method), baseline(method))


@every_method
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_files_need_not_be_in_memory(method, sparse, adata, ref, tmp_path):
    for name, side in (("query", adata), ("ref", ref)):
        side.X = side.X if sparse else side.X.toarray()
        side.write_h5ad(tmp_path / f"{name}.h5ad")
    adata = ad.read_h5ad(tmp_path / "query.h5ad", backed="r")
    ref = ad.read_h5ad(tmp_path / "ref.h5ad", backed="r")
    assert_same_result(annotate(adata, ref, method), baseline(method))
    sctool.tl.annotate(adata, ref, method=method, train_kwargs=FAST)
    assert adata.isbacked
    assert_same_result(adata, baseline(method))
    adata.file.close()
    ref.file.close()


def test_a_view_of_a_file_is_annotated(adata, ref, tmp_path):
    adata.write_h5ad(tmp_path / "query.h5ad")
    model = train(adata, ref, "logistic")[1]
    expected = annotate(adata[10:40].copy(), model)
    for copy in (True, False):
        backed = ad.read_h5ad(tmp_path / "query.h5ad", backed="r")
        view = backed[10:40]
        result = sctool.tl.annotate(view, model, copy=copy)
        assert_same_result(result if copy else view, expected)
        assert "sctool" not in backed.obs
        backed.file.close()


@every_method
def test_a_view_becomes_an_object_of_its_own(method, adata, ref):
    twice = ad.concat([adata, adata], index_unique="-")
    half = twice[: adata.n_obs]
    refs = ad.concat([ref, ref], index_unique="-")
    assert_same_result(annotate(half, refs[: ref.n_obs], method), baseline(method))
    assert half.is_view
    sctool.tl.annotate(half, refs[: ref.n_obs], method=method, train_kwargs=FAST)
    assert not half.is_view
    assert_same_result(half, baseline(method))
    assert list(twice.obs) == ["truth"]


@every_method
@pytest.mark.parametrize(
    "dtype", ["int", "bool", "object", "str", "string", "categorical", "int-categorical"]
)
def test_the_dtype_of_the_labels_is_irrelevant(method, dtype, adata, ref):
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
    result = annotate(adata, ref, method)
    classes = {"int": ["0", "1", "2", "3"], "bool": ["False", "True"]}.get(
        dtype.split("-")[0], TYPES
    )
    assert list(result.obs["sctool"].cat.categories) == classes
    if dtype != "bool":
        np.testing.assert_allclose(
            result.obsm["sctool_proba"], baseline(method).obsm["sctool_proba"], atol=1e-5
        )


@every_method
@pytest.mark.parametrize("dtype", ["object", "string", "categorical", "float"])
def test_cells_without_a_label_are_unlabelled(method, dtype, adata, ref):
    missing = np.arange(ref.n_obs) < 20
    if dtype == "float":
        ref.obs["cell_type"] = ref.obs["cell_type"].cat.codes.astype(float).where(~missing)
    else:
        dtype = "category" if dtype == "categorical" else dtype
        ref.obs["cell_type"] = ref.obs["cell_type"].astype(object).where(~missing).astype(dtype)
    result = annotate(adata, ref, method)
    names = ["0.0", "1.0", "2.0", "3.0"] if dtype == "float" else TYPES
    assert list(result.uns["sctool"]["classes"]) == names
    assert "ref: 20 cells without a label were used as unlabelled" in result.uns["sctool"]["audit"]


@every_method
def test_unused_categories_are_no_types(method, adata, ref):
    ref.obs["cell_type"] = ref.obs["cell_type"].cat.add_categories(["unused", "a/b"])
    assert_same_result(annotate(adata, ref, method), baseline(method))


@every_method
def test_a_type_may_be_called_unknown(method, adata, ref):
    ref.obs["cell_type"] = ref.obs["cell_type"].cat.rename_categories({"Mono": "Unknown"})
    result = annotate(adata, ref, method)
    assert list(result.obs["sctool"].cat.categories) == ["B", "CD4 T/NK", "DC", "Unknown"]
    np.testing.assert_allclose(
        result.obsm["sctool_proba"], baseline(method).obsm["sctool_proba"], atol=1e-5
    )


# -- sizes ---------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("n", [1, 20])
def test_a_query_may_be_small(method, n, adata, ref):
    result = annotate(adata[:n].copy(), ref, method)
    assert result.obsm["sctool_proba"].shape == (n, len(TYPES))
    assert np.isfinite(result.obsm["sctool_proba"]).all()
    assert result.obs["sctool"].notna().all()


@every_method
def test_a_reference_of_one_cell_a_type_is_enough(method, adata, ref):
    result = annotate(adata, ref[: len(TYPES)].copy(), method)
    assert list(result.uns["sctool"]["classes"]) == TYPES
    assert np.isfinite(result.obsm["sctool_proba"]).all()


@every_method
def test_a_type_of_one_cell_is_kept(method, adata, ref):
    keep = (ref.obs["cell_type"] != "DC").to_numpy().copy()
    keep[np.flatnonzero(~keep)[0]] = True
    result = annotate(adata, ref[keep].copy(), method)
    assert list(result.obs["sctool"].cat.categories) == TYPES
    proba = result.obsm["sctool_proba"]
    assert (proba[:, TYPES.index("DC")] > 0).all()


@every_method
def test_one_cell_more_than_full_batches(method, adata, ref):
    # 33 labelled cells, of which none is held out, and 17 unlabelled ones, in batches of 16
    result = annotate(adata[:17].copy(), ref[:33].copy(), method)
    assert np.isfinite(result.obsm["sctool_proba"]).all()
    assert np.isfinite(result.obsm["X_sctool"]).all()


# -- what is written -----------------------------------------------------------------------------


@every_method
def test_the_slots_are_those_documented(method, adata, ref):
    slots = documented_slots("my")
    assert slots == {
        "obs": {"my", "my_score", "my_novel_score", "my_novel"},
        "obsm": {"X_my", "my_proba"},
        "uns": {"my", "my_colors"},
    }
    assert sctool.tl.annotate(adata, ref, method=method, key_added="my", train_kwargs=FAST) is None
    assert set(adata.obs) - {"my_novel"} == {"truth"} | slots["obs"] - {"my_novel"}
    assert set(adata.obsm) == slots["obsm"]
    assert set(adata.uns) == {"my"}  # this reference has no colours
    assert not adata.varm
    assert not adata.layers
    assert not adata.obsp

    proba = adata.obsm["my_proba"]
    assert type(proba) is np.ndarray
    assert proba.dtype == np.float32
    assert proba.shape == (adata.n_obs, len(TYPES))
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    assert list(adata.obs["my"].cat.categories) == TYPES
    np.testing.assert_array_equal(adata.obs["my"].cat.codes, proba.argmax(axis=1))
    assert adata.obs["my_score"].dtype == np.float32
    np.testing.assert_array_equal(adata.obs["my_score"], proba.max(axis=1))
    assert adata.obs["my_novel_score"].dtype == np.float32
    assert adata.obs["my_novel_score"].between(0, 1).all()
    if "my_novel" in adata.obs:
        assert adata.obs["my_novel"].dtype == bool
    embedding = adata.obsm["X_my"]
    assert type(embedding) is np.ndarray
    assert embedding.dtype == np.float32
    assert embedding.shape[0] == adata.n_obs
    assert embedding.shape[1] < adata.n_vars
    assert np.isfinite(embedding).all()

    uns = adata.uns["my"]
    assert set(uns) == {"classes", "params", "versions", "audit"}
    assert list(uns["classes"]) == TYPES
    assert {"sctool", "scvi-tools", "torch", "python"} <= set(uns["versions"])
    assert len(uns["audit"]) >= 2
    assert all(isinstance(note, str) for note in uns["audit"])


@every_method
def test_the_method_is_recorded_under_its_registered_name(method):
    assert baseline(method).uns["sctool"]["params"]["method"] == method


def test_auto_is_a_registered_method(adata, ref):
    assert annotate(adata, ref).uns["sctool"]["params"]["method"] == AUTO


@every_method
def test_a_closed_set_is_taken_for_granted_with_novel_0(method, adata, ref):
    result = annotate(adata, ref, method, novel=0)
    assert "sctool_novel" not in result.obs
    assert "sctool_novel_score" in result.obs


@every_method
def test_order_and_colours_are_the_references(method, adata, ref):
    order = ["Mono", "DC", "never", "CD4 T/NK", "B"]
    ref.obs["cell_type"] = pd.Categorical(ref.obs["cell_type"].astype(str), categories=order)
    ref.uns["cell_type_colors"] = ["#111111", "#222222", "#333333", "#444444", "#555555"]
    result, model = train(adata, ref, method)
    assert list(result.obs["sctool"].cat.categories) == ["Mono", "DC", "CD4 T/NK", "B"]
    expected = ["#111111", "#222222", "#444444", "#555555"]
    assert list(result.uns["sctool_colors"]) == expected
    assert list(annotate(adata, model).uns["sctool_colors"]) == expected
    right = result.obs["sctool"].astype(str) == result.obs["truth"].astype(str)
    assert right.mean() > 0.8


@every_method
def test_a_second_run_leaves_nothing_of_the_first(method, adata, ref):
    for first in ("scnym", "gate"):  # one that flags cells, one that groups them
        coloured = ref.copy()
        coloured.uns["cell_type_colors"] = ["#111111", "#222222", "#333333", "#444444"]
        sctool.tl.annotate(adata, coloured, method=first, train_kwargs=FAST)
        assert "sctool_colors" in adata.uns
        sctool.tl.annotate(adata, ref, method=method, train_kwargs=FAST)
        assert set(adata.obs) == set(baseline(method).obs)
        assert set(adata.obsm) == set(baseline(method).obsm)
        assert set(adata.uns) == set(baseline(method).uns)
        assert_same_result(adata, baseline(method))


def test_results_under_two_keys_stand_side_by_side(adata, ref):
    for method in METHODS:
        sctool.tl.annotate(adata, ref, method=method, key_added=method, train_kwargs=FAST)
    for method in METHODS:
        expected = baseline(method).obsm["sctool_proba"]
        np.testing.assert_allclose(adata.obsm[f"{method}_proba"], expected, atol=1e-5)


@every_method
def test_results_survive_a_file(method, adata, ref, tmp_path):
    ref.uns["cell_type_colors"] = ["#111111", "#222222", "#333333", "#444444"]
    donors = {"batch_key": "donor", "model_kwargs": {"n_top_genes": None}}
    for side in (adata, ref):
        side.obs["donor"] = ["d1", "d2"] * (side.n_obs // 2)
    result = annotate(adata, ref, method, **donors)
    result.write_h5ad(tmp_path / "result.h5ad")
    read = ad.read_h5ad(tmp_path / "result.h5ad")
    assert_same_result(read, result)
    assert_equal(read.obs, result.obs)
    assert read.obs.dtypes.astype(str).to_dict() == result.obs.dtypes.astype(str).to_dict()
    assert set(read.uns) == set(result.uns)
    assert_equal(read.uns["sctool"], result.uns["sctool"])
    assert list(read.uns["sctool_colors"]) == list(result.uns["sctool_colors"])


# -- what must be left alone ---------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("copy", [True, False], ids=["copy", "in-place"])
def test_nothing_else_changes(method, copy, adata, ref):
    adata, ref = furnished(adata), furnished(ref)
    before_adata, before_ref = adata.copy(), ref.copy()
    bytes_adata, bytes_ref = buffers(adata), buffers(ref)
    result = sctool.tl.annotate(
        adata, ref, method=method, batch_key="donor", copy=copy, train_kwargs=FAST
    )
    assert (result is None) != copy
    assert_equal(ref, before_ref)
    assert list(ref.uns) == ["nested", "donor_colors"]
    assert list(ref.obs) == ["cell_type", "donor", "n"]
    if copy:
        assert_equal(adata, before_adata)
        assert "sctool" in result.obs
        assert_equal(strip(result), before_adata)
        assert result.X is not adata.X
    else:
        assert "sctool" in adata.obs
        assert_equal(strip(adata), before_adata)
    assert buffers(adata) == bytes_adata
    assert buffers(ref) == bytes_ref


@contextmanager
def stores_unchanged() -> Iterator[None]:
    """Scvi-tools' class-level stores hold at the end what they held before."""
    stores = [
        getattr(model, name)
        for model in METHODS.values()
        for name in ("_setup_adata_manager_store", "_per_instance_manager_store")
    ]
    before = [set(store) for store in stores]
    yield
    assert [set(store) for store in stores] == before


@pytest.fixture
def joint_refs(monkeypatch) -> list[weakref.ref]:
    """Return weak references to the private objects that ``annotate`` makes."""
    refs, join = [], _data.join

    def watched(*args, **kwargs):
        result = join(*args, **kwargs)
        refs.append(weakref.ref(result[0]))
        return result

    monkeypatch.setattr(_data, "join", watched)
    return refs


@every_method
def test_no_cells_are_kept_alive(method, adata, ref, joint_refs):
    with stores_unchanged():
        _, model = train(adata, ref, method)
    gc.collect()
    assert [r() for r in joint_refs] == [None]
    cells = [o for o in gc.get_objects() if type(o).__name__ == "Cells"]
    assert cells == []
    assert not hasattr(model, "adata") or model.adata is None


@every_method
@pytest.mark.parametrize(
    "wrong",
    [{"model_kwargs": {"no_such_setting": 1}}, {"train_kwargs": {"no_such_argument": 1}}],
    ids=["setting", "argument"],
)
def test_no_cells_are_kept_alive_by_a_failure(method, wrong, adata, ref, joint_refs):
    with stores_unchanged(), pytest.raises(TypeError, match=r"no_such"):
        annotate(adata, ref, method, **wrong)
    gc.collect()
    assert [r() for r in joint_refs] == [None]
    assert list(adata.obs) == ["truth"]
    assert not adata.uns


@every_method
def test_the_global_state_is_left_alone(method, adata, ref):
    def state() -> dict[str, object]:
        return {
            "torch": torch.get_rng_state().tolist(),
            "numpy": str(np.random.get_state()),  # noqa: NPY002
            "random": random.getstate(),
            "dtype": torch.get_default_dtype(),
            "threads": torch.get_num_threads(),
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "matmul": torch.get_float32_matmul_precision(),
            "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
            "environment": dict(os.environ),
            "options": (ad.settings.remove_unused_categories, pd.get_option("display.max_rows")),
        }

    annotate(adata, ref, method)  # what only the first call of a process sets is not ours
    before = state()
    annotate(adata, ref, method, random_state=3)
    assert state() == before


# -- saved and trained models --------------------------------------------------------------------


@every_method
def test_a_saved_model_predicts_as_the_model_did(method, adata, tmp_path):
    cls = METHODS[method]
    joint = simulate_joint()
    cls.setup_anndata(joint, "cell_type", "Unknown")
    model = cls(joint, n_top_genes=100)
    model.train(**FAST)
    model.save(tmp_path / "model")
    expected = model.predict(adata, soft=True)
    loaded = cls.load(tmp_path / "model")
    pd.testing.assert_frame_equal(loaded.predict(adata, soft=True), expected)
    np.testing.assert_allclose(
        loaded.get_latent_representation(adata), model.get_latent_representation(adata), atol=1e-5
    )
    for ref in (tmp_path / "model", str(tmp_path / "model"), model, loaded):
        result = annotate(adata, ref)
        np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=1e-5)
        assert list(result.obs["sctool"]) == list(model.predict(adata))
        assert "nothing was trained" in " ".join(result.uns["sctool"]["audit"])
        assert result.uns["sctool"]["params"]["method"] == method
    model.release()


@every_method
def test_the_model_of_annotate_predicts_what_annotate_wrote(method, adata, ref, tmp_path):
    expected, model = train(adata, ref, method)
    model.save(tmp_path / "model")
    result = annotate(adata, tmp_path / "model")
    # on a GPU it was trained on one device and is read onto another
    assert_same_result(result, expected, atol=1e-5 if torch.cuda.is_available() else 1e-6)
    assert set(result.obs) == set(expected.obs)
    with pytest.raises(RuntimeError, match=r"pass adata"):
        model.predict()


@every_method
def test_a_trained_model_leaves_the_query_alone(method, adata, ref):
    _, model = train(adata, ref, method)
    adata = furnished(adata)
    before, content = adata.copy(), buffers(adata)
    with stores_unchanged():
        sctool.tl.annotate(adata, model)
    assert_equal(strip(adata), before)
    assert buffers(adata) == content


@every_method
@pytest.mark.parametrize(
    "given",
    [{"model_kwargs": {"n_top_genes": 5}}, {"train_kwargs": FAST}, {"batch_key": "donor"}],
    ids=["model_kwargs", "train_kwargs", "batch_key"],
)
def test_a_trained_model_refuses_arguments_of_training(method, given, adata, ref):
    _, model = train(adata, ref, method)
    with pytest.raises(ValueError, match=rf"nothing is trained: .*{next(iter(given))}"):
        annotate(adata, model, **given)


@every_method
def test_a_trained_model_refuses_the_name_of_another_method(method, adata, ref):
    _, model = train(adata, ref, method)
    other = next(name for name in METHODS if name != method)
    with pytest.raises(ValueError, match=rf"method='{other}', but ref is a trained"):
        annotate(adata, model, other)
    annotate(adata, model, method)


@every_method
def test_a_model_that_is_not_trained_says_so(method, adata, tmp_path):
    cls = METHODS[method]
    joint = simulate_joint()
    cls.setup_anndata(joint, "cell_type")
    model = cls(joint)
    for use in (model.predict, lambda: annotate(adata, model), lambda: model.save(tmp_path / "m")):
        with pytest.raises(RuntimeError, match=r"not trained: call train\(\) first"):
            use()
    assert not (tmp_path / "m").exists()
    model.release()


@every_method
def test_the_cpu_may_be_asked_for(method, adata, ref):
    result = annotate(adata, ref, method, train_kwargs={**FAST, "accelerator": "cpu", "devices": 1})
    assert np.isfinite(result.obsm["sctool_proba"]).all()


@every_method
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_types_that_the_cpu_gives(method, adata, ref):
    result, model = train(adata, ref, method, train_kwargs={**FAST, "accelerator": "gpu"})
    right = result.obs["sctool"].astype(str) == result.obs["truth"].astype(str)
    assert right.mean() > 0.8
    expected = annotate(adata, model)
    model.module.cpu()
    assert_same_result(annotate(adata, model), expected, atol=1e-4)


# -- wrong arguments -----------------------------------------------------------------------------


def test_an_unknown_method_lists_the_known_ones(adata, ref):
    with pytest.raises(ValueError, match=r"'scnyn' is unknown") as error:
        annotate(adata, ref, "scnyn")
    assert all(repr(name) in str(error.value) for name in ["auto", *METHODS])


@every_method
def test_an_unknown_preset_lists_the_known_ones(method, adata, ref):
    with pytest.raises(ValueError, match=r"preset='no' is unknown.*'default'"):
        annotate(adata, ref, method, model_kwargs={"preset": "no"})


@every_method
def test_an_unknown_setting_lists_the_known_ones(method, adata, ref):
    with pytest.raises(TypeError, match=r"no settings \['no'\].*'n_top_genes'"):
        annotate(adata, ref, method, model_kwargs={"no": 1})


@pytest.mark.parametrize("novel", ["yes", -1, 1.5, True, None])
def test_novel_is_auto_or_a_number_of_types(novel, adata, ref):
    with pytest.raises(ValueError, match=r"novel="):
        annotate(adata, ref, novel=novel)


@pytest.mark.parametrize("which", ["adata", "ref"])
def test_what_is_no_anndata_is_a_type_error(which, adata, ref):
    sides = {"adata": adata, "ref": ref} | {which: adata.obs}
    with pytest.raises(TypeError, match=rf"{which} must be an AnnData.*not DataFrame"):
        annotate(**sides)


@every_method
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"labels_key": "celltype"},
            KeyError,
            "labels_key='celltype' is not in ref.obs.*cell_type",
        ),
        ({"batch_key": "donor"}, KeyError, "batch_key='donor' is not in the ref's obs"),
        ({"layer": "counts"}, KeyError, "layer='counts' is not in the ref's layers"),
    ],
    ids=["labels_key", "batch_key", "layer"],
)
def test_a_missing_column_or_layer_is_named(method, changes, error, message, adata, ref):
    with pytest.raises(error, match=message):
        annotate(adata, ref, method, **changes)


@every_method
def test_one_type_is_not_enough(method, adata, ref):
    ref.obs["cell_type"] = "B"
    with pytest.raises(ValueError, match=r"names 1 type.*2 are needed"):
        annotate(adata, ref, method)


@every_method
def test_no_cells_is_an_error(method, adata, ref):
    with pytest.raises(ValueError, match=r"query has no cells"):
        annotate(adata[:0].copy(), ref, method)
    with pytest.raises(ValueError, match=r"0 type"):
        annotate(adata, ref[:0].copy(), method)


def test_a_missing_model_is_an_error(adata, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No saved sctool model in .*nowhere"):
        annotate(adata, tmp_path / "nowhere")
