"""The one-file HTML report on an annotation."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from anndata import AnnData, read_h5ad
from synthetic import without_pulling

import sctool
from sctool import _slots
from sctool._report import _words
from sctool._report._content import count_types, describe
from sctool._report._dots import dot_plot
from sctool._report._map import cell_map, sample
from sctool.cli import main

TYPES = ["B", "CD4 T/NK", "<script>alert(1)</script>"]
NAMES = [*TYPES, "novel_1"]
GENES = ["M1", "M2", "OTHER", "REST"]
STATUSES = ["assigned", "ambiguous", "novel", "doublet", "low_quality"]
#: Type and status of each cell: 6 B (one ambiguous), 3 T (one a doublet), 1 of the third type and
#: 4 novel.
CODES = np.array([0] * 6 + [1] * 3 + [2] + [3] * 4)
STATUS = np.array([1, 0, 0, 0, 0, 0, 3, 0, 0, 0] + [2] * 4)
SCORE = np.array([0.4, 0.9, 0.9, 0.9, 0.9, 0.8, 0.9, 0.7, 0.8, 1.0, 0.9, 0.9, 0.9, 0.9])


def annotated(
    codes: np.ndarray = CODES,
    status: np.ndarray = STATUS,
    score: np.ndarray = SCORE,
    *,
    unseen: tuple[int, ...] = (),
    key: str = "sctool",
) -> AnnData:
    """Cells as ``annotate`` leaves them, but without training; each has 10 counts."""
    n = len(codes)
    novel = codes == 3
    counts = np.where(novel[:, None], [3, 2, 0, 5], [0, 0, 5, 5]).astype(np.float32)
    adata = AnnData(
        sp.csr_matrix(counts),
        obs=pd.DataFrame(index=[f"cell{i}" for i in range(n)]),
        var=pd.DataFrame(index=GENES),
    )
    proba = np.full((n, len(NAMES)), (1 - score[:, None]) / (len(NAMES) - 1))
    proba[np.arange(n), codes] = score
    reason = np.select(
        [status == 1, status == 3], ["probability 0.40", "mixture of B + CD4 T/NK"], ""
    ).astype(object)
    table = pd.DataFrame(
        {"n_cells": [int(novel.sum())], "nearest": "B", "distance": 0.25, "markers": "M1, M2"},
        index=["novel_1"],
    )
    _slots.write_annotation(
        adata,
        key,
        classes=TYPES,
        novel_classes=["novel_1"],
        novel_table=table,
        n_novel={"n": 1, "low": 1, "high": 3},
        colors={},
        proba=proba,
        latent=np.random.default_rng(0).standard_normal((n, 3)),
        novel_score=novel.astype(float),
        novel=novel,
        unseen=np.isin(np.arange(n), unseen),
        verdicts=_slots.Verdicts(
            status=pd.Categorical.from_codes(status, STATUSES),
            reason=reason,
            sets=proba > 0.1,
            safe=np.where(novel, "unknown", np.where(codes == 0, "B", "B / CD4 T/NK")),
            pooled=np.zeros(n, dtype=int),
            groups=pd.DataFrame(
                {
                    "n_cells": [n],
                    "label": "B",
                    "share": 6 / n,
                    "second_label": "novel_1",
                    "second_share": 4 / n,
                    "entropy": 1.83,
                    "novel_score": 0.29,
                },
                index=["cluster & 0"],
            ),
            alarms=["shift: the mean score is 0.60, but 0.95 for held-out cells"],
        ),
        params={
            "method": "auto",
            "preset": "default",
            "novel": "auto",
            "risk": 0.05,
            "layer": None,
        },
        versions={"python": "3.11.0", "sctool": "0.1.0"},
        audit=["query: read count values from X", "genes: 4 are shared", "something else"],
    )
    adata.obsm["X_umap"] = np.arange(2.0 * n).reshape(n, 2)
    return adata


class Page(HTMLParser):
    """What a page holds: its elements with their attributes, and its text outside of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.tables, self.data, self._in_cell = "", [], "", False
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside.append(tag if dict(attrs).get("type") is None else "data")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._inside.pop()
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data):
        if self._inside:
            self.data += data if self._inside[-1] == "data" else ""
            return
        self.text += data
        if self._in_cell:
            self.tables[-1][-1][-1] += data.strip()

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def written(adata: AnnData, folder: Path, **kwargs) -> str:
    assert sctool.tl.report(adata, folder / "report.html", **kwargs) is None
    return (folder / "report.html").read_text(encoding="utf-8")


