"""The benchmark harness: tasks, suites, resuming, failures and tables."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from synthetic import simulate

import sctool.model
import sctool.tl
import sctool_benchmark as benchmark
from sctool.model import _novelty
from sctool_benchmark import Method, Task, _cluster, _regroup, _report, _run, _worker
from sctool_benchmark.__main__ import main

TYPES = ["B", "CD4 T/NK", "DC", "Mono"]
PEER = """
import json, sys
import h5py, numpy as np

kind, input, output, seed = sys.argv[1:]
if kind == "failing":
    sys.exit("first line\\nout of luck")
with h5py.File(input) as file:
    x, codes = file["X"][:], file["obs/cell_type/codes"][:]
    types = file["obs/cell_type/categories"].asstr()[:]
    assert isinstance(file["obs/_index"], h5py.Dataset)  # which older readers know
    split = file["obs/split/categories"].asstr()[:][file["obs/split/codes"][:]]
query = split == "query"
assert (codes[query] == -1).all() and (codes[~query] >= 0).all()
if kind == "centroid":
    centres = np.stack([x[codes == code].mean(0) for code in range(len(types))])
    nearest = ((x[query][:, None] - centres) ** 2).sum(2).argmin(1)
else:
    nearest = np.zeros(query.sum(), int)
answer = {"prediction": types[nearest].tolist(), "score": [0.5] * int(query.sum())}
if kind == "centroid":
    answer |= {"seconds": 1.5, "peak_rss_gb": 0.25, "versions": {"peer": "1.0"}}
