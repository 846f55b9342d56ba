"""What may write into a user's AnnData: names, types, and nothing of what was there before."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from matplotlib.colors import to_rgb
from scanpy.plotting.palettes import default_20, default_102
from synthetic import TYPES, simulate, simulate_sides

import sctool
from sctool import _slots
from sctool._verdicts import STATUSES

RESULT = {"classes", "novel_classes", "novel", "params", "versions", "audit", "alarms", "reasons"}
KEYS = {"my", "my_score", "my_novel", "my_novel_score", "my_status"}


def verdicts(n: int, n_names: int, novel: np.ndarray, everything: bool = False) -> _slots.Verdicts:
    """Verdicts on n cells, the second last being ambiguous; ``everything`` has those asked for."""
    code = np.where(novel, 2, 0)
    code[n - 2] = 1
    reason = np.array(["", "probability 0.40", "unlike the known types"], dtype=object)[code]
    sets, pooled = np.zeros((n, n_names), dtype=bool), np.zeros(n, dtype=int)
    sets[:, 0] = sets[:, -1] = True
    pooled[-1] = -1
    safe = np.array(["a", *["unknown"] * (n - 2), None], dtype=object)
    table = pd.DataFrame({"n_cells": [n], "label": ["a"]}, index=pd.Index(["0"], dtype=object))
    asked = (sets, safe, pooled, table) if everything else (None,) * 4
    status = pd.Categorical(np.array(["assigned", "ambiguous", "novel"])[code], list(STATUSES))
    return _slots.Verdicts(status, reason, *asked, ["genes: few"])


def write(adata: ad.AnnData, **changes: object) -> ad.AnnData:
    """Write an annotation of two types, the first cells' being "a"."""
    proba = np.tile([[0.75, 0.25]], (adata.n_obs, 1))
    proba[3:] = [0.25, 0.75]
    if changes.get("novel_classes"):
        proba = np.hstack([proba * 0.9, np.full((adata.n_obs, 1), 0.1)])
        proba[-1] = [0.1, 0.1, 0.8]
    given = {
        "classes": ["a", "b"],
        "novel_classes": [],
        "novel_table": pd.DataFrame(),
        "n_novel": None,
        "colors": {},
        "proba": proba,
        "latent": np.ones((adata.n_obs, 2)),
        "novel_score": np.linspace(0, 1, adata.n_obs),
        "novel": np.arange(adata.n_obs) == 0,
        "unseen": np.zeros(adata.n_obs, dtype=bool),
        "params": {"method": "m"},
        "versions": {"sctool": "1"},
        "audit": ["one", "two"],
    } | changes
    novel = np.zeros(adata.n_obs, bool) if given["novel"] is None else given["novel"]
    n_names = given["proba"].shape[1]
    given["verdicts"] = verdicts(adata.n_obs, n_names, novel, given.pop("everything", False))
    _slots.write_annotation(adata, "my", **given)
    return adata


def write_clusters(adata: ad.AnnData) -> ad.AnnData:
    """Write two clusters."""
    _slots.write_clusters(
        adata,
        "my",
        codes=np.arange(adata.n_obs) % 2,
        names=["0", "1"],
        score=np.ones(adata.n_obs),
        unseen=np.zeros(adata.n_obs, dtype=bool),
        latent=np.ones((adata.n_obs, 2)),
        n_clusters={"n": 2},
        params={"n_clusters": None},
        versions={"sctool": "1"},
        audit=["one"],
    )
    return adata


@pytest.fixture
def cells() -> ad.AnnData:
    """Return a few cells."""
    return simulate(8)


# -- which object --------------------------------------------------------------------------------


@pytest.mark.parametrize("copy", [False, True], ids=["in-place", "copy"])
@pytest.mark.parametrize("kind", ["object", "view", "file", "view-of-a-file"])
def test_what_is_written_into(kind, copy, cells, tmp_path):
    adata = cells
    if "file" in kind:
        cells.write_h5ad(tmp_path / "cells.h5ad")
        adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    file = adata if "file" in kind else None
    adata = adata[2:6] if "view" in kind else adata
    names = list(adata.obs_names)
    target = _slots.writable(adata, copy)
    assert (target is adata) != copy
    assert not target.is_view
    assert target.isbacked == (kind == "file" and not copy)
    assert list(target.obs_names) == names
    target.obs["new"] = 1  # on a view this would warn
    assert "new" not in cells.obs or target is cells
    if copy and "view" in kind:
        assert adata.is_view
    if file is not None:
        file.file.close()


