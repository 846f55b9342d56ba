"""Names of the Cell Ontology, and which is a kind of which."""

import logging
import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from synthetic import simulate

import sctool
from sctool._ontology import cell_ontology, compare, map_names, nested_groups, normalize_name

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


TERMS = {"CD4": "CL:0000624", "CD8": "CL:0000625", "NK": NK, "B": "CL:0000236", "DC": "CL:0000451"}


def test_groups_of_types_have_common_names():
    groups = dict(nested_groups(TERMS | {"mono": "CL:0001054", "?": None}, cell_ontology()))
    assert set(groups["T cell"]) == {"CD4", "CD8"}
    assert set(groups["lymphocyte"]) == {"CD4", "CD8", "NK", "B"}
    assert {"DC", "mono"} in map(set, groups.values())
    assert not any("?" in group for group in groups.values())


def test_a_group_is_never_called_a_eukaryotic_cell():
    terms = TERMS | {"megakaryocyte": "CL:0000556", "?": None}
    groups = dict(nested_groups(terms, cell_ontology()))
    assert set(groups["hematopoietic cell"]) == set(terms) - {"?"}
    neuron = TERMS | {"neuron": "CL:0000540", "?": None}  # beside blood there is no better name
    assert "eukaryotic cell" not in dict(nested_groups(neuron, cell_ontology()))


def test_groups_are_nested_although_the_ontology_is_no_tree():
    """Dendritic cells are phagocytes, as monocytes are, and monocytes myeloid, as red cells are."""
    above = {
        name: set(cell_ontology().ancestors(term))
        for name, term in {"DC": TERMS["DC"], "mono": "CL:0001054", "ery": "CL:0000764"}.items()
    }
    phagocyte, myeloid = "CL:0000234", "CL:0000763"
    assert [phagocyte in a for a in above.values()] == [True, True, False]
    assert [myeloid in a for a in above.values()] == [False, True, True]
    terms = TERMS | {"mono": "CL:0001054", "ery": "CL:0000764", "HSC": "CL:0000037"}
    groups = [set(members) for _, members in nested_groups(terms, cell_ontology())]
    for a in groups:
        assert 1 < len(a) < len(terms)
        for b in groups:
            assert a <= b or b <= a or not a & b


def test_a_group_never_has_the_name_of_a_type():
    names = [name for name, _ in nested_groups({"T cell": T} | TERMS, cell_ontology())]
    assert "any T cell" in names
    assert "T cell" not in names


def with_types(seed: int) -> ad.AnnData:
    """Four types of simulated cells, two by two alike, under names of T and myeloid cells."""
    adata = simulate(300, seed=seed)
    types = adata.obs["cell_type"].astype(str)
    names = ["CD4+ T cells", "CD8+ T cells", "CD14+ Monocytes", "Dendritic cells"]
    adata.obs["cell_type"] = types.map(dict(zip(sorted(types.unique()), names, strict=False)))
    return adata[adata.obs["cell_type"].notna()].copy()


def test_safe_names_are_those_of_the_ontology():
    ref, adata = with_types(0), with_types(1)
    # the reference does not tell one T cell from another
    t_cells = ref.obs["cell_type"].str.contains("T cell").to_numpy()
    labels = ref.obs["cell_type"].to_numpy(dtype=object)
    labels[t_cells] = np.random.default_rng(0).permutation(labels[t_cells])
    ref.obs["cell_type"] = labels
    settings = {"min_steps": 5}
    model = sctool.tl.annotate(
        *(adata, ref), risk=0.1, hierarchy="ontology", model_kwargs=settings, return_model=True
    )
    assert "T cell" in model.hierarchy_.names
    safe = adata.obs["sctool_safe"].astype(str)
    assert set(safe) <= {*model.hierarchy_.names}
    is_t = adata.obs["cell_type"].str.contains("T cell")
    assert (safe[is_t] == "T cell").mean() > 0.4
    assert not safe[~is_t].str.contains("T cell").any()
    own = adata.obs.loc[~is_t, "cell_type"]
    assert ((safe[~is_t] == own) | (safe[~is_t] == "phagocyte")).mean() > 0.7
    note = next(n for n in adata.uns["sctool"]["audit"] if n.startswith("hierarchy"))
    assert re.search(r"\b2 groups", note)
    assert adata.uns["sctool"]["params"]["hierarchy"] == "ontology"
    # ids beside the labels come first
    ref.obs["cell_type_ontology_term_id"] = "CL:0000236"
    with pytest.raises(ValueError, match="no name for any group"):
        sctool.tl.annotate(adata, ref, risk=0.1, hierarchy="ontology")
    with pytest.raises(ValueError, match="hierarchy='tree': pass 'ontology'"):
        sctool.tl.annotate(adata, ref, risk=0.1, hierarchy="tree")


def test_ids_beside_the_labels_stay_with_the_model(tmp_path):
    ref, adata = with_types(0), with_types(1)
    ids = np.array(["CL:0000236"] * ref.n_obs, dtype=object)
    ids[(ref.obs["cell_type"] == "CD4+ T cells").to_numpy()] = "CL_0000895"
    ids[::3] = "unknown"
    ids[1::3] = np.nan
    ref.obs["cell_type_ontology_term_id"] = ids
    model = sctool.tl.annotate(adata, ref, method="logistic", return_model=True)
    assert model.terms_["CD4+ T cells"] == "CL:0000895"
    assert set(model.terms_.values()) == {"CL:0000895", "CL:0000236"}
    found = adata.obs["sctool_ontology_term_id"].astype(str)
    assert ((found == "CL:0000895") == (adata.obs["sctool"] == "CD4+ T cells")).all()
    model.save(tmp_path / "model")
    assert sctool.model.load(tmp_path / "model").terms_ == model.terms_


def test_evaluation_counts_what_is_less_specific():
    adata = with_types(1)
    sctool.tl.annotate(adata, with_types(0), method="logistic")
    scores = sctool.tl.evaluate(adata, "cell_type")
    assert "ontology_right" not in scores.index
    adata.obs["truth"] = adata.obs["cell_type"].replace("CD4+ T cells", "naive CD4+ T cell")
    sctool.tl.map_to_ontology(adata, "truth", mapping={"naive CD4+ T cell": "CL:0000895"})
    sctool.tl.map_to_ontology(adata, "sctool")
    values = sctool.tl.evaluate(adata, "truth")["value"]
    correct = (adata.obs["sctool"].astype(str) == adata.obs["cell_type"]).to_numpy()
    cd4 = (adata.obs["truth"] == "naive CD4+ T cell").to_numpy()
    assert values["ontology_right"] == pytest.approx((correct & ~cd4).mean())
    assert values["ontology_less_specific"] == pytest.approx((correct & cd4).mean())
    assert values["ontology_less_specific"] > 0.1
