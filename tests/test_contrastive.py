"""Contrastive components: the stages, what each trains, and what the components return."""

from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from sklearn.metrics import roc_auc_score
from synthetic import FAST, TYPES, simulate, simulate_joint, simulate_sides
from torch.utils.data import DataLoader

import sctool
from sctool._batches import Cells, TypeBatches, TypeSplitter, assign_folds
from sctool._regression import regress
from sctool._train import seeded
from sctool.model import (
    ACTINN,
    CICL,
    METHODS,
    SCDAE,
    SCNYM,
    AnnotationModel,
    ContrastiveClassifier,
    ContrastiveSettings,
    LogisticClassifier,
    load,
)
from sctool.model._contrastive_module import BACKBONES, Circles, Sphere

pytestmark = pytest.mark.usefixtures("empty_cwd")
every_backbone = pytest.mark.parametrize("backbone", list(BACKBONES))
METHOD_OF = {"linear": "contrastive", "actinn": "actinn", "scdae": "scdae"}
ONCE = FAST | {"max_epochs": 1}
every_component = pytest.mark.parametrize("component", ["mlp", "mls"])


def train(joint: ad.AnnData, backbone: str = "linear", train_kwargs=FAST, **settings):
    """Return a trained model."""
    cls = METHODS[METHOD_OF[backbone]]
    cls.setup_anndata(joint, "cell_type", "Unknown")
    with seeded(0):
        model = cls(joint, **settings)
        model.train(**train_kwargs)
    return model


@cache
def trained(backbone: str, component: str | None) -> ContrastiveClassifier:
    """A trained model of the synthetic cells, which no test may change."""
    return train(simulate_joint(), backbone, FAST | {"max_epochs": 2}, component=component)


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
    sphere = Sphere(7, 4, ContrastiveSettings(component="mlp", n_latent=n_latent))
    z = sphere(torch.randn(20, 7))
    assert z.shape == (20, expected)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(20))


def test_a_circle_that_follows_a_score_has_its_order():
    rng = np.random.default_rng(0)
    weight, bias, z = rng.normal(size=(4, 7)), rng.normal(size=4), rng.normal(size=(50, 7))
    circles = Circles(7, 4, ContrastiveSettings(component="mls"))
    circles.init_from_linear(weight, bias, z)
    points = circles.points(torch.from_numpy(z).float()).detach().numpy()
    assert (points[:, :, 1] > 0).all()  # half a circle, so that the order is one
    score = z @ weight.T + bias
    for k in range(4):
        assert (np.argsort(points[:, k, 0]) == np.argsort(score[:, k])).all()


@every_backbone
@every_component
def test_the_embedding_is_the_components(backbone, component):
    adata, _ = simulate_sides()
    model = trained(backbone, component)
    z = model.get_latent_representation(adata)
    if component == "mls":
        z = z.reshape(len(z), len(TYPES), 2)
    else:
        assert z.shape[1] == model.settings_.n_latent == 128
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, atol=1e-5)
    assert "head_loss_train" in model.history_
    assert ("component_loss_train" in model.history_) == (component == "mlp")


@pytest.mark.parametrize(("backbone", "n"), [("linear", 4), ("actinn", 50), ("scdae", 125)])
def test_without_a_component_the_embedding_is_the_encoders(backbone, n):
    adata, _ = simulate_sides()
    model = trained(backbone, None)
    assert model.get_latent_representation(adata).shape == (adata.n_obs, n)
    assert model.module.component is None


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"C": "auto", "n_marker_genes": 50, "min_type_weight": np.inf, "n_top_genes": 200},
    ],
    ids=["plain", "with-choices"],
)
def test_without_a_component_the_linear_one_is_logistic_regression(settings):
    settings = {"n_top_genes": 2000, "n_marker_genes": None, "C": 1.0, "min_type_weight": 0.0} | (
        settings
    )
    ref, adata = with_few("DC", 6), simulate_sides()[0]
    model = train(ref.copy(), "linear", {}, component=None, **settings)
    LogisticClassifier.setup_anndata(ref, "cell_type")
    other = LogisticClassifier(ref, **settings)
    with seeded(0):
        other.train()
    assert list(other.features_.selected) == list(model.features_.selected)
    pd.testing.assert_frame_equal(
        model.predict(adata, soft=True), other.predict(adata, soft=True), atol=1e-5
    )
    assert set(model.history_) == {"base_loss_train"}


# -- stages --------------------------------------------------------------------------------------


