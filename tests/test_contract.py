"""What every method keeps to: a new one is covered by entering the registry.

What is decided before a method sees the cells (containers, files, names of genes, dtypes of labels)
is tested once, in ``test_data_*.py``. A method is trained as few times as these tests allow: those
that only look at a result share it.
"""

import gc
import inspect
import os
import random
import re
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from synthetic import FAST, TYPES, simulate_joint, simulate_sides

import sctool
from sctool._batches import Cells
from sctool._data import TrainingData
from sctool._verdicts import STATUSES
from sctool.model import METHODS, AnnotationModel

pytestmark = pytest.mark.usefixtures("empty_cwd")
every_method = pytest.mark.parametrize("method", list(METHODS))

#: For what does not ask how good a model is.
QUICK = FAST | {"max_epochs": 2}
#: Cells of the query and of the reference.
SIZES = 60, 80
ORDER = ["Mono", "DC", "never", "CD4 T/NK", "B"]
COLORS = ["#111111", "#222222", "#333333", "#444444", "#555555"]
#: Slots that are written only with ``risk`` or ``groupby``.
ASKED = {"obs": {"my_safe", "my_pooled", "my_ontology_term_id"}, "obsm": {"my_set"}}


def small_sides() -> tuple[ad.AnnData, ad.AnnData]:
    return simulate_sides(*SIZES)


@pytest.fixture
def sides() -> tuple[ad.AnnData, ad.AnnData]:
    """Return fewer cells than other tests have."""
    return small_sides()


def annotate(adata: ad.AnnData, ref, method: str = "auto", **kwargs) -> ad.AnnData:
    """Return an annotated copy, trained in a moment."""
    if isinstance(ref, ad.AnnData):
        kwargs = {"train_kwargs": FAST, **kwargs}
    return sctool.tl.annotate(adata, ref, method=method, copy=True, **kwargs)


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
        # pandas 3 has names of cells as text or as objects, which are equal in every use
        pd.testing.assert_frame_equal(a, b, check_index_type=False)
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


def furnished_sides() -> tuple[ad.AnnData, ad.AnnData]:
    """Return a query and a reference with something in every slot, and types of some order."""
    adata, ref = map(furnished, small_sides())
    ref.obs["cell_type"] = pd.Categorical(ref.obs["cell_type"].astype(str), categories=ORDER)
    ref.uns["cell_type_colors"] = list(COLORS)
    return adata, ref


def buffers(adata: ad.AnnData) -> list[bytes]:
    matrices = [adata.X, adata.raw.X, adata.layers["counts"]]
    return [part.tobytes() for m in matrices for part in (m.data, m.indices, m.indptr)]


@pytest.fixture(scope="module", autouse=True)
def _short_collections() -> Iterator[None]:
    """Leave what was there before out of garbage collections, which these tests ask for."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# -- runs that several tests look at -------------------------------------------------------------


@cache
def run(method: str) -> tuple[ad.AnnData, AnnotationModel]:
    """Return the query, annotated with nothing out of the ordinary, and the model."""
    return annotate(*small_sides(), method, return_model=True)


def baseline(method: str) -> ad.AnnData:
    return run(method)[0]


def trained(method: str) -> AnnotationModel:
    return run(method)[1]


def global_state() -> dict[str, object]:
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


def scvi_stores() -> list[set[str]]:
    """Return what scvi-tools' class-level stores hold of our models."""
    return [
        set(getattr(model, name))
        for model in METHODS.values()
        for name in ("_setup_adata_manager_store", "_per_instance_manager_store")
    ]


@contextmanager
def watched_cells() -> Iterator[list[weakref.ref]]:
    """Weak references to all objects with cells that sctool makes inside."""
    refs: list[weakref.ref] = []
    with pytest.MonkeyPatch.context() as patch:
        for cls in (Cells, TrainingData):
            make = cls.__init__

            def watched(self, *args, make=make, **kwargs):
                refs.append(weakref.ref(self))
                make(self, *args, **kwargs)

            patch.setattr(cls, "__init__", watched)
        yield refs