@pytest.mark.parametrize("return_model", [False, True], ids=["", "return_model"])
@pytest.mark.parametrize("copy", [False, True], ids=["", "copy"])
def test_what_a_tool_returns(copy, return_model, cells):
    model = object()
    expected = {
        (False, False): None,
        (True, False): cells,
        (False, True): model,
        (True, True): (cells, model),
    }[copy, return_model]
    returned = _slots.returned(cells, model, copy, return_model)
    assert returned is expected or returned == expected


# -- what is written -----------------------------------------------------------------------------


def test_an_annotations_types(cells):
    write(cells)
    assert list(cells.obs["my"]) == ["a"] * 3 + ["b"] * 5
    assert list(cells.obs["my"].cat.categories) == ["a", "b"]
    dtypes = cells.obs[["my_score", "my_novel_score", "my_novel"]].dtypes.astype(str).to_dict()
    assert dtypes == {"my_score": "float32", "my_novel_score": "float32", "my_novel": "bool"}
    for slot in ("X_my", "my_proba"):
        assert cells.obsm[slot].dtype == np.float32
    assert set(cells.uns["my"]) == RESULT
    assert len(cells.uns["my"]["novel"]) == len(cells.uns["my"]["novel_classes"]) == 0
    assert list(cells.uns["my"]["audit"]) == ["one", "two"]
    assert "my_colors" not in cells.uns


def test_a_status_has_a_reason_unless_the_cell_is_assigned(cells):
    write(cells)
    assert list(cells.obs["my_status"]) == ["novel", *["assigned"] * 5, "ambiguous", "assigned"]
    assert list(cells.obs["my_status"].cat.categories) == ["assigned", "ambiguous", "novel"]
    reasons = cells.uns["my"]["reasons"]
    assert list(reasons.index) == [cells.obs_names[0], cells.obs_names[6]]
    assert list(reasons["status"]) == ["novel", "ambiguous"]
    assert list(reasons["reason"]) == ["unlike the known types", "probability 0.40"]
    assert list(cells.uns["my"]["alarms"]) == ["genes: few"]


def test_what_is_asked_for_is_written_and_read(cells, tmp_path):
    write(cells, everything=True).write_h5ad(tmp_path / "cells.h5ad")
    for adata in (cells, ad.read_h5ad(tmp_path / "cells.h5ad")):
        assert set(adata.uns["my"]) == RESULT | {"groups"}
        assert list(adata.uns["my"]["groups"]["label"]) == ["a"]
        assert adata.obsm["my_set"].dtype == bool
        assert adata.obsm["my_set"].shape == (8, 2)
        assert list(adata.obs["my_safe"].cat.categories) == ["a", "unknown"]
        assert list(adata.obs["my_pooled"].cat.categories) == ["a"]
        for column in ("my_safe", "my_pooled"):
            assert list(adata.obs[column].isna()) == [False] * 7 + [True]
        assert adata.uns["my"]["reasons"]["reason"].iloc[0] == "unlike the known types"


def test_novel_groups_are_names_after_the_types(cells):
    table = pd.DataFrame({"n_cells": [0]}, index=pd.Index(["novel_1"], dtype=object))
    count = {"n": 1, "low": 0, "high": 2}
    write(cells, novel_classes=["novel_1"], novel_table=table, n_novel=count)
    assert list(cells.obs["my"].cat.categories) == ["a", "b", "novel_1"]
    result = cells.uns["my"]
    assert list(result["classes"]) == ["a", "b", "novel_1"]
    assert list(result["novel_classes"]) == ["novel_1"]
    assert result["n_novel"] == count
    assert result["novel"] is table


