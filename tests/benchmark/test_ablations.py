"""The papers' ablations: what each exchanges, and that the suites can run them."""

import inspect
import math
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from scdet_equations import assert_is_transcribed, make_batch, make_module, see
from synthetic import FAST as TRAIN
from synthetic import TYPES, simulate, simulate_joint, simulate_sides

from benchmark.cells import make_task
from sctool import novelty
from sctool._batches import Cells
from sctool._train import seeded
from sctool.model import CLUSTER_METHODS, METHODS, SCDET, ContrastiveClassifier
from sctool.model import _scdet as scdet
from sctool.novelty import Novelty
from sctool_benchmark import _run, _worker, load_suite, run
from sctool_benchmark._ablations import (
    ABLATIONS,
    ContrastiveAblation,
    ContrastiveAblationSettings,
    MeanOfThree,
    SCDETAblation,
    SCDETAblationModule,
    SCDETAblationPlan,
    SCDETAblationSettings,
    SCDETSearch,
    downsample_counts,
    named_with_certainty,
)
from sctool_benchmark._tasks import PROTOCOLS, known_methods

RNG = np.random.default_rng
FAST = TRAIN | {"batch_size": 40}
ORACLE = (0.05, 0.3, 0.3, 0.1, 0.2, 0.05)
PRIORS = ("estimated", "classifier", "balanced", "reference", "oracle")


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def with_oracle(prior: str) -> dict:
    return {"prior": prior, "distribution": ORACLE if prior == "oracle" else None}


# -- scDET: the objective ------------------------------------------------------------------------


def ablated_module(**settings) -> SCDETAblationModule:
    return make_module(SCDETAblationModule, SCDETAblationSettings, **settings)


@pytest.mark.parametrize("share", [0.1, 0.6])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"contrast": "hard"},
        {"contrast": "none"},
        {"prior": "reference"},
        {"initial_names": True, "contrast": "hard", "prior": "reference"},
    ],
    ids=["plain", "hard-contrast", "no-contrast", "reference-prior", "several"],
)
@pytest.mark.parametrize("n_unlabelled", [16, 0], ids=["both-sides", "labelled-alone"])
def test_the_objective_is_that_of_the_papers_equations(settings, n_unlabelled, share, monkeypatch):
    module, batch = ablated_module(**settings), make_batch(n_unlabelled)
    assert_is_transcribed(module, batch, share, monkeypatch)


def test_without_the_third_loss_there_is_a_gradient_all_the_same(monkeypatch):
    module, batch = ablated_module(contrast="none"), make_batch()
    see(module, batch, monkeypatch)
    total, terms = module.loss(batch, 0.5)
    assert terms["pseudo"].item() == 0
    total.backward()
    assert module.projector[0].weight.grad.abs().sum() > 0  # by the other two


def test_the_reference_as_prior_says_nothing_of_novel_types():
    # The share that the novel types have of the prediction is free; of the others' it is not.
    module = ablated_module(prior="reference")
    p = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.7, 0.2]]).double()
    values = []
    for novel in (0.1, 0.6):
        logits = torch.cat([p * (1 - novel), torch.full((2, 2), novel / 2)], dim=1).log()
        values.append(module._regularizer(logits * module.settings.tau, 2, 0.5).item())
    assert values[0] == pytest.approx(values[1])
    assert values[0] > 0.01


# -- scDET: where the distribution comes from ----------------------------------------------------


def unequal_joint() -> ad.AnnData:
    """120 labelled cells less most of the first type's, and 80 others."""
    joint = simulate_joint()
    return joint[(joint.obs["cell_type"] != "B") | (np.arange(200) < 20)].copy()


def make_model(cls: type[SCDET] = SCDETAblation, **settings) -> SCDET:
    """A model of the synthetic cells, not trained."""
    joint = unequal_joint()
    cls.setup_anndata(joint, "cell_type")
    return cls(joint, **({"n_novel": 2} | settings))


def make_plan(**settings) -> SCDETAblationPlan:
    """A plan whose module has two novel types, and that was not trained."""
    model = make_model(**settings)
    model._name_novel(2)
    model._build()
    model._set_inputs(model._cells.x)
    cells = Cells(model._cells.x, model._cells.arrays | {"name": model._cells.arrays["label"]})
    return SCDETAblationPlan(model.module, model.settings_, cells, mixed=True, rng=RNG(5))


