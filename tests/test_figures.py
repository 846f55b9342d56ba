"""The figures of an annotation: what they draw, in which order, and that it is legible."""

import itertools

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgba
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from synthetic import FAST, MARKERS, simulate_joint, simulate_sides
from synthetic import TYPES as SIMULATED

import sctool
from sctool.pl._figure import COLOR_BLIND_SAFE, UNASSIGNED

#: Predicted and true type, score, status, donor and cluster of twelve cells.
CELLS = [
    ("T", "T", 0.9, "assigned", "x", "1"),
    ("T", "T", 0.8, "assigned", "x", "1"),
    ("T", "B", 0.4, "ambiguous", "x", "1"),
    ("T", "T", 0.7, "assigned", "y", "1"),
    ("B", "B", 1.0, "assigned", "x", "0"),
    ("B", "B", 1.0, "assigned", "y", "0"),
    ("B", "T", 0.8, "assigned", "y", "0"),
    ("novel_1", "DC", 0.6, "novel", "y", "0"),
    ("novel_1", "DC", 0.6, "novel", "y", "2"),
    ("Mono", "Mono", 0.5, "doublet", "y", "2"),
    (None, "T", 0.0, None, "y", "2"),
    ("T", None, 0.95, "assigned", None, None),
]
TYPES = ["T", "B", "Mono", "novel_1"]
COLORS = ["#112233", "#445566", "#778899", "#aabbcc"]


def annotated() -> ad.AnnData:
    """Cells as ``tl.annotate`` leaves them, with the colours of a reference."""
    columns = ["sctool", "truth", "sctool_score", "sctool_status", "donor", "leiden"]
    obs = pd.DataFrame(CELLS, columns=columns, index=[f"c{i}" for i in range(len(CELLS))])
    obs["sctool"] = pd.Categorical(obs["sctool"], TYPES)
    obs["sctool_status"] = obs["sctool_status"].astype("category")
    adata = ad.AnnData(
        np.arange(len(CELLS) * 3, dtype=np.float32).reshape(-1, 3),
        obs=obs,
        var=pd.DataFrame(index=["g1", "g2", "g3"]),
    )
    adata.obsm["X_umap"] = np.c_[np.arange(len(CELLS)), -np.arange(len(CELLS))].astype(float)
    adata.uns["sctool_colors"] = COLORS
    adata.uns["sctool"] = {
        "classes": np.array(TYPES, dtype=object),
        "novel": pd.DataFrame(
            {"n_cells": [2], "nearest": ["B"], "distance": [0.2], "markers": ["g3, gone, g1"]},
            index=["novel_1"],
        ),
    }
    return adata


def many(n_types: int = 60) -> ad.AnnData:
    """Cells of many types with long names, without colours."""
    names = [f"CD4-positive, alpha-beta T cell {i:02d}" for i in range(n_types)]
    rng, n = np.random.default_rng(0), 5 * n_types
    codes = np.arange(n) % n_types
    obs = pd.DataFrame(
        {
            "sctool": pd.Categorical.from_codes(codes, names),
            "sctool_score": rng.random(n),
            "sctool_status": pd.Categorical(np.resize(["assigned", "novel"], n)),
            "donor": np.resize(["x", "y", "z"], n),
            "label": [f"cluster {i}" for i in codes],
        },
        index=[f"c{i}" for i in range(n)],
    )
    adata = ad.AnnData(obs=obs)
    adata.obsm["X_umap"] = rng.normal(size=(n, 2))
    return adata