def test_colours_are_written_if_every_type_has_one(cells):
    colors = {"b": "#222222", "a": "#111111", "absent": "#333333"}
    assert list(write(cells, colors=colors).uns["my_colors"]) == ["#111111", "#222222"]
    write(cells, colors=colors, novel_classes=["novel_1"])
    first, second, novel = cells.uns["my_colors"]
    assert (first, second) == ("#111111", "#222222")
    assert novel in default_102
    write(cells, colors={"a": "#111111"})
    assert "my_colors" not in cells.uns


@pytest.mark.parametrize("n", [0, 1, 20])
def test_novel_groups_have_colours_of_their_own_that_show_on_white(n):
    used = [color.upper() + "FF" for color in default_20]  # as matplotlib writes them with opacity
    colors = _slots.unused_colors(used, n)
    assert len(set(colors)) == n
    assert not {color.lower() for color in colors} & {color[:7].lower() for color in used}
    assert not {"#ffff00", "#fff"} & {color.lower() for color in colors}
    rgb = np.array([to_rgb(color) for color in [*default_20, *colors[:3]]])
    apart = np.linalg.norm(rgb[:, None] - rgb, axis=2)[len(default_20) :]
    assert np.sort(apart, axis=1)[:, 1:2].min(initial=1) > 0.2


def test_colours_repeat_where_types_have_taken_them_all():
    assert len(_slots.unused_colors(list(default_102), 103)) == 103


@pytest.mark.parametrize("second", ["annotation", "clusters"])
def test_nothing_of_an_earlier_result_is_left(second, cells):
    table = pd.DataFrame({"n_cells": [0]}, index=pd.Index(["novel_1"], dtype=object))
    before = {slot: set(getattr(cells, slot)) for slot in ("obs", "obsm", "uns")}
    write(
        cells,
        colors={"a": "#111111", "b": "#222222"},
        novel_classes=["novel_1"],
        novel_table=table,
        n_novel={"n": 1},
        everything=True,
    )
    cells.uns["my_evaluation"] = {"scores": pd.DataFrame({"value": [1.0]})}
    assert {"my_safe", "my_pooled"} <= set(cells.obs)
    assert "my_set" in cells.obsm
    if second == "annotation":
        write(cells, novel=None)
        assert set(cells.obs) == before["obs"] | KEYS - {"my_novel"}
        assert set(cells.obsm) == {"X_my", "my_proba"}
        assert set(cells.uns["my"]) == RESULT
    else:
        write_clusters(cells)
        assert set(cells.obs) == before["obs"] | {"my", "my_score"}
        assert set(cells.obsm) == {"X_my"}
        assert set(cells.uns["my"]) == {"n_clusters", "params", "versions", "audit"}
    assert set(cells.uns) == before["uns"] | {"my"}


def test_what_only_begins_like_the_key_is_no_result(cells):
    cells.obs["my_own"] = 1
    cells.obsm["X_my_own"] = np.ones((8, 2))
    cells.uns["my_own"] = {"a": 1}
    _slots.clear(write(cells), "my")
    assert set(cells.obs) == {"cell_type", "my_own"}
    assert set(cells.obsm) == {"X_my_own"}
    assert set(cells.uns) == {"my_own"}


# -- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "text"),
        (True, True),
        (3, 3),
        (0.5, 0.5),
        (np.float32(0.5), np.float32(0.5)),
        ({"a": None, "b": {"c": None, 1: 2}}, {"b": {"1": 2}}),
        ([], np.array([])),
        ((1, 2), np.array([1, 2])),
        (["a", "b"], np.array(["a", "b"])),
        ([None, 1], "[None, 1]"),
        ({1}, "{1}"),
    ],
    ids=[
        *["text", "bool", "int", "float", "numpy", "dict-without-None"],
        *["empty-list", "tuple", "list", "mixed-list", "set"],
    ],
)
def test_parameters_become_what_a_file_takes(value, expected, cells, tmp_path):
    stored = _slots.storable(value)
    np.testing.assert_equal(stored, expected)
    assert type(stored) is type(expected)
    cells.uns["params"] = {"value": stored}
    cells.write_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_equal(ad.read_h5ad(tmp_path / "cells.h5ad").uns["params"]["value"], expected)


