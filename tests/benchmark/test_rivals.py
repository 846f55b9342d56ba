"""scNym's rivals: what each one's paper says of its behaviour."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.svm import LinearSVC
from synthetic import TYPES, simulate

from sctool._data._features import normalize
from sctool_benchmark import _rivals, run
from sctool_benchmark._rivals import (
    RIVALS,
    SURGERY,
    UNASSIGNED,
    Chetah,
    LinearSVM,
    Rival,
    ScmapCell,
    ScmapCluster,
    ScPred,
    SingleCellNet,
    dropout_genes,
)

N = len(TYPES)


def cells(n: int = 200, seed: int = 0) -> tuple[sp.csr_matrix, np.ndarray]:
    """Log1p values and type codes of well-separated types."""
    adata = simulate(n, seed=seed)
    return normalize(adata.X), adata.obs["cell_type"].cat.codes.to_numpy().astype(int)


def noise(n: int = 40, n_genes: int = 300) -> sp.csr_matrix:
    """Cells of no type: every gene as likely as every other."""
    counts = np.random.default_rng(7).poisson(1.0, (n, n_genes)).astype(np.float32)
    return normalize(sp.csr_matrix(counts))


@pytest.fixture(scope="module")
def trained() -> dict[str, Rival]:
    x, y = cells()
    return {name: cls(np.array(TYPES), 0).fit(x, y) for name, cls in RIVALS.items()}


@pytest.mark.parametrize("name", RIVALS)
def test_well_separated_types_are_told_apart(trained: dict[str, Rival], name: str) -> None:
    x, y = cells(80, seed=1)
    named = trained[name].predict(x)
    assigned = named.names != UNASSIGNED
    truth = np.array(TYPES)[y]
    # scmap's genes are chosen without the types, so it knows these less well
    share, right = (0.2, 0.6) if name.startswith("scmap") else (0.8, 0.9)
    assert assigned.mean() > share
    assert (named.names == truth)[assigned].mean() > right
    if named.proba is not None:
        assert named.proba.shape == (80, N)
        np.testing.assert_array_equal(
            np.array(TYPES)[named.proba.argmax(1)][assigned], named.names[assigned]
        )


# -- scmap -----------------------------------------------------------------------------------------


def test_scmap_takes_the_genes_with_more_dropout_than_their_mean_explains() -> None:
    rng = np.random.default_rng(0)
    level = rng.uniform(0.05, 0.5, 100)
    x = rng.poisson(level, (1000, 100)).astype(float)
    # as much expression as the others, in a tenth of the cells
    planted = [3, 50, 99]
    x[:, planted] = 0
    x[:100, planted] = 4
    x[:, 10], x[:, 20] = 1, 0  # no dropout, nothing but dropout
    assert list(dropout_genes(sp.csr_matrix(x), 3)) == planted
    chosen = dropout_genes(sp.csr_matrix(x), 100)
    assert len(chosen) == 98
    assert not {10, 20} & set(chosen)


def profiled(profiles: list[list[float]]) -> ScmapCluster:
    """scmap-cluster with given profiles of all genes."""
    rival = ScmapCluster(np.array(TYPES[: len(profiles)]))
    rival.profiles = np.array(profiles, dtype=float)
    rival.genes, rival.known = np.arange(rival.profiles.shape[1]), np.arange(len(profiles))
    return rival


def test_scmap_cluster_leaves_what_is_unlike_all_profiles_unassigned() -> None:
    rival = profiled([[4, 2, 1, 0, 0, 0], [0, 0, 0, 1, 2, 4]])
    named = rival.predict(sp.csr_matrix([[4, 2, 1, 0, 0, 0], [0, 0, 4, 3, 0, 0], [0.0] * 6]))
    # its own profile; at most 0.55 to any; nothing at all
    assert list(named.names) == ["B", UNASSIGNED, UNASSIGNED]
    assert named.score[0] == pytest.approx(1)
    assert 0 < named.score[1] < 0.7
    # the threshold is of the higher of the agreeing similarities
    cell = sp.csr_matrix([[1.0, 0, 1, 0, 0, 0]])
    cosine = 5 / np.sqrt(2 * 21)
    found = rival.predict(cell)
    assert found.score[0] == pytest.approx(cosine)
    assert cosine > 0.7
    assert found.names[0] == "B"


def test_scmap_cluster_needs_two_similarities_that_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    # cosine, Pearson and Spearman of three cells with three profiles
    similarity = [
        [[0.9, 0.1, 0.2], [0.75, 0.1, 0.2], [0.9, 0.3, 0.2]],
        [[0.1, 0.9, 0.2], [0.1, 0.99, 0.2], [0.1, 0.6, 0.2]],
        [[0.1, 0.2, 0.9], [0.72, 0.1, 0.2], [0.1, 0.5, 0.2]],
    ]
    distances = iter(1 - np.array(similarity))
    monkeypatch.setattr(_rivals, "cdist", lambda *_: next(distances))
    named = profiled([[1, 2, 3]] * 3).predict(sp.csr_matrix(np.ones((3, 3))))
    # all differ; the first and the third agree, and the second does not count; two agree too weakly
    assert list(named.names) == [UNASSIGNED, "B", UNASSIGNED]
    np.testing.assert_allclose(named.score, [0, 0.75, 0.6])


@pytest.mark.parametrize("name", ["scmap-cluster", "scmap-cell"])
def test_scmap_does_not_see_the_scale_of_a_cell(trained: dict[str, Rival], name: str) -> None:
    x, _ = cells(40, seed=1)
    scale = np.random.default_rng(0).uniform(0.1, 10, 40)
    plain, scaled = (trained[name].predict(values) for values in (x, sp.diags(scale) @ x))
    np.testing.assert_array_equal(plain.names, scaled.names)
    np.testing.assert_allclose(plain.score, scaled.score, atol=1e-6)


def test_scmap_cell_asks_for_three_neighbours_of_one_type() -> None:
    x = np.array([[9, 1, 0], [9, 2, 0], [8, 1, 0], [0, 9, 1], [0, 8, 1], [1, 1, 9.0]])
    rival = ScmapCell(np.array(TYPES))
    rival.genes, rival.y = np.arange(3), np.array([0, 0, 0, 1, 1, 2])
    rival.search = rival.search_of(sp.csr_matrix(x))
    named = rival.predict(sp.csr_matrix([[9, 1.5, 0], [0, 9, 1.0]]))
    # all three of "B"; two of the second type, whose third neighbour is of another
    assert list(named.names) == ["B", UNASSIGNED]
    assert named.score[1] > 0.99


def test_scmap_cell_rejects_what_has_no_near_cell() -> None:
    x = np.eye(4)[[0, 0, 0, 1, 1, 1]] + 0.01
    rival = ScmapCell(np.array(TYPES))
    rival.genes, rival.y = np.arange(4), np.array([0, 0, 0, 1, 1, 1])
    rival.search = rival.search_of(sp.csr_matrix(x))
    near, far = rival.predict(sp.csr_matrix([[1.0, 0, 0, 0], [0.1, 0, 0, 1]])).names
    assert near == "B"
    assert far == UNASSIGNED


# -- Support vector machine, scPred ----------------------------------------------------------------


def test_the_linear_machine_names_every_cell_also_of_two_types() -> None:
    x, y = cells()
    two = y < 2
    named = LinearSVM(np.array(TYPES[:2])).fit(x[two], y[two]).predict(noise())
    assert set(named.names) <= set(TYPES[:2])
    assert (named.score >= 0.5).all()
    own = LinearSVM(np.array(TYPES[:2])).fit(x[two], y[two]).predict(x[two])
    assert (own.names == np.array(TYPES)[y[two]]).all()


def test_calibration_changes_no_name_of_the_linear_machine(trained: dict[str, Rival]) -> None:
    x, _ = cells(80, seed=1)
    named, margins = trained["svm"].predict(x), LinearSVC(random_state=0).fit(*cells())
    np.testing.assert_array_equal(named.names, np.array(TYPES)[margins.predict(x)])
    np.testing.assert_array_equal(named.score, named.proba.max(axis=1))


def test_the_linear_machine_s_scores_are_the_share_of_right_names() -> None:
    x, y = cells(800)
    drawn = np.random.default_rng(0).random(len(y)) < 0.25
    y = np.where(drawn, np.random.default_rng(1).integers(N, size=len(y)), y)  # labels lie
    named = LinearSVM(np.array(TYPES)).fit(x[:600], y[:600]).predict(x[600:])
    right = named.names == np.array(TYPES)[y[600:]]
    assert 0.4 < right.mean() < 0.9
    assert named.score.mean() == pytest.approx(right.mean(), abs=0.1)


def test_the_linear_machine_asks_for_two_cells_of_each_type() -> None:
    x, y = cells()
    kept = np.append(np.flatnonzero(y > 0), np.flatnonzero(y == 0)[:1])
    with pytest.raises(ValueError, match=f"fewer than two labelled cells: .*{TYPES[0]}"):
        LinearSVM(np.array(TYPES)).fit(x[kept], y[kept])


def test_scpred_uses_the_components_in_which_the_type_differs(trained: dict[str, Rival]) -> None:
    rival = trained["scpred"]
    assert isinstance(rival, ScPred)
    x, y = cells()
    z = rival.pca.transform(rival.scaler.transform(x[:, rival.genes].toarray()))
    for k, components in enumerate(rival.components):
        # three components separate four types; most of the 50 are noise
        assert 1 <= len(components) < 25
        differ = np.abs(z[y == k].mean(axis=0) - z[y != k].mean(axis=0)) / z.std(axis=0)
        assert differ.argmax() in components


def test_scpred_rejects_at_its_threshold(trained: dict[str, Rival]) -> None:
    named = trained["scpred"].predict(sp.vstack([noise(), cells(40, seed=2)[0]]))
    np.testing.assert_array_equal(named.names == UNASSIGNED, named.score <= 0.55)
    assert (named.names[:40] == UNASSIGNED).mean() > (named.names[40:] == UNASSIGNED).mean() + 0.3


def test_a_threshold_may_be_given() -> None:
    x, y = cells()
    for cls in (ScPred, ScmapCluster):
        rival = cls(np.array(TYPES), 0, threshold=0.0).fit(x, y)
        assert UNASSIGNED not in rival.predict(cells(40, seed=2)[0]).names


# -- singleCellNet ---------------------------------------------------------------------------------


def test_singlecellnet_sees_the_order_of_genes_in_a_cell_alone(trained: dict[str, Rival]) -> None:
    x, _ = cells(40, seed=1)
    powers = np.random.default_rng(0).uniform(0.3, 3, 40)
    bent = x.copy()
    bent.data = bent.data ** np.repeat(powers, np.diff(bent.indptr))
    plain, other = (trained["singlecellnet"].predict(values) for values in (x, bent))
    np.testing.assert_array_equal(plain.proba, other.proba)
    np.testing.assert_array_equal(plain.names, other.names)


def test_singlecellnet_leaves_shuffled_cells_unassigned(trained: dict[str, Rival]) -> None:
    x, _ = cells(80, seed=3)
    shuffled = np.random.default_rng(0).permuted(x.toarray(), axis=1)
    named = trained["singlecellnet"].predict(sp.csr_matrix(shuffled))
    assert (named.names == UNASSIGNED).mean() > 0.6
    assert named.score.mean() < 0.5


def test_singlecellnet_pairs_the_genes_that_tell_types_apart(trained: dict[str, Rival]) -> None:
    rival = trained["singlecellnet"]
    assert isinstance(rival, SingleCellNet)
    x, y = cells()
    pairs = rival._pairs(x, y == 0)
    assert len(pairs) <= 25
    assert np.bincount(pairs.ravel()).max() <= 3
    markers = np.arange(8)  # of the first type
    assert np.isin(pairs, markers).any(axis=1).mean() > 0.9


# -- CHETAH ----------------------------------------------------------------------------------------


def nested() -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    """Two pairs of types, "A1", "A2" and "B1", "B2", that share half of their markers."""
    rng = np.random.default_rng(0)
    rate = np.full((4, 400), 0.5)
    rate[:2, :40] = rate[2:, 40:80] = 6
    for k in range(4):
        rate[k, 80 + 60 * k : 140 + 60 * k] = 6
    y = np.arange(200) % 4
    return normalize(sp.csr_matrix(rng.poisson(rate[y]).astype(np.float32))), y, rate


def test_chetah_ends_a_mixture_at_the_node_above_its_types() -> None:
    x, y, rate = nested()
    names = np.array(["A1", "A2", "B1", "B2"])
    rival = Chetah(names).fit(x, y)
    rng = np.random.default_rng(1)
    pure = normalize(sp.csr_matrix(rng.poisson(rate[y[:80]]).astype(np.float32)))
    named = rival.predict(pure).names
    truth = names[y[:80]]
    assert (named == truth).mean() > 0.6
    # the others end on their way to the right type
    above = [{f"{name[0]}1 or {name[0]}2", UNASSIGNED, name} for name in truth]
    assert all(name in allowed for name, allowed in zip(named, above, strict=True))
    between = rate[:2].mean(axis=0)
    named = rival.predict(normalize(sp.csr_matrix(rng.poisson(between, (40, 400)).astype(float))))
    assert (named.names == "A1 or A2").mean() > 0.7
    # nothing that any type has: the root
    nothing = rival.predict(normalize(sp.csr_matrix(rng.poisson(0.5, (40, 400)).astype(float))))
    assert (nothing.names == UNASSIGNED).mean() > 0.7
    # a higher threshold stops more cells, and 0 none
    rival.threshold = 1.99
    assert (rival.predict(pure).names == UNASSIGNED).mean() > 0.9
    rival.threshold = -3
    assert set(rival.predict(pure).names) <= set(names)


# -- Runs ------------------------------------------------------------------------------------------


def sides() -> tuple[ad.AnnData, ad.AnnData]:
    """A query and a reference that lacks its type "DC"."""
    query, ref = simulate(80, seed=1), simulate(160, seed=0)
    return query, ref[ref.obs["cell_type"] != "DC"].copy()


def test_a_rival_is_a_method_of_a_suite(tmp_path: Path, jobs: list[dict]) -> None:
    query, ref = sides()
    adata = ad.concat([ref, query])
    adata.obs["split"] = np.repeat(["reference", "query"], [ref.n_obs, query.n_obs])
    adata.write_h5ad(tmp_path / "cells.h5ad")
    lines = ["methods = ['scpred', 'svm']", "[[task]]", 'kind = "pair"', 'data = "mine"']
    lines += [f"file = '{tmp_path / 'cells.h5ad'}'", "training_folds = 5"]
    (tmp_path / "suite.toml").write_text("\n".join(lines))
    rows = run(tmp_path / "suite.toml", seeds=1, out=tmp_path / "out")
    assert rows["error"].isna().all()
    assert list(rows["protocol"]) == ["blind", "blind"]  # they have no other
    assert list(rows["n_ref"]) == [96, 96]  # of 120
    by_name = rows.set_index("method")
    assert by_name.loc["scpred", "novel_recall"] > 0.3
    assert by_name.loc["scpred", "novel_auroc"] > 0.8
    assert by_name.loc["svm", "novel_recall"] == 0
    assert (by_name["seen_accuracy"] > 0.7).all()
    assert (by_name["seconds"] > 0).all()


def test_intermediate_types_are_not_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(Chetah):
        def predict(self, x: sp.csr_matrix) -> _rivals.Named:
            names = np.array(["B or Mono", UNASSIGNED] * (x.shape[0] // 2), dtype=object)
            return _rivals.Named(names, np.full(x.shape[0], 1.5))

    monkeypatch.setitem(RIVALS, "chetah", Half)
    answer = _rivals.annotate("chetah", *sides(), None, {}, {}, 0)
    assert list(answer["novel"][:2]) == [False, True]
    assert answer["score"].max() == 1
    assert (answer["novel_score"] == -1.5).all()


def test_surgery_needs_counts() -> None:
    query, ref = sides()
    for side in (query, ref):
        side.X = normalize(side.X)
    with pytest.raises(ValueError, match="needs counts"):
        _rivals.annotate(SURGERY, query, ref, None, {}, {}, 0)


def test_surgery_leaves_what_the_reference_taught_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from scvi.model import SCANVI

    weights = []

    def load(_: type, new: ad.AnnData, folder: str) -> SCANVI:
        assert set(new.obs["label"]) == {"unknown"}
        model = loaded(new, folder)
        weights.append((model, {k: v.clone() for k, v in model.module.state_dict().items()}))
        return model

    loaded = SCANVI.load_query_data
    monkeypatch.setattr(SCANVI, "load_query_data", classmethod(load))
    query, ref = sides()
    epochs = {"max_epochs": 15, "scanvi_epochs": 10, "surgery_epochs": 2}
    answer = _rivals.annotate(SURGERY, query, ref, None, {}, epochs, 0)
    ((model, before),) = weights
    after = model.module.state_dict()
    same = {k for k in before if np.array_equal(before[k], after[k])}
    assert {k for k in before if k.startswith("classifier")} <= same
    assert set(before) - same  # and the weights of the new batch are learnt
    assert answer["proba"].shape == (80, 3)
    assert list(answer["classes"]) == sorted(set(TYPES) - {"DC"})
    right = pd.Series(answer["prediction"], query.obs_names) == query.obs["cell_type"].astype(str)
    assert right[query.obs["cell_type"] != "DC"].mean() > 0.6
    assert "novel" not in answer
