"""Episodes: labelled cells that play a reference and a query, from which some types are hidden."""

import numpy as np
import pytest

from sctool.novelty._episodes import MAX_HIDDEN, Episode, hide_types

RNG = np.random.default_rng
#: Five types, the first ten times as common as the last.
LABELS = np.repeat(np.arange(5), [500, 400, 300, 200, 50])
THINNING = 1.5


def episodes(labels=LABELS, n=40, n_cells=1000, thinning: float | None = None) -> list[Episode]:
    return [hide_types(labels, RNG(seed), n_cells, thinning) for seed in range(n)]


@pytest.mark.parametrize("thinning", [None, THINNING], ids=["all-cells", "thinned"])
def test_no_cell_is_on_both_sides_or_twice_on_one(thinning):
    for episode in episodes(thinning=thinning):
        cells = np.concatenate([episode.reference, episode.query])
        assert len(np.unique(cells)) == len(cells) <= 1000
        assert cells.min() >= 0
        assert cells.max() < len(LABELS)


@pytest.mark.parametrize("thinning", [None, THINNING], ids=["all-cells", "thinned"])
def test_hidden_types_are_in_the_query_alone(thinning):
    n_hidden = set()
    for episode in episodes(thinning=thinning):
        assert set(LABELS[episode.query]) == set(range(5))
        hidden = set(range(5)) - set(LABELS[episode.reference])
        n_hidden.add(len(hidden))
        # known are the types of the reference, in order
        np.testing.assert_array_equal(episode.known, sorted(set(range(5)) - hidden))
    assert n_hidden == {0, 1, 2, 3}  # of five at most four fifths, and two are left


@pytest.mark.parametrize(
    ("n_types", "most"), [(2, 0), (3, 1), (4, 2), (10, 8), (20, 16)], ids=lambda n: str(n)
)
def test_at_most_four_fifths_of_the_types_are_hidden_and_two_never(n_types, most):
    labels = np.arange(100 * n_types) % n_types
    left = {len(e.known) for e in episodes(labels, n=100, n_cells=len(labels))}
    assert max(left) == n_types
    assert min(left) == n_types - most
    assert most <= MAX_HIDDEN * n_types


def test_which_types_are_hidden_is_drawn():
    hidden = [tuple(np.setdiff1d(range(5), e.known)) for e in episodes()]
    assert {code for types in hidden for code in types} == set(range(5))
    assert len(set(hidden)) > 10


def test_without_thinning_half_of_the_cells_are_on_each_side_but_for_those_hidden():
    for episode in episodes(n_cells=len(LABELS)):
        n_ref, n_query = (
            np.bincount(LABELS[side], minlength=5) for side in (episode.reference, episode.query)
        )
        np.testing.assert_array_equal(
            (n_ref + n_query)[episode.known], np.bincount(LABELS)[episode.known]
        )
        n = np.bincount(LABELS)
        # four standard deviations of a coin's tosses
        assert (np.abs(n_query - n / 2) < 4 * np.sqrt(n) / 2).all()


def spread(labels: np.ndarray) -> float:
    """Of types that are equally common in truth, the largest over the smallest."""
    n = np.bincount(labels)
    return n[n > 0].max() / n[n > 0].min()


def test_thinning_gives_each_side_proportions_of_its_own():
    labels = np.arange(5000) % 5
    plain, thinned = (
        [
            spread(labels[side])
            for e in episodes(labels, n_cells=5000, thinning=thinning)
            for side in (e.reference, e.query)
        ]
        for thinning in (None, THINNING)
    )
    assert max(plain) < 1.3  # by chance alone
    assert np.median(thinned) > 1.5
    assert np.exp(0.5 * THINNING) < max(thinned) < np.exp(THINNING) * 1.3
    # the two sides of one episode differ as much as any
    ratios = []
    for e in episodes(labels, n_cells=5000, thinning=THINNING):
        n_ref, n_query = (np.bincount(labels[side], minlength=5) for side in (e.reference, e.query))
        ratios.append(n_ref[e.known] / n_query[e.known])
    assert np.std(np.log(np.concatenate(ratios))) > 0.3


@pytest.mark.parametrize("thinning", [None, THINNING], ids=["all-cells", "thinned"])
def test_the_same_draws_give_the_same_episode_and_others_another(thinning):
    one, same = (hide_types(LABELS, RNG(3), 600, thinning) for _ in range(2))
    other = hide_types(LABELS, RNG(4), 600, thinning)
    for part in ("reference", "query", "known"):
        np.testing.assert_array_equal(getattr(one, part), getattr(same, part))
    assert set(one.query) != set(other.query)


def test_cells_that_take_part_are_drawn_from_all():
    taken = set()
    for episode in episodes(n_cells=100):
        assert len(episode.reference) + len(episode.query) <= 100
        taken |= {*episode.reference, *episode.query}
    assert len(taken) > 0.8 * len(LABELS)
