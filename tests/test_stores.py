"""Cells in stores and containers that other packages read: the labels are those of plain cells."""

import warnings
from collections.abc import Iterator

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from synthetic import GENES, TYPES

import sctool
from sctool._ahead import read_ahead
from sctool._data import _expression, _stores
from sctool.cli import main


def annotated(adata: ad.AnnData, ref: ad.AnnData) -> ad.AnnData:
    """The query, annotated by a regression."""
    return sctool.tl.annotate(adata, ref, method="logistic", copy=True)


@pytest.fixture
def expected(sides) -> ad.AnnData:
    """Return the annotated plain query."""
    return annotated(*sides)


def assert_annotated_alike(result: ad.AnnData, expected: ad.AnnData) -> None:
    assert list(result.obs["sctool"]) == list(expected.obs["sctool"])
    assert list(result.uns["sctool"]["classes"]) == TYPES
    np.testing.assert_allclose(
        result.obsm["sctool_proba"], expected.obsm["sctool_proba"], rtol=0, atol=1e-5
    )


def announced(test):
    """Ignore what anndata says of how it will write formats 2 and 3."""
    for message in ("zarr v3 autosharding", "zarr v3 will become"):
        test = pytest.mark.filterwarnings(f"ignore:{message}")(test)
    return test


@pytest.fixture(params=[2, 3])
def zarr_format(request) -> Iterator[int]:
    """Write zarr stores of this format."""
    zarr = pytest.importorskip("zarr")
    if request.param == 3 and int(zarr.__version__.split(".")[0]) < 3:
        pytest.skip("this zarr writes format 2 alone")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        before, ad.settings.zarr_write_format = ad.settings.zarr_write_format, request.param
    yield request.param
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        ad.settings.zarr_write_format = before


def written(adata: ad.AnnData, path, zarr_format: int) -> ad.AnnData:
    """Write and read a store, which is of the format that was asked for."""
    adata.write_zarr(path)
    assert (path / ("zarr.json" if zarr_format == 3 else ".zgroup")).is_file()
    return ad.read_zarr(path)


@announced
def test_zarr_stores_go_in_and_out(zarr_format, sides, expected, tmp_path):
    adata, ref = (written(a, tmp_path / f"{i}.zarr", zarr_format) for i, a in enumerate(sides))
    result = annotated(adata, ref)
    assert_annotated_alike(result, expected)
    again = written(result, tmp_path / "out.zarr", zarr_format)
    assert_annotated_alike(again, expected)
    assert list(again.uns["sctool"]["audit"]) == list(result.uns["sctool"]["audit"])
    pd.testing.assert_series_equal(
        again.obs["sctool"], result.obs["sctool"], check_index_type=False
    )