class Repeated(NamedTuple):
    """A second run with the same seed, and what it did to what is around it."""

    result: ad.AnnData
    model: AnnotationModel
    state: tuple[dict, dict]
    stores: tuple[list, list]
    cells: list[weakref.ref]


@cache
def repeated(method: str) -> Repeated:
    run(method)  # what only the first call of a process sets is not ours
    torch.rand(7)
    np.random.rand(7)  # noqa: NPY002
    state, stores = global_state(), scvi_stores()
    with watched_cells() as cells:
        result, model = annotate(*small_sides(), method, return_model=True)
    return Repeated(result, model, (state, global_state()), (stores, scvi_stores()), cells)


class Everything(NamedTuple):
    """Objects with something in every slot, annotated in place, and what they were before."""

    adata: ad.AnnData
    ref: ad.AnnData
    before: tuple[ad.AnnData, ad.AnnData]
    bytes: tuple[list, list]
    model: AnnotationModel


@cache
def everything(method: str) -> Everything:
    adata, ref = furnished_sides()
    before, content = (adata.copy(), ref.copy()), (buffers(adata), buffers(ref))
    model = sctool.tl.annotate(
        adata,
        ref,
        method=method,
        batch_key="donor",
        key_added="my",
        return_model=True,
        model_kwargs={"n_top_genes": None},
        train_kwargs=FAST,
    )
    return Everything(adata, ref, before, content, model)


@cache
def closed(method: str) -> ad.AnnData:
    """Return the query, annotated on the CPU as if every cell were of a known type."""
    on_cpu = {**QUICK, "accelerator": "cpu", "devices": 1}
    return annotate(*small_sides(), method, novel=0, train_kwargs=on_cpu)


# -- what must not matter ------------------------------------------------------------------------


@every_method
def test_the_baseline_names_the_types(method):
    result = baseline(method)
    assert (result.obs["sctool"].astype(str) == result.obs["truth"].astype(str)).mean() > 0.8


def shuffled(*sides: ad.AnnData) -> Iterator[ad.AnnData]:
    """Yield the same cells, their genes in other orders."""
    for seed, side in enumerate(sides):
        yield side[:, np.random.default_rng(seed).permutation(side.n_vars)].copy()


@every_method
def test_the_order_of_the_genes_and_the_querys_labels_are_irrelevant(method, adata, ref):
    adata.obs["cell_type"] = np.random.default_rng(0).permutation(adata.obs["truth"].astype(str))
    assert_same_result(annotate(*shuffled(adata, ref), method), baseline(method), atol=1e-4)


@pytest.mark.parametrize(
    ("method", "selection"),
    [
        ("logistic", {"n_top_genes": 100}),
        ("logistic", {"n_marker_genes": 50}),
        ("contrastive", {"n_marker_genes": 50}),
        ("actinn", {"n_top_genes": 100}),
    ],
    ids=["logistic-top-genes", "logistic-markers", "contrastive-markers", "actinn-top-genes"],
)
def test_the_order_of_the_genes_is_irrelevant_to_their_selection(method, selection, adata, ref):
    result, expected = (
        annotate(*sides, method, model_kwargs=selection)
        for sides in (shuffled(adata, ref), (adata, ref))
    )
    assert_same_result(result, expected, atol=1e-4)


@every_method
def test_the_order_of_the_genes_is_irrelevant_to_a_trained_model(method, adata):
    order = np.random.default_rng(2).permutation(adata.n_vars)
    result = annotate(adata[:, order].copy(), trained(method))
    assert_same_result(result, baseline(method), atol=1e-6)


@every_method
def test_the_same_seed_gives_the_same_result(method):
    assert_same_result(repeated(method).result, baseline(method))


