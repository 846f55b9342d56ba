"""CICL: its parts, its presets, and what must not matter to it."""

import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from synthetic import simulate

import sctool
from sctool import _neighbors, metrics
from sctool._neighbors import k_means
from sctool.model import CICL, load
from sctool.model._cicl import CICLModule, CICLSettings, merge_groups, partition

FAST = {"max_epochs": 2, "batch_size": 16, "enable_progress_bar": False}
QUIET = {"enable_progress_bar": False}
PRESETS = list(CICL.PRESETS)


def train(adata: ad.AnnData, **settings) -> CICL:
    """Return a model, trained in a moment."""
    CICL.setup_anndata(adata)
    torch.manual_seed(0)
    model = CICL(adata, **({"n_clusters": 4} | settings))
    model.train(**FAST)
    return model


@pytest.fixture(scope="module", params=PRESETS)
def trained(request) -> CICL:
    """Return a trained model of each preset."""
    return train(simulate(48), preset=request.param)


def module(n: int = 20, **settings) -> CICLModule:
    torch.manual_seed(0)
    return CICLModule(n, 3, CICLSettings(**({"n_components": None, "joined": False} | settings)))


# -- network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["parts", "cells", "none"])
def test_who_attends_to_whom(attention):
    net = module(attention=attention, width=16).eval()
    x = torch.randn(6, 20)
    h = net.encode(x)
    assert h.shape == (6, 16 if attention == "parts" else 20)
    alone = torch.cat([net.encode(x[i : i + 1]) for i in range(6)])
    assert torch.allclose(h, alone, atol=1e-5) == (attention != "cells")


def test_attention_over_cells_is_equations_3_to_7():
    net = module(attention="cells", n_layers=1, n_heads=2, d_head=5, n_hidden=7, dropout=0.0)
    layer, x = net.layers[0], torch.randn(6, 20)
    w = layer.attend.weight.unflatten(0, (3, 2, 5))  # of queries, keys and values; heads
    heads = []
    for i in range(2):
        q, k, v = (x @ w[j, i].T for j in range(3))
        heads.append(torch.softmax(q @ k.T / 5**0.5, dim=1) @ v)
    norm = torch.nn.functional.layer_norm
    res = norm(x + torch.cat(heads, dim=1) @ layer.join.weight.T, (20,))
    first, second = layer.feed_forward[0], layer.feed_forward[2]
    expected = norm(res + second(torch.relu(first(res))), (20,))
    torch.testing.assert_close(net.encode(x), expected)


def test_a_lone_token_makes_attention_a_linear_map():
    layer = module(attention="none", dropout=0.0).layers[0]
    x = torch.randn(5, 1, 20)
    value = layer.attend.weight.chunk(3)[2]
    expected = layer.norms[0](x + x @ value.T @ layer.join.weight.T)
    torch.testing.assert_close(layer(x), layer.norms[1](expected + layer.feed_forward(expected)))


def test_views_are_drawn_anew():
    net, x = module(masked=0.3), torch.rand(5, 20)
    assert not torch.equal(net.view(x), net.view(x))
    hidden = (net.view(torch.ones(200, 20)) == 0).float().mean()
    assert 0.25 < float(hidden) < 0.35


def test_noise_of_the_paper_lies_between_0_and_1():
    net = module(masked=0.0, noisy=1.0, noise=1.0, rescaled=True)
    noise = net.view(torch.zeros(50, 20))
    assert float(noise.min()) == 0
    assert float(noise.max()) == 1


def test_noise_of_the_code_falls_on_four_fifths():
    net = module(masked=0.0, noisy=0.8, noise=0.5)
    noise = net.view(torch.zeros(200, 20))
    assert 0.77 < float((noise != 0).float().mean()) < 0.83
    assert 0.45 < float(noise[noise != 0].std()) < 0.55


def test_pseudo_labels_are_those_of_k_means_and_leave_the_network_in_training():
    net = module(width=16).train()
    x = torch.randn(2, 20).repeat_interleave(10, dim=0) + 0.01 * torch.randn(20, 20)
    labels = net.pseudo_labels(x, 2)
    assert metrics.ari(np.repeat(["a", "b"], 10), labels.numpy().astype(str)) == 1
    assert net.training