def test_a_balanced_prior_is_the_same_for_all_types():
    np.testing.assert_allclose(make_plan(prior="balanced")._estimate(), 1 / 6)


def test_the_references_prior_is_that_of_the_labelled_cells():
    pi = make_plan(prior="reference")._estimate()
    np.testing.assert_allclose(pi[:4] / pi[:4].sum(), np.array([5, 30, 30, 30]) / 95)
    np.testing.assert_allclose(pi[4:], pi[:4].mean())  # for eqs. 7 and 8, which need some value


def test_an_oracle_is_taken_at_its_word_and_no_share_is_0():
    truth = (0.3, 0.3, 0.15, 0.15, 0.1, 0.0)
    pi = make_plan(prior="oracle", distribution=truth)._estimate()
    np.testing.assert_allclose(pi[:5], truth[:5], rtol=0.02)
    assert 0 < pi[5] < 0.01


@pytest.mark.parametrize("prior", ["estimated", "classifier"])
@pytest.mark.parametrize("slots", ["size", "prediction"])
def test_the_estimate_is_by_k_means_on_the_features_of_a_branch(prior, slots, monkeypatch):
    plan, given = make_plan(prior=prior, slots=slots), {}
    module, x = plan.module, torch.from_numpy(plan.cells.x.toarray())
    clusters = RNG(0).integers(6, size=len(x))

    def clustered(features, n, seed, n_init):
        given.update(features=features, n=n, seed=seed)
        return SimpleNamespace(labels_=clusters)

    monkeypatch.setattr(scdet, "k_means", clustered)
    monkeypatch.setattr(scdet, "distribution", lambda *args: given.update(args=args))
    plan._estimate()
    with torch.no_grad():
        z = module.encoder(module.inputs(x))
        features = (module.hidden if prior == "classifier" else module.projector)(z)
        features = features / features.norm(dim=1, keepdim=True)
        predicted = module(x)[0].argmax(dim=1).numpy()
    assert given["n"] == 6
    assert given["seed"] == RNG(5).integers(2**31)
    np.testing.assert_allclose(given["features"], features.numpy(), atol=1e-5)
    assert given["args"][0] is clusters
    np.testing.assert_array_equal(given["args"][1], plan.labels)
    if slots == "size":
        assert given["args"][2] is None
    else:
        np.testing.assert_array_equal(given["args"][2], predicted)
    assert given["args"][3:] == (4, 6)
    assert module.training


class Recorder(Callback):
    """Keeps the distribution that every epoch goes by."""

    def __init__(self):
        self.pi = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.pi.append(pl_module.module.pi.cpu().clone().numpy())


@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior_trains(prior):
    model, recorder = make_model(**with_oracle(prior)), Recorder()
    model.train(**FAST, callbacks=[recorder])
    assert np.isfinite(model.history["loss_train"].to_numpy(dtype=float)).all()
    assert len(recorder.pi) == FAST["max_epochs"]
    np.testing.assert_allclose(np.sum(recorder.pi, axis=1), 1, rtol=1e-5)
    # what is not learnt from the cells stays as it is, and what is, does not
    same = all(np.array_equal(pi, recorder.pi[0]) for pi in recorder.pi)
    assert same == (prior in ("balanced", "reference", "oracle"))
    if prior == "oracle":
        np.testing.assert_allclose(recorder.pi[0], ORACLE, rtol=0.01)
    known = unequal_joint().obs["cell_type"].astype(str).to_numpy()[:95]
    assert (model.predict()[:95] == known).mean() > 0.8


def told(names: list[int], n: int) -> Callable[..., Novelty]:
    """What looks for novel cells, when it always says the same."""
    codes = np.array(names)
    found = Novelty(True, np.zeros(len(codes)), codes, codes, n, n, n + 1, True, ["novel: told"])
    return lambda *args: found


@pytest.mark.parametrize("prior", ["balanced", "reference", "oracle"])
def test_a_prior_that_was_asked_for_holds_from_the_first_epoch_even_with_initial_names(
    prior, monkeypatch
):
    monkeypatch.setattr(novelty, "find", told([0, 1, 2, 3, 4, 4, 4, 5] * 10, 2))
    model, recorder = make_model(initial_names=True, **with_oracle(prior)), Recorder()
    model.train(**(FAST | {"max_epochs": 4}), callbacks=[recorder])
    np.testing.assert_allclose(recorder.pi[0], recorder.pi[3], rtol=1e-5)
    named = np.array([25, 50, 50, 50, 30, 10]) / 215
    assert not np.allclose(recorder.pi[0], named, rtol=0.05)