def overlapping(texts: list[Text]) -> list[tuple[str, str]]:
    """Pairs of texts that overlap when they are drawn, by more than a pixel."""
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t.get_text()]
    return [
        (one, other)
        for (one, a), (other, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


def outside(texts: list[Text]) -> list[str]:
    """Texts that are cut by the edge of the figure."""
    found = []
    for text in texts:
        box, edge = text.get_window_extent(), text.figure.bbox
        if box.x0 < -1 or box.y0 < -1 or box.x1 > edge.x1 + 1 or box.y1 > edge.y1 + 1:
            found.append(text.get_text())
    return found


def rows(ax: Axes) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def bars(ax: Axes) -> list[Rectangle]:
    return [p for p in ax.patches if isinstance(p, Rectangle)]


def keys(ax: Axes) -> dict[str, str]:
    """Entries of the legend and their colours."""
    legend = ax.get_legend()
    colors = [to_hex(handle.get_color()) for handle in legend.legend_handles]
    return dict(zip([t.get_text() for t in legend.get_texts()], colors, strict=True))


# -- annotation ----------------------------------------------------------------------------------


def test_annotation_draws_type_score_and_status_of_each_cell():
    adata = annotated()
    types, score, status = sctool.pl.annotation(adata)
    assert [ax.get_title() for ax in (types, score, status)] == [
        "predicted type",
        "score",
        "status",
    ]
    (points,) = types.collections
    np.testing.assert_allclose(points.get_offsets(), adata.obsm["X_umap"])
    color = dict(zip(TYPES, COLORS, strict=True)) | {None: UNASSIGNED}
    expected = [to_rgba(color[cell[0]]) for cell in CELLS]
    np.testing.assert_allclose(points.get_facecolor(), expected)
    assert keys(types) == {
        **dict(zip(TYPES, COLORS, strict=True)),
        "unassigned": UNASSIGNED.lower(),
    }
    # the doubtful cells on top
    (points,) = score.collections
    drawn = np.asarray(points.get_array())
    assert list(drawn) == sorted(adata.obs["sctool_score"], reverse=True)
    np.testing.assert_allclose(adata.obs["sctool_score"].iloc[points.get_offsets()[:, 0]], drawn)
    assert points.get_clim() == (0, 1)
    n_cells = [len(collection.get_offsets()) for collection in status.collections]
    assert dict(zip(keys(status), n_cells, strict=True)) == {
        "assigned": 7,
        "ambiguous": 1,
        "novel": 2,
        "doublet": 1,
    }


def test_annotation_says_how_to_make_a_missing_embedding():
    adata = annotated()
    adata.obsm["X_other"] = adata.obsm.pop("X_umap")[:, ::-1]
    with pytest.raises(KeyError, match=r"found \['X_other'\].*sc.pp.neighbors.*use_rep='X_sctool'"):
        sctool.pl.annotation(adata)
    for basis in ("other", "X_other"):
        points = sctool.pl.annotation(adata, basis=basis)[0].collections[0]
        np.testing.assert_allclose(points.get_offsets(), adata.obsm["X_other"])


def test_annotation_takes_three_axes():
    with pytest.raises(ValueError, match="ax has 2 axes: pass three"):
        sctool.pl.annotation(annotated(), ax=plt.subplots(1, 2)[1])


# -- composition ---------------------------------------------------------------------------------


def test_bars_are_the_shares_of_the_types():
    ax = sctool.pl.composition(annotated(), "donor")
    assert rows(ax) == ["x (4)", "y (7)"]
    long = np.array([bar.get_width() for bar in bars(ax)]).reshape(-1, 2)
    expected = [[3 / 4, 1 / 7], [1 / 4, 2 / 7], [0, 1 / 7], [0, 2 / 7], [0, 1 / 7]]
    np.testing.assert_allclose(long, expected)
    left = np.array([bar.get_x() for bar in bars(ax)]).reshape(-1, 2)
    np.testing.assert_allclose(left[1:], np.cumsum(expected, axis=0)[:-1])
    assert [to_hex(bar.get_facecolor()) for bar in bars(ax)][::2] == [*COLORS, UNASSIGNED.lower()]
    assert list(keys(ax)) == [*TYPES, "unassigned"]
    top, bottom = (bar.get_window_extent().y0 for bar in bars(ax)[:2])
    assert top > bottom


def test_without_stored_colours_they_are_colour_blind_safe():
    adata = annotated()
    del adata.uns["sctool_colors"]
    ax = sctool.pl.composition(adata, "donor")
    assert list(keys(ax).values())[:4] == [color.lower() for color in COLOR_BLIND_SAFE[:4]]
    assert "sctool_colors" not in adata.uns


@pytest.mark.parametrize("draw", [sctool.pl.composition, sctool.pl.agreement])
def test_samples_and_clusters_must_exist(draw):
    adata = annotated()
    with pytest.raises(KeyError, match=r"'batch' is not in adata.obs: found \['sctool', 'truth'"):
        draw(adata, "batch")
    adata.obs["batch"] = np.nan
    with pytest.raises(ValueError, match=r"adata.obs\['batch'\] has only missing values"):
        draw(adata, "batch")
    with pytest.raises(KeyError, match=r"call sctool.tl.annotate\(..., key_added='mine'\) first"):
        draw(adata, "donor", key="mine")


# -- confidence ----------------------------------------------------------------------------------


def test_boxes_are_the_quartiles_sorted_by_the_median():
    ax = sctool.pl.confidence(annotated())
    assert rows(ax) == ["B (3)", "T (5)", "novel_1 (2)", "Mono (1)"]
    t = [0.9, 0.8, 0.4, 0.7, 0.95]
    box = bars(ax)[1]
    np.testing.assert_allclose([box.get_x(), box.get_x() + box.get_width()], [0.7, 0.9])
    assert [to_hex(bar.get_facecolor()) for bar in bars(ax)] == [COLORS[i] for i in (1, 0, 3, 2)]
    whiskers, _, median = ax.collections
    np.testing.assert_allclose(whiskers.get_segments()[1][:, 0], np.quantile(t, [0.05, 0.95]))
    np.testing.assert_allclose(median.get_segments()[1][:, 0], [0.8, 0.8])
    # the order of the rows on the page
    assert bars(ax)[0].get_window_extent().y0 > bars(ax)[3].get_window_extent().y1


# -- risk ----------------------------------------------------------------------------------------


def test_risk_is_the_error_of_the_cells_with_the_highest_scores():
    adata = annotated()
    ax = sctool.pl.risk(adata, "truth")
    curve, all_cells = ax.lines
    kept, error = curve.get_data()
    # by score: 1.0 twice, 0.9, 0.8 twice (one wrong), 0.7, 0.6 twice (both without the true name),
    # 0.5, 0.4 (wrong), 0.0 (no name)
    np.testing.assert_allclose(kept, np.array([2, 3, 5, 6, 8, 9, 10, 11]) / 11)
    np.testing.assert_allclose(error, [0, 0, 1 / 5, 1 / 6, 3 / 8, 3 / 9, 4 / 10, 5 / 11])
    np.testing.assert_allclose(all_cells.get_ydata(), 5 / 11)
    (dot,) = ax.collections
    np.testing.assert_allclose(dot.get_offsets(), [[6 / 11, 1 / 6]])
    adata.obs["nothing"] = None
    with pytest.raises(ValueError, match="'nothing'"):
        sctool.pl.risk(adata, "nothing")


# -- agreement -----------------------------------------------------------------------------------


def test_clusters_are_sorted_along_the_diagonal():
    ax = sctool.pl.agreement(annotated(), "leiden")
    assert rows(ax) == ["1 (4)", "0 (4)", "2 (3)"]
    assert [t.get_text() for t in ax.get_xticklabels()] == [*TYPES, "unassigned"]
    expected = [[1, 0, 0, 0, 0], [0, 3 / 4, 0, 1 / 4, 0], [0, 0, 1 / 3, 1 / 3, 1 / 3]]
    np.testing.assert_allclose(np.asarray(ax.images[0].get_array()), expected)


# -- novel ---------------------------------------------------------------------------------------


def highest(ax: Axes) -> float:
    """Upper end of the scale of colours of a dot plot."""
    (bar,) = (a for a in ax.figure.axes if a.get_title() == "mean expression")
    return bar.get_xlim()[1]


def test_novel_groups_are_drawn_above_their_nearest_types():
    adata = annotated()
    ax = sctool.pl.novel(adata)
    assert rows(ax) == ["novel_1 (2)", "B (3)"]
    # in the order of the table, without the gene that is missing
    assert [t.get_text() for t in ax.get_xticklabels()] == ["g3", "g1"]
    x = np.asarray(adata.X)
    means = [x[[7, 8]][:, [2, 0]].mean(axis=0), x[[4, 5, 6]][:, [2, 0]].mean(axis=0)]
    (dots,) = ax.collections
    expected = plt.get_cmap("Blues")(np.ravel(means) / np.max(means))
    np.testing.assert_allclose(dots.get_facecolor(), expected, atol=0.01)
    assert highest(ax) == pytest.approx(np.max(means))
    assert [t.get_text() for t in sctool.pl.novel(adata, n_genes=1).get_xticklabels()] == ["g3"]


def test_novel_reads_a_layer_or_raw_as_scanpy_does():
    adata = annotated()
    adata.layers["tenfold"] = 10 * adata.X
    one = highest(sctool.pl.novel(adata))
    assert highest(sctool.pl.novel(adata, layer="tenfold")) == pytest.approx(10 * one)
    adata.raw = ad.AnnData(5 * adata.X, var=adata.var)
    assert highest(sctool.pl.novel(adata)) == pytest.approx(5 * one)


def test_novel_says_what_is_missing():
    adata = annotated()
    adata.var_names = ["a", "b", "c"]
    with pytest.raises(KeyError, match=r"none of the marker genes .*g3.* such as .*a.*b.*c"):
        sctool.pl.novel(adata)
    adata.uns["sctool"]["novel"] = adata.uns["sctool"]["novel"].iloc[:0]
    with pytest.raises(ValueError, match="there are no novel groups with marker genes"):
        sctool.pl.novel(adata)
    del adata.uns["sctool"]["novel"]
    with pytest.raises(KeyError, match="call sctool.tl.annotate first"):
        sctool.pl.novel(adata)


# -- legibility ----------------------------------------------------------------------------------


def test_sixty_types_do_not_overlap_in_the_rows():
    ax = sctool.pl.confidence(many())
    ax.figure.draw_without_rendering()
    labels = [*ax.get_yticklabels(), ax.yaxis.label]
    assert len(labels) == 61
    assert overlapping(labels) == []
    assert outside(labels) == []


def test_sixty_clusters_and_types_do_not_overlap_in_a_heat_map():
    ax = sctool.pl.agreement(many(), "label")
    ax.figure.draw_without_rendering()
    labels = [*ax.get_yticklabels(), *ax.get_xticklabels(), ax.xaxis.label, ax.yaxis.label]
    assert len(labels) == 122
    # turned by a right angle, so that the boxes are those of the letters
    assert overlapping(labels) == []
    assert outside(labels) == []


@pytest.mark.parametrize("name", ["annotation", "composition"])
def test_sixty_types_are_numbered_and_listed_below(name):
    adata = many()
    if name == "annotation":
        ax = sctool.pl.annotation(adata)[0]
        written = {t.get_text() for t in ax.texts}
    else:
        ax = sctool.pl.composition(adata, "donor")
        written = {t.get_text() for t in ax.texts}
    figure = ax.figure
    figure.draw_without_rendering()
    (legend,) = figure.legends
    texts = legend.get_texts()
    names = adata.obs["sctool"].cat.categories
    assert [t.get_text() for t in texts] == [f"{i} {name}" for i, name in enumerate(names, 1)]
    assert written == {str(i) for i in range(1, 61)}
    assert overlapping(texts) == []
    assert outside(texts) == []
    assert legend.get_window_extent().y1 < ax.get_window_extent().y0
    assert figure.get_figwidth() < 13


def test_nine_types_have_their_legend_beside_the_axes():
    adata = many(9)
    panels = [*sctool.pl.annotation(adata), sctool.pl.composition(adata, "donor")]
    for figure in {id(ax.figure): ax.figure for ax in panels}.values():
        figure.draw_without_rendering()
    for i in (0, 2, 3):
        legend = panels[i].get_legend()
        assert legend.get_window_extent().x0 > panels[i].get_window_extent().x1
        assert outside(legend.get_texts()) == []
        assert not panels[i].texts
    assert panels[0].get_legend().get_window_extent().x1 < panels[1].get_window_extent().x0


# -- saving --------------------------------------------------------------------------------------


def test_figures_are_saved_where_scanpy_saves_its_own(figdir):
    sc.settings.file_format_figs = "svg"
    sctool.pl.risk(annotated(), "truth")
    assert not figdir.exists() or list(figdir.iterdir()) == []
    for save, name in [(True, ".svg"), ("_x", "_x.svg"), ("_x.pdf", "_x.pdf")]:
        sctool.pl.risk(annotated(), "truth", save=save)
        assert (figdir / f"sctool_risk{name}").stat().st_size > 1000
    sc.settings.autosave = True
    sctool.pl.reliability(annotated(), "truth")
    sctool.pl.risk(annotated(), "truth", save=False)
    assert len(list(figdir.iterdir())) == 4
    assert (figdir / "sctool_reliability.svg").exists()


# -- markers of known types, and training --------------------------------------------------------


def test_markers_are_the_references_and_drawn_for_both_sides():
    adata, ref = simulate_sides()
    wrong = adata.obs["truth"].cat.rename_categories({"B": "DC", "DC": "B"})
    adata.obs["sctool"] = wrong.astype(object).where(wrong != "Mono", "novel_1")
    before = adata.copy(), ref.copy()
    ax = sctool.pl.markers(adata, ref, n_genes=4)
    rows = [text.get_text() for text in ax.get_yticklabels()]
    assert rows == [
        f"{name}, {side}"
        for name in ("B", "CD4 T/NK", "DC")  # no cell is named Mono, and novel_1 is unknown
        for side in ("reference (30)", "query (20)")
    ]
    genes = [text.get_text() for text in ax.get_xticklabels()]
    assert all(set(genes[4 * i : 4 * i + 4]) <= set(MARKERS[SIMULATED[i]]) for i in range(3))
    # the reference's B cells express the markers of B, the query's "B cells" do not
    dots = next(c for c in ax.collections if len(c.get_offsets()) == 72)
    dark = 1 - dots.get_facecolors()[:, :3].mean(axis=1).reshape(6, 12)
    assert dark[0, :4].mean() > dark[1, :4].mean() + 0.1
    assert dark[2, 4:8].mean() > dark[0, 4:8].mean() + 0.1
    assert dark[3, 4:8].mean() > dark[1, 4:8].mean() + 0.1
    for now, then in zip((adata, ref), before, strict=True):
        pd.testing.assert_frame_equal(now.obs, then.obs)
        assert (now.X != then.X).nnz == 0
        assert list(now.uns) == list(then.uns)


def test_markers_say_when_there_is_no_common_type():
    adata, ref = simulate_sides()
    adata.obs["sctool"] = "novel_1"
    with pytest.raises(ValueError, match="no type with two cells in the reference"):
        sctool.pl.markers(adata, ref)


def test_history_has_a_panel_for_each_network():
    joint = simulate_joint()
    sctool.model.SCNYM.setup_anndata(joint, "cell_type")
    model = sctool.model.SCNYM(joint)
    with pytest.raises(ValueError, match="no history to draw"):
        sctool.pl.history(model)
    model.train(**FAST)
    (ax,) = sctool.pl.history(model)
    assert ax.get_title() == "SCNYM"
    drawn = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    recorded = {name: table.to_numpy(dtype=float).ravel() for name, table in model.history.items()}
    np.testing.assert_allclose(drawn["loss"], recorded["loss_train"])
    np.testing.assert_allclose(drawn["loss, held-out"], recorded["loss_validation"])
    (right,) = [other for other in ax.figure.axes if other is not ax]
    accuracy = right.get_lines()[0].get_ydata()
    np.testing.assert_allclose(accuracy, recorded["accuracy_validation"])
    assert ((accuracy >= 0) & (accuracy <= 1)).all()

    table = model.history
    model.history_ = {f"{net}_{k}": v for net in ("adversary", "other") for k, v in table.items()}
    first, second = sctool.pl.history(model)
    assert [first.get_title(), second.get_title()] == ["adversary", "other"]
    assert {line.get_label() for line in first.get_lines()} == set(drawn)
    with pytest.raises(ValueError, match="ax has 1 axes: pass 2"):
        sctool.pl.history(model, ax=[ax])


def test_a_model_without_epochs_says_so():
    adata, ref = simulate_sides()
    model = sctool.tl.annotate(adata, ref, method="logistic", return_model=True)
    with pytest.raises(ValueError, match="LogisticClassifier has no history to draw: it is not"):
        sctool.pl.history(model)
    with pytest.raises(TypeError, match="must be a model of sctool"):
        sctool.pl.history(adata)
