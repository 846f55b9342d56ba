"""Saved models: plain files that execute nothing and that other versions read."""

import json
import os
import pickle
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from make_fixture import FIXTURE
from synthetic import FAST, TYPES, simulate_joint, simulate_sides

import sctool
from sctool.model import LOGISTIC, METHODS, SCNYM, load


@pytest.fixture(scope="module")
def trained() -> SCNYM:
    """Return a trained model."""
    joint = simulate_joint()
    joint.obs["donor"] = pd.Categorical([f"d{i % 3}" for i in range(joint.n_obs)])
    SCNYM.setup_anndata(joint, "cell_type", "Unknown", batch_key="donor")
    model = SCNYM(joint, n_top_genes=100, n_hidden=16)
    model.train(**FAST)
    return model


@pytest.fixture
def saved(trained, tmp_path) -> Path:
    """Return the folder of a saved model."""
    trained.save(tmp_path / "model")
    return tmp_path / "model"


def edit(saved: Path, **changes: object) -> None:
    """Change entries of a saved model's JSON."""
    state = json.loads((saved / "model.json").read_text())
    (saved / "model.json").write_text(json.dumps(state | changes))


# -- what is written -----------------------------------------------------------------------------


def test_the_files_are_json_and_plain_tensors(saved, trained):
    assert sorted(p.name for p in saved.iterdir()) == ["model.json", "weights.pt"]
    state = json.loads((saved / "model.json").read_text(encoding="utf-8"))
    assert state["model"] == "SCNYM"
    assert state["classes"] == TYPES
    assert len(state["genes"]) == 300
    assert len(state["selected"]) == 100
    assert set(state["selected"]) <= set(state["genes"])
    tensors = torch.load(saved / "weights.pt", weights_only=True)
    assert all(type(v) is torch.Tensor for v in tensors.values())
    expected = {f"module.{k}" for k in trained.module.state_dict()} | {"features.mean"}
    assert set(tensors) == expected


def test_no_cell_is_in_the_files(saved):
    text = (saved / "model.json").read_text()
    assert "cell0-" not in text  # names of cells
    assert os.path.getsize(saved / "weights.pt") < 100_000


def test_everything_comes_back(saved, trained):
    model = SCNYM.load(saved)
    assert model.classes_ == trained.classes_
    assert model.settings_ == trained.settings_
    assert model.preset_ == trained.preset_
    assert model.n_domains_ == 3
    assert model.class_colors_ == trained.class_colors_
    assert list(model.features_.genes.index) == list(trained.features_.genes.index)
    assert list(model.features_.selected) == list(trained.features_.selected)
    np.testing.assert_array_equal(model.features_.mean, trained.features_.mean)
    assert model.is_trained_
    assert not model.module.training


def test_a_loaded_model_can_be_saved_again(saved, tmp_path):
    SCNYM.load(saved).save(tmp_path / "again")
    adata, _ = simulate_sides()
    first, second = (load(path).predict(adata, soft=True) for path in (saved, tmp_path / "again"))
    pd.testing.assert_frame_equal(first, second)


def test_an_existing_folder_is_left_alone(saved, trained):
    before = (saved / "model.json").read_bytes(), (saved / "weights.pt").read_bytes()
    with pytest.raises(FileExistsError, match=r"exists: pass overwrite=True"):
        trained.save(saved)
    assert before == ((saved / "model.json").read_bytes(), (saved / "weights.pt").read_bytes())


def test_an_existing_model_is_replaced_when_asked(saved, trained):
    (saved / "weights.pt").write_bytes(b"")
    trained.save(saved, overwrite=True)
    assert load(saved).classes_ == TYPES


@pytest.mark.parametrize("kind", [str, Path])
def test_load_finds_the_class(saved, kind):
    assert type(load(kind(saved))) is SCNYM


