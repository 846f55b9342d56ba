"""scDET: its objective against the paper's equations, its inputs, and what is found with it."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from lightning.pytorch.callbacks import Callback
from scdet_equations import (
    N_GENES,
    assert_is_transcribed,
    make_batch,
    make_module,
    see,
    similarities,
    transcribed,
)
from scipy.stats import nbinom
from sklearn.decomposition import PCA
from synthetic import FAST as TRAIN
from synthetic import TYPES, simulate, simulate_joint, simulate_sides

import sctool
from sctool import _neighbors, losses, novelty
from sctool._batches import Cells
from sctool.model import SCDET, load
from sctool.model import _scdet as scdet
from sctool.model._scdet import SCDETModule, SCDETPlan, SCDETSettings, distribution
from sctool.novelty import Novelty, _cells, _n_types

pytestmark = pytest.mark.usefixtures("empty_cwd")

RNG = np.random.default_rng
FAST = TRAIN | {"batch_size": 40}
QUICK = {"max_epochs": 12, "batch_size": 64, "enable_progress_bar": False}


#: Of the 80 unlabelled cells, of which some are of two novel types.
NAMES = np.array([0, 1, 2, 3, 4, 4, 5, 5] * 10)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def hidden() -> tuple[ad.AnnData, ad.AnnData]:
    """Return a query of four types and a reference that lacks one of them, "DC"."""
    adata, ref = simulate(400, seed=1), simulate(400, seed=0)
    adata.obs = adata.obs.rename(columns={"cell_type": "truth"})
    return adata, ref[ref.obs["cell_type"] != "DC"].copy()


@pytest.fixture(scope="module")
def found(hidden) -> tuple[ad.AnnData, SCDET]:
    """Return the query as the default preset annotates it, and the model."""
    args = {"method": "scdet", "train_kwargs": QUICK, "copy": True, "return_model": True}
    return sctool.tl.annotate(*hidden, **args)


def told(names: np.ndarray | list[int], n: int, mixed: bool = True) -> Callable[..., Novelty]:
    """What looks for novel cells, when it always says the same."""
    names = np.array(names)
    audit = [f"novel: number of types: {n}"]
    found = Novelty(True, np.zeros(len(names)), names, names, n, n, n + 1, mixed, audit)
    return lambda *args: found


def assert_same_result(result: ad.AnnData, expected: ad.AnnData) -> None:
    assert list(result.uns["sctool"]["classes"]) == list(expected.uns["sctool"]["classes"])
    for slot in ("sctool_proba", "X_sctool"):
        np.testing.assert_allclose(result.obsm[slot], expected.obsm[slot], rtol=0, atol=1e-5)
    assert list(result.obs["sctool"]) == list(expected.obs["sctool"])


def make_model(joint=None, **settings) -> SCDET:
    """A model of the synthetic cells, not trained."""
    joint = simulate_joint() if joint is None else joint
    SCDET.setup_anndata(joint, "cell_type")
    return SCDET(joint, **({"n_novel": 0} | settings))


# -- the estimated distribution ------------------------------------------------------------------


def slow_distribution(clusters, labels, predicted, n_seen, n) -> list[float]:
    """Section 3.3, trying all ways to match clusters with types."""
    cells = range(len(clusters))
    size = [max(sum(c == k for c in clusters), 1) for k in range(n)]

    def best(matches, agreement):
        scores = {match: agreement(match) for match in matches}
        top = [match for match, score in scores.items() if score == max(scores.values())]
        assert len(top) == 1, "the test cannot tell which of several matches is meant"
        return top[0]

    def with_labels(match):
        return sum(labels[i] >= 0 and match[labels[i]] == clusters[i] for i in cells)

    def with_predictions(match):
        unlabelled = [i for i in cells if labels[i] < 0 and predicted[i] >= n_seen]
        return sum(match[predicted[i] - n_seen] == clusters[i] for i in unlabelled)

    seen = best(itertools.permutations(range(n), n_seen), with_labels)
    free = [k for k in range(n) if k not in seen]
    if predicted is None:
        novel = sorted(free, key=lambda k: -size[k])
    else:
        novel = best(itertools.permutations(free), with_predictions)
    matched = [size[k] for k in (*seen, *novel)]
    return [s / sum(matched) for s in matched]


def clustered(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clusters of cells, types of some of them and predicted ones, that agree in part."""
    rng = RNG(seed)
    types = rng.choice(6, 300, p=[0.3, 0.1, 0.05, 0.25, 0.1, 0.2])
    clusters = np.where(rng.random(300) < 0.7, rng.permutation(6)[types], rng.integers(6, size=300))
    predicted = np.where(rng.random(300) < 0.7, types, rng.integers(6, size=300))
    # the labels of the known three; labelled cells may be predicted to be novel
    return clusters, np.where((types < 3) & (rng.random(300) < 0.5), types, -1), predicted


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("by", ["size", "prediction"])
def test_the_distribution_is_that_of_all_ways_to_match(seed, by):
    clusters, labels, predicted = clustered(seed)
    args = (clusters, labels, predicted if by == "prediction" else None, 3, 6)
    pi = distribution(*args)
    np.testing.assert_allclose(pi, slow_distribution(*args))
    assert pi.sum() == pytest.approx(1)
    assert by == "prediction" or (np.diff(pi[3:]) <= 0).all()