json.dump(answer, open(output, "w"))
"""


def make_adata(split: bool = False) -> ad.AnnData:
    """Return 120 cells of four well-separated types, three cells without a label."""
    rng = np.random.default_rng(0)
    codes = np.arange(120) % 4
    x = rng.poisson(1 + 20 * np.eye(4, 10)[codes]).astype(np.float32)
    labels = pd.Series(np.array(TYPES, dtype=object)[codes])
    labels[[0, 1, 2]] = None
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(labels),
            "cell_type_orig": np.array(TYPES)[codes],
            "donor": np.array(["d1", "d2", "d3"])[rng.integers(3, size=120)],
        }
    ).set_axis([f"cell{i}" for i in range(120)])
    if split:
        obs["split"] = np.where(np.arange(120) < 60, "reference", "query")
    adata = ad.AnnData(x, obs=obs)
    adata.uns["query_only_types"] = TYPES
    adata.obsm["X_pca"] = x[:, :2]
    return adata


def task(kind: str, **entries) -> Task:
    return Task(name="t", kind=kind, file="t.h5ad", **entries)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite of two tasks and three peers, with its data beside it."""
    make_adata(split=True).write_h5ad(tmp_path / "kang.h5ad")
    (tmp_path / "peer.py").write_text(PEER)
    lines = ["seeds = 2"]
    for name, entries in {"closed": 'kind = "pair"', "open": 'kind = "intra"'}.items():
        lines += ["[[task]]", f'name = "{name}"', f"file = '{tmp_path / 'kang.h5ad'}'", entries]
    for name in ("centroid", "losing", "failing"):
        words = ["{python}", "{here}/peer.py", name, "{input}", "{output}", "{seed}"]
        lines += ["[[method]]", f'name = "{name}"', f"command = {words}"]
    path = tmp_path / "suite.toml"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Run jobs in this process, which saves its imports, and list them."""
    done: list[dict] = []

    def spawn(job: dict, timeout: float | None, log: Path) -> dict:
        done.append(job)
        return json.loads(json.dumps(_worker.work(json.loads(json.dumps(job)))))

    monkeypatch.setattr(_run, "_spawn", spawn)
    return done


def parse(*words: object) -> list[str]:
    return [str(word) for word in words]


# -- Splits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "entries",
    [
        {"kind": "pair"},
        {"kind": "masked", "n_masked": 2},
        {"kind": "intra"},
        {"kind": "cv", "folds": 3},
        {"kind": "cv", "groups": "donor"},
    ],
    ids=lambda entries: "-".join(map(str, entries.values())),
)
def test_nothing_gives_the_labels_of_the_query_away(entries: dict, seed: int) -> None:
    adata = make_adata(split=True)
    parts = benchmark.split(adata, task(**entries, batch_key="donor"), seed)
    assert list(parts.query.obs) == ["batch"]
    assert list(parts.reference.obs) == ["batch", "cell_type"]
    for side in (parts.query, parts.reference):
        assert not side.uns
        assert not side.obsm
        assert not side.layers
        assert side.var_names.equals(adata.var_names)
        np.testing.assert_array_equal(side.X, adata[side.obs_names].X)
    assert set(parts.query.obs_names).isdisjoint(parts.reference.obs_names)
    assert parts.truth.index.equals(parts.query.obs_names)
    labels = adata.obs["cell_type"].astype(object)
    pd.testing.assert_series_equal(parts.truth, labels[parts.truth.index], check_dtype=False)
    assert list(parts.reference.obs["cell_type"]) == list(labels[parts.reference.obs_names])
    assert parts.seen == sorted(parts.reference.obs["cell_type"].cat.categories)

    again = benchmark.split(adata, task(**entries), seed)
    assert again.query.obs_names.equals(parts.query.obs_names)
    assert again.reference.obs_names.equals(parts.reference.obs_names)


def test_labels_of_the_query_do_not_change_a_pair() -> None:
    adata, other = make_adata(split=True), make_adata(split=True)
    other.obs.loc[other.obs["split"] == "query", "cell_type"] = "DC"
    one, two = (benchmark.split(a, task("pair"), 0) for a in (adata, other))
    pd.testing.assert_frame_equal(one.reference.obs, two.reference.obs)
    pd.testing.assert_frame_equal(one.query.obs, two.query.obs)


@pytest.mark.parametrize(
    ("hidden", "n_hidden"), [(0.5, 2), (0.25, 1), (0.1, 1), (0.0, 0), (1.0, 3)], ids=str
)
def test_intra_hides_the_share_of_types_and_labels_the_share_of_cells(
    hidden: float, n_hidden: int
) -> None:
    parts = benchmark.split(make_adata(), task("intra", hidden=hidden, labelled=0.2), 0)
    assert len(parts.novel) == n_hidden
    assert len(parts.seen) == 4 - n_hidden
    assert not parts.reference.obs["cell_type"].isin(parts.novel).any()
    assert (parts.reference.obs["cell_type"].value_counts() == 6).all()
    assert parts.reference.n_obs + parts.query.n_obs == 120


def test_intra_draws_by_the_seed() -> None:
    draws = {tuple(benchmark.split(make_adata(), task("intra"), s).novel) for s in range(8)}
    assert len(draws) > 1


def test_cells_drawn_with_replacement_are_thinned_and_not_alike() -> None:
    adata = make_adata()
    parts = benchmark.split(adata, task("intra", hidden=0, n_cells=1000), 0)
    assert parts.reference.n_obs + parts.query.n_obs == 1000
    sides = ad.concat([parts.reference, parts.query])
    assert sides.obs_names.is_unique
    assert sides.X.sum() / 1000 == pytest.approx(0.8 * adata.X.sum() / 120, rel=0.1)
    assert len(np.unique(sides.X.toarray(), axis=0)) > 900
    adata.X /= 3
    with pytest.raises(ValueError, match="needs counts"):
        benchmark.split(adata, task("intra", n_cells=1000), 0)


def test_types_are_divided_until_there_are_as_many_as_asked_for() -> None:
    adata = ad.AnnData(np.tile(make_adata().X, 10), make_adata().obs)
    rules = {"hidden": 0.0, "n_cells": 1000}
    whole = benchmark.split(adata, task("intra", **rules), 0)
    parts = benchmark.split(adata, task("intra", n_types=10, **rules), 0)
    labels = pd.concat([parts.reference.obs["cell_type"].astype(str), parts.truth])
    assert labels.nunique() == 10
    assert set(labels.str.rsplit(" ", n=1).str[0]) == set(TYPES)
    assert labels.value_counts().min() > 40
    total = [side.reference.X.sum() + side.query.X.sum() for side in (whole, parts)]
    assert total[0] >= total[1] > 0.9 * total[0]  # genes are exchanged, no counts are made
    ref = parts.reference
    mean = {name: ref[ref.obs["cell_type"] == name].X.mean(axis=0) for name in labels.unique()}
    apart = [np.abs(mean[f"{name} 1"] - mean[f"{name} 2"]).max() for name in TYPES]
    assert max(apart) > 10
    with pytest.raises(ValueError, match="less than the 4 types"):
        benchmark.split(adata, task("intra", n_types=3, **rules), 0)
    with pytest.raises(ValueError, match="goes with n_cells"):
        task("intra", n_types=10)


def test_the_oracle_is_told_the_shares_of_seen_types_and_then_of_novel_ones_by_size() -> None:
    parts = benchmark.split(make_adata(split=True), task("masked", masked=["B"]), 0)
    shares = _worker._distribution(parts)
    size = pd.concat([parts.reference.obs["cell_type"].astype(str), parts.truth]).value_counts()
    expected = [size[name] for name in ("CD4 T/NK", "DC", "Mono", "B")]
    np.testing.assert_allclose(shares, np.array(expected) / sum(expected))


def test_the_table_sets_estimated_numbers_of_types_beside_guesses() -> None:
    rows = [(1, 3, 1, 0, 2), (3, 3, 5, 4, 6), (4, 2, 4, 4, 4)]  # true, seen, found, low, high
    columns = ["n_novel_types", "n_types", "novel_types_n", "novel_types_low", "novel_types_high"]
    frame = pd.DataFrame(rows, columns=columns).assign(task=["a", "b", "c"], seed=0, method="m")
    lines = list(_report._numbers(frame))
    assert "| m | 3 | 0.67 | 0.67 |" in lines
    assert "| a constant | 3 | 1.00 | - |" in lines  # 3
    assert "| half of the seen | 3 | 1.67 | - |" in lines
    assert "| as many as the seen | 3 | 1.33 | - |" in lines


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


def test_the_table_has_the_curve_of_each_method_over_tasks() -> None:
    rows = [("m", "a", 0.9, 0.5), ("m", "a", 0.7, 0.3), ("m", "b", 0.6, 0.2), ("k", "b", 0.5, 0.1)]
    columns = ["method", "task", "seen_at_recall.0.0", "seen_at_recall.0.5"]
    lines = list(_report._curves(pd.DataFrame(rows, columns=columns).assign(error=None)))
    assert "| method | tasks | 0.0 | 0.5 |" in lines
    assert "| m | 2 | 0.700 | 0.300 |" in lines  # not the mean over runs
    assert "| k | 1 | 0.500 | 0.100 |" in lines


def test_the_table_compares_a_method_with_its_base_type_by_type() -> None:
    rows, by_type = [], {}
    for seed, (ours, theirs) in enumerate([((0.9, 0.8), (0.5, 0.6)), ((0.7, 0.2), (0.8, 0.2))]):
        for method, values in (("m", ours), ("b", theirs)):
            base = "b" if method == "m" else None
            rows.append({"id": f"{method}{seed}", "task": "a", "method": method, "seed": seed})
            rows[-1]["base"] = base
            by_type[f"{method}{seed}"] = dict(zip(["A", "B"], values, strict=True))
    rows.append({"id": "m2", "task": "a", "method": "m", "seed": 2, "base": "b"})
    by_type["m2"] = {"A": 0.0, "B": 0.0}  # its base has no such run
    line = list(_report._paired(pd.DataFrame(rows), by_type))[-1]
    difference = np.array([0.4, 0.2, -0.1, 0.0])
    t = difference.mean() / (difference.std(ddof=1) / 2)
    assert line.startswith(f"| m | b | 4 | 0.525 | +0.125 | {t:.1f} | ")


def test_intra_draws_what_it_always_drew() -> None:
    adata = make_adata()
    labels = adata.obs["cell_type"].astype(object)
    rng = np.random.default_rng(3)
    seen = rng.permutation(TYPES)[2:]
    cells = [np.flatnonzero(labels == name) for name in seen]
    drawn = np.concatenate([rng.choice(c, round(0.5 * len(c)), replace=False) for c in cells])
    reference = benchmark.split(adata, task("intra"), 3).reference
    assert list(reference.obs_names) == list(adata.obs_names[np.sort(drawn)])


def test_all_cells_that_are_not_asked_for_may_be_labelled() -> None:
    adata, rules = make_adata(), {"hidden": 0.0, "n_labelled": 10, "equal": True}
    few = benchmark.split(adata, task("intra", **rules), 0)
    more = benchmark.split(adata, task("intra", all_labelled=True, **rules), 0)
    assert more.query.obs_names.equals(few.query.obs_names)
    assert few.reference.n_obs + few.query.n_obs < adata.n_obs
    assert more.reference.n_obs + more.query.n_obs == adata.n_obs
    assert not set(more.reference.obs_names) & set(more.query.obs_names)


@pytest.mark.parametrize("entries", [{"labelled": 0.9}, {"n_labelled": 20}])
def test_types_may_be_made_equal_and_small_ones_left_out(entries: dict) -> None:
    adata = make_adata()[:100]
    adata = adata[~((adata.obs["cell_type"] == "Mono") & (np.arange(100) > 40))].copy()
    rules = {"hidden": 0.0, "min_cells": 15, "equal": True}
    parts = benchmark.split(adata, task("intra", **rules, **entries), 0)
    reference, query = parts.reference.obs["cell_type"].value_counts(), parts.truth.value_counts()
    assert set(reference.index) == set(query.index) == {"B", "CD4 T/NK", "DC"}
    assert set(reference) == {entries.get("n_labelled", 22)}
    assert query.nunique() == 1


def test_one_type_after_the_other_is_made_rare() -> None:
    adata, cut = make_adata(), set()
    sizes = adata.obs["cell_type"].value_counts()
    for seed in range(4):
        parts = benchmark.split(adata, task("intra", hidden=0.0, labelled=0.9, n_rare=3), seed)
        n = parts.reference.obs["cell_type"].value_counts()
        assert n[parts.rare] == 3
        assert (parts.truth == parts.rare).sum() == sizes[parts.rare] - 3
        assert all(n[name] == round(0.9 * sizes[name]) for name in TYPES if name != parts.rare)
        cut.add(parts.rare)
    assert cut == set(TYPES)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"n_labelled": 900}, r"labels 900 cells, more than \["),
        ({"n_rare": 50}, r"has no type to cut to 50 cells"),
    ],
)
def test_too_few_cells_are_named(entries: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark.split(make_adata(), task("intra", hidden=0.0, **entries), 0)


def test_only_intra_draws_cells_by_number() -> None:
    with pytest.raises(ValueError, match=r"n_rare are for 'intra'"):
        task("pair", n_rare=5)


def test_the_recall_of_the_rare_type_is_scored_apart(suite: Path, jobs: list[dict]) -> None:
    entries = {"hidden": 0.0, "labelled": 0.9, "n_rare": 3}
    script = str(suite.parent / "peer.py")
    words = ["{python}", script, "losing", "{input}", "{output}", "{seed}"]
    job = {
        "task": {"name": "t", "kind": "intra", "file": "kang.h5ad", **entries},
        "method": {"name": "losing", "command": words},
        "protocol": "honest",
        "seed": 0,
        "path": str(suite.parent / "kang.h5ad"),
        "here": str(suite.parent),
    }
    row = _worker.work(job)  # which calls every cell "B", the rare type
    assert row["rare_recall"] == 1
    assert row["others_accuracy"] == 0


def test_intra_keeps_a_cell_of_each_seen_type() -> None:
    parts = benchmark.split(make_adata(), task("intra", labelled=0.001), 0)
    assert (parts.reference.obs["cell_type"].value_counts() == 1).all()


def test_masked_takes_the_named_types_out_of_the_reference() -> None:
    adata = make_adata(split=True)
    parts = benchmark.split(adata, task("masked", masked=["DC"]), 0)
    assert parts.novel == ["DC"]
    assert (parts.truth == "DC").sum() == 15
    drawn = benchmark.split(adata, task("masked", n_masked=2), 0)
    assert len(drawn.novel) == 2


@pytest.mark.parametrize("entries", [{"masked": ["nothing"]}, {"n_masked": 4}], ids=str)
def test_masked_must_leave_a_shared_type(entries: dict) -> None:
    with pytest.raises(ValueError, match="must leave one of the types"):
        benchmark.split(make_adata(split=True), task("masked", **entries), 0)


@pytest.mark.parametrize("groups", [None, "donor"])
def test_cv_holds_out_each_cell_once(groups: str | None) -> None:
    adata, cv = make_adata(), task("cv", folds=3, groups=groups)
    parts = [benchmark.split(adata, cv, seed) for seed in range(3)]
    held_out = [name for part in parts for name in part.query.obs_names]
    assert sorted(held_out) == sorted(adata.obs_names)
    if groups:
        assert all(adata.obs["donor"][part.query.obs_names].nunique() == 1 for part in parts)


def test_a_layer_goes_to_the_method() -> None:
    adata = make_adata()
    adata.layers["counts"] = adata.X + 1
    parts = benchmark.split(adata, task("intra", layer="counts"), 0)
    np.testing.assert_array_equal(parts.query.layers["counts"], parts.query.X + 1)


# -- Clusters ------------------------------------------------------------------------------------


def test_a_task_without_a_reference_has_all_cells_or_a_pairs_query() -> None:
    for split, n in ((False, 120), (True, 60)):
        parts = benchmark.split(make_adata(split), task("cluster"), 0)
        assert parts.reference.n_obs == 0
        assert parts.query.n_obs == len(parts.truth) == n
        assert list(parts.query.obs) == []


@pytest.mark.parametrize("method", ["cicl", "leiden", "kmeans"])
def test_clusters_are_scored_and_tabulated(method: str, tmp_path: Path, jobs: list) -> None:
    simulate(60).write_h5ad(tmp_path / "cells.h5ad")
    lines = ["[[task]]", 'name = "t"', 'kind = "cluster"', f"file = '{tmp_path / 'cells.h5ad'}'"]
    lines += ["[[method]]", 'name = "m"', f'method = "{method}"']
    if method == "cicl":
        lines += ["train_kwargs = { max_epochs = 2, enable_progress_bar = false }"]
    (tmp_path / "suite.toml").write_text("\n".join(lines))
    rows = benchmark.run(tmp_path / "suite.toml", out=tmp_path / "out").set_index("protocol")
    assert rows["error"].isna().all()
    assert rows.loc["paper", "n_clusters_n"] == 4
    assert rows["n_types"].tolist() == [4, 4]
    assert rows["ari"].between(-0.5, 1).all()
    assert rows["nmi"].between(0, 1).all()
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| task | method | runs | ari | nmi |" in table
    assert "seen_accuracy" not in table


def test_the_number_of_types_is_given_under_paper_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def cluster(adata: ad.AnnData, **kwargs: object) -> None:
        told.append((kwargs["n_clusters"], list(adata.obs)))
        adata.obs["clusters"] = "0"
        adata.uns["clusters"] = {"n_clusters": {"n": 1}}

    monkeypatch.setattr(sctool.tl, "cluster", cluster)
    for protocol in ("honest", "paper"):
        parts = benchmark.split(make_adata(), task("cluster"), 0)
        job = {"protocol": protocol, "seed": 0}
        _cluster.cluster(parts, task("cluster"), Method(name="m", method="cicl"), job)
    assert told == [(None, []), (4, [])]
    with pytest.raises(ValueError, match="method='scnym' cannot cluster"):
        _cluster.cluster(parts, task("cluster"), Method(name="m", method="scnym"), job)


# -- Suites and data -----------------------------------------------------------------------------


def test_shipped_suites_parse() -> None:
    suites = {name: benchmark.load_suite(name) for name in benchmark.shipped_suites()}
    n_tasks = {name: len(suite.tasks) for name, suite in suites.items()}
    pairs = {"pairs": 5, "quick": 2, "scnym_ablation": 5, "scnym_default": 2, "scnym_original": 1}
    pairs |= {"pairs_peers": 5}
    own = {"demo": 1, "open": 9, "number_of_types": 30, "scdet_ablation": 2, "cost": 3}
    own |= {"open_shares": 7, "accelerator": 1}
    clusters = {"clustering": 14, "clustering_ablation": 2, "clustering_published": 2}
    clusters |= {"clustering_cost": 3}
    settings = {"simple": 6, "scarce": 6, "unbalanced": 6, "rare": 6, "rare_more": 18}
    settings |= {"scarce_ceiling": 6, "donors": 1}
    assert n_tasks == own | pairs | clusters | settings | {"contrastive": 2, "contrastive_cost": 3}
    ablation = suites["scnym_ablation"].methods.values()
    switches = [(m.model_kwargs["mixmatch"], m.model_kwargs["adversary"]) for m in ablation]
    assert len(set(switches)) == 4
    floors = {m.name: m.regroup for m in suites["open"].methods.values() if m.regroup}
    assert floors == {
        "logistic-leiden": "leiden",
        "logistic-kmeans": "kmeans",
        "scnym-leiden": "leiden",
    }
    methods = [m.method for suite in suites.values() for m in suite.methods.values() if m.method]
    clusterers = {*sctool.model.CLUSTER_METHODS, "leiden", *_cluster.BASELINES}
    assert set(methods) <= clusterers | set(sctool.model.METHODS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[task]]\nname = "t"\nkind = "tripod"\nfile = "f"', "kind must be one of"),
        ('[[task]]\nname = "t"\nkind = "pair"', "either a file or a dataset"),
        ('[[task]]\nname = "t"\nkind = "masked"\nfile = "f"', "either masked or n_masked"),
        ('[[task]]\nname = "t"\nkind = "pair"\nfile = "f"\nfold = 2', "fold"),
        ('[[method]]\nname = "a/b"\nmethod = "scnym"', "'a/b'"),
        ('[[method]]\nname = "m"', "either method or command"),
        ('[[method]]\nname = "m"\nmethod = "gate"\nregroup = "umap"', "regroup must be one of"),
        ('[[method]]\nname = "m"\ncommand = ["a"]\nregroup = "leiden"', "not for commands"),
        ('[[method]]\nname = "m"\nmethod = "gate"\nreject_below = 7', "reject_below must lie"),
        ("seed = 3", "unknown entries"),
        ("seeds = ", "in suite"),
    ],
)
def test_a_wrong_suite_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        benchmark.load_suite(path)


@pytest.mark.parametrize("suite", ["nowhere", "quick"])
def test_nothing_to_run_is_exit_code_2(
    suite: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sctool.model, "METHODS", {"fake": object}, raising=False)
    monkeypatch.setenv("SCTOOL_DATA_DIR", str(tmp_path / "absent"))
    assert main(parse("--suite", suite, "-o", tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert ("SCTOOL_DATA_DIR" if suite == "quick" else "no suite 'nowhere'") in said
    assert not (tmp_path / "out").exists()


def test_the_data_folder_may_lie_beside_the_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SCTOOL_DATA_DIR", raising=False)
    for folder in ("shared/data", "project/.git", "project/docs"):
        (tmp_path / folder).mkdir(parents=True)
    data = tmp_path / "shared" / "data" / "t.h5ad"
    data.touch()
    monkeypatch.chdir(tmp_path / "project" / "docs")
    assert _run.locate(task("pair")) == str(data)


# -- Runs ----------------------------------------------------------------------------------------


def test_run_records_every_method_and_resumes(
    suite: Path, jobs: list[dict], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    args = parse("--suite", suite, "-o", out)
    assert main(args) == 1  # a method failed, and the others went on
    assert len(jobs) == 12
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 12

    by_id = {(row["task"], row["method"], row["seed"]): row for row in rows}
    best, worst = by_id["closed", "centroid", 0], by_id["closed", "losing", 0]
    assert best["n_ref"] == 57
    assert best["n_query"] == 60
    assert best["n_genes"] == 10
    assert best["n_types"] == 4
    assert best["n_novel_types"] == 0
    assert best["seen_accuracy"] == 1
    assert worst["seen_accuracy"] == 0.25
    assert best["false_novel"] == 0
    assert best["ece"] == 0.5
    assert best["seconds"] == 1.5
    assert best["peak_rss_gb"] == 0.25
    assert best["versions"]["peer"] == "1.0"
    assert "anndata" in best["versions"]
    assert worst["seconds"] > 0
    assert worst["peak_rss_gb"] > 0
    assert worst["n_threads"] > 0
    assert by_id["open", "centroid", 1]["n_novel_types"] == 2
    failed = by_id["open", "failing", 1]
    assert failed["error"] == "the command ended with exit code 1: out of luck"

    jobs.clear()
    assert main(args) == 1
    assert {job["method"]["name"] for job in jobs} == {"failing"}
    jobs.clear()
    peers = parse("--suite", suite, "-o", out, "--methods", "losing,centroid")
    assert main(peers) == 0
    assert not jobs

    frame = pd.read_csv(out / "results.csv")
    assert len(frame) == 12
    assert frame["id"].is_unique
    assert {"task", "kind", "data", "method", "protocol", "seed", "macro_f1"} <= set(frame)
    assert {"date", "versions.python", "versions.peer", "error"} <= set(frame)
    assert frame["error"].notna().sum() == 4

    table = (out / "table.md").read_text()
    for name in ("closed", "open"):
        for method, runs in {"centroid": "2", "losing": "2", "failing": "0 of 2"}.items():
            assert f"| {name} | {method} | {runs} |" in table
    assert "| closed | centroid | 2 | 1.000 ± 0.000 |" in table
    assert "| losing | 2 | 0." in table
    assert "| failing | 0 of 2 | - |" in table
    assert "Mean over the tasks whose data may choose presets" in table  # kang.h5ad
    assert "Mean over the other tasks" not in table
    assert f"python -m sctool_benchmark --suite {suite} --methods centroid,losing,failing" in table
    assert re.search(r"- python 3\.\d+", table)


def test_changed_settings_run_again_and_replace_the_row(
    suite: Path, jobs: list[dict], tmp_path: Path
) -> None:
    def run() -> pd.DataFrame:
        return benchmark.run(suite, ["losing"], ["honest"], 1, tmp_path / "out")

    before = run()
    suite.write_text(suite.read_text().replace('"intra"', '"intra"\nhidden = 0.25'))
    jobs.clear()
    after = run()
    assert [job["task"]["name"] for job in jobs] == ["open"]
    assert before["id"][0] == after["id"][0]
    assert before["id"][1] != after["id"][1]
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 3
    assert set(pd.read_csv(tmp_path / "out" / "results.csv")["id"]) == set(after["id"])


def test_protocols(suite: Path, jobs: list[dict], tmp_path: Path, monkeypatch) -> None:
    class Plain:
        """A method without presets."""

    class Deep:
        """A method that takes the number of novel types."""

        PRESETS: ClassVar = {"default": {"epochs": 1}, "paper": {"epochs": 2}}

        @staticmethod
        def settings_for_novel(novel: int, preset: str) -> dict:
            told.append((preset, novel))
            return {"n_novel": novel}

    class Closed:
        """A method without the paper's preset that can be told only that nothing is novel."""

        PRESETS: ClassVar = {"default": {}}

        @staticmethod
        def settings_for_novel(novel: int, preset: str) -> dict:
            assert preset == "default"
            if novel:
                raise ValueError("no number")
            return {}

    calls, told = [], []

    class Model:
        history: ClassVar = {"loss_train": range(7)}

        def get_latent_representation(self, adata: ad.AnnData, layer: str | None) -> np.ndarray:
            return np.ones((adata.n_obs, 2))

    def annotate(adata: ad.AnnData, ref: ad.AnnData, *, key_added: str, **kwargs) -> tuple:
        assert not adata.obs.columns.size
        assert list(ref.obs) == ["cell_type"]
        calls.append(kwargs)
        n = adata.n_obs
        adata.obs[key_added] = pd.Categorical(["B"] * n)
        adata.obs[f"{key_added}_score"] = 0.5
        adata.obs[f"{key_added}_novel_score"] = np.linspace(0, 1, n)
        adata.obs[f"{key_added}_novel"] = np.arange(n) % 2 == 0
        adata.obsm[f"{key_added}_proba"] = np.full((n, 2), 0.5)
        adata.obsm[f"X_{key_added}"] = np.zeros((n, 2))
        adata.uns[key_added] = {"classes": np.array(TYPES[:2])}
        return adata, Model()

    methods = {"plain": Plain, "deep": Deep, "closed": Closed}
    monkeypatch.setattr(sctool.model, "METHODS", methods, raising=False)
    monkeypatch.setattr("sctool.tl._annotate.annotate_with_model", annotate)
    text = suite.read_text() + '\n[[method]]\nname="variant"\nmethod="deep"\nmodel_kwargs={a=1}'
    keeper = '\n[[method]]\nname="keeper"\nmethod="deep"\nmodel_kwargs={preset="default"}'
    suite.write_text(text + keeper)

    names = ["plain", "deep", "variant", "keeper", "losing", "closed"]
    rows = benchmark.run(suite, names, seeds=1, out=tmp_path / "o")
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
    assert table.index("## Protocol `honest`") < table.index("## Protocol `paper`")
    assert "Without runs under `paper` (no such preset, or not asked for): losing, plain" in table

    Deep.PRESETS["paper"]["epochs"] = 3  # a changed preset is another run
    jobs.clear()
    benchmark.run(suite, ["deep"], seeds=1, out=tmp_path / "o")
    assert [job["protocol"] for job in jobs] == ["paper", "paper"]


