"""Files of the command line: what is read, and that a failed write loses nothing."""

import gzip
import os
import signal
import subprocess
import sys

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp
from synthetic import simulate

from sctool import _files


@pytest.fixture
def cells() -> ad.AnnData:
    """Return a few cells."""
    return simulate(20)


# -- reading -------------------------------------------------------------------------------------


def write_10x_folder(adata: ad.AnnData, path) -> None:
    """Write what Cell Ranger writes."""
    path.mkdir()
    genes = pd.DataFrame({"id": adata.var_names, "name": adata.var_names})
    genes["type"] = "Gene Expression"
    with gzip.open(path / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, adata.X.T.astype(int))
    genes.to_csv(path / "features.tsv.gz", sep="\t", header=False, index=False)
    pd.Series(adata.obs_names).to_csv(path / "barcodes.tsv.gz", header=False, index=False)


def write_10x_h5(adata: ad.AnnData, path) -> None:
    """Write what Cell Ranger writes, version 3."""
    x = adata.X.tocsr()
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = x.data.astype(int), x.indices, x.indptr
        group["shape"] = x.shape[::-1]
        group["barcodes"] = np.array(adata.obs_names, dtype="S")
        for name in ("id", "name"):
            group[f"features/{name}"] = np.array(adata.var_names, dtype="S")
        group["features/feature_type"] = np.array(["Gene Expression"] * adata.n_vars, dtype="S")
        group["features/genome"] = np.array(["GRCh38"] * adata.n_vars, dtype="S")


@pytest.mark.parametrize("kind", ["x.h5ad", "x.zarr", "x.h5", "folder"])
def test_what_is_read(kind, cells, tmp_path):
    path = tmp_path / kind
    write = {
        "x.h5ad": cells.write_h5ad,
        "x.zarr": cells.write_zarr,
        "x.h5": lambda p: write_10x_h5(cells, p),
        "folder": lambda p: write_10x_folder(cells, p),
    }[kind]
    write(path)
    read = _files.read(path)
    np.testing.assert_array_equal(read.X.toarray(), cells.X.toarray())
    assert list(read.var_names) == list(cells.var_names)
    assert list(read.obs_names) == list(cells.obs_names)


@pytest.mark.parametrize("name", ["x.csv", "x.mtx", "x.loom", "x", "folder"])
def test_what_is_not_read_says_how(name, tmp_path):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    else:
        path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"cannot be read: pass an .h5ad or .h5mu file.*read_csv"):
        _files.read(path)


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        _files.read(tmp_path / "x.h5ad")


def test_what_is_broken_says_so(tmp_path):
    (tmp_path / "x.h5ad").write_text("no HDF5")
    with pytest.raises(ValueError, match="x.h5ad' cannot be read: .*It should be"):
        _files.read(tmp_path / "x.h5ad")


# -- converting ----------------------------------------------------------------------------------


def test_what_can_be_written_stays_as_it_is(cells, tmp_path):
    cells.obs["n"] = np.arange(20)
    cells.uns["table"] = pd.DataFrame({"a": ["x", "y"]})
    before = cells.copy()
    assert _files.check_writable(cells, tmp_path / "out.h5ad") == []
    pd.testing.assert_frame_equal(cells.obs, before.obs)
    assert list(tmp_path.iterdir()) == []


def string_names(adata: ad.AnnData) -> None:
    """Strings of pandas' own type everywhere, as anndata 0.13 reads and writes them."""
    adata.obs["s"] = pd.array(["a", None] * 10, dtype="string")
    adata.raw = adata.copy()
    adata.raw.var.index = adata.raw.var.index.astype("string")
    adata.uns["deep"] = {"table": pd.DataFrame({"s": pd.array(["a", None], dtype="string")})}


def mixed_column(adata: ad.AnnData) -> None:
    """Numbers and text in one column, and a missing value."""
    adata.obs["mixed"] = pd.Series([1, "a", None, 2.5] * 5, index=adata.obs_names, dtype=object)


def seurat_disk(adata: ad.AnnData) -> None:
    """A reserved name of a column, as SeuratDisk leaves it."""
    raw = adata.copy()
    raw.var["_index"] = raw.var_names
    adata.raw = raw


@pytest.mark.parametrize("spoil", [string_names, mixed_column, seurat_disk])
def test_what_older_versions_cannot_write_is_converted_or_written(spoil, cells, tmp_path):
    spoil(cells)
    names = list(cells.raw.var_names) if cells.raw is not None else None
    expected = {c: cells.obs[c].astype(object).where(cells.obs[c].notna(), None) for c in cells.obs}
    _files.check_writable(cells, tmp_path / "out.h5ad")
    _files.write(cells, tmp_path / "out.h5ad")
    read = ad.read_h5ad(tmp_path / "out.h5ad")
    for column, values in expected.items():
        got = read.obs[column].astype(object).where(read.obs[column].notna(), None)
        assert [None if v is None else str(v) for v in got] == [
            None if v is None else str(v) for v in values
        ]
    assert names is None or list(read.raw.var_names) == names
    np.testing.assert_array_equal(read.X.toarray(), cells.X.toarray())