def test_novel_clusters_go_to_prototypes_by_prediction_or_by_size():
    clusters = np.repeat([0, 1, 2], [10, 30, 20])
    labels = np.where(clusters == 0, 0, -1)
    predicted = np.array([0, 2, 1])[clusters]  # the larger cluster is predicted to be type 2
    np.testing.assert_allclose(distribution(clusters, labels, None, 1, 3) * 60, [10, 30, 20])
    np.testing.assert_allclose(distribution(clusters, labels, predicted, 1, 3) * 60, [10, 20, 30])


def test_labels_and_not_predictions_decide_on_the_known_types():
    clusters, labels = np.repeat([0, 1, 2], [10, 30, 20]), np.full(60, -1)
    labels[[0, 1, 2]], labels[[50, 51]] = 0, 1
    predicted = np.where(labels == 0, 2, 1 - labels)  # wrong where there is a label
    pi = distribution(clusters, labels, predicted, 2, 3)
    np.testing.assert_allclose(pi * 60, [10, 20, 30])


def test_what_is_predicted_for_labelled_cells_has_no_say():
    clusters = np.repeat([0, 1, 1, 2], [10, 6, 3, 2])
    labels = np.repeat([0, 0, -1, -1], [10, 6, 3, 2])
    predicted = np.repeat([0, 1, 2, 1], [10, 6, 3, 2])  # six labelled cells to be of a novel type
    np.testing.assert_allclose(distribution(clusters, labels, predicted, 1, 3) * 21, [10, 2, 9])


def test_a_cluster_without_cells_has_a_share_whose_logarithm_is_finite():
    pi = distribution(np.array([0, 0, 1, 1, 1]), np.array([0, -1, -1, -1, -1]), None, 1, 3)
    np.testing.assert_allclose(pi, [2 / 6, 3 / 6, 1 / 6])


# -- the objective -------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.6])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"initial_names": False},
        {"alpha": 0.2, "beta": 1.0, "rho": 0.0, "gamma": 0.0},
        {"similarity": "inner"},
    ],
    ids=["default", "no-initial-names", "other-exponents", "inner"],
)
@pytest.mark.parametrize("n_unlabelled", [16, 0], ids=["both-sides", "labelled-alone"])
def test_the_objective_is_that_of_the_papers_equations(settings, n_unlabelled, share, monkeypatch):
    module, batch = make_module(**settings), make_batch(n_unlabelled)
    assert_is_transcribed(module, batch, share, monkeypatch)


@pytest.mark.parametrize("similarity", losses.SIMILARITIES)
def test_the_logits_are_eq_2_in_either_reading(similarity):
    module, x = make_module(similarity=similarity), torch.rand(7, N_GENES).double() * 2
    logits, z = module(x)
    expected = torch.tensor(similarities(module, z)).double() / module.settings.tau
    torch.testing.assert_close(logits, expected)


def test_inner_products_start_from_prototypes_of_unit_length_and_even_predictions():
    torch.manual_seed(1)
    module = SCDETModule(50, 40, 40, SCDETSettings(n_components=None, tau=1.0, similarity="inner"))
    assert module.prototypes.norm(dim=1).mean().item() == pytest.approx(1, abs=0.03)
    p = module(torch.rand(200, 50) * 4)[0].softmax(dim=1)
    assert p.max() < 0.2  # as of 40 types of which none is known yet


def test_names_that_were_not_given_teach_nothing(monkeypatch):
    module, batch = make_module(), make_batch(8)
    batch["unlabelled"]["name"][:] = -1
    views = see(module, batch, monkeypatch)
    total, terms = module.loss(batch, 0.5)
    assert terms["initial_names"].item() == 0
    assert total.item() == pytest.approx(transcribed(module, batch, views, 0.5)["total"], rel=1e-6)


def test_pseudo_labels_are_targets_and_learn_nothing_themselves(monkeypatch):
    module, batch = make_module(), make_batch()
    see(module, batch, monkeypatch)
    _, terms = module.loss(batch, 0.5)
    parameters = [module.prototypes, module.hidden[0].weight, module.projector[0].weight]
    of = torch.autograd.grad(terms["pseudo"], parameters, allow_unused=True)
    assert of[:2] == (None, None)
    assert of[2].abs().sum() > 0


