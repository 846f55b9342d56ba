"""A saved model adapts to a query without its reference: profiles, and the model that results."""

from dataclasses import fields
from functools import cache

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.metrics import roc_auc_score
from synthetic import MARKERS, simulate
from test_auto import LINEAR, hidden, planted

import sctool
from sctool import novelty
from sctool._data._features import normalize
from sctool.model import AutoClassifier, _adapt, load
from sctool.model._profiles import Profiles, one_count

KNOWN = ["B", "CD4 T/NK", "Mono"]
QUIET = {"enable_progress_bar": False}


def log_cells(n: int, seed: int = 0) -> tuple[sp.csr_matrix, np.ndarray]:
    cells = simulate(n, seed)
    return normalize(cells.X.copy()), cells.obs["cell_type"].cat.codes.to_numpy().astype(np.int64)


@cache
def alone() -> AutoClassifier:
    """A model that has seen a reference without "DC" and another query; no test may change it."""
    first = simulate(90, seed=5)
    first = first[first.obs["cell_type"] != "DC"].copy()
    return sctool.tl.annotate(
        first, hidden()[1], return_model=True, model_kwargs=LINEAR, train_kwargs=QUIET
    )


@pytest.fixture
def query() -> ad.AnnData:
    """Cells of four types, one of them unknown to the model, shifted."""
    return hidden()[0]


@pytest.fixture
def no_search(monkeypatch):
    """Plant the result of the search of ``query``; the model has been trained before."""
    alone()
    monkeypatch.setattr(novelty, "search", planted)


def state(model: AutoClassifier) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.module.state_dict().items()}


# -- profiles ------------------------------------------------------------------------------------


def test_drawn_cells_are_like_those_described():
    x, labels = log_cells(1600)
    profiles = Profiles.fit(x, labels, one_count(x))
    drawn, types = profiles.draw(np.random.default_rng(0))
    assert np.bincount(types).tolist() == [300] * 4
    assert (drawn.data > 0).all()
    for t in range(4):
        real, made = x[labels == t].toarray(), drawn[types == t].toarray()
        for moment in (np.mean, np.std):
            a, b = moment(real, axis=0), moment(made, axis=0)
            assert np.corrcoef(a, b)[0, 1] > 0.9
            assert abs(a - b).mean() < 0.12
        shares = (real > 0).mean(axis=0), (made > 0).mean(axis=0)
        assert abs(shares[0] - shares[1]).mean() < 0.04


def test_profiles_are_means_over_many_cells():
    x, labels = log_cells(400)
    profiles = Profiles.fit(x, labels, one_count(x))
    counts = np.expm1(profiles.mean.astype(float))
    # each type has 100 cells, hence at most two groups of 20 or more
    assert np.bincount(profiles.types).max() <= 2
    assert profiles.n_cells.min() >= 20
    assert profiles.n_cells.sum() == 400
    for t in range(4):
        groups = profiles.types == t
        mean = np.average(counts[groups], axis=0, weights=profiles.n_cells[groups])
        linear = np.expm1(x[labels == t].toarray().astype(float))
        np.testing.assert_allclose(mean, linear.mean(axis=0), rtol=2e-3, atol=1e-3)


def test_types_of_few_cells_are_one_group():
    x, labels = log_cells(200)
    few = np.flatnonzero((labels != 3) | (np.arange(200) == np.flatnonzero(labels == 3)[0]))
    profiles = Profiles.fit(x[few], labels[few], one_count(x[few]))
    assert (profiles.types == 3).sum() == 1
    drawn, types = profiles.draw(np.random.default_rng(0))
    assert (types == 3).sum() == 50
    assert np.isfinite(drawn.data).all()


def test_one_count_is_recognised():
    counts = simulate(20).X
    total = np.asarray(counts.sum(axis=1)).ravel()
    np.testing.assert_allclose(one_count(normalize(counts.copy())), 1e4 / total, rtol=1e-4)
    x = sp.csr_matrix(np.log1p([[0.0, 2.0], [0.0, 0.0], [3.0, 4.0]]))
    assert one_count(x).tolist() == pytest.approx([2, 2.5, 3])