@pytest.mark.parametrize("n", [1, 2, 17])
def test_the_loss_of_few_cells_and_of_one_cluster_is_finite(n):
    net = module(masked=0.0, width=16)
    x = torch.ones(n, 20)  # all alike: whatever the number, one cluster
    total, terms = net.loss(x, x, 4)
    total.backward()
    assert set(terms) == {"instance", "cluster"}
    assert torch.isfinite(total)
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)


def test_without_lambda_there_is_no_clustering_in_training(monkeypatch):
    net, x = module(cluster_weight=0.0), torch.rand(5, 20)
    monkeypatch.setattr(net, "pseudo_labels", lambda *_: pytest.fail("k-means was run"))
    assert set(net.loss(x, x, 2)[1]) == {"instance"}


def test_probabilities_are_those_of_the_nearest_centroid():
    net = module(width=16).eval()
    x = torch.randn(8, 20)
    h = net.encode(net.inputs(x)).detach()
    net.centroids, net.cluster_of = h[:4].clone(), torch.tensor([0, 1, 0, 2])
    proba, _ = net(x)
    assert proba.shape == (8, 3)
    torch.testing.assert_close(proba.sum(dim=1), torch.ones(8))
    nearest = torch.cdist(h, net.centroids).argmin(dim=1)
    assert torch.equal(proba.argmax(dim=1), net.cluster_of[nearest])
    net.cluster_of = torch.arange(4)
    torch.testing.assert_close(net(x)[0], sctool.losses.student_t(h, net.centroids))


@pytest.mark.parametrize("n_components", [None, 4])
def test_inputs_are_components_or_standardised_genes(n_components):
    model = train(simulate(40), n_components=n_components, n_top_genes=50)
    x = model._training_cells().x.toarray()
    inputs = model.module.cpu().inputs(torch.from_numpy(x)).numpy()
    expected = x - x.mean(axis=0)
    if n_components is None:
        expected = expected / x.std(axis=0)
    else:
        u, d, _ = np.linalg.svd(expected, full_matrices=False)
        expected = (u * d)[:, :4] / (d[0] / np.sqrt(39))
        expected *= np.sign((expected * inputs).sum(axis=0))
    np.testing.assert_allclose(inputs, expected, atol=1e-3)


# -- clusters ------------------------------------------------------------------------------------


def slow_join(expression: np.ndarray, encoded: np.ndarray, n: int) -> set[frozenset[int]]:
    """Average linkage by hand, on the geometric mean of both distances."""

    def apart(a: int, b: int) -> float:
        r = np.corrcoef(expression[a], expression[b])[0, 1]
        return float(np.sqrt((1 - r) * np.linalg.norm(encoded[a] - encoded[b])))

    groups = [frozenset([i]) for i in range(len(expression))]
    while len(groups) > n:
        _, a, b = min(
            (np.mean([apart(i, j) for i in a for j in b]), sorted(a), sorted(b))
            for a, b in itertools.combinations(groups, 2)
        )
        groups = [g for g in groups if not g & {*a, *b}] + [frozenset([*a, *b])]
    return set(groups)


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_groups_are_joined_by_what_they_express_and_by_their_code(n):
    rng = np.random.default_rng(n)
    expression, encoded = rng.random((9, 20)), rng.normal(size=(9, 3))
    codes = merge_groups(expression, encoded, n)
    found = {frozenset(np.flatnonzero(codes == code).tolist()) for code in np.unique(codes)}
    assert sorted(np.unique(codes)) == list(range(n))
    assert found == slow_join(expression, encoded, n)


def test_few_groups_and_groups_that_express_nothing_are_no_trouble():
    expression = np.array([[0.0, 0, 0], [0, 0, 0], [1, 2, 3], [1, 2, 3.1]])
    encoded = np.array([[0.0], [0.1], [5], [5.1]])
    assert merge_groups(expression, encoded, 4).tolist() == [0, 1, 2, 3]
    assert merge_groups(expression, encoded, 9).tolist() == [0, 1, 2, 3]
    codes = merge_groups(expression, encoded, 2)
    assert codes[0] == codes[1] != codes[2] == codes[3]


