"""Some of many cells are searched for novel types, and all are named."""

import numpy as np
import pytest
import scipy.sparse as sp
from synthetic import simulate

import sctool
from sctool import _sketch


def clustered(sizes: list[int]) -> tuple[sp.csr_matrix, np.ndarray]:
    """Cells of well-separated types of these sizes."""
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    centres = rng.uniform(0, 4, (len(sizes), 40))
    x = np.maximum(centres[codes] + 0.3 * rng.standard_normal((len(codes), 40)), 0)
    return sp.csr_matrix(x.astype(np.float32)), codes


def test_few_cells_are_all_taken():
    x, codes = clustered([50, 50])
    np.testing.assert_array_equal(_sketch.sketch_regions(x), np.arange(100))
    np.testing.assert_array_equal(_sketch.sketch_types(codes), np.arange(100))


def test_rare_regions_are_kept_and_shares_too(monkeypatch):
    monkeypatch.setattr(_sketch, "MOST", 1000)
    monkeypatch.setattr(_sketch, "N_REGIONS", 20)
    x, codes = clustered([6000, 3000, 15])
    chosen = _sketch.sketch_regions(x)
    assert 950 <= len(chosen) <= 1000
    assert (np.diff(chosen) > 0).all()
    n = np.bincount(codes[chosen])
    assert n[2] >= 8  # 1.7 of a random sample
    assert n[0] / n[1] == pytest.approx(2, rel=0.1)
    assert np.bincount(codes[_sketch.sketch_types(codes)])[2] == _sketch.FEW


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "scdet"])
def test_cells_outside_the_sketch_get_names_too(method, monkeypatch):
    monkeypatch.setattr(_sketch, "MOST", 150)
    monkeypatch.setattr(_sketch, "N_REGIONS", 10)
    adata, ref = simulate(500, seed=1), simulate(200, seed=0)
    truth = adata.obs.pop("cell_type").astype(str)
    sctool.tl.annotate(adata, ref, method=method, model_kwargs={"min_steps": 60})
    note = next(n for n in adata.uns["sctool"]["audit"] if "unlabelled cells" in n)
    assert note.startswith("query: 1")
    assert "of 500 unlabelled cells" in note
    assert (truth == adata.obs["sctool"].astype(str)).mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "scdet"])
def test_novel_cells_outside_the_sketch_are_found(method, monkeypatch, read_real):
    monkeypatch.setattr(_sketch, "MOST", 800)
    monkeypatch.setattr(_sketch, "N_REGIONS", 40)
    cells = read_real("zheng_pbmc_facs")
    hidden = "CD19+ B"
    adata, ref = cells[::2].copy(), cells[1::2]
    ref = ref[ref.obs["cell_type"] != hidden].copy()
    is_hidden = (adata.obs.pop("cell_type") == hidden).to_numpy()
    sctool.tl.annotate(adata, ref, method=method)
    assert any("unlabelled cells were grouped" in note for note in adata.uns["sctool"]["audit"])
    novel = adata.obs["sctool"].astype(str).str.startswith("novel_")
    assert novel[is_hidden].mean() > 0.9
    assert novel[~is_hidden].mean() < 0.05