def test_only_the_paper_protocol_needs_the_preset(
    suite: Path, tmp_path: Path, jobs: list[dict]
) -> None:
    with pytest.raises(ValueError, match="nothing to run"):
        benchmark.run(suite, ["losing"], ["paper"], out=tmp_path / "out")
    with pytest.raises(ValueError, match="unknown protocols"):
        benchmark.run(suite, ["losing"], ["best"], out=tmp_path / "out")


def test_unknown_methods_are_named(suite: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sctool.model, "METHODS", {"plain": object}, raising=False)
    with pytest.raises(ValueError, match=r"unknown methods \['plane'\]: choose from .*'plain'"):
        benchmark.run(suite, ["plane", "losing"], out=tmp_path / "out")


def test_a_process_that_takes_too_long_is_ended(suite: Path, tmp_path: Path) -> None:
    rows = benchmark.run(suite, ["losing"], seeds=1, out=tmp_path / "out", timeout=0.05)
    assert set(rows["error"]) == {"ended after 0.05 seconds"}
    assert len(list((tmp_path / "out" / "failed").iterdir())) == 2


def test_a_method_is_command_or_name() -> None:
    with pytest.raises(ValueError, match="either method or command"):
        Method(name="both", method="logistic", command=["true"])


# -- Reject, then cluster the rejected -----------------------------------------------------------