def test_names_of_types_are_values_and_never_names_of_slots(cells, tmp_path):
    classes = ["a/b", "c d"]
    table = pd.DataFrame({"n_cells": [1]}, index=pd.Index(["novel/1"], dtype=object))
    write(cells, classes=classes, novel_classes=["novel/1"], novel_table=table)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    read = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert list(read.obs["my"]) == list(cells.obs["my"])
    assert list(read.uns["my"]["classes"]) == [*classes, "novel/1"]
    assert list(read.uns["my"]["novel"].index) == ["novel/1"]
    assert list(read.obs["cell_type"].cat.categories) == TYPES


# -- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", " ", None, 3, "CD4/CD8", "a\0b", ".", "..", "_index"])
def test_keys_that_no_file_holds_are_refused(key, cells):
    with pytest.raises(ValueError, match="key_added="):
        _slots.check_key(cells, key)


@pytest.mark.parametrize(
    ("key", "slot", "where"),
    [
        ("leiden", "leiden", "obs"),
        ("S", "S_score", "obs"),
        ("pca", "X_pca", "obsm"),
        ("umap", "umap", "uns"),
        ("type", "type_colors", "uns"),
        ("type", "type_evaluation", "uns"),
        ("PCs", "PCs", "varm"),
    ],
)
def test_what_others_wrote_is_never_replaced(key, slot, where, cells):
    n = cells.n_vars if where == "varm" else cells.n_obs
    getattr(cells, where)[slot] = {"params": {}} if where == "uns" else np.ones((n, 2))[:, 0]
    if where in ("obsm", "varm"):
        getattr(cells, where)[slot] = np.ones((n, 2))
    with pytest.raises(ValueError, match=rf"adata.{where}\['{slot}'\] exists"):
        _slots.check_key(cells, key)
    _slots.check_key(cells, "my")


def test_an_earlier_result_may_be_replaced(cells):
    _slots.check_key(write(cells), "my")
    _slots.check_key(write_clusters(cells), "my")
    del cells.uns["my"]
    with pytest.raises(ValueError, match="was not written by sctool"):
        _slots.check_key(cells, "my")


def concatenated(adata: ad.AnnData) -> ad.AnnData:
    """What ``anndata.concat`` leaves of a result: no ``uns``."""
    return ad.concat([adata[:4], adata[4:]])


@pytest.mark.parametrize("tool", ["annotate", "cluster", "check_reference"])
def test_what_concat_leaves_of_a_result_may_be_replaced(tool):
    cells, ref = simulate_sides()
    if tool == "annotate":
        sctool.tl.annotate(cells, ref, method="logistic")
    elif tool == "cluster":
        sctool.tl.cluster(cells, method="leiden", key_added="sctool")
    else:
        sctool.tl.check_reference(cells, "truth", key_added="sctool")
    cells = concatenated(cells)
    assert "sctool" not in cells.uns
    _slots.check_key(cells, "sctool")


@pytest.mark.parametrize(
    ("column", "key"),
    [
        ("sctool", "sctool"),
        ("sctool_manual", "sctool_manual"),
        ("sctool_score", "sctool"),
        ("sctool_novel", "sctool"),
        ("sctool_suspect", "sctool"),
    ],
)
def test_a_column_of_the_users_own_is_kept_whatever_its_name(column, key):
    cells, ref = simulate_sides()
    cells.obs[column] = "mine"
    with pytest.raises(ValueError, match=rf"obs\['{column}'\] exists and was not written by sc"):
        sctool.tl.annotate(cells, ref, method="logistic", key_added=key)
    assert set(cells.obs[column]) == {"mine"}


def test_a_key_must_leave_room_in_the_name_of_a_file(cells):
    _slots.check_key(cells, "x" * 200)
    for key in ("x" * 201, "\u00e9" * 101):
        with pytest.raises(ValueError, match=r"key_added='.*\.\.\.' has 20[12] bytes, too many"):
            _slots.check_key(cells, key)


