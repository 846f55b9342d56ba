"""Floors: k-means, and "reject, then cluster the rejected"."""

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from synthetic import simulate

from sctool import novelty
from sctool_benchmark import Split, Task, _baselines, run, split

# -- Clustering without a reference --------------------------------------------------------------


@pytest.mark.parametrize("method", ["cicl", "kmeans"])
def test_clusters_are_scored_and_tabulated(method: str, tmp_path: Path, jobs: list) -> None:
    simulate(60).write_h5ad(tmp_path / "cells.h5ad")
    lines = ["[[task]]", 'kind = "cluster"', 'data = "mine"']
    lines += [f"file = '{tmp_path / 'cells.h5ad'}'", "[method.m]", f'method = "{method}"']
    if method == "cicl":
        lines += ["train_kwargs = { max_epochs = 2, enable_progress_bar = false }"]
    (tmp_path / "suite.toml").write_text("\n".join(lines))
    (row,) = run(tmp_path / "suite.toml", protocols=["paper"], out=tmp_path / "out").itertuples()
    assert row.error is None
    assert row.n_types == 4
    assert row.n_clusters_n == 4
    assert -0.5 < row.ari < 1
    assert 0 < row.nmi <= 1
    assert 0 < row.clustering_accuracy <= 1
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| task | method | runs | ari | nmi | clustering_accuracy |" in table
    assert "seen_accuracy" not in table


def test_clusters_are_matched_to_types_where_others_name_them(tmp_path: Path, jobs: list) -> None:
    simulate(400).write_h5ad(tmp_path / "cells.h5ad")
    lines = ['methods = ["kmeans", "simlr"]', "[[task]]", 'kind = "intra"', 'data = "mine"']
    lines += [f"file = '{tmp_path / 'cells.h5ad'}'"]
    (tmp_path / "suite.toml").write_text("\n".join(lines))
    words = {"methods": ["kmeans"], "protocols": ["paper"], "out": tmp_path / "out"}
    (row,) = run(tmp_path / "suite.toml", **words).itertuples()
    assert row.error is None
    assert (row.n_types, row.n_novel_types, row.n_clusters_n) == (2, 2, 4)
    assert min(row.seen_accuracy, row.novel_accuracy, row.overall_accuracy) > 0.9
    assert row.overall_accuracy == row.overall_accuracy_hungarian
    assert "| overall_accuracy_hungarian |" in (tmp_path / "out" / "table.md").read_text()


def test_simlr_clusters_its_own_embedding(monkeypatch, tmp_path: Path) -> None:
    class Simlr:
        def __init__(self, rank: int, neighbours: int):
            assert (rank, neighbours) == (4, 30)

        def fit(self, z: np.ndarray):
            Path("test.ann").touch()  # it writes where it is run
            signs = (z[:, :2] > 0).astype(float)
            return None, signs, None, None

    monkeypatch.setitem(sys.modules, "simlr_py3", SimpleNamespace(SIMLR_LARGE=Simlr))
    monkeypatch.chdir(tmp_path)
    codes, number = _baselines.cluster(simulate(200), "simlr", 4, None, {}, 0)
    assert number == {"n": 4}
    assert len(set(codes)) <= 4
    assert not list(tmp_path.iterdir())


def test_kmeans_finds_the_types_and_estimates_their_number(monkeypatch) -> None:
    def estimate(z: np.ndarray, rng: np.random.Generator) -> dict[str, int]:
        assert z.shape == (400, 50)
        assert rng.integers(2**31) == np.random.default_rng(0).integers(2**31)
        return {"n": 4, "low": 3, "high": 5}

    monkeypatch.setattr(_baselines, "count_clusters", estimate)
    cells = simulate(400)
    codes, number = _baselines.cluster(cells, "kmeans", None, None, {}, 0)
    assert number == {"n": 4, "low": 3, "high": 5}
    assert pd.crosstab(codes, cells.obs["cell_type"]).max(axis=1).sum() > 0.9 * 400


def test_genes_are_brought_to_unit_variance_and_outliers_cut_off() -> None:
    rng = np.random.default_rng(0)
    x = rng.poisson(0.5, (500, 4)).astype(float)
    x[:, 1], x[0, 2] = 3, 1000
    scaled = _baselines._standardised(sp.csr_matrix(x)).toarray()
    np.testing.assert_allclose(scaled[:, 0], x[:, 0] / x[:, 0].std())
    np.testing.assert_allclose(scaled[:, 1], 3)
    assert scaled[0, 2] == pytest.approx(x[:, 2].mean() / x[:, 2].std() + 10)


