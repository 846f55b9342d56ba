"""What may write into a user's AnnData: names, types, and nothing of what was there before."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scanpy.plotting.palettes import default_102
from synthetic import TYPES, simulate

from sctool import _slots

KEYS = {"my", "my_score", "my_novel", "my_novel_score"}


def write(adata: ad.AnnData, **changes: object) -> ad.AnnData:
    """Write an annotation of two types, the first cells' being "a"."""
    proba = np.tile([[0.75, 0.25]], (adata.n_obs, 1))
    proba[3:] = [0.25, 0.75]
    if changes.get("novel_classes"):
        proba = np.hstack([proba * 0.9, np.full((adata.n_obs, 1), 0.1)])
    given = {
        "classes": ["a", "b"],
        "novel_classes": [],
        "novel_table": None,
        "n_novel": None,
        "colors": {},
        "proba": proba,
        "latent": np.ones((adata.n_obs, 2)),
        "novel_score": np.linspace(0, 1, adata.n_obs),
        "novel": np.arange(adata.n_obs) == 0,
        "params": {"method": "m"},
        "versions": {"sctool": "1"},
        "audit": ["one", "two"],
    }
    _slots.write_annotation(adata, "my", **(given | changes))
    return adata


def write_clusters(adata: ad.AnnData) -> ad.AnnData:
    """Write two clusters."""
    _slots.write_clusters(
        adata,
        "my",
        codes=np.arange(adata.n_obs) % 2,
        names=["0", "1"],
        score=np.ones(adata.n_obs),
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
    assert list(cells.uns["my"]) == ["classes", "params", "versions", "audit"]
    assert list(cells.uns["my"]["audit"]) == ["one", "two"]
    assert "my_colors" not in cells.uns


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


@pytest.mark.parametrize("n", [0, 1, 101, 102, 110])
def test_novel_groups_have_colours_that_no_type_has(n):
    used = default_102[0].upper() + "FF"  # as matplotlib writes it with its opacity
    colors = _slots.unused_colors([used], n)
    assert len(colors) == n
    assert default_102[0] not in colors
    assert len(set(colors)) == min(n, len(default_102) - 1)


def test_colours_repeat_where_types_have_taken_them_all():
    assert _slots.unused_colors(list(default_102), 103) == [*default_102, default_102[0]]


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
    )
    cells.uns["my_evaluation"] = {"scores": pd.DataFrame({"value": [1.0]})}
    if second == "annotation":
        write(cells, novel=None)
        assert set(cells.obs) == before["obs"] | KEYS - {"my_novel"}
        assert set(cells.obsm) == {"X_my", "my_proba"}
        assert set(cells.uns["my"]) == {"classes", "params", "versions", "audit"}
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