# -- sizes ---------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("n", [1, 20])
def test_a_query_may_be_small(method, n, adata, ref):
    result = annotate(adata[:n].copy(), ref, method, train_kwargs=QUICK)
    assert result.obsm["sctool_proba"].shape == (n, len(TYPES))
    assert np.isfinite(result.obsm["sctool_proba"]).all()
    assert result.obs["sctool"].notna().all()


@every_method
def test_cells_that_express_nothing_change_nothing(method, adata, ref):
    clean = annotate(adata.copy(), ref.copy(), method, train_kwargs=QUICK)
    nothing = adata[:20].copy()
    nothing.X = nothing.X * 0
    nothing.obs_names = [f"empty_{i}" for i in range(20)]
    both = ad.concat([nothing, adata])
    result = annotate(both, ref, method, train_kwargs=QUICK)
    assert result.obs["sctool"][:20].isna().all()
    assert list(result.obs["sctool"][20:]) == list(clean.obs["sctool"])
    np.testing.assert_array_equal(result.obsm["sctool_proba"][20:], clean.obsm["sctool_proba"])


@every_method
def test_a_reference_of_one_cell_a_type_is_enough(method, adata, ref):
    result = annotate(adata, ref[: len(TYPES)].copy(), method, train_kwargs=QUICK)
    assert list(result.uns["sctool"]["classes"]) == TYPES
    assert np.isfinite(result.obsm["sctool_proba"]).all()


@every_method
def test_a_type_of_one_labelled_cell_is_kept_and_its_others_are_unlabelled(method, adata, ref):
    keep = (ref.obs["cell_type"] != "DC").to_numpy().copy()
    keep[np.flatnonzero(~keep)[0]] = True
    ref.obs["cell_type"] = ref.obs["cell_type"].where(keep)
    result = annotate(adata, ref, method, train_kwargs=QUICK)
    assert list(result.uns["sctool"]["classes"]) == TYPES
    proba = result.obsm["sctool_proba"]
    assert proba.shape == (adata.n_obs, len(TYPES))
    assert (proba[:, TYPES.index("DC")] > 0).all()
    assert "ref: 19 cells without a label were left out" in result.uns["sctool"]["audit"]


@every_method
def test_one_cell_more_than_full_batches(method, adata, ref):
    # 33 labelled cells, of which none is held out, and 17 unlabelled ones, in batches of 16
    result = annotate(adata[:17].copy(), ref[:33].copy(), method, train_kwargs=QUICK)
    assert np.isfinite(result.obsm["sctool_proba"]).all()
    assert np.isfinite(result.obsm["X_sctool"]).all()


# -- what is written -----------------------------------------------------------------------------


@every_method
def test_the_slots_are_those_documented(method):
    slots = documented_slots("my")
    assert slots == {
        "obs": {"my", "my_score", "my_novel_score", "my_novel", "my_status", *ASKED["obs"]},
        "obsm": {"X_my", "my_proba", *ASKED["obsm"]},
        "uns": {"my", "my_colors"},
    }
    adata, _, (before, _), *_ = everything(method)
    optional = {"my_novel", *ASKED["obs"]}
    assert set(adata.obs) - {"my_novel"} == set(before.obs) | slots["obs"] - optional
    assert set(adata.obsm) == set(before.obsm) | slots["obsm"] - ASKED["obsm"]
    assert set(adata.uns) == set(before.uns) | slots["uns"]
    for slot in ("varm", "layers", "obsp", "varp"):
        assert set(getattr(adata, slot)) == set(getattr(before, slot))

    names = [name for name in ORDER if name in TYPES]
    proba = adata.obsm["my_proba"]
    assert type(proba) is np.ndarray
    assert proba.dtype == np.float32
    assert proba.shape == (adata.n_obs, len(TYPES))
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    assert list(adata.uns["my"]["classes"]) == names
    found = np.array(names)[proba.argmax(axis=1)]
    assert list(adata.obs["my"]) == list(found)
    assert list(adata.obs["my"].cat.categories) == [name for name in names if name in found]
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
    told = {"audit", "alarms", "reasons"}
    assert set(uns) == {"classes", "novel_classes", "novel", "params", "versions", *told}
    assert list(uns["novel"].columns) == ["n_cells", "nearest", "distance", "markers"]
    assert len(uns["novel"]) == len(uns["novel_classes"]) == 0
    assert list(uns["classes"]) == names
    assert {"sctool", "scvi-tools", "torch", "python"} <= set(uns["versions"])
    assert len(uns["audit"]) >= 2
    assert all(isinstance(note, str) for slot in ("audit", "alarms") for note in uns[slot])
    assert set(adata.obs["my_status"].cat.categories) <= set(STATUSES)
    told = adata.obs["my_status"] != "assigned"
    pd.testing.assert_series_equal(
        uns["reasons"]["status"].astype(object),
        adata.obs["my_status"][told].astype(object),
        check_names=False,
        check_index_type=False,
    )


