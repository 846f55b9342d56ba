"""One run: what a method is told, and what is measured."""

from pathlib import Path
from typing import ClassVar

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sctool.model
import sctool.tl
from benchmark.cells import TYPES, make_adata, make_task
from sctool_benchmark import Method, _worker, run, split


def test_the_oracle_is_told_the_shares_of_seen_types_and_then_of_novel_ones_by_size() -> None:
    parts = split(make_adata(split=True), make_task("masked", masked=["B"]), 0)
    told: dict = {}
    assert _worker._tell_oracle(told, parts) == 1
    size = pd.concat([parts.reference.obs["cell_type"].astype(str), parts.truth]).value_counts()
    expected = [size[name] for name in ("CD4 T/NK", "DC", "Mono", "B")]
    np.testing.assert_allclose(told["distribution"], np.array(expected) / sum(expected))


def test_seen_accuracy_is_recorded_at_each_novel_recall() -> None:
    truth = np.array(["A"] * 4 + ["X"] * 4)
    classes = ["A", "B", "novel_1"]
    cells = {
        # (what is called novel does not matter, the likeliest known name does)
        "proba": np.array([[0.3, 0.1, 0.6]] + [[0.6, 0.3, 0.1]] * 2 + [[0.3, 0.6, 0.1]] * 5),
        "novel_score": np.array([0.6, 0.1, 0.2, 0.0, 0.9, 0.8, 0.7, 0.15]),
    }
    found = _worker._at_recalls(truth, ["A", "B"], classes, cells)
    assert list(found) == [f"seen_at_recall.{r}" for r in _worker.RECALLS]
    assert list(found.values()) == [0.75, 0.75, 0.75, 0.75, 0.25, 0.25]
    assert _worker._at_recalls(truth, ["A", "X"], classes, cells) == {}  # nothing is novel
    assert _worker._at_recalls(truth, ["A", "B"], None, cells) == {}


def test_the_recall_of_the_rare_type_is_scored_apart(suite: Path) -> None:
    entries = {"hidden": 0.0, "labelled": 0.9, "n_rare": 3}
    words = ["{python}", "{here}/peer.py", "losing", "{input}", "{output}", "{seed}"]
    job = {
        "task": {"name": "t", "data": "t", "kind": "intra", "file": "cells.h5ad", **entries},
        "method": {"name": "losing", "command": words, "folder": str(suite.parent)},
        "protocol": "blind",
        "seed": 0,
        "path": str(suite.parent / "cells.h5ad"),
    }
    row = _worker.work(job)  # which calls every cell "B", the rare type
    assert row["rare_recall"] == 1
    assert row["others_accuracy"] == 0
    assert 0 < row["rare_precision"] == row["rare_share"] < 1
    assert row["rare_auprc"] is None  # without probabilities


def test_the_rare_type_may_be_missed() -> None:
    adata = make_adata()
    parts = split(adata, make_task("intra", hidden=0.0, labelled=0.9, n_rare=3), 0)
    rare = parts.truth == parts.rare
    others = [name for name in TYPES if name != parts.rare]
    answer = {"prediction": parts.truth.where(~rare, others[0]).fillna("DC")}
    answer |= {
        "classes": TYPES,
        "proba": np.eye(4)[parts.truth.map(TYPES.index, "ignore").fillna(0).astype(int)],
    }
    scores = _worker._scores(parts, answer)
    assert scores["rare_recall"] == scores["rare_precision"] == 0
    assert scores["rare_auprc"] == 1
    assert scores["others_accuracy"] == 1


def test_planted_cells_are_scored_by_their_status_and_by_nothing_else() -> None:
    rules = {"doublets": 0.2, "thinned": 0.1}
    parts = split(make_adata(split=True), make_task("pair", **rules), 0)
    status = np.full(parts.query.n_obs, "assigned", dtype=object)
    doublet, thinned = (np.flatnonzero(parts.planted == k) for k in ("doublet", "thinned"))
    status[doublet[:3]], status[doublet[3]] = "doublet", "novel"
    status[thinned[0]], status[thinned[1:3]] = "low_quality", "novel"
    status[np.flatnonzero(parts.planted == "")[:27]] = "doublet"
    answer = {"prediction": parts.truth.fillna("B"), "status": pd.Series(status)}
    scores = _worker._scores(parts, answer)
    assert scores["seen_accuracy"] == 1
    assert scores["doublet_found"] == pytest.approx(3 / 12)
    assert scores["doublet_novel"] == pytest.approx(1 / 12)
    assert scores["doublet_assigned"] == pytest.approx(8 / 12)
    assert scores["thinned_found"] == pytest.approx(1 / 6)
    assert scores["thinned_novel"] == pytest.approx(2 / 6)
    assert scores["others_doublet"] == 0.5
    assert scores["others_low_quality"] == 0