def test_values_that_are_no_counts_keep_their_variance():
    rng = np.random.default_rng(0)
    rate = np.logspace(-2, 2, 60)
    x = sp.csr_matrix(np.log1p(rate * rng.gamma(2.0, 1.0, (400, 60))).astype(np.float32))
    profiles = Profiles.fit(x, np.zeros(400, dtype=int), one_count(x))
    made = profiles.draw(rng)[0].toarray()
    assert abs(made.std(axis=0).mean() / x.toarray().std(axis=0).mean() - 1) < 0.15


# -- the model that adapts -----------------------------------------------------------------------


def test_a_novel_type_is_found_and_the_model_is_left_alone(query, no_search, tmp_path):
    alone().save(tmp_path / "model")
    model = load(tmp_path / "model")
    before = state(model)
    adapted = sctool.tl.annotate(
        query, model, adapt=True, return_model=True, train_kwargs=QUIET, key_added="new"
    )
    sctool.tl.annotate(query, model)
    truth, found = query.obs["truth"].astype(object), query.obs["new"].astype(object)
    assert (found[truth == "DC"] == "novel_1").mean() > 0.6
    known = truth != "DC"
    assert (found[known] == truth[known]).mean() > 0.95
    assert "novel_1" not in query.obs["sctool"].cat.categories
    table = query.uns["new"]["novel"]
    assert set(table.loc["novel_1", "markers"].split(", ")[:4]) <= set(MARKERS["DC"])
    assert table.loc["novel_1", "nearest"] in KNOWN
    audit = " ".join(query.uns["new"]["audit"])
    assert "has adapted to these cells" in audit
    assert "nothing was trained" not in audit

    assert model.novel_classes_ == []
    assert all(
        torch.equal(value, before[name]) for name, value in model.module.state_dict().items()
    )
    adapted.save(tmp_path / "adapted")
    again = load(tmp_path / "adapted").predict_cells(query)
    np.testing.assert_allclose(again.proba, query.obsm["new_proba"], atol=1e-5)


def test_networks_continue_and_have_a_vote(query, monkeypatch):
    settings = {"n_top_genes": 100, "n_hidden": 16, "min_steps": 8, "min_epochs": 1}
    first, ref = simulate(60, seed=5), hidden()[1]
    trained = sctool.tl.annotate(
        first[first.obs["cell_type"] != "DC"].copy(),
        ref,
        return_model=True,
        model_kwargs=settings,
        train_kwargs=QUIET,
    )
    before = state(trained)
    monkeypatch.setattr(novelty, "search", planted)
    few = query[:, query.var_names[5:]].copy()
    adapted = sctool.tl.annotate(few, trained, adapt=True, return_model=True, train_kwargs=QUIET)
    after = state(adapted)
    assert all(torch.equal(value, before[name]) for name, value in state(trained).items())
    name = "networks.mixmatch.encoder.0.weight"
    change = (after[name] - before[name]).norm() / before[name].norm()
    assert 0 < change < 0.5  # neither as it was, nor trained anew
    assert len(after["weights"]) == 4
    truth = few.obs["truth"].astype(object)
    assert (few.obs["sctool"].astype(object) == truth)[truth != "DC"].mean() > 0.9


@pytest.mark.slow
def test_the_search_needs_no_reference(query):
    sctool.tl.annotate(query, alone(), train_kwargs=QUIET, key_added="saved")
    sctool.tl.annotate(query, alone(), adapt=True, train_kwargs=QUIET)
    novel = query.obs["truth"] == "DC"
    assert roc_auc_score(novel, query.obs["sctool_novel_score"]) > 0.95
    assert query.obs["sctool_novel"][novel].mean() > 0.7
    assert query.obs["sctool_novel"][~novel].mean() < 0.05
    assert "saved_novel" not in query.obs  # it was not searched


