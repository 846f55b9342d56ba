"""Genes of two objects, matched by name."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

#: Genes that two sides must share, and below which they are warned of.
MIN_SHARED, FEW_SHARED = 200, 500
ENSEMBL = re.compile(r"^(ENS[A-Z]*[GTP]\d{6,})(\.\d+)?$")


def clean_names(names: Any, ignore_case: bool = False) -> np.ndarray:
    """Gene names as compared: Ensembl ids without their version, upper case if asked."""
    text = pd.Series(np.asarray(names, dtype=object)).astype(object)
    missing = text.isna().to_numpy()
    cleaned = text.astype(str).str.strip().str.replace(ENSEMBL, r"\1", regex=True)
    if ignore_case:
        cleaned = cleaned.str.upper()
    out = cleaned.to_numpy(dtype=object)
    out[missing] = ""
    return out


def identifiers(var: pd.DataFrame) -> pd.DataFrame:
    """The columns of ``var`` that could name genes: text, and different from gene to gene."""
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
    """Identifiers of ``genes``, (n_genes, n_columns), from the first that bears each name."""
    first = pd.Series(np.arange(len(names)), index=names)
    first = first[~first.index.duplicated()].loc[genes].to_numpy()
    table = identifiers(var.iloc[first])
    table.index = genes
    return table


def match_genes(
    ref_var: pd.DataFrame, query_var: pd.DataFrame, ignore_case: bool = False
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Names under which the genes of both sides are compared.

    The index of each side, unless another column of ``var`` (symbols, Ensembl ids) makes at least
    half as many genes again match.

    Returns
    -------
    Name of each reference gene, name of each query gene, notes.
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
        notes.append("genes: compared without regard to case")
    return ref_names[pair[0]], query_names[pair[1]], notes


def locate(names: np.ndarray, wanted: np.ndarray | pd.Index) -> np.ndarray:
    """Position of each name in ``wanted``, (n_names,), its first one; -1 if it is not there."""
    index = pd.Index(np.asarray(wanted, dtype=object))
    position = np.flatnonzero(~index.duplicated() & (index != ""))
    found = index[position].get_indexer(names)
    return np.where(found < 0, -1, position[found])


def note_duplicates(names: np.ndarray, shared: pd.Index, side: str) -> list[str]:
    """What to say of genes that repeat a shared name."""
    n = int(pd.Series(names)[pd.Series(names).isin(shared)].duplicated().sum())
    return [f"{side}: added up {n} duplicated genes"] if n else []


def too_few(n: int, ref_var: pd.DataFrame, query_var: pd.DataFrame, ignore_case: bool) -> str:
    """What is wrong where the sides share ``n`` genes, and what may help."""
    text = (
        f"The reference and the query share {n} genes by name; at least {MIN_SHARED} are needed. "
        f"Reference: {list(ref_var.index[:3])!r}, query: {list(query_var.index[:3])!r}. "
    )
    kinds = [
        bool(ENSEMBL.match(str(v.index[0]))) if len(v) else False for v in (ref_var, query_var)
    ]
    if kinds[0] != kinds[1]:
        text += (
            "One side has Ensembl ids and the other symbols: add the other kind as a column of var."
        )
    elif not ignore_case:
        ref_names, query_names, _ = match_genes(ref_var, query_var, ignore_case=True)
        n_upper = len(set(ref_names) & set(query_names) - {""})
        if n_upper >= MIN_SHARED:
            text += f"Ignoring case they share {n_upper}: pass ignore_case=True if that is meant."
        else:
            text += "Give both sides gene symbols, or both Ensembl ids of the same species."
    return text
