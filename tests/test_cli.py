"""The command line as a user runs it."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import mudata
import numpy as np
import pytest
from synthetic import TYPES, simulate_sides, without_pulling

import sctool
from sctool.cli import main
from sctool.model import CLUSTER_METHODS, METHODS


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Return a folder with ``query.h5ad`` and ``ref.h5ad``."""
    folder = tmp_path_factory.mktemp("sides")
    for name, side in zip(("query", "ref"), simulate_sides(), strict=True):
        side.write_h5ad(folder / f"{name}.h5ad")
    return folder


@pytest.fixture
def files(written, tmp_path, monkeypatch) -> Path:
    """Go to a folder with ``query.h5ad`` and ``ref.h5ad``."""
    for file in written.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: object) -> int:
    return main([str(word) for word in words])


def fails(capsys: pytest.CaptureFixture, *words: object) -> str:
    """The message of a run that ends with exit code 2, and no traceback."""
    try:
        code = run(*words)
    except SystemExit as end:  # argparse's own way
        code = end.code
    assert code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "error: " in error
    return error.split("error: ")[1]


def annotate(*more: object) -> list[object]:
    return ["annotate", "query.h5ad", "--ref", "ref.h5ad", "-o", "out.h5ad", *more]


# -- annotate ------------------------------------------------------------------------------------


# One that says nothing of novel cells, one that flags them, and one that groups them: all others go
# the same way.
@pytest.mark.parametrize("method", ["logistic", "scnym", "gate"])
def test_annotate_writes_what_the_function_writes(method, files, capsys):
    options = ["--method", method, "--max-epochs", 3, "--seed", 3, "--quiet"]
    assert run(*annotate(*options)) == 0
    out = ad.read_h5ad("out.h5ad")
    adata, ref = simulate_sides()
    train_kwargs = {"max_epochs": 3, "enable_progress_bar": False}
    sctool.tl.annotate(adata, ref, method=method, random_state=3, train_kwargs=train_kwargs)
    np.testing.assert_allclose(out.obsm["sctool_proba"], adata.obsm["sctool_proba"], atol=1e-5)
    assert list(out.obs["sctool"].cat.categories) == TYPES
    assert set(out.obs) == set(adata.obs)
    assert out.uns["sctool"]["params"]["method"] == method
    np.testing.assert_array_equal(out.X.toarray(), adata.X.toarray())
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "wrote out.h5ad"
    assert "query: read count values from X" in printed
    for name, n in out.obs["sctool"].value_counts().items():
        line = re.search(rf"^  {name} +(\d+)( |$)", printed, flags=re.MULTILINE)
        assert (int(line[1]) if line else 0) == n
    assert sorted(p.name for p in files.iterdir()) == ["out.h5ad", "query.h5ad", "ref.h5ad"]