# -- what is refused -----------------------------------------------------------------------------


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("how", ["pickle", "torch", "beside-tensors"])
@pytest.mark.parametrize("way", ["load", "class", "annotate"])
def test_a_planted_pickle_is_refused_and_not_executed(how, way, saved, tmp_path):
    bomb, trace = Payload(tmp_path / "executed"), tmp_path / "executed"
    pickle.loads(pickle.dumps(bomb))
    assert trace.exists(), "the payload would do nothing"
    trace.unlink()
    tensors = torch.load(saved / "weights.pt", weights_only=True)
    if how == "pickle":
        (saved / "weights.pt").write_bytes(pickle.dumps(bomb))
    else:
        torch.save(
            {**tensors, "x": bomb} if how == "beside-tensors" else bomb, saved / "weights.pt"
        )
    adata, _ = simulate_sides(n_query=8)
    use = {
        "load": lambda: load(saved),
        "class": lambda: SCNYM.load(saved),
        "annotate": lambda: sctool.tl.annotate(adata, saved),
    }[way]
    with pytest.raises(ValueError, match=r"not a file of plain tensors and was not loaded"):
        use()
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"nonsense"], ids=["empty", "nonsense"])
def test_damaged_weights_are_an_error(content, saved):
    (saved / "weights.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"not a file of plain tensors"):
        load(saved)


def test_cut_off_weights_are_an_error(saved):
    whole = (saved / "weights.pt").read_bytes()
    (saved / "weights.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"not a file of plain tensors"):
        load(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"], ids=["empty", "cut", "binary"])
def test_damaged_json_is_an_error(content, saved):
    (saved / "model.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"is not JSON"):
        load(saved)


@pytest.mark.parametrize("content", ["[]", '{"format": 1}', "{}"])
def test_json_of_something_else_is_an_error(content, saved):
    (saved / "model.json").write_text(content)
    with pytest.raises(ValueError, match=r"model.json"):
        load(saved)


@pytest.mark.parametrize("name", ["model.json", "weights.pt"])
def test_a_missing_file_is_an_error(name, saved):
    (saved / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"No saved sctool model in .*: {name} is not there"
    ):
        load(saved)


def test_another_class_is_an_error_that_names_the_right_one(saved):
    with pytest.raises(ValueError, match=r"holds a SCNYM, not a LOGISTIC.*sctool.model.SCNYM.load"):
        LOGISTIC.load(saved)


def test_an_unknown_class_lists_the_known_ones(saved):
    edit(saved, model="FUTURE")
    with pytest.raises(ValueError, match=r"holds a 'FUTURE'; this sctool knows") as error:
        load(saved)
    assert all(cls.__name__ in str(error.value) for cls in METHODS.values())


def test_a_newer_format_is_an_error(saved):
    edit(saved, format=99)
    with pytest.raises(
        ValueError, match=r"has format 99, this sctool reads up to 1: update sctool"
    ):
        load(saved)


def test_settings_of_another_version_are_filled_in_and_left_out(saved):
    state = json.loads((saved / "model.json").read_text())
    del state["settings"]["temperature"]
    edit(saved, settings=state["settings"] | {"of_the_future": 1})
    assert load(saved).settings_.temperature == SCNYM.PRESETS["default"].temperature


# -- other versions ------------------------------------------------------------------------------


def test_a_model_saved_under_another_python_predicts_the_same():
    # written by make_fixture.py, under Python 3.11
    assert sum(p.stat().st_size for p in FIXTURE.iterdir()) < 200_000
    query, expected = np.load(FIXTURE / "query.npz"), np.load(FIXTURE / "expected.npz")
    adata = ad.AnnData(
        sp.csr_matrix(query["counts"].astype(np.float32)),
        var=pd.DataFrame(index=pd.Index(query["genes"])),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(len(query["counts"]))]),
    )
    for genes in (slice(None), slice(None, None, -1)):
        part = adata[:, genes].copy()
        sctool.tl.annotate(part, FIXTURE)
        np.testing.assert_allclose(part.obsm["sctool_proba"], expected["proba"], atol=1e-4)
        np.testing.assert_allclose(part.obsm["X_sctool"], expected["latent"], atol=1e-3)
        assert list(part.uns["sctool"]["classes"]) == TYPES
        assert list(part.uns["sctool_colors"]) == ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728"]
    assert expected["proba"].max(axis=1).std() > 0.05, "the fixture is of no use"
