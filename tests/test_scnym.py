"""scNym's training, on its own and in scvi-tools' way."""

import logging
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from lightning.pytorch.callbacks import Callback
from scvi.model.base import BaseModelClass
from scvi.train import TrainingPlan
from sklearn.linear_model import LogisticRegression
from synthetic import FAST as TRAIN
from synthetic import TYPES, simulate, simulate_joint, simulate_sides

import sctool
from sctool._batches import Cells, EvenBatches, Splitter, stratified_holdout
from sctool._train import Plan
from sctool.model import SCNYM

pytestmark = pytest.mark.usefixtures("empty_cwd")
FAST = TRAIN | {"max_epochs": 4, "batch_size": 32}


def make_model(joint=None, **settings) -> SCNYM:
    """A model of the synthetic cells, not trained; every unlabelled cell is used."""
    joint = simulate_joint() if joint is None else joint
    SCNYM.setup_anndata(joint, "cell_type", batch_key="donor" if "donor" in joint.obs else None)
    torch.manual_seed(0)
    return SCNYM(joint, **({"confidence": 0.0, "n_hidden": 16} | settings))


def weights(model: SCNYM) -> dict[str, torch.Tensor]:
    return {k: v.detach().cpu().clone() for k, v in model.module.named_parameters()}


def moved(model: SCNYM, **train_kwargs) -> set[str]:
    """The parts of the network of which training moves every weight."""
    before = weights(model)
    model.train(**(FAST | train_kwargs))
    changed = {k for k, v in weights(model).items() if not torch.equal(v, before[k])}
    parts: dict[str, set[bool]] = {}
    for name in before:
        parts.setdefault(name.split(".")[0], set()).add(name in changed)
    assert all(len(v) == 1 for v in parts.values()), "a part moved in part"
    return {name for name, v in parts.items() if v == {True}}


# -- which weights move --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"encoder", "head", "adversary"}),
        ({"mixmatch": False}, {"encoder", "head", "adversary"}),
        ({"adversary": False}, {"encoder", "head"}),
        ({"mixmatch": False, "adversary": False}, {"encoder", "head"}),
        ({"confidence": 1.0}, {"encoder", "head"}),
        ({"adversary_weight": 0.0}, {"encoder", "head", "adversary"}),
    ],
    ids=["all", "no-mixmatch", "no-adversary", "neither", "none-confident", "no-weight"],
)
def test_which_weights_move(settings, expected):
    assert moved(make_model(**settings)) == expected


def test_without_unlabelled_cells_the_adversary_stays():
    joint = simulate()
    joint.obs["cell_type"] = joint.obs["cell_type"].astype(str)
    assert moved(make_model(joint)) == {"encoder", "head"}


@pytest.mark.parametrize(
    "settings",
    [{}, {"mixmatch": False}, {"adversary": False}, {"mixmatch": False, "adversary": False}],
    ids=["all", "no-mixmatch", "no-adversary", "neither"],
)
def test_what_the_unlabelled_cells_teach(settings):
    # The query's values reach the weights through MixMatch and the adversary, and no other way.
    results = []
    for seed in (1, 2):
        joint = simulate_joint()
        x = joint.X.toarray()
        x[120:] = simulate(80, seed=seed, shift=0.3).X.toarray()
        joint.X = sp.csr_matrix(x)
        # the query's own values must not reach the model by its choice of genes
        model = make_model(joint, **settings, n_top_genes=None)
        torch.manual_seed(1)
        model.train(**FAST)
        results.append(weights(model))
    same = all(torch.equal(results[0][k], results[1][k]) for k in results[0])
    assert same == (settings == {"mixmatch": False, "adversary": False})


@pytest.mark.slow
def test_the_adversary_mixes_the_domains():
    # With an adversary the domains are harder to tell apart in the embedding.
    domain, shares = np.arange(200) < 120, {}
    for weight in (0.0, 1.0):
        shares[weight] = 0.0
        for seed in (1, 2, 3):
            model = make_model(adversary_weight=weight, adversary_ramp=0.1, dropout=0.0)
            torch.manual_seed(seed)
            changes = {"optimizer": "adamw", "lr": 1e-3, "validation": 0.0}
            # on the CPU also where there is a GPU: single runs differ as much as the weights do
            model.train(**(FAST | {"max_epochs": 40}), accelerator="cpu", plan_kwargs=changes)
            z = model.get_latent_representation()
            shares[weight] += LogisticRegression(max_iter=1000).fit(z, domain).score(z, domain) / 3
    assert shares[1.0] < shares[0.0] - 0.03