@every_method
def test_a_reference_without_colours_gives_none(method):
    assert set(baseline(method).uns) == {"sctool"}


@every_method
def test_the_method_is_recorded_under_its_registered_name(method):
    assert baseline(method).uns["sctool"]["params"]["method"] == method


def test_auto_is_the_default_method():
    assert inspect.signature(sctool.tl.annotate).parameters["method"].default == "auto"
    assert "auto" in METHODS


@every_method
def test_a_closed_set_is_taken_for_granted_with_novel_0(method):
    result = closed(method)
    assert "sctool_novel" not in result.obs
    assert "sctool_novel_score" in result.obs
    assert list(result.uns["sctool"]["classes"]) == TYPES


@every_method
def test_order_and_colours_are_the_references(method):
    adata, _, (before, _), _, model = everything(method)
    for result in (adata, annotate(before, model, key_added="my")):
        assert list(result.obs["my"].cat.categories) == ["Mono", "DC", "CD4 T/NK", "B"]
        assert list(result.uns["my_colors"]) == ["#111111", "#222222", "#444444", "#555555"]
        right = result.obs["my"].astype(str) == result.obs["truth"].astype(str)
        assert right.mean() > 0.8


@pytest.mark.parametrize("first", ["scnym", "gate"], ids=["flags-cells", "groups-cells"])
def test_a_second_run_leaves_nothing_of_the_first(first, adata, ref):
    coloured = ref.copy()
    coloured.uns["cell_type_colors"] = COLORS[:4]
    sctool.tl.annotate(adata, coloured, method=first, train_kwargs=QUICK)
    assert {"sctool", "sctool_colors"} <= set(adata.uns)
    assert "sctool_novel" in adata.obs
    sctool.tl.annotate(adata, ref, method="logistic", train_kwargs=FAST)
    expected = baseline("logistic")
    for slot in ("obs", "obsm", "uns"):
        assert set(getattr(adata, slot)) == set(getattr(expected, slot))
    assert_same_result(adata, expected)


@every_method
def test_a_trained_model_leaves_nothing_of_an_earlier_result(method):
    adata = baseline("scnym").copy()
    adata.uns["sctool_colors"] = np.array(COLORS[:4])
    sctool.tl.annotate(adata, trained(method))
    for slot in ("obs", "obsm", "uns"):
        assert set(getattr(adata, slot)) == set(getattr(baseline(method), slot))
    assert_same_result(adata, baseline(method), atol=1e-6)


def test_results_under_two_keys_stand_side_by_side(adata):
    for method in METHODS:
        sctool.tl.annotate(adata, trained(method), key_added=method)
    for method in METHODS:
        expected = baseline(method).obsm["sctool_proba"]
        np.testing.assert_allclose(adata.obsm[f"{method}_proba"], expected, atol=1e-5)