def test_with_nothing_exchanged_it_is_scdet_without_initial_names():
    results = []
    for cls, settings in (
        (SCDETAblation, {"slots": "size"}),
        (SCDET, {"initial_names": False}),
        (SCDETAblation, {"slots": "size", "contrast": "none"}),
    ):
        with seeded(3):
            model = make_model(cls, **settings)
            model.train(**FAST)
        results.append(model.predict(soft=True).to_numpy())
    assert results[0].shape == results[1].shape
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)
    assert not np.array_equal(results[2], results[1])


def test_scdets_settings_are_those_of_the_default_preset_but_for_the_initial_names():
    ours = asdict(SCDET.PRESETS["default"]) | {"initial_names": False}
    ablation = asdict(SCDETAblation.PRESETS["default"])
    assert {name: ablation[name] for name in ours} == ours
    assert list(SCDETAblation.PRESETS) == ["default", "published"]


# -- scDET: what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("prior", PRIORS),
        ("slots", ("prediction", "size")),
        ("contrast", ("soft", "hard", "none")),
        ("reconstruction", ("mse", "zinb")),
    ],
)
def test_a_wrong_choice_is_refused_and_the_known_ones_are_named(name, known):
    with pytest.raises(ValueError, match=rf"{name}='no' is unknown; known: ") as error:
        SCDETAblationSettings(**{name: "no"})
    assert all(repr(choice) in str(error.value) for choice in known)


@pytest.mark.parametrize(
    "settings",
    [{"prior": "oracle"}, {"distribution": ORACLE}, {"prior": "balanced", "distribution": ORACLE}],
    ids=["oracle-without", "distribution-without", "another-prior"],
)
def test_an_oracle_needs_a_distribution_and_no_other_prior_takes_one(settings):
    with pytest.raises(ValueError, match=r"distribution goes with prior='oracle'"):
        SCDETAblationSettings(**settings)


def test_an_oracle_of_another_number_of_types_is_refused():
    model = make_model(prior="oracle", distribution=(0.5,))
    with pytest.raises(ValueError, match=r"distribution=\(0.5,\) must have 6 shares"):
        model.train(**FAST)


# -- scDET: its search alone ---------------------------------------------------------------------

#: What the search says of the 80 cells of the query: of six types, two of them novel.
NAMES = np.array([0, 1, 2, 3, 4, 4, 5, 5] * 10)


def search_says(names: np.ndarray, n: int, monkeypatch, mixed: bool = True) -> np.ndarray:
    """Let the search find this; the probabilities of being novel that it gives."""
    evidence = np.where(names > 3, 0.85, 0.4) + RNG(0).uniform(-0.1, 0.1, len(names))
    found = Novelty(True, evidence, names, names, n, n, n + 1, mixed, ["novel: found"])
    monkeypatch.setattr(novelty, "find", lambda *args: found)
    return evidence


def searched(joint: ad.AnnData, **settings) -> SCDETSearch:
    SCDETSearch.setup_anndata(joint, "cell_type", "Unknown")
    model = SCDETSearch(joint, **settings)
    model.train(**FAST)
    return model


def test_the_search_alone_is_what_the_network_would_start_from(monkeypatch):
    evidence, query = search_says(NAMES, 2, monkeypatch), np.arange(120, 200)
    model = searched(simulate_joint())
    assert model.names_ == [*TYPES, "novel_1", "novel_2"]
    assert model.n_novel_ == {"n": 2, "low": 2, "high": 3}
    assert "novel: found" in model.audit_
    prediction = model.predict_cells(indices=query)
    proba = prediction.proba
    np.testing.assert_array_equal(proba.argmax(axis=1), NAMES)
    np.testing.assert_array_equal(model._is_novel(prediction), NAMES > 3)
    order = model._novel_score(prediction).argsort()
    np.testing.assert_array_equal(order, evidence.argsort())
    # labelled cells keep their labels
    every = model.predict_cells().proba
    np.testing.assert_array_equal(every[query], proba)
    np.testing.assert_array_equal(every[:120].argmax(axis=1), model._cells.arrays["label"][:120])