@pytest.mark.parametrize("prefix", ["my", "sctool"])
@pytest.mark.parametrize("ending", ["_novel", "_score"])
@pytest.mark.parametrize("first", ["short", "long"])
def test_two_results_share_no_column(first, ending, prefix, adata, ref):
    keys = [prefix, prefix + ending]
    keys = keys if first == "short" else keys[::-1]
    sctool.tl.annotate(adata, ref, method="logistic", key_added=keys[0])
    before = adata.obs.copy()
    with pytest.raises(ValueError, match=rf"belongs to the result '{keys[0]}'. Pass another"):
        sctool.tl.annotate(adata, ref, method="logistic", key_added=keys[1])
    pd.testing.assert_frame_equal(adata.obs, before)
    sctool.tl.annotate(adata, ref, method="logistic", key_added=keys[0])


@pytest.mark.parametrize("tool", ["annotate", "cluster", "explain"])
def test_every_tool_refuses_a_bad_key_first(tool, cells):
    given = {"annotate": ["no such model"], "cluster": [], "explain": ["no such model"]}[tool]
    with pytest.raises(ValueError, match="key_added='CD4/CD8' cannot be the name of a slot"):
        getattr(sctool.tl, tool)(cells, *given, key_added="CD4/CD8")


# -- renaming ------------------------------------------------------------------------------------


@pytest.fixture
def novel() -> ad.AnnData:
    """Return cells of a, b, c and two novel groups, two of each, with colours; none of "c"."""
    names = ["a", "b", "c", "novel_1", "novel_2"]
    proba = np.full((8, 5), 0.1)
    proba[np.arange(8), [0, 0, 1, 1, 3, 3, 4, 4]] = 0.6
    table = pd.DataFrame({"n_cells": [2, 2]}, index=pd.Index(names[3:], dtype=object))
    return write(
        simulate(8),
        classes=names[:3],
        novel_classes=names[3:],
        novel_table=table,
        colors={"a": "#aaaaaa", "b": "#bbbbbb", "c": "#cccccc"},
        proba=proba,
        novel=np.arange(8) >= 4,
    )


def test_only_types_that_occur_are_categories(novel):
    assert list(novel.obs["my"].cat.categories) == ["a", "b", "novel_1", "novel_2"]
    assert list(novel.uns["my"]["classes"]) == ["a", "b", "c", "novel_1", "novel_2"]
    assert list(novel.uns["my_colors"])[:2] == ["#aaaaaa", "#bbbbbb"]
    assert len(novel.uns["my_colors"]) == 4
    sc.tl.rank_genes_groups(novel, "my", method="t-test_overestim_var", n_genes=5)


CHANGES = {
    "as it is": lambda x: x,
    "a type is gone": lambda x: x[x.obs["my"] != "a"].copy(),
    "categories in another order": lambda x: reordered(x),
    "a cell without a name": lambda x: without_name(x),
    "a name given by hand": lambda x: by_hand(x),
    "read from a file": lambda x: x,
    "merged results": lambda x: merged_results(x),
    "text and a palette by name": lambda x: as_text(x),
}


def reordered(adata: ad.AnnData) -> ad.AnnData:
    """Categories backwards, with their colours."""
    names = list(adata.obs["my"].cat.categories)[::-1]
    adata.obs["my"] = adata.obs["my"].cat.reorder_categories(names)
    adata.uns["my_colors"] = adata.uns["my_colors"][::-1]
    return adata


def merged_results(adata: ad.AnnData) -> ad.AnnData:
    """What ``anndata.concat`` leaves of two results that differ in their notes and tables."""
    other = adata.copy()
    other.obs_names = [f"other {name}" for name in other.obs_names]
    other.uns["my"] |= {"audit": np.array(["another"], dtype=object), "novel": pd.DataFrame()}
    both = ad.concat([adata, other], uns_merge="same")
    assert "classes" in both.uns["my"]
    assert "audit" not in both.uns["my"]
    return both


def as_text(adata: ad.AnnData) -> ad.AnnData:
    """Names as text, and colours by name."""
    names = list(adata.obs["my"].cat.categories)
    adata.uns["my_colors"] = dict(zip(names, adata.uns["my_colors"], strict=True))
    adata.obs["my"] = adata.obs["my"].astype(str)
    return adata


