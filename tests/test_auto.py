"""The default method: how its voters are weighed and calibrated, and what its search decides.

Training is quick where the search for novel types is replaced by its planted result, and quicker
still without the networks.
"""

import copy
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.metrics import roc_auc_score
from synthetic import TYPES, simulate

import sctool
from sctool import _data, novelty
from sctool._batches import Cells
from sctool._train import seeded
from sctool.model import AutoClassifier, AutoSettings, _auto, load
from sctool.model._auto import AutoModule
from sctool.novelty import QueryNovelty

KNOWN = ["B", "CD4 T/NK", "Mono"]
#: Networks over in a moment, or none.
SMALL = {"n_top_genes": 100, "n_hidden": 16, "max_epochs": 4, "batch_size": 64}
LINEAR = {"n_top_genes": 100, "adversary": False, "mixmatch": False}


def hidden(n: int = 240) -> tuple[ad.AnnData, ad.AnnData]:
    """Return a query of four types, shifted, and a reference of 180 cells that lacks "DC"."""
    adata, ref = simulate(n, seed=1, shift=0.3), simulate(240, seed=0)
    adata.obs = adata.obs.rename(columns={"cell_type": "truth"})
    return adata, ref[ref.obs["cell_type"] != "DC"].copy()


def planted(*args: Any) -> QueryNovelty:
    """What a search that does not err says of the query of ``hidden``."""
    truth = np.arange(args[2].shape[0]) % len(TYPES)
    names = np.array([0, 1, 3, 2])[truth]
    novel = names == len(KNOWN)
    found = {"n": 1, "low": 1, "high": 2}
    proba = np.where(novel, 0.9, 0.1)
    return QueryNovelty(proba, names, 0.0, found, {0: 0.9, 2: 0.4}, ["planted"])


def fit(adata: ad.AnnData, ref: ad.AnnData, **settings: Any) -> AutoClassifier:
    data = _data.join(adata, ref, labels_key="cell_type")
    with seeded(0):
        model = AutoClassifier(data, **settings)
        model.train(enable_progress_bar=False)
    return model