@every_backbone
@pytest.mark.parametrize(
    "settings",
    [
        {"component": "mlp"},
        {"component": "mls", "init_from_linear": False},
        {"component": "mls"},
    ],
    ids=["mlp", "mls-from-random", "mls-from-linear"],
)
def test_each_stage_trains_its_part_and_freezes_the_others(backbone, settings, monkeypatch):
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
    train(simulate_joint(), backbone, ONCE, **settings)
    # (circles that follow a regression stay where it puts them)
    follows = settings == {"component": "mls"}
    expected = {} if follows else {"component": {"component"}}
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


def test_scdaes_input_is_corrupted():
    clean = train(simulate_joint(), "scdae", component=None, noise=0.0)
    noisy = train(simulate_joint(), "scdae", component=None, noise=3.0)
    loss = "reconstruct_loss_train"
    first = [float(m.history_[loss].iloc[-1, 0]) for m in (clean, noisy)]
    assert first[1] > 1.05 * first[0]


def test_scdaes_paper_preset_divides_by_the_maximum_of_the_reference():
    joint = simulate_joint()
    model = train(joint, "scdae", ONCE, component=None, preset="paper")
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


@pytest.mark.parametrize("backbone", ["actinn", "linear"])
def test_a_head_may_count_types_the_same(backbone):
    ref, adata = with_few("DC", 6), simulate_sides()[0]
    n = []
    for least in (0, np.inf):
        model = train(ref.copy(), backbone, min_type_weight=least, component=None)
        n.append((model.predict(adata) == "DC").sum())
    assert n[1] > n[0]


@pytest.mark.parametrize("component", [None, "mls"])
def test_C_is_chosen_where_it_is_left_open(component):
    model = train(simulate_joint(), component=component, C="auto")
    chosen = [note for note in model.audit_ if "chosen on 12 held-out cells" in note]
    # (that of the regression on a component always is)
    assert len(chosen) == (1 if component is None else 2)
    fixed = train(simulate_joint(), component=component, C=1.0)
    assert len([note for note in fixed.audit_ if "chosen" in note]) == len(chosen) - 1


# -- a pretrained base ---------------------------------------------------------------------------


@cache
def base_of(backbone: str) -> ContrastiveClassifier:
    """A trained base without a component, which sees some of the genes alone."""
    settings = {"n_marker_genes": None} if backbone == "linear" else {}
    return train(simulate_joint(), backbone, component=None, n_top_genes=120, **settings)


@pytest.fixture(params=["a-model", "a-path"])
def given(request, tmp_path):
    """Return a function that gives a model as it is, or the directory that it is saved in."""

    def give(model: AnnotationModel):
        if request.param == "a-model":
            return model
        model.save(tmp_path / "base")
        return tmp_path / "base"

    return give


@every_backbone
@pytest.mark.parametrize("init_from_linear", [True, False], ids=["from-linear", "from-random"])
def test_a_pretrained_base_gives_its_genes_and_its_encoder(backbone, init_from_linear, given):
    base, (adata, _) = base_of(backbone), simulate_sides()
    model = train(
        simulate_joint(),
        backbone,
        FAST if init_from_linear else ONCE,
        pretrained=given(base),
        component="mls",
        init_from_linear=init_from_linear,
    )
    stages = {"head"} if init_from_linear else {"component", "head"}
    assert {name.rsplit("_loss_", 1)[0] for name in model.history_} == stages
    assert list(model.features_.selected) == list(base.features_.selected)
    np.testing.assert_array_equal(model.features_.mean, base.features_.mean)
    assert model.module.inputs.state_dict().keys() == base.module.inputs.state_dict().keys()
    for part in ("inputs", "encoder"):
        theirs = base.module.get_submodule(part).state_dict()
        for name, value in model.module.get_submodule(part).state_dict().items():
            assert torch.equal(value.cpu(), theirs[name].cpu())
    if init_from_linear:
        assert accuracy(model, adata) > 0.6


def test_a_logistic_classifier_serves_as_a_linear_base(given):
    joint, (adata, _) = simulate_joint(), simulate_sides()
    LogisticClassifier.setup_anndata(joint, "cell_type", "Unknown")
    base = LogisticClassifier(joint, n_marker_genes=60)
    base.train()
    model = train(simulate_joint(), "linear", pretrained=given(base), component="mls")
    assert list(model.features_.selected) == list(base.features_.selected)
    assert len(model.features_.selected) == 60
    assert accuracy(model, adata) > 0.8


