"""Programmes of genes: a state of known cells is not found as a type."""

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sctool._data._features import normalize
from sctool._neighbors import principal_components
from sctool.novelty._anchors import group_query
from sctool.novelty._n_types import TypeSeparation
from sctool.novelty._programmes import (
    MIN_GENES,
    PROGRAMMES,
    programme_genes,
    programme_scores,
    programme_slopes,
)

STRESS = sorted(PROGRAMMES["stress"])
RNG = np.random.default_rng


def test_genes_are_found_by_any_identifier_and_in_any_case():
    names = pd.Index(["x", *(gene.capitalize() for gene in STRESS[:MIN_GENES]), "y"])
    (by_name,) = programme_genes(pd.DataFrame(index=names))
    np.testing.assert_array_equal(by_name, np.arange(1, 1 + MIN_GENES))
    ids = pd.Index([f"ENSG{i:011d}" for i in range(len(names))])
    (by_symbol,) = programme_genes(pd.DataFrame({"symbol": names.to_numpy()}, index=ids))
    np.testing.assert_array_equal(by_symbol, by_name)
    assert programme_genes(pd.DataFrame(index=names[:MIN_GENES])) == []
    assert programme_genes(pd.DataFrame(index=ids)) == []


def test_scores_and_slopes_against_a_regression_with_a_mean_for_each_type():
    rng = RNG(0)
    x = sp.random(60, 12, 0.7, "csr", random_state=0, data_rvs=lambda n: rng.gamma(2, 1, n))
    codes = rng.permutation(np.repeat([0, 1, 2], 20))
    scores = programme_scores(x, [np.arange(5), np.arange(6, 12)])
    dense = x.toarray()
    expected = np.stack([dense[:, :5].mean(axis=1), dense[:, 6:].mean(axis=1)], axis=1)
    np.testing.assert_allclose(scores, expected - np.median(expected, axis=0))
    design = np.hstack([scores, np.eye(3)[codes]])
    slow = np.linalg.lstsq(design, dense, rcond=None)[0][:2]
    np.testing.assert_allclose(programme_slopes(x, scores, codes), slow, atol=1e-4)


def test_without_programmes_or_where_no_cell_differs_nothing_changes():
    x, codes = sp.csr_matrix(np.ones((10, 8))), np.zeros(10, dtype=int)
    none = programme_scores(x, [])
    assert none.shape == (10, 0)
    assert programme_slopes(x, none, codes).shape == (0, 8)
    same = programme_scores(x, [np.arange(5)])
    np.testing.assert_array_equal(same @ programme_slopes(x, same, codes), np.zeros((10, 8)))


def rates(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Four types of 100 cells, and rates of 200 genes, of which ten mark each type."""
    types = np.repeat([0, 1, 2, 3], 100)
    rate = np.tile(rng.lognormal(0, 0.7, 200), (400, 1))
    for t in range(4):
        rate[types == t, 40 + 10 * t : 50 + 10 * t] *= 8
    return types, rate


def test_a_novel_type_among_the_cells_of_a_known_one_is_not_taken_for_its_state():
    # half of the cells that are taken for the first type are of another, and more stressed
    rng = RNG(2)
    types, rate = rates(rng)
    rate[types == 3, :8] *= 2
    x = normalize(sp.csr_matrix(rng.poisson(rate).astype(np.float32)))
    proba, z = np.eye(3)[types % 3], principal_components(x, 20, 0)

    def gap(programmes: list[np.ndarray]) -> float:
        groups = group_query(x, z, proba, [TypeSeparation()], 0, programmes).main
        means = [groups.means[np.unique(groups.codes[types == t])].mean(axis=0) for t in (0, 3)]
        return float(np.abs(means[0] - means[1])[40:80].mean())

    assert gap([np.arange(8)]) > 0.9 * gap([])


def test_stressed_cells_of_a_known_type_come_nearer_to_the_others():
    rng = RNG(1)
    types, rate = rates(rng)
    stressed = np.arange(400) % 100 < 30
    stress = np.arange(20)  # of which the first eight are known to be of the programme
    level = np.where(stressed, 2.0, 0.0) + rng.normal(0, 0.3, 400)
    rate[:, stress] *= np.exp(level)[:, None]
    x = normalize(sp.csr_matrix(rng.poisson(rate).astype(np.float32)))
    proba, z = np.eye(4)[types], principal_components(x, 20, 0)

    def gap(programmes: list[np.ndarray]) -> float:
        groups = group_query(x, z, proba, [TypeSeparation()], 0, programmes).main
        share = np.bincount(groups.codes, stressed) / np.bincount(groups.codes)
        # they form groups of their own
        assert share.max() > 0.9
        assert share.min() < 0.1
        apart = groups.means[share > 0.9].mean(axis=0) - groups.means[share < 0.1].mean(axis=0)
        return float(np.abs(apart[stress]).mean())

    assert gap([np.arange(8)]) < 0.5 * gap([])
