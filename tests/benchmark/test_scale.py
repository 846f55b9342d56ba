"""Larger data without copies of cells, and runs that are ended in time."""

import json
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.axes import Axes
from synthetic import simulate, simulate_sides

from sctool import tl
from sctool_benchmark import sampled, scale
from sctool_benchmark._figures import plot_scale


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
            "reference": 0,
            "seconds": 2,
            "reading": 1,
            "cpu": 4,
            "peak_rss_gb": 3,
            "accuracy": 1,
        },
        {"cells": 1000, "method": "b", "reference": 2000, "ended": "at 16 GB"},
    ]
    scale.table(json.loads(json.dumps(rows)), tmp_path / "table.md", ["-o", "results"])
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2] == "| 1,000 | `a` |  | 2.0 | 1.0 | 4.0 | 3.00 | 1.000 |"
    assert lines[3] == "| 1,000 | `b` | 2,000 | ended at 16 GB |  |  |  |  |"
    assert "    python -m sctool_benchmark.scale -o results" in lines


def test_the_curves_leave_out_what_was_ended(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda ax, x, y, *_, label: drawn.append((label, list(y))))
    rows = pd.DataFrame(
        [
            {"cells": 100, "method": "a", "reference": 0, "cpu": 2.0, "peak_rss_gb": 1.5},
            {"cells": 10, "method": "a", "reference": 0, "cpu": 1.0, "peak_rss_gb": 0.5},
            {"cells": 100, "method": "b", "reference": 1000, "ended": "at 16 GB"},
        ]
    )
    monkeypatch.setattr(Axes, "legend", lambda *args, **kwargs: None)
    plot_scale(rows, tmp_path / "curves.png")
    assert drawn[:2] == [("a", [1.0, 2.0]), ("a", [0.5, 1.5])]
    assert drawn[2:] == [("b, trained on 1,000", [])] * 2
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_methods_are_trained_on_each_reference_or_saved_once(pair, tmp_path, monkeypatch):
    query, ref = pair
    both = ad.concat([query, ref], label="split", keys=["query", "reference"], index_unique="-")
    both.var = query.var[[]]
    both.write_h5ad(tmp_path / "pair.h5ad")
    monkeypatch.setenv("SCTOOL_DATA_DIR", str(tmp_path))

    def here(command, result):
        assert scale.main(command[3:]) == 0
        return json.loads(result.read_text())

    monkeypatch.setattr(scale, "limited", here)
    words = ["-o", str(tmp_path / "out"), "--data", "pair.h5ad", "--cells", "90"]
    words += ["--methods", "logistic,logistic-trained", "--references", "100,200"]
    assert scale.main(words) == 0
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()[2:5]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[1:3] for row in rows] == [
        ["`logistic`", ""],
        ["`logistic-trained`", "100"],
        ["`logistic-trained`", "200"],
    ]
    assert all(float(row[-1]) > 0.9 for row in rows)


@pytest.fixture
def pair() -> tuple[ad.AnnData, ad.AnnData]:
    query, ref = simulate_sides(n_query=160)
    query.obs["cell_type"] = query.obs["truth"]
    return query, ref


def test_parts_of_a_reference_beside_the_whole(pair, monkeypatch):
    used = []

    def half_right(query, ref, *, method, novel, copy):
        assert (method, novel, copy) == ("logistic", 0, True)
        used.append((query.n_obs, ref.n_obs))
        found = query.copy()
        found.obs["sctool"] = np.where(query.obs["truth"] == "B", "DC", query.obs["truth"])
        return found

    monkeypatch.setattr(tl, "annotate", half_right)
    rows = list(sampled.rows("x", *pair, "logistic"))
    # the query is whole where the reference is not
    assert used == [(160, 120), (160, 60), (160, 28), (160, 12)]  # 7 of each type, not 7.5
    assert [row[2] for row in rows] == ["120", "60", "28", "12"]
    # of four types one has no cell right, and another two thirds of F1
    assert rows[0] == ["x", "logistic", "120", "0.7500", "0.6667"]


@pytest.mark.slow
def test_the_table_of_parts_has_a_value_for_each_column(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(sampled, "parts_of_kang", lambda folder, draw: pair)
    monkeypatch.setattr(sampled, "enlarged", lambda folder, name: pair)
    words = ["-o", str(tmp_path)]
    assert sampled.main(words) == 0
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[0] == "| reference | method | cells | accuracy | macro-F1 |"
    assert {line.count("|") for line in lines[:18]} == {6}
    assert lines[18] == ""
    assert float(lines[2].split("|")[4]) > 0.9
    assert f"    python -m sctool_benchmark.sampled -o {tmp_path}" in lines


def test_an_enlarged_reference_has_the_types_and_genes_of_its_own(tmp_path):
    cells = simulate(80)
    cells.obs["split"] = np.where(np.arange(80) < 20, "query", "reference")
    cells.write_h5ad(tmp_path / "x.h5ad")
    query, ref = sampled.enlarged(tmp_path, "x", 300)
    assert query.obs_names.tolist() == cells.obs_names[:20].tolist()
    assert ref.shape == (300, cells.n_vars)
    for name, own in ref.obs.groupby("cell_type", observed=True):
        of_type = cells[20:][(cells.obs["cell_type"][20:] == name).to_numpy()]
        means = [np.asarray(x.mean(axis=0)).ravel() for x in (of_type.X, ref[own.index].X)]
        assert np.corrcoef(*means)[0, 1] > 0.95