def test_a_pretrained_base_sees_cells_that_lack_some_of_its_genes():
    base = base_of("linear")
    joint, (adata, _) = simulate_joint(), simulate_sides()
    lacking = base.features_.selected[:20]
    joint = joint[:, ~joint.var_names.isin(lacking)].copy()
    model = train(joint, "linear", pretrained=base, component="mls")
    assert "100 of the model's 120 genes (83%)" in " ".join(model.audit_)
    # they take the mean that they have in the base's reference
    x = model._training_cells()[np.arange(5)]["x"].numpy()
    columns = base.features_.selected.get_indexer(lacking)
    np.testing.assert_allclose(x[:, columns], np.tile(base.features_.mean[columns], (5, 1)))
    assert accuracy(model, adata) > 0.6


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "contrastive",
            {"backbone": "scdae", "component": "mls"},
            "backbone='actinn', not 'scdae'",
        ),
        ("contrastive", {"component": "mls"}, "is a ACTINN with backbone='actinn', not 'linear'"),
        ("scdae", {"component": "mlp"}, "backbone='actinn', not 'scdae'"),
        ("actinn", {}, r"leaves nothing to train: pass component='mls' or 'mlp'"),
        ("contrastive", {"backbone": "actinn", "component": None}, "leaves nothing to train"),
    ],
    ids=["another", "linear", "another-class", "no-component", "component-None"],
)
def test_a_base_that_does_not_fit_is_refused(method, settings, message, given):
    joint, cls = simulate_joint(), METHODS[method]
    cls.setup_anndata(joint, "cell_type", "Unknown")
    with pytest.raises(ValueError, match=message):
        cls(joint, pretrained=given(base_of("actinn")), **settings)


def test_a_base_that_is_not_trained_is_refused():
    joint = simulate_joint()
    ContrastiveClassifier.setup_anndata(joint, "cell_type", "Unknown")
    base = ContrastiveClassifier(joint, backbone="actinn", component=None)
    with pytest.raises(ValueError, match=r"pretrained is not trained: call its train\(\) first"):
        ContrastiveClassifier(joint, backbone="actinn", component="mls", pretrained=base)


def test_a_base_that_is_no_encoder_is_refused():
    joint = simulate_joint()
    SCNYM.setup_anndata(joint, "cell_type", "Unknown")
    base = SCNYM(joint)
    ContrastiveClassifier.setup_anndata(joint, "cell_type", "Unknown")
    with pytest.raises(ValueError, match=r"pretrained is a SCNYM with backbone=None, not 'linear'"):
        ContrastiveClassifier(joint, pretrained=base, component="mls")


@pytest.mark.parametrize(
    "cls",
    [c for c in (*METHODS.values(), CICL) if not issubclass(c, ContrastiveClassifier)],
    ids=lambda cls: cls.__name__,
)
def test_no_other_model_takes_a_base(cls):
    adata = simulate_joint()
    cls.setup_anndata(adata, *(["cell_type"] if cls is not CICL else []))
    with pytest.raises(TypeError, match=rf"{cls.__name__} has no settings \['pretrained'\]"):
        cls(adata, pretrained=base_of("linear"))


def test_annotate_takes_a_base_among_the_models_settings(given):
    adata, ref = simulate_sides()
    settings = {"component": "mls", "pretrained": given(base_of("actinn"))}
    model = sctool.tl.annotate(
        adata, ref, method="actinn", model_kwargs=settings, train_kwargs=FAST, return_model=True
    )
    assert list(model.features_.selected) == list(base_of("actinn").features_.selected)
    assert (adata.obs["sctool"].astype(str) == adata.obs["truth"].astype(str)).mean() > 0.6


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


SIZES = [50, 7, 2, 1]  # of types 0 to 3


@pytest.mark.parametrize("n_folds", [2, 5, 10])
def test_folds_are_stratified_and_every_type_keeps_a_cell_whatever_is_left_out(n_folds):
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(4), SIZES))
    fold = assign_folds(y, n_folds, 0)
    assert set(fold) == {-1, *range(n_folds)}
    for code in range(3):
        n = np.bincount(fold[y == code], minlength=n_folds)
        assert n.max() - n.min() <= 1
    for i in range(n_folds):
        assert set(y[fold != i]) == {0, 1, 2, 3}


def test_a_types_only_cell_is_in_no_fold():
    y = np.repeat(np.arange(4), SIZES)
    assert assign_folds(y, 5, 0)[y == 3].tolist() == [-1]
    assert (assign_folds(y, 5, 0)[y != 3] >= 0).all()
    assert assign_folds(np.arange(4), 5, 0).tolist() == [-1] * 4