def test_the_search_alone_names_known_cells_by_scnym_under_a_batch_effect(monkeypatch):
    search_says(NAMES, 2, monkeypatch, mixed=False)
    known = np.flatnonzero(NAMES < 4)
    monkeypatch.setattr(
        SCDETSearch, "_scnym_predictions", lambda self, cells, some, options: 3 - NAMES[some - 120]
    )
    model = searched(simulate_joint())
    names = model.predict_cells(indices=np.arange(120, 200)).proba.argmax(axis=1)
    np.testing.assert_array_equal(names[known], 3 - NAMES[known])
    np.testing.assert_array_equal(names[NAMES > 3], NAMES[NAMES > 3])


def test_where_nothing_is_novel_the_search_still_ranks(monkeypatch):
    names = NAMES % 4
    evidence = search_says(names, 0, monkeypatch)
    model = searched(simulate_joint())
    prediction = model.predict_cells(indices=np.arange(120, 200))
    assert model.names_ == TYPES
    np.testing.assert_array_equal(prediction.proba.argmax(axis=1), names)
    np.testing.assert_array_equal(model._novel_score(prediction).argsort(), evidence.argsort())


def test_where_nothing_is_sought_the_search_is_a_regression(monkeypatch):
    monkeypatch.delattr(novelty, "find")
    joint = simulate_joint()
    model = searched(joint, n_novel=0)
    prediction = model.predict_cells(indices=np.arange(120, 200))
    x = model._cells.x
    expected = novelty.known_types(x[:120], model._cells.arrays["label"][:120], x[120:])
    np.testing.assert_array_equal(prediction.proba.argmax(axis=1), expected)
    assert model._is_novel(prediction) is None


def test_named_with_certainty_by_hand():
    name, evidence = np.array([0, 1, 2, 3]), np.array([0.0, 0.8, 0.2, 1.0])
    expected = [
        [1, 0, 0, 0],
        [0, 0.608, 0.196, 0.196],
        [0.196, 0.196, 0.608, 0],
        [0, 0, 0, 1],
    ]
    np.testing.assert_allclose(named_with_certainty(name, evidence, 2, 4), expected, atol=1e-6)
    closed = named_with_certainty(np.array([0, 2]), np.array([0.0, 1.0]), 3, 3)
    np.testing.assert_allclose(closed, [[1, 0, 0], [0.245, 0.245, 0.51]], atol=1e-6)


# -- MLS-CC: circles trained further, on thinned cells -------------------------------------------


def test_thinning_to_all_counts_changes_nothing():
    counts = torch.tensor([[3.0, 0.0, 5.0], [0.0, 1.0, 1.0]])
    size = torch.tensor([20.0, 2.0])  # the first cell has 12 counts in other genes
    x = (counts * 1e4 / size[:, None]).log1p()
    torch.testing.assert_close(downsample_counts(x, size, torch.ones(2), 1e4), x)


def test_thinning_keeps_the_share_of_each_gene_on_average():
    counts = torch.tensor([[300.0, 0.0, 500.0]])
    size = torch.tensor([2000.0])
    x = (counts * 1e4 / size).log1p().expand(4000, 3)
    thinned = downsample_counts(x, size.expand(4000), torch.full((4000,), 0.25), 1e4)
    share = thinned.expm1() / 1e4
    torch.testing.assert_close(share.mean(dim=0), counts[0] / 2000, atol=2e-3, rtol=0)
    # The spread is that of 500 counts, not of 2,000.
    expected = math.sqrt(0.25 * 0.75 / 500)
    assert share[:, 2].std().item() == pytest.approx(expected * math.sqrt(0.75), rel=0.1)


def test_a_cell_that_keeps_nothing_is_0():
    x = torch.tensor([[1.0]]).mul(1e4).log1p()
    assert downsample_counts(x, torch.ones(1), torch.tensor([1e-9]), 1e4).item() == 0


def train_circles(cls=ContrastiveAblation, joint=None, **settings) -> ContrastiveClassifier:
    joint = simulate_joint() if joint is None else joint
    cls.setup_anndata(joint, "cell_type", "Unknown")
    with seeded(0):
        model = cls(joint, **({"folds": 2} | settings))
        model.train(**FAST)
    return model