@pytest.fixture(scope="module")
def parts() -> tuple[Task, benchmark.Split]:
    """Half of the query's cells are of two types that the reference lacks."""
    adata = ad.concat([simulate(400, seed=0), simulate(400, seed=1)])
    adata.obs["split"] = np.repeat(["reference", "query"], 400)
    masked = Task(name="t", kind="masked", file="t.h5ad", masked=["DC", "Mono"])
    return masked, benchmark.split(adata, masked, 0)


def regrouped(parts: tuple, how: str, novel: np.ndarray | None, n_novel: int | None = 2) -> dict:
    """Return what becomes of a query that was all named "B", with a score of 0.5 if novel."""
    masked, cells = parts
    is_novel = cells.truth.isin(["DC", "Mono"]).to_numpy()
    answer = {
        "prediction": np.array(["B"] * len(is_novel), dtype=object),
        "score": np.where(is_novel, 0.5, 0.9),
        "novel": novel,
    }
    method = Method(name="m", method="logistic", regroup=how)
    return _regroup.regroup(answer, cells, masked, method, n_novel, 0)


@pytest.mark.parametrize("how", ["leiden", "kmeans"])
def test_the_rejected_are_grouped_and_named_by_size(parts: tuple, how: str) -> None:
    result = regrouped(parts, how, None)
    truth = parts[1].truth.to_numpy().astype(str)
    novel = np.isin(truth, ["DC", "Mono"])
    np.testing.assert_array_equal(result["novel"], novel)  # by their score
    assert set(result["prediction"][~novel]) == {"B"}
    names, sizes = np.unique(result["prediction"][novel], return_counts=True)
    assert list(names) == [f"novel_{i + 1}" for i in range(len(names))]
    assert (np.diff(sizes) <= 0).all()
    if how == "kmeans":
        assert len(names) == 2
    # the groups are the types, whichever is called which, or parts of them
    table = pd.crosstab(result["prediction"][novel], truth[novel])
    assert table.max(axis=1).sum() > 0.9 * novel.sum()