# -- batches and held-out cells ------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_every_type_keeps_a_training_cell(share):
    codes = np.repeat([0, 1, 2, 3], [100, 20, 2, 1])
    train, held_out = stratified_holdout(codes, share)
    assert sorted([*train, *held_out]) == list(range(123))
    assert set(codes[train]) == {0, 1, 2, 3}
    for code, n in enumerate([100, 20, 2, 1]):
        assert (codes[held_out] == code).sum() == int(share * n)


def test_the_cells_held_out_are_drawn_at_random():
    codes = np.zeros(100, dtype=int)
    first, second = stratified_holdout(codes, 0.1)[1], stratified_holdout(codes, 0.1)[1]
    assert set(first) != set(second)
    assert set(first) != set(range(10))


@pytest.mark.parametrize(
    ("n", "size"), [(33, 16), (32, 16), (17, 16), (16, 16), (15, 16), (1, 16), (257, 256), (5, 4)]
)
def test_no_cell_is_lost_and_none_is_alone(n, size):
    sampler = EvenBatches(100 + np.arange(n), size)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(np.concatenate(batches)) == list(range(100, 100 + n))
    lengths = [len(batch) for batch in batches]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) > 1 or n == 1


def test_batches_are_shuffled_each_time():
    sampler = EvenBatches(np.arange(100), 10)
    assert [list(b) for b in sampler] != [list(b) for b in sampler]
    assert list(next(iter(sampler))) != list(range(10))


@pytest.mark.parametrize(("n_labelled", "n_unlabelled"), [(100, 7), (7, 100), (30, 1), (64, 64)])
def test_an_epoch_shows_every_cell_of_the_larger_population(n_labelled, n_unlabelled):
    n = n_labelled + n_unlabelled
    cells = Cells(sp.csr_matrix((n, 3), dtype=np.float32), {"i": np.arange(n)})
    parts = {"labelled": np.arange(n_labelled), "unlabelled": np.arange(n_labelled, n)}
    splitter = Splitter(cells, parts, np.array([], dtype=int), 16)
    steps = [batch for batch, _, _ in splitter.train_dataloader()]
    assert len(steps) == splitter.steps_per_epoch == -(-max(n_labelled, n_unlabelled) // 16)
    for name, members in parts.items():
        seen = [batch[name]["i"].tolist() for batch in steps]
        assert all(seen), "a step without cells of one population"
        once = [i for batch in seen for i in batch]
        assert set(once) <= set(members)
        if len(members) >= n / 2:
            assert sorted(once) == list(members)


@pytest.mark.parametrize("n_query", [1, 2, 17])
def test_an_unlabelled_set_smaller_than_a_batch_trains(n_query):
    model = make_model(simulate_joint(n_query=n_query))
    model.train(**(FAST | {"batch_size": 64}))
    assert len(model.history["loss_train"]) == FAST["max_epochs"]
    assert np.isfinite(model.history["loss_train"].to_numpy(dtype=float)).all()
    assert (model.history["adversary_train"].to_numpy(dtype=float) > 0).all()


@pytest.mark.parametrize("n_ref", [4, 5, 9])
def test_a_labelled_set_smaller_than_a_batch_trains(n_ref):
    model = make_model(simulate_joint(n_ref=n_ref))
    model.train(**FAST)
    assert model.module.encoder[0].weight.isfinite().all()
    assert "loss_validation" not in model.history  # too few to hold one out


def test_cells_of_a_pass_are_those_of_the_settings():
    model = make_model()
    model.train(**(FAST | {"max_epochs": 2}))
    assert len(model.history["loss_train"]) == 2
    # 108 labelled cells after validation and 80 others
    assert model.trainer.num_training_batches == 4
    assert model.history["loss_train"].index.name == "epoch"
    assert set(model.history) == {
        "loss_train",
        "supervised_train",
        "unlabelled_train",
        "adversary_train",
        "loss_validation",
        "accuracy_validation",
    }


def test_training_without_max_epochs_makes_the_settings_steps():
    model = make_model(min_steps=10, min_epochs=1, max_epochs=None)
    model.train(batch_size=16, enable_progress_bar=False)
    assert len(model.history["loss_train"]) == 2  # seven steps an epoch
    model = make_model(min_steps=1, min_epochs=3, max_epochs=None)
    model.train(batch_size=16, enable_progress_bar=False)
    assert len(model.history["loss_train"]) == 3


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"mixmatch": False}, {"supervised_train", "adversary_train"}),
        ({"adversary": False}, {"supervised_train", "unlabelled_train"}),
    ],
    ids=["no-mixmatch", "no-adversary"],
)
def test_the_history_has_the_terms_that_there_are(settings, keys):
    model = make_model(**settings)
    model.train(**FAST)
    assert set(model.history) == keys | {"loss_train", "loss_validation", "accuracy_validation"}


