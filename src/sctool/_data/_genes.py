"""Matching of the genes of two objects by name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

#: Minimum number of shared genes, and the number below which a warning is given.
MIN_SHARED, FEW_SHARED = 200, 500
ENSEMBL = re.compile(r"^(ENS[A-Z]*[GTP]\d{6,})(\.\d+)?$")


def clean_names(names: Any, ignore_case: bool = False) -> np.ndarray:
    """Clean gene names for matching: drop Ensembl versions and, optionally, ignore case."""
    text = pd.Series(np.asarray(names, dtype=object)).astype(object)
    missing = text.isna().to_numpy()
    cleaned = text.astype(str).str.strip().str.replace(ENSEMBL, r"\1", regex=True)
    if ignore_case:
        cleaned = cleaned.str.upper()
    out = cleaned.to_numpy(dtype=object)
    out[missing] = ""
    return out


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
    1.5 times as many genes.

    Returns
    -------
    Name of each reference gene, name of each query gene, and notes for the audit.
    """

    def candidates(var: pd.DataFrame) -> dict[str, np.ndarray]:
        columns = identifiers(var)
        found = {"var_names": clean_names(var.index, ignore_case)}
        return found | {f"var[{c!r}]": clean_names(columns[c], ignore_case) for c in columns}

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
    notes = []
    if pair != ("var_names", "var_names"):
        notes.append(f"genes: matched the reference's {pair[0]} with the query's {pair[1]}")
    if ignore_case:
        notes.append("genes: case was ignored when matching names")
    return ref_names[pair[0]], query_names[pair[1]], notes


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
    text = (
        f"The reference and the query share {n} genes by name; at least {MIN_SHARED} are needed. "
        f"Reference: {list(ref_var.index[:3])!r}, query: {list(query_var.index[:3])!r}. "
    )
    kinds = [
        bool(ENSEMBL.match(str(v.index[0]))) if len(v) else False for v in (ref_var, query_var)
    ]
    if kinds[0] != kinds[1]:
        text += (
            "One has Ensembl ids and the other gene symbols: add the other kind as a column of var."
        )
    elif not ignore_case:
        ref_names, query_names, _ = match_genes(ref_var, query_var, ignore_case=True)
        n_upper = len(set(ref_names) & set(query_names) - {""})
        if n_upper >= MIN_SHARED:
            text += f"Ignoring case they share {n_upper}: pass ignore_case=True to allow it."
        else:
            text += "Use gene symbols in both, or Ensembl ids of the same species in both."
    return text
