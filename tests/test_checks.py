"""Settings that no model could use are refused when they are made, before anything is trained."""

import math
import pickle
from dataclasses import dataclass, fields
from typing import Literal, get_type_hints

import numpy as np
import pytest
from synthetic import simulate_joint, simulate_sides
from test_settings import OF_MODEL, PUBLIC

import sctool
from sctool._checks import Count, Part, Positive, Seed, Share, Whole, check, check_dict
from sctool.model import METHODS, SCNYM, LogisticClassifier, LogisticSettings, SCDETSettings
from sctool.model._base import NetworkSettings, Settings

#: What no number may be, whatever its range.
NEVER = [-1, -0.5, math.nan, -math.inf, "1", "", True, [0], np.array(3.5), object()]
NUMBERS = [
    (cls, f.name)
    for cls in PUBLIC
    for f in fields(cls)
    if f.type not in ("bool", "str") and "Literal[" not in f.type and "Name" not in f.type
]


def ids(value):
    return value if isinstance(value, str) else value.__name__


@pytest.mark.parametrize(("cls", "name"), NUMBERS, ids=ids)
def test_no_setting_takes_what_is_no_number_in_range(cls, name):
    for value in NEVER:
        with pytest.raises(ValueError, match=rf"^{name}=.* must be "):
            cls(**{name: value})


def test_every_field_has_a_type_that_says_what_it_may_be():
    """A plain number is any finite one: a new field must say more."""
    plain = [
        (cls.__name__, f.name)
        for cls in PUBLIC
        for f in fields(cls)
        if {"int", "float", "Any", "tuple"} & set(f.type.replace("|", " ").split())
    ]
    assert plain == []


@pytest.mark.parametrize("cls", PUBLIC, ids=lambda cls: cls.__name__)
def test_a_flag_is_no_text(cls):
    flags = [f.name for f in fields(cls) if f.type == "bool"]
    for name in flags:
        for value in ("no", "False", 2, None, math.nan):
            with pytest.raises(ValueError, match=f"^{name}=.* must be True or False"):
                cls(**{name: value})
        assert getattr(cls(**{name: np.bool_(False)}), name) is False
        assert getattr(cls(**{name: 1}), name) is True


@pytest.mark.parametrize("cls", OF_MODEL, ids=lambda cls: cls.__name__)
def test_numbers_of_numpy_are_taken_and_become_those_of_python(cls):
    settings = OF_MODEL[cls](n_top_genes=np.int32(7), target_sum=np.float32(2.0))
    assert (settings.n_top_genes, settings.target_sum) == (7, 2.0)
    assert type(settings.n_top_genes) is int
    assert type(settings.target_sum) is float
    assert OF_MODEL[cls](n_top_genes=None, target_sum=None).n_top_genes is None
    assert OF_MODEL[cls](target_sum=10000).target_sum == 10000


@pytest.mark.parametrize(
    ("kind", "taken", "refused"),
    [
        (Whole, [0, 1, np.uint8(3)], [-1, 1.0, math.nan, False]),
        (Count, [1, np.int64(5)], [0, 2.5, np.float64(3)]),
        (Seed, [0, 2**32 - 1], [-1, 2**32, 1.5]),
        (Positive, [1e-300, 3, np.float32(0.5)], [0, -0.0, math.inf]),
        (Share, [0, 1, 0.5], [1.01, -1e-9, math.nan]),
        (Part, [0, 0.99], [1, 1.0]),
        (Positive | Literal["auto"] | None, [None, "auto", 2], ["best", 0]),
        (tuple[Count, ...], [(1,), [2, 3], np.array([4])], [(), (0,), 3, "12", (1, None)]),
        (tuple[Count, Count], [(1, 2)], [(1,), (1, 2, 3)]),
    ],
)
def test_ranges(kind, taken, refused):
    for value in taken:
        found = check("x", value, kind)
        assert found == (tuple(value) if isinstance(value, list | np.ndarray) else value)
    for value in refused:
        with pytest.raises(ValueError, match="^x=.* must be "):
            check("x", value, kind)


def test_the_message_says_what_is_possible():
    with pytest.raises(ValueError, match=r"^C=-1 must be a number above 0, 'auto' or None\.$"):
        LogisticSettings(C=-1)
    with pytest.raises(
        ValueError, match=r"n_hidden=\(\) must be some values, each a whole number above 0"
    ):
        SCDETSettings(n_hidden=())
    with pytest.raises(
        ValueError, match=r"similarity='x' is unknown; known: \('cosine', 'inner'\)"
    ):
        SCDETSettings(similarity="x")


def test_infinity_is_a_weight_where_it_has_a_meaning():
    assert LogisticSettings(min_type_weight=math.inf).min_type_weight == math.inf
    for name in ("C", "target_sum"):
        with pytest.raises(ValueError, match=f"{name}=inf must be a number above 0"):
            LogisticSettings(**{name: math.inf})


def test_a_new_class_is_checked_too():
    @dataclass(frozen=True)
    class Own(NetworkSettings):
        depth: int = 3
        rate: float = 0.1
        anything: object = None

    assert Own(depth=np.int64(-2), anything="x").depth == -2
    for wrong in ({"depth": 0.5}, {"rate": math.inf}, {"batch_size": 0}):
        with pytest.raises(ValueError, match="must be a"):
            Own(**wrong)


def test_settings_are_still_values():
    settings = LogisticSettings(C=np.float64(2))
    assert settings == LogisticSettings(C=2.0)
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert set(get_type_hints(Settings)) == {"n_top_genes", "target_sum"}