def test_a_methods_own_word_goes_before_its_score(parts: tuple) -> None:
    flags = np.arange(parts[1].query.n_obs) < 49
    result = regrouped(parts, "leiden", flags)
    np.testing.assert_array_equal(result["novel"], flags)
    assert set(result["prediction"][:49]) == {"novel_1"}  # too few to be parted
    assert set(result["prediction"][49:]) == {"B"}
    none = regrouped(parts, "leiden", np.zeros(len(flags), dtype=bool))
    assert set(none["prediction"]) == {"B"}


def test_the_number_of_groups_is_estimated_if_not_told(parts: tuple, monkeypatch) -> None:
    def estimate(x_ref, y, x, n_novel, rng, progress=False):
        assert n_novel is None
        assert x_ref.shape == (200, 300)
        assert x.shape == (400, 300)
        np.testing.assert_allclose(np.expm1(x.toarray()).sum(axis=1), 1e4, rtol=1e-3)
        labels = parts[1].reference.obs["cell_type"]
        np.testing.assert_array_equal(y, labels.cat.codes)
        return SimpleNamespace(n=numbers.pop())

    monkeypatch.setattr(_novelty, "find", estimate)
    numbers = [0, 3]
    assert len(set(regrouped(parts, "kmeans", None, None)["prediction"])) == 1 + 3
    assert len(set(regrouped(parts, "kmeans", None, None)["prediction"])) == 1 + 1


