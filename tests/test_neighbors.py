"""Neighbour graphs: their weights are scanpy's, computed without its loops and compilation."""

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData
from scipy.optimize import brentq

from sctool import _neighbors


def cells(n: int) -> np.ndarray:
    z = np.random.default_rng(n).normal(size=(n, 5)).astype(np.float32)
    z[: n // 3] += 3
    return z


@pytest.mark.slow
@pytest.mark.parametrize(("n", "n_neighbors"), [(12, 15), (40, 15), (300, 10), (300, 30)])
def test_the_weights_are_those_of_umap_learn(n, n_neighbors):
    z = cells(n)
    theirs = AnnData(obs=pd.DataFrame(index=np.arange(n).astype(str)), obsm={"X": z})
    n_neighbors = min(n_neighbors, n - 1)
    sc.pp.neighbors(theirs, use_rep="X", n_neighbors=n_neighbors, transformer="sklearn")
    ours = _neighbors.neighbor_graph(z, n_neighbors, 0, weights="umap")
    difference = abs(ours.obsp["connectivities"] - theirs.obsp["connectivities"])
    assert difference.max() < 1e-5


def test_the_weights_are_those_of_a_loop_over_cells():
    n, k = 30, 6
    graph = _neighbors.neighbor_graph(cells(n), k + 1, 0, weights="umap")
    distances = graph.obsp["distances"].toarray()
    directed = np.zeros((n, n))
    for i in range(n):
        near = np.flatnonzero(distances[i])
        assert len(near) == k
        beyond = distances[i, near] - distances[i, near].min()

        def excess(width, beyond=beyond):
            return np.exp(-beyond / width).sum() - np.log2(k + 1)

        directed[i, near] = np.exp(-beyond / brentq(excess, 1e-6, 1e6))
    expected = directed + directed.T - directed * directed.T
    np.testing.assert_allclose(graph.obsp["connectivities"].toarray(), expected, atol=1e-5)


@pytest.mark.parametrize(("n", "n_neighbors"), [(12, 15), (40, 15), (300, 31)])
def test_gaussian_weights_are_those_of_scanpy(n, n_neighbors):
    z = cells(n)
    theirs = AnnData(obs=pd.DataFrame(index=np.arange(n).astype(str)), obsm={"X": z})
    n_neighbors = min(n_neighbors, n - 1)
    sc.pp.neighbors(
        theirs, use_rep="X", n_neighbors=n_neighbors, method="gauss", transformer="sklearn"
    )
    ours = _neighbors.neighbor_graph(z, n_neighbors, 0, weights="gauss").obsp["connectivities"]
    expected = theirs.obsp["connectivities"]
    assert ours.nnz == expected.nnz
    assert abs(ours - expected).max() == 0


@pytest.mark.parametrize("weights", ["gauss", "umap"])
def test_cells_that_are_copies_are_joined_fully(weights):
    z = cells(60)
    z[:20] = z[0]
    weights = _neighbors.neighbor_graph(z, 10, 0, weights=weights).obsp["connectivities"]
    assert np.isfinite(weights.data).all()
    assert weights.data.max() <= 1
    assert (weights[:20][:, :20].sum(axis=1) >= 9 - 1e-6).all()
    assert weights[:20][:, 20:].nnz == 0


@pytest.mark.parametrize("weights", ["gauss", "umap"])
def test_the_graph_is_symmetric(weights):
    graph = _neighbors.neighbor_graph(cells(60), 10, 0, weights=weights).obsp["connectivities"]
    assert abs(graph - graph.T).max() < 1e-6


def test_what_an_approximate_search_compiles_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(_neighbors, "MANY_CELLS", 20)
    monkeypatch.setattr(_neighbors, "umap_weights", lambda distances: distances)
    asked = []

    def compute(self, **kwargs) -> None:
        asked.append(kwargs["transformer"])
        self._distances = self._connectivities = sp.eye(self._adata.n_obs, format="csr")

    monkeypatch.setattr(sc.Neighbors, "compute_neighbors", compute)
    _neighbors._say_what_is_compiled.cache_clear()
    for n in (20, 21, 22):
        _neighbors.neighbor_graph(cells(n), 5, 0, weights="umap")
    _neighbors._say_what_is_compiled.cache_clear()
    assert asked == ["sklearn", "pynndescent", "pynndescent"]
    assert [r.message for r in caplog.records if "pynndescent; the first search" in r.message] == [
        "Above 20 cells neighbours are searched approximately, by pynndescent; the first search of "
        "a process compiles it, which takes about half a minute."
    ]
