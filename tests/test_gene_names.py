"""Other names of genes: ids, earlier symbols, dates, orthologues."""

import numpy as np
import pandas as pd
import pytest
from stages import audit, logistic, train_logistic
from synthetic import simulate_sides

from sctool._data._gene_names import gene_names, rename_as
from sctool._data._genes import match_genes

GENES = gene_names()
#: 300 human genes that have a mouse orthologue whose name is not theirs in lower case, then some of
#: those whose name is.
PAIRS = [pair for pair in GENES.orthologue["human"].items() if pair[0].capitalize() != pair[1]][:80]
PAIRS += [pair for pair in GENES.orthologue["human"].items() if pair[0].capitalize() == pair[1]]
HUMAN, MOUSE = ([pair[i] for pair in PAIRS[:300]] for i in (0, 1))
ID_OF = {symbol: name for name, symbol in GENES.symbols["human"].items() if name[:4] == "ENSG"}
MOUSE_ID_OF = {symbol: name for name, symbol in GENES.symbols["mouse"].items() if name[:3] == "ENS"}


def names(*given: str) -> np.ndarray:
    """Some names of genes behind many that make the species clear."""
    return np.array([*HUMAN[:30], *given], dtype=object)


def renamed(ref: list[str], query: list[str]) -> list[str]:
    return list(rename_as(names("only ref", *ref), names("only query", *query))[0][31:])


# -- tables --------------------------------------------------------------------------------------


def test_the_tables_know_well_known_genes():
    assert len(GENES.orthologue["human"]) > 15_000
    assert GENES.orthologue["human"]["CD79A"] == "Cd79a"
    assert GENES.orthologue["mouse"]["Trp53"] == "TP53"  # names differ in more than case
    assert GENES.symbols["human"]["ENSG00000141510"] == "TP53"
    assert GENES.symbols["mouse"]["ENSMUSG00000059552"] == "Trp53"
    assert GENES.earlier["human"]["IL8"] == "CXCL8"


@pytest.mark.parametrize("species", ["human", "mouse"])
def test_no_current_symbol_is_an_alias(species):
    current = {symbol.upper() for symbol in GENES.symbols[species].values()}
    assert not current & set(GENES.earlier[species])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (HUMAN, "human"),
        (MOUSE, "mouse"),
        ([ID_OF[g] for g in HUMAN], "human"),
        ([MOUSE_ID_OF[g] for g in MOUSE], "mouse"),
        (HUMAN[:150] + MOUSE[:150], None),  # a mixture, as of xenografts
        ([g.lower() for g in HUMAN], None),
        (HUMAN[:10], None),
        (HUMAN[:30] + [f"other{i}" for i in range(300)], None),
    ],
)
def test_the_species_is_recognised_or_left_open(given, expected):
    assert GENES.species_of(set(given)) == expected


# -- names within a species ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ref", "query"),
    [
        ("SEPTIN2", "SEPT2"),  # renamed since
        ("SEPT2", "SEPTIN2"),
        ("SEPTIN2", "2-Sep"),  # a date, to a spreadsheet
        ("SEPTIN2", "Sep-02"),
        ("SEPT2", "2-Sep"),
        ("MARCHF3", "3-Mar"),
        ("SELENOF", "15-Sep"),
        ("CXCL8", "IL8"),
        ("IL8", "IL-8"),  # both are earlier names
        ("ENSG00000169429", "IL8"),
        ("CXCL8", "ENSG00000169429"),
    ],
)
def test_other_names_of_a_gene_are_recognised(ref, query):
    assert renamed([ref], [query]) == [ref]


@pytest.mark.parametrize(
    ("ref", "query"),
    [
        (["MARCHF1"], ["1-Mar"]),  # or MTARC1
        (["CXCL8"], ["IL8", "IL-8"]),  # which of them?
        (["CXCL8"], ["IL8", "CXCL8"]),  # has its own
        (["CXCL8", "IL8"], ["IL-8"]),
        (["IL8", "only here"], ["IL8"]),
        (["nothing"], ["unknown"]),
    ],
)
def test_what_is_not_clear_keeps_its_name(ref, query):
    assert renamed(ref, query) == query


def test_case_is_not_ignored_by_the_way_between_symbols():
    assert renamed(["CD79A"], ["cd79a"]) == ["cd79a"]


def test_the_audit_says_which_names_were_recognised():
    ref, query = names("SEPTIN2", "x"), names("SEPT2", "y")
    _, notes = rename_as(ref, query)
    assert len(notes) == 1
    assert notes[0].startswith(
        "genes: 1 have other names in the query, which were recognised: 'SEPT2' for 'SEPTIN2' ("
    )
    assert "HGNC" in notes[0]


# -- orthologues ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [False, True], ids=["symbols", "ids"])
@pytest.mark.parametrize("trained", [False, True], ids=["reference", "trained-model"])
def test_a_mouse_query_is_annotated_as_if_it_had_the_human_names(trained, ids):
    adata, ref = simulate_sides()
    adata.var_names = ref.var_names = HUMAN
    expected = logistic(adata, ref).obsm["sctool_proba"]
    source = train_logistic(adata, ref) if trained else ref
    # another order, and a gene of another kind that is called as one of the reference
    adata = adata[:, ::-1].copy()
    adata.var_names = [MOUSE_ID_OF[name] if ids else name for name in MOUSE[::-1]]
    result = logistic(adata, source)
    np.testing.assert_allclose(result.obsm["sctool_proba"], expected, atol=1e-5)
    note = "genes: those of the reference are of human, those of the query of mouse: 300 were"
    assert note in audit(result)


def test_a_human_query_meets_a_mouse_reference():
    ref, query, _ = match_genes(pd.DataFrame(index=MOUSE), pd.DataFrame(index=HUMAN))
    assert list(query) == list(ref) == MOUSE


def test_genes_without_an_orthologue_are_left_out_whatever_their_name():
    ref, query = [*HUMAN, "AC123.1"], [*MOUSE[:-1], "AC123.1", "Gm1"]
    _, found, _ = match_genes(pd.DataFrame(index=ref), pd.DataFrame(index=query))
    assert list(found[-3:]) == [HUMAN[298], "", ""]


def test_ignoring_case_compares_names_alone():
    ref, query, notes = match_genes(
        pd.DataFrame(index=HUMAN), pd.DataFrame(index=MOUSE), ignore_case=True
    )
    assert set(ref) & set(query) == set(HUMAN) & {name.upper() for name in MOUSE}
    assert len(set(ref) & set(query)) < 230
    assert notes == ["genes: case was ignored when matching names"]
