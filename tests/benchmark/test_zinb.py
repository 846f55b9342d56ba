"""Rivals of CICL: auto-encoders that cluster the cells that they embed."""

from functools import partial

import numpy as np
import pytest
import torch
from scvi.distributions import NegativeBinomial

from sctool import metrics
from sctool._train import seeded
from sctool.tl import cluster
from sctool_benchmark import _zinb
from sctool_benchmark._ablations import CLUSTER_ABLATIONS, CLEARModule
from sctool_benchmark._tasks import known_methods

pytestmark = pytest.mark.usefixtures("registered")

# -- Losses ----------------------------------------------------------------------------------------


def test_without_dropouts_the_likelihood_is_negative_binomial() -> None:
    torch.manual_seed(0)
    counts = torch.poisson(torch.full((5, 7), 2.0))
    mean, theta = torch.rand(2, 5, 7) + 0.5
    never = torch.full((5, 7), -40.0)
    expected = -NegativeBinomial(mu=mean, theta=theta).log_prob(counts).mean()
    torch.testing.assert_close(_zinb.zinb_loss(counts, mean, theta, never, 1.0), expected)
    # With dropouts a zero is likelier, and their probability has its price.
    zeros, half = torch.zeros(5, 7), torch.zeros(5, 7)
    without, with_dropouts = (_zinb.zinb_loss(zeros, mean, theta, d, 0.0) for d in (never, half))
    assert with_dropouts < without
    priced = _zinb.zinb_loss(zeros, mean, theta, half, 2.0)
    torch.testing.assert_close(priced, with_dropouts + 2 * 0.25)


def test_the_target_is_sharper_and_favours_small_clusters() -> None:
    q = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.9, 0.1]])
    p = _zinb.target_distribution(q)
    # q^2 / (2.1, 0.9) by hand
    expected = torch.tensor([0.36 / 2.1, 0.16 / 0.9])
    torch.testing.assert_close(p[0], expected / expected.sum())
    assert p[2, 0] > q[2, 0]
    assert p[0, 0] < q[0, 0]  # the large cluster weighs less
    one_each = torch.tensor([[0.7, 0.3], [0.3, 0.7]])
    assert (_zinb.target_distribution(one_each).max(dim=1).values > 0.7).all()


def test_soft_k_means_weighs_the_nearest_centroid() -> None:
    z, centroids = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    distance = np.array([[0.0, 4.0], [1.0, 1.0]])
    weight = np.exp(-distance) / np.exp(-distance).sum(axis=1, keepdims=True)
    weight = weight**2 / (weight**2).sum(axis=1, keepdims=True)
    expected = (weight * distance).sum(axis=1).mean()
    assert float(_zinb.soft_k_means(z, centroids)) == pytest.approx(expected, rel=1e-5)


def test_similarities_to_other_cells_are_made_sharper() -> None:
    z = torch.tensor([[0.0], [1.0], [3.0]])
    total = 0.0
    for i in range(3):
        kernel = np.array([1 / (1 + float(z[i] - z[j]) ** 2) for j in range(3) if j != i])
        p = kernel / kernel.sum()
        q = p**2 / (p**2).sum()
        total += float((q * np.log(q / p)).sum())
    assert float(_zinb.pairwise_divergence(z)) == pytest.approx(total, rel=1e-4)


def test_a_corrupted_gene_has_the_value_of_another_cell() -> None:
    torch.manual_seed(0)
    x = torch.arange(60.0).reshape(20, 3)
    corrupted, mask = _zinb.corrupt(x, 0.4)
    assert torch.equal(mask.bool(), corrupted != x)
    assert 0.2 < mask.mean() < 0.6
    for gene in range(3):
        assert set(corrupted[:, gene].tolist()) <= set(x[:, gene].tolist())
    assert not _zinb.corrupt(x, 0.0)[1].any()


def test_neighbours_are_those_of_the_cell_and_not_of_its_corrupted_view() -> None:
    bank = torch.eye(3)
    z, same, other = bank[:1], bank[:1], bank[1:2]
    contrast = partial(_zinb.neighbour_contrast, z, bank=bank, n_neighbors=1, temperature=1.0)
    assert float(contrast(same)) == pytest.approx(np.log(np.e + 2) - 1, rel=1e-5)
    assert float(contrast(other)) == pytest.approx(np.log(np.e + 2), rel=1e-5)


# -- Presets ---------------------------------------------------------------------------------------


def test_presets_differ_in_what_the_papers_differ_in() -> None:
    parts = ("assigned", "paired", "compact", "mask_estimated", "neighbours", "apart")
    used = {
        name: [part for part in parts if getattr(settings, part)]
        for name, settings in _zinb.PUBLISHED.items()
    }
    assert used == {
        "scdeepcluster": ["assigned"],
        "sczidesk": ["paired", "compact"],
        "scname": ["compact", "mask_estimated", "neighbours"],
    }
    assert {settings.likelihood for settings in _zinb.PUBLISHED.values()} == {"zinb"}
    with pytest.raises(ValueError, match="likelihood='poisson' is unknown"):
        _zinb.AutoencoderSettings(likelihood="poisson")


# -- Cells -----------------------------------------------------------------------------------------

FAST = {"enable_progress_bar": False, "max_epochs": 40}


@pytest.mark.parametrize("method", ["clear", "scdeepcluster", "sczidesk", "scname"])
def test_clusters_are_the_types(cells, method: str) -> None:
    truth = cells.obs["cell_type"].astype(str)
    cluster(cells, method=f"rival-{method}", n_clusters=4, key_added="found", train_kwargs=FAST)
    assert metrics.ari(truth, cells.obs["found"].astype(str)) > 0.7
    sizes = cells.obs["found"].value_counts()
    assert sizes["0"] == sizes.max()
    assert cells.uns["found"]["n_clusters"] == {"n": 4}


def test_joining_may_be_judged_without_an_encoder(cells) -> None:
    settings = dict(known_methods()["components-joined"].model_kwargs)
    arguments = {"n_clusters": 4, "key_added": "found", "train_kwargs": FAST | {"max_epochs": 1}}
    cluster(cells, method="cicl", model_kwargs=settings, **arguments)
    z = cells.obsm["X_found"]
    assert z.shape == (160, 50)
    assert np.abs(z.mean(axis=0)).max() < 1e-4  # components, the first of unit variance
    assert z[:, 0].std() == pytest.approx(1, rel=0.05)
    truth = cells.obs["cell_type"].astype(str)
    assert metrics.ari(truth, cells.obs["found"].astype(str)) > 0.9


def test_the_queue_holds_the_latest_keys() -> None:
    with seeded(0):
        network = CLEARModule(6, 2, CLUSTER_ABLATIONS["rival-clear"].PRESETS["default"])
        before = network.queue.clone()
        x = torch.rand(10, 6)
        network.train()
        loss, _ = network.loss(x, x, 2)
    loss.backward()
    assert torch.equal(network.queue[10:], before[:-10])
    torch.testing.assert_close(network.queue[:10].norm(dim=1), torch.ones(10))
    assert all(p.grad is None for p in network.slow.parameters())
    assert all(p.grad is not None for p in network.layers.parameters())