# -- domains -------------------------------------------------------------------------------------


def test_without_batches_the_domains_are_labelled_and_unlabelled():
    model = make_model()
    assert model.n_domains_ == 2
    assert model.module.adversary[-1].out_features == 2
    assert list(model._cells.arrays["domain"]) == [0] * 120 + [1] * 80


def test_the_adversary_tells_all_batches_apart():
    joint = simulate_joint()
    joint.obs["donor"] = [f"d{i % 5}" for i in range(joint.n_obs)]
    model = make_model(joint)
    assert model.n_domains_ == 5
    assert model.module.adversary[-1].out_features == 5
    assert list(model._cells.arrays["domain"]) == [i % 5 for i in range(joint.n_obs)]
    model.train(**FAST)
    assert model.predict().shape == (200,)


def test_annotate_takes_each_batch_of_each_side_for_a_domain():
    adata, ref = simulate_sides()
    adata.obs["donor"] = ["a", "b"] * 40
    ref.obs["donor"] = ["a", "b", "c"] * 40
    kwargs = {"method": "scnym", "train_kwargs": FAST, "copy": True}
    result = sctool.tl.annotate(adata, ref, batch_key="donor", **kwargs)
    other = sctool.tl.annotate(adata, ref, **kwargs)
    assert result.uns["sctool"]["params"]["batch_key"] == "donor"
    assert not np.array_equal(result.obsm["sctool_proba"], other.obsm["sctool_proba"])


# -- best weights and early stopping -------------------------------------------------------------


class Recorder(Callback):
    """Keeps every epoch's weights."""

    def __init__(self):
        self.states = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.states.append({k: v.clone() for k, v in pl_module.module.state_dict().items()})


def record(model: SCNYM, **train_kwargs) -> tuple[list[float], list[dict]]:
    """Validation losses, and weights, of every epoch."""
    recorder = Recorder()
    # on the CPU also where there is a GPU, whose rounding would move the best epoch
    model.train(**(FAST | {"callbacks": [recorder]} | train_kwargs), accelerator="cpu")
    losses = model.history["loss_validation"].to_numpy(dtype=float).ravel()
    assert len(losses) == len(recorder.states)
    return list(losses), recorder.states


def same_weights(model: SCNYM, state: dict) -> bool:
    return all(torch.equal(v, state[k]) for k, v in model.module.state_dict().items())


@pytest.mark.parametrize("ramp", [0.0, 0.5], ids=["at-once", "after-the-ramp"])
def test_the_best_epochs_weights_are_kept(ramp):
    # a learning rate that is too large, so that the last epoch is not the best
    model = make_model(ssl_ramp=ramp, adversary_ramp=0.0, dropout=0.0)
    torch.manual_seed(0)
    losses, states = record(model, max_epochs=12, plan_kwargs={"lr": 8.0})
    first = int(ramp * 12)
    best = first + int(np.argmin(losses[first:]))
    assert 0 < best < 11, "the test cannot tell the best from the first or last"
    assert [same_weights(model, s) for s in states].index(True) == best
    assert not same_weights(model, states[-1])