def without_name(adata: ad.AnnData) -> ad.AnnData:
    """The first cell and the fifth have no name."""
    adata.obs.loc[adata.obs_names[[0, 4]], "my"] = np.nan
    return adata


def by_hand(adata: ad.AnnData) -> ad.AnnData:
    """The first cell has a name that the model does not know, and colours are out of step."""
    adata.obs["my"] = adata.obs["my"].cat.add_categories(["z"])
    adata.obs.loc[adata.obs_names[0], "my"] = "z"
    return adata


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["new", "c", "a"])
def test_renaming_goes_by_name(name, change, novel, tmp_path):
    adata = CHANGES[change](novel)
    if change == "read from a file":
        adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = ad.read_h5ad(tmp_path / "cells.h5ad")
    before = adata.obs["my"].astype(object).copy()
    scores, proba = adata.obs["my_score"].copy(), adata.obsm["my_proba"].copy()
    given = adata.uns.get("my_colors", [])
    names = adata.obs["my"].astype("category").cat.categories
    colors = given if isinstance(given, dict) else dict(zip(names, given, strict=False))
    sctool.tl.rename_novel(adata, {"novel_1": name}, key="my")
    expected = before.where(before != "novel_1", name)
    pd.testing.assert_series_equal(adata.obs["my"].astype(object), expected)
    merged = {"a": [0, 3], "c": [2, 3], "new": [3]}[name]
    classes = list(adata.uns["my"]["classes"])
    np.testing.assert_allclose(
        adata.obsm["my_proba"][:, classes.index(name)], proba[:, merged].sum(axis=1)
    )
    unknown = ~expected.isin(classes)
    pd.testing.assert_series_equal(adata.obs["my_score"][unknown], scores[unknown])
    got = adata.obs["my_score"].to_numpy()[~unknown]
    columns = [classes.index(n) for n in expected[~unknown]]
    np.testing.assert_array_equal(got, adata.obsm["my_proba"][~unknown][range(len(got)), columns])
    assert list(adata.obs["my_novel"]) == list(expected == "novel_2")
    np.testing.assert_array_equal(adata.obs["my_novel_score"], proba[:, 4])
    assert adata.obs["my_novel_score"].dtype == np.float32
    if change != "merged results":
        assert list(adata.uns["my"]["novel"].index) == ["novel_2"]
    if "my_colors" in adata.uns:
        after = dict(zip(adata.obs["my"].cat.categories, adata.uns["my_colors"], strict=True))
        assert {n: after[n] for n in colors if n in after} == {
            n: c for n, c in colors.items() if n in after
        }
        assert after[name] == colors.get(name, colors["novel_1"])
    else:
        assert change in ("a name given by hand", "merged results")
    adata.write_h5ad(tmp_path / "renamed.h5ad")


@pytest.mark.parametrize("last", ["new", "c"])
def test_without_novel_groups_the_novelty_score_is_one_minus_the_score(last, novel):
    novel.obsm["my_proba"][0] = 0  # a cell that expresses nothing
    novel.obs.loc[novel.obs_names[0], ["my", "my_score", "my_novel_score"]] = [np.nan, 0, 0]
    sctool.tl.rename_novel(novel, {"novel_2": "c"}, key="my")
    sctool.tl.rename_novel(novel, {"novel_1": last}, key="my")
    assert not novel.obs["my_novel"].any()
    scores = novel.obs[["my_score", "my_novel_score"]]
    np.testing.assert_allclose(scores.sum(axis=1), [0, *[1] * 7], rtol=1e-6)
    np.testing.assert_array_equal(scores["my_novel_score"][:1], 0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({}, r"names=\{\}: pass a dict with the new names of groups, such as \{'novel_1': "),
        (None, "names=None: pass a dict"),
        (["novel_1"], "pass a dict"),
        (
            {"novel_1": "novel_1"},
            r"\['novel_1'\] are novel groups of 'my': pass names of cell types",
        ),
        ({"novel_1": "novel_2"}, r"\['novel_2'\] are novel groups"),
        ({"novel_1": "novel_2", "novel_2": "novel_1"}, "are novel groups"),
    ],
    ids=["empty", "None", "list", "itself", "another", "exchanged"],
)
def test_what_would_rename_nothing_is_refused(names, message, novel):
    before = novel.copy()
    with pytest.raises(ValueError, match=message):
        sctool.tl.rename_novel(novel, names, key="my")
    pd.testing.assert_frame_equal(novel.obs, before.obs)
    assert list(novel.uns["my"]["audit"]) == list(before.uns["my"]["audit"])


