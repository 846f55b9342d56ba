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
    assert "ref: 4 cells without a label were used as unlabelled" in result.uns["sctool"]["audit"]
    same = np.asarray(result.obs["sctool"]) == np.asarray(expected.obs["sctool"])
    assert same.mean() > 0.95  # four labels fewer
    accuracy = sctool.tl.evaluate(result, "truth").loc["seen_accuracy", "value"]
    assert accuracy == pytest.approx((result.obs["sctool"] == result.obs["truth"]).mean())
