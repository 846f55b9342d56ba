"""Saved models: plain files that execute nothing and that other versions read."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from make_fixture import BY_NEWER, FIXTURES
from synthetic import FAST, TYPES, simulate_joint, simulate_sides

import sctool
from sctool.model import METHODS, SCNYM, LogisticClassifier, load
from sctool.model._saving import FORMAT


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


def test_a_setting_that_is_refused_now_may_be_in_a_file(saved, trained):
    settings = json.loads((saved / "model.json").read_text())["settings"]
    edit(saved, settings=settings | {"batch_size": 1})
    loaded = load(saved)
    assert loaded.settings_.batch_size == 1
    adata = simulate_sides(20, 4)[0]
    np.testing.assert_array_equal(loaded.predict(adata), trained.predict(adata))


def test_the_files_are_json_and_plain_tensors(saved, trained):
    assert sorted(p.name for p in saved.iterdir()) == ["model.json", "weights.pt"]
    state = json.loads((saved / "model.json").read_text(encoding="utf-8"))
    assert state["format"] == 2
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


@pytest.mark.parametrize("failing", ["weights.pt", "model.json"])
def test_a_failed_save_leaves_the_earlier_model(failing, saved, trained, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    write = Path.write_bytes

    def full(self, content):
        if failing in self.name:
            raise OSError("No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        trained.save(saved, overwrite=True)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from sctool.model import load

folder, old, new = map(Path, sys.argv[1:])
model = load(new)

def count(function, calls, limit):
    def counted(*args, **kwargs):
        if calls[0] == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        calls[0] += 1
        if calls[0] == limit and args[-1].__class__ is bytes:  # half of it is written
            args = (*args[:-1], args[-1][: len(args[-1]) // 2])
        return function(*args, **kwargs)
    return counted

def save(limit):
    calls = [0]
    Path.write_bytes = count(Path.write_bytes, calls, limit)
    os.replace = count(os.replace, calls, limit)
    model.save(folder, overwrite=True)
    return calls[0]

def run(limit):
    if (pid := os.fork()) == 0:
        os._exit(save(limit))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

n = run(-1)
for before in (True, False):
    for limit in range(n + 1):
        shutil.rmtree(folder)
        shutil.copytree(old, folder) if before else folder.mkdir()
        code = run(limit)
        shutil.copytree(folder, f"{folder}-{before}-{limit}")
        print(before, limit, code, sorted(p.name for p in folder.iterdir()))
        if code == -signal.SIGKILL:
            run(-1)
            shutil.copytree(folder, f"{folder}-{before}-{limit}-again")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_save_leaves_the_old_model_or_the_new_one(trained, saved, tmp_path):
    other = load(saved)
    for weights in other.module.parameters():
        weights.data *= 0.5
    other.class_colors_ = dict.fromkeys(TYPES, "#000000")
    other.save(tmp_path / "new")
    folder = tmp_path / "killed"
    paths = [str(p) for p in (folder, saved, tmp_path / "new")]
    command = [sys.executable, "-W", "ignore", "-c", KILLED, *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    told = [line.split(maxsplit=3) for line in done.stdout.splitlines()]
    killed = [(before, int(limit)) for before, limit, code, _ in told if code == "-9"]
    # before each of: two files written, two renamed
    assert killed == [(b, i) for b in ("True", "False") for i in range(4)], done.stderr
    adata, _ = simulate_sides(n_query=12)
    old, new = (m.predict(adata, soft=True) for m in (trained, other))
    assert not np.allclose(old, new)
    for before, limit in killed:
        left = Path(f"{folder}-{before}-{limit}")
        if before == "True" or limit == 3:
            whole = load(left)
            assert whole.class_colors_ == (other if limit == 3 else trained).class_colors_
            pd.testing.assert_frame_equal(
                whole.predict(adata, soft=True), new if limit == 3 else old
            )
        else:
            with pytest.raises(FileNotFoundError, match="No saved sctool model"):
                load(left)
        again = Path(f"{left}-again")
        assert sorted(p.name for p in again.iterdir()) == ["model.json", "weights.pt"]
        pd.testing.assert_frame_equal(load(again).predict(adata, soft=True), new)


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
    with pytest.raises(
        ValueError, match=r"not a file of plain tensors.*[Dd]ownload the model again"
    ):
        load(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"], ids=["empty", "cut", "binary"])
def test_damaged_json_is_an_error(content, saved):
    (saved / "model.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"is not JSON.*download the model again"):
        load(saved)


@pytest.mark.parametrize("content", ["[]", '{"format": 1}', "{}"])
def test_json_of_something_else_is_an_error(content, saved):
    (saved / "model.json").write_text(content)
    with pytest.raises(ValueError, match=r"model.json"):
        load(saved)


@pytest.mark.parametrize("name", ["model.json", "weights.pt"])
def test_a_missing_file_is_an_error(name, saved):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"No saved sctool model in .*: {name} is missing"):
        load(saved)


def test_a_description_of_another_network_is_an_error(saved):
    edit(saved, classes=TYPES[:2])
    with pytest.raises(ValueError, match=r"another network than that of weights.pt.*again"):
        load(saved)


def test_a_folder_that_is_not_there_is_an_error_that_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere': there is no such folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["ref.h5ad", "ref.zarr"])
def test_the_path_of_a_reference_is_no_model(name, tmp_path):
    adata, ref = simulate_sides(n_query=8)
    (ref.write_zarr if name.endswith(".zarr") else ref.write_h5ad)(tmp_path / name)
    with pytest.raises(
        FileNotFoundError, match=rf"{name}': this is a file of cells: pass it as an AnnData"
    ):
        sctool.tl.annotate(adata, tmp_path / name)


def test_another_class_is_an_error_that_names_the_right_one(saved):
    with pytest.raises(
        ValueError, match=r"contains a SCNYM, not a LogisticClassifier.*sctool.model.SCNYM.load"
    ):
        LogisticClassifier.load(saved)


def test_an_unknown_class_lists_the_known_ones(saved):
    edit(saved, model="FUTURE")
    with pytest.raises(ValueError, match=r"contains a 'FUTURE' model.*known models") as error:
        load(saved)
    assert all(cls.__name__ in str(error.value) for cls in METHODS.values())


def test_a_newer_format_is_an_error(saved):
    edit(saved, format=99)
    with pytest.raises(
        ValueError, match=r"has format 99, but this version .* reads formats up to 2: update sctool"
    ):
        load(saved)


def test_settings_of_another_version_are_filled_in_and_left_out(saved):
    state = json.loads((saved / "model.json").read_text())
    del state["settings"]["temperature"]
    edit(saved, settings=state["settings"] | {"of_the_future": 1})
    assert load(saved).settings_.temperature == SCNYM.PRESETS["default"].temperature


# -- other versions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "path"),
    [*FIXTURES.items(), (2, BY_NEWER)],
    ids=[*(f"format-{i}" for i in FIXTURES), "by-newer-packages"],
)
def test_a_model_saved_under_another_python_predicts_the_same(format, path):
    # written by make_fixture.py, by the version that had this format: under Python 3.11, or 3.13
    assert json.loads((path / "model.json").read_text(encoding="utf-8"))["format"] == format
    assert sum(p.stat().st_size for p in path.iterdir()) < 200_000
    query, expected = np.load(path / "query.npz"), np.load(path / "expected.npz")
    adata = ad.AnnData(
        sp.csr_matrix(query["counts"].astype(np.float32)),
        var=pd.DataFrame(index=pd.Index(query["genes"])),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(len(query["counts"]))]),
    )
    for genes in (slice(None), slice(None, None, -1)):
        part = adata[:, genes].copy()
        sctool.tl.annotate(part, path)
        np.testing.assert_allclose(part.obsm["sctool_proba"], expected["proba"], atol=1e-4)
        np.testing.assert_allclose(part.obsm["X_sctool"], expected["latent"], atol=1e-3)
        assert list(part.uns["sctool"]["classes"]) == TYPES
        assert list(part.uns["sctool_colors"]) == ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728"]
    assert expected["proba"].max(axis=1).std() > 0.05, "the fixture is of no use"


# -- models of format 1 --------------------------------------------------------------------------

#: What format 1 called settings, by the class that has them.
RENAMED = {
    "ContrastiveClassifier": {"init_from_linear": "guided"},
    "SCDET": {"initial_names": "guided"},
}
#: Settings that only format 1 had: of the experiments, and of one class for all regressions.
GONE = {
    "ContrastiveClassifier": {"refined": False, "thinning": 1.0},
    "SCDET": {
        "prior": "estimated",
        "distribution": None,
        "slots": "prediction",
        "contrast": "soft",
    },
    "LogisticClassifier": {
        "backbone": "linear",
        "component": None,
        "positives": "own",
        "guided": True,
        "refined": False,
        "n_latent": 128,
        "temperature": 0.5,
        "folds": 5,
        "thinning": 1.0,
        "l2": 0.0001,
        "noise": 1.0,
        "scale_by_maximum": False,
        "lr": 0.003,
        "component_lr": 0.001,
        "weight_decay": 0.0,
        "batch_size": 256,
        "max_epochs": None,
        "min_steps": 400,
        "min_epochs": 5,
    },
}


def to_format_1(folder: Path, name: str, without: tuple[str, ...] = ()) -> None:
    """Rewrite a saved model's JSON as the version before would have written it."""
    state = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert state["format"] == 2
    settings = state["settings"]
    for new, old in RENAMED.get(state["model"], {}).items():
        settings[old] = settings.pop(new)
    settings |= GONE.get(state["model"], {})
    state |= {"format": 1, "model": name, "attributes": {}}
    for entry in without:
        del state[entry]
    (folder / "model.json").write_text(json.dumps(state), encoding="utf-8")


