"""References with more cells than are held: rare types whole, common ones in part."""

import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from synthetic import simulate, simulate_sides, write_blocks

import sctool
from sctool import _files, cli
from sctool._data import _expression, _sample


@pytest.mark.parametrize(
    ("n", "most", "taken"),
    [
        ([60_000, 30_000, 400, 1_500], 46_000, [29_733, 14_866, 400, 1_000]),
        ([400, 1_500, 30_000, 60_000], 46_000, [400, 1_000, 14_866, 29_733]),
        ([6_000, 3_000, 9], 3_000, [1_991, 1_000, 9]),  # a third for each would be less
        ([900, 900, 900], 300, [100, 100, 100]),
        ([9, 9, 9], 2, [1, 1, 1]),
    ],
)
def test_rare_types_stay_and_common_ones_keep_their_proportion(n, most, taken):
    found = _sample.sizes(np.array(n), most, _sample.LEAST)
    np.testing.assert_allclose(found, taken, atol=3)
    assert found.sum() <= max(most, len(n))


@pytest.mark.parametrize("types", [np.array([1, 0, 0, 2, 0, 0]), np.array(list("baacaa"), object)])
def test_up_to_some_cells_of_each_type_are_drawn(types):
    draws = [_sample.at_most(types, 2, np.random.default_rng(seed)) for seed in range(20)]
    for drawn in draws:
        assert drawn.tolist() == sorted(set(drawn))
        assert {0, 3} < set(drawn)
        assert len(drawn) == 4
    assert set(np.concatenate(draws)) == set(range(6))
    again = _sample.at_most(types, 2, np.random.default_rng(0))
    np.testing.assert_array_equal(draws[0], again)


def test_rare_types_are_drawn_first():
    types = np.repeat([0, 1, 2], [90, 8, 2])
    drawn = _sample.with_rare(types, 30, 5, np.random.default_rng(0))
    assert len(set(drawn)) == 30
    n = np.bincount(types[drawn])
    assert n[1] >= 5
    assert n[2] == 2
    assert (np.diff(drawn) < 0).any()  # in random order
    assert sorted(_sample.with_rare(types, 200, 5, np.random.default_rng(0))) == list(range(100))


def test_cells_are_evenly_spaced_over_the_reference(monkeypatch):
    monkeypatch.setattr(_sample, "LEAST", 5)
    codes = np.repeat([0, 1, -1, 0], [60, 3, 40, 40])
    assert _sample.sample(codes, 143) is None
    chosen = _sample.sample(codes, 73)
    assert chosen.sum() == 73
    assert chosen[60:63].all()
    assert (np.flatnonzero(chosen & (codes == 0)) == np.r_[0:60:2, 103:143:2]).all()
    assert (np.diff(np.flatnonzero(chosen & (codes < 0))) == 2).all()
    assert _sample.note(codes, chosen) == (
        "ref: 73 of 143 cells were used, as no more are held in memory: all of types with up to 3, "
        "0.5 of the cells of the most common type, evenly spaced"
    )


@pytest.fixture
def large() -> tuple[ad.AnnData, ad.AnnData]:
    """Return sides whose reference has a rare type, and batches and unlabelled cells."""
    adata, ref = simulate_sides()
    labels = ref.obs["cell_type"].astype(object)
    rare = labels == labels.iloc[0]
    ref = ref[(~rare | (np.cumsum(rare) <= 5)).to_numpy()].copy()
    ref.obs["cell_type"] = ref.obs["cell_type"].astype(object)
    ref.obs.iloc[20:30, ref.obs.columns.get_loc("cell_type")] = None
    for side in (adata, ref):
        side.obs["donor"] = np.where(np.arange(side.n_obs) % 3 == 0, "x", "y")
    return adata, ref


def codes_of(ref: ad.AnnData) -> np.ndarray:
    return pd.Categorical(ref.obs["cell_type"]).codes


def in_memory(ref: ad.AnnData, path) -> ad.AnnData:
    return ref


def in_a_file(ref: ad.AnnData, path) -> ad.AnnData:
    ref.write_h5ad(path / "ref.h5ad")
    return ad.read_h5ad(path / "ref.h5ad", backed="r")


def in_dask(ref: ad.AnnData, path) -> ad.AnnData:
    da = pytest.importorskip("dask.array")
    x = da.from_array(ref.X.toarray(), chunks=(23, -1)).map_blocks(sp.csr_matrix)
    return ad.AnnData(x, ref.obs, ref.var)