@every_method
def test_results_survive_a_file(method, tmp_path):
    result = everything(method).adata
    result.write_h5ad(tmp_path / "result.h5ad")
    read = ad.read_h5ad(tmp_path / "result.h5ad")
    for slot in ("X_my", "my_proba"):
        assert_equal(read.obsm[slot], result.obsm[slot])
    assert_equal(read.obs, result.obs)
    assert read.obs.dtypes.astype(str).to_dict() == result.obs.dtypes.astype(str).to_dict()
    assert set(read.uns) == set(result.uns)
    assert_equal(read.uns["my"], result.uns["my"])
    assert list(read.uns["my_colors"]) == list(result.uns["my_colors"])


@pytest.mark.parametrize("return_model", [False, True], ids=["", "return_model"])
@pytest.mark.parametrize("copy", [False, True], ids=["", "copy"])
@pytest.mark.parametrize("given", ["reference", "trained-model"])
def test_what_is_returned(given, copy, return_model, adata, ref):
    kwargs = {"copy": copy, "return_model": return_model, "method": "logistic"}
    if given == "reference":
        kwargs["train_kwargs"] = FAST
    else:
        ref = trained("logistic")
    returned = sctool.tl.annotate(adata, ref, **kwargs)
    assert ("sctool" in adata.obs) != copy
    result, model = adata, None
    if copy and return_model:
        assert type(returned) is tuple
        result, model = returned
    elif copy:
        result = returned
    elif return_model:
        model = returned
    else:
        assert returned is None
    assert_same_result(result, baseline("logistic"))
    if return_model:
        assert type(model) is METHODS["logistic"]
        assert (model is ref) == (given == "trained-model")
        assert_same_result(annotate(strip(result), model), result, atol=1e-6)


# -- what must be left alone ---------------------------------------------------------------------


@every_method
def test_nothing_else_changes(method):
    adata, ref, (before_adata, before_ref), (bytes_adata, bytes_ref), _ = everything(method)
    assert "my" in adata.obs
    assert_equal(strip(adata, "my"), before_adata)
    assert_equal(ref, before_ref)
    assert list(ref.uns) == ["nested", "donor_colors", "cell_type_colors"]
    assert list(ref.obs) == ["cell_type", "donor", "n"]
    assert buffers(adata) == bytes_adata
    assert buffers(ref) == bytes_ref


def test_a_copy_leaves_the_query_as_it_is():
    adata, ref = furnished_sides()
    before, content = adata.copy(), buffers(adata)
    result = annotate(adata, ref, "logistic", batch_key="donor")
    assert_equal(adata, before)
    assert buffers(adata) == content
    assert "sctool" in result.obs
    assert_equal(strip(result), before)
    assert result.X is not adata.X


@every_method
def test_no_cells_are_kept_alive(method):
    _, model, _, (before, after), cells = repeated(method)
    assert after == before
    gc.collect()
    assert len(cells) >= 2
    assert [ref() for ref in cells] == [None] * len(cells)
    assert model.adata is None
    assert model.trainer is None
    with pytest.raises(RuntimeError, match=r"has no training cells.*pass adata"):
        model.predict()


@every_method
@pytest.mark.parametrize(
    "wrong",
    [{"model_kwargs": {"no_such_setting": 1}}, {"train_kwargs": {"no_such_argument": 1}}],
    ids=["setting", "argument"],
)
def test_no_cells_are_kept_alive_by_a_failure(method, wrong, adata, ref):
    before = scvi_stores()
    with watched_cells() as cells, pytest.raises(TypeError, match=r"no_such"):
        annotate(adata, ref, method, **wrong)
    assert scvi_stores() == before
    gc.collect()
    assert [ref() for ref in cells] == [None] * len(cells)
    assert bool(cells) == ("train_kwargs" in wrong)  # settings are read before cells are
    assert list(adata.obs) == ["truth"]
    assert not adata.uns