@pytest.mark.parametrize(("where", "slot"), [("obsm", "my_proba"), ("obs", "my_score")])
def test_nothing_is_renamed_if_it_cannot_be(where, slot, novel):
    del getattr(novel, where)[slot]
    before = novel.copy()
    with pytest.raises(KeyError, match=rf"adata.{where}\['{slot}'\] is missing"):
        sctool.tl.rename_novel(novel, {"novel_1": "new"}, key="my")
    pd.testing.assert_frame_equal(novel.obs, before.obs)
    assert list(novel.uns["my"]["classes"]) == list(before.uns["my"]["classes"])


def test_an_evaluation_of_the_old_names_is_dropped(novel):
    novel.uns["my_evaluation"] = {}
    sctool.tl.rename_novel(novel, {"novel_1": "new"}, key="my")
    assert "my_evaluation" not in novel.uns


@pytest.mark.parametrize("name", ["new", "a"])
def test_renaming_reaches_every_verdict(name, novel):
    table, colors = novel.uns["my"]["novel"], novel.uns["my_colors"]
    write(
        novel,
        classes=["a", "b", "c"],
        novel_classes=["novel_1", "novel_2"],
        novel_table=table,
        proba=novel.obsm["my_proba"],
        novel=np.arange(8) >= 4,
        everything=True,
    )
    novel.obs["my_pooled"] = pd.Categorical(["a"] * 4 + ["novel_1"] * 2 + ["novel_2", None])
    sets = np.zeros((8, 5), dtype=bool)
    sets[np.arange(8), [0, 0, 1, 1, 3, 3, 4, 4]] = True
    novel.obsm["my_set"] = sets
    novel.uns["my_colors"] = colors
    sctool.tl.rename_novel(novel, {"novel_1": name}, key="my")
    # the cell before the last was marked ambiguous
    status = ["assigned"] * 6 + ["ambiguous", "novel"]
    assert list(novel.obs["my_status"]) == status
    assert list(novel.uns["my"]["reasons"].index) == list(novel.obs_names[6:])
    reasons = ["probability 0.40", "unlike the known types"]
    assert list(novel.uns["my"]["reasons"]["reason"]) == reasons
    pooled = ["a"] * 4 + [name] * 2 + ["novel_2"]
    assert list(novel.obs["my_pooled"][:7]) == pooled
    assert novel.obs["my_pooled"].isna().tolist() == [False] * 7 + [True]
    after, classes = novel.obsm["my_set"], list(novel.uns["my"]["classes"])
    assert after.dtype == bool
    named = [*["a"] * 2, *["b"] * 2, *[name] * 2, *["novel_2"] * 2]
    assert [classes[i] for i in after.argmax(axis=1)] == named
    assert (after.sum(axis=1) == 1).all()


def test_parts_of_different_annotations_are_no_result(tmp_path):
    adata, ref = simulate_sides()
    fewer = ref[ref.obs["cell_type"] != "DC"].copy()
    args = {"method": "logistic", "copy": True}
    one, other = (sctool.tl.annotate(adata, side, **args) for side in (ref, fewer))
    other.obs_names = [f"other {name}" for name in other.obs_names]
    both = ad.concat([one, other], uns_merge="first")
    for use in (
        lambda: sctool.tl.report(both, tmp_path / "report.html"),
        lambda: _slots.check_whole(both, "sctool"),
    ):
        with pytest.raises(ValueError, match=r"has 3 columns, but .* names 4 types"):
            use()
    assert not (tmp_path / "report.html").exists()
