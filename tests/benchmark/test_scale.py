"""Larger data without copies of cells, and runs that are ended in time."""

import json
import sys

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from synthetic import simulate, simulate_sides

from sctool._data import _sample
from sctool_benchmark import sampled, scale


@pytest.fixture(scope="module")
def cells() -> tuple[ad.AnnData, np.ndarray]:
    """Return cells and their types."""
    adata = simulate(120)
    return adata, adata.obs["cell_type"].astype(str).to_numpy()


def test_neighbours_are_others_of_the_same_type(cells):
    adata, labels = cells
    near = scale.neighbours(sp.csr_matrix(adata.X, dtype=float), labels)
    assert (labels[near] == labels[:, None]).all()
    assert (near != np.arange(len(labels))[:, None]).all()


def test_new_cells_are_no_copies_and_have_the_means_of_their_types(cells, tmp_path, monkeypatch):
    adata, labels = cells
    monkeypatch.setattr(scale, "BLOCK", 700)
    scale.write_cells(adata, labels, 2000, tmp_path / "x.h5ad")
    new = ad.read_h5ad(tmp_path / "x.h5ad")
    assert new.shape == (2000, adata.n_vars)
    x = new.X.toarray()
    assert len(np.unique(x, axis=0)) == 2000
    np.testing.assert_array_equal(x, np.round(x))
    for name in np.unique(labels):
        old_mean = adata.X[labels == name].toarray().mean(axis=0)
        new_mean = x[(new.obs["truth"] == name).to_numpy()].mean(axis=0)
        assert np.corrcoef(old_mean, new_mean)[0, 1] > 0.95
        assert new_mean.sum() == pytest.approx(old_mean.sum(), rel=0.2)  # hubs are drawn more often


def test_a_run_is_ended_by_time_and_says_why_it_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "SECONDS", 0.3)
    result = tmp_path / "result.json"
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert scale.limited(sleeps, result) == {"ended": "after 0.3 s"}
    monkeypatch.setattr(scale, "SECONDS", 60)
    assert scale.limited([sys.executable, "-c", "raise SystemExit(3)"], result) == {
        "ended": "exit code 3"
    }
    writes = f"open({str(result)!r}, 'w').write('{{\"seconds\": 1}}')"
    assert scale.limited([sys.executable, "-c", writes], result) == {"seconds": 1}


def test_the_table(tmp_path):
    rows = [
        {
            "cells": 1000,
            "method": "a",
            "seconds": 2,
            "reading": 1,
            "cpu": 4,
            "peak_rss_gb": 3,
            "accuracy": 1,
        },
        {"cells": 1000, "method": "b", "ended": "at 16 GB"},
    ]
    scale.table(json.loads(json.dumps(rows)), tmp_path / "table.md", "-o results")
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2] == "| 1,000 | `a` | 2.0 | 1.0 | 4.0 | 3.00 | 1.000 |"
    assert lines[3] == "| 1,000 | `b` | ended at 16 GB |  |  |  |  |"


def test_parts_of_a_reference_beside_the_whole():
    query, ref = simulate_sides()
    query.obs["cell_type"] = query.obs["truth"]
    usual = _sample.MOST
    lines = [line.split("|") for line in sampled.rows("x", query, ref, "logistic")]
    assert [int(line[3]) for line in lines] == [
        ref.n_obs,
        *(int(s * ref.n_obs) for s in (0.5, 0.25, 0.1)),
    ]
    assert all(float(line[4]) > 0.9 for line in lines[:2])
    assert usual == _sample.MOST