def test_zinb_is_the_likelihood_of_the_cells_as_they_are():
    module = make_module(reconstruction="zinb")
    counts = torch.randint(0, 5, (4, N_GENES)).double()
    z = torch.randn(8, 8).double()
    value, total = module._reconstruction(counts.log1p(), z).item(), 0.0
    for row, out in zip(counts.repeat(2, 1).tolist(), module.decoder(z).tolist(), strict=True):
        parts = (out[:N_GENES], out[N_GENES : 2 * N_GENES], out[2 * N_GENES :])
        for k, log_mean, log_theta, logit in zip(row, *parts, strict=True):
            theta, dropout = math.exp(log_theta), 1 / (1 + math.exp(-logit))
            likelihood = (1 - dropout) * nbinom.pmf(k, theta, theta / (theta + math.exp(log_mean)))
            total -= math.log(likelihood + dropout * (k == 0))
    assert value == pytest.approx(total / (8 * N_GENES), rel=1e-5)


# -- views and inputs ----------------------------------------------------------------------------


def view_of_ones(**settings) -> torch.Tensor:
    """What a view adds to 4000 cells of 50 inputs that are 1."""
    defaults = {"n_components": None, "masked": 0.0, "noisy": 0.0}
    module = SCDETModule(50, 2, 2, SCDETSettings(**(defaults | settings)))
    return module.view(torch.ones(4000, 50)) - 1


def test_a_view_hides_some_genes_of_half_of_the_cells():
    change = view_of_ones(masked=0.2)
    assert set(change.unique().tolist()) == {-1.0, 0.0}
    touched = (change != 0).any(dim=1)
    assert touched.float().mean() == pytest.approx(0.5, abs=0.03)
    # (by cell, so that the genes hidden are not the same ones in all)
    assert (change[touched] != 0).float().mean() == pytest.approx(0.2, abs=0.01)
    assert (change != 0).float().mean(dim=0).numpy() == pytest.approx(0.1, abs=0.025)


def test_a_view_adds_noise_to_some_inputs_of_half_of_the_cells():
    change = view_of_ones(noisy=0.3, noise=0.7)
    touched = (change != 0).any(dim=1)
    assert touched.float().mean() == pytest.approx(0.5, abs=0.03)
    assert (change[touched] != 0).float().mean() == pytest.approx(0.3, abs=0.01)
    noise = change[change != 0]
    assert noise.mean() == pytest.approx(0, abs=0.03)
    assert noise.std() == pytest.approx(0.7, abs=0.03)


def test_a_cell_is_hidden_from_and_blurred_independently():
    change = view_of_ones(masked=0.5, noisy=1.0, noise=0.01)
    hidden, blurred = (change < -0.5).any(dim=1), (change != change.round()).any(dim=1)
    for a in (hidden, ~hidden):
        for b in (blurred, ~blurred):
            assert (a & b).float().mean() == pytest.approx(0.25, abs=0.03)


def test_two_views_of_a_cell_differ():
    module = make_module(masked=0.5)
    x = torch.rand(50, N_GENES).double()
    assert not torch.equal(module.view(x), module.view(x))


def test_a_hidden_gene_is_seen_as_the_average_gene():
    module = make_module(n_components=3)
    module.components.copy_(torch.randn(3, N_GENES))
    x, hidden = torch.rand(9, N_GENES).double(), torch.rand(9, N_GENES) < 0.4
    expected = module.inputs(torch.where(hidden, module.mean, x))
    torch.testing.assert_close(module.inputs(x, hidden), expected)
    assert not torch.allclose(expected, module.inputs(x))


def test_no_input_is_beyond_all_measure():
    module = make_module()
    assert module.inputs(torch.full((1, N_GENES), 1e6).double()).tolist() == [[10.0] * N_GENES]


def seen(model: SCDET, x: sp.csr_matrix) -> np.ndarray:
    model._set_inputs(x)
    return model.module.inputs(torch.from_numpy(x.toarray())).numpy()


@pytest.mark.parametrize("n_components", [None, 0])
def test_standardised_genes_have_mean_0_and_variance_1_over_the_training_cells(n_components):
    model = make_model(n_components=n_components, n_top_genes=None)
    x = model._cells.x.tolil()
    x[:, 3] = 2.0  # a gene that is the same in all cells
    inputs = seen(model, x.tocsr().astype(np.float32))
    assert inputs.shape == (200, 300)
    assert (np.abs(inputs[:, 3]) < 0.01).all()
    within = (np.abs(inputs).max(axis=0) < 10) & (np.arange(300) != 3)  # none was clamped
    assert within.sum() > 250
    np.testing.assert_allclose(inputs[:, within].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(inputs[:, within].var(axis=0), 1, atol=1e-3)


def test_many_cells_are_standardised_as_few_are():
    x = 6 + 0.05 * RNG(0).normal(size=(300_000, 2))
    model = make_model(n_components=None)
    model.module = SCDETModule(2, 4, 4, model.settings_)
    assert seen(model, sp.csr_matrix(x.astype(np.float32))).std() == pytest.approx(1, abs=0.05)


def test_the_first_component_has_a_standard_deviation_of_2_and_the_others_less():
    model = make_model(n_components=10)
    x = model._cells.x
    inputs = seen(model, x)
    assert inputs.shape == (200, 10)
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-4)
    spread = np.sqrt(PCA(10).fit(x.toarray().astype(float)).explained_variance_)
    np.testing.assert_allclose(inputs.std(axis=0, ddof=1), 2 * spread / spread[0], rtol=1e-2)