def test_voters_that_saw_the_reference_stay(query, no_search):
    adapted = sctool.tl.annotate(query, alone(), adapt=True, return_model=True, train_kwargs=QUIET)
    old, new = state(alone()), state(adapted)
    for name in ("linear.weight", "linear.bias", "temperature"):
        assert torch.equal(old[name], new[name])
    assert new["adapted.weight"].shape[0] == old["adapted.weight"].shape[0] + 1
    assert adapted.calibration_ is alone().calibration_
    # of cells with few labels the regressions have one half each
    assert new["weights"].tolist() == pytest.approx([0.5, 0.5])
    assert query.uns["sctool"]["n_novel"] == {"n": 1, "low": 1, "high": 2}
    assert any("low sensitivity" in alarm for alarm in query.uns["sctool"]["alarms"])


def test_genes_that_the_query_lacks_have_no_weight(query, no_search):
    genes = alone().features_.selected[alone().variable_]
    lacking = genes[::4]
    few = query[:, ~query.var_names.isin(lacking)].copy()
    adapted = sctool.tl.annotate(few, alone(), adapt=True, return_model=True, train_kwargs=QUIET)
    weight = adapted.module.adapted.weight.abs().sum(dim=0)
    assert weight[::4].max() == 0
    assert weight[1::4].min() > 0
    truth = few.obs["truth"].astype(object)
    assert (few.obs["sctool"].astype(object) == truth)[truth != "DC"].mean() > 0.9


def test_the_seed_alone_decides(query, no_search):
    found = []
    for seed in (0, 0, 1):
        np.random.default_rng(seed).random()
        sctool.tl.annotate(query, alone(), adapt=True, random_state=seed, train_kwargs=QUIET)
        found.append(query.obsm["sctool_proba"].copy())
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_cells_without_expression_are_left_out(query, no_search):
    query.X = sp.csr_matrix(query.X.multiply((np.arange(240) > 2)[:, None]))
    sctool.tl.annotate(query, alone(), adapt=True, train_kwargs=QUIET)
    assert query.obs["sctool"].isna().tolist() == [True] * 3 + [False] * 237
    query.X = query.X * 0
    with pytest.raises(ValueError, match=r"only zeros|None of the 240 cells"):
        sctool.tl.annotate(query, alone(), adapt=True)


def test_of_a_large_query_some_cells_are_searched_and_all_are_named(query, no_search, monkeypatch):
    monkeypatch.setattr(_adapt, "sketch_regions", lambda x: np.arange(120))
    adapted = _adapt.adapt(alone(), query, progress=False)
    assert (adapted.by_group[:120] >= 0).all()
    assert (adapted.by_group[120:] == -1).all()
    sctool.tl.annotate(query, alone(), adapt=True, train_kwargs=QUIET)
    assert any("120 of 240 cells were grouped" in note for note in query.uns["sctool"]["audit"])
    truth, found = query.obs["truth"].astype(object)[120:], query.obs["sctool"].astype(object)[120:]
    assert (found == truth)[truth != "DC"].mean() > 0.9
    assert (found[truth == "DC"] == "novel_1").mean() > 0.6


def test_the_saved_model_has_a_say_in_the_novelty_score(query):
    kept = _adapt._read(alone(), query, None)[1]
    saved = alone().novel_score(query)[kept]
    assert _adapt._with_saved(saved, saved) == pytest.approx(saved.clip(0.02, 0.98))
    # where the search tells nothing the order is that of the saved score
    score = _adapt._with_saved(np.full(len(saved), 0.5), saved)
    order = np.argsort(saved)
    assert (np.diff(score[order]) >= 0).all()
    assert score.max() > 2 * score.min()
    # two equal voices
    assert _adapt._with_saved(1 - saved, saved) == pytest.approx(0.5)


