"""Evidence on groups: novel types are found under a shift, and a second batch is none."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics import roc_auc_score

from sctool._data._features import normalize
from sctool._neighbors import group_means, principal_components
from sctool._regression import regress
from sctool.novelty import QueryNovelty, _cells, search
from sctool.novelty._anchors import Groups, QueryGroups, group_query, means_and_errors
from sctool.novelty._n_types import TypeSeparation, learn_separation
from sctool.novelty._query import judge_by_group, name_by_group

N_GENES, N_TYPES, N_MARKERS = 300, 7, 10
#: The last type is none of the reference's; the two before it are nearly alike.
NOVEL, TWINS = 6, (4, 5)
KNOWN = np.arange(NOVEL)
#: Errors of means, as if of infinitely many cells.
EXACT = np.zeros(20)


def cells(types: np.ndarray, seed: int, shift: float | np.ndarray = 0.0) -> sp.csr_matrix:
    """Return log1p CP10k of cells; ``shift`` scales the genes' log factors of an experiment."""
    fixed = np.random.default_rng(7)
    rate = np.tile(fixed.lognormal(0, 0.7, N_GENES), (N_TYPES, 1))
    for i in range(N_TYPES):
        like = TWINS[0] if i == TWINS[1] else i
        rate[i, like * N_MARKERS : (like + 1) * N_MARKERS] *= 8
    rate[TWINS[1], :3] *= 2
    factor = fixed.standard_normal(N_GENES)
    rng = np.random.default_rng(seed)
    mean = rate[types] * np.exp(np.multiply.outer(np.broadcast_to(shift, len(types)), factor))
    mean *= rng.lognormal(0, 0.3, (len(types), 1))
    counts = rng.poisson(mean * rng.gamma(3, 1 / 3, mean.shape)).astype(np.float32)
    return normalize(sp.csr_matrix(counts))


@cache
def reference() -> SimpleNamespace:
    labels = np.tile(KNOWN, 60)
    x = cells(labels, 0)
    separation = learn_separation(x, labels, np.random.default_rng(0))
    regression = regress(x, labels, 1.0, 200)[0]
    known = means_and_errors(x, labels)
    return SimpleNamespace(
        x=x, labels=labels, separation=separation, regression=regression, known=known
    )


def grouped(x: sp.csr_matrix, proba: np.ndarray, separations: list) -> QueryGroups:
    return group_query(x, principal_components(x, 30, 0), proba, separations, 0)


def query(types: np.ndarray, shift: float | np.ndarray) -> SimpleNamespace:
    ref, x = reference(), cells(types, 1, shift)
    proba = ref.regression.predict_proba(x)
    return SimpleNamespace(
        x=x, types=types, proba=proba, groups=grouped(x, proba, [ref.separation])
    )


@cache
def shifted() -> SimpleNamespace:
    """60 cells of each type, the novel one among them, of another experiment."""
    return query(np.tile(np.arange(N_TYPES), 60), 0.8)


@cache
def judged() -> tuple[np.ndarray, dict[int, float]]:
    """Probability that each of the shifted cells is novel, and the sensitivity to each type."""
    q = shifted()
    return judge_by_group(q.groups, q.proba, *reference().known)


@cache
def two_batches() -> SimpleNamespace:
    """Known types alone, half of the cells of another experiment."""
    return query(np.tile(KNOWN, 80), np.repeat([0.0, 1.5], 240))


# -- evidence ------------------------------------------------------------------------------------


def test_a_novel_type_is_ranked_first_under_a_shift():
    q, novel = shifted(), shifted().types == NOVEL
    auroc = roc_auc_score(novel, q.groups.evidence(*reference().known))
    assert auroc > 0.9
    assert auroc >= roc_auc_score(novel, 1 - q.proba.max(axis=1))


def test_judged_by_group_the_novel_type_is_found_and_known_ones_are_not():
    q, (proba, _) = shifted(), judged()
    assert (proba[q.types == NOVEL] > 0.5).mean() > 0.9
    assert (proba[q.types != NOVEL] > 0.5).mean() < 0.1


def test_the_sensitivity_is_high_for_a_type_apart_and_low_for_a_twin():
    q, (_, found) = shifted(), judged()
    predicted = np.bincount(q.proba.argmax(axis=1), minlength=NOVEL)
    assert set(found) == set(np.flatnonzero(predicted >= 50))
    assert min(found[t] for t in found if t not in TWINS) > 0.8
    assert all(found[t] < 0.5 for t in TWINS if t in found)
    assert any(t in found for t in TWINS)


