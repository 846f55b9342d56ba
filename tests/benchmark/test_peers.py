"""Environments of peers, what their scripts share, and a whole run through an interpreter."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from benchmark.cells import TYPES, make_adata, make_task
from sctool_benchmark import Method, _worker, load_suite, peers, split
from sctool_benchmark._tasks import known_methods
from sctool_benchmark.peers import __main__ as command

SCRIPTS = Path(peers.__file__).parent
PROTOCOL = """
import sys
import pandas as pd
sys.path.insert(0, {folder!r})
from _protocol import LABELS, serve

def annotate(reference, query, args):
    assert reference.X.dtype == "float32" and (reference.X.data == reference.X.data.round()).all()
    assert LABELS not in query.obs and set(reference.obs["batch"]) == {{"reference"}}
    proba = pd.DataFrame([[0.75, 0.25]] * query.n_obs, columns=["B", "Mono"])
    novel = {{"novel_score": [2.0] * query.n_obs}} if args.odd else {{}}
    return {{"prediction": ["B"] * query.n_obs, "proba": proba, **novel}}

serve(annotate, "anndata", "--odd")
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of environments."""
    monkeypatch.setenv("SCTOOL_PEERS_DIR", str(tmp_path / "envs"))
    return tmp_path / "envs"


def give_python(home: Path, name: str) -> Path:
    """Let our own interpreter be that of a peer."""
    path = peers.python_of(name)
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return path


def test_every_command_names_a_script_and_requirements_that_exist() -> None:
    for method in known_methods().values():
        words = [word for word in method.command if word.endswith(".py") or "{peer:" in word]
        for word in words:
            if word.startswith("{peer:"):
                assert word.removeprefix("{peer:").rstrip("}") in peers.names()
            else:
                assert Path(word.replace("{here}", method.folder)).is_file()
    used = {m.command[0] for m in known_methods().values() if m.command}
    assert {f"{{peer:{name}}}" for name in peers.names()} <= used


def test_requirements_are_pinned() -> None:
    wanted = {"celltypist", "singler", "symphonypy", "cellmapper", "scanvi", "actinn-jax", "popv"}
    assert wanted <= set(peers.names())
    for name in wanted:
        lines = (peers.REQUIREMENTS / f"{name}.txt").read_text().splitlines()
        assert all("==" in line for line in lines if line and not line.startswith("#"))
    for name in ("scanvi", "popv"):
        assert "torch==2.13.0" in (peers.REQUIREMENTS / f"{name}.txt").read_text()


def test_a_missing_environment_says_which_command_makes_it(home: Path) -> None:
    with pytest.raises(RuntimeError, match=r"sctool_benchmark\.peers install singler"):
        peers.interpreter("singler")
    with pytest.raises(RuntimeError, match="no requirements for a peer 'nobody'"):
        peers.interpreter("nobody")
    path = give_python(home, "singler")
    assert peers.interpreter("singler") == str(path)


def test_the_folder_is_the_variable_s_or_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCTOOL_PEERS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert peers.folder() == Path("/cache/sctool/peers")


def test_install_makes_one_environment_a_peer(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    ran: list[list[str]] = []

    def fail(words: list[str], check: bool) -> None:
        ran.append(words)
        if words[-1].endswith("/singler.txt"):
            raise subprocess.CalledProcessError(1, words)

    monkeypatch.setattr(command.venv, "create", lambda *args, **kwargs: ran.append([str(args[0])]))
    monkeypatch.setattr(command.subprocess, "run", fail)
    assert command.main(["install", "scnym", "singler", "--into", str(home)]) == 1
    assert [words[0] for words in ran if len(words) == 1] == [
        str(home / "scnym"),
        str(home / "singler"),
    ]
    installs = [words for words in ran if len(words) > 1]
    assert all(
        words[0] == str(home / words[-1].split("/")[-1].split(".")[0] / "bin" / "python")
        for words in installs
    )
    assert ["--no-deps" in words for words in installs] == [False, True, False]
    assert "could not be installed: singler" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["install", "nobody"])


def test_list_says_what_is_installed(home: Path, capsys: pytest.CaptureFixture) -> None:
    path = give_python(home, "cellmapper")
    assert command.main(["list"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["cellmapper"] == str(path)
    assert lines["singler"] == "not installed"
    assert list(lines) == peers.names()


@pytest.mark.skipif(os.name == "nt", reason="the interpreter is a shell script")
def test_scripts_answer_through_what_they_share(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROTOCOL.format(folder=str(SCRIPTS)))
    give_python(home, "singler")
    words = ["{peer:singler}", str(script), "{input}", "{output}", "--odd"]
    parts = split(make_adata(split=True), make_task("pair"), 0)
    method = Method(name="m", command=words)
    answer = _worker._command(parts, make_task("pair"), method, {"seed": 0})
    n = parts.query.n_obs
    assert answer["prediction"] == ["B"] * n
    assert answer["score"] == [0.75] * n
    assert answer["novel_score"] == [2.0] * n
    assert answer["classes"] == ["B", "Mono"]
    assert answer["versions"] == {"anndata": version("anndata")}
    assert 0.01 < answer["peak_rss_gb"] < 10
    scores = _worker._scores(parts, answer)
    assert scores["seen_accuracy"] == (parts.truth.dropna() == "B").mean()
    assert scores["ece"] == pytest.approx(0.75 - scores["seen_accuracy"])


def test_the_suite_has_pairs_open_and_null_tasks() -> None:
    suite = load_suite("peers")
    assert {task.kind for task in suite.tasks} == {"pair", "masked", "intra"}
    assert {task.name for task in load_suite("pairs").tasks} <= {t.name for t in suite.tasks}
    names = {method.name for method in suite.methods}
    assert {"auto", "scnym", "logistic-all", "linear-svm", "scanvi"} <= names


INSTALLED = [name for name in peers.names() if peers.python_of(name).exists()]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in peers.names() if n != "scnym"])
def test_peers_that_are_installed_answer(name: str) -> None:
    if name not in INSTALLED:
        pytest.skip(f"no environment: {peers.COMMAND} install {name}")
    rng = np.random.default_rng(0)
    codes = np.arange(400) % 4
    means = rng.gamma(1, 2, (4, 700))
    adata = ad.AnnData(rng.poisson(means[codes]).astype(np.float32))
    adata.obs["split"] = np.where(np.arange(400) < 250, "reference", "query")
    adata.obs["cell_type"] = pd.Categorical(np.array(TYPES)[codes])
    adata.obs_names = [f"cell{i}" for i in range(400)]
    adata.var_names = [f"gene{i}" for i in range(700)]
    parts = split(adata, make_task("pair"), 0)
    # (its correction of the query is harmful where this is one batch)
    method = known_methods()[{"symphonypy": "symphonypy-uncorrected"}.get(name, name)]
    answer = _worker._command(parts, make_task("pair"), method, {"seed": 0})
    assert _worker._scores(parts, answer)["seen_accuracy"] > 0.9