def test_few_cells_have_fewer_components_and_the_rest_is_0():
    model = make_model(simulate_joint(4, 8), n_components=20)
    inputs = seen(model, model._cells.x)
    assert inputs.shape == (12, 20)
    assert (inputs[:, :11].std(axis=0) > 0.1).all()
    assert (inputs[:, 11:] == 0).all()


# -- where the distribution comes from -----------------------------------------------------------


def make_plan(**settings) -> SCDETPlan:
    """A plan whose module has two novel types, and that was not trained."""
    model = make_model(**settings)
    model._name_novel(2)
    model._build()
    model._set_inputs(model._cells.x)
    cells = Cells(model._cells.x, model._cells.arrays | {"name": model._cells.arrays["label"]})
    return SCDETPlan(model.module, model.settings_, cells, mixed=True, rng=RNG(5))


@pytest.mark.parametrize("initial_names", [True, False], ids=["by-prediction", "by-size"])
def test_the_estimate_is_by_k_means_on_contrastive_features(initial_names, monkeypatch):
    plan, given = make_plan(initial_names=initial_names), {}
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
        features = module.projector(z)
        features = features / features.norm(dim=1, keepdim=True)
        predicted = module(x)[0].argmax(dim=1).numpy()
    assert given["n"] == 6
    assert given["seed"] == RNG(5).integers(2**31)
    np.testing.assert_allclose(given["features"], features.numpy(), atol=1e-5)
    assert given["args"][0] is clusters
    np.testing.assert_array_equal(given["args"][1], plan.labels)
    # clusters are matched to novel prototypes by what these predict if there were names to start
    # them from, and by size otherwise
    if initial_names:
        np.testing.assert_array_equal(given["args"][2], predicted)
    else:
        assert given["args"][2] is None
    assert given["args"][3:] == (4, 6)
    assert module.training


@pytest.mark.slow
def test_k_means_follows_the_seed(monkeypatch):
    adata, ref = simulate_sides()
    settings = {"initial_names": False, "estimate_every": 2}
    seeds: dict[str, list[int]] = {}
    k_means = scdet.k_means
    for run, random_state in (("one", 0), ("same", 0), ("other", 1)):
        used = seeds[run] = []

        def watched(h, n, seed, n_init, used=used):
            used.append(seed)
            return k_means(h, n, seed, n_init)

        monkeypatch.setattr(scdet, "k_means", watched)
        args = {"novel": 1, "random_state": random_state, "model_kwargs": settings}
        sctool.tl.annotate(adata, ref, method="scdet", train_kwargs=FAST, **args)
    assert len(seeds["one"]) == 3  # of six epochs
    assert len(set(seeds["one"])) == 3
    assert seeds["one"] == seeds["same"]
    assert set(seeds["one"]).isdisjoint(seeds["other"])


def test_many_cells_are_clustered_by_minibatches(monkeypatch):
    plan = make_plan()
    monkeypatch.setattr(_neighbors, "MANY_CELLS", len(plan.cells) - 1)
    monkeypatch.delattr(_neighbors, "KMeans")
    pi = plan._estimate()
    assert pi.sum() == pytest.approx(1)
    assert (pi > 0).all()


class Recorder(Callback):
    """Keeps the distribution that every epoch goes by."""

    def __init__(self):
        self.pi = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.pi.append(pl_module.module.pi.cpu().clone().numpy())


@pytest.mark.parametrize("initial_names", [True, False], ids=["initial-names", "none"])
def test_training_goes_by_the_estimated_distribution(initial_names, monkeypatch):
    monkeypatch.setattr(novelty, "find", told(NAMES, 2))
    model, recorder = make_model(n_novel=2, initial_names=initial_names), Recorder()
    model.train(**FAST, callbacks=[recorder])
    assert np.isfinite(model.history["loss_train"].to_numpy(dtype=float)).all()
    assert len(recorder.pi) == FAST["max_epochs"]
    np.testing.assert_allclose(np.sum(recorder.pi, axis=1), 1, rtol=1e-5)
    changes = [not np.array_equal(a, b) for a, b in itertools.pairwise(recorder.pi)]
    assert changes == [False, False, True, False, False]  # every three epochs
    assert (model.predict()[:120] == np.array(TYPES)[np.arange(120) % 4]).mean() > 0.8


def test_the_estimate_is_made_before_the_first_step_and_every_few_epochs(monkeypatch):
    made = []

    def estimate(plan):
        made.append((plan.current_epoch, plan.global_step))
        return np.full(4, 0.25)

    monkeypatch.setattr(SCDETPlan, "_estimate", estimate)
    make_model(initial_names=False, estimate_every=2).train(**FAST)
    steps = 3  # of 120 labelled cells, 40 each
    assert made == [(0, 0), (2, 2 * steps), (4, 4 * steps)]