def test_names_at_each_risk_come_from_the_call_that_users_make() -> None:
    adata = make_adata(split=True)
    parts = split(adata, make_task("masked", masked=["B"]), 0)
    kwargs = {"adversary": False, "mixmatch": False}
    job = {"seed": 0, "protocol": "blind"}
    task = make_task("masked", masked=["B"], safe=True)
    method = Method(name="m", method="auto", model_kwargs=kwargs)
    rng = np.random.default_rng(0)
    genes = [f"g{i}" for i in range(300)]
    for side in ("reference", "query"):
        part = getattr(parts, side)
        x = np.hstack([part.X, rng.poisson(2, (part.n_obs, 290))]).astype(np.float32)
        object.__setattr__(parts, side, ad.AnnData(x, part.obs, pd.DataFrame(index=genes)))
    answer = _worker._annotate(parts, task, method, job)
    scores = _worker._scores(parts, answer)
    for risk in _worker.RISKS:
        found = {n: scores[f"safe_at.{risk}.{n}"] for n in ("error", "named", "unknown", "missed")}
        assert all(0 <= value <= 1 for value in found.values())
        assert found["named"] + found["unknown"] <= 1
    # a risk that so few cells cannot support leaves no name, and all types possible
    assert scores["safe_at.0.01.unknown"] == 1
    assert scores["safe_at.0.01.error"] == 0
    assert scores["safe_at.0.01.set_size"] == 3
    assert scores["safe_at.0.3.named"] > 0.5


def test_groups_are_scored_strictly_and_by_any_matching() -> None:
    parts = split(make_adata(split=True), make_task("masked", masked=["B"]), 0)
    swapped = parts.truth.map({"CD4 T/NK": "DC", "DC": "CD4 T/NK"}).fillna(parts.truth)
    scores = _worker._scores(parts, {"prediction": swapped.fillna("DC").to_numpy()})
    assert scores["overall_accuracy"] == 0.5
    assert scores["overall_accuracy_hungarian"] == 1
    assert scores["novel_accuracy"] == scores["novel_accuracy_hungarian"] == 1
    assert scores["novel_recall"] == scores["novel_precision"] == 1


def test_a_flagged_seen_cell_keeps_its_name_but_not_its_place_among_the_unflagged() -> None:
    parts = split(make_adata(split=True), make_task("masked", masked=["B"]), 0)
    names = parts.truth.fillna("DC").to_numpy()
    scores = _worker._scores(parts, {"prediction": names})  # no flags: by name
    assert scores["seen_accuracy"] == scores["seen_unflagged"] == 1
    scores = _worker._scores(parts, {"prediction": names, "novel": parts.truth == "DC"})
    assert scores["seen_accuracy"] == 1
    assert scores["seen_unflagged"] == pytest.approx(2 / 3)


def test_the_number_of_types_is_given_under_paper_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def cluster(adata: ad.AnnData, *, key_added: str, **kwargs: object) -> None:
        told.append((kwargs["n_clusters"], list(adata.obs)))
        adata.obs[key_added] = "0"
        adata.uns[key_added] = {"n_clusters": {"n": 1}}

    monkeypatch.setattr(sctool.tl, "cluster", cluster)
    for protocol in ("blind", "paper"):
        parts = split(make_adata(), make_task("cluster"), 0)
        job = {"protocol": protocol, "seed": 0}
        _worker._cluster(parts, make_task("cluster"), Method(name="m", method="cicl"), job)
    assert told == [(None, []), (4, [])]


