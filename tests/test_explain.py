"""The genes behind a decision: planted markers, completeness, slots, errors and plots."""

import builtins
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from matplotlib import pyplot as plt
from synthetic import (
    FAST,
    GENES,
    MARKERS,
    N_MARKERS,
    TYPES,
    simulate,
    simulate_joint,
    simulate_sides,
)

import sctool
from sctool.model import METHODS

EXPLAINERS = ["guided", "integrated_gradients", "expected_gradients"]

#: Of models of which each epoch takes longer.
TRAINING = {
    "scdet": {"max_epochs": 12, "batch_size": 16},
    "scdae": {"max_epochs": 12, "batch_size": 16},
}


@pytest.fixture(scope="module")
def models():
    """Return a trained model of each method."""
    trained = {}
    for name, cls in METHODS.items():
        joint = simulate_joint()
        cls.setup_anndata(joint, "cell_type", "Unknown")
        torch.manual_seed(0)
        trained[name] = cls(joint)
        trained[name].train(**(FAST | TRAINING.get(name, {"max_epochs": 15, "batch_size": 32})))
        trained[name]._release()
    return trained


@pytest.fixture
def query():
    """Return cells to explain."""
    return simulate_sides()[0]


def logits(model, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.module.cpu()(torch.from_numpy(np.asarray(x, dtype=np.float32)))[0].numpy()


@pytest.mark.parametrize("explainer", EXPLAINERS)
@pytest.mark.parametrize("method", list(METHODS))
def test_the_planted_markers_rank_on_top(method, explainer, models, query):
    sctool.tl.explain(query, models[method], method=explainer)
    result = query.uns["sctool_explain"]
    assert list(result["names"]) == TYPES
    for name, genes in zip(TYPES, result["genes"], strict=True):
        top = set(genes[:N_MARKERS])
        assert len(top & set(MARKERS[name])) >= N_MARKERS - 3, name
        assert genes[0] in MARKERS[name]


@pytest.mark.parametrize("method", list(METHODS))
def test_integrated_gradients_add_up_to_the_change_of_the_logit(method, models, query):
    model = models[method]
    cells = [query.obs_names[i] for i in (0, 5, 11)]
    sctool.tl.explain(query, model, method="integrated_gradients", cells=cells)
    x = model._inputs(query)[0][[0, 5, 11]]["x"].numpy()
    target = [model.classes_.index(name) for name in model.predict(query)[[0, 5, 11]]]
    start = logits(model, model.features_.mean[None])[0]
    change = logits(model, x)[range(3), target] - start[target]
    total = np.nansum(query.varm["sctool_explain"], axis=0)
    np.testing.assert_allclose(total, change, rtol=0.03, atol=0.03)


def test_expected_gradients_add_up_to_the_change_from_the_mean_cell(models, query):
    # of a linear model the expectation over starting points is the mean cell, whatever is drawn
    model = models["logistic"]
    sctool.tl.explain(query, model, cells=list(query.obs_names[:3]), n_cells=80)
    x = model._inputs(query)[0][np.arange(query.n_obs)]["x"].numpy()
    target = [model.classes_.index(name) for name in model.predict(query)[:3]]
    weight = model.module.head.weight.detach().numpy()
    change = ((x[:3] - x.mean(axis=0)) * weight[target]).sum(axis=1)
    total = np.nansum(query.varm["sctool_explain"], axis=0)
    np.testing.assert_allclose(total, change, rtol=0.35)


def test_the_gradient_of_a_linear_model_is_its_weights(models, query):
    model = models["logistic"]
    sctool.tl.explain(query, model, method="guided")
    weight = model.module.head.weight.detach().numpy()
    expected = pd.DataFrame(weight.T, index=model.features_.selected).reindex(query.var_names)
    np.testing.assert_allclose(query.varm["sctool_explain"], expected.to_numpy(), rtol=1e-5)


def test_guided_backpropagation_passes_back_what_excites(models, query):
    # against a transcription: at each ReLU negative gradients are dropped on the way back
    model = models["scnym"]
    sctool.tl.explain(query, model, method="guided", cells=[query.obs_names[0]])
    x = model._inputs(query)[0][[0]]["x"]
    target = model.classes_.index(model.predict(query)[0])
    module = model.module.cpu().eval()
    states, z = [], x
    for layer in module.encoder:
        if isinstance(layer, torch.nn.ReLU):
            states.append(z > 0)
        z = layer(z)
    gradient = module.head.weight[target][None].detach()
    for layer in reversed(list(module.encoder)):
        if isinstance(layer, torch.nn.ReLU):
            gradient = gradient.clamp(min=0) * states.pop()
        elif isinstance(layer, torch.nn.BatchNorm1d):
            gradient = gradient * (layer.weight / torch.sqrt(layer.running_var + layer.eps))
        elif isinstance(layer, torch.nn.Linear):
            gradient = gradient @ layer.weight
    expected = pd.Series(gradient[0].detach().numpy(), index=model.features_.selected)
    expected = expected.reindex(query.var_names).to_numpy()
    np.testing.assert_allclose(query.varm["sctool_explain"][:, 0], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("explainer", EXPLAINERS)
def test_the_model_is_left_as_it_was(explainer, models, query):
    model = models["scnym"]
    state = {k: v.clone() for k, v in model.module.state_dict().items()}
    before = model.predict(query, soft=True)
    random = torch.get_rng_state()
    sctool.tl.explain(query, model, method=explainer)
    pd.testing.assert_frame_equal(model.predict(query, soft=True), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in model.module.state_dict().items())
    assert all(p.grad is None for p in model.module.parameters())
    assert all(not m._backward_hooks and not m._forward_hooks for m in model.module.modules())


# -- slots ---------------------------------------------------------------------------------------


def test_the_slots_are_those_documented(models, query):
    assert sctool.tl.explain(query, models["scnym"], key_added="why", n_genes=7) is None
    assert set(query.varm) == {"why"}
    assert set(query.uns) == {"why"}
    assert list(query.obs) == ["truth"]
    assert query.varm["why"].shape == (300, 4)
    assert query.varm["why"].dtype == np.float32
    result = query.uns["why"]
    assert set(result) == {"names", "types", "genes", "scores", "differences", "params"}
    assert result["genes"].shape == result["scores"].shape == result["differences"].shape == (4, 7)
    assert result["params"]["method"] == "expected_gradients"
    table = pd.DataFrame(query.varm["why"], index=query.var_names, columns=TYPES)
    for name, genes, scores in zip(TYPES, result["genes"], result["scores"], strict=True):
        assert (np.diff(scores) <= 0).all()
        np.testing.assert_allclose(table.loc[list(genes), name], scores, rtol=1e-5)
        np.testing.assert_allclose(np.sort(table[name])[::-1][:7], scores, rtol=1e-5)


def test_types_may_be_chosen(models, query):
    sctool.tl.explain(query, models["logistic"], types=["Mono", "CD4 T/NK"])
    assert list(query.uns["sctool_explain"]["names"]) == ["Mono", "CD4 T/NK"]
    assert query.uns["sctool_explain"]["genes"][1, 0] in MARKERS["CD4 T/NK"]


def test_a_types_genes_are_the_mean_over_its_cells(models, query):
    model = models["logistic"]
    members = query.obs_names[model.predict(query) == "DC"]
    kwargs = {"method": "integrated_gradients"}
    sctool.tl.explain(query, model, types=["DC"], key_added="type", **kwargs)
    sctool.tl.explain(query, model, cells=list(members), key_added="cells", **kwargs)
    np.testing.assert_allclose(
        query.varm["type"][:, 0], query.varm["cells"].mean(axis=1), rtol=1e-3, atol=1e-6
    )
    assert list(query.uns["cells"]["names"]) == list(members)


def test_the_number_of_cells_bounds_the_mean(models, query):
    model = models["logistic"]
    for n in (1, 3):
        kwargs = {"method": "integrated_gradients", "n_cells": n, "key_added": f"of{n}"}
        sctool.tl.explain(query, model, types=["B"], **kwargs)
    assert not np.allclose(query.varm["of1"], query.varm["of3"])


def test_the_same_seed_gives_the_same_result(models, query):
    results = []
    for seed in (0, 0, 1):
        sctool.tl.explain(query, models["scnym"], n_cells=10, random_state=seed)
        results.append(query.varm["sctool_explain"])
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_genes_that_the_model_does_not_see_have_no_value(models, query):
    x = sp.hstack([query.X, sp.csr_matrix(np.ones((80, 2), dtype=np.float32))], format="csr")
    var = pd.DataFrame(index=pd.Index([*query.var_names, "new1", "new2"]))
    more = ad.AnnData(x, obs=query.obs, var=var)[:, ::-1].copy()
    sctool.tl.explain(more, models["logistic"], method="guided")
    sctool.tl.explain(query, models["logistic"], method="guided")
    assert np.isnan(more.varm["sctool_explain"][:2]).all()
    np.testing.assert_allclose(
        more.varm["sctool_explain"][2:][::-1], query.varm["sctool_explain"], rtol=1e-4
    )


def test_the_copy_has_the_slots(models, query):
    result = sctool.tl.explain(query, models["logistic"], copy=True)
    assert not query.uns
    assert not query.varm
    assert "sctool_explain" in result.uns


def test_an_explanation_survives_a_file(models, query, tmp_path):
    sctool.tl.explain(query, models["logistic"])
    query.write_h5ad(tmp_path / "x.h5ad")
    read = ad.read_h5ad(tmp_path / "x.h5ad")
    np.testing.assert_array_equal(read.varm["sctool_explain"], query.varm["sctool_explain"])
    for name in ("names", "genes", "scores", "differences"):
        expected = query.uns["sctool_explain"][name]
        assert np.asarray(read.uns["sctool_explain"][name]).tolist() == expected.tolist()
    assert isinstance(sctool.pl.explain(read), plt.Axes)


# -- presence and absence ------------------------------------------------------------------------


def test_of_a_linear_model_the_score_is_the_weighted_difference(models, query):
    model = models["logistic"]
    sctool.tl.explain(query, model, method="integrated_gradients", n_genes=300)
    result = query.uns["sctool_explain"]
    weight = model.module.head.weight.detach().numpy()
    columns = model.features_.selected.get_indexer(result["genes"].ravel())
    expected = weight[np.arange(4)[:, None], columns.reshape(4, -1)] * result["differences"]
    np.testing.assert_allclose(result["scores"], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("explainer", EXPLAINERS)
def test_the_difference_is_that_from_the_baseline(explainer, models, query):
    model = models["scnym"]
    sctool.tl.explain(query, model, method=explainer, key_added="why")
    x = model._inputs(query)[0][np.arange(query.n_obs)]["x"].numpy()
    baseline = model.features_.mean if explainer == "integrated_gradients" else x.mean(axis=0)
    predicted = model.predict(query)
    for i, name in enumerate(TYPES):
        change = pd.Series(x[predicted == name].mean(axis=0) - baseline, model.features_.selected)
        expected = change[query.uns["why"]["genes"][i]]
        np.testing.assert_allclose(query.uns["why"]["differences"][i], expected, atol=1e-4)


def test_a_gene_that_a_type_lacks_is_marked_as_absent(query):
    # "B" has no marker that the others lack: only what it does not express tells it from them
    joint = simulate_joint()
    own = joint.var_names.isin(MARKERS["B"])
    joint.X = joint.X.multiply(~own).tocsr()
    model = METHODS["logistic"]
    model.setup_anndata(joint, "cell_type", "Unknown")
    model = model(joint)
    model.train(enable_progress_bar=False)
    query.X = query.X.multiply(~own).tocsr()
    for explainer in ("integrated_gradients", "expected_gradients"):
        sctool.tl.explain(query, model, method=explainer)
        b, *others = query.uns["sctool_explain"]["differences"]
        assert (b[:5] < 0).all()
        assert all((other[:4] > 0).all() for other in others)
    labels = texts(sctool.pl.explain(query, names="B", n_genes=2))
    assert labels == [f"{gene} ↓" for gene in query.uns["sctool_explain"]["genes"][0, :2]]


# -- why this type and not another one -----------------------------------------------------------


def margin(model, x: np.ndarray, name: str, rival: str) -> np.ndarray:
    """Difference of the logits of two types for log1p CP10k (n_cells, n_genes)."""
    y = logits(model, x)
    return y[:, model.names_.index(name)] - y[:, model.names_.index(rival)]


@pytest.mark.parametrize("method", list(METHODS))
def test_compared_with_a_type_the_attributions_add_up_to_the_margin(method, models, query):
    model, predicted = models[method], models[method].predict(query)
    cells = [query.obs_names[np.flatnonzero(predicted == name)[0]] for name in ("B", "Mono")]
    options = {"method": "integrated_gradients", "versus": "DC"}
    sctool.tl.explain(query, model, cells=cells, **options)
    assert list(query.uns["sctool_explain"]["types"]) == ["B", "Mono"]
    assert list(query.uns["sctool_explain"]["rivals"]) == ["DC", "DC"]
    x = model._inputs(query)[0][query.obs_names.get_indexer(cells)]["x"].numpy()
    start = model.features_.mean[None]
    for i, name in enumerate(("B", "Mono")):
        change = margin(model, x[[i]], name, "DC") - margin(model, start, name, "DC")
        total = np.nansum(query.varm["sctool_explain"][:, i])
        np.testing.assert_allclose(total, change[0], rtol=0.03, atol=0.05)


@pytest.mark.parametrize("explainer", EXPLAINERS)
@pytest.mark.parametrize("method", ["logistic", "scnym", "auto"])
def test_the_markers_of_both_types_decide_between_them(method, explainer, models, query):
    # those of "B" by their presence; those of the rival have negative values, or count as absent
    sctool.tl.explain(query, models[method], method=explainer, types="B", versus="Mono")
    values = pd.Series(query.varm["sctool_explain"][:, 0], query.var_names)
    own, shared = values[MARKERS["B"]], values[GENES[len(TYPES) * N_MARKERS :]]
    rival = values[MARKERS["Mono"]] * (-1 if explainer == "guided" else 1)
    spread = np.abs(shared).mean()
    assert own.mean() > 3 * spread
    assert rival.mean() > spread
    result = query.uns["sctool_explain"]
    present = dict(zip(result["genes"][0], result["differences"][0] > 0, strict=True))
    assert all(present[gene] for gene in MARKERS["B"] if gene in present)
    if explainer != "guided":
        listed = [gene for gene in MARKERS["Mono"] if gene in present]
        assert len(listed) >= 5
        assert not any(present[gene] for gene in listed)


def test_the_gradient_of_the_difference_is_that_of_the_weights(models, query):
    model = models["logistic"]
    sctool.tl.explain(query, model, method="guided", types=["DC", "B"], versus="Mono")
    weight = model.module.head.weight.detach().numpy()
    expected = (weight[[TYPES.index("DC"), TYPES.index("B")]] - weight[TYPES.index("Mono")]).T
    expected = pd.DataFrame(expected, index=model.features_.selected).reindex(query.var_names)
    np.testing.assert_allclose(query.varm["sctool_explain"], expected, rtol=1e-4, atol=1e-6)


def test_the_runner_up_is_that_of_the_cells_explained(models, query):
    model = models["scnym"]
    proba = model.predict(query, soft=True)
    best = proba.idxmax(axis=1)
    sctool.tl.explain(query, model, versus="runner-up")
    mean = proba.groupby(best).mean()
    expected = [mean.loc[name].drop(name).idxmax() for name in TYPES]
    assert list(query.uns["sctool_explain"]["rivals"]) == expected
    cells = list(query.obs_names[:9])
    sctool.tl.explain(query, model, cells=cells, versus="runner-up", n_genes=3)
    result = query.uns["sctool_explain"]
    assert list(result["types"]) == list(best[:9])
    assert list(result["rivals"]) == [proba.loc[c].drop(best[c]).idxmax() for c in cells]
    assert result["params"]["versus"] == "runner-up"


def test_groups_of_cells_are_explained_as_their_most_probable_type(models, query):
    model = models["logistic"]
    best = model.predict(query)
    query.obs["leiden"] = pd.Series(best, query.obs_names).map({"B": "0", "DC": "1", "Mono": "1"})
    where = {"method": "integrated_gradients", "versus": "CD4 T/NK"}
    query.obs.loc[query.obs_names[best == "Mono"][:-3], "leiden"] = "0.5"
    sctool.tl.explain(query, model, groupby="leiden", key_added="groups", **where)
    result = query.uns["groups"]
    assert list(result["names"]) == ["0", "0.5", "1"]
    assert list(result["types"]) == ["B", "Mono", "DC"]  # three cells of "1" are predicted as Mono
    sctool.tl.explain(query, model, types="B", key_added="type", **where)
    np.testing.assert_allclose(query.varm["groups"][:, 0], query.varm["type"][:, 0], rtol=1e-4)
    x = model._inputs(query)[0][np.flatnonzero(query.obs["leiden"] == "1")]["x"].numpy()
    change = margin(model, x, "DC", "CD4 T/NK").mean() - margin(
        model, model.features_.mean[None], "DC", "CD4 T/NK"
    )
    np.testing.assert_allclose(np.nansum(query.varm["groups"][:, 2]), change[0], rtol=0.01)
    labels = sctool.pl.explain(query, key="groups").get_yticklabels()
    assert [label.get_text() for label in labels] == ["0 (B)", "0.5 (Mono)", "1 (DC)"]


def test_all_other_types_are_compared_with_the_one_given(models, query):
    sctool.tl.explain(query, models["logistic"], versus="DC")
    assert list(query.uns["sctool_explain"]["names"]) == ["B", "CD4 T/NK", "Mono"]
    ax = sctool.pl.explain(query)
    assert ax.get_title(loc="left") == "and not DC"
    assert [t.get_text() for t in ax.get_yticklabels()] == ["B", "CD4 T/NK", "Mono"]


def test_the_plot_names_the_rivals(models, query):
    sctool.tl.explain(query, models["logistic"], versus="runner-up")
    query.uns["sctool_explain"]["rivals"] = np.array(["Mono", "B", "B", "DC"], dtype=object)
    ax = sctool.pl.explain(query)
    assert ax.get_title(loc="left") == "and not the runner-up"
    rows = [t.get_text() for t in ax.get_yticklabels()]
    assert rows == ["B, not Mono", "CD4 T/NK, not B", "DC, not B", "Mono, not DC"]
    assert sctool.pl.explain(query, names="B").get_title(loc="left") == "and not Mono"


def times_random(adata, model, rng: np.random.Generator) -> float:
    """How much more the margin falls without the 20 genes named than without 20 random ones.

    Genes are deleted by setting them to the mean cell. For each gene named, one of the 20 others
    whose mean expression is nearest is drawn; of ten such sets, the mean absolute effect counts.
    """
    sctool.tl.explain(adata, model, versus="runner-up", n_genes=20, n_cells=30)
    result, predicted = adata.uns["sctool_explain"], model.predict(adata)
    x = model._inputs(adata)[0][np.arange(adata.n_obs)]["x"].numpy()
    mean = x.mean(axis=0)
    falls = []
    for name, rival, named in zip(*(result[k] for k in ("names", "rivals", "genes")), strict=True):
        own = x[predicted == name][:30]
        top = model.features_.selected.get_indexer(named)
        others = np.setdiff1d(np.arange(len(mean)), top)
        near = [others[np.argsort(np.abs(mean[others] - mean[gene]))[:20]] for gene in top]
        sets = [top, *([rng.choice(some) for some in near] for _ in range(10))]
        fall = []
        for genes in sets:
            without = own.copy()
            without[:, genes] = mean[genes]
            change = margin(model, own, name, rival) - margin(model, without, name, rival)
            fall.append(change.mean())
        falls.append([fall[0], np.abs(fall[1:]).mean()])
    deleted, random = np.mean(falls, axis=0)
    return float(deleted / random)


@pytest.mark.parametrize("method", ["logistic", "scnym"])
def test_without_the_genes_named_the_margin_falls(method):
    adata, ref = sctool.datasets.blood()
    short = {"train_kwargs": {"enable_progress_bar": False}, "return_model": True}
    if method == "scnym":
        short["train_kwargs"]["max_epochs"] = 10
    model = sctool.tl.annotate(adata, ref, labels_key="cell_type", method=method, **short)
    assert times_random(adata, model, np.random.default_rng(0)) > 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["logistic", "scnym", "auto"])
def test_without_the_genes_named_the_margin_falls_in_pbmc3k(method, read_real):
    cells = read_real("pbmc3k_seurat")
    in_ref = np.random.default_rng(0).random(cells.n_obs) < 0.5
    adata, ref = cells[~in_ref].copy(), cells[in_ref].copy()
    model = sctool.tl.annotate(adata, ref, method=method, return_model=True)
    assert times_random(adata, model, np.random.default_rng(0)) > 3


# -- novel groups, and cells of which nothing can be said ----------------------------------------


@pytest.mark.parametrize(
    ("method", "settings"), [("sskm", {}), ("gate", {"episodes": 4})], ids=["sskm", "gate"]
)
def test_a_novel_group_is_explained_like_a_type(method, settings):
    adata, ref = simulate(400, seed=1), simulate(400, seed=0)
    ref = ref[ref.obs["cell_type"] != "DC"].copy()
    kwargs = {"method": method, "novel": 1, "model_kwargs": settings, "return_model": True}
    model = sctool.tl.annotate(adata, ref, **kwargs)
    sctool.tl.explain(adata, model, types="novel_1", key_added="group")
    assert list(adata.uns["group"]["names"]) == ["novel_1"]
    assert len(set(adata.uns["group"]["genes"][0, :6]) & set(MARKERS["DC"])) >= 4
    members = adata.obs_names[adata.obs["sctool"] == "novel_1"]
    sctool.tl.explain(adata, model, cells=members[:2], method="integrated_gradients")
    x = model._inputs(adata)[0][adata.obs_names.get_indexer(members[:2])]["x"].numpy()
    change = logits(model, x)[:, -1] - logits(model, model.features_.mean[None])[0, -1]
    total = np.nansum(adata.varm["sctool_explain"], axis=0)
    np.testing.assert_allclose(total, change, rtol=0.05, atol=0.05)
    sctool.tl.explain(adata, model)
    assert list(adata.uns["sctool_explain"]["names"]) == list(adata.obs["sctool"].cat.categories)

    group = adata.uns["group"]
    for name in ("NK", "B"):  # a type that is new, and one that is known
        renamed = sctool.tl.rename_novel(adata, {"novel_1": name}, copy=True)
        sctool.tl.explain(renamed, model, key_added="all")
        assert set(renamed.uns["all"]["names"]) == set(renamed.obs["sctool"])
        for named in (name, "novel_1"):
            sctool.tl.explain(renamed, model, types=named, key_added="group")
            assert list(renamed.uns["group"]["names"]) == [name]
            if name == "NK":
                assert list(renamed.uns["group"]["types"]) == [name]
                np.testing.assert_array_equal(renamed.uns["group"]["scores"], group["scores"])
        if name == "NK":
            sctool.tl.explain(renamed, model, types="B", versus=name, key_added="group")
            assert list(renamed.uns["group"]["rivals"]) == [name]


def test_cells_that_express_nothing_are_of_no_type(models, query):
    model = models["logistic"]
    sctool.tl.explain(query, model, types=["B"], key_added="before")
    empty = sp.csr_matrix((3, query.n_vars), dtype=np.float32)
    obs = pd.DataFrame(index=[*query.obs_names, "e1", "e2", "e3"])
    more = ad.AnnData(sp.vstack([query.X, empty], format="csr"), obs=obs, var=query.var)
    name = model.predict(more)[-1]  # what the intercept alone decides
    for adata, key in ((query, "without"), (more, "with")):
        sctool.tl.explain(adata, model, types=[name], method="integrated_gradients", key_added=key)
    np.testing.assert_allclose(more.varm["with"], query.varm["without"], rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"cells \['e2'\] express none of the model's genes"):
        sctool.tl.explain(more, model, cells=[query.obs_names[0], "e2"])


def test_a_model_whose_genes_no_cell_expresses_explains_nothing(models, query, monkeypatch):
    model = models["logistic"]
    nothing = replace(model.predict_cells(query), unseen=np.ones(query.n_obs, dtype=bool))
    monkeypatch.setattr(model, "_predict", lambda *args: nothing)
    with pytest.raises(ValueError, match="No cell of adata expresses a gene of the model"):
        sctool.tl.explain(query, model)


def test_the_cells_are_read_once(models, query, monkeypatch):
    model, reads = models["logistic"], []
    read = model._read
    monkeypatch.setattr(model, "_read", lambda *args: reads.append(1) or read(*args))
    sctool.tl.explain(query, model)
    assert len(reads) == 1


# -- what is passed ------------------------------------------------------------------------------


def test_a_saved_model_is_loaded(models, query, tmp_path):
    models["logistic"].save(tmp_path / "model")
    sctool.tl.explain(query, models["logistic"], key_added="given")
    for i, path in enumerate((tmp_path / "model", str(tmp_path / "model"))):
        sctool.tl.explain(query, path, key_added=f"read{i}")
        np.testing.assert_array_equal(query.varm[f"read{i}"], query.varm["given"])
    with pytest.raises(FileNotFoundError, match="No saved sctool model"):
        sctool.tl.explain(query, tmp_path / "nothing")


def test_a_single_name_needs_no_list(models, query):
    model, cell = models["logistic"], query.obs_names[3]
    for given in (cell, [cell], np.array([cell]), query.obs_names[[3, 3]]):
        sctool.tl.explain(query, model, cells=given)
        assert list(query.uns["sctool_explain"]["names"]) == [cell]
    for given in ("CD4 T/NK", np.array(["CD4 T/NK"]), pd.Index(["CD4 T/NK"])):
        sctool.tl.explain(query, model, types=given)
        assert list(query.uns["sctool_explain"]["names"]) == ["CD4 T/NK"]
    assert len(texts(sctool.pl.explain(query, names="CD4 T/NK"))) == 8


# -- errors --------------------------------------------------------------------------------------


def test_an_unknown_method_lists_the_known_ones(models, query):
    with pytest.raises(ValueError, match=r"method='lime' is unknown; known methods: .*'guided'"):
        sctool.tl.explain(query, models["logistic"], method="lime")


def test_an_absent_type_is_named(models, query):
    with pytest.raises(ValueError, match=r"types \['T'\] are predicted for no cell; found \['B'"):
        sctool.tl.explain(query, models["logistic"], types=["T", "B"])


def test_an_absent_cell_is_named(models, query):
    with pytest.raises(KeyError, match=r"cells \['nobody'\] are not in adata.obs_names"):
        sctool.tl.explain(query, models["logistic"], cells=[query.obs_names[0], "nobody"])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cells": []}, ValueError, r"cells=\[\]: pass at least one name"),
        ({"types": []}, ValueError, r"types=\[\]: pass at least one name"),
        ({"types": "B", "cells": "x"}, ValueError, "types and cells were given: pass one"),
        ({"types": "B", "groupby": "x"}, ValueError, "types and groupby were given: pass one"),
        ({"groupby": "leiden"}, KeyError, r"groupby='leiden' is not in the query's obs"),
        ({"versus": "T"}, ValueError, r"versus='T' is no type .* 'runner-up' or one of \['B'"),
        ({"versus": "B", "types": "B"}, ValueError, r"versus='B' is what \['B'\] are predicted"),
        ({"n_genes": 0}, ValueError, "n_genes=0, n_cells=200: both must be at least 1"),
        ({"n_cells": 0}, ValueError, "n_genes=50, n_cells=0: both must be at least 1"),
        ({"n_genes": "5"}, TypeError, "n_genes='5': pass a whole number"),
        ({"n_cells": 2.5}, TypeError, "n_cells=2.5: pass a whole number"),
        ({"types": 5}, TypeError, "types=5: pass a name, or a list of names"),
        ({"cells": 5}, TypeError, "cells=5: pass a name, or a list of names"),
        ({"adata": 3}, TypeError, "adata must be an AnnData, not int"),
        ({"model": 3}, TypeError, "model must be a model that annotates cells, .* not int"),
        ({"model": ad.AnnData()}, TypeError, "model must be .* not AnnData"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_explained_is_refused(changes, error, message, models, query):
    with pytest.raises(error, match=message):
        sctool.tl.explain(**({"adata": query, "model": models["logistic"]} | changes))


def test_a_name_that_two_cells_have_is_refused(models, query):
    query.obs_names = [*query.obs_names[:-1], query.obs_names[0]]
    with pytest.raises(ValueError, match="not unique.*obs_names_make_unique"):
        sctool.tl.explain(query, models["logistic"], cells=[query.obs_names[1]])
    sctool.tl.explain(query, models["logistic"], types=["B"])


def test_without_captum_the_error_names_the_extra(models, query, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == "captum":
            raise ImportError("No module named 'captum'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "sctool-annotate\[explain\]"'):
        sctool.tl.explain(query, models["logistic"])


def test_captum_does_not_warn(models, query, recwarn):
    sctool.tl.explain(query, models["scnym"], method="guided")
    assert [str(w.message) for w in recwarn] == []


# -- plots ---------------------------------------------------------------------------------------


def texts(ax: plt.Axes) -> list[str]:
    return [t.get_text() for t in ax.texts]


def test_the_plot_lists_the_genes_by_rank(models, query):
    sctool.tl.explain(query, models["logistic"])
    ax = sctool.pl.explain(query, names=["DC", "B"], n_genes=3)
    genes = query.uns["sctool_explain"]["genes"]
    assert [text.removesuffix(" ↓") for text in texts(ax)] == [*genes[2, :3], *genes[0, :3]]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["DC", "B"]
    ax.figure.canvas.draw()


@pytest.mark.parametrize("explainer", EXPLAINERS)
def test_the_plot_says_what_the_numbers_are(explainer, models, query):
    sctool.tl.explain(query, models["logistic"], method=explainer)
    ax = sctool.pl.explain(query)
    unit = "logits per unit of log1p CP10k" if explainer == "guided" else "logits"
    assert ax.get_title(loc="right") == f"highest score ({unit})"
    printed = [label.get_text() for label in ax.child_axes[0].get_yticklabels()]
    assert printed == [f"{score:.2g}" for score in query.uns["sctool_explain"]["scores"][:, 0]]
    where = "the reference" if explainer == "integrated_gradients" else "other cells"
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    assert said == [f"more expressed than in {where}", f"↓ less expressed than in {where}"]
    less = query.uns["sctool_explain"]["differences"][:, :8] < 0
    assert [text.endswith(" ↓") for text in texts(ax)] == less.ravel().tolist()
    shades = np.asarray(ax.images[0].get_array())
    assert (shades[less][:, 0] > shades[less][:, 2]).all()  # orange
    assert (shades[~less][:, 0] <= shades[~less][:, 2] + 0.01).all()  # blue


def test_the_plot_refuses_what_is_no_explanation(models, query):
    sctool.tl.annotate(query, models["logistic"])
    for key in ("sctool", "other"):
        with pytest.raises(KeyError, match="is not an explanation: call sctool.tl.explain first"):
            sctool.pl.explain(query, key=key)


def test_the_plot_names_what_was_not_explained(models, query):
    sctool.tl.explain(query, models["logistic"], types=["B"])
    with pytest.raises(KeyError, match=r"'DC'.* were not explained; found .'B'"):
        sctool.pl.explain(query, names=["DC"])


def test_reliability_shows_accuracy_against_score(models, query):
    sctool.tl.annotate(query, models["logistic"])
    ax = sctool.pl.reliability(query, "truth", n_bins=5)
    right = (query.obs["sctool"].astype(str) == query.obs["truth"].astype(str)).to_numpy()
    score = query.obs["sctool_score"].to_numpy(dtype=float)
    bins = np.minimum((score * 5).astype(int), 4)
    points = ax.collections[0].get_offsets()
    expected = [
        (score[bins == b].mean(), right[bins == b].mean()) for b in range(5) if (bins == b).any()
    ]
    np.testing.assert_allclose(np.asarray(points), expected, rtol=1e-5)
    error = sum(
        abs(score[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean()
        for b in range(5)
        if (bins == b).any()
    )
    assert ax.get_title() == f"expected calibration error {error:.3f}"
    ax.figure.canvas.draw()


def test_reliability_leaves_out_cells_without_a_truth(models, query):
    sctool.tl.annotate(query, models["logistic"])
    whole = sctool.pl.reliability(query[:40].copy(), "truth").get_title()
    query.obs["truth"] = query.obs["truth"].where(np.arange(80) < 40)
    plt.figure()
    assert sctool.pl.reliability(query, "truth").get_title() == whole


def test_reliability_of_names_that_differ_is_refused(models, query):
    sctool.tl.annotate(query, models["logistic"])
    query.obs["other"] = query.obs["truth"].astype(str).str.lower() + "s"
    with pytest.raises(ValueError, match=r"obs\['other'\] has none of the types of 'sctool'"):
        sctool.pl.reliability(query, "other")
    query.obs["other"] = np.nan
    with pytest.raises(ValueError, match=r"obs\['other'\] has only missing values"):
        sctool.pl.reliability(query, "other")
    # types of the reference that no cell was given are the same names all the same
    query.obs["other"] = "B"
    query.obs["sctool"] = "Mono"
    assert sctool.pl.reliability(query, "other").get_title().startswith("expected calibration")


def test_reliability_counts_cells_without_a_name_as_wrong(models, query):
    sctool.tl.annotate(query, models["logistic"])
    query.obs.loc[query.obs_names[:20], "sctool"] = np.nan
    query.obs["truth"] = query.obs["truth"].astype(str)
    query.obs.loc[query.obs_names[:20], "truth"] = "unassigned"
    points = sctool.pl.reliability(query, "truth", n_bins=1).collections[0].get_offsets()
    right = query.obs["sctool"].astype(str) == query.obs["truth"]
    assert np.asarray(points)[0, 1] == pytest.approx(right.mean())
