"""Dask arrays on the workers of a client: the results are those of this process, to the bit."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import sctool
from sctool._data import _expression, _stores, client_of
from sctool.model import _base

da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.filterwarnings("ignore:::(distributed|dask|tornado|asyncio)")


#: Thread, model and number of cells of each call of :func:`watched`, and what it calls.
SEEN: list[tuple[str, int, int]] = []
PREDICT = _base._predict_rows


def watched(given, start, rows):
    """Be found by its name on the workers, which are threads of this process."""
    SEEN.append((threading.current_thread().name, id(given[0]), rows.shape[0]))
    return PREDICT(given, start, rows)


@contextmanager
def client(**kwargs) -> Iterator[object]:
    """Start a client of two workers."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None} | kwargs
    with (
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster) as started,
    ):
        yield started


def in_blocks(adata: ad.AnnData, convert=sp.csr_matrix) -> ad.AnnData:
    """Blocks of cells and genes; chunks of 17 cells do not end with them."""
    sizes = (5, 40, 11, adata.n_obs - 56)
    x = da.from_array(adata.X.toarray(), chunks=(sizes, 25)).map_blocks(convert)
    return ad.AnnData(x, adata.obs, adata.var)


def assert_same(found: ad.AnnData, expected: ad.AnnData) -> None:
    assert list(found.obs["sctool"]) == list(expected.obs["sctool"])
    for slot in ("sctool_proba", "X_sctool"):
        np.testing.assert_array_equal(found.obsm[slot], expected.obsm[slot])
    assert list(found.uns["sctool"]["audit"]) == list(expected.uns["sctool"]["audit"])


@pytest.fixture
def model(sides):
    adata, ref = sides
    some = adata[:, 5:].copy()  # so that genes are missing from the model, and are counted
    return sctool.tl.annotate(some, ref, method="logistic", return_model=True)


@pytest.mark.parametrize("convert", [np.asarray, sp.csr_matrix, sp.csr_array])
def test_blocks_are_annotated_where_they_lie(convert, sides, model, monkeypatch):
    adata, _ = sides
    kept = np.arange(adata.n_obs) != 60
    adata.X = sp.csr_matrix(adata.X.multiply(kept[:, None]))  # a cell of which nothing is known
    query = in_blocks(adata, convert)
    monkeypatch.setattr(_expression, "CHUNK", 17)
    expected = sctool.tl.annotate(adata, model, copy=True)
    SEEN.clear()

    def fetched(*_):
        raise AssertionError("cells were brought here")

    monkeypatch.setattr(_base, "_predict_rows", watched)
    with client(processes=False):
        monkeypatch.setattr(_stores.RowsOfDask, "__getitem__", fetched)
        monkeypatch.setattr(_expression, "SAMPLE", 64)
        sctool.tl.annotate(query, model)
    assert_same(query, expected)
    threads, models, sizes = zip(*SEEN, strict=True)
    assert sorted(sizes) == sorted([17] * (adata.n_obs // 17) + [adata.n_obs % 17])
    assert len(set(threads)) == 2
    assert threading.current_thread().name not in threads
    assert id(model) not in models
    assert len(set(models)) <= 2  # sent once, not with every chunk


def test_an_error_on_a_worker_names_the_cells(sides, model, monkeypatch):
    adata, _ = sides
    adata.X = adata.X.astype(np.float32)
    adata.X.data[adata.X.indptr[40]] = 0.5
    monkeypatch.setattr(_expression, "CHUNK", 17)
    monkeypatch.setattr(_expression, "SAMPLE", 16)
    monkeypatch.setattr(_expression, "RUNS", 1)
    with client(processes=False), pytest.raises(ValueError, match=r"cells 34 to 51 have fractions"):
        sctool.tl.annotate(in_blocks(adata), model)


def test_dask_settings_decide_who_computes(sides):
    import dask

    x = in_blocks(sides[0]).X
    assert client_of(x) is None
    with client(processes=False) as started:
        assert client_of(x) is started
        assert client_of(_stores.by_rows(x)) is started
        assert client_of(sides[0].X) is None
        with dask.config.set(scheduler="threads"):
            assert client_of(x) is None


@pytest.mark.slow
@pytest.mark.parametrize("method", ["logistic", "scnym", "auto"])
def test_two_processes_give_the_same_labels(method, sides, monkeypatch):
    adata, ref = sides
    model = sctool.tl.annotate(adata, ref, method=method, return_model=True)
    monkeypatch.setattr(_expression, "CHUNK", 17)
    expected = sctool.tl.annotate(adata, model, copy=True)
    query = in_blocks(adata)
    with client(processes=True) as started:
        assert len(set(started.run(lambda: __import__("os").getpid()).values())) == 2
        sctool.tl.annotate(query, model)
        loaded = started.run(lambda: "sctool" in sys.modules)
    assert all(loaded.values())
    assert_same(query, expected)
