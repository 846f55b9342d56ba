"""Training data, made from a single AnnData or from a reference and a query."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from sctool._data import _genes, _sample
from sctool._data._expression import Expression, find_expression
from sctool._data._genes import (
    clean_names,
    differ_in_case,
    gene_table,
    locate,
    match_genes,
    note_duplicates,
    note_genome,
    note_other,
    other_features,
    too_few,
)
from sctool._data._scale import Scale

logger = logging.getLogger("sctool")

#: Ratio of shared genes above which ``raw`` is used instead of ``X``.
FAR_MORE = 1.5
#: Strings that stand for a missing label, as conversions and tables of others leave them, in any
#: case.
MISSING = (
    *("", "nan", "na", "n/a", "#n/a", "pd.na", "<na>", "nat", "<nat>", "none", "null", "nil"),
    *("-", ".", "?", "missing", "unassigned", "inf", "-inf"),
)


@dataclass
class TrainingData:
    """Training cells, in a private copy that the model takes over.

    Attributes
    ----------
    x
        Values on a linear scale, CSR (n_cells, n_genes) float32.
    genes
        Genes: names in the index, other identifiers in the columns.
    is_counts
        Whether ``x`` holds counts; otherwise it is normalised (CP10k, CPM, TPM).
    labels
        Type of each cell, (n_cells,); missing for unlabelled cells.
    domain
        Domain codes, (n_cells,): reference or query, combined with the batch if given.
    colors
        Scanpy's colours of the types, by name; empty if there are none.
    ignore_case
        Whether case is ignored when matching gene names.
    audit
        Notes on data checks and repairs.
    lost
        Types whose cells express no gene, so that they were left out.
    whole
        Types of all cells of the reference, if only some were read.
    of_query
        Cells of the query that were read, a mask; None if all were.
    """

    x: sp.csr_matrix
    genes: pd.DataFrame
    is_counts: bool
    labels: pd.Categorical
    domain: np.ndarray
    audit: list[str]
    colors: dict[str, str] = field(default_factory=dict)
    ignore_case: bool = False
    lost: list[str] = field(default_factory=list)
    whole: pd.Categorical | None = None
    of_query: np.ndarray | None = None

    @property
    def reference_codes(self) -> np.ndarray:
        """Type codes of all labelled cells, also of those that were not read."""
        labels = self.labels
        if self.whole is not None:
            labels = self.whole.set_categories(labels.categories)
        return labels.codes[labels.codes >= 0]

    def drop_empty(self, n_last: int) -> np.ndarray:
        """Leave out cells that express no gene: they hold no information.

        Parameters
        ----------
        n_last
            Number of cells, at the end, that belong to the query or to the only object.

        Returns
        -------
        Mask of those that are kept, (n_last,).

        Raises
        ------
        ValueError
            None of them express a gene, or cells of fewer than two types do.
        """
        keep = np.asarray(self.x.sum(axis=1)).ravel() > 0
        kept_ref, kept_query = np.split(keep, [len(keep) - n_last])
        if not kept_query.any():
            raise ValueError(f"None of the {n_last} cells express any of the genes used.")
        if keep.all():
            return kept_query
        for side, kept in (("ref", kept_ref), ("query", kept_query)):
            if n := int((~kept).sum()):
                note = f"{side}: {n} cells express none of the genes used and were left out"
                logger.warning("%s.", note)
                self.audit.append(note)
        self.x, self.domain = self.x[keep], self.domain[keep]
        labels = self.labels.remove_unused_categories()
        self.labels = labels[keep].remove_unused_categories()
        self.lost = [name for name in labels.categories if name not in self.labels.categories]
        if self.lost:
            self.audit.append(f"ref: no cell of {self.lost!r} expresses a gene that is used")
        if self.lost and len(self.labels.categories) < 2:
            raise ValueError(
                f"No cell of the types {self.lost!r} expresses any of the genes used, so fewer "
                "than 2 types are left."
            )
        return kept_query

    @property
    def expression(self) -> Expression:
        """The values as an :class:`Expression`."""
        scale = Scale("counts" if self.is_counts else "linear")
        return Expression(self.x, self.genes, "training data", "X", scale)


def read_cells(
    adata: AnnData, layer: str | None, side: str, ignore_case: bool = False
) -> TrainingData:
    """Read the cells of one object, as unlabelled cells of one domain.

    Raises the errors of :func:`find_expression`.
    """
    expression, audit = find_expression(adata, layer, side)
    names = clean_names(expression.var.index, ignore_case)
    names[other_features(expression.var)] = ""
    genes = pd.Index(pd.unique(names[names != ""]))
    audit += [*note_other(side, expression.var), *note_genome(side, expression.var)]
    audit += note_duplicates(names, genes, side)
    chunks = expression.linear(locate(names, genes), len(genes))
    return TrainingData(
        x=sp.vstack(list(chunks), format="csr"),
        genes=gene_table(expression.var, names, genes),
        is_counts=expression.scale.name == "counts",
        labels=pd.Categorical.from_codes(np.full(adata.n_obs, -1), []),
        domain=np.zeros(adata.n_obs, dtype=np.int64),
        audit=audit,
        ignore_case=ignore_case,
    )


def join(
    adata: AnnData,
    ref: AnnData,
    *,
    labels_key: str,
    batch_key: str | None = None,
    layer: str | None = None,
    ignore_case: bool = False,
    in_part: bool = False,
    held_out: np.ndarray | None = None,
) -> TrainingData:
    """Concatenate reference and query on their shared genes, in the reference's order.

    Parameters
    ----------
    in_part
        Of more than ``MOST`` cells of a side, so many are read.
    held_out
        Mask of cells of the reference that are not read, (n_ref,).

    Raises
    ------
    KeyError
        A column or the layer is missing.
    ValueError
        Fewer than two types, too few shared genes, or unusable values.
    """
    values = obs_column(ref, labels_key, "labels_key", "ref")
    labels = clean_labels(values)
    if len(labels.categories) < 2:
        raise ValueError(
            f"ref.obs[{labels_key!r}] has {len(labels.categories)} cell type(s); at least 2 are "
            "needed."
        )
    audit: list[str] = []
    n_missing = int((labels.codes < 0).sum())
    if n_missing:
        audit.append(f"ref: {n_missing} cells without a label were left out")
    if texts := sorted(set(values[labels.codes < 0].dropna().astype(str))):
        audit.append(f"ref: labels {texts!r} were treated as missing")
    if padded := sorted(t for t in set(values.dropna().astype(str)) - set(texts) if t != t.strip()):
        audit.append(f"ref: spaces around the labels {padded!r} were removed")

    sides, notes = _find_both(adata, ref, layer, ignore_case)
    audit += notes
    ref_names, query_names, notes = match_genes(sides["ref"].var, sides["query"].var, ignore_case)
    names = {"ref": ref_names, "query": query_names}
    audit += notes
    in_query = set(names["query"]) - {""}
    shared = pd.Index(pd.unique(np.array([g for g in names["ref"] if g in in_query], dtype=object)))
    n, variables = len(shared), (sides["ref"].var, sides["query"].var)
    if n < _genes.MIN_SHARED or (not ignore_case and differ_in_case(n, *variables)):
        raise ValueError(too_few(n, *variables, ignore_case))
    n_ref, n_query = (len(expression.var) for expression in sides.values())
    audit.append(f"genes: {len(shared)} are shared (reference: {n_ref}, query: {n_query})")

    some: dict[str, np.ndarray | None] = {"ref": None, "query": None}
    # Among the query's cells, those of the reference without a label would make it look novel: they
    # mix with the labelled ones, as the query often does not
    labelled = labels.codes >= 0
    of_ref = np.flatnonzero(labelled if held_out is None else labelled & ~held_out)
    sampled = _sample.sample(labels.codes[of_ref]) if in_part else None
    if len(of_ref) < ref.n_obs or sampled is not None:
        some["ref"] = np.isin(np.arange(ref.n_obs), of_ref if sampled is None else of_ref[sampled])
    if in_part:
        some["query"] = _sample.sample(np.zeros(adata.n_obs, dtype=np.int64))
    blocks: list[sp.csr_matrix] = []
    for side, expression in sides.items():
        audit += note_duplicates(names[side], shared, side)
        column = locate(names[side], shared)
        blocks += expression.linear(column, len(shared), some[side])

    domain = np.repeat(np.array(["ref", "query"], dtype=object), [ref.n_obs, adata.n_obs])
    if batch_key is not None:
        batches = []
        for side, side_adata in (("ref", ref), ("query", adata)):
            batches.append(batch_names(obs_column(side_adata, batch_key, "batch_key", side)))
        domain = domain + ":" + np.concatenate(batches)
    codes, whole, read = labels.codes, None, np.ones(len(domain), dtype=bool)
    if (chosen := some["ref"]) is not None:
        read[: ref.n_obs] = chosen
    if sampled is not None:
        audit.append(_sample.note(codes[of_ref], sampled))
        whole = labels
    if (of_query := some["query"]) is not None:
        read[ref.n_obs :] = of_query
        audit.append(
            f"query: {of_query.sum()} of {adata.n_obs} cells, evenly spaced, were read for "
            "training, as no more are held in memory; the model then named all"
        )
    codes, domain = np.concatenate([codes, np.full(adata.n_obs, -1)])[read], domain[read]
    return TrainingData(
        x=sp.vstack(blocks, format="csr"),
        genes=gene_table(sides["ref"].var, names["ref"], shared),
        is_counts=all(expression.scale.name == "counts" for expression in sides.values()),
        audit=audit,
        labels=pd.Categorical.from_codes(codes, labels.categories).remove_unused_categories(),
        domain=np.unique(domain, return_inverse=True)[1].astype(np.int64),
        colors=palette(ref, labels_key),
        ignore_case=ignore_case,
        whole=whole,
        of_query=of_query,
    )


def _find_both(
    adata: AnnData, ref: AnnData, layer: str | None, ignore_case: bool
) -> tuple[dict[str, Expression], list[str]]:
    """Expression values of both sides, and notes.

    A layer that only one side has is used there. ``raw`` is used instead of ``X`` where far more
    genes are shared, as if ``X`` holds each side's own variable genes.
    """
    objects = {"ref": ref, "query": adata}
    having = [s for s, a in objects.items() if layer in a.layers or (layer == "raw" and a.raw)]
    if layer is not None and not having:
        find_expression(ref, layer, "ref")  # raises
    found = {}
    for side, side_adata in objects.items():
        lacking = layer is not None and side not in having
        expression, notes = find_expression(side_adata, None if lacking else layer, side)
        if lacking:
            notes.insert(0, f"{side}: has no layer {layer!r}; other values were looked for")
        found[side] = expression, notes
    if layer is None:
        found |= _raw_with_more_genes(objects, {s: e for s, (e, _) in found.items()}, ignore_case)
    sides = {side: expression for side, (expression, _) in found.items()}
    return sides, [note for _, notes in found.values() for note in notes]


def _raw_with_more_genes(
    objects: dict[str, AnnData], sides: dict[str, Expression], ignore_case: bool
) -> dict[str, tuple[Expression, list[str]]]:
    """Expression values and notes of the sides whose ``raw`` should be used instead of ``X``."""

    def shared_with(use_raw: tuple[str, ...]) -> int:
        ref_var, query_var = (
            objects[s].raw.var if s in use_raw else sides[s].var for s in ("ref", "query")
        )
        return n_shared(ref_var, query_var, ignore_case)

    able = [s for s, expression in sides.items() if expression.slot == "X" and objects[s].raw]
    choices = [c for n in range(len(able) + 1) for c in itertools.combinations(able, n)]
    if len(choices) == 1:
        return {}
    shared = {use_raw: shared_with(use_raw) for use_raw in choices}
    best = max(choices, key=lambda use_raw: shared[use_raw])
    if shared[best] <= FAR_MORE * shared[()]:
        return {}
    try:
        found = {side: find_expression(objects[side], "raw", side) for side in best}
    except ValueError:  # its values are unusable
        return {}
    for _, notes in found.values():
        notes[0] += f", where {shared[best]} genes are shared instead of {shared[()]}"
    return found


def layer_of(adata: AnnData, layer: str | None) -> str | None:
    """The layer, or "raw", if these cells have it; else None."""
    raw = layer == "raw" and adata.raw is not None
    return layer if raw or layer in adata.layers else None


def find_query(
    adata: AnnData, layer: str | None, genes: pd.DataFrame, ignore_case: bool
) -> tuple[Expression, list[str]]:
    """Expression values of a query for a trained model with some genes, and notes.

    As in :func:`join`, ``raw`` is used instead of ``X`` where it has far more of the genes.
    """
    found = find_expression(adata, layer, "query")
    if layer is not None or found[0].slot != "X" or adata.raw is None:
        return found
    n_x, n_raw = (n_shared(genes, var, ignore_case) for var in (found[0].var, adata.raw.var))
    if n_raw <= FAR_MORE * n_x:
        return found
    try:
        expression, notes = find_expression(adata, "raw", "query")
    except ValueError:  # its values are unusable
        return found
    return expression, [f"{notes[0]}, which has {n_raw} of the genes instead of {n_x}", *notes[1:]]


def n_shared(ref_var: pd.DataFrame, query_var: pd.DataFrame, ignore_case: bool) -> int:
    """Number of genes that two tables share by name."""
    ref_names, query_names, _ = match_genes(ref_var, query_var, ignore_case)
    return len((set(ref_names) & set(query_names)) - {""})


def obs_column(adata: AnnData, key: str, name: str, side: str) -> pd.Series:
    """A column of ``obs``, in memory.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        There are several.
    """
    found = [str(column) for column in adata.obs.columns]
    if key not in found:
        raise KeyError(f"{name}={key!r} is not in the {side}'s obs; found {found!r}.")
    if found.count(key) > 1:
        raise ValueError(
            f"{name}={key!r}: the {side}'s obs has {found.count(key)} columns of that name. Rename "
            "or remove all but one."
        )
    values = adata.obs[key]
    # (of an AnnData that was read lazily)
    return values if isinstance(values, pd.Series) else adata.obs[[key]].to_memory()[key]


def clean_labels(values: pd.Series, keep: Collection[str] = ()) -> pd.Categorical:
    """Convert labels of any dtype to strings, keeping missing values as missing.

    So are strings that stand for a missing value, such as "" and "nan", except those to ``keep``,
    in lower case. Spaces around labels are removed. Categories keep their order and unused ones are
    dropped; other labels are sorted.
    """
    missing = set(MISSING) - set(keep)
    values = values.where(~values.astype(str).str.strip().str.lower().isin(missing).to_numpy())
    if isinstance(values.dtype, pd.CategoricalDtype):
        used = values.cat.remove_unused_categories()
        names = [str(c) for c in used.cat.categories]
        if len(set(names)) < len(names):
            raise ValueError(
                f"Labels are equal once converted to strings: {names!r}. Use distinct labels."
            )
        names = [name.strip() for name in names]
        distinct = list(dict.fromkeys(names))
        position = np.append(pd.Index(distinct).get_indexer(names), -1)
        return pd.Categorical.from_codes(position[used.cat.codes.to_numpy()], distinct)
    present = values.notna().to_numpy()
    text = np.full(len(values), None, dtype=object)
    text[present] = values[present].astype(str).str.strip().to_numpy()
    return pd.Categorical(text, categories=sorted(set(text[present])))


def batch_names(values: pd.Series) -> np.ndarray:
    """Convert batches of any dtype to strings; cells without one form the batch "nan"."""
    return values.astype(object).where(values.notna(), "nan").astype(str).to_numpy(dtype=object)


def palette(adata: AnnData, key: str) -> dict[str, str]:
    """Scanpy's colours of a categorical column, by category; empty if there are none."""
    from matplotlib.colors import is_color_like, to_hex

    colors = adata.uns.get(f"{key}_colors")
    values = obs_column(adata, key, "key", "data")
    if colors is None or not isinstance(values.dtype, pd.CategoricalDtype):
        return {}
    names = [str(name) for name in values.cat.categories]
    pairs = colors.items() if isinstance(colors, Mapping) else zip(names, colors, strict=False)
    return {
        str(name).strip(): color if isinstance(color, str) else to_hex(color)
        for name, color in pairs
        if is_color_like(color)
    }
