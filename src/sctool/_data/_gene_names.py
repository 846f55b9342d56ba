"""Other names of genes: Ensembl ids, earlier symbols and aliases, orthologues of human and mouse.

The tables are part of the package; ``tests/make_tables.py`` made them and says of what.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

import numpy as np

from sctool._tables import read_table, unique

HUMAN, MOUSE = "human", "mouse"
#: Names are those of a species if at least this many and this share of them are, and this many
#: times as many as are the other's.
MIN_NAMES, MIN_SHARE, CLEARLY = 20, 0.2, 10
#: What spreadsheets make of SEPT2, MARCH3 and DEC1.
DATE = re.compile(r"(?:(\d{1,2})-(Sep|Mar|Dec)|(Sep|Mar|Dec)-(\d{1,2}))$", re.IGNORECASE)


@dataclass(frozen=True)
class GeneNames:
    """Names of the genes of human and mouse.

    Attributes
    ----------
    version
        Releases of symbols and orthologues, and of earlier symbols.
    symbols
        By species, the current symbol of each symbol and Ensembl id.
    earlier
        By species, the current symbol of each earlier symbol and alias, in upper case.
    orthologue
        By species, the symbol of the only orthologue in the other one.
    """

    version: str
    symbols: dict[str, dict[str, str]]
    earlier: dict[str, dict[str, str]]
    orthologue: dict[str, dict[str, str]]

    def species_of(self, names: Collection[str]) -> str | None:
        """The species to which distinct names of genes clearly belong, None if there is none."""
        n = {
            species: sum(map(known.__contains__, names)) for species, known in self.symbols.items()
        }
        (first, most), (_, other) = sorted(n.items(), key=lambda item: -item[1])
        enough = most >= max(MIN_NAMES, MIN_SHARE * len(names))
        return first if enough and most >= CLEARLY * other else None

    def current(self, name: str, species: str) -> str:
        """The current symbol of a gene, or the name itself if it is not known.

        The symbol of one gene that is an alias of another stays what it is.
        """
        known = self.symbols[species]
        return known.get(name) or self.earlier[species].get(undo_date(name).upper(), name)


@cache
def gene_names() -> GeneNames:
    """Read the tables of the package, once."""
    version, rows = read_table("genes.tsv.gz")
    pairs: dict[str, list[tuple[str, str]]] = {HUMAN: [], MOUSE: []}
    both: list[tuple[str, str]] = []
    for number, human, mouse_number, mouse in rows:
        if number:
            pairs[HUMAN].append((f"ENSG{number:0>11}", human))
        if mouse_number:
            mouse = mouse or human.capitalize()
            pairs[MOUSE].append((f"ENSMUSG{mouse_number:0>11}", mouse))
            if number:
                both.append((human, mouse))
    symbols = {}
    for species, found in pairs.items():
        n = Counter(symbol for _, symbol in found)
        unique = {gene: symbol for gene, symbol in found if n[symbol] == 1}
        symbols[species] = unique | {symbol: symbol for symbol in unique.values()}
    source, rows = read_table("earlier_symbols.tsv.gz")
    earlier: dict[str, dict[str, str]] = {HUMAN: {}, MOUSE: {}}
    for species, symbol, names in rows:
        earlier[species] |= dict.fromkeys(names.split("|"), symbol)
    orthologue = {HUMAN: dict(both), MOUSE: {mouse: human for human, mouse in both}}
    return GeneNames(f"{version}; {source}", symbols, earlier, orthologue)


def undo_date(name: str) -> str:
    """The symbol that became a date: "SEPT2" for "2-Sep".

    "1-Mar" and "2-Mar" may have been MARCH1 or MARC1, and stay as they are.
    """
    found = DATE.match(name)
    if not found:
        return name
    number, month = int(found[1] or found[4]), (found[2] or found[3]).upper()
    if month == "SEP":
        return f"SEPT{number}" if number < 15 else f"SEP{number}"
    if month == "MAR":
        return f"MARCH{number}" if number > 2 else name
    return f"DEC{number}"


def rename_as(ref: np.ndarray, query: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Give the genes of a query the names that the reference has for them.

    Within a species, genes whose names the reference lacks are looked up by Ensembl id, current
    symbol, earlier symbol and alias. Between human and mouse all genes are matched by one-to-one
    orthologues, and those without are left out, for equal names may be those of other genes. Only
    what is unique on both sides is matched. Nothing is done where the species are not clear.

    Parameters
    ----------
    ref, query
        Names of genes, "" for none, (n_genes,).

    Returns
    -------
    Names of the query's genes, (n_genes,), and notes for the audit.
    """
    ref_names, query_names = set(ref) - {""}, set(query) - {""}
    if ref_names <= query_names or query_names <= ref_names:
        return query, []
    genes = gene_names()
    ref_species, query_species = genes.species_of(ref_names), genes.species_of(query_names)
    if ref_species is None or query_species is None:
        return query, []
    across = ref_species != query_species

    ref_of = unique((genes.current(name, ref_species), name) for name in ref_names)
    current = {name: genes.current(name, query_species) for name in query_names}
    if across:
        to_ref = genes.orthologue[query_species]
        current = {name: to_ref.get(symbol, "") for name, symbol in current.items()}
    query_of = unique((symbol, name) for name, symbol in current.items())
    renamed = {query_of[symbol]: ref_of[symbol] for symbol in query_of.keys() & ref_of.keys()}
    if across:
        new = [renamed.get(name, "") for name in query]
        note = (
            f"genes: those of the reference are of {ref_species}, those of the query of "
            f"{query_species}: {len(renamed)} were matched by one-to-one orthologues, the others "
            f"left out ({genes.version})"
        )
        return np.array(new, dtype=object), [note]
    renamed = {
        old: name
        for old, name in renamed.items()
        if old not in ref_names and name not in query_names
    }
    if not renamed:
        return query, []
    some = ", ".join(f"{old!r} for {renamed[old]!r}" for old in sorted(renamed)[:3])
    note = (
        f"genes: {len(renamed)} have other names in the query, which were recognised: {some} "
        f"({genes.version})"
    )
    return np.array([renamed.get(name, name) for name in query], dtype=object), [note]
