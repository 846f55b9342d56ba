"""What a suite may say, and how tasks part cells."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from benchmark.cells import TYPES, make_adata, make_task
from sctool.model import CLUSTER_METHODS, METHODS
from sctool_benchmark import Method, Split, load_suite, shipped_suites, split
from sctool_benchmark._ablations import ABLATIONS, CLUSTER_ABLATIONS
from sctool_benchmark._rivals import RIVAL_NAMES
from sctool_benchmark._tasks import CLUSTER_BASELINES, known_data, known_methods, locate

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
    parts = split(adata, make_task(**entries, batch_key="donor"), seed)
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

    again = split(adata, make_task(**entries), seed)
    assert again.query.obs_names.equals(parts.query.obs_names)
    assert again.reference.obs_names.equals(parts.reference.obs_names)


def test_labels_of_the_query_do_not_change_a_pair() -> None:
    adata, other = make_adata(split=True), make_adata(split=True)
    other.obs.loc[other.obs["split"] == "query", "cell_type"] = "DC"
    one, two = (split(a, make_task("pair"), 0) for a in (adata, other))
    pd.testing.assert_frame_equal(one.reference.obs, two.reference.obs)
    pd.testing.assert_frame_equal(one.query.obs, two.query.obs)


@pytest.mark.parametrize(
    ("hidden", "n_hidden"), [(0.5, 2), (0.25, 1), (0.1, 1), (0.0, 0), (1.0, 3)], ids=str
)
def test_intra_hides_the_share_of_types_and_labels_the_share_of_cells(
    hidden: float, n_hidden: int
) -> None:
    parts = split(make_adata(), make_task("intra", hidden=hidden, labelled=0.2), 0)
    assert len(parts.novel) == n_hidden
    assert len(parts.seen) == 4 - n_hidden
    assert not parts.reference.obs["cell_type"].isin(parts.novel).any()
    assert (parts.reference.obs["cell_type"].value_counts() == 6).all()
    assert parts.reference.n_obs + parts.query.n_obs == 120


def test_intra_draws_by_the_seed() -> None:
    draws = {tuple(split(make_adata(), make_task("intra"), s).novel) for s in range(8)}
    assert len(draws) > 1


def test_larger_data_have_new_cells_of_the_same_types() -> None:
    adata = make_adata()
    parts = split(adata, make_task("intra", hidden=0, n_cells=1000), 0)
    assert parts.reference.n_obs + parts.query.n_obs == 1000
    sides = ad.concat([parts.reference, parts.query])
    assert sides.obs_names.is_unique
    assert sides.X.sum() / 1000 == pytest.approx(adata.X.sum() / 120, rel=0.1)
    assert len(np.unique(sides.X.toarray(), axis=0)) > 900
    adata.X /= 3
    with pytest.raises(ValueError, match="needs counts"):
        split(adata, make_task("intra", n_cells=1000), 0)


def test_types_are_divided_until_there_are_as_many_as_asked_for() -> None:
    adata = ad.AnnData(np.tile(make_adata().X, 10), make_adata().obs)
    rules = {"hidden": 0.0, "n_cells": 1000}
    whole = split(adata, make_task("intra", **rules), 0)
    parts = split(adata, make_task("intra", n_types=10, **rules), 0)
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
        split(adata, make_task("intra", n_types=3, **rules), 0)
    with pytest.raises(ValueError, match="goes with n_cells"):
        make_task("intra", n_types=10)


def test_intra_draws_what_it_always_drew() -> None:
    adata = make_adata()
    labels = adata.obs["cell_type"].astype(object)
    rng = np.random.default_rng(3)
    seen = rng.permutation(TYPES)[2:]
    cells = [np.flatnonzero(labels == name) for name in seen]
    drawn = np.concatenate([rng.choice(c, round(0.5 * len(c)), replace=False) for c in cells])
    reference = split(adata, make_task("intra"), 3).reference
    assert list(reference.obs_names) == list(adata.obs_names[np.sort(drawn)])


def test_all_cells_that_are_not_asked_for_may_be_labelled() -> None:
    adata, rules = make_adata(), {"hidden": 0.0, "n_labelled": 10, "equal": True}
    few = split(adata, make_task("intra", **rules), 0)
    more = split(adata, make_task("intra", all_labelled=True, **rules), 0)
    assert more.query.obs_names.equals(few.query.obs_names)
    assert few.reference.n_obs + few.query.n_obs < adata.n_obs
    assert more.reference.n_obs + more.query.n_obs == adata.n_obs
    assert not set(more.reference.obs_names) & set(more.query.obs_names)


@pytest.mark.parametrize("entries", [{"labelled": 0.9}, {"n_labelled": 20}])
def test_types_may_be_made_equal_and_small_ones_left_out(entries: dict) -> None:
    adata = make_adata()[:100]
    adata = adata[~((adata.obs["cell_type"] == "Mono") & (np.arange(100) > 40))].copy()
    rules = {"hidden": 0.0, "min_cells": 15, "equal": True}
    parts = split(adata, make_task("intra", **rules, **entries), 0)
    reference, query = parts.reference.obs["cell_type"].value_counts(), parts.truth.value_counts()
    assert set(reference.index) == set(query.index) == {"B", "CD4 T/NK", "DC"}
    assert set(reference) == {entries.get("n_labelled", 22)}
    assert query.nunique() == 1


def test_one_type_after_the_other_is_made_rare() -> None:
    adata, cut = make_adata(), set()
    sizes = adata.obs["cell_type"].value_counts()
    for seed in range(4):
        parts = split(adata, make_task("intra", hidden=0.0, labelled=0.9, n_rare=3), seed)
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
        split(make_adata(), make_task("intra", hidden=0.0, **entries), 0)


def test_only_intra_draws_cells_by_number() -> None:
    with pytest.raises(ValueError, match=r"n_rare are for 'intra'"):
        make_task("pair", n_rare=5)


def test_intra_keeps_a_cell_of_each_seen_type() -> None:
    parts = split(make_adata(), make_task("intra", labelled=0.001), 0)
    assert (parts.reference.obs["cell_type"].value_counts() == 1).all()


def test_masked_takes_the_named_types_out_of_the_reference() -> None:
    adata = make_adata(split=True)
    parts = split(adata, make_task("masked", masked=["DC"]), 0)
    assert parts.novel == ["DC"]
    assert (parts.truth == "DC").sum() == 15
    drawn = split(adata, make_task("masked", n_masked=2), 0)
    assert len(drawn.novel) == 2


def test_masked_takes_out_a_type_that_the_query_lacks() -> None:
    adata = make_adata(split=True)
    adata = adata[~((adata.obs["split"] == "query") & (adata.obs["cell_type"] == "B").to_numpy())]
    parts = split(adata.copy(), make_task("masked", masked=["B", "DC"]), 0)
    assert parts.seen == ["CD4 T/NK", "Mono"]
    assert parts.novel == ["DC"]


@pytest.mark.parametrize("kind", ["pair", "masked", "intra"])
def test_references_and_queries_are_cut(kind: str) -> None:
    adata, masked = make_adata(split=True), ["DC"] if kind == "masked" else []

    def parts(seed: int = 0, **cuts: int) -> Split:
        return split(adata, make_task(kind, masked=masked, **cuts), seed)

    whole, cut = parts(), parts(max_per_type=5, max_query=20)
    assert (cut.reference.obs["cell_type"].value_counts() == 5).all()
    assert cut.seen == whole.seen
    assert cut.query.n_obs == len(cut.truth) == 20
    assert set(cut.reference.obs_names) < set(whole.reference.obs_names)
    assert set(cut.query.obs_names) < set(whole.query.obs_names)
    other = parts(seed=1, max_per_type=5, max_query=20)
    assert set(other.query.obs_names) != set(cut.query.obs_names)
    kept = parts(max_per_type=100, max_query=1000)
    assert kept.reference.obs_names.equals(whole.reference.obs_names)
    assert kept.query.obs_names.equals(whole.query.obs_names)


@pytest.mark.parametrize("entries", [{"masked": ["nothing"]}, {"n_masked": 4}], ids=str)
def test_masked_must_leave_a_shared_type(entries: dict) -> None:
    with pytest.raises(ValueError, match="must leave one of the types"):
        split(make_adata(split=True), make_task("masked", **entries), 0)


@pytest.mark.parametrize("groups", [None, "donor"])
def test_cv_holds_out_each_cell_once(groups: str | None) -> None:
    adata, cv = make_adata(), make_task("cv", folds=3, groups=groups)
    parts = [split(adata, cv, seed) for seed in range(3)]
    held_out = [name for part in parts for name in part.query.obs_names]
    assert sorted(held_out) == sorted(adata.obs_names)
    if groups:
        assert all(adata.obs["donor"][part.query.obs_names].nunique() == 1 for part in parts)


def test_each_training_split_leaves_out_a_fold_of_the_reference_alone() -> None:
    adata = make_adata(split=True)
    whole = split(adata, make_task("pair"), 0)
    parts = [split(adata, make_task("pair", training_folds=3), seed) for seed in range(3)]
    for part in parts:
        assert list(part.query.obs_names) == list(whole.query.obs_names)
        assert part.reference.n_obs == 38  # two thirds of 57
        assert part.seen == TYPES
    left_out = [set(whole.reference.obs_names) - set(p.reference.obs_names) for p in parts]
    assert set.union(*left_out) == set(whole.reference.obs_names)
    assert sum(map(len, left_out)) == 57
    with pytest.raises(ValueError, match="training_folds is for pairs"):
        make_task("cv", training_folds=3)


def test_a_layer_goes_to_the_method() -> None:
    adata = make_adata()
    adata.layers["counts"] = adata.X + 1
    parts = split(adata, make_task("intra", layer="counts"), 0)
    np.testing.assert_array_equal(parts.query.layers["counts"], parts.query.X + 1)


def test_a_task_without_a_reference_has_all_cells_or_a_pairs_query() -> None:
    for has_split, n in ((False, 120), (True, 60)):
        parts = split(make_adata(has_split), make_task("cluster"), 0)
        assert parts.reference.n_obs == 0
        assert parts.query.n_obs == len(parts.truth) == n
        assert list(parts.query.obs) == []


# -- Suites --------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    path = folder / "suite.toml"
    path.write_text(text)
    return path


def test_shipped_suites_parse() -> None:
    suites = {name: load_suite(name) for name in shipped_suites()}
    n_tasks = {name: len(suite.tasks) for name, suite in suites.items()}
    pairs = {"pairs": 5, "quick": 2, "scnym_ablation": 5, "scnym_default": 2, "scnym_original": 1}
    pairs |= {"peers": 13}
    own = {"demo": 1, "open": 9, "number_of_types": 30, "scdet_ablation": 2, "cost": 3}
    own |= {"open_shares": 7, "accelerator": 1, "scdet_readings": 3}
    clusters = {"clustering": 14, "clustering_ablation": 2, "clustering_published": 2}
    clusters |= {"clustering_cost": 3}
    settings = {"simple": 6, "scarce": 6, "unbalanced": 6, "rare": 6, "rare_more": 18}
    settings |= {"scarce_ceiling": 6, "donors": 1}
    settings |= {"penalty": 24}
    settings |= {"never_harm": 24, "shifted_novelty": 17, "auto_cost": 1, "planted": 21}
    settings |= {"rare_prevalence": 48, "safe_names": 6, "safe_names_shifted": 9}
    settings |= {"adapt": 5, "back_off": 2, "size": 4}
    pairs |= {"scnym_table1": 7, "scnym_markers": 3, "scanvi_surgery": 3}
    pairs |= {"scnym_domains": 6}
    settings |= {"contrastive_nine": 18}
    rivals = {"clustering_rivals": 6, "clustering_joining": 14}
    rivals |= {"scdet_tables": 7, "scdet_published_ablation": 3}
    settings |= rivals
    assert n_tasks == own | pairs | clusters | settings | {"contrastive": 2, "contrastive_cost": 3}
    assert all(task.data in known_data() for suite in suites.values() for task in suite.tasks)


def test_methods_are_known_by_name() -> None:
    known = known_methods()
    models = {*METHODS, *CLUSTER_METHODS, "leiden", *CLUSTER_BASELINES}
    assert models <= set(known)
    elsewhere = {*ABLATIONS, *CLUSTER_ABLATIONS, *RIVAL_NAMES}
    assert {method.method for method in known.values() if method.method} == models | elsewhere
    assert {method.base for method in known.values() if method.base} <= set(known)
    peer = known["celltypist"]
    script = next(word for word in peer.command if word.endswith(".py"))
    assert Path(script.replace("{here}", peer.folder)).is_file()
    used = {method.name for name in shipped_suites() for method in load_suite(name).methods}
    assert set(known) - models <= used


def test_a_task_is_the_product_of_its_lists(tmp_path: Path) -> None:
    text = """
        [[task]]
        name = "{data}_{hidden:.0%}_{n_rare}"
        kind = "intra"
        n_rare = [5, 10]
        data = ["worm", "pbmc68k"]
        hidden = [0.1, 0.5]
        labelled = 0.9
        [[task]]
        kind = "masked"
        data = "cellbench"
        masked = ["A549", "H838"]
        [[task]]
        name = "own"
        kind = "cv"
        data = "mine"
        file = "mine.h5ad"
        [[task]]
        name = "without_{masked[0]}"
        kind = "masked"
        data = "worm"
        masked = [["A"], ["B", "C"]]
    """
    tasks = {task.name: task for task in load_suite(write(tmp_path, text)).tasks}
    assert list(tasks) == [
        *(f"{d}_{h}_{n}" for n in (5, 10) for d in ("worm", "pbmc68k") for h in (10, 50)),
        "cellbench",
        "own",
        "without_A",
        "without_B",
    ]
    worm, blood = tasks["worm_10_5"], tasks["pbmc68k_50_10"]
    assert (worm.file, worm.hidden, worm.n_rare) == ("cao_worm_neuron.h5ad", 0.1, 5)
    assert (worm.labelled, worm.tuned) == (0.9, False)
    assert (blood.file, blood.dataset, blood.raw) == (None, "pbmc68k_reduced", True)
    assert (blood.labels_key, blood.tuned) == ("bulk_labels", True)
    assert tasks["cellbench"].masked == ["A549", "H838"]
    assert tasks["without_B"].masked == ["B", "C"]
    assert (tasks["own"].file, tasks["own"].tuned) == ("mine.h5ad", False)


def test_a_suite_names_methods_and_may_define_some(tmp_path: Path) -> None:
    def names(text: str) -> list[str]:
        return [method.name for method in load_suite(write(tmp_path, text)).methods]

    own = '[method.mine]\nmethod = "logistic"\nmodel_kwargs = { C = 3 }'
    assert names("") == list(METHODS)
    assert names(own) == ["mine"]
    assert names(f'methods = ["leiden", "mine", "logistic+mls"]\n{own}') == [
        "leiden",
        "mine",
        "logistic+mls",
    ]
    mine = load_suite(tmp_path / "suite.toml").known["mine"]
    assert mine == Method(
        name="mine", method="logistic", model_kwargs={"C": 3}, folder=str(tmp_path)
    )


def test_included_tasks_come_first(tmp_path: Path) -> None:
    text = 'include = ["quick"]\n[[task]]\nname = "t"\nkind = "pair"\ndata = "half3k"'
    tasks = load_suite(write(tmp_path, text)).tasks
    assert [task.name for task in tasks] == ["baron_segerstolpe", "cellbench", "t"]


T = '[[task]]\nname = "t"\n'
M = "[method.m]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (T + 'kind = "tripod"\ndata = "worm"', "kind must be one of"),
        (T + 'kind = "pair"\ndata = "nothing"', r"either a file or a dataset.*'worm'"),
        (T + 'kind = "pair"', "data"),
        (T + 'kind = "masked"\ndata = "worm"', "either masked or n_masked"),
        (T + 'kind = "pair"\ndata = "worm"\nfold = 2', "fold"),
        (T + 'kind = "pair"\ndata = ["worm", "yan"]', "'t' appears twice"),
        ('[[task]]\nname = "{n}"\nkind = "pair"\ndata = "yan"', "name is made of 'n'"),
        ('[method."a/b"]\nmethod = "scnym"', "'a/b'"),
        ('[method.scnym]\nmethod = "scnym"', "'scnym' appears twice"),
        (M, "either method or command"),
        (M + 'method = "logistic"\ncommand = ["true"]', "either method or command"),
        (M + 'method = "gate"\nrecluster_rejected = "umap"', "recluster_rejected must be one of"),
        (M + 'command = ["a"]\nrecluster_rejected = "leiden"', "not for commands"),
        (M + 'method = "gate"\nreject_below = 7', "reject_below must lie"),
        (M + 'method = "gate"\nbase = "gat"', r"unknown methods \['gat'\]"),
        ('methods = ["plane"]', r"unknown methods \['plane'\]: choose from .*'logistic-tuned'"),
        ("seed = 3", "unknown entries"),
        ("seeds = ", "in suite"),
    ],
)
def test_a_wrong_suite_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_suite(write(tmp_path, text))


# -- Data ----------------------------------------------------------------------------------------


def test_the_data_folder_may_lie_beside_the_repository(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SCTOOL_DATA_DIR", raising=False)
    for folder in ("shared/data", "project/.git", "project/docs"):
        (tmp_path / folder).mkdir(parents=True)
    data = tmp_path / "shared" / "data" / "t.h5ad"
    data.touch()
    monkeypatch.chdir(tmp_path / "project" / "docs")
    assert locate(make_task("pair")) == str(data)


# -- Rare and planted cells ----------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2])
def test_a_rare_type_has_its_share_of_the_query(share: float) -> None:
    adata = make_adata()
    rules = {"hidden": 0.0, "labelled": 0.3, "n_rare": 3, "max_query": 70}
    adata = ad.AnnData(np.tile(adata.X, (3, 1)), pd.concat([adata.obs] * 3))
    adata.obs_names_make_unique()
    parts = split(adata, make_task("intra", rare_share=share, **rules), 1)
    whole = split(adata, make_task("intra", **rules), 1)
    own, n = (parts.truth == parts.rare).sum(), parts.query.n_obs
    assert own == max(1, round(share / (1 - share) * (n - own)))
    assert parts.reference.obs_names.equals(whole.reference.obs_names)
    others = whole.truth[whole.truth != whole.rare].index
    assert set(parts.truth[parts.truth != parts.rare].index) == set(others)
    assert set(parts.query.obs_names) < set(whole.query.obs_names)
    with pytest.raises(ValueError, match="goes with n_rare"):
        make_task("intra", rare_share=share)


def test_doublets_are_sums_of_two_types_and_thinned_cells_keep_a_part() -> None:
    adata = make_adata(split=True)
    rules = {"doublets": 0.2, "thinned": 0.1}
    parts, whole = (split(adata, make_task("pair", **r), 4) for r in (rules, {}))
    assert parts.planted is not None
    assert whole.planted is None
    kinds = pd.Series(parts.planted).value_counts()
    assert (kinds["doublet"], kinds["thinned"], kinds[""]) == (12, 6, 54)
    assert parts.query.n_obs == len(parts.truth) == 72
    assert parts.truth[parts.planted != ""].isna().all()
    assert parts.query.obs_names.is_unique
    assert parts.reference.obs_names.equals(whole.reference.obs_names)

    x, before = parts.query.X.toarray(), whole.query.X
    thinned, kept = (parts.planted[:60] == kind for kind in ("thinned", ""))
    np.testing.assert_array_equal(x[:60][kept], before[kept])
    share = x[:60][thinned].sum(axis=1) / before[thinned].sum(axis=1)
    assert ((share > 0.02) & (share < 0.35)).all()
    assert share.mean() == pytest.approx(0.15, abs=0.06)
    sources = np.flatnonzero(kept & whole.truth.notna().to_numpy())
    types = whole.truth.to_numpy()
    for doublet in x[parts.planted == "doublet"]:
        pairs = [
            (types[i], types[j])
            for i in sources
            for j in sources
            if np.array_equal(before[i] + before[j], doublet)
        ]
        assert pairs
        assert all(one != other for one, other in pairs)

    again = split(adata, make_task("pair", **rules), 4)
    np.testing.assert_array_equal(again.query.X.toarray(), x)


def test_only_counts_can_be_planted() -> None:
    adata = make_adata(split=True)
    adata.X = adata.X / 3
    with pytest.raises(ValueError, match="X must hold counts"):
        split(adata, make_task("pair", doublets=0.1), 0)
