"""Training, of whichever model: what ``train`` takes, what it refuses, and what becomes of it."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from synthetic import FAST, simulate_joint

from sctool import _train
from sctool._train import TRAINER_ARGUMENTS
from sctool.model import CICL, METHODS, SCNYM, CellModel, ContrastiveClassifier
from sctool.model._scnym import SCNYMModule

pytestmark = pytest.mark.usefixtures("empty_cwd")

#: Models that are trained by steps, with settings by which they are; all others are solved.
BY_STEPS = {
    "auto": {"n_novel": 0},
    "scnym": {"confidence": 0.0},
    "scdet": {"n_novel": 0},
    "contrastive": {"component": "mlp"},
    "actinn": {},
    "scdae": {},
    "cicl": {"n_clusters": 4, "n_layers": 1},
}
SOLVED = {"logistic": {}, "gate": {"n_novel": 0}, "sskm": {"n_novel": 0}}
MODELS: dict[str, type[CellModel]] = {**METHODS, "cicl": CICL}
by_steps = pytest.mark.parametrize("method", BY_STEPS)
solved = pytest.mark.parametrize("method", SOLVED)


def make_model(method: str, **settings) -> CellModel:
    """A model of the synthetic cells, not trained."""
    cls, joint = MODELS[method], simulate_joint()
    setup = [] if cls is CICL else ["cell_type", "Unknown"]
    cls.setup_anndata(joint, *setup)
    return cls(joint, n_top_genes=100, **({**BY_STEPS, **SOLVED}[method] | settings))


@cache
def untrained(method: str) -> CellModel:
    """A model that tests refuse to train, and that stays as it is."""
    return make_model(method)


def test_every_model_is_one_or_the_other():
    assert {*BY_STEPS, *SOLVED} == set(MODELS)


# -- unknown arguments ---------------------------------------------------------------------------


@by_steps
@pytest.mark.parametrize("name", ["gradient_clip", "early_stopping_monitor", "epochs"])
def test_an_unknown_argument_of_a_network_is_refused_with_what_there_is(method, name):
    model = untrained(method)
    with pytest.raises(TypeError, match=rf"train has no arguments \['{name}'\]; it ") as error:
        model.train(**{name: 1})
    taken = str(error.value).split("it accepts ")[1]
    assert taken == f"{MODELS[method].TRAINER_ARGUMENTS!r}."
    for known in ("callbacks", "gradient_clip_val", "log_every_n_steps", "logger", "precision"):
        assert repr(known) in taken
    assert not model.is_trained_


@solved
@pytest.mark.parametrize("name", ["epochs", "callbacks", "gradient_clip_val", "early_stopping"])
def test_what_takes_no_steps_takes_no_argument_of_a_trainer(method, name):
    model = untrained(method)
    with pytest.raises(TypeError) as error:
        model.train(**{name: 1})
    assert str(error.value) == (
        f"train has no arguments ['{name}']: this model is not trained in minibatches; "
        "it accepts []."
    )
    assert not model.is_trained_


def test_all_that_is_unknown_is_named():
    with pytest.raises(TypeError, match=r"train has no arguments \['a', 'b'\]"):
        untrained("scnym").train(b=1, a=1, logger=False)


@pytest.mark.parametrize("method", [m for m in BY_STEPS if m != "scnym"])
def test_early_stopping_is_scnyms_alone(method):
    with pytest.raises(TypeError, match=r"train has no arguments \['early_stopping'\]"):
        untrained(method).train(early_stopping=True)
    assert "early_stopping" not in TRAINER_ARGUMENTS
    assert [*TRAINER_ARGUMENTS, "early_stopping"] == SCNYM.TRAINER_ARGUMENTS


@pytest.mark.parametrize("method", [*BY_STEPS, *SOLVED])
def test_an_unknown_setting_among_those_of_training_is_refused(method):
    model = untrained(method)
    name = MODELS[method].__name__
    with pytest.raises(TypeError, match=rf"{name} has no settings \['eta'\]; it has .*'n_top_g"):
        model.train(plan_kwargs={"eta": 1.0})
    assert not model.is_trained_


# -- what reaches the training -------------------------------------------------------------------


@by_steps
def test_the_size_of_batches_and_other_settings_are_those_of_the_call(method):
    model = make_model(method)
    before = model.settings_
    model.train(max_epochs=1, batch_size=13, plan_kwargs={"lr": 0.0123}, enable_progress_bar=False)
    assert (model.settings_.batch_size, model.settings_.lr) == (13, 0.0123)
    assert (before.batch_size, before.lr) != (13, 0.0123)
    if hasattr(model.module, "settings"):
        assert model.module.settings is model.settings_
    # 120 labelled cells, of which some models hold 12 out, and 80 others
    n = {"scdet": 120, "cicl": 200}.get(method, 108)
    assert model.trainer.num_training_batches == -(-n // 13)
    if method != "contrastive":  # whose component has a rate of its own
        assert model.trainer.optimizers[0].defaults["lr"] == 0.0123


def test_a_component_has_a_learning_rate_of_its_own():
    model = make_model("contrastive")
    model.train(**FAST, plan_kwargs={"component_lr": 0.0123, "weight_decay": 0.045})
    defaults = model.trainer.optimizers[0].defaults
    assert (defaults["lr"], defaults["weight_decay"]) == (0.0123, 0.045)


@by_steps
def test_arguments_of_the_trainer_reach_it(method):
    class Counter(Callback):
        epochs = 0

        def on_train_epoch_end(self, trainer, pl_module):
            self.epochs += 1

    model, counter = make_model(method), Counter()
    model.train(**(FAST | {"max_epochs": 2}), callbacks=[counter], gradient_clip_val=0.5)
    assert model.trainer.gradient_clip_val == 0.5
    # of each stage
    assert counter.epochs == 2 * {"scdae": 3, "auto": 2}.get(method, 1)
    assert model.is_trained_
    assert not model.module.training


@solved
def test_what_takes_no_steps_ignores_how_they_would_be_taken(method):
    # so that one call does for every method
    model, plain = make_model(method), make_model(method)
    model.train(accelerator="gpu", devices=3, batch_size=7, enable_progress_bar=False)
    plain.train()
    assert model.settings_ == plain.settings_
    np.testing.assert_allclose(model.predict(soft=True), plain.predict(soft=True), atol=1e-5)


@solved
def test_settings_of_a_regression_are_those_of_the_call(method):
    model = make_model(method)
    model.train(plan_kwargs={"C": 0.25})
    assert model.settings_.C == 0.25
    other = make_model(method, C=0.25)
    other.train()
    np.testing.assert_allclose(model.predict(soft=True), other.predict(soft=True), atol=1e-5)


def test_circles_that_follow_a_regression_take_no_steps_either():
    joint = simulate_joint()
    ContrastiveClassifier.setup_anndata(joint, "cell_type", "Unknown")
    with pytest.raises(TypeError, match=r"\['logger'\]: these settings train only regressions"):
        ContrastiveClassifier(joint).train(logger=False)
    ContrastiveClassifier(joint, init_from_linear=False).train(**FAST, logger=False)


def test_a_loaded_model_has_nothing_to_train_on(tmp_path):
    model = make_model("logistic")
    model.train()
    model.save(tmp_path / "model")
    joint = simulate_joint()
    for loaded in (
        type(model).load(tmp_path / "model"),
        type(model).load(tmp_path / "model", joint),
    ):
        with pytest.raises(RuntimeError, match=r"loaded model has no labelled cells: set up"):
            loaded.train()


@pytest.mark.parametrize("name", ["loss", "supervised"])
def test_a_loss_of_the_history_is_the_mean_over_the_cells_of_an_epoch(name, monkeypatch):
    seen = []
    whole = SCNYMModule.loss

    def watched(self, batch, *weights):
        total, terms = whole(self, batch, *weights)
        value = {"loss": total, **terms}[name]
        seen.append((float(value.detach()), len(batch["labelled"]["x"])))
        return total, terms

    monkeypatch.setattr(SCNYMModule, "loss", watched)
    model = make_model("scnym")
    model.train(**(FAST | {"max_epochs": 2}))
    values = np.array(seen).reshape(2, -1, 2)
    expected = (values[..., 0] * values[..., 1]).sum(axis=1) / values[..., 1].sum(axis=1)
    found = model.history_[f"{name}_train"].to_numpy(dtype=float).ravel()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["scnym", "cicl"])
def test_a_slurm_job_of_several_tasks_is_one_process_like_any_other(method, monkeypatch):
    tasks = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "job", "SLURM_JOB_ID": "1"}
    tasks |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    for name, value in tasks.items():
        monkeypatch.setenv(name, value)
    model = make_model(method)
    model.train(**(FAST | {"max_epochs": 1}))
    assert model.trainer.world_size == 1
    assert model.is_trained_


# -- threads that wait actively ------------------------------------------------------------------


@pytest.mark.parametrize("case", ["torch-was-first", "variable-set", "one-thread", "gpu"])
def test_slow_threads_are_warned_of_once(case, monkeypatch, caplog):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    if case == "variable-set":
        monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    elif case == "one-thread":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: case == "gpu")
    monkeypatch.setattr(_train, "TrainRunner", lambda *args, **kwargs: lambda: None)
    _train._warn_of_busy_waiting.cache_clear()
    for _ in range(2):
        _train.fit(
            SimpleNamespace(module=torch.nn.Identity()),
            None,
            None,
            1,
            _train.TrainOptions(progress=False),
        )
    _train._warn_of_busy_waiting.cache_clear()
    warned = [r.message for r in caplog.records if "OMP_WAIT_POLICY=PASSIVE" in r.message]
    assert len(warned) == (case == "torch-was-first")