def test_a_saved_model_adapts(files, capsys):
    model = sctool.tl.annotate(
        ad.read_h5ad("query.h5ad"),
        ad.read_h5ad("ref.h5ad"),
        return_model=True,
        model_kwargs={"adversary": False, "mixmatch": False},
    )
    model.save("model")
    words = ["annotate", "query.h5ad", "--model", "model", "--adapt", "--save-model", "adapted"]
    assert run(*words, "-o", "out.h5ad", "-q") == 0
    assert "which has adapted to these cells" in capsys.readouterr().out
    assert ad.read_h5ad("out.h5ad").uns["sctool"]["params"]["adapt"]
    assert run("annotate", "query.h5ad", "--model", "adapted", "-o", "again.h5ad") == 0
    first, second = ad.read_h5ad("out.h5ad"), ad.read_h5ad("again.h5ad")
    np.testing.assert_allclose(
        first.obsm["sctool_proba"], second.obsm["sctool_proba"], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("method", list(METHODS))
def test_a_saved_model_is_used_again(method, files, capsys):
    options = ["--method", method, "--max-epochs", 1, "-q", "--save-model", "model"]
    assert run(*annotate(*options)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "wrote out.h5ad and model"
    assert ad.read_h5ad("out.h5ad").uns["sctool"]["params"]["method"] == method
    assert run("annotate", "query.h5ad", "--model", "model", "-o", "again.h5ad") == 0
    first, second = ad.read_h5ad("out.h5ad"), ad.read_h5ad("again.h5ad")
    np.testing.assert_allclose(
        first.obsm["sctool_proba"], second.obsm["sctool_proba"], rtol=0, atol=1e-6
    )
    assert "nothing was trained" in capsys.readouterr().out


def test_every_option_reaches_the_function(files, capsys):
    adata, ref = simulate_sides()
    for side, name in ((adata, "query"), (ref, "ref")):
        side.obs["donor"] = ["a", "b"] * (side.n_obs // 2)
        side.layers["mine"] = side.X.copy()
        side.X = -side.X
        side.write_h5ad(f"{name}.h5ad")
    ref.obs["kind"] = ref.obs.pop("cell_type")
    ref.var_names = [name.lower() for name in ref.var_names]
    ref.write_h5ad("ref.h5ad")
    options = [
        *["--labels-key", "kind", "--method", "scnym", "--preset", "paper", "--batch-key", "donor"],
        *["--layer", "mine", "--novel", 0, "--ignore-case", "--key-added", "k", "--seed", 5],
        *["--max-epochs", 1, "--accelerator", "cpu", "--quiet"],
    ]
    assert run(*annotate(*options)) == 0
    out = ad.read_h5ad("out.h5ad")
    params = out.uns["k"]["params"]
    expected = {
        "labels_key": "kind",
        "method": "scnym",
        "preset": "paper",
        "batch_key": "donor",
        "layer": "mine",
        "novel": 0,
        "ignore_case": True,
        "random_state": 5,
    }
    assert {name: params[name] for name in expected} == expected
    assert params["train_kwargs"]["max_epochs"] == 1
    assert params["train_kwargs"]["accelerator"] == "cpu"
    assert "k_novel" not in out.obs


def test_allowed_types(files):
    options = ["--method", "logistic", "--allowed", TYPES[1], "--allowed", TYPES[3], "-q"]
    assert run(*annotate(*options)) == 0
    out = ad.read_h5ad("out.h5ad")
    assert set(out.obs["sctool"]) == {TYPES[1], TYPES[3]}
    assert "unexpected" in set(out.obs["sctool_status"])


def test_risk_levels_of_labels_and_clusters(files, capsys):
    adata, ref = simulate_sides()
    adata.obs["leiden"] = ["0", "1"] * (adata.n_obs // 2)
    adata.write_h5ad("query.h5ad")
    ref.obs["lineage"] = ref.obs["cell_type"].astype(str).replace(dict.fromkeys(TYPES[:2], "T"))
    ref.write_h5ad("ref.h5ad")
    options = ["--labels-key", "lineage", "--labels-key", "cell_type", "--risk", 0.2]
    options += ["--groupby", "leiden", "--max-epochs", 2, "-q"]
    assert run(*annotate(*options)) == 0
    out = ad.read_h5ad("out.h5ad")
    params = out.uns["sctool"]["params"]
    assert list(params["labels_key"]) == ["lineage", "cell_type"]
    assert (params["risk"], params["groupby"]) == (0.2, "leiden")
    # the user's own names of groups, not those of a tree of profiles
    assert set(out.obs["sctool_safe"]) <= {*TYPES, "T", "unknown"}
    assert list(out.uns["sctool"]["groups"].index) == ["0", "1"]
    assert set(out.obs["sctool_pooled"]) <= set(out.obs["sctool"])


def test_groups_of_the_ontology(files, capsys):
    names = dict(zip(TYPES, ["B cell", "CD4 T cell", "dendritic cell", "monocyte"], strict=True))
    _, ref = simulate_sides()
    ref.obs["cell_type"] = ref.obs["cell_type"].astype(str).map(names)
    ref.write_h5ad("ref.h5ad")
    words = ["--risk", 0.1, "--hierarchy", "ontology", "--max-epochs", 2, "-q"]
    assert run(*annotate(*words)) == 0
    found = ad.read_h5ad("out.h5ad")
    assert found.uns["sctool"]["params"]["hierarchy"] == "ontology"
    groups = {"lymphocyte": [*names.values()][:2], "phagocyte": [*names.values()][2:]}
    holds = groups | {name: [name] for name in names.values()}
    pairs = zip(found.obs["sctool_safe"], found.obs["truth"].map(names), strict=True)
    assert np.mean([truth in holds.get(safe, []) for safe, truth in pairs]) > 0.8
    assert set(found.obs["sctool_safe"]) & set(groups)
    assert "hierarchy: " in capsys.readouterr().out


def test_alarms_are_printed_after_the_audit(files, capsys):
    assert run(*annotate("--method", "logistic")) == 0
    lines = capsys.readouterr().out.splitlines()
    last_note = max(i for i, line in enumerate(lines) if "genes: 300 are shared" in line)
    alarm = "  alarm: genes: only 300 are shared: similar types may be confused"
    assert lines.index(alarm) > last_note


@pytest.fixture
def multimodal(files) -> Path:
    """Write both sides as ``query.h5mu`` and ``ref.h5mu`` too, with other modalities."""
    for name in ("query", "ref"):
        rna = ad.read_h5ad(files / f"{name}.h5ad")
        other = ad.AnnData(np.ones((rna.n_obs, 2), np.float32), obs=rna.obs[[]])
        with without_pulling():
            mudata.MuData({"prot": other, "rna": rna}).write(files / f"{name}.h5mu")
    return files


@pytest.mark.parametrize("out", ["rna.h5ad", "both.h5mu", "--in-place"])
def test_one_of_several_modalities(out, multimodal, capsys):
    words = ["--method", "logistic", "-q"]
    assert run(*annotate(*words)) == 0
    where = [out] if out.startswith("-") else ["-o", out]
    assert run("annotate", "query.h5mu", "--ref", "ref.h5mu", *where, *words) == 0
    written = multimodal / ("query.h5mu" if out == "--in-place" else out)
    if written.suffix == ".h5ad":
        found = ad.read_h5ad(written)
    else:
        whole = mudata.read_h5mu(written)
        assert list(whole.mod) == ["prot", "rna"]
        assert (whole.mod["prot"].X == 1).all()
        found = whole.mod["rna"]
    expected = ad.read_h5ad("out.h5ad")
    assert (found.obs["sctool"] == expected.obs["sctool"]).all()
    assert found.obs["sctool"].isin(TYPES).all()
    np.testing.assert_array_equal(found.obsm["sctool_proba"], expected.obsm["sctool_proba"])
    np.testing.assert_array_equal(found.X.toarray(), ad.read_h5ad("query.h5ad").X.toarray())


def test_a_saved_model_annotates_a_modality_that_stays_on_disk(multimodal, monkeypatch):
    assert run(*annotate("--method", "logistic", "-q", "--save-model", "model")) == 0
    monkeypatch.setattr("sctool._files.read", None)
    for out in ("a.h5mu", "a.h5ad"):
        assert run("annotate", "query.h5mu", "--model", "model", "-o", out) == 0
    found, expected = mudata.read_h5mu("a.h5mu").mod["rna"], ad.read_h5ad("out.h5ad")
    assert (found.obs["sctool"] == expected.obs["sctool"]).all()
    assert (ad.read_h5ad("a.h5ad").obs["sctool"] == expected.obs["sctool"]).all()


def test_what_is_wrong_with_modalities_is_said(multimodal, capsys):
    words = ["annotate", "query.h5ad", "--ref", "ref.h5ad", "-o", "out.h5mu"]
    assert "no .h5mu file, so there are no other modalities" in fails(capsys, *words)
    whole = mudata.read_h5mu("query.h5mu")
    mudata.MuData({"prot": whole.mod["prot"]}).write("prot.h5mu")
    words = ["annotate", "prot.h5mu", "--ref", "ref.h5ad", "-o", "out.h5ad"]
    assert "prot.h5mu has the modalities ['prot']; none of them is known" in fails(capsys, *words)


def test_existing_files_are_not_overwritten(files, capsys):
    (files / "model").mkdir()
    assert "'model' exists: pass --overwrite" in fails(
        capsys, *annotate("--method", "logistic", "--save-model", "model")
    )
    (files / "model").rmdir()
    (files / "out.h5ad").write_text("mine")
    assert "'out.h5ad' exists: pass --overwrite" in fails(capsys, *annotate("--method", "logistic"))
    assert (files / "out.h5ad").read_text() == "mine"
    (files / "out.h5ad").unlink()
    assert sorted(p.name for p in files.iterdir()) == ["query.h5ad", "ref.h5ad"]


def test_existing_files_are_overwritten_when_asked(files, capsys):
    options = ["--method", "logistic", "--save-model", "model"]
    assert run(*annotate(*options)) == 0
    assert run(*annotate(*options, "--overwrite", "--seed", 1)) == 0
    assert ad.read_h5ad("out.h5ad").uns["sctool"]["params"]["random_state"] == 1


# -- cluster -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["cicl", "leiden"])
def test_cluster_writes_what_the_function_writes(method, files, capsys):
    options = ["--method", method, "-n", 4, "--seed", 3, "--quiet", "--key-added", "k"]
    options += ["--max-epochs", 3] if method == "cicl" else []
    assert run("cluster", "query.h5ad", "-o", "out.h5ad", *options) == 0
    out, (adata, _) = ad.read_h5ad("out.h5ad"), simulate_sides()
    kwargs = {"train_kwargs": {"max_epochs": 3, "enable_progress_bar": False}}
    sctool.tl.cluster(
        adata,
        n_clusters=4,
        method=method,
        key_added="k",
        random_state=3,
        **(kwargs if method == "cicl" else {}),
    )
    assert list(out.obs["k"]) == list(adata.obs["k"])
    assert out.uns["k"]["params"]["method"] == method
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "wrote out.h5ad"
    assert re.search(r"^  0 +\d+$", printed, flags=re.MULTILINE)


def test_a_saved_model_clusters_again(files, capsys):
    options = ["-n", 3, "--max-epochs", 2, "-q", "--preset", "code", "--save-model", "model"]
    assert run("cluster", "query.h5ad", "-o", "out.h5ad", *options) == 0
    assert run("cluster", "query.h5ad", "--model", "model", "-o", "again.h5ad") == 0
    first, second = ad.read_h5ad("out.h5ad"), ad.read_h5ad("again.h5ad")
    assert list(first.obs["cicl"]) == list(second.obs["cicl"])
    assert first.uns["cicl"]["params"]["preset"] == "code"
    assert "nothing was trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "louvain"], "method='louvain' is unknown"),
        (["-n", 0], "n_clusters=0"),
        (["--model", "nowhere"], "No saved sctool model"),
        (["--method", "leiden", "--save-model", "m"], "this call trains no model"),
        (["--layer", "x"], "layer='x' is not in"),
    ],
    ids=["method", "number", "model", "save", "layer"],
)
def test_what_cluster_refuses(options, message, files, capsys):
    assert message in fails(capsys, "cluster", "query.h5ad", "-o", "out.h5ad", *options)
    assert not Path("out.h5ad").exists()


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["anotate"], "invalid choice: 'anotate'"),
        (
            ["annotate", "query.h5ad", "-o", "o.h5ad"],
            "one of the arguments --ref --model is required",
        ),
        (annotate("--model", "m"), "No saved sctool model in 'm'"),
        (["annotate", "no.h5ad", "--ref", "ref.h5ad", "-o", "o.h5ad"], "'no.h5ad' does not exist"),
        (
            ["annotate", "query.h5ad", "--ref", "no.h5ad", "-o", "o.h5ad"],
            "'no.h5ad' does not exist",
        ),
        (
            ["annotate", "query.h5ad", "--model", "no", "-o", "o.h5ad"],
            "No saved sctool model in 'no'",
        ),
        (
            ["annotate", "text", "--ref", "ref.h5ad", "-o", "o.h5ad"],
            "'text' cannot be read: pass an",
        ),
        (
            annotate("--labels-key", "type"),
            "labels_key='type' is not in the ref's obs; found ['cell_type']",
        ),
        (annotate("--method", "scnyn"), "method='scnyn' is unknown"),
        (annotate("--method", "logistic", "--preset", "no"), "preset='no' is unknown"),
        (annotate("--novel", "some"), "novel='some': pass 'auto' or the number"),
        (annotate("--seed", "x"), "argument --seed: invalid int value: 'x'"),
        (annotate("--risk", "5 %"), "argument --risk: invalid float value: '5 %'"),
        (annotate("--risk", 0.05, "--method", "logistic"), "holds out no labelled cells"),
        (annotate("--groupby", "leiden"), "groupby='leiden' is not in the query's obs"),
        (
            annotate("--labels-key", "lineage", "--labels-key", "cell_type"),
            "labels_key='lineage' is not in the ref's obs",
        ),
        (annotate("--batch-key", "donor"), "batch_key='donor' is not in the ref's obs"),
        (annotate("--layer", "counts"), "layer='counts' is not in the ref's layers"),
        (
            ["annotate", "query.h5ad", "--ref", "ref.h5ad", "-o", "no/out.h5ad"],
            "The folder 'no' does not exist",
        ),
        (
            ["annotate", "query.h5ad", "--model", "m", "-o", "o.h5ad", "--save-model", "m2"],
            "--save-model requires --ref or --adapt",
        ),
    ],
    ids=lambda value: " ".join(map(str, value))[:40] if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said(words, message, files, capsys):
    (files / "text").write_text("no HDF5 at all")
    assert message in fails(capsys, *words)
    assert sorted(p.name for p in files.iterdir()) == ["query.h5ad", "ref.h5ad", "text"]


