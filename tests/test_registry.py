"""Models by name, file and URL; the network is a server on this computer."""

import functools
import hashlib
import http.server
import threading
import zipfile
from pathlib import Path

import pytest
from synthetic import simulate, simulate_sides

import sctool
from sctool import cli
from sctool.model import LogisticClassifier, _registry, load, register_model

CELLTYPIST = Path(__file__).parent / "fixtures" / "celltypist" / "lr.pkl"
SHA256 = hashlib.sha256(CELLTYPIST.read_bytes()).hexdigest()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files; those named "truncated" end after half of what was announced."""

    def log_message(self, *args):
        pass

    def copyfile(self, source, outputfile):
        content = source.read()
        half = len(content) // (2 if "truncated" in self.path else 1)
        self.server.n_sent += 1  # before the client has all, and goes on
        outputfile.write(content[:half])


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of a folder, and a cache of its own."""
    pytest.importorskip("pooch", reason="the extra 'download' is not installed")
    monkeypatch.setenv("SCTOOL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(_registry, "_entries", {"human": _registry.HUMAN})
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "lr.pkl").write_bytes(CELLTYPIST.read_bytes())
    (folder / "truncated.pkl").write_bytes(CELLTYPIST.read_bytes())
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.n_sent = 0
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        running.url = f"http://127.0.0.1:{running.server_port}"
        running.folder = folder
        yield running
        running.shutdown()
        thread.join()


def test_a_url_is_downloaded_once(server):
    model = load(f"{server.url}/lr.pkl#sha256={SHA256}")
    assert model.classes_ == ["B cells", "NK cells", "T cells"]
    assert server.n_sent == 1
    load(f"{server.url}/lr.pkl#sha256={SHA256}")
    assert server.n_sent == 1
    assert not any("without a checksum" in note for note in model.audit_)


def test_a_url_without_a_checksum_is_noted(server):
    model = load(f"{server.url}/lr.pkl")
    assert any("without a checksum" in note and SHA256 in note for note in model.audit_)


def test_a_wrong_checksum_keeps_nothing(server, tmp_path):
    with pytest.raises(ValueError, match="does not have the checksum that was given"):
        load(f"{server.url}/lr.pkl#sha256={'0' * 64}")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_that_changed_in_the_cache_is_downloaded_again(server, tmp_path):
    load(f"{server.url}/lr.pkl#sha256={SHA256}")
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(b"other")
    load(f"{server.url}/lr.pkl#sha256={SHA256}")
    assert cached.read_bytes() == CELLTYPIST.read_bytes()


def test_a_truncated_download_is_an_error(server, tmp_path):
    with pytest.raises(OSError, match=r"truncated\.pkl' could not be downloaded"):
        load(f"{server.url}/truncated.pkl")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_file_is_an_error(server):
    with pytest.raises(OSError, match=r"none\.pkl' could not be downloaded.*404"):
        load(f"{server.url}/none.pkl")


def test_a_registered_url_is_used_by_name(server):
    register_model("mine", f"{server.url}/lr.pkl", sha256=SHA256, licence="CC0")
    row = sctool.models().loc["mine"]
    assert not row["available"]
    assert row["n_types"] is sctool.models()["n_types"].dtype.na_value
    assert load("mine").classes_[0] == "B cells"
    row = sctool.models().loc["mine"]
    assert (row["n_types"], row["n_genes"], row["species"]) == (3, 260, "human")
    assert (row["available"], row["licence"]) == (True, "CC0")


def test_a_saved_model_travels_as_an_archive(server, tmp_path, monkeypatch):
    joint = simulate(80, seed=3)
    LogisticClassifier.setup_anndata(joint, "cell_type")
    model = LogisticClassifier(joint)
    model.train()
    model.save(tmp_path / "saved")
    with zipfile.ZipFile(server.folder / "mine.zip", "w") as archive:
        for file in (tmp_path / "saved").iterdir():
            archive.write(file, file.name)
    adata = simulate_sides()[0]
    found = load(f"{server.url}/mine.zip").predict(adata)
    assert (found == model.predict(adata)).all()
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)  # which only downloads need
    assert (load(server.folder / "mine.zip").predict(adata) == found).all()
    (server.folder / "other.zip").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="no archive of a saved model"):
        load(server.folder / "other.zip")


def test_local_files_are_compared_too(tmp_path, monkeypatch):
    monkeypatch.setattr(_registry, "_entries", {"human": _registry.HUMAN})
    for checksum in (SHA256, SHA256.upper()):
        register_model("mine", CELLTYPIST, sha256=checksum)
        assert load("mine").classes_[0] == "B cells"
    register_model("wrong", CELLTYPIST, sha256="0" * 64)
    with pytest.raises(ValueError, match=f"has the checksum '{SHA256}', not the given '000"):
        load("wrong")


def test_names_are_checked():
    for name in ("human", "", "a/b", "http:x"):
        with pytest.raises(ValueError, match="pass a name that is not taken"):
            register_model(name, CELLTYPIST)
    for source in ("nowhere.pkl", ""):
        with pytest.raises(ValueError, match="is no file, folder or URL"):
            register_model("mine", source)


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(FileNotFoundError, match=r"'humna': .* names of models are \['human'\]"):
        sctool.tl.annotate(simulate_sides()[0], "humna")
    with pytest.raises(FileNotFoundError, match=r"no such folder or file"):
        load("nowhere/model.pkl")


def test_a_missing_downloader_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    with pytest.raises(ImportError, match=r"sctool-annotate\[download\]"):
        load("http://127.0.0.1:9/lr.pkl")


def test_the_command_lists_models(capsys):
    assert cli.main(["models"]) == 0
    out = capsys.readouterr().out
    assert "human, 324 types, 4000 genes" in out
    assert "CC BY 4.0" in out