@pytest.mark.parametrize(("sizes", "n"), [([4, 2, 1], 4), ([2, 2], 2), ([3, 1, 1], 3)])
def test_there_are_no_more_folds_than_cells_of_the_largest_type(sizes, n):
    y = np.repeat(np.arange(len(sizes)), sizes)
    fold = assign_folds(y, 5, 0)
    assert set(fold) - {-1} == set(range(n))
    for i in range(n):
        assert set(y[fold != i]) == set(y)


def test_the_same_seed_assigns_the_same_folds_and_another_others():
    y = np.repeat(np.arange(4), SIZES)
    np.testing.assert_array_equal(assign_folds(y, 5, 3), assign_folds(y, 5, 3))
    assert not np.array_equal(assign_folds(y, 5, 3), assign_folds(y, 5, 4))


def test_the_head_learns_from_where_components_of_other_folds_place_a_cell(monkeypatch):
    ref, seen = with_few("DC", 1), []
    fit_head = sctool.model._contrastive.fit_head

    def watched(head, x, y, **how):
        seen.append((head.in_features, np.asarray(x), y))
        return fit_head(head, x, y, **how)

    monkeypatch.setattr(sctool.model._contrastive, "fit_head", watched)
    model = train(ref, n_top_genes=100, n_marker_genes=None)
    width, z, y = seen[-1]
    assert width == z.shape[1] == 2 * len(TYPES)
    placed = model.get_latent_representation()
    lone = y == TYPES.index("DC")
    assert lone.sum() == 1
    # every cell is placed by a component that it was not fitted to, but for the type's only one
    assert (np.abs(z - placed).max(axis=1) > 1e-6).tolist() == (~lone).tolist()
    seen.clear()
    model = train(ref.copy(), n_top_genes=100, n_marker_genes=None, folds=1)
    np.testing.assert_allclose(seen[-1][1], model.get_latent_representation(), atol=1e-6)


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


def random_labels() -> ad.AnnData:
    """200 cells of nothing but noise, labelled at random as one of five types."""
    rng = np.random.default_rng(0)
    names = pd.Categorical(rng.integers(5, size=200).astype(str))
    x = sp.csr_matrix(rng.poisson(1.0, (200, 2000)).astype(np.float32))
    return ad.AnnData(x, obs=pd.DataFrame({"cell_type": names}, index=np.arange(200).astype(str)))


def held_out(monkeypatch) -> list:
    """Watch what ``C`` is chosen on: inputs, type codes, and positions of both parts."""
    seen, choose_C = [], sctool.model._logistic.choose_C

    def watched(x, y, train, held_out, *how):
        seen.append((x, y, train, held_out))
        return choose_C(x, y, train, held_out, *how)

    monkeypatch.setattr(sctool.model._logistic, "choose_C", watched)
    return seen


def test_random_labels_are_no_better_than_chance_in_the_folds(monkeypatch):
    seen = held_out(monkeypatch)
    model = train(random_labels(), n_marker_genes=200)
    assert len(model.features_.selected) == 200
    z, y, *_ = seen[-1]
    right = z[:, ::2].argmax(axis=1) == y  # the circle on which the cell lies furthest
    assert 0.1 < right.mean() < 0.3


@pytest.mark.parametrize("cls", [LogisticClassifier, ContrastiveClassifier])
def test_random_labels_are_no_better_than_chance_where_C_is_chosen(cls, monkeypatch):
    seen, cells = held_out(monkeypatch), random_labels()
    cls.setup_anndata(cells, "cell_type")
    with seeded(0):
        cls(cells, C="auto", n_top_genes=None, n_marker_genes=200, validation=0.3).train()
    x, y, some, others = seen[0]
    fitted, _ = regress(x[some], y[some], 1.0, 500)
    assert len(others) > 50
    assert (fitted.predict(x[others]) == y[others]).mean() < 0.35


