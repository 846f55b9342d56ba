"""The Cell Ontology: names of cell types, and which is a kind of which.

The table, release 2026-03-26 (CC BY 4.0), is part of the package; ``tests/make_tables.py`` made it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from sctool._tables import read_table, unique

ROOT = "CL:0000000"
#: "cell" and "eukaryotic cell", which stands above 95 % of the terms: names that say nothing.
ANY_CELL = (ROOT, "CL:0000255")
#: Greek letters, spelt out.
GREEK = {0x3B1: "alpha", 0x3B2: "beta", 0x3B3: "gamma", 0x3B4: "delta", 0x3B5: "epsilon"}
#: Words of a name that say nothing, with which the ontology is consistent and people are not.
SILENT = {"cell", "positive", "pos", "and", "of"}


def normalize_name(name: str) -> str:
    """A form of a name that is the same for usual spellings.

    Case, punctuation, the plural, the order of words, "cell", "positive" and its sign "+" have no
    effect, nor does "alpha-beta" of CD4 and CD8 T cells: "CD4+ T cells" is what the ontology calls
    "CD4-positive, alpha-beta T cell".
    """
    words = re.findall(r"[a-z0-9]+", name.lower().translate(GREEK))
    words = [re.sub(r"(?<=\w\w[^s])s$", "", word) for word in words]
    silent = SILENT | ({"alpha", "beta"} if {"cd4", "cd8"} & set(words) else set())
    kept = sorted(word for word in words if word not in silent)
    return "" if set(kept) <= set(GREEK.values()) else " ".join(kept)  # "alpha": of which tissue?


@dataclass(frozen=True)
class Ontology:
    """Terms of the Cell Ontology that are in use.

    Attributes
    ----------
    version
        Release and licence.
    labels
        Label of each term, by id.
    parents
        Ids of the terms that each is a kind of.
    names
        Id of each label, then of each exact synonym, as they are written, and in lower case.
    normalized
        Id of each name in the form of :func:`normalize_name`; those of several terms are left out.
    """

    version: str
    labels: dict[str, str]
    parents: dict[str, list[str]]
    names: dict[str, str]
    normalized: dict[str, str]

    def find(self, name: str) -> str | None:
        """Id of the term with a name: its label, an exact synonym or a normalised form of one.

        A name that several terms have as a synonym or in its normalised form is not found.
        """
        name = name.strip()
        if name in self.labels:
            return name
        found = self.names.get(name) or self.names.get(name.lower())
        return found or self.normalized.get(normalize_name(name))

    def ancestors(self, term: str) -> dict[str, int]:
        """Terms that a term is a kind of, with the number of steps to each; itself first, at 0."""
        found, nearest = {term: 0}, [term]
        while nearest:
            steps = found[nearest[0]] + 1
            parents = (parent for child in nearest for parent in self.parents[child])
            nearest = [p for p in dict.fromkeys(parents) if p not in found]
            found |= dict.fromkeys(nearest, steps)
        return found

    def lowest_common_ancestors(self, first: str, second: str) -> set[str]:
        """Common ancestors with the fewest steps to both terms; several if there are ties."""
        a, b = self.ancestors(first), self.ancestors(second)
        steps = {term: a[term] + b[term] for term in a.keys() & b.keys()}
        return {term for term, n in steps.items() if n == min(steps.values())}


def compare(ontology: Ontology, found: str | None, truth: str) -> str:
    """Judge the term of a cell against the true one, as scTab does (Fischer et al. 2024).

    Returns
    -------
    "right": the truth or a kind of it. "less specific": the truth is a kind of it, other than of
    the root, "cell". "wrong": anything else, also no term.
    """
    if found not in ontology.labels:
        return "wrong"
    if truth in ontology.ancestors(found):
        return "right"
    return "less specific" if found in set(ontology.ancestors(truth)) - {ROOT} else "wrong"


@cache
def cell_ontology() -> Ontology:
    """Read the table of the package, once."""
    version, rows = read_table("cell_ontology.tsv.gz")
    labels = {row[0]: row[1] for row in rows}
    of_labels = [(label, term) for term, label in labels.items()]
    of_synonyms = [(synonym, row[0]) for row in rows for synonym in row[2].split("|")]

    def lower(pairs: list[tuple[str, str]]) -> dict[str, str]:
        return unique((name.lower(), term) for name, term in pairs)

    def normalized(pairs: list[tuple[str, str]]) -> dict[str, str]:
        return unique((normalize_name(name), term) for name, term in pairs)

    # the later ones replace the earlier
    names = lower(of_synonyms) | lower(of_labels) | unique(of_synonyms) | unique(of_labels)
    forms = normalized([*of_labels, *of_synonyms]) | normalized(of_labels)
    parents = {row[0]: [p for p in row[3].split("|") if p] for row in rows}
    return Ontology(version, labels, parents, names, forms)


def nested_groups(
    terms: Mapping[str, str | None], ontology: Ontology
) -> list[tuple[str, list[str]]]:
    """Groups of types that have a name in the ontology, such that each two are nested or disjoint.

    Each term above some types, but "cell" and "eukaryotic cell", is a group of them. The ontology
    is no tree (a dendritic cell is both a myeloid cell and, with B cells, a professional antigen
    presenting cell), so that groups may overlap. Groups that more terms stand for are kept first,
    and those that overlap with one that is kept are left out; of equal ones the first by size and
    name.

    Parameters
    ----------
    terms
        Term of each type, None where it is not known.

    Returns
    -------
    Names and types of the groups, smallest first. Of several terms the one with the shortest label
    names the group, which is usually the common one ("T cell" rather than "mature alpha-beta T
    cell"); "any {label}" if a type has the same name.
    """
    below: dict[str, list[str]] = {}
    for name, term in terms.items():
        for above in ontology.ancestors(term) if term is not None else ():
            below.setdefault(above, []).append(name)
    for term in ANY_CELL:
        below.pop(term, None)
    standing: dict[tuple[str, ...], list[str]] = {}
    for term, own in below.items():
        if 1 < len(own) < len(terms):
            standing.setdefault(tuple(own), []).append(term)
    kept: list[tuple[str, ...]] = []
    for members in sorted(standing, key=lambda m: (-len(standing[m]), len(m), m)):
        if all(len(set(members) & set(other)) in (0, len(members), len(other)) for other in kept):
            kept.append(members)
    groups = []
    for members in sorted(kept, key=lambda m: (len(m), m)):
        label = min(
            (ontology.labels[term] for term in standing[members]), key=lambda s: (len(s), s)
        )
        groups.append((f"any {label}" if label in terms else label, list(members)))
    return groups


def map_names(
    names: Iterable[str], mapping: Mapping[str, str] | None = None
) -> dict[str, str | None]:
    """Ids of the terms of some names, None where there is none; the user's mapping comes first.

    Raises
    ------
    ValueError
        The mapping gives what is no term that is in use.
    """
    ontology = cell_ontology()
    mapping = {str(name).strip(): target for name, target in (mapping or {}).items()}
    terms = {name: ontology.find(str(target)) for name, target in mapping.items()}
    if bad := {name: mapping[name] for name, term in terms.items() if term is None}:
        raise ValueError(
            f"mapping: {bad!r} are neither ids nor names of terms that the {ontology.version} "
            "has in use; pass ids such as 'CL:0000084', or labels such as 'T cell'."
        )
    return {name: terms[name] if name in terms else ontology.find(name) for name in names}
