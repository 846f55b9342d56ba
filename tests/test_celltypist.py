"""Models of CellTypist, read from its files, which are pickles that are not trusted."""

import logging
import os
import pickle
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy.special import expit

import sctool
from sctool.model import CellTypistModel, load
from sctool.model._celltypist import Stored

FIXTURES = Path(__file__).parent / "fixtures" / "celltypist"
MODELS = ("lr", "sgd", "two")


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "expected.npz") as file:
        return dict(file)


@pytest.fixture
def query(expected) -> ad.AnnData:
    genes = pd.DataFrame(index=expected["genes"])
    return ad.AnnData(expected["counts"].astype(np.float32), var=genes)


@pytest.mark.parametrize("name", MODELS)
def test_labels_and_probabilities_are_celltypists(name, query, expected):
    model = load(FIXTURES / f"{name}.pkl")
    assert isinstance(model, CellTypistModel)
    prediction = model.predict_cells(query)
    assert (model.predict(query) == expected[f"{name}_labels"]).all()
    np.testing.assert_allclose(expit(prediction.latent), expected[f"{name}_proba"], atol=1e-5)
    np.testing.assert_allclose(prediction.proba.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(
        model.novel_score(query), 1 - expected[f"{name}_proba"].max(axis=1), atol=1e-5
    )


@pytest.mark.parametrize("scale", ["log1p", "log2", "CPM", "raw", "column"])
def test_what_celltypist_would_misread_is_read(scale, query, expected):
    """Other scales, other slots and other names of genes give the same labels."""
    if scale in ("log1p", "log2", "raw"):
        counts = query.copy()
        sc.pp.normalize_total(query, target_sum=1e4)
        sc.pp.log1p(query, base=2 if scale == "log2" else None)
        if scale == "raw":
            query.raw = counts
            sc.pp.scale(query)
    elif scale == "CPM":
        sc.pp.normalize_total(query, target_sum=1e6)
    else:
        query.var["symbol"] = query.var_names
        query.var_names = [f"ENSG{i:011d}" for i in range(query.n_vars)]
    model = load(FIXTURES / "lr.pkl")
    assert (model.predict(query) == expected["lr_labels"]).all()
    np.testing.assert_allclose(
        expit(model.predict_cells(query).latent), expected["lr_proba"], atol=1e-4
    )


def test_annotate_takes_the_file_and_says_where_it_is_from(query, expected, caplog):
    with caplog.at_level(logging.WARNING, "sctool"):
        sctool.tl.annotate(query, FIXTURES / "lr.pkl")
    assert (query.obs["sctool"] == expected["lr_labels"]).all()
    audit = " ".join(query.uns["sctool"]["audit"])
    assert "genes: 250 of the model's 260 genes" in audit
    assert "written with scikit-learn 1.7.2" in audit
    assert "CellTypist" in audit
    assert "sctool_ontology_term_id" not in query.obs
    import sklearn

    warned = any("scikit-learn 1.7.2" in record.message for record in caplog.records)
    assert warned == (not sklearn.__version__.startswith("1.7."))


def test_it_is_converted_once(query, tmp_path):
    model = load(FIXTURES / "sgd.pkl")
    model.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert (again.predict_cells(query).proba == model.predict_cells(query).proba).all()
    assert again.source_ == model.source_


def test_saturated_probabilities_do_not_hide_the_highest_score(query):
    model = load(FIXTURES / "lr.pkl")
    model.module.head.bias.data += 1000  # all of them round to 1
    prediction = model.predict_cells(query)
    assert (prediction.proba.argmax(axis=1) == prediction.latent.argmax(axis=1)).all()


def test_few_genes_are_refused(query):
    with pytest.raises(ValueError, match="Only 90 of the model's 260 genes"):
        load(FIXTURES / "lr.pkl").predict(query[:, :90].copy())


# -- files that are not what they seem -----------------------------------------------------------


class Planted:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("where", ["first", "inside", "array"])
def test_a_planted_class_is_refused_before_it_runs(where, tmp_path):
    ran = tmp_path / "ran"
    planted = Planted(ran)
    content = {
        "first": planted,
        "inside": {"Model": None, "Scaler_": [planted], "description": {}},
        "array": np.array([planted], dtype=object),
    }[where]
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"was not loaded: it names (posix|nt)\.system"):
        sctool.tl.annotate(ad.AnnData(np.ones((2, 3), np.float32)), tmp_path / "model.pkl")
    assert not ran.exists()
    pickle.loads((tmp_path / "model.pkl").read_bytes())  # the trap was a real one
    assert ran.exists()