def test_arguments_are_a_dictionary():
    assert check_dict("train_kwargs", None) == {}
    with pytest.raises(TypeError, match=r"train_kwargs=\[1\]: pass a dictionary"):
        check_dict("train_kwargs", [1])


# -- before training ------------------------------------------------------------------------------


@pytest.fixture
def untrained(monkeypatch):
    """Fail if any cell is read."""

    def read(*args, **kwargs):
        raise AssertionError("cells were read")

    monkeypatch.setattr("sctool.tl._apply._data.join", read)


WRONG = [
    ({"model_kwargs": {"n_top_genes": 0}}, ValueError, "n_top_genes=0 must be"),
    ({"model_kwargs": {"target_sum": "1e4"}}, ValueError, "target_sum='1e4' must be"),
    ({"model_kwargs": {"preset": ["default"]}}, ValueError, "preset=.* is unknown"),
    ({"model_kwargs": [("C", 1)]}, TypeError, "model_kwargs=.*pass a dictionary"),
    ({"train_kwargs": "gpu"}, TypeError, "train_kwargs='gpu': pass a dictionary"),
    # Lightning would train without an end
    ({"train_kwargs": {"max_epochs": -1}}, ValueError, "max_epochs=-1 must be"),
    ({"train_kwargs": {"max_epochs": 0}}, ValueError, "max_epochs=0 must be"),
    ({"train_kwargs": {"batch_size": 0}}, ValueError, "batch_size=0 must be"),
    ({"train_kwargs": {"plan_kwargs": {"target_sum": -1}}}, ValueError, "target_sum=-1 must be"),
    ({"train_kwargs": {"plan_kwargs": 3}}, TypeError, "plan_kwargs=3: pass a dictionary"),
    ({"train_kwargs": {"enable_progress_bar": "no"}}, ValueError, "enable_progress_bar='no' must"),
    ({"random_state": -1}, ValueError, "random_state=-1 must be a whole number from 0"),
    ({"random_state": 2**32}, ValueError, "random_state=4294967296 must be"),
    ({"random_state": "0"}, ValueError, "random_state='0' must be"),
    ({"random_state": 0.5}, ValueError, "random_state=0.5 must be"),
]


@pytest.mark.parametrize("method", METHODS)
def test_it_is_said_before_a_cell_is_read(untrained, method):
    adata, ref = simulate_sides(8, 8)
    for arguments, error, message in WRONG:
        for given in (ref, [ref, ref.copy()]):
            with pytest.raises(error, match=message):
                sctool.tl.annotate(adata, given, method=method, **arguments)


@pytest.mark.parametrize("name", ["ignore_case", "adapt", "copy", "return_model"])
def test_a_flag_of_annotate_is_no_text(name):
    adata, ref = simulate_sides(8, 8)
    with pytest.raises(ValueError, match=f"{name}='no' must be True or False"):
        sctool.tl.annotate(adata, ref, **{name: "no"})


@pytest.mark.parametrize("method", ["auto", "gate", "scdet", "sskm"])
def test_two_numbers_of_novel_types_are_one_too_many(untrained, method):
    adata, ref = simulate_sides(8, 8)
    with pytest.raises(ValueError, match="novel=0, but model_kwargs has n_novel=3"):
        sctool.tl.annotate(adata, ref, method=method, novel=0, model_kwargs={"n_novel": 3})


def test_train_itself_checks():
    cells = simulate_joint(8, 40)
    for cls, wrong in ((SCNYM, {"batch_size": 1}), (LogisticClassifier, {"max_epochs": -1})):
        cls.setup_anndata(cells, labels_key="cell_type")
        with pytest.raises(ValueError, match="must be a whole number"):
            cls(cells).train(**wrong)


def test_no_seed_is_none():
    adata, ref = simulate_sides(20, 40)
    sctool.tl.annotate(adata, ref, method="logistic", random_state=None)
    assert "random_state" not in adata.uns["sctool"]["params"]


# -- what only training can tell ------------------------------------------------------------------


@pytest.mark.parametrize("method", ["auto", "scnym", "actinn"])
def test_training_that_diverges_is_no_answer(method):
    adata, ref = simulate_sides(20, 40)
    with pytest.raises(ValueError, match=r"diverged: .* not finite numbers. Pass a lower"):
        sctool.tl.annotate(
            adata,
            ref,
            method=method,
            model_kwargs={"lr": 1e30},
            train_kwargs={"max_epochs": 2, "enable_progress_bar": False},
        )
    assert "sctool" not in adata.obs


def test_minibatches_of_three_leave_no_single_cell():
    adata, ref = simulate_sides(7, 20)
    options = {"max_epochs": 1, "batch_size": 3, "enable_progress_bar": False}
    sctool.tl.annotate(adata, ref, method="scnym", train_kwargs=options)
    assert adata.obs["sctool_score"].notna().all()


def test_one_gene_has_no_components():
    adata, ref = simulate_sides(20, 40)
    with pytest.raises(ValueError, match="60 cells with 1 genes have no principal components"):
        sctool.tl.annotate(adata, ref, method="scdet", model_kwargs={"n_top_genes": 1})


def test_what_is_no_setting_but_an_argument_of_the_model_goes_through():
    adata, ref = simulate_sides(20, 60)
    quiet = {"train_kwargs": {"max_epochs": 3, "enable_progress_bar": False}}
    base = sctool.tl.annotate(adata.copy(), ref, method="actinn", return_model=True, **quiet)
    settings = {"pretrained": base, "component": "mlp", "ignore_case": True}
    sctool.tl.annotate(adata, ref, method="actinn", model_kwargs=settings, **quiet)
    assert adata.obs["sctool_score"].notna().all()