def test_a_type_of_fewer_than_fifty_cells_has_no_sensitivity():
    q = shifted()
    few = SimpleNamespace(
        main=Groups(q.groups.main.codes[:98], *(None,) * 4), evidence=lambda *_: np.zeros(98)
    )
    few.main = Groups(few.main.codes, q.groups.main.means, q.groups.main.proba, None, None)
    proba = np.eye(NOVEL)[np.repeat([0, 1, 2], [50, 48, 0])]
    assert set(judge_by_group(few, proba, *reference().known)[1]) <= {0}


def test_the_threshold_on_the_evidence_and_two_types_of_which_none_can_be_hidden():
    codes = np.repeat([0, 1], [200, 10])
    main = Groups(codes, np.eye(2), np.array([[0.9, 0.1], [0.5, 0.5]]), np.zeros((2, 2)), EXACT[:1])
    groups = SimpleNamespace(main=main, evidence=lambda *_: np.r_[np.full(200, 0.3), [5.0] * 10])
    proba, found = judge_by_group(groups, main.proba[codes], np.eye(2), EXACT)
    assert found == {}
    np.testing.assert_allclose(np.log(proba / (1 - proba))[[0, -1]], [0.3 - 1, 5 - 1], rtol=1e-6)


def test_what_several_separations_say_is_averaged_as_log_odds():
    x, proba = shifted().x[:200], shifted().proba[:200]
    of = {
        p: SimpleNamespace(distance=lambda means, p=p: np.full((len(means),) * 2, p))
        for p in (0.5, 0.9)
    }
    groups = grouped(x, proba, [of[0.5], of[0.9]])
    both, one = groups.main.apart, grouped(x, proba, [of[0.9]]).main.apart
    odds = np.log(both / (1 - both)), np.log(one / (1 - one))
    np.testing.assert_allclose(odds[0], odds[1] / 2)


# -- types of groups -----------------------------------------------------------------------------

PROFILES = np.array([[4.0, 0, 0, 1], [0, 4.0, 0, 1], [0, 0, 4.0, 1]])
#: A shift that makes every group look like the first type.
MISLEADING = np.array([3, 0, 0, 0])


def by_hand(means: np.ndarray, proba: np.ndarray, codes: np.ndarray | None = None) -> Groups:
    codes = np.arange(len(means)) if codes is None else codes
    apart = 1 - np.eye(len(means))
    return Groups(codes, means, np.asarray(proba, dtype=float), apart, EXACT[:1])


def test_a_group_misled_by_a_shift_has_the_type_of_its_profile():
    groups = by_hand(PROFILES + MISLEADING, [[0.9, 0.1, 0], [0.6, 0.4, 0], [0.6, 0, 0.4]])
    np.testing.assert_array_equal(groups.types(PROFILES), [0, 1, 2])
    sure = by_hand(groups.means, [[0.9, 0.1, 0], [0.7, 0.3, 0], [0.6, 0, 0.4]])
    np.testing.assert_array_equal(sure.types(PROFILES), [0, 0, 2])


def test_a_type_without_a_profile_is_left_out():
    without = PROFILES.copy()
    without[1] = np.nan
    groups = by_hand(PROFILES, [[0.9, 0.1, 0], [0.1, 0.9, 0], [0.1, 0, 0.9]])
    assert list(groups.types(PROFILES)) == [0, 1, 2]
    types = groups.types(without)
    assert list(types[[0, 2]]) == [0, 2]
    assert types[1] in (0, 2)
    hidden, known = groups.evidence(without, EXACT), groups.evidence(PROFILES, EXACT)
    assert np.isfinite(hidden).all()
    assert hidden.argmax() == 1
    assert hidden[1] > known[1] + 1


def test_the_evidence_by_hand():
    # groups 0 and 1 are of type 0; the shift is that of the anchors, 0, 2 and 3
    shift = np.array([0, 0, 0, 1.0])
    means = np.vstack([PROFILES[0], PROFILES[0] + [0, 0, 0, 2.0], PROFILES[1], PROFILES[2]]) + shift
    proba = np.array([[0.9, 0.1, 0], [0.8, 0.1, 0.1], [0, 1, 0], [0, 0, 1]])
    apart = np.full((4, 4), 0.25)
    groups = Groups(np.arange(4), means, proba, apart, EXACT[:1])
    # residuals beyond the shift: none of the anchors, 2 of group 1
    logit = np.log((0.01 + 0.98 * 0.25) / (0.99 - 0.98 * 0.25))
    expected = logit + np.log(np.array([1e-6, 4 + 1e-6, 1e-6, 1e-6]) / 1e-6)
    np.testing.assert_allclose(groups.evidence(PROFILES, EXACT), expected, rtol=1e-6)