@pytest.mark.parametrize("thinning", [1.0, 0.5], ids=["whole-cells", "thinned"])
def test_circles_that_follow_a_regression_are_trained_further(thinning):
    model, (adata, _) = train_circles(thinning=thinning, component_lr=1e-4), simulate_sides()
    still = train_circles(ContrastiveClassifier)
    stages = {name.rsplit("_loss_", 1)[0] for name in model.history_}
    assert stages == {"base", "component_fold_1", "component_fold_2", "component", "head"}
    assert {name.rsplit("_loss_", 1)[0] for name in still.history_} == {"base", "head"}
    maps = [m.module.component.maps.weight.detach().cpu() for m in (model, still)]
    assert not torch.equal(*maps)
    torch.testing.assert_close(*maps, atol=0.01, rtol=0)  # a few steps from where they started
    for history in model.history_.values():
        assert np.isfinite(history.to_numpy(dtype=float)).all()
    assert (model.predict(adata) == adata.obs["truth"].astype(str)).mean() > 0.6


def test_cells_are_thinned_in_training_alone(monkeypatch):
    model = train_circles(thinning=0.5, folds=1)
    joint, x = simulate_joint(), model._cells.x.toarray()
    batch = {"x": torch.from_numpy(x), "size": torch.from_numpy(model._cells.arrays["size"])}
    np.testing.assert_allclose(batch["size"], np.asarray(joint.X.sum(axis=1)).ravel())
    assert model._component_input(batch) is batch["x"]
    model.module.train()
    thinned = model._component_input(batch)
    # of the cells' own counts between a half and all are kept, and none is made
    assert not torch.equal(thinned, batch["x"])
    assert ((thinned > 0) <= (batch["x"] > 0)).all()
    lost = 1 - (thinned > 0).sum() / (batch["x"] > 0).sum()
    assert 0.05 < lost < 0.5
    model.settings_ = replace(model.settings_, thinning=1.0)
    assert model._component_input(batch) is batch["x"]


def test_thinning_refuses_what_is_no_counts():
    joint = simulate_joint()
    joint.X = joint.X * np.float32(1.5)
    with pytest.raises(ValueError, match=r"thinning draws from counts: give counts"):
        train_circles(joint=joint, thinning=0.5)
    assert train_circles(joint=joint, thinning=1.0).is_trained_


@pytest.mark.parametrize("thinning", [0.0, -1.0, 1.5, math.nan])
def test_a_share_that_is_none_is_refused(thinning):
    with pytest.raises(ValueError, match=r"thinning=.* must be a number above 0 and not above 1"):
        ContrastiveAblationSettings(thinning=thinning)


def test_the_circles_settings_are_those_of_the_default_preset():
    ours = asdict(ContrastiveClassifier.PRESETS["default"])
    ablation = asdict(ContrastiveAblation.PRESETS["default"])
    assert {name: ablation[name] for name in ours} == ours
    assert set(ablation) - set(ours) == {"thinning"}


# -- auto: the mean that it must not fall below ----------------------------------------------------


def test_the_mean_of_three_is_of_a_regression_and_two_networks():
    joint = simulate_joint()
    MeanOfThree.setup_anndata(joint, "cell_type", unlabeled_category="Unknown")
    model = MeanOfThree(joint)
    model.train(**FAST)
    x = torch.from_numpy(model._cells.x.toarray())
    with torch.no_grad():
        votes, *_ = model.module.eval().votes(model.module.linear(x), x[:, model.variable_])
    linear, adapted, *networks = votes.numpy()
    proba = model.predict_cells().proba
    assert len(networks) == 2
    np.testing.assert_allclose(proba, (linear + sum(networks)) / 3, atol=1e-5)
    assert abs(adapted - proba).max() > 0.01
    np.testing.assert_allclose(model.novel_score(), 1 - proba.max(axis=1), atol=1e-5)
    assert model.is_novel() is None


# -- in suites -----------------------------------------------------------------------------------

SUITES = {
    "scdet_ablation": "scdet-ablation",
    "scdet_readings": "scdet-ablation",
    "scdet_published_ablation": "scdet-ablation",
    "scdet_tables": "rival-scgad",
    "contrastive": "contrastive-ablation",
    "never_harm": "auto-mean",
}
VARIANTS = sorted(name for name, m in known_methods().items() if m.method in ABLATIONS)


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_of_ablations_plans_every_run_of_it(suite, monkeypatch):
    monkeypatch.setattr(_run, "locate", lambda task: "t.h5ad")
    spec = load_suite(suite)
    planned = _run._plan(spec, spec.methods, PROTOCOLS, spec.seeds)
    ids = [row["id"] for row, _ in planned]
    assert len(set(ids)) == len(ids)
    for protocol in PROTOCOLS:
        runs = {
            (row["task"], row["method"], row["seed"])
            for row, _ in planned
            if row["protocol"] == protocol
        }
        expected = {
            (task.name, method.name, seed)
            for task in spec.tasks
            for method in spec.methods
            for seed in range(spec.seeds)
        }
        assert runs == expected
    assert SUITES[suite] in {job["method"]["method"] for _, job in planned}