@cache
def trained() -> AutoClassifier:
    """A model with all its voters; no test may change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(novelty, "search", planted)
        return fit(*hidden(), **SMALL)


def inputs(n: int = 12) -> torch.Tensor:
    return trained()._training_cells()[np.arange(300, 300 + n)]["x"]


# -- the vote ------------------------------------------------------------------------------------


def test_the_vote_cell_by_cell():
    module = copy.deepcopy(trained().module).eval().requires_grad_(False)
    module.temperature.fill_(2.0)
    module.weights.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    x, k = inputs(), len(KNOWN)
    log_proba, z = module(x)
    for i in range(len(x)):
        cell = x[i : i + 1]
        few = cell[:, trained().variable_]
        names = module.adapted(few)[0]
        heads = [module.linear(cell)[0], names[:k]]
        heads += [module.networks[part](few)[0][0] for part in ("adversary", "mixmatch")]
        odds = np.exp(torch.stack(heads).numpy())
        vote = np.array([0.1, 0.2, 0.3, 0.4]) @ (odds / odds.sum(axis=1, keepdims=True))
        flat = np.sqrt(vote) / np.sqrt(vote).sum()
        shares = np.exp(names.numpy()) / np.exp(names.numpy()).sum()
        expected = [*flat * shares[:k].sum(), *shares[k:]]
        np.testing.assert_allclose(log_proba[i].exp(), expected, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(z[i], module.networks["adversary"](few)[1][0], atol=1e-5)
    expected = torch.sigmoid(module.novelty(x[:, trained().variable_]))[:, 0]
    np.testing.assert_allclose(module.novelty_score(x[:, trained().variable_]), expected)


def test_probabilities_and_weights_sum_to_one():
    model = trained()
    proba = model.predict_cells().proba
    assert proba.shape == (420, len(KNOWN) + 1)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-5)
    assert float(model.module.weights.sum()) == pytest.approx(1)
    assert float(model.module.temperature) >= 1


@pytest.mark.parametrize(
    ("parts", "embedding"),
    [({"adversary"}, 16), ({"mixmatch"}, 16), (set(), 5)],
    ids=["adversary", "mixmatch", "neither"],
)
def test_networks_may_be_left_out(parts, embedding):
    used = {part: part in parts for part in ("adversary", "mixmatch")}
    module = AutoModule(20, np.arange(10), 4, 5, 2, AutoSettings(n_hidden=16, **used)).eval()
    assert set(module.networks) == parts
    assert module.weights.tolist() == pytest.approx([1 / (2 + len(parts))] * (2 + len(parts)))
    proba, z = module(torch.rand(3, 20))
    assert proba.exp().sum(dim=1).tolist() == pytest.approx([1] * 3, abs=1e-5)
    assert z.shape == (3, embedding)


def weigh(few: bool, mixed: float, *networks: np.ndarray) -> np.ndarray:
    """Weights of two linear models that are right of 100 cells of four types, and of networks."""
    sure = 0.05 + 0.8 * np.eye(4)
    truth = np.arange(100) % 4
    votes = torch.from_numpy(np.stack([sure[truth], sure[truth], *networks]))
    module = SimpleNamespace(weights=torch.zeros(len(votes)), linear=torch.nn.Linear(1, 4))
    module.eval = lambda: module
    module.votes = lambda linear, v: (votes[:, v[:, 0].long()], None, None)
    model = object.__new__(AutoClassifier)
    object.__setattr__(model, "module", module)
    model.variable_ = np.array([0])
    cells = Cells(sp.csr_matrix(np.arange(100.0)[:, None]), {})
    model._weigh(cells, np.arange(100), few, mixed)
    return module.weights.numpy()


def test_networks_that_agree_share_what_the_linear_models_leave():
    right = (0.04 + 0.84 * np.eye(4))[np.arange(100) % 4]
    np.testing.assert_allclose(weigh(True, 0, right, right), [0.25] * 4)
    np.testing.assert_allclose(
        weigh(False, 0, right, right), [1 / 6, 1 / 6, 1 / 3, 1 / 3], rtol=1e-6
    )
    np.testing.assert_allclose(weigh(False, 0, right), [1 / 6, 1 / 6, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(weigh(False, 0), [0.5, 0.5])


def test_a_network_that_collapses_has_less_weight():
    right = (0.04 + 0.84 * np.eye(4))[np.arange(100) % 4]
    collapsed = np.tile([0.7, 0.1, 0.1, 0.1], (100, 1))
    # it agrees with the others on the quarter of the cells that are of its one type
    expected = np.array([1 / 4, 1 / 4, 1 / 4, 1 / 4 / 16])
    found = weigh(True, 0, right, collapsed)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-5)
    assert weigh(True, 0, collapsed, right)[2] == pytest.approx(found[3])


def test_where_query_and_reference_mix_nothing_is_learnt_from_the_query():
    right = (0.04 + 0.84 * np.eye(4))[np.arange(100) % 4]
    for few in (True, False):
        np.testing.assert_allclose(weigh(few, 1, right, right), [0.6, 0, 0.2, 0.2], rtol=1e-6)
        half = (weigh(few, 1, right, right) + weigh(few, 0, right, right)) / 2
        np.testing.assert_allclose(weigh(few, 0.5, right, right), half, rtol=1e-6)
        np.testing.assert_allclose(weigh(few, 1), [1, 0])


@pytest.mark.parametrize("few", [500, 162])
def test_the_weights_follow_the_labelled_cells_and_what_was_found(few, monkeypatch):
    seen = []
    monkeypatch.setattr(_auto, "FEW_CELLS", few)
    monkeypatch.setattr(novelty, "search", lambda *args: replace(planted(*args), mixed=0.25))
    monkeypatch.setattr(AutoClassifier, "_weigh", lambda self, cells, i, *said: seen.append(said))
    fit(*hidden(20), **LINEAR)  # 162 of the 180 labelled cells are for training
    assert seen == [(few == 500, 0.25)]


def test_cells_for_calibration_are_held_out(monkeypatch):
    fitted = []

    def watched(x, y, C, *args):
        fitted.append((x, y, C))
        return regress(x, y, C, *args)

    regress = _auto.regress
    monkeypatch.setattr(_auto, "regress", watched)
    model = fit(*hidden(20), **LINEAR)
    cells = model._training_cells()
    kept = model.calibration_
    assert len(kept.codes) == 18
    np.testing.assert_array_equal(np.bincount(kept.codes), [6, 6, 6])
    np.testing.assert_allclose(kept.proba.sum(axis=1), 1, rtol=1e-6)
    # all genes; variable ones; all again, to vote, with the penalty that depends on the number of
    # cells; and variable ones with the query
    assert [len(y) for _, y, _ in fitted] == [162, 162, 162, 182]
    assert [C for *_, C in fitted] == [1.0, 1.0, None, 1.0]
    assert fitted[2][0].shape == fitted[0][0].shape
    everything = {row.tobytes(): i for i, row in enumerate(cells.x.toarray())}
    used = {everything[row.tobytes()] for row in fitted[0][0].toarray()}
    held_out = np.array(sorted(set(range(180)) - used))
    proba = model.predict_cells(indices=held_out).proba
    found = kept.proba[np.lexsort(kept.proba.T)]
    np.testing.assert_allclose(found, proba[np.lexsort(proba.T)], atol=1e-5)


@pytest.mark.parametrize(
    ("right", "wrong", "bounds"),
    [(0.999, 0.3, (1.2, 10)), (0.6, 0.0, (1, 1))],
    ids=["too-confident", "too-careful"],
)
def test_the_temperature_flattens_and_never_sharpens(right, wrong, bounds, monkeypatch):
    model = fit(*hidden(20), **LINEAR)
    training, held_out = model._training_cells(), np.arange(180)
    label = training.arrays["label"][held_out]
    given = np.where(held_out < wrong * 180, (label + 1) % 3, label)

    def says(cells):
        order = np.array([rows[row.tobytes()] for row in cells.x.toarray()])
        yield np.where(np.eye(3)[given[order]], right, (1 - right) / 2), None

    rows = {row.tobytes(): i for i, row in enumerate(training.x[:180].toarray())}
    monkeypatch.setattr(model, "_forward_cells", says)
    with seeded(0):
        model._calibrate(training, held_out)
    temperature = float(model.module.temperature)
    assert bounds[0] <= temperature <= bounds[1]
    named = model.calibration_.proba.max(axis=1)
    np.testing.assert_allclose(named, named[0])
    assert named[0] <= right + 1e-6
    assert (wrong == 0) == (named[0] == pytest.approx(right))


# -- novelty -------------------------------------------------------------------------------------


def test_the_networks_do_not_adapt_to_novel_cells(monkeypatch):
    seen = {}

    def recorded(model, cells, options, *, split, unlabelled, name):
        seen[name] = (split, unlabelled, model.module.settings, cells)
        model.history_ = {}

    monkeypatch.setattr(novelty, "search", planted)
    monkeypatch.setattr(_auto, "train_classifier", recorded)
    model = fit(*hidden(), **SMALL)
    assert set(seen) == {"adversary", "mixmatch"}
    for part, (split, unlabelled, settings, cells) in seen.items():
        assert (settings.adversary, settings.mixmatch) == (part == "adversary", part == "mixmatch")
        assert [len(side) for side in split] == [162, 18]
        np.testing.assert_array_equal(unlabelled, 180 + np.flatnonzero(np.arange(240) % 4 != 2))
        assert cells.x.shape[1] == 100
    assert model.names_ == [*KNOWN, "novel_1"]


def test_what_the_search_said_is_kept_and_learnt():
    model, query = trained(), np.arange(180, 420)
    prediction = model.predict_cells(indices=query)
    novel = np.arange(240) % 4 == 2
    assert roc_auc_score(novel, model._novel_score(prediction)) > 0.95
    assert (model._is_novel(prediction) == novel).mean() > 0.95
    names = np.array(model.names_)[prediction.proba.argmax(axis=1)]
    truth = np.array(TYPES)[np.arange(240) % 4]
    assert (names == np.where(novel, "novel_1", truth)).mean() > 0.9
    assert model.n_novel_ == {"n": 1, "low": 1, "high": 2}
    assert model.sensitivity_ == {"B": 0.9, "Mono": 0.4}
    assert "planted" in model.audit_
    assert {"adversary_loss_train", "mixmatch_loss_train"} <= set(model.history_)


def test_types_that_are_hidden_are_found_batch_by_batch():
    adata, ref = hidden(400)
    for side in (adata, ref):
        side.obs["donor"] = np.where(np.arange(side.n_obs) % 8 < 4, "d1", "d2")
    sctool.tl.annotate(adata, ref, batch_key="donor", novel=1, model_kwargs=LINEAR)
    audit = list(adata.uns["sctool"]["audit"])
    assert "novel: 2 batches judged separately" in audit
    novel, hid = adata.obs["sctool_novel"], adata.obs["truth"] == "DC"
    assert novel[hid].mean() > 0.9
    assert novel[~hid].mean() < 0.05
    assert roc_auc_score(hid, adata.obs["sctool_novel_score"]) > 0.95
    assert list(adata.uns["sctool"]["novel_classes"]) == ["novel_1"]
    assert "n_novel" not in adata.uns["sctool"]


def test_the_number_of_novel_types_may_be_given():
    adata, ref = hidden()
    assert AutoClassifier._settings_for_novel(2) == {"n_novel": 2}
    model = fit(adata, ref, n_novel=0, **LINEAR)
    prediction = model.predict_cells(indices=np.arange(180, 420))
    assert model.names_ == KNOWN
    assert model._is_novel(prediction) is None
    score = model._novel_score(prediction)
    np.testing.assert_allclose(score, 1 - prediction.proba.max(axis=1))
    sctool.tl.annotate(adata, ref, novel=2, model_kwargs=LINEAR)
    assert list(adata.uns["sctool"]["novel_classes"]) == ["novel_1", "novel_2"]
    assert {"novel_1", "novel_2"} <= set(adata.obs["sctool"])


def test_a_small_query_is_named_only_and_this_is_said():
    adata, ref = hidden(20)
    sctool.tl.annotate(adata, ref, model_kwargs=LINEAR)
    notes = " ".join(adata.uns["sctool"]["audit"])
    assert "not searched for: 20 cells are too few to cluster" in notes
    assert "sctool_novel" not in adata.obs
    assert set(adata.obs["sctool"]) <= set(KNOWN)
    known = adata.obs["truth"] != "DC"
    assert (adata.obs["sctool"].astype(str) == adata.obs["truth"].astype(str))[known].mean() > 0.8
    scores = adata.obs["sctool_score"] + adata.obs["sctool_novel_score"]
    np.testing.assert_allclose(scores, 1, rtol=1e-6)


# -- what is kept --------------------------------------------------------------------------------


def test_a_saved_model_keeps_calibration_hierarchy_and_genes(tmp_path):
    model, adata = trained(), hidden(40)[0]
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    np.testing.assert_array_equal(again.variable_, model.variable_)
    assert len(again.variable_) == 100
    for slot in ("calibration_", "hierarchy_"):
        for name, value in vars(getattr(model, slot)).items():
            np.testing.assert_array_equal(getattr(getattr(again, slot), name), value)
    assert {"unknown", *KNOWN} <= set(again.hierarchy_.names)
    assert again.searched_
    expected, found = model.predict_cells(adata), again.predict_cells(adata)
    np.testing.assert_allclose(found.proba, expected.proba, atol=1e-6)
    np.testing.assert_allclose(found.novelty, expected.novelty, atol=1e-6)
    np.testing.assert_array_equal(again.module.weights, model.module.weights)


def test_a_type_called_unknown_is_a_type_but_has_no_safe_names():
    adata, ref = hidden(20)
    ref.obs["cell_type"] = ref.obs["cell_type"].cat.rename_categories({"Mono": "unknown"})
    model = sctool.tl.annotate(adata, ref, risk=0.1, model_kwargs=LINEAR, return_model=True)
    assert model.hierarchy_ is None
    assert "unknown" in set(adata.obs["sctool"])
    assert set(adata.obs["sctool_safe"]) == {"unknown"}
    assert adata.obsm["sctool_set"].all()
    assert not (adata.obs["sctool_status"] == "assigned").any()
    alarms = " ".join(adata.uns["sctool"]["alarms"])
    assert "risk: no name is safe, because a type is called 'unknown'" in alarms
