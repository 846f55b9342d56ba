"""Cells that stay on disk: results are appended to a copy, and an interruption loses nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from synthetic import simulate, simulate_sides, write_blocks

import sctool
from sctool import _files, _ondisk
from sctool.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding"),
    pytest.mark.filterwarnings("ignore:zarr v3 will become"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Return the folder of a saved model."""
    adata, ref = simulate_sides()
    path = tmp_path_factory.mktemp("models") / "model"
    sctool.tl.annotate(adata, ref, method="logistic", return_model=True).save(path)
    return path


def rich() -> ad.AnnData:
    """Cells with something in each slot."""
    adata, _ = simulate_sides()
    adata.X = adata.X.astype(np.float32)
    adata.layers["csc"] = sp.csc_matrix(adata.X)
    adata.layers["dense"] = adata.X.toarray()
    adata.obs["batch"] = pd.Categorical(["a", "b"] * (adata.n_obs // 2))
    adata.obs["missing"] = pd.array([1, None] * (adata.n_obs // 2), dtype="Int64")
    adata.obsm["X_pca"] = np.ones((adata.n_obs, 3))
    adata.obsm["table"] = pd.DataFrame({"a": np.arange(adata.n_obs)}, index=adata.obs_names)
    adata.obsp["near"] = sp.identity(adata.n_obs, format="csr")
    adata.varm["loadings"] = np.ones((adata.n_vars, 2))
    adata.uns["deep"] = {"text": "x", "n": 3, "names": np.array(["a", "b"], dtype=object)}
    adata.raw = adata.copy()
    return adata


def write(adata: ad.AnnData, path: Path) -> None:
    (adata.write_zarr if path.suffix == ".zarr" else adata.write_h5ad)(path)


def read(path: Path) -> ad.AnnData:
    return (ad.read_zarr if path.suffix == ".zarr" else ad.read_h5ad)(path)


def assert_kept(found: ad.AnnData, before: ad.AnnData) -> None:
    """All that was there is there, and as it was."""
    for name in before.obs:
        pd.testing.assert_series_equal(
            found.obs[name], before.obs[name], check_index_type=False, check_dtype=False
        )
    assert list(found.obs)[: before.obs.shape[1]] == list(before.obs)
    for name, layer in before.layers.items():
        assert sp.issparse(found.layers[name]) == sp.issparse(layer)
        np.testing.assert_array_equal(
            sp.csr_matrix(found.layers[name]).toarray(), sp.csr_matrix(layer).toarray()
        )
    np.testing.assert_array_equal(found.X.toarray(), before.X.toarray())
    np.testing.assert_array_equal(found.raw.X.toarray(), before.raw.X.toarray())
    np.testing.assert_array_equal(found.obsm["X_pca"], before.obsm["X_pca"])
    assert list(found.obsm["table"]["a"]) == list(before.obsm["table"]["a"])
    assert (found.obsp["near"] != before.obsp["near"]).nnz == 0
    np.testing.assert_array_equal(found.varm["loadings"], before.varm["loadings"])
    assert found.uns["deep"]["text"] == "x"
    assert list(found.uns["deep"]["names"]) == ["a", "b"]


def assert_annotated(found: ad.AnnData, expected: ad.AnnData) -> None:
    for name in [c for c in expected.obs if c.startswith("sctool")]:
        assert list(found.obs[name]) == list(expected.obs[name])
    assert found.obs["sctool"].dtype == expected.obs["sctool"].dtype
    for slot in ("sctool_proba", "X_sctool"):
        np.testing.assert_array_equal(found.obsm[slot], expected.obsm[slot])
    assert list(found.uns["sctool"]["audit"]) == list(expected.uns["sctool"]["audit"])


@pytest.mark.parametrize("target", ["out.h5ad", "out.zarr"])
@pytest.mark.parametrize("source", ["query.h5ad", "query.zarr"])
def test_results_are_appended_to_a_copy(source, target, model, tmp_path, capsys, monkeypatch):
    source, target = tmp_path / source, tmp_path / target
    adata = rich()
    write(adata, source)
    expected = sctool.tl.annotate(adata, model, copy=True)
    if source.suffix == target.suffix:  # nothing large is loaded
        monkeypatch.setattr(_files, "read", lambda path: pytest.fail("loaded as a whole"))
    assert main(["annotate", str(source), "--model", str(model), "-o", str(target)]) == 0
    found = read(target)
    assert_kept(found, adata)
    assert_annotated(found, expected)
    assert "sctool" not in read(source).obs
    assert {p.name for p in tmp_path.iterdir()} == {source.name, target.name}
    # and once more, over an earlier result of other cells' names
    words = ["annotate", str(target), "--model", str(model), "--in-place", "--novel", "0"]
    assert main(words) == 0
    again = read(target)
    assert_kept(again, adata)
    assert again.uns["sctool"]["params"]["novel"] == 0
    assert {p.name for p in tmp_path.iterdir()} == {source.name, target.name}


def test_a_training_run_annotates_in_place(tmp_path):
    adata, ref = simulate_sides()
    write(adata, tmp_path / "query.h5ad")
    write(ref, tmp_path / "ref.h5ad")
    words = ["annotate", str(tmp_path / "query.h5ad"), "--ref", str(tmp_path / "ref.h5ad")]
    assert main([*words, "--in-place", "--method", "logistic"]) == 0
    found = read(tmp_path / "query.h5ad")
    assert found.obs["sctool"].notna().all()
    np.testing.assert_array_equal(found.X.toarray(), adata.X.toarray())


def test_old_files_are_read_as_a_whole(model, tmp_path):
    adata, _ = simulate_sides()
    write(adata, tmp_path / "query.h5ad")
    with h5py.File(tmp_path / "query.h5ad", "r+") as file:  # as SeuratDisk and others leave it
        del file["X"].attrs["encoding-type"], file["X"].attrs["encoding-version"]
        file["X"].attrs["h5sparse_format"], file["X"].attrs["h5sparse_shape"] = "csr", adata.shape
    out = tmp_path / "out.h5ad"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        words = ["annotate", str(tmp_path / "query.h5ad"), "--model", str(model), "-o", str(out)]
        assert main(words) == 0
        assert read(out).obs["sctool"].notna().all()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table_of_labels_alone(ending, model, tmp_path, capsys):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    adata = rich()
    write(adata, tmp_path / "query.h5ad")
    out = tmp_path / f"labels.{ending}"
    words = ["annotate", str(tmp_path / "query.h5ad"), "--model", str(model), "-o", str(out)]
    assert main([*words, "--json"]) == 0
    table = (pd.read_csv if ending == "csv" else pd.read_parquet)(out)
    table = table.set_index("cell") if "cell" in table else table
    expected = sctool.tl.annotate(adata, model, copy=True)
    assert list(table.index) == list(adata.obs_names)
    assert list(table["sctool"]) == list(expected.obs["sctool"])
    np.testing.assert_allclose(table["sctool_score"], expected.obs["sctool_score"], rtol=1e-6)
    assert [c for c in table if not c.startswith("sctool")] == []
    said = json.loads(capsys.readouterr().out)
    assert said["counts"] == expected.obs["sctool"].value_counts().to_dict()
    assert said["n_cells"] == adata.n_obs
    assert said["output"] == str(out)
    assert said["audit"] == list(expected.uns["sctool"]["audit"])


def test_many_cells_have_a_progress_bar_unless_it_is_hidden(model, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("sctool.model._base.MANY", 10)
    adata, _ = simulate_sides()
    write(adata, tmp_path / "query.h5ad")
    words = ["annotate", str(tmp_path / "query.h5ad"), "--model", str(model)]
    assert main([*words, "-o", str(tmp_path / "x.csv")]) == 0
    shown = capfd.readouterr().err
    assert f"annotating: 100%|██████████| {adata.n_obs}/{adata.n_obs}" in shown
    assert "cell/s]" in shown
    assert main([*words, "-o", str(tmp_path / "y.csv"), "--quiet"]) == 0
    assert "annotating" not in capfd.readouterr().err


def test_parquet_without_pyarrow_says_so_first(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    write(simulate(20), tmp_path / "query.h5ad")
    monkeypatch.setattr(sctool.tl, "annotate", lambda *args, **kwargs: pytest.fail("computed"))
    words = ["annotate", str(tmp_path / "query.h5ad"), "--model", str(model), "-o"]
    assert main([*words, str(tmp_path / "x.parquet")]) == 2
    assert "sctool-annotate[parquet]" in capsys.readouterr().err


def test_a_full_disk_is_said_first(model, tmp_path, capsys, monkeypatch):
    write(simulate(20), tmp_path / "query.h5ad")
    monkeypatch.setattr(_ondisk.shutil, "disk_usage", lambda path: type("D", (), {"free": 10}))
    words = ["annotate", str(tmp_path / "query.h5ad"), "--model", str(model), "--in-place"]
    assert main(words) == 2
    assert "-o labels.csv writes the labels alone" in capsys.readouterr().err


def test_an_interruption_leaves_inputs_and_outputs_alone(model, tmp_path, monkeypatch):
    write(simulate_sides()[0], tmp_path / "query.h5ad")
    before = (tmp_path / "query.h5ad").read_bytes()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(_ondisk, "_append", interrupted)
    words = ["annotate", str(tmp_path / "query.h5ad"), "--model", str(model), "--in-place"]
    assert main(words) == 130
    assert (tmp_path / "query.h5ad").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["query.h5ad"]


KILLED = """
import os, shutil, signal, sys, warnings
import anndata as ad, numpy as np
from pathlib import Path
from sctool import _files, _ondisk
warnings.simplefilter("ignore")

path = Path(sys.argv[1])
read = ad.read_zarr if path.suffix == ".zarr" else ad.read_h5ad
old = read(path)
new = old.copy()
new.obs["sctool"] = new.obs["sctool_score"] = np.arange(new.n_obs, dtype=np.float32)
new.obsm["X_sctool"] = np.ones((new.n_obs, 2), dtype=np.float32)
new.uns["sctool"] = {"audit": np.array(["a"], dtype=object), "params": {"x": 1}}

def count(function, calls, limit):
    def counted(*args, **kwargs):
        calls[0] += 1
        if calls[0] > limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return counted

def write_until(limit):
    calls = [0]
    _ondisk.shutil.copyfile = count(_ondisk.shutil.copyfile, calls, limit)
    _ondisk.shutil.copytree = count(_ondisk.shutil.copytree, calls, limit)
    ad.io.write_elem = count(ad.io.write_elem, calls, limit)
    os.replace = count(os.replace, calls, limit)
    _files._exchange = count(_files._exchange, calls, limit)
    _files.shutil.rmtree = count(_files.shutil.rmtree, calls, limit)
    _ondisk.write_annotated(new, "sctool", path, path)
    return calls[0]

def fork(limit):
    if (pid := os.fork()) == 0:
        os._exit(write_until(limit))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

original = sys.argv[2]
shutil.copytree(path, original) if path.is_dir() else shutil.copyfile(path, original)
n = fork(10**6)  # what is called in a run that nothing disturbs
print(n > 5, "sctool" in read(path).obs, True, True)
shutil.rmtree(path) if path.is_dir() else path.unlink()
os.rename(original, path)
for limit in (0, 1, 3, n - 2, n - 1):
    code = fork(limit)
    found = read(path)
    whole = ("sctool" in found.obs) == ("X_sctool" in found.obsm) == ("sctool" in found.uns)
    print(code, "sctool" in found.obs, whole, np.array_equal(found.X.toarray(), old.X.toarray()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", ["query.h5ad", "query.zarr"])
def test_a_run_in_place_that_is_killed_loses_nothing(name, tmp_path):
    write(simulate(20), tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / name), str(tmp_path / f"original-{name}")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    finished, *killed = [line.split() for line in done.stdout.splitlines()]
    assert len(killed) == 5
    for code, changed, whole, same in killed:
        assert (int(code), whole, same) == (-signal.SIGKILL, "True", "True")
        assert changed in ("True", "False")
    assert [changed for _, changed, *_ in killed][:4] == ["False"] * 4
    assert finished == ["True"] * 4


LIMITED = """
import resource, sys
import anndata as ad, scanpy, torch, numpy as np
import sctool, sctool.tl
from sctool.model import load

torch.set_num_threads(1)
model = load(sys.argv[2])
small = ad.read_h5ad(sys.argv[1], backed="r")[:100].to_memory()
sctool.tl.annotate(small, model)  # what is loaded and compiled at the first call
data = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) * 1024
limit = data + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
cells = ad.read_h5ad(sys.argv[1], backed="r")
sctool.tl.annotate(cells, model)
assert cells.obs["sctool"].notna().all()
try:
    cells.to_memory()
except MemoryError:
    print("larger than the memory")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["query.h5ad", "query.zarr"])
@pytest.mark.parametrize("change", ["reversed", "fewer", "another-result"])
def test_a_file_that_others_changed_meanwhile_is_left_alone(
    change, name, model, tmp_path, monkeypatch, capsys
):
    path, cells = tmp_path / name, rich()
    write(cells, path)
    other = {"reversed": cells[::-1], "fewer": cells[:50], "another-result": cells}[change].copy()
    other.obs["theirs"] = 1
    changed_after = _ondisk if change == "another-result" else sctool.tl
    method = "_append" if change == "another-result" else "annotate"
    usual = getattr(changed_after, method)

    def meanwhile(*args, **kwargs):
        result = usual(*args, **kwargs)
        write(other, tmp_path.with_name(name))
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(tmp_path.with_name(name), path)
        return result

    monkeypatch.setattr(changed_after, method, meanwhile)
    assert main(["annotate", str(path), "--model", str(model), "--in-place", "-q"]) == 2
    assert "was changed while its cells were annotated" in capsys.readouterr().err
    left = read(path)
    assert "theirs" in left.obs
    assert "sctool" not in left.obs
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Linux")
def test_a_file_larger_than_the_memory_is_annotated(model, tmp_path):
    adata, _ = simulate_sides()
    block = sp.vstack([adata.X.astype(np.float32)] * (8192 // adata.n_obs), format="csr")
    n_blocks = 600_000_000 // (8 * block.nnz) + 1
    obs = pd.DataFrame(index=np.arange(n_blocks * block.shape[0]).astype(str))
    write_blocks(tmp_path / "x.h5ad", block, obs, adata.var[[]])
    words = [str(tmp_path / "x.h5ad"), str(model), "300000000"]
    done = subprocess.run([sys.executable, "-c", LIMITED, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "larger than the memory" in done.stdout
