"""How many types some cells are of: groups, what sets them apart, and what is learnt of it."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics import adjusted_rand_score
from synthetic import simulate

from sctool._data._features import normalize
from sctool._neighbors import group_means
from sctool.novelty import _n_types
from sctool.novelty._n_types import TypeSeparation, learn_separation, split_into_types

RNG = np.random.default_rng


def cells(n: int, seed: int = 0) -> tuple[sp.csr_matrix, np.ndarray]:
    """Log1p CP10k of synthetic cells of four types, and the codes of these."""
    adata = simulate(n, seed=seed)
    names = adata.obs["cell_type"].astype(str).to_numpy()
    return normalize(adata.X), np.unique(names, return_inverse=True)[1]


@pytest.fixture(scope="module")
def learnt() -> TypeSeparation:
    """Learn from 800 cells what sets their four types apart."""
    return learn_separation(*cells(800), RNG(0))


# -- groups of cells -----------------------------------------------------------------------------


def test_group_means_are_means():
    x = RNG(0).normal(size=(50, 7))
    codes = RNG(1).integers(0, 4, 50)
    expected = [x[codes == g].mean(axis=0) for g in range(4)]
    np.testing.assert_allclose(group_means(x, codes), expected)
    np.testing.assert_allclose(group_means(sp.csr_matrix(x), codes), expected)


def test_the_smallest_group_joins_the_nearest():
    z = np.array([[0.0], [0.2], [0.1], [5.0], [5.1], [4.0]])
    codes = np.array([2, 2, 2, 0, 0, 1])
    np.testing.assert_array_equal(_n_types.join_smallest(z, codes), [0, 0, 0, 1, 1, 1])


def test_small_groups_are_finer_than_types_and_none_is_of_a_few_cells():
    x, labels = cells(800)
    groups = _n_types.small_groups(x, 0, 8)
    assert groups.max() + 1 >= 8
    assert np.bincount(groups).min() >= _n_types.MIN_GROUP
    of_type = group_means(np.eye(4)[labels], groups)
    assert of_type.max(axis=1).min() > 0.95


def test_groups_are_as_many_as_asked_for_or_as_there_are_different_cells():
    x, _ = cells(120)
    assert _n_types.small_groups(x, 0).max() + 1 <= 120 // _n_types.MIN_GROUP
    assert _n_types.small_groups(x, 0, 17).max() + 1 == 17
    copies = sp.vstack([x[:5]] * 20, format="csr")
    assert _n_types.small_groups(copies, 0, 9).max() + 1 == 5


# -- what sets them apart ------------------------------------------------------------------------


def test_differences_are_those_of_the_means():
    x = sp.csr_matrix(np.abs(RNG(0).normal(size=(90, 40))) * 3)
    codes = np.arange(90) % 3
    means = [x[codes == g].mean(axis=0).A1 for g in range(3)]
    slow = []
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        gaps = sorted((abs(p - q) for p, q in zip(means[a], means[b], strict=True)), reverse=True)
        slow.append(
            [
                1 - np.corrcoef(means[a], means[b])[0, 1],
                np.log(np.mean(gaps[:5]) + 0.01),
                np.log(np.mean(gaps[:20]) + 0.01),
                np.log(1 + sum(gap > 1 for gap in gaps)),
            ]
        )
    np.testing.assert_allclose(_n_types.differences(group_means(x, codes)), slow)


def test_few_genes_can_differ():
    x = sp.csr_matrix(np.abs(RNG(0).normal(size=(60, 3))))
    assert np.isfinite(_n_types.differences(group_means(x, np.arange(60) % 2))).all()


def test_two_types_are_further_apart_than_a_half_and_halves_of_one_are_nearer(learnt):
    x, labels = cells(400, seed=1)
    halves = 2 * labels + np.arange(400) // 4 % 2
    distance = learnt.distance(group_means(x, halves))
    of_one = halves[:, None] // 2 == halves // 2
    same = np.arange(8)[:, None] // 2 == np.arange(8) // 2
    assert of_one.any()
    assert distance[same].max() < 0.5 < distance[~same].min()
    np.testing.assert_array_equal(distance, distance.T)
    assert (np.diag(distance) == 0).all()


# -- what is learnt ------------------------------------------------------------------------------


def test_the_types_of_other_cells_are_found_and_counted(learnt):
    x, labels = cells(400, seed=1)
    codes, low, high = split_into_types(x, learnt, None, 0)
    assert adjusted_rand_score(labels, codes) > 0.9
    assert low <= 4 <= high
    assert (np.diff(np.bincount(codes)) <= 0).all()


def test_one_type_is_not_split(learnt):
    x, labels = cells(800, seed=1)
    assert split_into_types(x[labels == 0], learnt, None, 0)[0].max() == 0


def test_types_that_were_never_seen_are_told_apart_by_what_sets_others_apart(monkeypatch):
    monkeypatch.setattr(_n_types, "EPISODES", 10)
    x, labels = cells(800)
    some = labels < 2
    of_two = learn_separation(x[some], labels[some], RNG(0))
    codes = split_into_types(x[~some], of_two, None, 0)[0]
    assert adjusted_rand_score(labels[~some], codes) > 0.95


def test_many_cells_have_the_types_of_a_sample(monkeypatch):
    x, labels = cells(1600)
    learnt, sizes = learn_separation(*cells(400), RNG(0)), []
    small_groups = _n_types.small_groups

    def recorded(x, *args):
        sizes.append(x.shape[0])
        return small_groups(x, *args)

    monkeypatch.setattr(_n_types, "small_groups", recorded)
    monkeypatch.setattr(_n_types, "EPISODE_CELLS", 300)
    codes = split_into_types(x, learnt, None, 0)[0]
    assert sizes == [300]
    assert adjusted_rand_score(labels, codes) > 0.95
    assert (np.diff(np.bincount(codes)) <= 0).all()


def test_the_same_draws_teach_the_same(monkeypatch):
    monkeypatch.setattr(_n_types, "EPISODES", 6)
    x, labels = cells(400)
    one, other = (learn_separation(x, labels, RNG(3)) for _ in range(2))
    assert one.off == other.off
    assert len(one.off) == _n_types.EPISODES
    means = group_means(x, _n_types.small_groups(x, 0))
    np.testing.assert_array_equal(one.distance(means), other.distance(means))


@pytest.mark.parametrize("n", [30, 49])
def test_of_too_few_cells_nothing_is_learnt_and_correlation_separates_them(n):
    x, labels = cells(n)
    nothing = learn_separation(x, labels, RNG(0))
    assert nothing.model is None
    means = group_means(x, np.arange(n) % 3)
    np.testing.assert_allclose(nothing.distance(means), 1 - np.corrcoef(means), atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_as_many_types_as_asked_for_by_size(n, learnt):
    x, labels = cells(400)
    some = np.flatnonzero((labels != 0) | (np.arange(400) % 8 == 0))  # one type is rarer
    codes, low, high = split_into_types(x[some], learnt, n, 0)
    sizes = np.bincount(codes)
    assert len(codes) == len(some)
    assert len(sizes) == n == low == high
    assert (np.diff(sizes) <= 0).all()
    assert sizes[-1] > 0
    if n == 4:
        assert adjusted_rand_score(labels[some], codes) > 0.9


@pytest.mark.parametrize(("n_cells", "n"), [(49, None), (49, 3), (400, 1)])
def test_few_cells_or_one_type_are_not_split(n_cells, n, learnt):
    codes, low, high = split_into_types(cells(400)[0][:n_cells], learnt, n, 0)
    assert (codes == 0).all()
    assert len(codes) == n_cells
    assert (low, high) == ((1, n) if n else _n_types.number_range(1, learnt.off))


@pytest.mark.parametrize(
    ("n", "off", "expected"),
    [
        (3, (1.0, 1.0, 1.0), (2, 4)),
        (4, (0.5, 1.0, 2.0), (1, 9)),  # quantiles 0.55 and 1.9
        (1, (0.1, 0.2), (0, 2)),  # few cells may be known ones
        (2, (1.5, 1.5), (1, 4)),
        (5, (0.5, 0.5), (1, 6)),
        (10, (*[1.0] * 39, 5.0), (9, 11)),  # one in forty is no matter
    ],
)
def test_the_interval_is_of_how_far_off_the_number_was_and_holds_it(n, off, expected):
    assert _n_types.number_range(n, off) == expected


@pytest.mark.parametrize(
    ("asked", "said"),
    [(None, "types: 3, interval estimated by hiding known types: 2 to 5"), (4, "3, requested: 4")],
)
def test_the_audit_says_how_sure_the_number_is(asked, said):
    assert said in _n_types.describe_number(3, 2, 5, asked)
