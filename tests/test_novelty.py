"""Which cells of a query are novel and how many types: who they lie among, and what is learnt."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from synthetic import TYPES, simulate

from sctool._data._features import normalize
from sctool._neighbors import principal_components
from sctool.novelty import _cells, _clusters, _n_types, find, known_types
from sctool.novelty._cells import NeighborhoodComposition, learn, neighborhood_composition

RNG = np.random.default_rng


def cells(
    n: int, seed: int = 0, shift: float = 0.0, without: str | None = None
) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    """Log1p CP10k of synthetic cells, codes of their types, and their names."""
    adata = simulate(n, seed=seed, shift=shift)
    adata = adata[adata.obs["cell_type"] != without].copy()
    names = adata.obs["cell_type"].astype(str).to_numpy()
    return normalize(adata.X), np.unique(names, return_inverse=True)[1], names


@pytest.fixture
def few_splits(monkeypatch) -> None:
    """Learn little of how many types there are, which has tests of its own."""
    monkeypatch.setattr(_n_types, "EPISODES", 5)


# -- who cells lie among -------------------------------------------------------------------------


def slow_composition(x_ref, labels, x, codes) -> tuple[np.ndarray, float, bool]:
    """Evidence, overlap and whether the sides mix, by loops over cells; groups are given."""
    z = principal_components(sp.vstack([x_ref, x], format="csr"), _cells.N_COMPONENTS, 0)
    n, n_ref, n_query = len(z), len(labels), x.shape[0]
    z = z.astype(float)
    of_query = [i >= n_ref for i in range(n)]
    near = []
    for i in range(n):
        order = sorted((((z[i] - z[j]) ** 2).sum(), j) for j in range(n) if j != i)
        near.append([j for _, j in order[: _cells.N_NEIGHBORS]])

    def query_share(some) -> float:
        query = sum(of_query[j] for j in some) / n_query
        return query / (query + sum(not of_query[j] for j in some) / n_ref)

    share = [query_share(near[i]) for i in range(n)]
    once = [np.mean([share[j] for j in near[i]]) for i in range(n)]
    twice = [np.mean([once[j] for j in near[i]]) for i in range(n)]
    group = [[j for j in range(n) if codes[j] == codes[i]] for i in range(n)]
    values = np.array([share, once, twice, [query_share(g) for g in group]]).T[n_ref:]
    by_type = [np.median([share[i] for i in np.flatnonzero(labels == t)]) for t in set(labels)]
    # of a reference cell's neighbours, and of their neighbours
    meets = [np.mean([of_query[j] for j in near[i]]) for i in range(n)]
    observed = sum(meets[:n_ref])
    expected = sum(np.mean([meets[j] for j in near[i]]) for i in range(n_ref))
    overlap = float(np.median(by_type))
    mixed = bool(observed > 0.93 * expected and overlap > 0.05)
    return np.log((values + 0.02) / (1 - values + 0.02)), overlap, mixed


@pytest.mark.parametrize(("shift", "mixed"), [(0.0, True), (0.5, False), (1.5, False)])
def test_the_evidence_is_that_of_a_loop_over_neighbours(shift, mixed, monkeypatch):
    (x_ref, labels, _), (x, _, _) = cells(120), cells(80, 1, shift, "DC")
    codes = RNG(0).integers(3, size=180)

    def grouped(graph, resolution, seed):
        assert graph.n_obs == 180
        assert resolution == _cells.RESOLUTION
        return codes

    monkeypatch.setattr(_cells, "leiden", grouped)
    around = neighborhood_composition(x_ref, labels, x, 0)
    evidence, overlap, expected = slow_composition(x_ref, labels, x, codes)
    assert around.evidence.shape == (60, 4)
    np.testing.assert_allclose(around.evidence, evidence, atol=1e-6)
    assert around.overlap == pytest.approx(overlap)
    # (the second case overlaps enough, but its cells less than their neighbours do)
    assert around.mixed is expected is mixed


def test_halves_of_one_experiment_mix():
    x, labels, _ = cells(600)
    half = RNG(0).permutation(600) < 300
    around = neighborhood_composition(x[half], labels[half], x[~half], 0)
    assert around.mixed
    assert around.overlap == pytest.approx(0.5, abs=0.1)


def test_a_strong_shift_keeps_the_sides_apart():
    (x_ref, labels, _), (x, _, _) = cells(400), cells(400, 1, 0.7)
    around = neighborhood_composition(x_ref, labels, x, 0)
    assert not around.mixed
    assert around.overlap < 0.05
    # all cells are among their own, so that this says nothing
    assert (np.median(around.evidence, axis=0) > 2).all()


def test_a_type_that_the_reference_lacks_lies_among_the_query():
    (x_ref, labels, _), (x, _, names) = cells(400, without="DC"), cells(400, 1)
    around = neighborhood_composition(x_ref, labels, x, 0)
    assert around.mixed
    novel = names == "DC"
    medians = np.median(around.evidence[novel], axis=0)
    assert (medians > np.quantile(around.evidence[~novel], 0.9, axis=0)).all()


def test_sides_of_unequal_size_are_set_against_each_other_fairly():
    (x_ref, labels, _), (x, _, _) = cells(600), cells(120, 1)
    assert abs(np.median(neighborhood_composition(x_ref, labels, x, 0).evidence[:, 2])) < 0.5


def test_the_order_of_the_cells_is_irrelevant_to_their_neighbours():
    # (Leiden's groups, the last piece of evidence, do depend on it)
    (x_ref, labels, _), (x, _, _) = cells(200), cells(160, 1)
    plain = neighborhood_composition(x_ref, labels, x, 0)
    order, ref_order = RNG(0).permutation(160), RNG(1).permutation(200)
    other = neighborhood_composition(x_ref[ref_order], labels[ref_order], x[order], 0)
    np.testing.assert_allclose(other.evidence[:, :3], plain.evidence[order, :3], atol=1e-3)
    assert other.overlap == pytest.approx(plain.overlap)


def test_copies_of_a_novel_cell_lie_among_the_query():
    (x_ref, labels, _), (x, _, names) = cells(300, without="DC"), cells(300, 1)
    novel = np.flatnonzero(names == "DC")
    copies = np.arange(300)
    copies[novel] = novel[0]
    evidence = neighborhood_composition(x_ref, labels, x[copies], 0).evidence
    assert (evidence[novel, :3] > 2).all()


# -- what is learnt by hiding types --------------------------------------------------------------


def test_known_cells_of_a_large_query_next_to_a_small_reference_look_known(monkeypatch):
    (x_ref, labels, _), (x, _, _) = cells(60), cells(2400, seed=1)
    of_parts = neighborhood_composition(x_ref, labels, x, 0)
    monkeypatch.setattr(_cells, "MAX_RATIO", 100)
    of_whole = neighborhood_composition(x_ref, labels, x, 0)
    assert of_parts.evidence.shape == of_whole.evidence.shape
    # the share of cells that seem to have hardly any neighbour in the reference
    lonely = [(e.evidence[:, 0] > 2).mean() for e in (of_parts, of_whole)]
    assert lonely[0] < 0.02
    assert lonely[1] > 0.2
    assert of_parts.mixed


def test_parts_of_a_query_are_put_back_in_order():
    (x_ref, labels, _), (x, _, names) = cells(100, without=TYPES[0]), cells(1200, seed=1)
    evidence = neighborhood_composition(x_ref, labels, x, 0).evidence[:, 1]
    assert roc_auc_score(names == TYPES[0], evidence) > 0.9


def test_what_is_learnt_tells_the_cells_of_a_type_that_was_never_hidden():
    (x_ref, labels, _), (x, _, names) = cells(800, without="DC"), cells(400, 1)
    model = learn(x_ref, labels, RNG(0))
    proba = model.predict_proba(neighborhood_composition(x_ref, labels, x, 0).evidence)[:, 1]
    assert (proba[names == "DC"] > 0.5).mean() > 0.9
    assert (proba[names != "DC"] > 0.5).mean() < 0.05


def test_nothing_is_learnt_from_two_types(monkeypatch):
    monkeypatch.setattr(_cells, "EPISODES", 5)
    x, labels, _ = cells(400)
    assert learn(x, labels % 2, RNG(0)) is None
    assert learn(x, np.minimum(labels, 2), RNG(0)) is not None


def test_nothing_is_learnt_from_few_cells(monkeypatch):
    monkeypatch.delattr(_cells, "neighborhood_composition")  # no episode has enough of them
    x, labels, _ = cells(100)
    assert learn(x, labels, RNG(0)) is None


def test_a_reference_of_300_cells_is_enough_to_learn_from(monkeypatch):
    x, labels, _ = cells(400, without="DC")
    assert learn(x, labels, RNG(0)) is not None

    # whatever is drawn of it: then the evidence does not matter
    def any_evidence(x_ref, labels_ref, x_query, seed):
        return NeighborhoodComposition(RNG(seed).normal(size=(x_query.shape[0], 4)), 0.5, True)

    monkeypatch.setattr(_cells, "neighborhood_composition", any_evidence)
    assert all(learn(x, labels, RNG(seed)) is not None for seed in range(20))


def test_types_are_hidden_from_one_half_and_both_are_thinned(monkeypatch):
    labels, episodes = np.arange(1600) % 4, []
    x = sp.csr_matrix(np.arange(1.0, 1601.0)[:, None])  # each cell by its number

    def watched(x_ref, labels_ref, x_query, seed):
        ref, query = ((side.toarray()[:, 0] - 1).astype(int) for side in (x_ref, x_query))
        np.testing.assert_array_equal(labels[ref], labels_ref)
        episodes.append((ref, query, seed))
        novel = ~np.isin(labels[query], labels_ref)
        evidence = novel[:, None] + RNG(seed).normal(size=(len(query), 4))
        return NeighborhoodComposition(evidence, 0.5, True)

    monkeypatch.setattr(_cells, "neighborhood_composition", watched)
    monkeypatch.setattr(_cells, "EPISODE_CELLS", 600)
    model = learn(x, labels, RNG(0))
    # it was told which cells are of a hidden type
    assert (
        model.predict_proba([[2.0] * 4])[0, 1] > 0.9 > 0.1 > model.predict_proba([[-1.0] * 4])[0, 1]
    )
    assert len(episodes) == _cells.EPISODES
    assert len({seed for _, _, seed in episodes}) == _cells.EPISODES
    shares = []
    for ref, query, _ in episodes:
        assert len(np.unique(np.concatenate([ref, query]))) == len(ref) + len(query) <= 600
        assert len(set(labels[query])) == 4
        shares += [np.bincount(labels[side], minlength=4) / len(side) for side in (ref, query)]
    # none is hidden at times, and two are always left
    assert {np.count_nonzero(share) for share in shares[::2]} == {2, 3, 4}
    # each side has proportions of its own, by a factor of e^1.5 at most (and by chance)
    spread = [share[share > 0].max() / share[share > 0].min() for share in shares]
    assert np.median(spread) > 1.5
    assert max(spread) < np.exp(1.5) * 1.5
    assert np.corrcoef(shares[::2], shares[1::2])[:10, 10:].diagonal().mean() < 0.8


# -- the whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "how"), [(0.0, "by cell"), (0.6, "by cluster")])
def test_the_cells_of_a_hidden_type_are_named_and_counted(shift, how, monkeypatch, few_splits):
    monkeypatch.setattr(_cells, "JUDGEMENTS", 2)
    (x_ref, labels, _), (x, _, names) = cells(600, without="DC"), cells(400, 1, shift)
    found = find(x_ref, labels, x, None, RNG(0))
    novel = found.names >= 3
    assert novel[names == "DC"].mean() > 0.9
    assert novel[names != "DC"].mean() < 0.05
    known = np.array(["B", "CD4 T/NK", "Mono"])
    assert (known[found.names[~novel]] == names[~novel]).mean() > 0.9
    np.testing.assert_array_equal(found.names[~novel], found.known_as[~novel])
    assert set(found.known_as) == {0, 1, 2}
    assert found.proba[novel].min() > found.proba[~novel].max()
    assert found.interval == {"n": 1, "low": found.low, "high": found.high}
    assert set(found.names[novel]) == {3}
    assert found.low <= 1 <= found.high
    assert how in found.audit[0]
    assert (
        f"types: 1, interval estimated by hiding known types: {found.low} to {found.high}"
        in found.audit[1]
    )


def test_the_same_draws_give_the_same_result(monkeypatch, few_splits):
    monkeypatch.setattr(_cells, "EPISODES", 4)
    (x_ref, labels, _), (x, _, _) = cells(500, without="DC"), cells(250, 1)
    first, second = (find(x_ref, labels, x, None, RNG(7)) for _ in range(2))
    np.testing.assert_array_equal(first.names, second.names)
    np.testing.assert_allclose(first.proba, second.proba, atol=1e-9)
    assert first.n == 1
    assert first.interval == second.interval
    assert first.audit == second.audit


def test_a_query_of_known_types_in_another_experiment_has_none_that_is_novel(monkeypatch):
    monkeypatch.setattr(_cells, "JUDGEMENTS", 1)
    (x_ref, labels, _), (x, _, names) = cells(400), cells(400, 1, 0.6)
    found = find(x_ref, labels, x, None, RNG(0))
    assert found.interval == {"n": 0, "low": 0, "high": 1}
    np.testing.assert_array_equal(found.names, found.known_as)
    assert (np.array(TYPES)[found.names] == names).mean() > 0.9
    assert any("types: 0;" in note for note in found.audit)


def test_a_query_of_known_types_in_one_experiment_has_hardly_a_novel_cell(few_splits):
    (x_ref, labels, _), (x, _, _) = cells(600, 20), cells(600, 21)
    found = find(x_ref, labels, x, None, RNG(20))
    assert (found.names >= 4).mean() < 0.05


def test_a_query_of_known_types_under_a_moderate_shift_has_hardly_a_novel_cell(
    monkeypatch, few_splits
):
    monkeypatch.setattr(_cells, "JUDGEMENTS", 1)
    (x_ref, labels, _), (x, _, _) = cells(400, 10), cells(600, 11, 0.3)
    found = find(x_ref, labels, x, None, RNG(10))
    assert (found.names >= 4).mean() < 0.05


@pytest.mark.parametrize(
    ("case", "said"),
    [
        pytest.param(case, said, id=case.replace(" ", "-"))
        for case, said in {
            "too few cells": "199 cells are too few to cluster (at least 200 are needed)",
            "an empty query": "0 cells are too few to cluster (at least 200 are needed)",
            "cells all alike": "all cells of the query have the same values",
            "two types": "the reference has too few types or cells to learn from by hiding types",
        }.items()
    ],
)
@pytest.mark.parametrize("n_novel", [None, 2], ids=["estimated", "asked-for"])
def test_where_nothing_can_be_sought_cells_have_known_types_and_it_is_said_why(case, said, n_novel):
    (x_ref, labels, _), (x, _, _) = cells(200), cells(200, 1)
    x = {
        "too few cells": x[:199],
        "an empty query": x[:0],
        "cells all alike": x[[5] * 200],
    }.get(case, x)
    if case == "two types":
        labels = labels % 2
    found = find(x_ref, labels, x, n_novel, RNG(0))
    assert not found.sought
    (note,) = found.audit
    assert note.startswith("novel: not searched for: ")
    assert said in note
    assert found.interval == {"n": 0, "low": 0, "high": 0}
    assert found.proba.shape == (x.shape[0],)
    assert (found.proba == 0).all()
    expected = np.zeros(0)
    if x.shape[0]:
        expected = LogisticRegression(max_iter=300, tol=1e-3).fit(x_ref, labels).predict(x)
    np.testing.assert_array_equal(found.names, expected)
    np.testing.assert_array_equal(found.known_as, expected)
    assert found.names.dtype == labels.dtype


def test_known_types_are_those_that_cells_resemble():
    (x_ref, labels, _), (x, _, names) = cells(400), cells(200, 1, 0.3)
    assert (np.array(TYPES)[known_types(x_ref, labels, x)] == names).mean() > 0.95


def stub(monkeypatch, proba: np.ndarray, overlap: float) -> None:
    """Let the groups of cells be judged as given."""
    around = NeighborhoodComposition(None, overlap, False)
    monkeypatch.setattr(_cells, "learn", lambda *args: "a model")
    monkeypatch.setattr(_cells, "neighborhood_composition", lambda *args: around)
    judged = (proba, np.arange(len(proba)) % 4)
    monkeypatch.setattr(_cells, "_judge_groups", lambda *args: judged)
    monkeypatch.setattr(_n_types, "EPISODES", 1)


@pytest.mark.parametrize(
    ("overlap", "threshold"), [(0.0, 0.8), (0.05, 0.65), (0.1, 0.5), (0.4, 0.5)]
)
def test_the_less_the_sides_overlap_the_surer_it_must_be(overlap, threshold, monkeypatch):
    x_ref, labels, _ = cells(400)
    proba = RNG(0).random(400)
    stub(monkeypatch, proba, overlap)
    found = find(x_ref, labels, x_ref, 1, RNG(0))
    np.testing.assert_array_equal(found.names == 4, proba > threshold)
    np.testing.assert_array_equal(found.names != 4, found.names == np.arange(400) % 4)


def test_a_number_asked_for_is_sought_in_the_likeliest_cells(monkeypatch):
    x_ref, labels, _ = cells(400)
    proba = RNG(0).random(400) / 3
    stub(monkeypatch, proba, 0.5)
    assert find(x_ref, labels, x_ref, None, RNG(0)).n == 0
    found = find(x_ref, labels, x_ref, 3, RNG(0))
    assert set(np.flatnonzero(found.names >= 4)) == set(np.argsort(proba)[-3:])
    # though three cells are too few to be told apart
    assert found.n == 1
    assert "novel: number of types: 1, requested: 3" in found.audit


def test_a_group_is_judged_by_several_and_a_cell_is_what_most_of_them_see(monkeypatch):
    x, labels, _ = cells(100)
    judgements = [RNG(seed).integers(3, size=100) for seed in range(_cells.JUDGEMENTS)]
    seen = [RNG(9 + seed).integers(4, size=100) for seed in range(_cells.JUDGEMENTS)]
    coming = iter(zip(judgements, seen, strict=True))

    def judge(*args, regression):
        codes, known_as = next(coming)
        return SimpleNamespace(codes=codes, evidence=np.array([0.1, 0.4, 0.8]), known_as=known_as)

    class Model:
        def predict_proba(self, evidence):
            return np.stack([1 - evidence, evidence], axis=1)

    monkeypatch.setattr(_clusters, "learn_to_judge", lambda *args, progress: Model())
    monkeypatch.setattr(_clusters, "judge", judge)
    proba, known_as = _cells._judge_groups(x, labels, x, RNG(0), False)
    np.testing.assert_allclose(proba, np.mean(np.array([0.1, 0.4, 0.8])[judgements], axis=0))
    votes = [np.bincount(column) for column in np.transpose(seen)]
    assert all(v[k] == v.max() for v, k in zip(votes, known_as, strict=True))


def test_groups_that_cannot_be_judged_are_not_sought(monkeypatch):
    x, labels, _ = cells(400)
    around = NeighborhoodComposition(None, 0.0, False)
    monkeypatch.setattr(_cells, "learn", lambda *args: "a model")
    monkeypatch.setattr(_cells, "neighborhood_composition", lambda *args: around)
    monkeypatch.setattr(_clusters, "learn_to_judge", lambda *args, progress: None)
    found = find(x, labels, x, None, RNG(0))
    assert not found.sought
    assert found.audit == [
        "novel: not searched for: too few clusters to learn from when types of the reference were "
        "hidden"
    ]
    np.testing.assert_array_equal(found.names, known_types(x, labels, x))
    assert found.interval == {"n": 0, "low": 0, "high": 0}