def test_a_conversion_is_noted(cells, tmp_path):
    seurat_disk(cells)
    notes = _files.check_writable(cells, tmp_path / "out.h5ad")
    assert notes == ["raw.var: column '_index', a reserved name, was renamed to 'index'"]


def test_what_no_file_holds_is_refused_with_its_place(cells, tmp_path):
    cells.uns["inner"] = {"function": len}
    with pytest.raises(ValueError, match="function.* to /uns/inner.*Remove or convert"):
        _files.check_writable(cells, tmp_path / "out.h5ad")
    assert list(tmp_path.iterdir()) == []


# -- writing -------------------------------------------------------------------------------------


def test_a_failed_write_leaves_what_was_there(cells, tmp_path):
    cells.write_h5ad(tmp_path / "out.h5ad")
    before = (tmp_path / "out.h5ad").read_bytes()
    cells.uns["function"] = len
    with pytest.raises(Exception, match="function"):
        _files.write(cells, tmp_path / "out.h5ad")
    assert (tmp_path / "out.h5ad").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5ad"]


def test_a_file_that_is_open_elsewhere_is_replaced_whole(cells, tmp_path):
    cells.write_h5ad(tmp_path / "out.h5ad")
    backed = ad.read_h5ad(tmp_path / "out.h5ad", backed="r")
    cells.obs["new"] = 1
    _files.write(cells, tmp_path / "out.h5ad")
    assert "new" in ad.read_h5ad(tmp_path / "out.h5ad").obs
    assert backed.X[:].shape == cells.shape  # it still reads the old one
    backed.file.close()


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_stays_a_link(cells, tmp_path):
    (tmp_path / "real").mkdir()
    cells.write_h5ad(tmp_path / "real/out.h5ad")
    (tmp_path / "out.h5ad").symlink_to(tmp_path / "real/out.h5ad")
    cells.obs["new"] = 1
    _files.write(cells, tmp_path / "out.h5ad")
    assert (tmp_path / "out.h5ad").is_symlink()
    assert "new" in ad.read_h5ad(tmp_path / "real/out.h5ad").obs


KILLED = """
import os, signal, sys
import anndata as ad, h5py, numpy as np
from pathlib import Path
from sctool import _files

path = Path(sys.argv[1])
old = ad.read_h5ad(path)
new = old.copy()
new.obs["new"] = 1

def count(function, calls, limit):
    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] > limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return counted

def write_until(limit):
    calls = [0]
    h5py.Group.create_dataset = count(h5py.Group.create_dataset, calls, limit)
    os.replace = count(os.replace, calls, limit)
    _files.write(new, path)
    return calls[0]

if (pid := os.fork()) == 0:
    os._exit(write_until(10**6))
n = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert n > 5, n
assert "new" in ad.read_h5ad(path).obs
old.write_h5ad(path)
for limit in sorted({0, n // 4, n // 2, 3 * n // 4, n - 1}):
    if (pid := os.fork()) == 0:
        write_until(limit)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    read = ad.read_h5ad(path)
    same = np.array_equal(read.X.toarray(), old.X.toarray())
    print(code, "new" in read.obs, same)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_write_leaves_the_old_file(cells, tmp_path):
    path = tmp_path / "out.h5ad"
    cells.write_h5ad(path)
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == 5 * [f"{-signal.SIGKILL} False True"], done.stderr


@pytest.mark.parametrize("slot", ["layers", "obsm", "obsp", "varm"])
def test_matrices_whose_names_could_not_be_read_are_refused(slot, tmp_path):
    adata = simulate(30)
    side = adata.n_vars if slot == "varm" else adata.n_obs
    shape = adata.shape if slot == "layers" else (side, side)
    getattr(adata, slot)["CD4/CD8"] = sp.csr_matrix(shape, dtype="float32")
    with pytest.raises(ValueError, match=rf"'CD4/CD8'\] in {slot} contain '/'"):
        _files.check_writable(adata, tmp_path / "out.h5ad")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("slot", ["X", "layers", "obsp", "raw.X"])
@pytest.mark.parametrize("mixed", [False, True], ids=["numbers", "mixed"])
def test_matrices_of_objects_are_refused(slot, mixed, tmp_path):
    adata = simulate(30)
    values = np.ones((30, 30) if slot == "obsp" else adata.shape).astype(object)
    if mixed:
        values[0, 0] = "a"
    if slot == "X":
        adata = ad.AnnData(values)
    elif slot == "raw.X":
        adata.raw = ad.AnnData(values, obs=adata.obs, var=adata.var)
    else:
        getattr(adata, slot)["mine"] = values
    name = slot if slot in ("X", "raw.X") else rf"{slot}\['mine'\]"
    with pytest.raises(ValueError, match=rf"cannot be written .* {name} holds Python objects"):
        _files.check_writable(adata, tmp_path / "out.h5ad")
    assert not list(tmp_path.iterdir())


def test_a_matrix_of_text_can_be_written(tmp_path):
    adata = simulate(30)
    adata.layers["text"] = np.full(adata.shape, "a", dtype=object)
    assert _files.check_writable(adata, tmp_path / "out.h5ad") == []
    _files.write(adata, tmp_path / "out.h5ad")