# -- Reject, then cluster the rejected -----------------------------------------------------------


@pytest.fixture(scope="module")
def parts() -> Split:
    """Half of the query's cells are of two types that the reference lacks."""
    adata = ad.concat([simulate(400, seed=0), simulate(400, seed=1)])
    adata.obs["split"] = np.repeat(["reference", "query"], 400)
    masked = Task(name="t", data="t", kind="masked", file="t.h5ad", masked=["DC", "Mono"])
    return split(adata, masked, 0)


def reclustered(parts: Split, how: str, novel: np.ndarray, n_novel: int | None = 2) -> np.ndarray:
    """Return the names of a query that was all named "B"."""
    names = np.array(["B"] * parts.query.n_obs, dtype=object)
    return _baselines.recluster_rejected(
        names, novel, parts.query, parts.reference, how, n_novel, None, 0
    )


@pytest.mark.parametrize("how", ["leiden", "kmeans"])
def test_the_rejected_are_grouped_and_named_by_size(
    parts: Split, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # scanpy's usual weights of neighbours are compiled first, which takes twenty seconds
    monkeypatch.setattr(sc.pp, "neighbors", partial(sc.pp.neighbors, method="gauss"))
    truth = parts.truth.to_numpy().astype(str)
    novel = np.isin(truth, ["DC", "Mono"])
    result = reclustered(parts, how, novel)
    assert set(result[~novel]) == {"B"}
    names, sizes = np.unique(result[novel], return_counts=True)
    assert list(names) == [f"novel_{i + 1}" for i in range(len(names))]
    assert (np.diff(sizes) <= 0).all()
    if how == "kmeans":
        assert len(names) == 2
    # the groups are the types, whichever is called which, or parts of them
    table = pd.crosstab(result[novel], truth[novel])
    assert table.max(axis=1).sum() > 0.9 * novel.sum()


def test_few_rejected_cells_are_one_group(parts: Split) -> None:
    result = reclustered(parts, "leiden", np.arange(parts.query.n_obs) < 49)
    assert set(result[:49]) == {"novel_1"}
    assert set(result[49:]) == {"B"}
    none = reclustered(parts, "leiden", np.zeros(parts.query.n_obs, dtype=bool))
    assert set(none) == {"B"}


def test_the_number_of_groups_is_estimated_if_not_told(parts: Split, monkeypatch) -> None:
    def estimate(x_ref, y, x, n_novel, rng, progress=False):
        assert n_novel is None
        assert x_ref.shape == (200, 300)
        assert x.shape == (400, 300)
        np.testing.assert_allclose(np.expm1(x.toarray()).sum(axis=1), 1e4, rtol=1e-3)
        labels = parts.reference.obs["cell_type"]
        np.testing.assert_array_equal(y, labels.cat.codes)
        return found.pop()

    monkeypatch.setattr(novelty, "find", estimate)
    novel = parts.truth.isin(["DC", "Mono"]).to_numpy()
    # (none was found, or nothing could be sought: they are of one novel type at least)
    found = [SimpleNamespace(n=0), SimpleNamespace(n=3)]
    for n in (3, 1):
        assert len(set(reclustered(parts, "kmeans", novel, None))) == 1 + n


def test_a_floor_rejects_by_score_unless_it_is_told_that_nothing_is_novel(
    tmp_path: Path, jobs: list[dict]
) -> None:
    adata = ad.concat([simulate(200, seed=0), simulate(200, seed=1)])
    adata.obs["split"] = np.repeat(["reference", "query"], 200)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    suite = tmp_path / "suite.toml"
    suite.write_text(f"""
        [[task]]
        name = "{{kind}}"
        kind = ["pair", "masked"]
        data = "mine"
        file = '{tmp_path / "cells.h5ad"}'
        masked = ["DC"]
        [method.floor]
        method = "logistic"
        recluster_rejected = "kmeans"
        reject_below = 0.8
    """)
    rows = run(suite, protocols=["paper"], seeds=1, out=tmp_path / "out")
    assert rows["error"].isna().all()
    closed, opened = rows.iloc[0], rows.iloc[1]
    assert closed["false_novel"] == 0
    assert opened["novel_accuracy"] > 0.5
    assert opened["n_novel_types"] == 1