@pytest.mark.parametrize(
    ("output", "model", "message"),
    [
        (
            "out.loom",
            "model",
            "-o 'out.loom': what is written is named *.h5ad or *.zarr or *.h5mu or",
        ),
        ("folder.h5ad", "model", "-o 'folder.h5ad' is a folder"),
        ("out.h5ad", "query.h5ad", "--save-model 'query.h5ad' is a file"),
        ("ref.h5ad", "model", "-o 'ref.h5ad' is the reference, which would be lost"),
        ("out.h5ad", "out.h5ad", "-o and --save-model are both 'out.h5ad': name two places"),
        ("out.zarr", "out.zarr/m", "-o and --save-model are both 'out.zarr': name two places"),
    ],
)
def test_outputs_that_must_not_be_written_are_refused_first(output, model, message, files, capsys):
    (files / "folder.h5ad").mkdir()
    before = {p.name: p.read_bytes() for p in files.iterdir() if p.is_file()}
    words = ["annotate", "query.h5ad", "--ref", "ref.h5ad", "-o", output, "--save-model", model]
    assert message in fails(capsys, *words, "--overwrite")
    assert {p.name: p.read_bytes() for p in files.iterdir() if p.is_file()} == before


def test_a_folder_that_may_not_be_written_to_is_said_first(files, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    words = ["annotate", "query.h5ad", "--ref", "ref.h5ad", "-o", "out.h5ad"]
    assert "may not be written to" in fails(capsys, *words)


def test_json_is_alone_on_stdout(files, capsys, monkeypatch):
    monkeypatch.setattr("sctool._files.check_writable", lambda adata, path: ["repaired"])
    words = ["annotate", "query.h5ad", "--ref", "ref.h5ad", "-o", "out.h5ad", "--json"]
    assert run(*words, "--method", "logistic") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["output"] == "out.h5ad"
    assert "repaired" in said.err


def test_the_query_is_not_lost_and_the_model_is_kept_if_the_write_fails(files, capsys, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError("No space left on device")

    before = (files / "query.h5ad").read_bytes()
    words = ["annotate", "query.h5ad", "--ref", "ref.h5ad", "-o", "query.h5ad", "--overwrite"]
    words += ["--method", "logistic", "--save-model", "model"]
    monkeypatch.setattr("sctool._files.check_writable", lambda adata, path: [])
    monkeypatch.setattr(ad.AnnData, "write_h5ad", full)
    assert "No space left" in fails(capsys, *words)
    assert (files / "query.h5ad").read_bytes() == before
    assert sctool.model.load(files / "model").classes_ == TYPES


@pytest.mark.slow
def test_the_cells_are_written_if_the_model_cannot_be(files, capsys, monkeypatch):
    def full(self, content):
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left" in fails(capsys, *annotate("--save-model", "model"))
    assert "sctool" in ad.read_h5ad(files / "out.h5ad").obs
    assert list((files / "model").iterdir()) == []


def test_what_cannot_be_written_is_said_before_anything_is_trained(files, capsys, monkeypatch):
    monkeypatch.setattr("sctool.tl.annotate", lambda *args, **kwargs: pytest.fail("trained"))

    def refuse(self, path):
        raise RuntimeError("reserved")

    monkeypatch.setattr(ad.AnnData, "write_h5ad", refuse)
    assert "cannot be written to an .h5ad file: reserved" in fails(capsys, *annotate())


def test_names_that_the_console_lacks_are_printed_all_the_same(files, monkeypatch):
    ref = ad.read_h5ad("ref.h5ad")
    ref.obs["cell_type"] = ref.obs["cell_type"].astype(str).replace("B", "γδ T")
    ref.write_h5ad("ref.h5ad")
    console = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", console)
    assert run(*annotate("--method", "logistic")) == 0
    console.flush()
    assert b"\\u03b3\\u03b4 T" in console.buffer.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("words", [["sctool.cli", "--help"], ["sctool_benchmark", "--list"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_error(words, unbuffered):
    read, write = os.pipe()
    os.close(read)
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        [sys.executable, "-m", *words], stdout=write, stderr=subprocess.PIPE, env=env
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_data_that_cannot_be_used_are_an_error(files, capsys):
    adata, _ = simulate_sides()
    adata.X = adata.X.toarray() - 1
    adata.write_h5ad("query.h5ad")
    assert "The query has no usable expression values: X holds scaled" in fails(capsys, *annotate())


def test_an_interruption_is_exit_code_130(files, capsys, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("sctool.tl.annotate", interrupt)
    assert run(*annotate()) == 130
    assert capsys.readouterr().err == "sctool: interrupted\n"


def test_a_fault_of_ours_keeps_its_traceback(files, monkeypatch):
    def fault(*args, **kwargs):
        raise AssertionError("ours")

    monkeypatch.setattr("sctool.tl.annotate", fault)
    with pytest.raises(AssertionError, match="ours"):
        run(*annotate())


# -- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [[Path(sys.executable).with_name("sctool")], [sys.executable, "-m", "sctool"]]
)
def test_help_teaches(command, tmp_path):
    # processes of their own: the installed command, and the module where it is not on the path
    done = subprocess.run(
        [*command, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    for text in (
        "examples:",
        "sctool demo",
        "--ref ref.h5ad",
        "--model model/",
        "exit codes: 0 success",
    ):
        assert text in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "methods"),
    [
        ("annotate", list(METHODS)),
        ("cluster", [*CLUSTER_METHODS, "leiden"]),
        ("demo", list(METHODS)),
    ],
    ids=["annotate", "cluster", "demo"],
)
def test_help_of_every_command_lists_its_methods(command, methods, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith(f"usage: sctool {command}")
    option = re.search(r"--method METHOD (.+?) \(default: (\w+)\)", text)
    assert re.findall(r"\w+", option[1].replace(" or ", " ")) == methods
    assert option[2] in methods
    assert not re.search(r"[{}]", text)


def test_help_names_the_methods_that_group_novel_cells(capsys):
    with pytest.raises(SystemExit):
        main(["annotate", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "N: find N novel types (auto, scdet, gate, sskm) (default: auto)" in text


@pytest.mark.parametrize("command", ["benchmark", "bench"])
def test_the_benchmark_is_no_command(command, files, capsys):
    assert f"invalid choice: '{command}'" in fails(capsys, command)


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"sctool {sctool.__version__}\n"


# -- the demo ------------------------------------------------------------------------------------


# Its UMAP is compiled for 20 s; the check of the documentation runs the demo without it.
@pytest.mark.slow
@pytest.mark.parametrize("method", ["auto", "scnym"])
def test_the_demo(method, tmp_path, capsys):
    folder = tmp_path / "a" / "demo"
    assert run("demo", "--method", method, "--output", folder) == 0
    assert sorted(p.name for p in folder.iterdir()) == ["annotated.h5ad", "annotated.png"]
    assert (folder / "annotated.png").read_bytes()[:4] == b"\x89PNG"
    adata = ad.read_h5ad(folder / "annotated.h5ad")
    assert {"X_umap", "X_sctool", "sctool_proba"} <= set(adata.obsm)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "reference: 300 blood cells of 9 types; query: 353 cells, 48 of them CD19+ B cells, which "
        "the reference lacks"
    )
    known = adata[adata.obs["truth"] != "CD19+ B"].obs
    share = (known["sctool"].astype(str) == known["truth"].astype(str)).mean()
    [row] = [line for line in lines if line.startswith("known types, accuracy")]
    assert float(row.split()[3]) == pytest.approx(share, abs=6e-4)
    # The commonest type alone would give 0.39; T cell subtypes keep every method near 0.8, where
    # one standard error of 305 cells is 0.02.
    assert share > 0.7
    [row] = [line for line in lines if line.startswith("CD19+ B called novel")]
    found, by_regression = map(float, row.split()[-2:])
    assert by_regression == 0
    if method == "auto":
        assert found > 0.9
        assert any(re.match("novel_1: .*CD79A", line) for line in lines)
    assert lines[-1].endswith(f" s; wrote annotated.h5ad and annotated.png to {folder}")


# -- the bundled cells ---------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_the_bundled_cells_are_split_within_types(share):
    adata, ref = sctool.datasets.blood(reference_share=share)
    assert adata.n_obs + ref.n_obs == 700
    assert not set(adata.obs_names) & set(ref.obs_names)
    assert set(adata.obs["truth"]) == set(ref.obs["cell_type"])
    assert list(adata.obs) == ["truth"]
    assert list(ref.obs) == ["cell_type"]
    assert ref.n_obs == pytest.approx(700 * share, abs=10)


def test_the_bundled_cells_are_drawn_by_the_seed():
    names = [list(sctool.datasets.blood(random_state=seed)[0].obs_names) for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("share", [0, 1, -1, 2])
def test_a_share_outside_of_0_and_1_is_refused(share):
    with pytest.raises(ValueError, match=r"reference_share=.* must be between 0 and 1"):
        sctool.datasets.blood(reference_share=share)