def test_the_genes_of_a_network_are_chosen_without_the_cells_that_judge_it():
    cells = random_labels()
    ContrastiveClassifier.setup_anndata(cells, "cell_type")
    model = ContrastiveClassifier(cells, component="mlp", n_marker_genes=200, validation=0.3)
    x, y = model._cells.x, model._cells.arrays["label"]
    some, others = model._split
    fitted, _ = regress(x[some], y[some], 1.0, 500)
    assert len(others) > 50
    assert (fitted.predict(x[others]) == y[others]).mean() < 0.35


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "cnn"}, r"backbone='cnn' is unknown; known: \('linear', 'actinn', 'scdae'\)"),
        ({"component": "mlps"}, r"component='mlps' is unknown; known: \('mlp', 'mls', None\)"),
        ({"positives": "all"}, r"positives='all' is unknown; known: \('own', 'shared'\)"),
    ],
)
def test_a_wrong_setting_says_what_is_known(settings, message):
    joint = simulate_joint()
    ContrastiveClassifier.setup_anndata(joint, "cell_type", "Unknown")
    with pytest.raises(ValueError, match=message):
        ContrastiveClassifier(joint, **settings)


@pytest.mark.parametrize(("cls", "own"), [(ACTINN, "actinn"), (SCDAE, "scdae")])
def test_a_method_is_of_one_backbone(cls, own):
    joint = simulate_joint()
    cls.setup_anndata(joint, "cell_type", "Unknown")
    with pytest.raises(ValueError, match=rf"{cls.__name__} has backbone='{own}'; use sctool.mod"):
        cls(joint, backbone="linear")


# -- through annotate ----------------------------------------------------------------------------


@every_backbone
@pytest.mark.parametrize("component", [None, "mlp", "mls"])
def test_every_combination_is_saved_and_is_blind_to_the_order_of_genes(
    backbone, component, tmp_path
):
    adata, _ = simulate_sides()
    model = trained(backbone, component)
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert type(loaded) is type(model) is METHODS[METHOD_OF[backbone]]
    assert loaded.settings_ == model.settings_
    pd.testing.assert_frame_equal(loaded.predict(adata, soft=True), model.predict(adata, soft=True))
    np.testing.assert_allclose(
        loaded.get_latent_representation(adata), model.get_latent_representation(adata), atol=1e-6
    )
    order = np.random.default_rng(0).permutation(adata.n_vars)
    result = sctool.tl.annotate(adata[:, order], loaded, copy=True)
    np.testing.assert_allclose(
        result.obsm["sctool_proba"], model.predict(adata, soft=True), atol=1e-5
    )


@pytest.mark.parametrize(
    ("method", "component"),
    [("contrastive", "mlp"), ("actinn", "mlp"), ("actinn", "mls"), ("scdae", "mls")],
)
def test_annotate_trains_components_and_is_blind_to_the_order_of_genes(method, component):
    adata, ref = simulate_sides()
    order = np.random.default_rng(0).permutation(adata.n_vars)
    settings = {"method": method, "model_kwargs": {"component": component}, "train_kwargs": ONCE}
    results = [
        sctool.tl.annotate(query, ref, copy=True, **settings) for query in (adata, adata[:, order])
    ]
    for slot in ("sctool_proba", "X_sctool"):
        np.testing.assert_allclose(results[0].obsm[slot], results[1].obsm[slot], atol=1e-4)
    assert results[0].uns["sctool"]["params"]["model_kwargs"] == {"component": component}


def test_held_out_cells_come_in_the_same_minibatches_each_time():
    label = np.repeat([0, 1], 10)
    cells = Cells(simulate(20).X, {"label": label})
    splitter = TypeSplitter(cells, {"labelled": np.arange(20)}, np.arange(20), 8)
    loaders: list[DataLoader] = [*splitter.val_dataloader(), *splitter.val_dataloader()]
    first, second = ([batch["x"] for batch in loader] for loader in loaders)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("component", [None, "mls"])
def test_what_takes_no_steps_takes_no_arguments_of_the_trainer(component):
    with pytest.raises(
        TypeError, match=r"train has no arguments \['gradient_clip_val'\]: these set"
    ):
        train(simulate_joint(), "linear", {**FAST, "gradient_clip_val": 1.0}, component=component)
    train(simulate_joint(), "linear", {**FAST, "gradient_clip_val": 1.0}, component="mlp")


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
    with pytest.raises(
        ValueError, match=r"X_sctool.*not an MLS embedding of 4 types .*: annotate with method='con"
    ):
        sctool.pl.mls(adata)
    sctool.tl.annotate(adata, ref, method="contrastive", train_kwargs=FAST)
    with pytest.raises(KeyError, match=r"types \['T'\] are unknown; found \['B'"):
        sctool.pl.mls(adata, types=["T"])
    with pytest.raises(KeyError, match="'who' is not in adata.obs"):
        sctool.pl.mls(adata, color="who")