def test_the_suites_run_every_variant_of_every_ablation():
    used = {method.name for suite in SUITES for method in load_suite(suite).methods}
    assert used >= set(VARIANTS)
    assert {known_methods()[name].method for name in VARIANTS} == set(ABLATIONS)


MODELS = METHODS | ABLATIONS | CLUSTER_METHODS


@pytest.mark.parametrize("name", [n for n, m in known_methods().items() if m.method in MODELS])
def test_a_variants_settings_are_its_models(name):
    method = known_methods()[name]
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in method.model_kwargs.items()}
    preset = settings.pop("preset", "default")
    if settings.get("prior") == "oracle":
        settings["distribution"] = (0.5, 0.5)  # which each run is told
    resolved = asdict(MODELS[method.method]._resolve(preset, settings))
    assert {field: resolved[field] for field in settings} == settings


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    """Return a file with 160 cells of four types."""
    path = tmp_path_factory.mktemp("data") / "cells.h5ad"
    simulate(160).write_h5ad(path)
    return path


def job_of(name: str, path: Path, protocol: str = "blind") -> dict:
    """A run of a variant, trained in a moment, that has to find half of the types itself."""
    method = replace(known_methods()[name], train_kwargs=FAST | {"max_epochs": 2})
    return {
        "task": asdict(make_task("intra")),
        "method": asdict(method),
        "protocol": protocol,
        "seed": 0,
        "path": str(path),
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_a_row_of_each_ablation_is_finite(name, cells, monkeypatch):
    for key, model in ABLATIONS.items():
        monkeypatch.setitem(METHODS, key, model)
    row = _worker.work(job_of(name, cells, protocol="paper"))
    assert row["n_types"] == row["n_novel_types"] == 2
    assert row["n_ref"] + row["n_query"] == 160
    for score in ("seen_accuracy", "overall_accuracy", "ece", "novel_auroc", "mixing"):
        assert math.isfinite(row[score]), score
        assert 0 <= row[score] <= 1
    assert row["seconds"] > 0
    assert name == "scdet-search" or row["epochs"] >= 1
    assert set(row["auprc"]) <= set(TYPES)


@pytest.mark.slow
def test_a_process_of_its_own_knows_the_ablations(cells, tmp_path):
    (tmp_path / "suite.toml").write_text(f"""
        [[task]]
        kind = "intra"
        data = "mine"
        file = '{cells}'
        [method.prior]
        method = "scdet-ablation"
        model_kwargs = {{ prior = "oracle" }}
        train_kwargs = {{ max_epochs = 1, enable_progress_bar = false }}
    """)
    rows = run(tmp_path / "suite.toml", protocols=["blind"], seeds=1, out=tmp_path / "out")
    assert rows["error"].tolist() == [None]
    assert np.isfinite(rows["overall_accuracy"].astype(float)).all()
    assert set(METHODS).isdisjoint(ABLATIONS)  # here they stay out of the registry


def test_every_ablation_documents_what_it_adds():
    for settings in (SCDETAblationSettings, ContrastiveAblationSettings):
        own = {f.name for f in fields(settings)} - {
            f.name for base in settings.__mro__[1:-1] for f in fields(base)
        }
        lines = inspect.cleandoc(settings.__doc__).splitlines()
        assert own
        assert own <= set(lines)


def test_the_published_preset_is_the_papers_but_for_what_is_exchanged() -> None:
    published, paper = asdict(SCDETAblation.PRESETS["published"]), asdict(SCDET.PRESETS["paper"])
    assert {name: published[name] for name in paper} == paper
    assert not published["initial_names"]
    suite = load_suite("scdet_published_ablation")
    readings = [method.model_kwargs["similarity"] for method in suite.methods]
    assert (readings.count("cosine"), readings.count("inner")) == (7, 7)
