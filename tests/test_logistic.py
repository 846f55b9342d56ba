"""Logistic regression: scikit-learn's optimum, its penalty, its weights of types, its genes."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from synthetic import FAST, MARKERS, TYPES, simulate, simulate_joint, simulate_sides
from torch import nn

import sctool
from sctool import _regression
from sctool._data._features import marker_genes
from sctool._regression import choose_C, regress, set_linear, type_weights
from sctool._train import seeded
from sctool.model import LogisticClassifier, LogisticSettings, load

pytestmark = pytest.mark.usefixtures("empty_cwd")


def make_model(joint=None, **settings) -> LogisticClassifier:
    """A model of the synthetic cells, not trained."""
    joint = simulate_joint() if joint is None else joint
    LogisticClassifier.setup_anndata(joint, "cell_type", "Unknown")
    return LogisticClassifier(joint, **settings)


def train(joint=None, train_kwargs=None, **settings) -> LogisticClassifier:
    """A trained model."""
    model = make_model(joint, **settings)
    with seeded(0):
        model.train(**(train_kwargs or {}))
    return model


def cells(n: int = 120) -> tuple[sp.csr_matrix, np.ndarray]:
    """Counts, and codes of four types in turn."""
    return sp.csr_matrix(simulate(n).X, dtype=np.float32), np.arange(n) % 4


# -- the optimum ---------------------------------------------------------------------------------


@pytest.mark.parametrize("C", [0.1, 1.0])
@pytest.mark.parametrize("names", [TYPES, TYPES[:2]], ids=["four-types", "two-types"])
def test_probabilities_are_those_of_scikit_learns_optimum(names, C):
    joint = simulate_joint()
    joint = joint[joint.obs["cell_type"].isin([*names, "Unknown"])].copy()
    model = train(joint, C=C, min_type_weight=0.0)
    x, y = model._labelled_cells()
    assert x.shape[0] == 30 * len(names)
    fitted = LogisticRegression(C=C, max_iter=500).fit(x, y)
    np.testing.assert_allclose(
        model.predict(soft=True).to_numpy()[: len(y)], fitted.predict_proba(x), atol=1e-5
    )
    # the loss is that of the optimum, at the iteration that reached it
    proba = fitted.predict_proba(x)[np.arange(len(y)), y]
    assert set(model.history_) == {"supervised_train"}
    loss = model.history_["supervised_train"]["loss"]
    assert loss.item() == pytest.approx(-np.log(proba).mean(), abs=1e-4)
    assert loss.index.name == "epoch"
    assert 1 < loss.index.item() <= 500


def test_the_default_penalty_weighs_the_same_however_many_cells():
    x, y = cells(80)
    once, _ = regress(x, y, None, 500)
    thrice, _ = regress(sp.vstack([x, x, x], format="csr"), np.tile(y, 3), None, 500)
    np.testing.assert_allclose(once.predict_proba(x), thrice.predict_proba(x), atol=1e-4)
    given, _ = regress(x, y, 100 / 80, 500)
    np.testing.assert_array_equal(once.coef_, given.coef_)
    fixed, _ = regress(sp.vstack([x, x, x], format="csr"), np.tile(y, 3), 100 / 80, 500)
    assert np.abs(fixed.coef_).sum() > 1.1 * np.abs(once.coef_).sum()


def test_unlabelled_cells_teach_nothing():
    joint = simulate_joint()
    alone = joint[joint.obs["cell_type"] != "Unknown"].copy()
    query = simulate_sides()[0]
    # (of all genes: variable ones are chosen on both sides)
    both, one = (train(cells, n_top_genes=None) for cells in (joint, alone))
    pd.testing.assert_frame_equal(
        both.predict(query, soft=True), one.predict(query, soft=True), atol=1e-5
    )


def test_no_seed_matters():
    first, second = make_model(), make_model()
    for model, seed in ((first, 1), (second, 2)):
        with seeded(seed):
            model.train()
    pd.testing.assert_frame_equal(first.predict(soft=True), second.predict(soft=True))


def test_the_embedding_is_the_logits():
    model, (adata, _) = train(), simulate_sides()
    z = model.get_latent_representation(adata)
    assert z.shape == (adata.n_obs, len(TYPES))
    proba = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict(adata, soft=True), proba, atol=1e-5)


@pytest.mark.parametrize("n_types", [2, 4])
def test_a_layer_takes_the_weights_and_biases_of_a_regression(n_types):
    x, y = cells()
    x, y = x[y < n_types], y[y < n_types]
    fitted, _ = regress(x, y, 1e-3, 500)
    layer = nn.Linear(x.shape[1], n_types)
    set_linear(layer, fitted)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    logits = x @ weight.T + bias
    proba = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        proba / proba.sum(axis=1, keepdims=True), fitted.predict_proba(x), atol=1e-4
    )


@pytest.mark.parametrize("limit", [{"max_iter": 2}, {"max_epochs": 2}], ids=lambda x: next(iter(x)))
def test_the_audit_says_if_the_optimum_was_not_reached(limit):
    by_epochs = "max_epochs" in limit
    model = train(train_kwargs=limit) if by_epochs else train(**limit)
    assert "training: not converged after 2 iterations of L-BFGS" in model.audit_
    assert not any("not converged" in note for note in train().audit_)


def test_cells_too_many_to_be_made_dense_are_fitted_alike(monkeypatch):
    x, y = cells()
    dense, _ = regress(x, y, 1e-3, 500)
    monkeypatch.setattr(_regression, "DENSE_VALUES", 0)
    sparse, _ = regress(x, y, 1e-3, 500)
    np.testing.assert_allclose(sparse.predict_proba(x), dense.predict_proba(x), atol=1e-3)


# -- the penalty ---------------------------------------------------------------------------------


def test_C_is_chosen_where_it_is_left_open():
    model = train(C="auto")
    (note,) = [note for note in model.audit_ if "chosen" in note]
    chosen = float(note.removeprefix("training: C=").split()[0])
    assert note == f"training: C={chosen:g} chosen on 12 held-out cells"
    assert chosen in _regression.GENES_GRID
    # and the model is the optimum at it, on all labelled cells
    x, y = model._labelled_cells()
    proba, apart = model.predict(soft=True).to_numpy()[: len(y)], {}
    for C in _regression.GENES_GRID:
        fitted = LogisticRegression(C=C, max_iter=500).fit(x, y)
        apart[C] = np.abs(proba - fitted.predict_proba(x)).max()
    assert apart.pop(chosen) < 5e-4 < min(apart.values())


def test_the_C_chosen_has_the_lowest_loss_on_held_out_cells():
    x, y = cells()
    rng = np.random.default_rng(0)
    x.data = np.log1p(x.data)
    # (some labels are wrong, so that too weak a penalty is as well)
    noisy = np.where(rng.random(120) < 0.3, rng.integers(4, size=120), y)
    train_cells, held_out = np.arange(80), np.arange(80, 120)
    grid, losses = (1e-3, 1e-2, 1e-1, 1.0, 10.0), []
    for C in grid:
        fitted = LogisticRegression(C=C, max_iter=1000).fit(x[train_cells], noisy[train_cells])
        proba = fitted.predict_proba(x[held_out])[np.arange(40), noisy[held_out]]
        losses.append(-np.log(proba).mean())
    assert 0 < np.argmin(losses) < 4, "the test cannot tell the best from the first or last"
    chosen = choose_C(x, noisy, train_cells, held_out, 1000, grid=grid)
    assert chosen == grid[int(np.argmin(losses))]


def test_the_search_for_C_ends_where_the_held_out_loss_rises(monkeypatch):
    x, y = cells()
    tried, loss = [], dict(zip((0.1, 0.3, 1.0, 3.0, 10.0, 30.0), (5, 6, 4, 4, 7, 1), strict=True))
    monkeypatch.setattr(_regression, "regress", lambda x, y, C, *_: (tried.append(C) or C, []))
    monkeypatch.setattr(_regression, "cross_entropy", lambda C, x, y: loss[C])
    some = np.arange(10)
    assert choose_C(x, y, some, some, 10, grid=tuple(loss)) == 1.0
    assert tried == [0.1, 0.3, 1.0, 3.0, 10.0]


def test_without_held_out_cells_C_is_1():
    x, y = cells()
    assert choose_C(x, y, np.arange(120), np.array([], dtype=int), 10) == 1.0
    assert "training: C=1 chosen on 0 held-out cells" in train(C="auto", validation=0.0).audit_


# -- weights of types ----------------------------------------------------------------------------


def test_a_type_of_few_cells_weighs_as_much_as_half_the_median_one():
    n = np.array([5, 40, 800, 100, 150])
    weight = type_weights(n, 0.5)
    np.testing.assert_allclose(weight / weight[2], [10, 1.25, 1, 1, 1])
    assert weight @ n == pytest.approx(n.sum())
    np.testing.assert_allclose(type_weights(n, 0), 1)
    np.testing.assert_allclose(type_weights(n, np.inf) * n, n.mean())
    np.testing.assert_allclose(type_weights(n, 8), type_weights(n, np.inf))
    np.testing.assert_allclose(type_weights(np.array([7, 7]), 0.5), 1)


def test_types_weigh_in_the_regression_as_scikit_learns_weights_would():
    joint = simulate_joint()
    rare = (joint.obs["cell_type"] != "DC").to_numpy() | (np.arange(200) < 24)  # 6 cells of DC
    model = train(joint[rare].copy(), min_type_weight=np.inf, C=1.0)
    x, y = model._labelled_cells()
    assert np.bincount(y).tolist() == [30, 30, 6, 30]
    fitted = LogisticRegression(max_iter=500, class_weight="balanced").fit(x, y)
    plain = LogisticRegression(max_iter=500).fit(x, y).predict_proba(x)
    proba = model.predict(soft=True).to_numpy()[: len(y)]
    np.testing.assert_allclose(proba, fitted.predict_proba(x), atol=1e-4)
    assert np.abs(proba - plain).max() > 1e-3


def test_the_shares_that_a_prior_replaces_are_those_of_the_weights():
    joint = simulate_joint()
    rare = (joint.obs["cell_type"] != "DC").to_numpy() | (np.arange(200) < 24)  # 6 cells of DC
    model = train(joint[rare].copy())
    np.testing.assert_allclose(model.class_shares_, np.array([30, 30, 15, 30]) / 105)
    model = train(joint[rare].copy(), min_type_weight=0.0)
    np.testing.assert_allclose(model.class_shares_, np.array([30, 30, 6, 30]) / 96)


# -- marker genes --------------------------------------------------------------------------------


def test_marker_genes_are_those_of_the_highest_f_statistic():
    rng = np.random.default_rng(0)
    y = np.array([0] * 3 + [1] * 30 + [2] * 40)
    x = rng.poisson(1.0, (len(y), 6)).astype(float)
    x[:, 1] += 3 * (y == 2)
    x[:, 3] = 0.0
    x[:, 4] += 6 * (y == 1)
    score = []
    for gene in x.T[[0, 1, 2, 4, 5]]:
        parts = [gene[y == k] for k in range(3)]
        between = sum(len(p) * (p.mean() - gene.mean()) ** 2 for p in parts) / 2
        within = sum(((p - p.mean()) ** 2).sum() for p in parts) / (len(y) - 3)
        score.append(between / within)
    order = np.array([0, 1, 2, 4, 5])[np.argsort(score)[::-1]]
    assert set(order[:2]) == {1, 4}
    for n in range(1, 6):
        np.testing.assert_array_equal(
            marker_genes(sp.csr_matrix(x), y, n), np.sort(order[:n]), str(n)
        )
    assert len(marker_genes(sp.csr_matrix(x), y, 100)) == 6


def test_marker_genes_of_types_with_a_cell_each_are_those_that_vary():
    x = np.tile([1.0, 2.0, 0.0, 5.0], (4, 1))
    x[:, 1] += [0.0, 1.0, 2.0, 3.0]
    x[:, 3] += [0.0, 0.0, 0.0, 1.0]
    np.testing.assert_array_equal(marker_genes(sp.csr_matrix(x), np.arange(4), 2), [1, 3])


def test_marker_genes_ignore_the_query():
    joint = simulate_joint()
    changed = joint.copy()
    query = (changed.obs["cell_type"] == "Unknown").to_numpy()
    values = changed.X.toarray()
    values[query] = values[query][:, ::-1]
    changed.X = sp.csr_matrix(values)
    selected = []
    for some in (joint, changed):
        model = make_model(some, n_marker_genes=40)
        selected.append(list(model.features_.selected))
        assert len(model.features_.mean) == len(selected[-1]) == 40
        assert model._cells.x.shape == (200, 40)
        assert model.module.head.in_features == 40
    assert selected[0] == selected[1]
    assert set().union(*MARKERS.values()) <= set(selected[0])


def test_a_model_of_marker_genes_is_saved_with_them(tmp_path):
    model, (adata, _) = train(n_marker_genes=40, C="auto", min_type_weight=0.5), simulate_sides()
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert type(loaded) is LogisticClassifier
    assert loaded.settings_ == model.settings_
    assert list(loaded.features_.selected) == list(model.features_.selected)
    pd.testing.assert_frame_equal(loaded.predict(adata, soft=True), model.predict(adata, soft=True))


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, -5, 2.5, "2000"])
def test_a_number_of_marker_genes_that_is_none_is_refused(n):
    with pytest.raises(ValueError, match=r"n_marker_genes=.* must be a whole number above 0"):
        LogisticSettings(n_marker_genes=n)


@pytest.mark.parametrize("least", [-1, np.nan, "1", None])
def test_a_weight_that_is_none_is_refused(least):
    with pytest.raises(ValueError, match=r"min_type_weight=.* must be a number, 0 or more"):
        LogisticSettings(min_type_weight=least)


@pytest.mark.parametrize("C", [0, -1.0, np.nan, "best"])
def test_a_penalty_that_is_none_is_refused(C):
    with pytest.raises(ValueError, match=r"C=.* must be a number above 0, 'auto' or None"):
        LogisticSettings(C=C)


@pytest.mark.parametrize("setting", ["component", "backbone", "lr", "min_steps"])
def test_it_has_no_settings_of_networks(setting):
    with pytest.raises(TypeError, match=rf"LogisticClassifier has no settings \['{setting}'\]"):
        make_model(**{setting: None})


def test_a_number_of_novel_types_is_not_for_it():
    adata, ref = simulate_sides()
    with pytest.raises(ValueError, match=r"novel=2: LogisticClassifier cannot group novel types"):
        sctool.tl.annotate(adata, ref, method="logistic", novel=2, train_kwargs=FAST)