@pytest.mark.parametrize("given", ["all", "some"])
def test_the_first_estimate_is_of_the_names_given_if_all_cells_have_one(given, monkeypatch):
    made, recorder = [], Recorder()
    names = np.array([0, 1, 2, 3, 4, 4, 4, 5] * 10)
    names[0] = names[0] if given == "all" else -1
    monkeypatch.setattr(novelty, "find", told(names, 2))

    def estimate(plan):
        made.append(plan.current_epoch)
        return np.full(6, 1 / 6)

    monkeypatch.setattr(SCDETPlan, "_estimate", estimate)
    make_model(n_novel=2, estimate_every=2).train(**FAST, callbacks=[recorder])
    assert made == ([2, 4] if given == "all" else [0, 2, 4])
    if given == "all":
        sizes = np.array([40, 40, 40, 40, 30, 10])  # of the 120 labelled ones and the others
        np.testing.assert_allclose(recorder.pi[0], sizes / 200, rtol=1e-5)


def test_under_a_batch_effect_the_distribution_is_of_the_names_given_to_the_end(monkeypatch):
    monkeypatch.setattr(novelty, "find", told([0, 1, 2, 3, 4, 4, 4, 5] * 10, 2, mixed=False))
    monkeypatch.setattr(
        SCDET, "_scnym_predictions", lambda self, cells, known, options: np.arange(len(known)) % 4
    )
    monkeypatch.setattr(SCDETPlan, "_estimate", lambda plan: pytest.fail("k-means was asked"))
    recorder = Recorder()
    make_model(n_novel=2, estimate_every=2).train(**FAST, callbacks=[recorder])
    sizes = np.array([40, 40, 40, 40, 30, 10])
    np.testing.assert_allclose(recorder.pi[-1], sizes / 200, rtol=1e-5)


# -- what is known before training ---------------------------------------------------------------


@pytest.fixture
def fitted(monkeypatch) -> dict:
    """Return what training is called with, which then does not happen."""
    args = {}

    def fit(model, plan, splitter, max_epochs, options):
        args.update(model=model, plan=plan, splitter=splitter, max_epochs=max_epochs)
        args["prototypes"] = model.module.prototypes.detach().clone()
        model.is_trained_ = True
        if "change" in args:
            args["change"](model)

    monkeypatch.setattr(scdet, "fit", fit)
    return args


def test_each_prototype_starts_where_the_cells_of_its_name_are(fitted, monkeypatch):
    monkeypatch.setattr(novelty, "find", told(NAMES, 2))
    model = make_model(n_novel=None)
    model.train(enable_progress_bar=False)
    cells, module = fitted["plan"].cells, fitted["plan"].module
    np.testing.assert_array_equal(cells.arrays["name"], [*np.tile(range(4), 30), *NAMES])
    np.testing.assert_array_equal(cells.arrays["label"], [*np.tile(range(4), 30), *[-1] * 80])
    with torch.no_grad():
        h = module.hidden(module.encoder(module.inputs(torch.from_numpy(cells.x.toarray()))))
    h = (h / h.norm(dim=1, keepdim=True)).numpy()
    expected = [h[cells.arrays["name"] == code].mean(axis=0) for code in range(6)]
    np.testing.assert_allclose(fitted["prototypes"], expected, atol=1e-5)


def test_under_a_batch_effect_scnym_names_the_known_cells(fitted, monkeypatch):
    trained = []

    def train_classifier(model, cells, options):
        trained.append((type(model.module).__name__, options.trainer, options.max_epochs))
        model.is_trained_ = True

    proba = np.eye(4)[np.repeat([3, 2, 1, 0], 10)]  # of the 40 cells that are not called novel
    monkeypatch.setattr(novelty, "find", told(NAMES, 2, mixed=False))
    monkeypatch.setattr(scdet, "train_classifier", train_classifier)
    model = make_model(n_novel=None)
    predict_cells = model.predict_cells

    def predict(indices):
        if not isinstance(model.module, SCDETModule):
            np.testing.assert_array_equal(indices, 120 + np.flatnonzero(NAMES < 4))
            return SimpleNamespace(proba=proba)
        return predict_cells(indices=indices)

    monkeypatch.setattr(model, "predict_cells", predict)
    model.train(max_epochs=3, accelerator="cpu", enable_progress_bar=False, log_every_n_steps=7)
    # for as long as scNym's own settings have it, and on the same device
    own = {"accelerator": "cpu", "devices": "auto"}
    assert trained == [("SCNYMModule", own, None)]
    assert fitted["max_epochs"] == 3
    expected = NAMES.copy()
    expected[NAMES < 4] = proba.argmax(axis=1)
    np.testing.assert_array_equal(fitted["plan"].cells.arrays["name"][120:], expected)
    assert isinstance(model.module, SCDETModule)