@pytest.mark.parametrize("form", [in_memory, in_a_file, in_dask])
def test_what_is_sampled_is_all_that_a_model_sees(form, large, tmp_path, monkeypatch):
    adata, ref = large
    monkeypatch.setattr(_expression, "CHUNK", 16)
    codes = codes_of(ref)
    chosen = codes >= 0
    n_labelled = chosen.sum()
    chosen[chosen] = _sample.sample(codes[chosen], 70)
    options = {"method": "logistic", "batch_key": "donor"}
    expected = sctool.tl.annotate(adata, ref[chosen].copy(), copy=True, **options)
    monkeypatch.setattr(_sample, "MOST", 70)
    found, model = sctool.tl.annotate(
        adata, form(ref, tmp_path), copy=True, return_model=True, **options
    )
    assert list(found.obs["sctool"]) == list(expected.obs["sctool"])
    np.testing.assert_array_equal(found.obsm["sctool_proba"], expected.obsm["sctool_proba"])
    [note] = [note for note in found.uns["sctool"]["audit"] if "cells were used" in note]
    assert note.startswith(f"ref: {chosen.sum()} of {n_labelled} cells were used")
    counts = ref[chosen].obs["cell_type"].value_counts()
    assert counts.min() == 5  # the rare type, whole
    weight = counts.clip(lower=counts.median() / 2)  # no type has less than half the median one's
    np.testing.assert_allclose(model.class_shares_, (weight / weight.sum())[model.classes_])


def test_alarms_compare_with_the_shares_of_the_whole_reference(large, monkeypatch):
    from sctool.tl import _annotate

    adata, ref = large
    seen = []
    usual = _annotate.judge
    monkeypatch.setattr(
        _annotate, "judge", lambda result, *args: seen.append(result) or usual(result, *args)
    )
    monkeypatch.setattr(_sample, "MOST", 70)
    sctool.tl.annotate(adata, ref, method="logistic")
    n = pd.Series(codes_of(ref)).value_counts()
    np.testing.assert_array_equal(np.bincount(seen[0].labels), n[n.index >= 0].sort_index())


def test_the_command_line_leaves_large_files_on_disk(large, tmp_path, monkeypatch, capsys):
    adata, ref = large
    for name, side in (("query", adata), ("ref", ref)):
        side.write_h5ad(tmp_path / f"{name}.h5ad")
    loaded = []
    usual = _files.read
    monkeypatch.setattr(_files, "read", lambda path: loaded.append(path.stem) or usual(path))
    words = ["annotate", str(tmp_path / "query.h5ad"), "--ref", str(tmp_path / "ref.h5ad")]
    words += ["--method", "logistic", "-q", "-o"]
    assert cli.main([*words, str(tmp_path / "a.h5ad")]) == 0
    assert loaded == ["query", "ref"]
    loaded.clear()
    monkeypatch.setattr(_sample, "MOST", 70)
    monkeypatch.setattr(sctool._data, "MOST", 70)
    assert cli.main([*words, str(tmp_path / "b.h5ad")]) == 0
    assert loaded == []
    said = capsys.readouterr().out
    assert f"of {ref.obs['cell_type'].notna().sum()} cells were used" in said
    assert f"70 of {adata.n_obs} cells, evenly spaced, were read for training" in said
    assert ad.read_h5ad(tmp_path / "b.h5ad").obs["sctool"].notna().all()


@pytest.mark.parametrize("form", [in_memory, in_a_file, in_dask])
def test_a_large_query_is_trained_with_in_part_and_named_as_a_whole(form, tmp_path, monkeypatch):
    adata, ref = simulate(300, seed=1), simulate(120, seed=0)
    truth = adata.obs.pop("cell_type").astype(str)
    adata.obs["cluster"] = truth.to_numpy()
    monkeypatch.setattr(_expression, "CHUNK", 32)
    monkeypatch.setattr(_sample, "MOST", 200)
    some = _sample.sample(np.zeros(300, dtype=int))
    assert some.sum() == 200
    allowed = list(ref.obs["cell_type"].cat.categories[:3])
    options = {"method": "logistic", "groupby": "cluster", "allowed": allowed}
    part, model = sctool.tl.annotate(
        adata[some].copy(), ref, copy=True, return_model=True, **options
    )
    path = tmp_path / "query"
    path.mkdir()
    query = form(adata, path)
    sctool.tl.annotate(query, ref, **options)
    del options["method"]
    expected = sctool.tl.annotate(adata, model, copy=True, **options)
    assert list(query.obs["sctool"]) == list(expected.obs["sctool"])
    np.testing.assert_array_equal(query.obsm["sctool_proba"], expected.obsm["sctool_proba"])
    np.testing.assert_allclose(query.obsm["sctool_proba"][some], part.obsm["sctool_proba"], 1e-5)
    groups = query.uns["sctool"]["groups"]
    assert groups["n_cells"].sum() == 300
    assert groups["markers"].str.len().min() > 0
    audit = "\n".join(query.uns["sctool"]["audit"])
    assert "query: 200 of 300 cells, evenly spaced, were read for training" in audit
    assert "doublets and cells of low quality were not looked for" in audit
    assert "nothing was trained" not in audit
    assert audit.count("allowed: 3 of") == 1