@pytest.mark.parametrize(
    "function", ["builtins.eval", "builtins.getattr", "numpy.load", "sklearn.base.clone"]
)
def test_what_is_not_needed_is_refused_by_name(function, tmp_path):
    module, name = function.rsplit(".", 1)
    (tmp_path / "model.pkl").write_bytes(f"c{module}\n{name}\n.".encode())
    with pytest.raises(ValueError, match=rf"it names {module}\.{name}"):
        load(tmp_path / "model.pkl")


def test_what_a_file_sets_on_a_class_stays_in_it(tmp_path):
    """The second part of a state is set as attributes, here of the class itself."""
    name = "sklearn.preprocessing._data\nStandardScaler\n"
    (tmp_path / "model.pkl").write_bytes(f"c{name}(N(S'planted'\nI1\ndtb.".encode())
    with pytest.raises(ValueError, match="no model of CellTypist"):
        load(tmp_path / "model.pkl")
    assert not hasattr(Stored, "planted")


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_a_truncated_file_is_named(share, tmp_path):
    content = (FIXTURES / "lr.pkl").read_bytes()
    (tmp_path / "model.pkl").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"model\.pkl' (is damaged|was not loaded)"):
        load(tmp_path / "model.pkl")


def test_another_pickle_is_no_model(tmp_path):
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"Model": np.ones(3)}))
    with pytest.raises(ValueError, match="is a pickle, but no model of CellTypist"):
        load(tmp_path / "model.pkl")


class ForgedType:
    """A dtype that takes bytes of the file for pointers to objects, without the flag for these."""

    def __reduce__(self) -> tuple:
        fields = {"a": (np.dtype("O"), 0)}
        return np.dtype, ("V8", False, True), (3, "|", None, ("a",), fields, 8, 1, 0)


class OfForgedType:
    def __reduce__(self) -> tuple:
        make, (array, *_), _ = np.zeros(1).__reduce__()
        return make, (array, (0,), b"b"), (1, (1,), ForgedType(), False, b"A" * 8)


def changed(path: Path, **attributes: object) -> Path:
    """Write a fixture with other attributes of its classifier or scaler."""
    with open(FIXTURES / "lr.pkl", "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # another scikit-learn wrote it
        content = pickle.load(file)  # ours, made by make_celltypist_fixture.py
    for name, value in attributes.items():
        owner = content["Scaler_"] if name in ("mean_", "scale_") else content["Model"]
        setattr(owner, name, value(getattr(owner, name)) if callable(value) else value)
    path.write_bytes(pickle.dumps(content))
    return path


def test_an_array_of_forged_pointers_is_refused(tmp_path):
    path = changed(tmp_path / "forged.pkl", classes_=OfForgedType())
    with pytest.raises(ValueError, match="arrays of records"):
        load(path)


def with_first(value: float):
    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[0] = value
        return array

    return change


@pytest.mark.parametrize(
    "attributes",
    [
        {"coef_": with_first(np.nan)},
        {"coef_": with_first(np.inf)},
        {"coef_": lambda a: a.astype(complex)},
        {"coef_": lambda a: a[:, 1:]},
        {"intercept_": lambda a: a[1:]},
        {"intercept_": lambda a: a[:, None]},
        {"mean_": with_first(np.nan)},
        {"mean_": lambda a: a[1:]},
        {"scale_": with_first(0)},
        {"classes_": lambda a: a[:0]},
        {"features": lambda a: np.r_[a[:1], a[:-1]]},
    ],
    ids=lambda a: "-".join(a),
)
def test_numbers_that_are_none_are_refused(attributes, tmp_path):
    with pytest.raises(ValueError, match="no model of CellTypist"):
        load(changed(tmp_path / "changed.pkl", **attributes))


def test_a_file_that_was_written_again_is_the_same_model(query, expected, tmp_path):
    model = load(changed(tmp_path / "same.pkl"))
    assert (model.predict(query) == expected["lr_labels"]).all()