# -- what it says --------------------------------------------------------------------------------


def test_types_are_counted_by_status():
    content = describe(annotated(), "sctool")
    types = content.types
    assert list(types.index) == ["B", "novel_1", "CD4 T/NK", "<script>alert(1)</script>"]
    assert list(types["n_cells"]) == [6, 4, 3, 1]
    np.testing.assert_allclose(types["share"], np.array([6, 4, 3, 1]) / 14)
    assert list(types["is_novel"]) == [False, True, False, False]
    assert list(types["assigned"]) == [5, 0, 2, 1]
    assert list(types["ambiguous"]) == [1, 0, 0, 0]
    assert list(types["novel"]) == [0, 4, 0, 0]
    assert list(types["doublet"]) == [0, 0, 1, 0]
    assert "low_quality" not in types  # no cell has it
    assert types.loc["B", "median"] == pytest.approx(0.9)
    assert types.loc["CD4 T/NK", "q25"] == pytest.approx(0.75)
    assert types.loc["B", "below_half"] == pytest.approx(1 / 6)


def test_statuses_have_their_meaning_and_reasons():
    statuses = describe(annotated(), "sctool").statuses
    assert list(statuses.index) == ["assigned", "ambiguous", "novel", "doublet"]
    assert list(statuses["n_cells"]) == [8, 1, 4, 1]
    assert statuses.loc["ambiguous", "reasons"] == [("score below 0.5", 1)]
    assert statuses.loc["doublet", "reasons"] == [("mixture of B + CD4 T/NK", 1)]


def test_the_summary_is_in_plain_words():
    assert describe(annotated(), "sctool").summary == [
        "14 cells: 3 known cell types and 1 novel group.",
        "The most frequent: B (42.9%), novel_1 (28.6%) and CD4 T/NK (21.4%).",
        "By status: 57.1% assigned, 7.1% ambiguous, 28.6% novel and 7.1% doublet.",
        "1 alarm to look at first.",
    ]


def test_cells_without_a_type_are_said_to_have_none():
    content = describe(annotated(unseen=(9,)), "sctool")
    assert "1 cell without a type, for they express none of the genes" in content.summary[-2]
    assert content.types.loc["(no type)", "n_cells"] == 1
    assert content.summary[0] == "14 cells: 2 known cell types and 1 novel group."
    # it is not a name that may be wrong
    assert content.expected_error == pytest.approx(1 - SCORE[:9].mean())


def test_an_alarm_comes_with_what_to_do():
    ((alarm, advice),) = describe(annotated(), "sctool").alarms
    assert alarm == "Shift: the mean score is 0.60, but 0.95 for held-out cells."
    assert advice.startswith("Expect more errors")


def test_every_alarm_of_the_library_has_its_advice():
    from sctool import _verdicts

    novel = pd.DataFrame({"markers": ["FOS, JUN, EGR1, UBB"]}, index=["novel_1"])
    alarms = [
        *_verdicts.alarm_genes(300),
        *_verdicts.alarm_labels(np.array([0, 1]), ["a", "b"]),
        *_verdicts.alarm_shift(np.array([0.5]), np.array([0.9])),
        *_verdicts.alarm_shares(
            np.array([0] * 9 + [1]), np.array([0] + [1] * 99), None, ["a", "b"]
        ),
        *_verdicts.alarm_agreement(np.array([0, 0]), np.array([1, 1]), ["a", "b"]),
        *_verdicts.alarm_sensitivity({"a": 0.1}),
        *_verdicts.alarm_programmes(novel),
        "risk: no name is safe, because no cell could be held out",
    ]
    assert len(alarms) == 8
    advice = [do for _, do in _words.advise(alarms)]
    assert all(advice)
    assert len(set(advice)) == 8


def test_the_audit_is_sorted_by_topic():
    audit = describe(annotated(), "sctool").audit
    assert [(topic, notes) for topic, _, notes in audit] == [
        ("The query: the cells that were annotated", ["Read count values from X."]),
        ("Genes", ["4 are shared."]),
        ("Other notes", ["Something else."]),
    ]


def test_the_call_is_the_one_that_was_made():
    adata = annotated(key="mine")
    call = describe(adata, "mine").call
    made = {}
    scope = {"adata": "the query", "ref": "the reference"}
    exec(call.replace("sctool.tl.annotate(", "record(").strip(), scope | {"record": _record(made)})
    assert made == {"method": "auto", "novel": "auto", "risk": 0.05, "key_added": "mine"}