def test_a_floor_through_the_command(tmp_path: Path, jobs: list[dict]) -> None:
    adata = ad.concat([simulate(200, seed=0), simulate(200, seed=1)])
    adata.obs["split"] = np.repeat(["reference", "query"], 200)
    adata.write_h5ad(tmp_path / "kang.h5ad")
    suite = tmp_path / "suite.toml"
    lines = []
    for name, kind in {"closed": "pair", "open": "masked"}.items():
        lines += ["[[task]]", f'name = "{name}"', f'kind = "{kind}"']
        lines += [f"file = '{tmp_path / 'kang.h5ad'}'", 'masked = ["DC"]']
    lines += ["[[method]]", 'name = "floor"', 'method = "logistic"']
    lines += ['regroup = "kmeans"', "reject_below = 0.8"]
    suite.write_text("\n".join(lines))
    rows = benchmark.run(suite, protocols=["paper"], seeds=1, out=tmp_path / "out")
    assert rows["error"].isna().all()
    closed, opened = rows.iloc[0], rows.iloc[1]
    assert closed["false_novel"] == 0  # told that nothing is novel
    assert opened["novel_accuracy"] > 0.5
    assert opened["n_novel_types"] == 1


def test_demo_with_the_real_method(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = parse(
        "--suite", "demo", "--methods", "logistic", "--protocols", "honest", "-o", tmp_path / "out"
    )
    assert main(args) == 0, (tmp_path / "out" / "results.jsonl").read_text()
    (row,) = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert row["n_genes"] == 765
    assert row["n_types"] == 7
    assert row["n_novel_types"] == 3
    assert row["seen_accuracy"] > 0.6
    assert row["novel_auroc"] > 0.5
    assert row["seconds"] < 60
    assert 0.05 < row["peak_rss_gb"] < 8
    assert "1 of 1 runs succeeded" in capsys.readouterr().out