@announced
def test_the_command_line_reads_zarr_stores(zarr_format, sides, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, side in zip(("query", "ref"), sides, strict=True):
        written(side, tmp_path / f"{name}.zarr", zarr_format)
    words = "annotate query.zarr --ref ref.zarr -o out.h5ad --method logistic"
    assert main(words.split()) == 0
    assert_annotated_alike(ad.read_h5ad(tmp_path / "out.h5ad"), expected)


@pytest.mark.parametrize("form", ["csr", "csc", "array"])
def test_matrices_that_stay_in_an_open_file(form, sides, expected, tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        backed = []
        for name, side in zip(("query", "ref"), sides, strict=True):
            x = side.X.toarray() if form == "array" else side.X.asformat(form)
            ad.io.write_elem(file, name, x)
            x = file[name] if form == "array" else ad.io.sparse_dataset(file[name])
            backed.append(ad.AnnData(x, obs=side.obs, var=side.var))
        assert not isinstance(backed[0].X, np.ndarray | sp.spmatrix | sp.sparray)
        adata, ref = backed
        sctool.tl.annotate(adata, ref, method="logistic")
        assert_annotated_alike(adata, expected)
        assert type(adata.X) is type(ref.X)  # nothing was read into the object


@pytest.mark.parametrize("form", ["dense", "csr"])
def test_dask_arrays(form, sides, expected):
    da = pytest.importorskip("dask.array")
    lazy = []
    for side in sides:
        x = da.from_array(side.X.toarray(), chunks=(32, -1))
        lazy.append(
            ad.AnnData(
                x if form == "dense" else x.map_blocks(sp.csr_matrix), obs=side.obs, var=side.var
            )
        )
    adata, ref = lazy
    sctool.tl.annotate(adata, ref, method="logistic")
    assert_annotated_alike(adata, expected)
    assert isinstance(adata.X, da.Array)
    model = sctool.tl.annotate(*sides, method="logistic", return_model=True)
    sctool.tl.annotate(adata, model)
    assert_annotated_alike(adata, expected)


@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
def test_awkward_arrays_stay_beside_the_cells(sides, expected, tmp_path):
    awkward = pytest.importorskip("awkward")
    adata, ref = sides
    for side in sides:
        side.obsm["ragged"] = awkward.Array([[float(i)] * (i % 3) for i in range(side.n_obs)])
    before = adata.obsm["ragged"].to_list()
    result = annotated(adata, ref)
    assert_annotated_alike(result, expected)
    sctool.tl.cluster(result, method="leiden", n_clusters=4)
    assert result.obsm["ragged"].to_list() == before == adata.obsm["ragged"].to_list()
    result.write_h5ad(tmp_path / "out.h5ad")
    assert ad.read_h5ad(tmp_path / "out.h5ad").obsm["ragged"].to_list() == before


def test_strings_as_pandas_3_has_them(sides, expected, tmp_path):
    text = pd.StringDtype("python", na_value=np.nan)  # what it calls "str"
    adata, ref = sides
    for side in sides:
        side.obs.index = side.obs.index.astype(text)
        side.var.index = side.var.index.astype(text)
        side.var["symbol"] = pd.Series(GENES, index=side.var.index, dtype=text)
    labels = ref.obs["cell_type"].astype(object).mask(np.arange(ref.n_obs) < 4)
    ref.obs["cell_type"] = labels.astype(text)
    adata.obs["truth"] = adata.obs["truth"].astype(object).astype(text)
    result = annotated(adata, ref)
    assert "ref: 4 cells without a label were left out" in result.uns["sctool"]["audit"]
    same = np.asarray(result.obs["sctool"]) == np.asarray(expected.obs["sctool"])
    assert same.mean() > 0.95  # four labels fewer
    accuracy = sctool.tl.evaluate(result, "truth").loc["seen_accuracy", "value"]
    assert accuracy == pytest.approx((result.obs["sctool"] == result.obs["truth"]).mean())


# -- prediction by a saved model, read once ------------------------------------------------------


@pytest.fixture
def saved(sides, tmp_path) -> str:
    """Return the folder of a model that some genes of the query are missing from."""
    adata, ref = sides
    model = sctool.tl.annotate(adata[:, 5:], ref, method="logistic", return_model=True)
    model.save(tmp_path / "model")
    return str(tmp_path / "model")


def csc_in_a_file(adata: ad.AnnData, path) -> ad.AnnData:
    return in_a_file(ad.AnnData(sp.csc_matrix(adata.X), adata.obs, adata.var), path)


def in_a_file(adata: ad.AnnData, path) -> ad.AnnData:
    adata.write_h5ad(path / "x.h5ad")
    return ad.read_h5ad(path / "x.h5ad", backed="r")


def dense(adata: ad.AnnData) -> ad.AnnData:
    return ad.AnnData(adata.X.toarray(), adata.obs, adata.var)


def in_zarr(adata: ad.AnnData, path) -> ad.AnnData:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(path / "x.zarr", mode="w")
    ad.io.write_elem(group, "X", adata.X)
    return ad.AnnData(ad.io.sparse_dataset(group["X"]), adata.obs, adata.var)


def in_blocks(adata: ad.AnnData, path, convert=np.asarray) -> ad.AnnData:
    """Dask blocks of 5 to 40 cells, which chunks of cells do not end with."""
    da = pytest.importorskip("dask.array")
    sizes = (5, 40, 11, adata.n_obs - 56)
    x = da.from_array(adata.X.toarray(), chunks=(sizes, -1)).map_blocks(convert)
    return ad.AnnData(x, adata.obs, adata.var)


def in_large_blocks(adata: ad.AnnData, path) -> ad.AnnData:
    query = in_blocks(adata, path)
    assert _stores.by_rows(query.X) is not query.X
    _stores.LARGEST = 10
    assert _stores.by_rows(query.X) is query.X
    return query


def lazily(adata: ad.AnnData, path) -> ad.AnnData:
    pytest.importorskip("xarray")
    pytest.importorskip("dask")
    adata.write_zarr(path / "lazy.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ad.experimental.read_lazy(path / "lazy.zarr")


FORMS = {
    "csc": lambda a, _: ad.AnnData(sp.csc_matrix(a.X), a.obs, a.var),
    "dense": lambda a, _: dense(a),
    "float64": lambda a, _: ad.AnnData(a.X.astype(np.float64), a.obs, a.var),
    "file": in_a_file,
    "csc-file": csc_in_a_file,
    "dense-file": lambda a, path: in_a_file(dense(a), path),
    "zarr": in_zarr,
    "dask": in_blocks,
    "dask-large": in_large_blocks,
    "dask-csr": lambda a, path: in_blocks(a, path, sp.csr_matrix),
    "lazy": lazily,
}


@announced
@pytest.mark.filterwarnings("ignore::anndata.ImplicitModificationWarning")
@pytest.mark.parametrize("scale", ["counts", "log1p"])
@pytest.mark.parametrize("form", FORMS)
def test_a_saved_model_reads_every_store_to_the_bit(
    form, scale, sides, saved, tmp_path, monkeypatch
):
    adata, _ = sides
    adata.X = adata.X.astype(np.float32)
    if scale == "log1p":
        adata.X = adata.X.log1p()
    monkeypatch.setattr(_expression, "CHUNK", 17)
    monkeypatch.setattr(_stores, "LARGEST", _stores.LARGEST)  # put back at the end
    expected = sctool.tl.annotate(adata, saved, copy=True)
    monkeypatch.setattr(_expression, "DENSE", 7 * adata.n_vars)  # fewer cells than a chunk
    monkeypatch.setattr(_stores, "HELD", adata.X.nnz // 3)  # several passes
    monkeypatch.setattr(_stores, "READ", adata.X.nnz // 5)
    query = FORMS[form](adata, tmp_path)
    sctool.tl.annotate(query, saved)
    assert list(query.obs["sctool"]) == list(expected.obs["sctool"])
    for slot in ("sctool_proba", "X_sctool"):
        np.testing.assert_array_equal(query.obsm[slot], expected.obsm[slot])
    slow = [note for note in query.uns["sctool"]["audit"] if "stored by genes (CSC)" in note]
    assert len(slow) == (form == "csc-file")
    if query.isbacked:
        query.file.close()


def test_a_file_by_genes_is_read_a_few_times_not_once_a_chunk(sides, tmp_path, monkeypatch):
    adata, _ = sides
    query = csc_in_a_file(adata, tmp_path)
    matrix, reads = query.X, []
    monkeypatch.setattr(_stores, "READ", adata.X.nnz // 4)
    monkeypatch.setattr(_stores, "HELD", adata.X.nnz // 2)
    take = _stores.RowsOfCSC.take
    monkeypatch.setattr(
        _stores.RowsOfCSC, "take", lambda self, cells: reads.append(len(cells)) or take(self, cells)
    )
    found = _stores.by_rows(matrix)
    parts = [found[i : min(i + 9, adata.n_obs)] for i in range(0, adata.n_obs, 9)]
    np.testing.assert_array_equal(sp.vstack(parts).toarray(), adata.X.toarray())
    assert len(reads) <= found.n_passes + 1
    query.file.close()


def test_each_block_of_dask_is_computed_once(sides):
    da = pytest.importorskip("dask.array")
    adata, _ = sides
    computed = []

    def block(x):
        computed.append(len(x))
        return x

    sizes = (5, 40, 11, adata.n_obs - 56)
    x = da.from_array(adata.X.toarray(), chunks=(sizes, -1)).map_blocks(
        block, meta=np.empty((0, 0))
    )
    found = _stores.by_rows(x)
    parts = [found[i : min(i + 9, adata.n_obs)] for i in range(0, adata.n_obs, 9)]
    np.testing.assert_array_equal(np.concatenate(parts), adata.X.toarray())
    assert sorted(computed) == sorted(sizes)


def test_reading_ahead():
    made = []

    def items():
        for i in range(5):
            made.append(i)
            yield i

    assert list(read_ahead(items())) == list(range(5))
    made.clear()
    ahead = read_ahead(items())
    assert next(ahead) == 0
    ahead.close()  # as an interruption does
    assert made == [0, 1]

    def broken():
        yield 1
        raise OSError("the disk is gone")

    ahead = read_ahead(broken())
    assert next(ahead) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