LIMITED = """
import resource, sys
import anndata as ad
import sctool, sctool.tl
from sctool._data import _sample

_sample.MOST = 2000
query = ad.read_h5ad(sys.argv[1])
small = ad.read_h5ad(sys.argv[2], backed="r")[:600].to_memory()
sctool.tl.annotate(query, small, method="logistic")  # what is loaded and compiled at first
data = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) * 1024
limit = data + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
ref = ad.read_h5ad(sys.argv[2], backed="r")
sctool.tl.annotate(query, ref, method="logistic")
print(*query.uns["sctool"]["audit"], sep="\\n")
print("accuracy", (query.obs["sctool"] == query.obs["truth"]).mean())
try:
    ref.to_memory()
except MemoryError:
    print("larger than the memory")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is one of Linux")
def test_a_reference_larger_than_the_memory_is_trained_on(tmp_path):
    adata, ref = simulate_sides()
    # every gene of each cell 10 times, so that few cells fill the memory
    wide = sp.hstack([ref.X.astype(np.float32)] * 10, format="csr")
    genes = [f"{name}-{i}" if i else name for i in range(10) for name in ref.var_names]
    times = -(-8192 // ref.n_obs)
    block = sp.vstack([wide] * times, format="csr")[:8192]
    n_blocks = -(-90_000_000 // block.nnz)
    labels = np.tile(np.resize(ref.obs["cell_type"].to_numpy(dtype=object), 8192), n_blocks)
    obs = pd.DataFrame({"cell_type": pd.Categorical(labels)}, np.arange(len(labels)).astype(str))
    write_blocks(tmp_path / "ref.h5ad", block, obs, pd.DataFrame(index=genes))
    adata.write_h5ad(tmp_path / "query.h5ad")
    words = [str(tmp_path / "query.h5ad"), str(tmp_path / "ref.h5ad"), "500000000"]
    done = subprocess.run([sys.executable, "-c", LIMITED, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"ref: 2000 of {len(labels)} cells were used" in done.stdout
    assert "larger than the memory" in done.stdout
    assert float(done.stdout.split("accuracy")[1].split()[0]) > 0.9


def test_a_layer_of_the_reference_alone_does_not_stop_a_large_query(monkeypatch):
    adata, ref = simulate(300, seed=1), simulate(120, seed=0)
    expected = sctool.tl.annotate(adata, ref, method="logistic", copy=True)
    ref.layers["c"] = ref.X.copy()
    ref.X = np.ones(ref.shape, dtype=np.float32)
    monkeypatch.setattr(_sample, "MOST", 200)
    x = adata.X.toarray()
    x[250] = 0
    adata.X = sp.csr_matrix(x)
    sctool.tl.annotate(adata, ref, method="logistic", layer="c")
    same = adata.obs["sctool"].astype(str) == expected.obs["sctool"].astype(str)
    assert same.mean() > 0.95
    assert adata.obs["sctool"].isna().sum() == 1
    assert "query: 1 cells express none of the genes used" in "\n".join(
        adata.uns["sctool"]["audit"]
    )


def test_held_out_cells_are_not_read():
    adata, ref = simulate(80, seed=1), simulate(120, seed=0)
    held_out = np.arange(120) % 5 == 0
    data = sctool._data.join(adata, ref, labels_key="cell_type", held_out=held_out)
    expected = sctool._data.join(adata, ref[~held_out].copy(), labels_key="cell_type")
    assert (data.x != expected.x).nnz == 0
    assert list(data.labels) == list(expected.labels)
    np.testing.assert_array_equal(data.domain, expected.domain)
    np.testing.assert_array_equal(data.reference_codes, expected.reference_codes)