def _record(made: dict):
    def record(adata, ref, **kwargs) -> None:
        assert (adata, ref) == ("the query", "the reference")
        made.update(kwargs)

    return record


def test_values_from_a_file_are_shown_as_they_were_given(tmp_path):
    adata = annotated()
    given = {"labels_key": ["lineage", "type"], "model_kwargs": {"n": 3}, "ignore_case": False}
    adata.uns["sctool"]["params"] |= _slots.storable(given)
    adata.write_h5ad(tmp_path / "a.h5ad")
    call = describe(read_h5ad(tmp_path / "a.h5ad"), "sctool").call
    for said in ("labels_key=['lineage', 'type']", "model_kwargs={'n': 3}", "ignore_case=False"):
        assert said in call


def test_safe_names_have_their_kind():
    content = describe(annotated(), "sctool")
    assert content.risk == 0.05
    assert content.safe["n_cells"].to_dict() == {"B": 6, "unknown": 4, "B / CD4 T/NK": 4}
    kinds = {"B": "type", "unknown": "unknown", "B / CD4 T/NK": "group of types"}
    assert content.safe["kind"].to_dict() == kinds


def test_an_evaluation_is_shown_if_there_is_one():
    adata = annotated()
    assert describe(adata, "sctool").evaluation == []
    adata.obs["truth"] = [NAMES[c] for c in CODES]
    sctool.tl.evaluate(adata, "truth")
    assert ("seen_accuracy", 1.0) in [row[:2] for row in describe(adata, "sctool").evaluation]


def test_cells_that_were_removed_since_are_not_counted():
    content = describe(annotated()[:12].copy(), "sctool")
    assert content.novel.loc["novel_1", "n_cells"] == 2
    assert len(describe(annotated()[:10].copy(), "sctool").novel) == 0


def test_colours_are_those_of_scanpy_and_nothing_else():
    adata = annotated()
    adata.uns["sctool_colors"] = ["red", "red; background: url(x)", "#00ff00", "0.5"]
    colors = describe(adata, "sctool").colors
    assert colors["B"] == "#ff0000"
    assert colors["novel_1"] == "#808080"
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in colors.values())


# -- map and dot plot ----------------------------------------------------------------------------


