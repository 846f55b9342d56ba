"""``pl.mls``: one circle per type, in rows, with the types' colours and a key."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from scanpy.plotting.palettes import default_28

import sctool
from sctool.pl._figure import COLOR_BLIND_SAFE

N = 120


def embedded(n_types: int) -> ad.AnnData:
    """Cells as ``tl.annotate`` leaves them, of types that take turns, without colours."""
    names = [f"type {i:02d}" for i in range(n_types)]
    angle = np.random.default_rng(0).uniform(0, 2 * np.pi, (N, n_types))
    obs = pd.DataFrame(
        {"sctool": pd.Categorical.from_codes(np.arange(N) % n_types, names)},
        index=[f"c{i}" for i in range(N)],
    )
    adata = ad.AnnData(obs=obs)
    circles = np.stack([np.cos(angle), np.sin(angle)], axis=2)
    adata.obsm["X_sctool"] = circles.reshape(N, -1).astype(np.float32)
    adata.uns["sctool"] = {"classes": np.array(names, dtype=object)}
    return adata


def drawn(ax: plt.Axes) -> tuple[list[np.ndarray], list[tuple[float, ...]]]:
    """Points of each circle's own cells, and their colours; those of others are grey."""
    own = [c for c in ax.collections if len(np.unique(c.get_facecolor()[0, :3])) > 1]
    return [np.asarray(c.get_offsets()) for c in own], [tuple(c.get_facecolor()[0]) for c in own]


@pytest.mark.parametrize(("n_types", "n_columns", "n_rows"), [(2, 2, 1), (5, 5, 1), (19, 5, 4)])
def test_circles_are_in_rows(n_types, n_columns, n_rows):
    adata = embedded(n_types)
    ax = sctool.pl.mls(adata)
    centres = np.array([text.get_position() for text in ax.texts])
    assert len(centres) == n_types
    assert len(np.unique(centres[:, 0])) == n_columns
    assert len(np.unique(centres[:, 1])) == n_rows
    width, height = ax.figure.get_size_inches()
    assert max(width, height) <= 11
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    for line in ax.lines:
        x, y = line.get_data()
        assert left < x.min() < x.max() < right
        assert low < y.min() < y.max() < high
    # each on the circle whose name it bears, where the embedding says
    for i, collection in enumerate(ax.collections[1::2]):
        own = (adata.obs["sctool"].cat.codes == i).to_numpy()
        expected = centres[i] + adata.obsm["X_sctool"][own, 2 * i : 2 * i + 2]
        np.testing.assert_allclose(collection.get_offsets(), expected, atol=1e-5)
    ax.figure.canvas.draw()


@pytest.mark.parametrize(("n_types", "palette"), [(4, COLOR_BLIND_SAFE), (22, default_28)])
def test_without_colours_types_have_safe_ones_or_those_that_scanpy_gives(n_types, palette):
    adata = embedded(n_types)
    colors = [to_rgba(c, 0.7) for c in palette[:n_types]]
    grey = [c for c in colors if len(set(c[:3])) == 1]
    np.testing.assert_allclose(drawn(sctool.pl.mls(adata))[1], [c for c in colors if c not in grey])
    assert set(adata.uns) == {"sctool"}


def test_types_have_their_own_colours_also_of_text():
    adata = embedded(3)
    adata.uns["sctool_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    expected = [to_rgba(c, 0.7) for c in adata.uns["sctool_colors"]]
    assert drawn(sctool.pl.mls(adata))[1] == expected
    # a type that no cell has left
    few = adata[adata.obs["sctool"] != "type 01"].copy()
    few.obs["sctool"] = few.obs["sctool"].cat.remove_unused_categories()
    few.uns["sctool_colors"] = ["#ff0000", "#0000ff"]
    assert drawn(sctool.pl.mls(few))[1] == [expected[0], expected[2]]
    adata.obs["text"] = adata.obs["sctool"].astype(str)
    adata.uns["text_colors"] = adata.uns["sctool_colors"]
    assert drawn(sctool.pl.mls(adata, color="text"))[1] == expected


def test_the_key_says_what_is_coloured():
    adata = embedded(4)
    adata.obs["who"] = "type 09"
    said = [text.get_text() for text in sctool.pl.mls(adata).get_legend().get_texts()]
    assert said == ["cells of the circle's type (obs['sctool'])", "other cells"]
    ax = sctool.pl.mls(adata, color="who")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["other cells"]


def test_cells_without_an_embedding_are_not_drawn():
    # as annotate leaves cells that express nothing
    adata = embedded(4)
    adata.obsm["X_sctool"][3] = 0
    adata.obs.loc[adata.obs_names[3], "sctool"] = np.nan
    ax = sctool.pl.mls(adata)
    assert sum(len(c.get_offsets()) for c in ax.collections) == 4 * (N - 1)
    assert ax.texts[3].get_text() == f"type 03\n{N // 4 - 1} cells"


def test_a_single_type_needs_no_list_and_none_is_refused():
    adata = embedded(4)
    assert [t.get_text().split("\n")[0] for t in sctool.pl.mls(adata, types="type 02").texts] == [
        "type 02"
    ]
    with pytest.raises(ValueError, match=r"types=\[\]: pass at least one type"):
        sctool.pl.mls(adata, types=[])