def test_without_initial_names_the_number_alone_is_taken(fitted, monkeypatch):
    monkeypatch.setattr(novelty, "find", told(NAMES, 2))
    model = make_model(n_novel=None, initial_names=False)
    fitted["change"] = lambda model: fitted.update(names=model.names_)
    model.train(enable_progress_bar=False)
    assert fitted["names"] == [*TYPES, "novel_1", "novel_2"]
    assert (fitted["plan"].cells.arrays["name"][120:] == -1).all()
    assert model.audit_[-1 - ("were dropped" in model.audit_[-1])] == "novel: number of types: 2"


@pytest.mark.parametrize("settings", [{"n_novel": 0}, {"n_novel": 2, "initial_names": False}])
def test_what_is_not_needed_is_not_sought(settings, fitted, monkeypatch):
    monkeypatch.delattr(novelty, "find")
    fitted["change"] = lambda model: fitted.update(names=model.names_)
    make_model(**settings).train(enable_progress_bar=False)
    assert len(fitted["names"]) == 4 + settings["n_novel"]


def test_why_nothing_was_sought_is_in_the_audit(fitted, monkeypatch):
    names, why = np.arange(80) % 4, ["novel: not searched for: a reason"]
    none = Novelty(False, np.zeros(80), names, names, 0, 0, 0, True, why)
    monkeypatch.setattr(novelty, "find", lambda *args: none)
    model = make_model(n_novel=None)
    model.train(enable_progress_bar=False)
    assert "novel: not searched for: a reason" in model.audit_
    # the cells are of known types, which is learnt from
    np.testing.assert_array_equal(fitted["plan"].cells.arrays["name"][120:], names)
    assert model.names_ == TYPES
    assert model.n_novel_ is None


def test_groups_are_ordered_by_size_and_empty_ones_dropped(fitted, monkeypatch):
    monkeypatch.setattr(novelty, "find", told(NAMES, 4))
    model, query = make_model(n_novel=None), np.arange(120, 200)

    def predict(model):
        module = model.module
        with torch.no_grad():
            z = module.encoder(module.inputs(torch.from_numpy(model._cells.x[query].toarray())))
            h = torch.nn.functional.normalize(module.hidden(z), dim=1)
            rank = h[:, 0].argsort()
            # most cells are like the last, fewer like the third, and none like the others
            module.prototypes[:] = -h.mean(dim=0)
            module.prototypes[6], module.prototypes[7] = h[rank[:15]].mean(0), h[rank[15:]].mean(0)
            module.pi.copy_(torch.arange(8) / 28)
        fitted["before"] = model.predict_cells(indices=query).proba

    fitted["change"] = predict
    model.train(enable_progress_bar=False)
    sizes = np.bincount(fitted["before"].argmax(axis=1), minlength=8)
    assert sizes[7] > sizes[6] > 0 == sizes[:6].sum()
    assert model.names_ == [*TYPES, "novel_1", "novel_2"]
    order = [0, 1, 2, 3, 7, 6]
    expected = fitted["before"][:, order]
    expected = expected / expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict_cells(indices=query).proba, expected, atol=1e-5)
    np.testing.assert_allclose(model.module.pi, np.array(order) / 28, rtol=1e-5)
    assert model.n_novel_ == {"n": 2, "low": 2, "high": 5}
    assert model.audit_[-1] == "novel: 2 types without cells were dropped"
    assert not model.module.training


def test_more_types_than_cells_may_be_asked_for():
    adata, ref = simulate_sides()
    args = {"method": "scdet", "novel": 5, "train_kwargs": FAST, "copy": True}
    result = sctool.tl.annotate(adata[:1].copy(), ref[:4].copy(), **args)
    assert result.obs["sctool"].notna().all()


# -- settings ------------------------------------------------------------------------------------


def test_an_unknown_reconstruction_is_refused():
    with pytest.raises(ValueError, match=r"reconstruction='no' is unknown; known: .'mse', 'zinb'"):
        make_model(reconstruction="no")


def test_an_unknown_similarity_is_refused():
    match = r"similarity='dot' is unknown; known: .'cosine', 'inner'"
    with pytest.raises(ValueError, match=match):
        make_model(similarity="dot")


@pytest.mark.parametrize("similarity", losses.SIMILARITIES)
def test_a_saved_model_keeps_its_reading_of_eq_2(similarity, tmp_path):
    joint = simulate_joint()
    model = make_model(joint, similarity=similarity)
    model.train(**FAST)
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.settings_.similarity == similarity
    expected = model.predict_cells().proba
    np.testing.assert_allclose(again.predict_cells(joint).proba, expected, atol=1e-5)


def test_a_model_saved_before_there_was_a_choice_compares_by_cosine(tmp_path):
    joint = simulate_joint()
    model = make_model(joint)
    model.train(**FAST)
    model.save(tmp_path / "model")
    state = json.loads((tmp_path / "model" / "model.json").read_text())
    assert state["settings"].pop("similarity") == "cosine"
    (tmp_path / "model" / "model.json").write_text(json.dumps(state))
    again = load(tmp_path / "model")
    assert again.settings_.similarity == "cosine"
    expected = model.predict_cells().proba
    np.testing.assert_allclose(again.predict_cells(joint).proba, expected, atol=1e-5)