def test_without_a_search_no_cell_is_flagged(query):
    sctool.tl.annotate(query, alone(), adapt=True, novel=0, train_kwargs=QUIET)
    assert "sctool_novel" not in query.obs
    assert set(query.obs["sctool"].cat.categories) == set(KNOWN)


def test_cells_of_rare_types_are_not_novel_if_the_saved_model_knows_them():
    names = np.array([0, 3, 3, 3, 4, 4, 3])  # of three known types, and two novel ones
    proba = np.array([0.1, 0.9, 0.8, 0.9, 0.9, 0.7, 0.6])
    found = novelty.QueryNovelty(proba, names, interval={"n": 2, "low": 2, "high": 4})
    saved = np.full((7, 3), 0.1)
    saved[np.arange(7), [1, 1, 1, 0, 0, 2, 2]] = [0.9, 0.6, 0.4, 0.9, 0.9, 0.9, 0.6]
    kept = _adapt._with_rare_types(found, saved, np.array([100, 19, 20]))
    assert kept.names.tolist() == [0, 1, 3, 3, 4, 4, 3]
    np.testing.assert_allclose(kept.proba, [0.1, 0.1, 0.8, 0.9, 0.9, 0.7, 0.6])
    assert kept.audit == [
        "novel: 1 cells keep the name that the saved model gives them, of types with fewer than 20 "
        "labelled cells"
    ]
    assert kept.interval == {"n": 2, "low": 2, "high": 4}
    # a novel type of which nothing is left leaves no gap
    kept = _adapt._with_rare_types(found, saved[[0, 1, 1, 1, 0, 0, 1]], np.array([100, 19, 20]))
    assert kept.names.tolist() == [0, 1, 1, 1, 1, 1, 1]
    kept = _adapt._with_rare_types(found, saved[[3, 1, 1, 1, 3, 3, 1]], np.array([100, 19, 20]))
    assert kept.names.tolist() == [0, 1, 1, 1, 3, 3, 1]
    assert kept.interval == {"n": 1, "low": 1, "high": 4}
    assert _adapt._with_rare_types(found, saved, np.array([100, 20, 20])) is found
    none = novelty.QueryNovelty(None, names)
    assert _adapt._with_rare_types(none, saved, np.array([1, 1, 1])) is none


# -- what cannot adapt ---------------------------------------------------------------------------


def test_a_model_of_an_earlier_version_is_loaded_and_refuses(query, tmp_path):
    alone().save(tmp_path / "model")
    weights = tmp_path / "model" / "weights.pt"
    tensors = torch.load(weights, weights_only=True)
    torch.save({k: v for k, v in tensors.items() if not k.startswith("profiles.")}, weights)
    text = (tmp_path / "model" / "model.json").read_text()
    text = text.replace('"weights_sha256"', '"weights_sha256_of_others"')
    (tmp_path / "model" / "model.json").write_text(text)
    sctool.tl.annotate(query, tmp_path / "model")
    with pytest.raises(ValueError, match="no profiles of its types.*train the model again"):
        sctool.tl.annotate(query, tmp_path / "model", adapt=True)


def test_references_and_other_models_are_refused(sides):
    adata, ref = sides
    with pytest.raises(ValueError, match="ref is a reference"):
        sctool.tl.annotate(adata, ref, adapt=True)
    model = sctool.tl.annotate(adata, ref, method="logistic", return_model=True)
    with pytest.raises(ValueError, match="LogisticClassifier cannot adapt"):
        sctool.tl.annotate(adata, model, adapt=True)


def test_profiles_are_a_small_part_of_the_file(tmp_path):
    alone().save(tmp_path / "model")
    tensors = torch.load(tmp_path / "model" / "weights.pt", weights_only=True)
    kept = [v for k, v in tensors.items() if k.startswith("profiles.")]
    assert len(kept) == len(fields(Profiles)) == 5
    assert 0 < sum(v.numel() * v.element_size() for v in kept) < 3_000