def decoded(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def of_map(adata: AnnData, basis: str | None = None) -> dict:
    content = describe(adata, "sctool")
    return cell_map(adata, "sctool", content.cells, content.colors, basis)


def test_the_map_holds_every_cell():
    points = of_map(annotated())
    assert points["n"] == 14
    x = decoded(points["x"], "<u2")
    assert (x.min(), x.max()) == (0, 65535)
    cell = np.rint(x / 65535 * 13).astype(int)  # cells lie on a line, in their order
    assert sorted(cell) == list(range(14))
    layers = {layer["label"]: layer for layer in points["layers"]}
    assert list(layers) == ["type", "status", "score", "novelty score"]
    for label, values in {"type": [NAMES[c] for c in CODES]}.items():
        codes = decoded(layers[label]["values"], "<u2")
        assert [layers[label]["names"][c] for c in codes] == [values[c] for c in cell]
    score = decoded(layers["score"]["values"], "u1") / 255
    np.testing.assert_allclose(score, SCORE[cell], atol=1 / 255)
    status = layers["status"]
    found = [status["names"][c] for c in decoded(status["values"], "<u2")]
    assert found == [STATUSES[STATUS[c]] for c in cell]


def test_the_basis_is_chosen_as_in_scanpy():
    adata = annotated()
    adata.obsm["X_pca"] = np.zeros((14, 5))
    for basis in ("pca", "X_pca"):
        assert "obsm['X_pca']" in of_map(adata, basis)["caption"]
    assert "obsm['X_umap']" in of_map(adata)["caption"]
    with pytest.raises(KeyError, match=r"basis='tsne' is not in adata\.obsm; found \["):
        of_map(adata, "tsne")


def test_cells_without_a_position_are_not_drawn():
    adata = annotated()
    adata.obsm["X_umap"][:3] = np.nan
    assert of_map(adata)["n"] == 11


def test_without_a_umap_one_is_computed_of_the_embedding(monkeypatch):
    adata = annotated(np.tile(CODES, 3), np.tile(STATUS, 3), np.tile(SCORE, 3))
    del adata.obsm["X_umap"]
    seen = []

    def neighbors(cells, use_rep):
        seen.append(cells.obsm[use_rep])

    def umap(cells):
        cells.obsm["X_umap"] = cells.obsm["X_latent"][:, :2]

    monkeypatch.setattr(sc.pp, "neighbors", neighbors)
    monkeypatch.setattr(sc.tl, "umap", umap)
    before = set(adata.obsm), set(adata.uns)
    points = of_map(adata)
    assert points["n"] == 42
    assert "A UMAP of the model's embedding, obsm['X_sctool']" in points["caption"]
    np.testing.assert_allclose(np.sort(seen[0][:, 0]), np.sort(adata.obsm["X_sctool"][:, 0]))
    assert (set(adata.obsm), set(adata.uns)) == before
    assert of_map(adata[:10].copy())["n"] == 0


@pytest.mark.slow
def test_scanpy_computes_the_umap():
    adata = annotated(np.tile(CODES, 3), np.tile(STATUS, 3), np.tile(SCORE, 3))
    del adata.obsm["X_umap"]
    assert of_map(adata)["n"] == 42


def test_the_sample_keeps_rare_types():
    types = np.array(["common"] * 5000 + ["rare"] * 30 + ["some"] * 500)
    chosen = sample(types, n=400, n_rare=50)
    assert len(chosen) == len(set(chosen)) == 400
    n = pd.Series(types[chosen]).value_counts()
    assert n["rare"] == 30
    assert n["some"] >= 50
    assert n["common"] > 200
    first = types[chosen][:40]  # in random order: no type is drawn on top
    assert len(set(first)) > 1


def test_the_dot_plot_has_the_markers_values():
    adata = annotated()
    content = describe(adata, "sctool")
    dots = dot_plot(adata, content.cells["type"], content.novel, content.params)
    assert list(dots.mean.index) == ["novel_1", "B", "all other cells"]
    assert list(dots.mean.columns) == ["M1", "M2"]
    # 3 and 2 of 10 counts
    np.testing.assert_allclose(dots.mean.loc["novel_1"], np.log1p([3000, 2000]), rtol=1e-5)
    assert (dots.mean.loc["B"] == 0).all()
    assert (dots.share.loc["novel_1"] == 1).all()
    assert (dots.relative.loc["novel_1"] == 1).all()


def test_the_dot_plot_finds_genes_by_another_column_and_in_logarithms():
    adata = annotated()
    content = describe(adata, "sctool")
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    adata.var["symbol"] = adata.var_names
    adata.var_names = [f"ENSG{i:011d}.1" for i in range(4)]
    dots = dot_plot(adata, content.cells["type"], content.novel, content.params)
    np.testing.assert_allclose(dots.mean.loc["novel_1"], np.log1p([3000, 2000]), rtol=1e-5)


def test_without_values_there_is_no_dot_plot(tmp_path):
    adata = annotated()
    adata.X = adata.X.toarray() - 1
    assert '<svg class="dots"' not in written(adata, tmp_path)


# -- the page ------------------------------------------------------------------------------------


def test_the_page_holds_what_the_tables_hold(tmp_path):
    page = Page(written(annotated(), tmp_path))
    types = page.tables[0]
    assert types[0] == ["Type", "Cells", "Share", "assigned", "ambiguous", "novel", "doublet"]
    assert types[1] == ["B", "6", "42.9%", "5", "1", "0", "0"]
    assert types[2][0] == "novel_1"
    novel = next(t for t in page.tables if t[0][0] == "Group" and "Nearest type" in t[0])
    assert novel[1] == ["novel_1", "4", "28.6%", "B", "0.250", "M1, M2"]
    groups = next(t for t in page.tables if "Entropy" in t[0])
    assert groups[1][:3] == ["cluster & 0", "14", "B"]
    for said in (
        "Expect more errors",
        "estimated as 1, with an interval from 1 to 3",
        "method='auto'",
        "sctool 0.1.0",
        "M1 in novel_1: 100% of the cells, mean 8.01",
    ):
        assert said in page.text


def test_names_do_no_harm(tmp_path):
    html = written(annotated(), tmp_path)
    assert "<script>alert" not in html
    page = Page(html)
    assert page.text.count("<script>alert(1)</script>") >= 2  # as text, in the tables
    assert len(page.of("script")) == 2  # the data of the map, and ours
    assert TYPES[2] in json.loads(page.data)["layers"][0]["names"]


def test_the_page_requests_nothing(tmp_path):
    html = written(annotated(), tmp_path)
    page = Page(html)
    links = [v for _, attrs in page.elements for k, v in attrs.items() if k in ("src", "href")]
    assert [link for link in links if not link.startswith("#")] == ["data:,"]
    assert not re.search(r"url\(|@import|https?:|fetch\(|XMLHttp", html)
    policy = page.of("meta")[2]["content"]
    assert policy.startswith("default-src 'none'; ")
    anchors = {attrs.get("id") for _, attrs in page.elements}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors


def test_the_page_can_be_read_without_eyes(tmp_path):
    page = Page(written(annotated(), tmp_path))
    assert page.of("html")[0]["lang"] == "en"
    heads = page.of("th")
    assert all(th["scope"] in ("row", "col") for th in heads)
    assert len(page.of("caption")) == len(page.of("table"))
    assert page.of("canvas")[0]["role"] == "img"
    assert "14 cells" in page.of("canvas")[0]["aria-label"]
    assert all("aria-label" in svg or svg["aria-hidden"] == "true" for svg in page.of("svg"))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_100_000_cells_take_less_than_5_mb(tmp_path):
    rng = np.random.default_rng(0)
    n = 100_000
    codes = np.minimum(rng.geometric(0.4, n) - 1, 3)
    adata = annotated(codes, np.where(codes == 3, 2, 0), rng.uniform(0.3, 1, n))
    adata.obsm["X_umap"] = rng.standard_normal((n, 2))
    html = written(adata, tmp_path)
    assert len(html.encode()) < 1e6
    assert "30,000 of the 100,000 cells are drawn" in html
    points = json.loads(Page(html).data)
    assert points["n"] == len(decoded(points["x"], "<u2")) == 30_000


def test_many_types_are_counted_quickly_and_completely():
    codes = np.arange(3000) % 60
    cells = pd.DataFrame(
        {"type": pd.Categorical([f"type {c}" for c in codes]), "score": np.full(3000, 0.8)}
    )
    table = count_types(cells, [])
    assert list(table["n_cells"]) == [50] * 60


@pytest.mark.parametrize("backed", [False, True])
def test_a_plain_annotation_is_enough(backed, tmp_path):
    adata = annotated()
    for column in ("status", "safe", "pooled", "novel", "novel_score"):
        del adata.obs[f"sctool_{column}"]
    kept = {"classes": adata.uns["sctool"]["classes"], "audit": adata.uns["sctool"]["audit"]}
    adata.uns["sctool"] = kept
    adata.write_h5ad(tmp_path / "a.h5ad")
    read = read_h5ad(tmp_path / "a.h5ad", backed="r" if backed else None)
    page = Page(written(read, tmp_path))
    assert page.tables[0][1] == ["B", "6", "42.9%"]
    assert "There are no alarms." in page.text
    assert "There are none. What was searched for" in page.text
    assert "Safe names" not in page.text
    assert "nan" not in page.text.lower()
    assert [layer["label"] for layer in json.loads(page.data)["layers"]] == ["type", "score"]


def test_nothing_is_written_into_the_cells(tmp_path):
    adata = annotated()
    before = adata.copy()
    written(adata, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    assert (set(adata.uns), set(adata.obsm)) == (set(before.uns), set(before.obsm))
    pd.testing.assert_frame_equal(adata.uns["sctool"]["novel"], before.uns["sctool"]["novel"])


def test_the_gene_expression_of_several_modalities_is_reported(tmp_path):
    page = written(annotated(), tmp_path)
    with without_pulling():
        assert written(mudata.MuData({"rna": annotated()}), tmp_path) == page


def test_a_folder_that_is_not_there_is_said_to_be_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder '.*nowhere'"):
        sctool.tl.report(annotated(), tmp_path / "nowhere" / "report.html")


def test_the_same_cells_give_the_same_page(tmp_path):
    assert written(annotated(), tmp_path) == written(annotated(), tmp_path)


def test_a_report_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    page = written(annotated(), tmp_path)
    monkeypatch.setattr(sctool._report, "render", lambda *_: "half a page \ud800")  # not UTF-8
    with pytest.raises(UnicodeEncodeError):
        sctool.tl.report(annotated(), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


# -- in a browser --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """Return a headless Chromium without network, or skip."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    program = shutil.which("google-chrome") or shutil.which("chromium")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no browser: on Debian, apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()


def test_the_page_works_in_a_browser(browser, tmp_path):
    written(annotated(), tmp_path)
    browser.get((tmp_path / "report.html").as_uri())
    run = browser.execute_script
    assert browser.get_log("browser") == []
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"].endswith("willBeSent")]
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}

    column = "return [...document.querySelectorAll('table')[0].tBodies[0].rows]"
    column += ".map(row => row.cells[%d].textContent.trim())"
    head = "document.querySelectorAll('table')[0].tHead.rows[0].cells[%d]"
    press = head + ".querySelector('button').click()"
    run(press % 1)
    assert run(column % 1) == ["6", "4", "3", "1"]
    run(press % 1)
    assert run(column % 1) == ["1", "3", "4", "6"]
    assert run(f"return {head % 1}.getAttribute('aria-sort')") == "ascending"
    run(press % 0)
    assert run(column % 0) == ["<script>alert(1)</script>", "B", "CD4 T/NK", "novel_1"]
    assert run(f"return {head % 1}.getAttribute('aria-sort')") is None

    colors = """const c = document.getElementById('cells'), found = {};
    const p = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
    for (let i = 0; i < p.length; i += 4)
      if (p[i + 3] === 255) found[[p[i], p[i + 1], p[i + 2]]] = true;
    return Object.keys(found)"""
    blue = "31,119,180"  # scanpy's first
    assert blue in run(colors)
    run("document.querySelector('#key li:nth-child(2) button').click()")  # CD4 T/NK alone
    assert blue not in run(colors)
    run("document.querySelector('input[name=layer][value=\"2\"]').click()")
    assert run("return document.getElementById('key').textContent") == "01"

    move = """const c = document.getElementById('cells'), box = c.getBoundingClientRect();
    c.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + 10,
      clientY: box.bottom - 10}));
    return document.getElementById('tip').textContent"""
    assert run(move) == "type: B\nstatus: ambiguous\nscore: 0.40\nnovelty score: 0.00"
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_its_window(browser, tmp_path, width):
    written(annotated(), tmp_path)
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((tmp_path / "report.html").as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


# -- errors --------------------------------------------------------------------------------------


def test_a_wrong_key_names_the_annotations(tmp_path):
    adata = annotated(key="mine")
    with pytest.raises(KeyError, match=r"key='sctool' is not an annotation.*\['mine'\]"):
        sctool.tl.report(adata, tmp_path / "a.html")
    with pytest.raises(KeyError, match=r"found none\. Call sctool\.tl\.annotate first"):
        sctool.tl.report(AnnData(np.ones((3, 2))), tmp_path / "a.html")
    del adata.obs["mine_score"]
    with pytest.raises(KeyError, match=r"obs\['mine_score'\] is missing"):
        sctool.tl.report(adata, tmp_path / "a.html", key="mine")
    assert list(tmp_path.iterdir()) == []


def test_a_clustering_is_no_annotation(tmp_path):
    adata = annotated()
    adata.uns["cicl"] = {"audit": np.array(["clusters"], dtype=object), "n_clusters": {"n": 3}}
    with pytest.raises(KeyError, match=r"key='cicl' is not an annotation.*\['sctool'\]"):
        sctool.tl.report(adata, tmp_path / "a.html", key="cicl")


def test_the_file_is_named_html(tmp_path):
    with pytest.raises(ValueError, match=r"the report is an HTML file, named \*\.html"):
        sctool.tl.report(annotated(), tmp_path / "annotated.h5ad")
    with pytest.raises(ValueError, match="adata has no cells"):
        sctool.tl.report(annotated()[:0].copy(), tmp_path / "a.html")


# -- the command ---------------------------------------------------------------------------------


def test_the_command_writes_what_the_function_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    adata = annotated(key="mine")
    adata.write_h5ad("annotated.h5ad")
    words = ["report", "annotated.h5ad", "-o", "report.html", "--key", "mine", "--basis", "X_mine"]
    assert main(words) == 0
    assert capsys.readouterr().out == "wrote report.html\n"
    first = Path("report.html").read_text(encoding="utf-8")
    sctool.tl.report(read_h5ad("annotated.h5ad"), "again.html", key="mine", basis="X_mine")
    assert Path("again.html").read_text(encoding="utf-8") == first
    assert main(words) == 2
    assert "'report.html' exists: pass --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert main(["report", "annotated.h5ad", "-o", "other.html"]) == 2
    assert (
        "is not an annotation in adata: found the annotations ['mine']" in capsys.readouterr().err
    )