def test_the_paper_preset_is_the_papers():
    paper = asdict(SCDET.PRESETS["paper"])
    expected = {
        "n_hidden": (512, 256, 128),
        "similarity": "inner",  # as eqs. 2 and 7 print it, of "two fully connected layers"
        "tau": 1.0,
        "rho": 0.5,
        "gamma": 0.5,
        "alpha": 0.5,
        "beta": 0.5,
        "classify_weight": 1.0,
        "contrast_weight": 1.0,
        "lr": 1e-4,
        "batch_size": 256 // 2,  # a minibatch of 256 has labelled and unlabelled cells
        "max_epochs": 500,
        "estimate_every": 10,
        # nothing is known before training but the number: "we sort them by cluster size"
        "initial_names": False,
        "n_components": None,  # "the input, represented as x", is gene expression
    }
    assert {k: paper[k] for k in expected} == expected
    assert 0 < paper["tau_sharp"] < paper["tau"]  # "a sharper temperature"


def sizes(layers: torch.nn.Module) -> list[int]:
    return [layer.out_features for layer in layers if isinstance(layer, torch.nn.Linear)]


def test_the_paper_preset_trains_the_papers_network():
    model = make_model(preset="paper", n_novel=2)
    model.train(**(FAST | {"max_epochs": 2, "batch_size": 64}))
    module, n_genes = model.module, len(model.features_.selected)
    assert sizes(module.encoder) == [512, 256, 128]
    assert sizes(module.decoder) == [256, 512, n_genes]  # "the reverse structure"
    assert sizes(module.hidden) == [128]
    assert module.prototypes.shape[1] == 128
    assert sizes(module.projector) == [128, 128]
    assert np.isfinite(model.history["loss_train"].to_numpy(dtype=float)).all()
    assert len(model.history["loss_train"]) == 2
    assert model.trainer.optimizers[0].defaults["lr"] == 1e-4


@pytest.mark.parametrize(
    ("settings", "arguments", "expected"),
    [
        ({"preset": "paper"}, {}, 500),
        ({"min_steps": 100, "batch_size": 16}, {}, 13),  # of eight steps each
        ({"min_steps": 1, "min_epochs": 7}, {}, 7),
        ({"preset": "paper"}, {"max_epochs": 3}, 3),
    ],
    ids=["paper", "steps", "epochs", "asked-for"],
)
def test_how_long_training_takes(settings, arguments, expected, fitted):
    make_model(**settings).train(enable_progress_bar=False, **arguments)
    assert fitted["max_epochs"] == expected


# -- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reconstruction", ["mse", "zinb"])
def test_training_learns_to_reconstruct(reconstruction):
    model = make_model(reconstruction=reconstruction)
    model.train(**(FAST | {"max_epochs": 10, "batch_size": 24}))
    error = model.history["reconstruction_train"].to_numpy(dtype=float).ravel()
    assert np.isfinite(error).all()
    assert error[-1] < 0.95 * error[0]
    assert error.argmin() >= 7


@pytest.mark.parametrize("n_query", [80, 0])
def test_the_history_has_the_terms_that_there_are(n_query):
    joint = simulate_joint()[: 120 + n_query].copy()
    model = make_model(joint)
    model.train(**(FAST | {"max_epochs": 1}))
    terms = {"loss", "reconstruction", "labelled", "regularizer", "unsupervised", "supervised"}
    terms |= {"pseudo"} | ({"unlabelled", "initial_names"} if n_query else set())
    assert set(model.history) == {f"{term}_train" for term in terms}


# -- the whole -----------------------------------------------------------------------------------


def test_a_hidden_type_is_found_as_a_group_of_its_own(hidden, found):
    result, truth = found[0], hidden[0].obs["truth"].astype(str)
    novel = result.obs["sctool_novel"].to_numpy()
    assert novel[truth == "DC"].mean() > 0.9
    assert novel[truth != "DC"].mean() < 0.05
    assert list(result.obs["sctool"].cat.categories) == ["B", "CD4 T/NK", "Mono", "novel_1"]
    assert (result.obs["sctool"].astype(str).replace("novel_1", "DC") == truth).mean() > 0.9


def test_the_number_of_types_is_estimated_and_what_it_lies_between(found, tmp_path):
    result = found[0]
    n_novel = result.uns["sctool"]["n_novel"]
    assert n_novel["n"] == len(result.uns["sctool"]["novel_classes"]) == 1
    assert 0 <= n_novel["low"] <= n_novel["n"] <= n_novel["high"] <= 4
    assert any("types: 1, interval" in note for note in result.uns["sctool"]["audit"])
    result.write_h5ad(tmp_path / "result.h5ad")
    assert ad.read_h5ad(tmp_path / "result.h5ad").uns["sctool"]["n_novel"] == n_novel


