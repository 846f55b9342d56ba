"""Doublets and cells of low quality are found; novel, rare and small cells are neither."""

import numpy as np
import pytest
import scipy.sparse as sp

from sctool._data._features import normalize
from sctool._quality import REASONS, find_doublets, find_low_quality

N_GENES, N_TYPES = 600, 5
#: The last type is none of the reference's: its cells are predicted to be of the first.
NOVEL = N_TYPES - 1


def cells(n: int, seed: int = 0, n_types: int = N_TYPES) -> tuple[np.ndarray, np.ndarray]:
    """Counts of n cells, about 1,200 each, and their types; each type has 30 markers."""
    rate = np.random.default_rng(1).lognormal(0, 1, (1, N_GENES)).repeat(N_TYPES, axis=0)
    for i in range(N_TYPES):
        rate[i, i * 30 : (i + 1) * 30] *= 6
    rng = np.random.default_rng(seed)
    types = rng.integers(n_types, size=n)
    size = 1200 * rng.lognormal(0, 0.3, (n, 1))
    mean = size * rate[types] / rate[types].sum(axis=1, keepdims=True)
    return rng.poisson(mean * rng.gamma(4, 1 / 4, mean.shape)).astype(np.float32), types


def proba_of(types: np.ndarray) -> np.ndarray:
    known = np.where(types == NOVEL, 0, types)
    return np.where(np.arange(N_TYPES - 1) == known[:, None], 0.97, 0.01)


def planted(n: int = 500, n_doublets: int = 30) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    """Counts, types and pairs; the last cells are doublets, with the name of their first cell."""
    counts, types = cells(n)
    rng = np.random.default_rng(2)
    a, b = rng.choice(np.flatnonzero(types != NOVEL), (2, 10 * n_doublets))
    kept = np.flatnonzero(types[a] != types[b])[:n_doublets]
    a, b = a[kept], b[kept]
    sums = rng.binomial((counts[a] + counts[b]).astype(int), 0.8).astype(np.float32)
    pair = np.sort(np.stack([types[a], types[b]], axis=1), axis=1)
    return sp.csr_matrix(np.vstack([counts, sums])), np.r_[types, types[a]], pair


def test_cells_that_are_all_alike_are_not_judged():
    x = sp.csr_matrix(np.tile(np.arange(1, 41, dtype=np.float32), (60, 1)))
    result = find_doublets(x, proba_of(np.arange(60) % 2), True)
    assert not result.judged.any()


@pytest.mark.parametrize(
    ("is_counts", "recall"), [(True, 0.5), (False, 0.3)], ids=["counts", "log"]
)
def test_planted_doublets_are_found_and_novel_cells_are_not_among_them(is_counts, recall):
    x, types, pair = planted()
    if not is_counts:
        x = normalize(x).expm1()
    result = find_doublets(x, proba_of(types), is_counts)
    found, doublet = result.found, np.arange(len(types)) >= len(types) - len(pair)
    assert result.judged.all()
    assert found[doublet].mean() > recall
    assert found[~doublet].mean() < 0.02
    assert found[~doublet & (types == NOVEL)].mean() < 0.05
    right = (np.sort(result.pair[doublet], axis=1) == pair).all(axis=1)
    assert right[found[doublet]].mean() > 0.9
    assert result.audit == [
        f"doublets: {found.sum()} of {len(types)} cells are mixtures of two types"
    ]


def test_the_result_is_that_of_the_seed_and_leaves_the_input_as_it_is():
    x, types, _ = planted(200, 10)
    before = x.copy()
    first, second = (find_doublets(x, proba_of(types), True, seed=3).proba for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert abs(x - before).max() == 0


def test_batches_are_judged_apart_and_small_ones_not_at_all():
    x, types, _ = planted(300, 10)
    batch = np.where(np.arange(len(types)) < 20, "small", "large")
    result = find_doublets(x, proba_of(types), True, batch)
    np.testing.assert_array_equal(result.judged, batch == "large")
    assert (result.pair[:20] == -1).all()
    assert result.proba[:20].max() == 0
    assert "20 cells not judged" in result.audit[1]


def test_a_gene_that_only_one_batch_expresses_is_no_obstacle():
    counts, types = cells(400)
    batch = np.arange(400) % 2
    counts[batch == 1, :5] = 0
    result = find_doublets(sp.csr_matrix(counts), proba_of(types), True, batch)
    assert result.judged.all()
    assert result.found.mean() < 0.1


@pytest.mark.parametrize(("n", "n_types"), [(20, 4), (200, 1), (1, 1)])
def test_few_cells_or_one_type_are_not_judged(n, n_types):
    counts, types = cells(n, n_types=n_types)
    result = find_doublets(sp.csr_matrix(counts), proba_of(types), True)
    assert not result.judged.any()
    assert not result.found.any()
    assert "not judged" in result.audit[0]


def test_cells_of_a_type_too_rare_to_have_a_profile_are_not_judged():
    counts, types = cells(300)
    types[types == 3] = 2
    types[:5] = 3
    result = find_doublets(sp.csr_matrix(counts), proba_of(types), True)
    np.testing.assert_array_equal(np.flatnonzero(~result.judged), np.arange(5))


def thinned(small_type: float = 0.3) -> tuple[sp.csr_matrix, np.ndarray]:
    """Counts and types: type 0 is small, and the first 20 cells, of type 1, are thinned to 15 %."""
    counts, types = cells(400)
    types[:20] = 1
    share = np.where(types == 0, small_type, 1.0)
    share[:20] = 0.15
    rng = np.random.default_rng(3)
    return sp.csr_matrix(rng.binomial(counts.astype(int), share[:, None]).astype(np.float32)), types


def test_thinned_cells_are_of_low_quality_but_not_the_cells_of_a_small_type():
    x, types = thinned()
    result = find_low_quality(x, True, types)
    assert result.found[:20].mean() > 0.9
    assert result.found[20:][types[20:] == 0].mean() < 0.03
    assert result.found[20:].mean() < 0.02
    assert REASONS[result.reason[0]] == "few counts"
    # among all cells, whatever their type, those of the small type are shallow as well
    assert result.depth[20:][types[20:] == 0].mean() > -1


def test_a_few_cells_of_a_small_type_are_drawn_towards_all_but_not_flagged():
    x, types = thinned()
    keep = np.flatnonzero((types != 0) | (np.cumsum(types == 0) <= 12))
    result = find_low_quality(x[keep], True, types[keep])
    assert result.found[types[keep] == 0].mean() <= 1 / 12


def test_without_counts_genes_alone_are_judged_and_this_is_said():
    x, types = thinned()
    result = find_low_quality(normalize(x), False, types)
    assert result.found[:20].mean() > 0.8
    assert set(result.reason) == {0, REASONS.index("few genes")}
    assert any("number of genes alone" in note for note in result.audit)


def test_the_depth_of_a_batch_is_that_of_its_own_cells():
    counts, types = cells(200)
    shallow = np.arange(200) >= 100
    counts[shallow] = np.random.default_rng(4).binomial(counts[shallow].astype(int), 0.2)
    x = sp.csr_matrix(counts)
    batch = shallow.astype(int)
    assert find_low_quality(x, True, types, batch).found.mean() < 0.03
    few = find_low_quality(x[:105], True, types[:105], batch[:105])
    np.testing.assert_array_equal(few.judged, batch[:105] == 0)
    assert not few.found[100:].any()