#: Method and settings of a model; its name in format 1, and the class that it has now.
OF_FORMAT_1 = {
    "LOGISTIC": ("logistic", {"n_marker_genes": 50, "C": "auto"}, "LOGISTIC", "LogisticClassifier"),
    "LOGISTIC-with-mls": (
        "contrastive",
        {"component": "mls"},
        "LOGISTIC",
        "ContrastiveClassifier",
    ),
    "LOGISTIC-with-mlp": (
        "contrastive",
        {"component": "mlp"},
        "LOGISTIC",
        "ContrastiveClassifier",
    ),
    "ContrastiveClassifier-not-guided": (
        "contrastive",
        {"init_from_linear": False},
        "ContrastiveClassifier",
        "ContrastiveClassifier",
    ),
    "GATE": ("gate", {"n_novel": 1}, "GATE", "GroupNoveltyClassifier"),
    "SCDET-guided": ("scdet", {}, "SCDET", "SCDET"),
    "SCDET-not-guided": ("scdet", {"initial_names": False, "n_novel": 1}, "SCDET", "SCDET"),
}


@pytest.mark.parametrize(
    ("method", "settings", "name", "cls"), OF_FORMAT_1.values(), ids=OF_FORMAT_1
)
def test_a_model_of_format_1_predicts_as_it_did(method, settings, name, cls, tmp_path):
    adata, ref = simulate_sides()
    model = sctool.tl.annotate(
        adata,
        ref[ref.obs["cell_type"] != "Mono"].copy(),
        method=method,
        return_model=True,
        model_kwargs=settings,
        train_kwargs=FAST | {"max_epochs": 2},
    )
    model.save(tmp_path / "model")
    to_format_1(tmp_path / "model", name)

    loaded = load(tmp_path / "model")
    assert type(loaded).__name__ == cls
    assert loaded.settings_ == model.settings_
    assert loaded.names_ == model.names_
    again, _ = simulate_sides()
    sctool.tl.annotate(again, tmp_path / "model")
    # doublets and cells of low quality, which cannot be novel, are found in training alone
    same = ~adata.obs["sctool_status"].isin(["doublet", "low_quality"]).to_numpy()
    assert same.mean() > 0.9
    for slot in ("sctool_proba", "X_sctool"):
        found, expected = again.obsm[slot][same], adata.obsm[slot][same]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    assert list(again.obs["sctool"][same]) == list(adata.obs["sctool"][same])
    assert again.uns["sctool"]["params"]["method"] == method
    assert set(again.obs) == set(adata.obs)


