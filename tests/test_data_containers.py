"""Containers, files and views: how the values are stored is irrelevant."""

from collections.abc import Callable

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from stages import (
    assert_read_alike,
    every_stage,
    expected,
    in_files,
    logistic,
    sides_in,
    trained,
)
from synthetic import simulate_sides

import sctool
from sctool._data import _expression

# -- containers, files and views -----------------------------------------------------------------

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


@pytest.mark.parametrize("stage", ["join", "read_cells", "transform", "annotate"])
@pytest.mark.parametrize("container", list(CONTAINERS))
def test_the_container_of_the_values_is_irrelevant(stage, container):
    convert = CONTAINERS[container]
    sides = [ad.AnnData(convert(a.X), obs=a.obs, var=a.var) for a in simulate_sides()]
    assert_read_alike(stage, *sides)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Callable[[str], list[ad.AnnData]]:
    """Return a function that opens the two sides in files, "sparse" or "dense"."""
    folder = tmp_path_factory.mktemp("files")
    names = {form: [folder / f"{form}{i}.h5ad" for i in range(2)] for form in ("sparse", "dense")}
    for i, side in enumerate(simulate_sides()):
        side.write_h5ad(names["sparse"][i])
        side.X = side.X.toarray()
        side.write_h5ad(names["dense"][i])
    return lambda form: [ad.read_h5ad(name, backed="r") for name in names[form]]


@every_stage
@pytest.mark.parametrize("chunk", [8192, 7], ids=["one-chunk", "chunks"])
@pytest.mark.parametrize("form", ["sparse", "dense"])
def test_files_need_not_be_in_memory(stage, form, chunk, files, monkeypatch):
    adata, ref = files(form)
    expected(stage)
    monkeypatch.setattr(_expression, "CHUNK", chunk)
    assert_read_alike(stage, adata, ref)
    assert adata.isbacked
    assert ref.isbacked
    adata.file.close()
    ref.file.close()


def test_a_copy_of_a_query_in_a_file_is_in_memory(files):
    adata, ref = files("sparse")
    result = sctool.tl.annotate(adata, ref, method="logistic", copy=True)
    assert not result.isbacked
    assert "sctool" not in adata.obs
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected("annotate"), atol=1e-5)
    adata.file.close()
    ref.file.close()


def test_a_view_of_a_file_is_annotated(files):
    for copy in (True, False):
        backed, _ = files("sparse")
        view = backed[10:40]
        result = sctool.tl.annotate(view, trained(), copy=copy)
        proba = (result if copy else view).obsm["sctool_proba"]
        np.testing.assert_allclose(proba, expected("annotate-with-model")[10:40], atol=1e-5)
        assert "sctool" not in backed.obs
        backed.file.close()


@every_stage
def test_a_view_is_read_as_its_copy_is(stage):
    adata, ref = (ad.concat([side, side], index_unique="-") for side in simulate_sides())
    assert_read_alike(stage, adata[:80], ref[:120])
    assert list(adata.obs) == ["truth"]


def test_a_view_becomes_an_object_of_its_own():
    adata, ref = simulate_sides()
    twice = ad.concat([adata, adata], index_unique="-")
    half = twice[: adata.n_obs]
    result = sctool.tl.annotate(half, ref, method="logistic", copy=True)
    assert half.is_view
    assert "sctool" in result.obs
    logistic(half, ref)
    assert not half.is_view
    np.testing.assert_allclose(half.obsm["sctool_proba"], expected("annotate"), atol=1e-5)
    assert list(twice.obs) == ["truth"]


def halved(x: sp.csr_matrix) -> sp.csr_matrix:
    """The same values, each in two entries; counts in two counts."""
    whole = (x.data % 1 == 0).all()
    first = np.floor(x.data / 2) if whole else x.data / 2
    data = np.stack([first, x.data - first], axis=1).ravel().astype(x.dtype)
    return sp.csr_matrix((data, np.repeat(x.indices, 2), 2 * x.indptr), shape=x.shape)


@pytest.mark.parametrize("stage", ["join", "read_cells", "transform", "annotate"])
@pytest.mark.parametrize("where", ["csr", "csc", "file"])
@pytest.mark.parametrize("form", ["counts", "log1p"])
def test_entries_of_a_gene_in_several_parts_are_one_value(form, where, stage, tmp_path):
    adata, ref = sides_in(form)
    n = adata.X.nnz
    for side in (adata, ref):
        side.X = halved(side.X) if where != "csc" else halved(side.X.T.tocsr()).T
    matrix = adata.X
    assert matrix.nnz == 2 * n
    assert not matrix.has_canonical_format
    if where == "file":
        adata, ref = in_files(tmp_path, adata, ref)
    assert_read_alike(stage, adata, ref, form)
    assert matrix.nnz == 2 * n, "the user's matrix was changed"
    for side in (adata, ref):
        if side.isbacked:
            side.file.close()