def test_training_stops_once_it_has_got_no_better():
    model = make_model(ssl_ramp=0.1, adversary_ramp=0.1, patience=3, dropout=0.0)
    torch.manual_seed(0)
    losses, states = record(model, max_epochs=60, plan_kwargs={"lr": 8.0})
    assert len(losses) < 60
    best = 6 + int(np.argmin(losses[6:]))
    assert len(losses) == max(best, 6) + 3 + 1
    assert same_weights(model, states[best])


def test_training_goes_on_where_stopping_is_switched_off():
    model = make_model(patience=1, dropout=0.0)
    losses, _ = record(model, max_epochs=15, early_stopping=False, plan_kwargs={"lr": 8.0})
    assert len(losses) == 15
    assert int(np.argmin(losses)) < 13, "it would not have stopped either"


def test_stopping_can_be_asked_for_without_a_patience_of_the_preset():
    model = make_model(patience=None, ssl_ramp=0.0, adversary_ramp=0.0, dropout=0.0)
    losses, _ = record(model, max_epochs=30, early_stopping=True, plan_kwargs={"lr": 8.0})
    assert 6 < len(losses) < 30  # after a fifth of them


def test_the_last_weights_stay_where_nothing_is_held_out():
    model = make_model(validation=0.0)
    recorder = Recorder()
    model.train(**FAST, callbacks=[recorder])
    assert len(recorder.states) == FAST["max_epochs"]
    assert same_weights(model, recorder.states[-1])


# -- settings ------------------------------------------------------------------------------------


def test_the_paper_preset_is_the_papers():
    paper = asdict(SCNYM.PRESETS["paper"])
    expected = {
        "n_layers": 3,  # "four-layer": three hidden ones and the output
        "n_hidden": 256,
        "dropout": 0.5,
        "mixmatch": True,
        "adversary": True,
        "confidence": 0.0,  # the threshold is the "modified training procedure" of section 3.4
        "temperature": 0.5,  # z^2 / sum z^2
        "alpha": 0.3,
        "ssl_weight": 1.0,
        "ssl_ramp": 100 / 400,
        "adversary_weight": 0.1,
        "adversary_ramp": 20 / 400,
        "optimizer": "adadelta",
        "lr": 1.0,
        "weight_decay": 1e-5,
        "batch_size": 256,
        "max_epochs": 400,
        "n_top_genes": None,  # "no prior manual specification of marker genes"
    }
    assert {k: paper[k] for k in expected} == expected
    assert paper["patience"] is not None  # "early stopping based on a validation set"
    assert 0 < paper["validation"] < 1


def test_the_paper_preset_trains():
    model = make_model(preset="paper")
    assert [type(m).__name__ for m in model.module.encoder].count("Linear") == 3
    model.train(**FAST)
    plan = SCNYM.PRESETS["paper"]
    assert replace(plan, confidence=0.0, n_hidden=16, batch_size=32) == model.settings_


@pytest.mark.parametrize(
    "wrong",
    [lambda: make_model(n_hiden=3), lambda: make_model().train(**FAST, plan_kwargs={"n_hiden": 3})],
    ids=["model", "plan_kwargs"],
)
def test_an_unknown_setting_is_refused(wrong):
    with pytest.raises(
        TypeError, match=r"SCNYM has no settings \['n_hiden'\]; it has .*'n_hidden'"
    ):
        wrong()


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(
        ValueError, match=r"optimizer='sgd' is unknown; known: .'adadelta', 'adamw'"
    ):
        make_model(optimizer="sgd").train(**FAST)


@pytest.mark.parametrize(
    ("name", "kind"), [("adadelta", torch.optim.Adadelta), ("adamw", torch.optim.AdamW)]
)
def test_the_optimizer_is_the_settings(name, kind):
    model = make_model()
    model.train(**FAST, plan_kwargs={"optimizer": name, "lr": 0.01, "weight_decay": 0.003})
    optimizer = model.trainer.optimizers[0]
    assert type(optimizer) is kind
    assert optimizer.defaults["lr"] == 0.01
    assert optimizer.defaults["weight_decay"] == 0.003
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in model.module.parameters()}


