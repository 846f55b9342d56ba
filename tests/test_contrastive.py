"""Contrastive components: the stages, what each trains, and what the components return."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.metrics import roc_auc_score
from synthetic import FAST, MARKERS, TYPES, simulate, simulate_joint, simulate_sides
from torch.utils.data import DataLoader

import sctool
from sctool._train import Cells, TypeBatches, TypeSplitter, seeded
from sctool.model import ACTINN, LOGISTIC, SCDAE, ContrastiveClassifier, load
from sctool.model._contrastive import Circles, ContrastiveSettings, Sphere, deal, marker_genes
from sctool.model._regression import type_weights

pytestmark = pytest.mark.usefixtures("empty_cwd")
BACKBONES = {"linear": LOGISTIC, "actinn": ACTINN, "scdae": SCDAE}
every_backbone = pytest.mark.parametrize("backbone", list(BACKBONES))
every_component = pytest.mark.parametrize("component", ["mlp", "mls"])


def train(joint: ad.AnnData, backbone: str = "linear", train_kwargs=FAST, **settings):
    """Return a trained model."""
    ContrastiveClassifier.setup_anndata(joint, "cell_type", "Unknown")
    with seeded(0):
        model = ContrastiveClassifier(joint, backbone=backbone, **settings)
        model.train(**train_kwargs)
    return model


def accuracy(model, adata: ad.AnnData) -> float:
    return float((model.predict(adata) == adata.obs["truth"].astype(str).to_numpy()).mean())


def with_few(name: str, n: int) -> ad.AnnData:
    """Return a reference in which a type has ``n`` cells."""
    adata = simulate(160)
    members = np.flatnonzero(adata.obs["cell_type"] == name)
    return adata[np.setdiff1d(np.arange(adata.n_obs), members[n:])].copy()


# -- components ----------------------------------------------------------------------------------


def test_every_circle_is_of_unit_length():
    circles = Circles(7, 4, ContrastiveSettings(component="mls"))
    z = torch.randn(20, 7)
    points = circles.points(z)
    assert points.shape == (20, 4, 2)
    torch.testing.assert_close(points.norm(dim=2), torch.ones(20, 4))
    torch.testing.assert_close(circles(z), points.flatten(1))


@pytest.mark.parametrize(("n_latent", "expected"), [(None, 7), (3, 3)])
def test_the_sphere_is_as_wide_as_its_input_unless_told(n_latent, expected):
    sphere = Sphere(7, ContrastiveSettings(component="mlp", n_latent=n_latent))
    z = sphere(torch.randn(20, 7))
    assert z.shape == (20, expected)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(20))


def test_a_circle_started_at_a_score_puts_its_order_on_the_circle():
    rng = np.random.default_rng(0)
    weight, bias, z = rng.normal(size=(4, 7)), rng.normal(size=4), rng.normal(size=(50, 7))
    circles = Circles(7, 4, ContrastiveSettings(component="mls"))
    circles.start_at(weight, bias, z)
    points = circles.points(torch.from_numpy(z).float()).detach().numpy()
    assert (points[:, :, 1] > 0).all()  # half a circle, so that the order is one
    score = z @ weight.T + bias
    for k in range(4):
        assert (np.argsort(points[:, k, 0]) == np.argsort(score[:, k])).all()


@every_backbone
@every_component
def test_the_embedding_is_the_components(backbone, component):
    adata, _ = simulate_sides()
    model = train(simulate_joint(), backbone, component=component, n_latent=6)
    z = model.get_latent_representation(adata)
    if component == "mls":
        z = z.reshape(len(z), len(TYPES), 2)
    else:
        assert z.shape[1] == 6
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, atol=1e-5)
    assert "head_loss_train" in model.history_
    assert ("component_loss_train" in model.history_) == (component == "mlp")


@pytest.mark.parametrize(("backbone", "n"), [("linear", 4), ("actinn", 50), ("scdae", 125)])
def test_without_a_component_the_embedding_is_the_encoders(backbone, n):
    adata, _ = simulate_sides()
    model = train(simulate_joint(), backbone, component=None)
    assert model.get_latent_representation(adata).shape == (adata.n_obs, n)
    assert model.module.component is None


def test_without_a_component_logistic_is_scikit_learns():
    from sklearn.linear_model import LogisticRegression

    joint = simulate_joint()
    LOGISTIC.setup_anndata(joint, "cell_type", "Unknown")
    model = LOGISTIC(joint)
    model.train()
    x, y = model._examples(False)
    fitted = LogisticRegression(C=1.0, max_iter=500).fit(x, y)
    np.testing.assert_allclose(
        model.predict(soft=True).to_numpy()[:120], fitted.predict_proba(x), atol=1e-5
    )
    assert set(model.history_) == {"supervised_train"}


# -- stages --------------------------------------------------------------------------------------


@every_backbone
@every_component
def test_each_stage_trains_its_part_and_freezes_the_others(backbone, component, monkeypatch):
    moved = {}
    run = ContrastiveClassifier._run

    def watch(self, stage, *args):
        before = {name: p.detach().cpu().clone() for name, p in self.module.named_parameters()}
        history = run(self, stage, *args)
        moved[stage.name] = {
            name.split(".")[0]
            for name, p in self.module.named_parameters()
            if not torch.equal(p.cpu(), before[name])
        }
        return history

    monkeypatch.setattr(ContrastiveClassifier, "_run", watch)
    train(simulate_joint(), backbone, component=component, refined=True, folds=1)
    expected = {"component": {"component"}}
    if backbone == "actinn":
        expected |= {"base": {"encoder", "head"}, "head": {"head"}}
    if backbone == "scdae":
        expected |= {
            "reconstruct": {"encoder", "decoder"},
            "classify": {"head"},
            "joint": {"encoder", "decoder", "head"},
            "head": {"head"},
        }
    assert moved == expected


@every_backbone
def test_a_pretrained_base_skips_the_first_stage(backbone, tmp_path):
    adata, _ = simulate_sides()
    base = train(simulate_joint(), backbone, component=None, n_top_genes=120)
    base.save(tmp_path / "base")
    for pretrained in (base, tmp_path / "base"):
        model = train(
            simulate_joint(),
            backbone,
            FAST | {"pretrained": pretrained},
            component="mls",
            refined=True,
            folds=1,
        )
        assert set(model.history_) - {"component_loss_validation", "head_loss_validation"} == {
            "component_loss_train",
            "head_loss_train",
        }
        assert list(model.features_.selected) == list(base.features_.selected)
        for a, b in zip(
            model.module.encoder.parameters(), base.module.encoder.parameters(), strict=True
        ):
            assert torch.equal(a.cpu(), b.cpu())
        assert accuracy(model, adata) > 0.6


def test_a_pretrained_base_must_fit():
    base = train(simulate_joint(), "actinn", component=None)
    with pytest.raises(ValueError, match=r"ContrastiveClassifier of backbone='actinn', not 'sc"):
        train(simulate_joint(), "scdae", FAST | {"pretrained": base}, component="mls")
    with pytest.raises(ValueError, match=r"nothing to train: pass component"):
        train(simulate_joint(), "actinn", FAST | {"pretrained": base}, component=None)


def test_scdaes_input_is_corrupted():
    clean = train(simulate_joint(), "scdae", component=None, noise=0.0)
    noisy = train(simulate_joint(), "scdae", component=None, noise=3.0)
    loss = "reconstruct_loss_train"
    first = [float(m.history_[loss].iloc[-1, 0]) for m in (clean, noisy)]
    assert first[1] > 1.05 * first[0]


def test_scdaes_paper_preset_divides_by_the_maximum_of_the_reference():
    joint = simulate_joint()
    model = train(joint, "scdae", component=None, preset="paper", scale_by_maximum=True)
    labelled = model._training_cells().arrays["label"] >= 0
    top = np.expm1(model._training_cells().x[labelled].max())
    assert model.module.inputs.maximum.item() == pytest.approx(top, rel=1e-4)
    scaled = model.module.inputs(torch.tensor([[np.log1p(top)]], dtype=torch.float32))
    assert scaled.item() == pytest.approx(np.log(2), rel=1e-4)


def test_actinns_filter_ignores_the_query():
    joint = simulate_joint()
    changed = joint.copy()
    query = (changed.obs["cell_type"] == "Unknown").to_numpy()
    changed.X[np.flatnonzero(query)] = changed.X[np.flatnonzero(query)] * 3 + 0
    selected = []
    for cells in (joint, changed):
        ACTINN.setup_anndata(cells, "cell_type", "Unknown")
        selected.append(list(ACTINN(cells).features_.selected))
    assert selected[0] == selected[1]
    assert 200 < len(selected[0]) < 300


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


@pytest.mark.parametrize("n", [0, -5, 2.5, "2000"])
def test_a_number_of_marker_genes_that_is_none_is_refused(n):
    with pytest.raises(ValueError, match="n_marker_genes=.* must be a whole number above 0"):
        ContrastiveSettings(n_marker_genes=n)


def test_marker_genes_ignore_the_query():
    joint = simulate_joint()
    changed = joint.copy()
    query = (changed.obs["cell_type"] == "Unknown").to_numpy()
    values = changed.X.toarray()
    values[query] = values[query][:, ::-1]
    changed.X = sp.csr_matrix(values)
    selected = []
    for cells in (joint, changed):
        ContrastiveClassifier.setup_anndata(cells, "cell_type", "Unknown")
        model = ContrastiveClassifier(cells, n_marker_genes=40)
        selected.append(list(model.features_.selected))
        assert len(model.features_.mean) == len(selected[-1]) == 40
    assert selected[0] == selected[1]
    assert set().union(*MARKERS.values()) <= set(selected[0])


@pytest.mark.parametrize("backbone", ["actinn", "linear"])
def test_a_head_may_count_types_the_same(backbone):
    ref, adata = with_few("DC", 6), simulate_sides()[0]
    n = []
    for least in (0, np.inf):
        model = train(ref.copy(), backbone, min_type_weight=least, component=None)
        n.append((model.predict(adata) == "DC").sum())
    assert n[1] > n[0]


def test_a_type_of_few_cells_weighs_as_much_as_half_the_median_one():
    n = np.array([5, 40, 800, 100, 150])
    weight = type_weights(n, 0.5)
    np.testing.assert_allclose(weight / weight[2], [10, 1.25, 1, 1, 1])
    assert weight @ n == pytest.approx(n.sum())
    np.testing.assert_allclose(type_weights(n, 0), 1)
    np.testing.assert_allclose(type_weights(n, np.inf) * n, n.mean())
    np.testing.assert_allclose(type_weights(n, 8), type_weights(n, np.inf))
    np.testing.assert_allclose(type_weights(np.array([7, 7]), 0.5), 1)


@pytest.mark.parametrize("least", [-1, np.nan, "1", None])
def test_a_weight_that_is_none_is_refused(least):
    with pytest.raises(ValueError, match="min_type_weight=.* must be a number, 0 or more"):
        ContrastiveSettings(min_type_weight=least)


def test_C_is_chosen_where_it_is_left_open():
    model = train(simulate_joint(), component=None, C="auto")
    assert any("chosen on 12 held-out cells" in note for note in model.audit_)


# -- rare types ----------------------------------------------------------------------------------


def test_batches_hold_two_cells_of_every_type_and_none_twice():
    label = np.repeat([0, 1, 2, 3], [500, 40, 5, 2])
    batches = TypeBatches(np.arange(1000, 1547), label, 64)
    assert len(batches) == len(list(batches)) == 9
    for batch in batches:
        assert len(batch) == len(set(batch)) <= 64
        n = np.bincount(label[batch - 1000], minlength=4)
        assert n[0] == n[1] == 16
        assert (n[2], n[3]) == (5, 2)


def test_batches_too_small_for_all_types_hold_some():
    label = np.repeat(np.arange(50), 4)
    seen = set()
    for batch in TypeBatches(np.arange(200), label, 16):
        codes, n = np.unique(label[batch], return_counts=True)
        assert (n == 2).all()
        assert len(codes) == 8
        seen |= set(codes)
    assert len(seen) > 30


def test_folds_deal_out_every_type_and_leave_it_a_cell():
    y = np.repeat([0, 1, 2, 3], [50, 7, 2, 1])
    fold = deal(y, 5)
    assert (np.bincount(fold[y == 0]) == 10).all()
    assert fold[y == 3] == [-1]
    for i in range(5):
        assert set(y[fold != i]) == {0, 1, 2, 3}


def test_a_type_with_five_cells_does_not_collapse():
    adata, model = simulate_sides()[0], train(with_few("DC", 5))
    z = model.get_latent_representation(adata).reshape(-1, len(TYPES), 2)[:, TYPES.index("DC")]
    own = adata.obs["truth"].to_numpy() == "DC"
    apart = z[own].mean(axis=0) - z[~own].mean(axis=0)
    assert np.linalg.norm(apart) > 0.3
    assert roc_auc_score(own, z @ apart) > 0.75
    assert len(np.unique(z[own].round(3), axis=0)) > 10  # nor onto a point


@pytest.mark.parametrize("n", [2, 5])
def test_a_head_that_learns_from_cells_outside_names_rare_cells_more_often(n):
    ref, adata = with_few("DC", n), simulate(400, seed=1)
    own = (adata.obs["cell_type"] == "DC").to_numpy()
    recall = [
        (
            train(ref.copy(), folds=folds, train_kwargs=FAST | {"max_epochs": 20}).predict(adata)[
                own
            ]
            == "DC"
        ).mean()
        for folds in (1, 5)
    ]
    assert recall[1] >= recall[0]


# -- thinning ------------------------------------------------------------------------------------


@every_backbone
def test_thinning_draws_from_the_counts(backbone):
    adata, _ = simulate_sides()
    model = train(simulate_joint(), backbone, component="mls", refined=True, thinning=0.5)
    assert accuracy(model, adata) > 0.6
    joint = simulate_joint()
    cells = model._sized(model._training_cells())
    np.testing.assert_allclose(cells.arrays["size"], np.asarray(joint.X.sum(axis=1)).ravel())


def test_thinning_refuses_what_is_no_counts():
    joint = simulate_joint()
    joint.X = joint.X * np.float32(1.5)
    with pytest.raises(ValueError, match=r"thinning=0.5 draws from counts: X holds l"):
        train(joint, component="mls", refined=True, thinning=0.5)


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "cnn"}, r"backbone='cnn' is unknown; known: \('linear', 'actinn', 'scdae'\)"),
        ({"component": "mlps"}, r"component='mlps' is unknown; known: \(None, 'mlp', 'mls'\)"),
        ({"positives": "all"}, r"positives='all' is unknown; known: \('own', 'shared'\)"),
        ({"thinning": 0.0}, r"thinning=0.0 must lie above 0"),
    ],
)
def test_a_wrong_setting_says_what_is_known(settings, message):
    joint = simulate_joint()
    ContrastiveClassifier.setup_anndata(joint, "cell_type", "Unknown")
    with pytest.raises(ValueError, match=message):
        ContrastiveClassifier(joint, **settings)


def test_a_method_is_of_one_backbone():
    joint = simulate_joint()
    LOGISTIC.setup_anndata(joint, "cell_type", "Unknown")
    with pytest.raises(ValueError, match=r"LOGISTIC is of backbone='linear'"):
        LOGISTIC(joint, backbone="actinn")


# -- through annotate ----------------------------------------------------------------------------


@pytest.mark.parametrize("component", [None, "mlp", "mls"])
@pytest.mark.parametrize("method", ["logistic", "actinn", "scdae"])
def test_every_combination_annotates_saves_and_is_blind_to_the_order_of_genes(
    method, component, tmp_path
):
    adata, ref = simulate_sides()
    order = np.random.default_rng(0).permutation(adata.n_vars)
    settings = {"method": method, "model_kwargs": {"component": component}, "train_kwargs": FAST}
    results = [
        sctool.tl.annotate(query, ref, copy=True, **settings) for query in (adata, adata[:, order])
    ]
    for slot in ("sctool_proba", "X_sctool"):
        np.testing.assert_allclose(results[0].obsm[slot], results[1].obsm[slot], atol=1e-4)
    joint = simulate_joint()
    cls = sctool.model.METHODS[method]
    cls.setup_anndata(joint, "cell_type", "Unknown")
    model = cls(joint, component=component)
    model.train(**FAST)
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert type(loaded) is cls
    pd.testing.assert_frame_equal(loaded.predict(adata, soft=True), model.predict(adata, soft=True))
    np.testing.assert_allclose(
        loaded.get_latent_representation(adata), model.get_latent_representation(adata), atol=1e-6
    )


def test_held_out_cells_come_in_the_same_minibatches_each_time():
    label = np.repeat([0, 1], 10)
    cells = Cells(simulate(20).X, {"label": label})
    splitter = TypeSplitter(cells, {"labelled": np.arange(20)}, np.arange(20), 8)
    loaders: list[DataLoader] = [*splitter.val_dataloader(), *splitter.val_dataloader()]
    first, second = ([batch["x"] for batch in loader] for loader in loaders)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# -- plot ----------------------------------------------------------------------------------------


def test_the_plot_draws_a_circle_for_each_type_in_its_colour():
    adata, ref = simulate_sides()
    ref.uns["cell_type_colors"] = ["#ff0000", "#00ff00", "#0000ff", "#ffff00"]
    sctool.tl.annotate(adata, ref, method="contrastive", train_kwargs=FAST)
    ax = sctool.pl.mls(adata, types=["Mono", "B"])
    assert len(ax.lines) == 2
    assert [text.get_text().split("\n")[0] for text in ax.texts] == ["Mono", "B"]
    others, own = ax.collections[:2]
    predicted = (adata.obs["sctool"] == "Mono").sum()
    assert (len(own.get_offsets()), len(others.get_offsets())) == (predicted, 80 - predicted)
    np.testing.assert_allclose(np.linalg.norm(own.get_offsets(), axis=1), 1, atol=1e-5)
    assert own.get_facecolor()[0, :3].tolist() == [1, 1, 0]
    truth = sctool.pl.mls(adata, types=["Mono"], color="truth").collections[1]
    assert len(truth.get_offsets()) == (adata.obs["truth"] == "Mono").sum()


def test_the_plot_says_what_it_lacks():
    adata, ref = simulate_sides()
    sctool.tl.annotate(adata, ref, method="logistic", train_kwargs=FAST)
    with pytest.raises(ValueError, match=r"X_sctool.*no circles of 4 types: annotate with"):
        sctool.pl.mls(adata)
    sctool.tl.annotate(adata, ref, method="contrastive", train_kwargs=FAST)
    with pytest.raises(KeyError, match=r"\['T'\] are not among the types; found \['B'"):
        sctool.pl.mls(adata, types=["T"])
    with pytest.raises(KeyError, match="'who' is not in adata.obs"):
        sctool.pl.mls(adata, color="who")


def test_what_takes_no_steps_takes_no_arguments_of_the_trainer():
    with pytest.raises(TypeError, match=r"train has no arguments \['gradient_clip_val'\]"):
        train(simulate_joint(), component="mls", train_kwargs={**FAST, "gradient_clip_val": 1.0})


def test_the_search_for_C_ends_where_the_held_out_loss_rises(monkeypatch):
    from sctool.model import _regression

    x, y = simulate_joint().X, np.arange(120) % 4
    tried, loss = [], dict(zip((0.1, 0.3, 1.0, 3.0, 10.0, 30.0), (5, 6, 4, 4, 7, 1), strict=True))
    monkeypatch.setattr(_regression, "regress", lambda x, y, C, *_: (tried.append(C) or C, []))
    monkeypatch.setattr(_regression, "cross_entropy", lambda C, x, y: loss[C])
    some = np.arange(10)
    assert _regression.choose_C(x, y, some, some, 10, grid=tuple(loss)) == 1.0
    assert tried == [0.1, 0.3, 1.0, 3.0, 10.0]
    assert _regression.choose_C(x, y, some, some[:0], 10) == 1.0


def test_cells_too_many_to_be_made_dense_are_fitted_alike(monkeypatch):
    from sctool.model import _regression

    x, y = sp.csr_matrix(simulate_joint().X[:120], dtype=np.float32), np.arange(120) % 4
    dense, _ = _regression.regress(x, y, 1e-3, 500)
    monkeypatch.setattr(_regression, "DENSE_VALUES", 0)
    sparse, _ = _regression.regress(x, y, 1e-3, 500)
    np.testing.assert_allclose(sparse.predict_proba(x), dense.predict_proba(x), atol=1e-3)