def spread(sizes: list[int], centres: list[list[float]], sd: list[float]):
    """Cells about some centres: positions, expression by which the centres differ, and truth."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    h = np.array(centres)[truth] + rng.normal(size=(len(truth), 2)) * sd
    profiles = np.random.default_rng(1).random((len(sizes), 50))
    x = sp.csr_matrix(profiles[truth] + 0.3 * rng.random((len(truth), 50)))
    return h.astype(np.float32), x, truth


def test_a_small_cluster_is_spared_where_k_means_cuts_a_large_one():
    h, x, truth = spread([600, 30], [[0.0, 0], [9, 0]], [1, 6])

    def score(n_prototypes: int) -> float:
        centroids, codes = partition(h, h, x, 2, n_prototypes, 0)
        nearest = ((h[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)
        return metrics.ari(truth.astype(str), codes[nearest].astype(str))

    assert score(1) < 0.5
    assert score(8) > 0.9


@pytest.mark.parametrize("n_prototypes", [1, 8])
def test_the_largest_cluster_comes_first(n_prototypes):
    h, x, _ = spread([20, 60, 40], [[0.0, 0], [50, 0], [0, 50]], [1, 1])
    centroids, codes = partition(h, h, x, 3, n_prototypes, 0)
    nearest = codes[((h[:, None] - centroids) ** 2).sum(axis=2).argmin(axis=1)]
    assert np.bincount(nearest).tolist() == [60, 40, 20]


def test_cells_that_are_all_alike_are_one_cluster():
    h = np.ones((30, 4), dtype=np.float32)
    centroids, codes = partition(h, h, sp.csr_matrix(h), 3, 8, 0)
    assert len(centroids) == 1
    assert codes.tolist() == [0]


def test_many_cells_are_clustered_by_minibatches(monkeypatch):
    monkeypatch.setattr("sctool._neighbors.MANY_CELLS", 50)
    h = np.repeat([[0.0, 0], [9, 9]], 30, axis=0)
    found = k_means(h, 2, 0)
    assert type(found).__name__ == "MiniBatchKMeans"
    assert len(set(found.labels_)) == 2


def test_the_number_of_blobs_is_counted_and_the_interval_holds_it():
    rng = np.random.default_rng(0)
    z = np.repeat(20 * np.eye(5), 60, axis=0) + rng.normal(size=(300, 5))
    found = _neighbors.count_clusters(z.astype(np.float32), np.random.default_rng(0))
    assert found["low"] <= found["n"] <= found["high"]
    assert 5 <= found["n"] <= 8


# -- model ---------------------------------------------------------------------------------------


def test_every_preset_clusters(trained):
    names = trained.predict()
    assert set(names) <= set(trained.names_) == {"0", "1", "2", "3"}
    soft = trained.predict(soft=True)
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-5)
    assert list(soft.columns) == trained.names_
    assert trained.history["loss_train"].shape[0] == FAST["max_epochs"]
    z = trained.get_latent_representation()
    assert z.shape == (48, trained.module.n_latent)
    assert np.isfinite(z).all()


def test_a_saved_model_clusters_the_same(trained, tmp_path):
    trained.save(tmp_path / "model")
    model, adata = load(tmp_path / "model"), simulate(48)
    assert type(model) is CICL
    assert model.n_clusters_ == trained.n_clusters_
    pd.testing.assert_frame_equal(
        model.predict(adata, soft=True), trained.predict(adata, soft=True)
    )
    np.testing.assert_allclose(
        model.get_latent_representation(adata), trained.get_latent_representation(), atol=1e-5
    )
    order = np.random.default_rng(0).permutation(adata.n_vars)
    shuffled = model.predict(adata[:, order].copy(), soft=True)
    np.testing.assert_allclose(shuffled, trained.predict(soft=True), atol=1e-5)


@pytest.mark.parametrize("n", [1, 7])
def test_new_cells_may_be_few(trained, n):
    assert trained.predict(simulate(n, seed=9), soft=True).shape == (n, 4)


@pytest.mark.parametrize("preset", PRESETS)
def test_all_weights_move(preset):
    adata = simulate(32)
    CICL.setup_anndata(adata)
    model = CICL(adata, preset=preset, n_clusters=3, lr=1e-3)
    before = {k: v.clone() for k, v in model.module.named_parameters()}
    model.train(**FAST)
    still = [k for k, v in model.module.named_parameters() if torch.equal(v.cpu(), before[k])]
    assert still == []


def test_one_cell_more_than_full_batches():
    model = train(simulate(33))
    assert np.isfinite(model.predict(soft=True).to_numpy()).all()


def test_attention_over_cells_encodes_in_even_batches_of_a_fixed_order():
    model = train(simulate(33), preset="paper")
    first = model.get_latent_representation()
    np.testing.assert_array_equal(model.get_latent_representation(), first)
    sizes = [len(h) for _, h in model._forward_cells(model._training_cells())]
    assert sizes == [11, 11, 11]


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_counts_are_scaled_to_the_median_total_and_what_is_none_to_10000(preset):
    adata = simulate(48)
    CICL.setup_anndata(adata)
    found = CICL(adata, preset=preset).features_.target_sum
    assert found == np.median(np.asarray(simulate(48).X.sum(axis=1)))
    adata = simulate(48)
    sc.pp.normalize_total(adata, target_sum=2e3)
    sc.pp.log1p(adata)
    CICL.setup_anndata(adata)
    assert CICL(adata, preset=preset).features_.target_sum == 1e4


def test_the_paper_takes_500_genes():
    settings = CICL.PRESETS["paper"]
    assert (settings.n_top_genes, settings.lr, settings.batch_size) == (500, 1e-5, 6000)
    assert (settings.cluster_weight, settings.temperature, settings.n_layers) == (0.1, 0.5, 4)


def test_unknown_settings_and_choices_are_refused():
    adata = simulate(20)
    CICL.setup_anndata(adata)
    with pytest.raises(TypeError, match=r"CICL has no settings \['n_cluster'\]"):
        CICL(adata, n_cluster=3)
    with pytest.raises(ValueError, match="preset='best' is unknown"):
        CICL(adata, preset="best")
    with pytest.raises(ValueError, match="attention='genes' is unknown"):
        CICL(adata, attention="genes")
    with pytest.raises(ValueError, match="n_clusters=0"):
        CICL(adata, n_clusters=0)
    with pytest.raises(ValueError, match="20 cells are too few for 21 clusters"):
        CICL(adata, n_clusters=21)
    with pytest.raises(RuntimeError, match=r"not trained: call train\(\)"):
        CICL(adata).predict()


def test_setup_refuses_views_and_missing_layers():
    adata = simulate(20)
    with pytest.raises(KeyError, match="layer='counts' is not in"):
        CICL.setup_anndata(adata, layer="counts")
    with pytest.raises(ValueError, match="adata is a view"):
        CICL.setup_anndata(adata[:10])


@pytest.mark.parametrize(
    ("preset", "n_genes"), [("default", 11), ("default", 13), ("paper", 11), ("code", 13)]
)
def test_a_panel_of_few_genes_does(preset, n_genes):
    model = train(simulate(40)[:, :n_genes].copy(), preset=preset)
    assert np.isfinite(model.predict(soft=True)).all(axis=None)


def test_constant_genes_do_no_harm():
    adata = simulate(40)
    x = adata.X.toarray()
    x[:, 0], x[:, 1] = 0, 3
    adata.X = sp.csr_matrix(x)
    assert np.isfinite(train(adata, preset="code").get_latent_representation()).all()


# -- on real cells -------------------------------------------------------------------------------


@pytest.mark.slow
def test_real_blood_is_clustered_by_type(read_real):
    adata = read_real("pbmc_kang_ctrl_to_stim_authors")
    adata = adata[(adata.obs["split"] == "query").to_numpy()].copy()
    truth = adata.obs["cell_type"].astype(str).to_numpy()
    # (as well in a third of the time that the default preset takes)
    settings = {"batch_size": 64, "min_steps": 120}
    sctool.tl.cluster(adata, n_clusters=5, model_kwargs=settings, train_kwargs=QUIET)
    found = metrics.ari(truth, adata.obs["cicl"].astype(str))
    assert found > 0.6