def test_presets_are_never_changed():
    before = {name: asdict(preset) for name, preset in SCNYM.PRESETS.items()}
    model = make_model()
    model.train(**FAST, plan_kwargs={"lr": 0.5, "alpha": 0.9})
    assert model.settings_.alpha == 0.9
    assert model.settings_.batch_size == FAST["batch_size"]
    assert {name: asdict(preset) for name, preset in SCNYM.PRESETS.items()} == before
    with pytest.raises(AttributeError):
        SCNYM.PRESETS["default"].lr = 3.0


# -- novel cells ---------------------------------------------------------------------------------


def hidden_type() -> tuple:
    """A query with all four types, and a reference without DC."""
    adata, ref = simulate_sides()
    return adata, ref[ref.obs["cell_type"] != "DC"].copy()


def test_novel_cells_are_flagged_below_the_threshold():
    adata, ref = hidden_type()
    kwargs = {"method": "scnym", "train_kwargs": FAST, "copy": True}
    result = sctool.tl.annotate(adata, ref, model_kwargs={"novel_below": 0.6}, **kwargs)
    flags = result.obs["sctool_novel"]
    np.testing.assert_array_equal(flags, result.obs["sctool_score"] < 0.6)
    assert flags.any()
    assert not flags.all()
    np.testing.assert_allclose(
        result.obs["sctool_novel_score"], 1 - result.obs["sctool_score"], atol=1e-6
    )


def test_cells_of_an_unknown_type_score_as_more_novel():
    adata, ref = hidden_type()
    kwargs = {"train_kwargs": FAST | {"max_epochs": 20}}
    sctool.tl.annotate(adata, ref, method="scnym", **kwargs)
    seen = list(adata.uns["sctool"]["classes"])
    assert seen == ["B", "CD4 T/NK", "Mono"]
    truth, score = adata.obs["truth"].astype(str), adata.obs["sctool_novel_score"]
    assert sctool.metrics.novel_auroc(truth, score, seen) > 0.8


def test_known_types_only_uses_every_cell_and_flags_none():
    adata, ref = simulate_sides()
    kwargs = {"method": "scnym", "train_kwargs": FAST, "copy": True}
    closed = sctool.tl.annotate(adata, ref, novel=0, **kwargs)
    opened = sctool.tl.annotate(adata, ref, **kwargs)
    assert "sctool_novel" not in closed.obs
    assert opened.obs["sctool_novel"].dtype == bool
    assert not np.array_equal(closed.obsm["sctool_proba"], opened.obsm["sctool_proba"])
    same = sctool.tl.annotate(adata, ref, novel=0, model_kwargs={"confidence": 0.0}, **kwargs)
    np.testing.assert_allclose(closed.obsm["sctool_proba"], same.obsm["sctool_proba"], atol=1e-5)


def test_a_number_of_novel_types_is_not_for_scnym():
    adata, ref = simulate_sides()
    with pytest.raises(ValueError, match=r"novel=2: SCNYM cannot group novel types"):
        sctool.tl.annotate(adata, ref, method="scnym", novel=2)


def test_a_model_for_known_types_says_that_it_flags_none():
    adata, _ = simulate_sides()
    model = make_model(confidence=0.0)
    model.train(**FAST)
    result = sctool.tl.annotate(adata, model, copy=True)
    assert "sctool_novel" not in result.obs
    assert "no cell is flagged" in " ".join(result.uns["sctool"]["audit"])


# -- in scvi-tools' way --------------------------------------------------------------------------


def test_it_is_a_model_and_a_plan_of_scvi_tools():
    assert issubclass(SCNYM, BaseModelClass)
    assert issubclass(Plan, TrainingPlan)