def test_protocols(suite: Path, jobs: list[dict], tmp_path: Path, monkeypatch) -> None:
    class Plain:
        """A method without presets."""

    class Deep:
        """A method that takes the number of novel types."""

        PRESETS: ClassVar = {"default": {"epochs": 1}, "paper": {"epochs": 2}}

        @staticmethod
        def _settings_for_novel(novel: int, preset: str) -> dict:
            told.append((preset, novel))
            return {"n_novel": novel}

    class Closed:
        """A method without the paper's preset that can be told only that nothing is novel."""

        PRESETS: ClassVar = {"default": {}}

        @staticmethod
        def _settings_for_novel(novel: int, preset: str) -> dict:
            assert preset == "default"
            if novel:
                raise ValueError("no number")
            return {}

    calls, told = [], []

    class Model:
        history: ClassVar = {"loss_train": range(7)}

        def get_latent_representation(self, adata: ad.AnnData, layer: str | None) -> np.ndarray:
            return np.ones((adata.n_obs, 2))

    def annotate(adata: ad.AnnData, ref: ad.AnnData, *, key_added: str, **kwargs) -> Model:
        assert not adata.obs.columns.size
        assert list(ref.obs) == ["cell_type"]
        assert kwargs["return_model"]
        calls.append(kwargs)
        n = adata.n_obs
        adata.obs[key_added] = pd.Categorical(["B"] * n)
        adata.obs[f"{key_added}_score"] = 0.5
        adata.obs[f"{key_added}_novel_score"] = np.linspace(0, 1, n)
        adata.obs[f"{key_added}_novel"] = np.arange(n) % 2 == 0
        adata.obsm[f"{key_added}_proba"] = np.full((n, 2), 0.5)
        adata.obsm[f"X_{key_added}"] = np.zeros((n, 2))
        adata.uns[key_added] = {"classes": np.array(TYPES[:2])}
        return Model()

    methods = {"plain": Plain, "deep": Deep, "closed": Closed}
    monkeypatch.setattr(sctool.model, "METHODS", methods)
    monkeypatch.setattr(_worker, "METHODS", methods)
    monkeypatch.setattr(sctool.tl, "annotate", annotate)
    variants = """
        [method.variant]
        method = "deep"
        model_kwargs = { a = 1 }
        [method.keeper]
        method = "deep"
        model_kwargs = { preset = "default" }
    """
    suite.write_text(suite.read_text() + variants)

    names = ["plain", "deep", "variant", "keeper", "losing", "closed"]
    rows = run(suite, names, seeds=1, out=tmp_path / "o")
    assert len(rows) == 2 * (6 + 4)
    assert rows["error"].isna().all()
    paper = rows[rows["protocol"] == "paper"]
    assert set(paper["method"]) == {"deep", "variant", "keeper", "closed"}
    of_open = rows[(rows["task"] == "open") & (rows["method"] == "deep")]
    assert (of_open["epochs"] == 7).all()
    assert (of_open["novel_auroc"] > 0).all()
    assert of_open["false_novel"].between(0.4, 0.6).all()
    deep = [call for call in calls if call["method"] == "deep"]
    kept = {"preset": "default"}  # which a variant names holds under both protocols
    assert [call["model_kwargs"] for call in deep[:4]] == [
        None,
        {"a": 1},
        kept,
        {"preset": "paper"},
    ]
    assert [call["novel"] for call in deep if call["model_kwargs"] == kept] == [
        "auto",
        0,
        "auto",
        2,
    ]
    assert told == [("paper", 0)] * 2 + [("default", 0)] + [("paper", 2)] * 2 + [("default", 2)]
    assert {call["novel"] for call in deep if call["model_kwargs"] in (None, {"a": 1})} == {"auto"}
    assert [call["novel"] for call in deep if call["model_kwargs"] == {"preset": "paper"}] == [0, 2]
    closed = [call for call in calls if call["method"] == "closed"]
    assert [call["novel"] for call in closed] == ["auto", 0, "auto", "auto"]
    assert all(call["model_kwargs"] is None for call in closed)
    table = (tmp_path / "o" / "table.md").read_text()
    assert table.index("## Protocol `blind`") < table.index("## Protocol `paper`")
    assert "Without runs under `paper` (no such preset, or not asked for): losing, plain" in table

    Deep.PRESETS["paper"]["epochs"] = 3  # a changed preset is another run
    jobs.clear()
    run(suite, ["deep"], seeds=1, out=tmp_path / "o")
    assert [job["protocol"] for job in jobs] == ["paper", "paper"]
