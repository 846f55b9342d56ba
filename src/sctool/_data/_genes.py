"""Matching of the genes of two objects by name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from sctool._data._gene_names import rename_as

#: Minimum number of shared genes, and the number below which there is an alarm.
MIN_SHARED, FEW_SHARED = 100, 500
#: Few shared genes are refused if this many times as many are shared when case is ignored.
DIFFERENT_CASE = 5
#: Columns of ``var`` that say what a feature is, of 10x Genomics, CELLxGENE and others.
KINDS = ("feature_types", "feature_type", "feature_biotype", "modality")
#: What a gene is called in them, first by 10x Genomics; case is ignored.
GENE = ("gene expression", "gene_expression", "gene", "gex", "rna", "mrna")
#: What is no gene, where genes have no name.
NO_GENE = ("antibody capture", "antibody", "adt", "hto", "protein", "prot", "cite", "peaks")
#: The name of a genome before each gene, as in a reference of several species.
GENOME = re.compile(r"^(GRCh3[78]|GRCm3[89]|hg19|hg38|mm9|mm10|mm39)_+")
#: Prefixes of the ids of species whose symbols are known (``_gene_names``).
TRANSLATED = ("ENSG", "ENSMUSG")
ENSEMBL = re.compile(r"^(ENS[A-Z]*[GTP]\d{6,})(\.\d+)?$")


def clean_names(names: Any, ignore_case: bool = False) -> np.ndarray:
    """Clean gene names for matching.

    Ensembl versions are dropped, and the name of a genome if all names begin with it; case is
    optionally ignored.
    """
    text = pd.Series(np.asarray(names, dtype=object)).astype(object)
    missing = text.isna().to_numpy()
    cleaned = text.astype(str).str.strip()
    if genome := genome_of(cleaned[~missing]):
        cleaned = cleaned.str.removeprefix(genome)
    cleaned = cleaned.str.replace(ENSEMBL, r"\1", regex=True)
    if ignore_case:
        cleaned = cleaned.str.upper()
    out = cleaned.to_numpy(dtype=object)
    out[missing] = ""
    return out


def genome_of(names: Any) -> str:
    """The name of a genome that all gene names begin with, with what joins them; "" if none."""
    names = [name for name in names if name]
    found = GENOME.match(names[0]) if names else None
    return found[0] if found and all(name.startswith(found[0]) for name in names) else ""


def as_in_r(name: str) -> str:
    """A name as R's ``make.names`` writes it: "HLA.A" for "HLA-A", "X7SK" for "7SK"."""
    name = re.sub(r"[^0-9A-Za-z._]", ".", name)
    return name if re.match(r"[A-Za-z]|\.(?!\d)", name) else f"X{name}"


def undo_r(names: np.ndarray, original: np.ndarray) -> tuple[np.ndarray, int]:
    """Give names that R has changed their original form, and count them.

    ``names`` are left alone if one of them holds "-", which R leaves in none, or if it is not
    known which of the originals they were.
    """
    if any("-" in name for name in names):
        return names, 0
    known, taken = set(names), set(original)
    before: dict[str, set[str]] = {}
    for name in taken - known:
        before.setdefault(as_in_r(name), set()).add(name)
    undone = {
        name: min(before[name]) for name in known - taken if name and len(before.get(name, ())) == 1
    }
    return np.array([undone.get(name, name) for name in names], dtype=object), len(undone)


def identifiers(var: pd.DataFrame) -> pd.DataFrame:
    """Columns of ``var`` that may be gene identifiers: strings that are mostly unique."""
    keep = {}
    for column in var.columns:
        values = var[column]
        if not (
            values.dtype == object or isinstance(values.dtype, pd.CategoricalDtype | pd.StringDtype)
        ):
            continue
        text = values.dropna().astype(str)
        if len(text) and text.nunique() > 0.5 * len(var):
            keep[str(column)] = values.astype(object).where(values.notna(), "").astype(str)
    return pd.DataFrame(keep, index=var.index)