def test_on_its_own():
    joint = simulate_joint()
    joint.layers["counts"] = joint.X.copy()
    joint.X = -np.ones(joint.shape, dtype=np.float32)
    labels = joint.obs["cell_type"].copy()
    SCNYM.setup_anndata(joint, labels_key="cell_type", unlabeled_category="Unknown", layer="counts")
    torch.manual_seed(0)
    model = SCNYM(joint, confidence=0.0)
    assert not model.is_trained_
    model.train(**(FAST | {"max_epochs": 12}), accelerator="cpu", devices=1)
    assert model.is_trained_
    assert model.classes_ == TYPES
    pd.testing.assert_series_equal(joint.obs["cell_type"], labels)

    names = model.predict()
    assert names.shape == (200,)
    assert set(names) <= set(TYPES)
    assert (names[:120] == labels[:120]).mean() > 0.9
    soft = model.predict(soft=True)
    assert list(soft.columns) == TYPES
    assert list(soft.index) == list(joint.obs_names)
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-5)
    assert list(soft.idxmax(axis=1)) == list(names)
    z = model.get_latent_representation()
    assert z.shape == (200, model.settings_.n_hidden)
    assert z.dtype == np.float32

    # other cells, registered nowhere, with genes in another order
    adata, _ = simulate_sides()
    np.testing.assert_array_equal(model.predict(adata), names[120:])
    other = adata[:, ::-1].copy()
    np.testing.assert_allclose(model.predict(other, soft=True), soft[120:], atol=1e-5)
    np.testing.assert_allclose(model.get_latent_representation(other), z[120:], atol=1e-4)
    assert list(other.obs) == ["truth"]


def test_loaded_with_cells_it_predicts_them(tmp_path):
    model = make_model()
    model.train(**FAST)
    model.save(tmp_path / "model")
    joint = simulate_joint()
    loaded = SCNYM.load(tmp_path / "model", joint)
    assert loaded.adata is joint
    np.testing.assert_allclose(loaded.predict(soft=True), model.predict(soft=True), atol=1e-6)
    np.testing.assert_allclose(
        loaded.get_latent_representation(), model.get_latent_representation(), atol=1e-5
    )


def test_training_goes_on_from_where_it_was():
    model = make_model(validation=0.0)
    model.train(**FAST)
    first = weights(model)
    model.train(**(FAST | {"max_epochs": 1}))
    distance = sum((v - first[k]).norm().item() for k, v in weights(model).items())
    fresh = weights(make_model(validation=0.0))
    start = sum((v - fresh[k]).norm().item() for k, v in first.items())
    assert 0 < distance < start


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels_key": "no"}, KeyError, "labels_key='no' is not in adata.obs; found .*cell_type"),
        ({"batch_key": "no"}, KeyError, "batch_key='no' is not in adata.obs"),
        ({"layer": "no"}, KeyError, "layer='no' is not in adata.layers"),
    ],
    ids=["labels_key", "batch_key", "layer"],
)
def test_setup_names_what_is_missing(arguments, error, message):
    with pytest.raises(error, match=message):
        SCNYM.setup_anndata(simulate_joint(), **({"labels_key": "cell_type"} | arguments))


def test_setup_refuses_a_view():
    with pytest.raises(ValueError, match=r"adata is a view.*pass adata.copy\(\)"):
        SCNYM.setup_anndata(simulate_joint()[:100], "cell_type")


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA], ids=["None", "nan", "NA"])
def test_setup_takes_missing_labels_for_unlabelled(missing):
    joint = simulate_joint()
    joint.obs["cell_type"] = joint.obs["cell_type"].astype(object)
    joint.obs.loc[joint.obs["cell_type"] == "Unknown", "cell_type"] = missing
    model = make_model(joint)
    assert model.classes_ == TYPES
    assert (model._cells.arrays["label"] == -1).sum() == 80


def test_setup_takes_any_name_for_unlabelled():
    joint = simulate_joint()
    joint.obs["cell_type"] = joint.obs["cell_type"].replace("Unknown", "?")
    SCNYM.setup_anndata(joint, "cell_type", unlabeled_category="?")
    assert SCNYM(joint).classes_ == TYPES


def test_one_labelled_type_is_not_enough():
    joint = simulate_joint()
    joint.obs["cell_type"] = joint.obs["cell_type"].where(joint.obs["cell_type"] == "B", "Unknown")
    SCNYM.setup_anndata(joint, "cell_type")
    with pytest.raises(ValueError, match=r"At least 2 types must be labelled; found .'B'"):
        SCNYM(joint)


def test_training_says_nothing_on_its_own(caplog, capfd):
    model = make_model()
    with caplog.at_level(logging.INFO):
        model.train(**FAST)
    assert capfd.readouterr().out == ""
    assert [r for r in caplog.records if r.name.startswith(("sctool", "lightning"))] == []