def test_what_the_errors_of_means_explain_is_no_distance():
    means = PROFILES + np.array([[0, 0, 0, 0], [0, 0, 0, 2.0], [0, 0, 0, 0]])
    proba, apart = np.eye(3), np.zeros((3, 3))
    errors = [0.0, 1.5], [1.5, 0.0], [5.0, 5.0]
    evidence = []
    for of_group, of_type in errors:
        known = Groups(np.arange(3), means, proba, apart, np.array([0, of_group, 0]))
        evidence.append(known.evidence(PROFILES, np.array([0, of_type, 0])))
    exact = Groups(np.arange(3), means, proba, apart, EXACT[:1]).evidence(PROFILES, EXACT)
    # a squared distance of 4, of which 1.5 is subtracted, and no more than seven tenths
    for found, left in zip(evidence, [4 - 1.5, 4 - 1.5, 0.3 * 4], strict=True):
        np.testing.assert_allclose(found[1] - exact[1], np.log(left / 4), rtol=1e-5)
        np.testing.assert_allclose(found[[0, 2]], exact[[0, 2]])


def test_a_group_of_few_cells_is_no_anchor_because_its_error_is_large():
    # groups 0 and 1 are of type 0; of the squared distance of 1, all but a tenth may be chance
    means = np.vstack([PROFILES[0] + [0, 0, 0, 1.0], PROFILES[0] + [0, 0, 0.8, 0], *PROFILES[1:]])
    proba = np.vstack([np.eye(3)[0], np.eye(3)])
    apart = 0.9 * (1 - np.eye(4))
    groups = Groups(np.arange(4), means, proba, apart, np.array([0.9, 0, 0, 0]))
    evidence = groups.evidence(PROFILES, EXACT)
    np.testing.assert_array_equal(evidence > 0, [True, True, False, False])
    odds_of_anchor = np.log(0.01 / 0.99)
    np.testing.assert_allclose(evidence[1], odds_of_anchor + np.log((0.64 + 1e-6) / 1e-6))
    assert evidence[0] > evidence[1] - odds_of_anchor + np.log(0.3 / 0.64)


def test_the_error_of_a_mean_against_resampling():
    rng = np.random.default_rng(0)
    x = rng.gamma(1, 2, (9000, 4)) * [0.5, 1, 1, 2]
    codes = rng.permutation(np.repeat(np.arange(300), 30))
    means = np.stack([x[codes == g].mean(axis=0) for g in range(300)])
    found, error = means_and_errors(sp.csr_matrix(x), codes)
    np.testing.assert_allclose(found, means)
    np.testing.assert_allclose(error.mean(), means.var(axis=0).sum(), rtol=0.15)
    # a group of one cell has the variance of the others
    alone = means_and_errors(sp.csr_matrix(x[:31]), np.r_[np.zeros(30, dtype=int), 1])[1]
    np.testing.assert_allclose(alone[1], 30 * alone[0])
    assert means_and_errors(sp.csr_matrix(x[:1]), np.zeros(1, dtype=int))[1] == 0


def test_a_rare_type_keeps_its_name_and_unsure_cells_have_that_of_their_group():
    codes = np.repeat([0, 1], [5, 4])
    proba = np.array([[0.9, 0.1]] * 3 + [[0.4, 0.6], [0.15, 0.85]] + [[0.3, 0.7]] * 4)
    means = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    groups = Groups(codes, means, group_means(proba, codes), np.eye(2), EXACT[:1])
    pure = Groups(codes, means, np.array([[0.75, 0.25], [0.3, 0.7]]), np.eye(2), EXACT[:1])
    # 0.6 is overruled by the group, 0.85 is not
    np.testing.assert_array_equal(name_by_group(pure, proba, means), [0] * 4 + [1] * 5)
    # in a group that is of no clear type, each keeps its own
    np.testing.assert_array_equal(name_by_group(groups, proba, means)[:5], [0, 0, 0, 1, 1])


def test_a_group_that_a_shift_misleads_is_corrected():
    proba = np.repeat([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.6, 0, 0.4]], 4, axis=0)
    proba[4] = [0.9, 0.1, 0]  # sure of itself, but its group is another
    codes = np.repeat([0, 1, 2], 4)
    groups = Groups(codes, PROFILES + MISLEADING, group_means(proba, codes), np.eye(3), EXACT[:1])
    np.testing.assert_array_equal(name_by_group(groups, proba, PROFILES), codes)