def gene_table(var: pd.DataFrame, names: np.ndarray, genes: pd.Index) -> pd.DataFrame:
    """Identifiers of ``genes``, (n_genes, n_columns), taken from the first gene of each name."""
    first = pd.Series(np.arange(len(names)), index=names)
    first = first[~first.index.duplicated()].loc[genes].to_numpy()
    table = identifiers(var.iloc[first])
    table.index = genes
    return table


def match_genes(
    ref_var: pd.DataFrame, query_var: pd.DataFrame, ignore_case: bool = False
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Choose the names by which the genes of reference and query are matched.

    The index of ``var`` on both sides, unless other columns (symbols, Ensembl ids) match more than
    1.5 times as many genes. Genes that have other names in the reference, also those of human or
    mouse in that of the other, get these names, unless case is ignored.

    Returns
    -------
    Name of each reference gene, name of each query gene, and notes for the audit.
    """

    def candidates(var: pd.DataFrame) -> dict[str, np.ndarray]:
        columns = identifiers(var)
        found = {"var_names": clean_names(var.index, ignore_case)}
        found |= {f"var[{c!r}]": clean_names(columns[c], ignore_case) for c in columns}
        other = other_features(var)
        return {name: np.where(other, "", values) for name, values in found.items()}

    best = shared_by_name = 0
    pair = better = ("var_names", "var_names")
    ref_names, query_names = candidates(ref_var), candidates(query_var)
    query_sets = {name: set(values) - {""} for name, values in query_names.items()}
    for ref_column, ref_values in ref_names.items():
        ref_set = set(ref_values) - {""}
        for query_column, query_set in query_sets.items():
            n = len(ref_set & query_set)
            if ref_column == query_column == "var_names":
                shared_by_name = n
            if n > best:
                best, better = n, (ref_column, query_column)
    if best > 1.5 * shared_by_name:
        pair = better
    notes = [*note_other("ref", ref_var), *note_other("query", query_var)]
    if pair != ("var_names", "var_names"):
        notes.append(f"genes: matched the reference's {pair[0]} with the query's {pair[1]}")
    if ignore_case:
        notes.append("genes: case was ignored when matching names")
    ref, query = ref_names[pair[0]], query_names[pair[1]]
    for side, var in (("ref", ref_var), ("query", query_var)):
        notes += note_genome(side, var)
    query, n_query = undo_r(query, ref)
    ref, n_ref = undo_r(ref, query)
    for side, n in (("ref", n_ref), ("query", n_query)):
        if n:
            notes.append(f"{side}: {n} names of genes, changed by R, were changed back")
    if not ignore_case:
        query, renamed = rename_as(ref, query)
        notes += renamed
    return ref, query, notes


def other_features(var: pd.DataFrame) -> np.ndarray:
    """Mask of features that are not genes, such as the antibodies of CITE-seq, (n_vars,)."""
    other = np.zeros(len(var), dtype=bool)
    for kinds in _kinds(var):
        other |= ~kinds.str.lower().isin(GENE).to_numpy()
    return other


def note_other(side: str, var: pd.DataFrame) -> list[str]:
    """Note on features that are not genes, for the audit."""
    other = other_features(var)
    if not other.any():
        return []
    named = {kind for kinds in _kinds(var) for kind in kinds[other] if kind.lower() not in GENE}
    return [
        f"{side}: left out {int(other.sum())} features that are not genes "
        f"({', '.join(sorted(named))})"
    ]


def note_genome(side: str, var: pd.DataFrame) -> list[str]:
    """Note on the name of a genome before all names of genes, for the audit."""
    genome = genome_of(var.index.astype(str))
    return [f"{side}: {genome!r} before the names of genes was removed"] if genome else []


def _kinds(var: pd.DataFrame) -> list[pd.Series]:
    """What each feature is, (n_vars,) str, by each column of ``var`` that tells genes from others.

    A column without genes by name tells kinds of them apart, such as "protein_coding", unless it
    names only antibodies and the like: then features without a kind are genes.
    """
    found = []
    for column in KINDS:
        if column not in var:
            continue
        missing = var[column].isna().to_numpy()
        kinds = var[column].astype(str).str.strip()
        if missing.any() and kinds[~missing].str.lower().isin(NO_GENE).all():
            kinds = kinds.mask(missing, GENE[0])
        if kinds.str.lower().isin(GENE).any():
            found.append(kinds)
    return found


def locate(names: np.ndarray, wanted: np.ndarray | pd.Index) -> np.ndarray:
    """Position of the first occurrence of each name in ``wanted``, (n_names,); -1 if absent."""
    index = pd.Index(np.asarray(wanted, dtype=object))
    position = np.flatnonzero(~index.duplicated() & (index != ""))
    found = index[position].get_indexer(names)
    return np.where(found < 0, -1, position[found])


def note_duplicates(names: np.ndarray, shared: pd.Index, side: str) -> list[str]:
    """Note on shared genes with duplicate names, for the audit."""
    n = int(pd.Series(names)[pd.Series(names).isin(shared)].duplicated().sum())
    return [f"{side}: summed {n} genes with duplicate names"] if n else []


def too_few(n: int, ref_var: pd.DataFrame, query_var: pd.DataFrame, ignore_case: bool) -> str:
    """Error message for too few shared genes, with advice."""
    enough = (
        f"at least {MIN_SHARED} are needed" if n < MIN_SHARED else "many more if case is ignored"
    )
    text = (
        f"The reference and the query share {n} genes by name; {enough}. "
        f"Reference: {list(ref_var.index[:3])!r}, query: {list(query_var.index[:3])!r}. "
    )
    return text + advice(ref_var, query_var, ignore_case)


def advice(ref_var: pd.DataFrame, query_var: pd.DataFrame, ignore_case: bool) -> str:
    """What to do if the genes of two objects do not match."""
    ref_kind, query_kind = kind_of_names(ref_var), kind_of_names(query_var)
    if "symbols" in (ref_kind, query_kind) and ref_kind != query_kind:
        if (ids := ref_kind if query_kind == "symbols" else query_kind) not in TRANSLATED:
            return (
                f"One has gene symbols and the other Ensembl ids ({ids}...) of a species that is "
                "neither human nor mouse: add symbols as a column of var if both are of that "
                "species, or map one side's genes to their orthologues."
            )
        return (
            "One has Ensembl ids and the other gene symbols: add the other kind as a column of var."
        )
    if ref_kind != query_kind:
        return (
            f"The Ensembl ids are of different species ({ref_kind}..., {query_kind}...): use gene "
            "symbols, or map one side's genes to their orthologues."
        )
    if not ignore_case and (n := shared_ignoring_case(ref_var, query_var)) >= MIN_SHARED:
        return (
            f"Ignoring case they share {n}: pass ignore_case=True, which a model takes when it is "
            "trained, or write the names of both in the same case."
        )
    return "Use gene symbols in both, or Ensembl ids of the same species in both."


def shared_ignoring_case(ref_var: pd.DataFrame, query_var: pd.DataFrame) -> int:
    """Number of genes that two objects share if the case of their names is ignored."""
    ref_names, query_names, _ = match_genes(ref_var, query_var, ignore_case=True)
    return len(set(ref_names) & set(query_names) - {""})


def differ_in_case(n: int, ref_var: pd.DataFrame, query_var: pd.DataFrame) -> bool:
    """Whether so few genes are shared, ``n``, because names differ in case.

    Symbols of human and mouse have some hundred names in common, such as "C1orf112" and those of
    clones, which say little about types.
    """
    if n >= FEW_SHARED or kind_of_names(ref_var) != kind_of_names(query_var):
        return False
    return shared_ignoring_case(ref_var, query_var) > DIFFERENT_CASE * n


def kind_of_names(var: pd.DataFrame) -> str:
    """The species' prefix of most Ensembl ids, such as "ENSG" and "ENSMUSG", or "symbols"."""
    found = [ENSEMBL.match(str(name)) for name in var.index[:1000]]
    prefixes = [re.split(r"\d", match[1])[0] for match in found if match]
    if len(prefixes) <= 0.5 * len(found):
        return "symbols"
    return max(set(prefixes), key=prefixes.count)
