"""Semi-supervised k-means: who holds which centre, and what is found of hidden types."""

from collections.abc import Callable

import anndata as ad
import numpy as np
import pytest
import torch
from synthetic import TYPES, simulate, simulate_joint

import sctool
from sctool import novelty
from sctool.model import SSKM, load
from sctool.model import _sskm as sskm
from sctool.novelty import Novelty

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def hidden() -> tuple[ad.AnnData, ad.AnnData]:
    """Return a query of four types and a reference that lacks one of them, "DC"."""
    adata, ref = simulate(400, seed=1), simulate(400, seed=0)
    adata.obs = adata.obs.rename(columns={"cell_type": "truth"})
    return adata, ref[ref.obs["cell_type"] != "DC"].copy()


@pytest.fixture(scope="module")
def found(hidden) -> ad.AnnData:
    return sctool.tl.annotate(*hidden, method="sskm", novel=1, copy=True)


@pytest.fixture
def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Return cells in three heaps, the first two of them labelled in part."""
    rng = RNG(0)
    heap = np.repeat([0, 1, 2], 30)
    z = rng.normal(size=(90, 5)) + 6 * np.eye(3, 5)[heap]
    return z, np.where((heap < 2) & (np.arange(90) % 3 == 0), heap, -1)


def told(n: int) -> Callable[..., Novelty]:
    """What estimates the number of novel types, when it always says ``n``."""
    note = f"novel: number of types: {n}, interval: {n} to {n + 1}"
    none = np.zeros(0)
    found = Novelty(True, none, none, none, n, n, n + 1, True, ["how", note])
    return lambda *args: found


# -- the whole -----------------------------------------------------------------------------------


def test_a_hidden_type_is_found_as_a_group_of_its_own(hidden, found):
    truth = hidden[0].obs["truth"].astype(str)
    novel = found.obs["sctool_novel"].to_numpy()
    assert novel[truth == "DC"].mean() > 0.9
    assert novel[truth != "DC"].mean() < 0.05
    assert list(found.obs["sctool"].cat.categories) == ["B", "CD4 T/NK", "Mono", "novel_1"]
    assert (found.obs["sctool"].astype(str).replace("novel_1", "DC") == truth).mean() > 0.9
    assert "novel: number of types: 1, requested: 1" in found.uns["sctool"]["audit"]
    assert list(found.uns["sctool"]["novel"].index) == ["novel_1"]


def test_the_number_is_estimated_by_default_and_the_audit_says_how(hidden, found, monkeypatch):
    monkeypatch.setattr(novelty, "find", told(1))
    result = sctool.tl.annotate(*hidden, method="sskm", copy=True)
    assert list(result.uns["sctool"]["novel_classes"]) == ["novel_1"]
    assert "novel: number of types: 1, interval: 1 to 2" in result.uns["sctool"]["audit"]
    assert result.uns["sctool"]["n_novel"] == {"n": 1, "low": 1, "high": 2}
    monkeypatch.setattr(novelty, "find", told(0))
    result = sctool.tl.annotate(*hidden, method="sskm", copy=True)
    assert not result.obs["sctool_novel"].any()
    assert list(result.uns["sctool"]["novel_classes"]) == []


def test_without_novel_types_nothing_is_estimated_or_flagged(hidden, monkeypatch):
    monkeypatch.delattr(novelty, "find")
    result = sctool.tl.annotate(*hidden, method="sskm", novel=0, copy=True)
    assert "sctool_novel" not in result.obs
    assert not any(note.startswith("novel:") for note in result.uns["sctool"]["audit"])


def test_groups_are_named_by_size(hidden):
    adata, ref = hidden
    unequal = np.flatnonzero((adata.obs["truth"] != "DC") | (np.arange(400) % 8 == 2))
    result = sctool.tl.annotate(adata[unequal].copy(), ref, method="sskm", novel=3, copy=True)
    novel = list(result.uns["sctool"]["novel_classes"])
    assert novel == ["novel_1", "novel_2", "novel_3"]
    sizes = result.obs["sctool"].value_counts()[novel].to_numpy()
    assert (np.diff(sizes) <= 0).all()
    assert sizes[-1] > 0


def test_a_saved_model_knows_the_groups(hidden, tmp_path):
    adata, ref = hidden
    joint = ad.concat({"ref": ref, "query": adata}, index_unique="-", join="inner")
    joint.obs["label"] = [*ref.obs["cell_type"].astype(str), *["Unknown"] * adata.n_obs]
    SSKM.setup_anndata(joint, "label")
    torch.manual_seed(0)
    model = SSKM(joint, n_novel=1)
    model.train()
    assert model.names_ == ["B", "CD4 T/NK", "Mono", "novel_1"]
    model.save(tmp_path / "model")
    again = load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(adata, soft=True), model.predict(adata, soft=True))
    np.testing.assert_array_equal(
        again.get_latent_representation(adata), model.get_latent_representation(adata)
    )
    result = sctool.tl.annotate(adata, again, copy=True)
    assert result.obs["sctool_novel"][adata.obs["truth"] == "DC"].mean() > 0.9
    assert any("no new type can be found" in note for note in result.uns["sctool"]["audit"])


def test_a_limit_on_the_rounds_is_told(hidden):
    args = {"method": "sskm", "novel": 1, "copy": True}
    result = sctool.tl.annotate(*hidden, **args, train_kwargs={"max_epochs": 1})
    assert "training: not converged after 1 iterations of k-means" in result.uns["sctool"]["audit"]


# -- the representation and the probabilities ----------------------------------------------------


@pytest.fixture(scope="module")
def model() -> SSKM:
    joint = simulate_joint(150, 150)
    SSKM.setup_anndata(joint, "cell_type")
    torch.manual_seed(0)
    model = SSKM(joint, n_novel=2)
    model.train()
    return model


def test_both_blocks_have_the_same_total_variance(model):
    z = model.get_latent_representation()
    assert z.shape == (300, 20 + len(TYPES))
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(z[:, :20].var(axis=0).sum(), 1, rtol=1e-4)
    np.testing.assert_allclose(z[:, 20:].var(axis=0).sum(), 1, rtol=1e-4)


def test_probabilities_are_those_of_a_spherical_mixture(model):
    z = model.get_latent_representation().astype(float)
    centres, variance = model.module.centres.numpy(), model.module.variance.item()
    squares = ((z[:, None] - centres) ** 2).sum(axis=2)
    density = np.exp(-squares / (2 * variance))
    expected = density / density.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict(soft=True), expected, atol=1e-4)
    # the variance is that of the cells about their own centres
    labels = model._cells.arrays["label"]
    own = np.where(labels >= 0, labels, squares.argmin(axis=1))
    pooled = squares[np.arange(len(z)), own].sum() / z.size
    np.testing.assert_allclose(variance, pooled, rtol=1e-4)


def test_the_history_is_the_inertia_by_round(model):
    inertia = model.history["inertia_train"]["inertia_train"].to_numpy()
    assert len(inertia) >= 2
    assert (np.diff(inertia) <= 1e-9).all()


# -- the pieces ----------------------------------------------------------------------------------


def test_the_update_is_that_of_a_slow_loop(blobs):
    z, labels = blobs
    one = sskm.cluster(z, labels, 2, RNG(3), n_init=1, max_rounds=1)
    means = np.stack([z[labels == code].mean(axis=0) for code in (0, 1)])
    start = sskm.scatter_centres(z[labels < 0], means, 2, RNG(3))
    codes = []
    for cell, label in zip(z, labels, strict=True):
        distances = [sum((cell - centre) ** 2) for centre in start]
        codes.append(label if label >= 0 else int(np.argmin(distances)))
    centres, inertia = [], 0.0
    for group in range(4):
        members = [cell for cell, code in zip(z, codes, strict=True) if code == group]
        centres.append(sum(members) / len(members) if members else start[group])
        inertia += sum(sum((cell - centres[-1]) ** 2) for cell in members)
    np.testing.assert_array_equal(one.codes, codes)
    np.testing.assert_allclose(one.centres, centres)
    np.testing.assert_allclose(one.inertia, [inertia])
    assert not one.converged


def test_a_group_that_loses_its_cells_keeps_its_centre():
    z, centres = np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([[5.0, 5.0], [7.0, 7.0]])
    updated = sskm.update_centres(z, np.array([0, 0]), centres)
    np.testing.assert_array_equal(updated, [[1, 2], [7, 7]])


def test_labelled_cells_never_move(blobs):
    z, labels = blobs
    labels = labels.copy()
    labels[60] = 0  # a cell of the third heap, said to be of the first type
    result = sskm.cluster(z, labels, 1, RNG(0))
    labelled = labels >= 0
    np.testing.assert_array_equal(result.codes[labelled], labels[labelled])
    assert (result.codes[61:] == 2).all()
    assert result.converged
    # and they take part in their centre
    np.testing.assert_allclose(result.centres[0], z[result.codes == 0].mean(axis=0))


def test_known_centres_start_at_the_labelled_means(blobs, monkeypatch):
    z, labels = blobs
    starts = []
    scatter = sskm.scatter_centres

    def watched(z, centres, *args):
        starts.append(centres)
        return scatter(z, centres, *args)

    monkeypatch.setattr(sskm, "scatter_centres", watched)
    sskm.cluster(z, labels, 1, RNG(0), n_init=3)
    expected = [z[labels == 0].mean(axis=0), z[labels == 1].mean(axis=0)]
    assert len(starts) == 3
    for start in starts:
        np.testing.assert_allclose(start, expected)


def test_novel_centres_are_drawn_by_squared_distance():
    z = np.array([[0.0], [1.0], [3.0]])
    drawn = [sskm.scatter_centres(z, z[:1], 1, RNG(seed))[1, 0] for seed in range(1000)]
    values, counts = np.unique(drawn, return_counts=True)
    np.testing.assert_array_equal(values, [1, 3])  # never where a centre is
    np.testing.assert_allclose(counts / 1000, [0.1, 0.9], atol=0.02)
    assert sskm.scatter_centres(z[:1], z[:1], 1, RNG(0)).shape == (2, 1)  # all distances are 0


def test_the_restart_of_lowest_inertia_wins(blobs):
    z, labels = blobs
    one_by_one = []
    rng = RNG(5)
    for _ in range(4):
        one_by_one.append(sskm.cluster(z, labels, 3, rng, n_init=1).inertia[-1])
    best = sskm.cluster(z, labels, 3, RNG(5), n_init=4)
    assert best.inertia[-1] == min(one_by_one)
    with pytest.raises(ValueError, match="n_init=0"):
        sskm.cluster(z, labels, 1, RNG(0), n_init=0)


def test_no_more_novel_groups_than_cells(blobs):
    z, labels = blobs
    few = [*np.flatnonzero(labels >= 0), 61, 62]
    assert len(sskm.cluster(z[few], labels[few], 5, RNG(0)).centres) == 4
    labelled = np.flatnonzero(labels >= 0)
    assert len(sskm.cluster(z[labelled], labels[labelled], 5, RNG(0)).centres) == 2


@pytest.mark.parametrize("n_novel", [None, 0, 2])
def test_without_unlabelled_cells_it_is_the_labelled_means(n_novel):
    ref = simulate(120)
    SSKM.setup_anndata(ref, "cell_type")
    model = SSKM(ref, n_novel=n_novel)
    model.train(enable_progress_bar=False)
    assert model.names_ == TYPES
    z, labels = model.get_latent_representation(), model._cells.arrays["label"]
    means = [z[labels == code].mean(axis=0) for code in range(4)]
    np.testing.assert_allclose(model.module.centres, means, atol=1e-5)
    assert (model.predict() == ref.obs["cell_type"].to_numpy()).mean() > 0.95