def test_a_saved_model_knows_the_groups_and_says_that_it_finds_no_others(hidden, found, tmp_path):
    expected, model = found
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.names_ == ["B", "CD4 T/NK", "Mono", "novel_1"]
    result = sctool.tl.annotate(hidden[0], again, copy=True)
    # doublets and cells of low quality, which cannot be novel, are found in training alone
    same = ~expected.obs["sctool_status"].isin(["doublet", "low_quality"]).to_numpy()
    assert same.mean() > 0.95
    assert_same_result(result[same], expected[same])
    truth = hidden[0].obs["truth"]
    assert result.obs["sctool_novel"][truth == "DC"].mean() > 0.9
    assert any("no new type can be found" in note for note in result.uns["sctool"]["audit"])
    assert "n_novel" not in result.uns["sctool"]  # nothing was estimated of these cells
    # cells that it never saw
    other = simulate(80, seed=7)
    result = sctool.tl.annotate(other, again, copy=True)
    assert result.obs["sctool_novel"][other.obs["cell_type"] == "DC"].mean() > 0.8
    assert result.obs["sctool_novel"][other.obs["cell_type"] != "DC"].mean() < 0.1


def test_no_more_groups_than_asked_for_and_these_by_size(hidden, monkeypatch):
    monkeypatch.setattr(_cells, "EPISODES", 4)
    monkeypatch.setattr(_n_types, "EPISODES", 4)
    args = {"method": "scdet", "novel": 2, "train_kwargs": QUICK | {"max_epochs": 8}, "copy": True}
    result = sctool.tl.annotate(*hidden, **args)
    novel = list(result.uns["sctool"]["novel_classes"])
    assert novel == ["novel_1", "novel_2"][: len(novel)]
    counts = result.obs["sctool"].value_counts()[novel].to_numpy()
    assert (np.diff(counts) <= 0).all()
    assert counts[-1] > 0
    truth = hidden[0].obs["truth"]
    assert result.obs["sctool_novel"][truth == "DC"].mean() > 0.9
    assert "n_novel" not in result.uns["sctool"]  # it was not estimated
    assert any("requested: 2" in note for note in result.uns["sctool"]["audit"])


def test_a_closed_set_seeks_nothing_and_flags_nothing(hidden, monkeypatch):
    monkeypatch.delattr(novelty, "find")
    args = {"method": "scdet", "novel": 0, "train_kwargs": QUICK | {"max_epochs": 3}, "copy": True}
    result = sctool.tl.annotate(*hidden, **args)
    assert "sctool_novel" not in result.obs
    assert list(result.obs["sctool"].cat.categories) == ["B", "CD4 T/NK", "Mono"]
    assert "n_novel" not in result.uns["sctool"]
    assert len(result.uns["sctool"]["novel"]) == len(result.uns["sctool"]["novel_classes"]) == 0
    assert not any(note.startswith("novel:") for note in result.uns["sctool"]["audit"])


@pytest.mark.parametrize("n_cells", [1, 5, 20])
def test_a_handful_of_cells_is_named_as_well_as_a_multitude(n_cells):
    # They are in every minibatch: without names their first, random ones are learnt by heart.
    adata, ref = simulate(n_cells, seed=1), simulate(200, seed=0)
    # (fifty steps are enough for that: without initial names the first two cases are wrong)
    settings = {"model_kwargs": {"min_steps": 50}, "train_kwargs": {"enable_progress_bar": False}}
    result = sctool.tl.annotate(adata, ref, method="scdet", copy=True, **settings)
    assert (result.obs["sctool"].astype(str) == result.obs["cell_type"].astype(str)).all()
    assert any("too few to cluster" in note for note in result.uns["sctool"]["audit"])


def test_without_initial_names_and_told_how_many_it_finds_the_hidden_type_itself(
    hidden, monkeypatch
):
    monkeypatch.delattr(novelty, "find")
    args = {"method": "scdet", "novel": 1, "train_kwargs": QUICK, "copy": True}
    result = sctool.tl.annotate(*hidden, **args, model_kwargs={"initial_names": False})
    assert list(result.uns["sctool"]["novel_classes"]) == ["novel_1"]
    truth = hidden[0].obs["truth"]
    novel = result.obs["sctool_novel"]
    assert novel[truth == "DC"].mean() > novel[truth != "DC"].mean() + 0.5


def test_labels_of_the_query_are_irrelevant_to_what_is_novel(hidden, monkeypatch):
    monkeypatch.setattr(_cells, "EPISODES", 4)
    monkeypatch.setattr(_n_types, "EPISODES", 4)
    # (with as many cells as it takes to look for novel ones)
    adata, ref = hidden
    args = {"method": "scdet", "train_kwargs": QUICK | {"max_epochs": 2}, "copy": True}
    expected = sctool.tl.annotate(adata, ref, **args)
    adata = adata.copy()
    adata.obs["cell_type"] = adata.obs["truth"]
    del adata.obs["truth"]
    result = sctool.tl.annotate(adata, ref, **args)
    assert "novel_1" in expected.obs["sctool"].cat.categories
    assert_same_result(result, expected)
    np.testing.assert_array_equal(result.obs["sctool_novel"], expected.obs["sctool_novel"])