def test_a_clustering_of_format_1_predicts_as_it_did(tmp_path):
    adata, _ = simulate_sides()
    model = sctool.tl.cluster(
        adata,
        n_clusters=4,
        return_model=True,
        train_kwargs={"max_epochs": 1, "enable_progress_bar": False},
    )
    model.save(tmp_path / "model")
    to_format_1(tmp_path / "model", "CICL")
    again, _ = simulate_sides()
    sctool.tl.cluster(again, model=tmp_path / "model")
    assert list(again.obs["cicl"]) == list(adata.obs["cicl"])
    np.testing.assert_allclose(again.obsm["X_cicl"], adata.obsm["X_cicl"], atol=1e-5)


def test_the_first_models_of_format_1_said_no_target_sum_and_no_novel_groups(saved, trained):
    to_format_1(saved, "SCNYM", without=("target_sum", "novel_classes"))
    state = json.loads((saved / "model.json").read_text())
    del state["settings"]["target_sum"]
    edit(saved, settings=state["settings"])
    adata, _ = simulate_sides()
    loaded = load(saved)
    assert loaded.features_.target_sum == 1e4
    pd.testing.assert_frame_equal(
        loaded.predict(adata, soft=True), trained.predict(adata, soft=True)
    )


def test_a_model_of_format_1_is_saved_in_the_present_one(saved, tmp_path):
    to_format_1(saved, "SCNYM")
    load(saved).save(tmp_path / "again")
    state = json.loads((tmp_path / "again" / "model.json").read_text())
    assert state["format"] == 2
    assert "attributes" not in state
    assert load(tmp_path / "again").classes_ == TYPES


def test_there_is_a_committed_model_of_every_format():
    assert list(FIXTURES) == list(range(1, FORMAT + 1))
    by = [json.loads((path / "model.json").read_text())["versions"] for path in FIXTURES.values()]
    assert all(v["python"].startswith("3.11.") and v["scvi-tools"] < "1.5" for v in by)
    newer = json.loads((BY_NEWER / "model.json").read_text())["versions"]
    assert newer["python"].startswith("3.13.")
    assert newer["scvi-tools"] >= "1.5"


@pytest.mark.parametrize("name", ["LOGISTIC", "GATE"])
def test_a_class_of_format_1_is_known_by_its_present_name_alone(name, saved):
    edit(saved, model=name)  # but of format 2
    with pytest.raises(ValueError, match=rf"contains a '{name}' model.*known models"):
        load(saved)