@every_method
def test_the_global_state_is_left_alone(method):
    before, after = repeated(method).state
    assert after == before


# -- saved and trained models --------------------------------------------------------------------


@every_method
def test_a_saved_model_predicts_as_the_model_did(method, adata, tmp_path):
    cls = METHODS[method]
    joint = simulate_joint(*SIZES)
    cls.setup_anndata(joint, "cell_type", "Unknown")
    model = cls(joint, n_top_genes=100)
    model.train(**QUICK)
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


@every_method
def test_the_model_of_annotate_predicts_what_annotate_wrote(method, adata, tmp_path):
    expected, model = run(method)
    model.save(tmp_path / "model")
    result = annotate(adata, tmp_path / "model")
    # on a GPU it was trained on one device and is read onto another
    assert_same_result(result, expected, atol=1e-5 if torch.cuda.is_available() else 1e-6)
    assert set(result.obs) == set(expected.obs)


@every_method
def test_a_trained_model_leaves_the_query_alone(method, adata):
    adata = furnished(adata)
    before, content, stores = adata.copy(), buffers(adata), scvi_stores()
    sctool.tl.annotate(adata, trained(method))
    assert scvi_stores() == stores
    assert_equal(strip(adata), before)
    assert buffers(adata) == content


@every_method
@pytest.mark.parametrize(
    "given",
    [{"model_kwargs": {"n_top_genes": 5}}, {"train_kwargs": FAST}, {"batch_key": "donor"}],
    ids=["model_kwargs", "train_kwargs", "batch_key"],
)
def test_a_trained_model_refuses_arguments_of_training(method, given, adata):
    with pytest.raises(ValueError, match=rf"nothing is trained: .*{next(iter(given))}"):
        annotate(adata, trained(method), **given)


@every_method
def test_a_trained_model_refuses_the_name_of_another_method(method, adata):
    # "auto" is the default, which asks for nothing
    other = next(name for name in METHODS if name not in ("auto", method))
    with pytest.raises(ValueError, match=rf"method='{other}', but ref is a trained"):
        annotate(adata, trained(method), other)
    for asked in ("auto", method):
        annotate(adata, trained(method), asked)


@every_method
def test_a_model_that_is_not_trained_says_so(method, adata, tmp_path):
    cls = METHODS[method]
    joint = simulate_joint(*SIZES)
    cls.setup_anndata(joint, "cell_type")
    model = cls(joint)
    for use in (model.predict, lambda: annotate(adata, model), lambda: model.save(tmp_path / "m")):
        with pytest.raises(RuntimeError, match=r"not trained: call train\(\) first"):
            use()
    assert not (tmp_path / "m").exists()


@every_method
def test_the_cpu_may_be_asked_for(method):
    result = closed(method)
    assert np.isfinite(result.obsm["sctool_proba"]).all()
    assert result.uns["sctool"]["params"]["train_kwargs"]["accelerator"] == "cpu"


@every_method
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_types_that_the_cpu_gives(method, adata, ref):
    on_gpu = {**FAST, "accelerator": "gpu"}
    result, model = annotate(adata, ref, method, train_kwargs=on_gpu, return_model=True)
    right = result.obs["sctool"].astype(str) == result.obs["truth"].astype(str)
    assert right.mean() > 0.8
    expected = annotate(adata, model)
    model.module.cpu()
    assert_same_result(annotate(adata, model), expected, atol=1e-4)


# -- wrong arguments -----------------------------------------------------------------------------


def test_an_unknown_method_lists_the_known_ones(adata, ref):
    with pytest.raises(ValueError, match=r"'scnyn' is unknown") as error:
        annotate(adata, ref, "scnyn")
    assert all(repr(name) in str(error.value) for name in METHODS)


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


def test_a_missing_model_is_an_error(adata, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No saved sctool model in .*nowhere"):
        annotate(adata, tmp_path / "nowhere")
