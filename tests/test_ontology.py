"""Names of the Cell Ontology, and which is a kind of which."""

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sctool
from sctool._ontology import cell_ontology, compare, map_names, normalize_name

CL = cell_ontology()
T, CD4, TREG, NK = "CL:0000084", "CL:0000624", "CL:0000815", "CL:0000623"


@pytest.mark.parametrize(
    ("name", "term"),
    [
        ("T cell", T),  # a label
        ("T lymphocyte", T),  # an exact synonym
        ("t cells", T),
        ("T-Cells", T),
        ("CD4+ T cells", CD4),
        ("CD4 T", CD4),
        ("CD4-positive alpha-beta T cell", CD4),
        ("NK cells", NK),
        ("CL:0000084", T),  # an id
        ("CD14+ Monocytes", "CL:0001054"),
        ("gamma-delta T cells", "CL:0000798"),
        ("\u03b3\u03b4 T cells", "CL:0000798"),
        ("alpha", None),  # of the pancreas or of the retina?
        ("Cluster 7", None),
        ("", None),
        ("CL:9999999", None),
    ],
)
def test_names_are_found(name, term):
    assert CL.find(name) == term


def test_labels_come_before_synonyms_and_are_found_as_written():
    for term, label in CL.labels.items():
        assert CL.labels[CL.find(label)] == label, term


def test_usual_spellings_are_one():
    same = [
        "CD4+ T cells",
        "cd4 T-cell",
        "T cells, CD4-positive",
        "CD4-positive, alpha-beta T cell",
    ]
    assert {normalize_name(name) for name in same} == {"cd4 t"}
    assert normalize_name("T cell") != normalize_name("CD4 T cell")
    assert normalize_name("CD4-negative T cell") != normalize_name("CD4+ T cell")


def test_ancestors_have_their_distance():
    found = CL.ancestors(CD4)
    assert next(iter(found.items())) == (CD4, 0)
    assert found[T] == 3
    assert found["CL:0000000"] == max(found.values())
    assert CL.lowest_common_ancestors(CD4, CD4) == {CD4}
    assert "CL:0000542" not in CL.ancestors(CL.find("hepatocyte"))


@pytest.mark.parametrize(
    ("found", "truth", "verdict"),
    [
        (CD4, T, "right"),
        (T, T, "right"),
        (T, CD4, "less specific"),
        ("CL:0000000", CD4, "wrong"),  # that it is a cell says nothing
        (NK, CD4, "wrong"),
        (None, CD4, "wrong"),
        ("unknown", CD4, "wrong"),
    ],
)
def test_names_are_judged(found, truth, verdict):
    assert compare(CL, found, truth) == verdict


def test_the_graph_is_that_of_the_guide():
    guide = pytest.importorskip(
        "cellxgene_ontology_guide.ontology_parser",
        reason="cellxgene-ontology-guide is not installed: nothing to compare the table with",
    )
    parser = guide.OntologyParser()
    if parser.cxg_schema.supported_ontologies["CL"]["version"] not in CL.version:
        pytest.skip("cellxgene-ontology-guide has another release of the Cell Ontology")
    terms = sorted(CL.labels)
    for first, second in np.random.default_rng(0).choice(terms, (10_000, 2)):
        expected = set(parser.get_lowest_common_ancestors(first, second))
        assert CL.lowest_common_ancestors(first, second) == expected
    for term in terms:
        assert set(CL.ancestors(term)) == {term, *parser.get_term_ancestors(term)}
        assert CL.labels[term] == parser.get_term_label(term)


def test_a_mapping_comes_first_and_must_be_right():
    found = map_names(["T cells", "Cluster 7"], {"T cells": "CL:0000815", "Cluster 7": "NK cell"})
    assert found == {"T cells": TREG, "Cluster 7": NK}
    with pytest.raises(ValueError, match=r"'Cluster 7': 'nothing'.* v2026-03-26"):
        map_names(["Cluster 7"], {"Cluster 7": "nothing"})


def labelled(names: list) -> ad.AnnData:
    obs = pd.DataFrame({"cell_type": names}, index=[str(i) for i in range(len(names))])
    return ad.AnnData(np.ones((len(names), 2), np.float32), obs=obs)


def test_ids_are_written_and_the_rest_is_listed(caplog, tmp_path):
    adata = labelled(["T cells", "CD4/CD8 mix", None, "T cells", "Platelets"])
    with caplog.at_level(logging.WARNING, "sctool"):
        sctool.tl.map_to_ontology(adata, "cell_type")
    ids = adata.obs["cell_type_ontology_term_id"]
    assert ids.tolist() == [T, "unknown", "unknown", T, "CL:0000233"]
    result = adata.uns["cell_type_ontology"]
    assert result["unmapped"].tolist() == ["CD4/CD8 mix"]
    assert "1 of 3 types of obs['cell_type'] were not found" in caplog.text
    table = result["terms"].set_index("name")
    assert table.loc["T cells", ["label", "n_cells"]].tolist() == ["T cell", 2]
    assert "CC BY 4.0" in result["version"]
    adata.write_h5ad(tmp_path / "x.h5ad")
    again = sctool.tl.map_to_ontology(
        adata, "cell_type", mapping={"CD4/CD8 mix": "T cell"}, copy=True
    )
    assert again.obs["cell_type_ontology_term_id"].tolist()[1] == T
    assert adata.obs["cell_type_ontology_term_id"].tolist()[1] == "unknown"


def test_names_that_map_to_nothing_are_all_listed(caplog):
    adata = labelled(["1", "2", "2"])
    sctool.tl.map_to_ontology(adata, "cell_type")
    assert adata.uns["cell_type_ontology"]["unmapped"].tolist() == ["1", "2"]
    assert set(adata.obs["cell_type_ontology_term_id"]) == {"unknown"}


def test_ids_of_others_are_kept():
    adata = labelled(["T cells", "B cells"])
    adata.obs["cell_type_ontology_term_id"] = ["CL:1", "CL:2"]
    with pytest.raises(ValueError, match="exists and was not written by sctool"):
        sctool.tl.map_to_ontology(adata, "cell_type")
    with pytest.raises(KeyError, match="'type' is not in the data's obs"):
        sctool.tl.map_to_ontology(adata, "type")
    with pytest.raises(TypeError, match="must be an AnnData"):
        sctool.tl.map_to_ontology(adata.obs, "cell_type")


def test_spaces_around_names_do_not_matter():
    adata = labelled(["T cell ", "B cell", "T cell "])
    sctool.tl.map_to_ontology(adata, "cell_type", mapping={" B cell": "CL:0000236"})
    assert list(adata.obs["cell_type_ontology_term_id"]) == [
        "CL:0000084",
        "CL:0000236",
        "CL:0000084",
    ]
    assert list(adata.uns["cell_type_ontology"]["unmapped"]) == []


def test_a_mapping_of_names_that_are_no_types_is_said(caplog):
    adata = labelled(["alpha cell"])
    sctool.tl.map_to_ontology(adata, "cell_type", mapping={"Alpha cell": "CL:0000171"})
    assert "has no types of the names ['Alpha cell']" in caplog.text


def test_what_others_keep_under_the_name_of_the_result_stays():
    adata = labelled(["T cell"])
    adata.uns["cell_type_ontology"] = "notes of mine"
    with pytest.raises(
        ValueError, match=r"uns\['cell_type_ontology'\] exists and was not written by"
    ):
        sctool.tl.map_to_ontology(adata, "cell_type")
    assert adata.uns["cell_type_ontology"] == "notes of mine"