# -- batches -------------------------------------------------------------------------------------


def of_groups(means: np.ndarray, types: list[int]) -> QueryGroups:
    """Twenty cells of each group, all of them surely of these types."""
    codes = np.repeat(np.arange(len(means)), 20)
    groups = Groups(codes, means, np.eye(6)[types], 1 - np.eye(len(means)), EXACT[:1])
    return QueryGroups([groups] * 5, sp.identity(len(codes), format="csr"))


def test_a_second_batch_is_found_and_novel_types_are_none():
    profiles = np.hstack([4 * np.eye(6), np.zeros((6, 4))])
    first, shift = [0, 1, 2, 3, 4], np.r_[np.zeros(6), np.full(4, 5.0)]

    def second(types: list[int]) -> np.ndarray | None:
        means = np.vstack([profiles[first], profiles[types] + shift])
        return of_groups(means, first + types).second_batch(profiles, EXACT)

    np.testing.assert_array_equal(second([0, 1, 2, 3]), np.arange(180) >= 100)
    # with few types in common, the groups could as well be novel types
    assert second([0, 1, 2, 5]) is None
    assert second([0, 1]) is None
    # four novel types, each nearest to the first type but for a gene of its own
    own = np.vstack([profiles[first], profiles[0] + 5 * np.eye(10)[6:]])
    assert of_groups(own, [*first, 0, 0, 0, 0]).second_batch(profiles, EXACT) is None
    assert shifted().groups.second_batch(*reference().known) is None


@pytest.mark.slow
def test_a_second_batch_is_judged_separately_and_is_not_novel(monkeypatch):
    q, ref = two_batches(), reference()
    second = np.arange(len(q.types)) >= 240
    monkeypatch.setattr(QueryGroups, "second_batch", lambda *args: second)
    found = search(ref.x, ref.labels, q.x, q.proba, None, np.random.default_rng(0))
    assert any("judged separately, as a second batch" in note for note in found.audit)
    assert (found.names >= NOVEL).mean() < 0.05


@pytest.mark.slow
def test_given_batches_are_judged_separately_and_small_ones_with_the_largest():
    q, ref = two_batches(), reference()
    batches = np.repeat([3, 5], 240)
    batches[:10] = 8
    rng = np.random.default_rng(0)
    found = search(ref.x, ref.labels, q.x, q.proba, None, rng, batches)
    assert "novel: 2 batches judged separately" in found.audit
    assert (found.names >= NOVEL).mean() < 0.05


@pytest.mark.slow
def test_cells_that_mix_with_the_reference_are_judged_by_group_and_by_cell(monkeypatch):
    ref, x = reference(), cells(np.tile(KNOWN, 60), 1)
    proba = ref.regression.predict_proba(x)

    def find(by_cell: float) -> QueryNovelty:
        learnt = SimpleNamespace(
            predict_proba=lambda e: np.tile([1 - by_cell, by_cell], (len(e), 1))
        )
        monkeypatch.setattr(_cells, "learn", lambda *args: learnt)
        return search(ref.x, ref.labels, x, proba, None, np.random.default_rng(0))

    never, always = find(0.0), find(1.0)
    assert never.mixed == 1
    assert (never.names < NOVEL).all()
    assert any("judged by cell and group" in note for note in never.audit)
    np.testing.assert_allclose(always.proba, never.proba + 1 / 2)


def test_where_nothing_is_sought_cells_are_named_alone():
    q, ref = shifted(), reference()
    closed = search(ref.x, ref.labels, q.x, q.proba, 0, np.random.default_rng(0))
    assert closed.proba is None
    assert closed.interval is None
    assert closed.names.max() < NOVEL
    few = search(ref.x, ref.labels, q.x[:199], q.proba[:199], None, np.random.default_rng(0))
    assert few.proba is None
    assert "199 cells are too few" in few.audit[0]
    np.testing.assert_array_equal(few.names, q.proba[:199].argmax(axis=1))


def test_neighbours_smooth_the_evidence():
    ring = sp.csr_matrix(np.roll(np.eye(4), 1, axis=1))
    groups = by_hand(np.ones((4, 3)), np.ones((4, 1)))
    object.__setattr__(groups, "evidence", lambda *_: np.array([8.0, 0, 0, 0]))
    smooth = QueryGroups([groups] * 5, ring).evidence(PROFILES, EXACT)
    np.testing.assert_allclose(smooth, [2, 0, 2, 4])
    np.testing.assert_allclose(smooth.sum(), 8)
    assert TypeSeparation().model is None
