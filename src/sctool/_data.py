"""From a user's AnnData to the matrix that a model sees.

Three steps, each of which leaves sentences in an audit that ends in ``uns[key]["audit"]``:

1. :func:`find_expression` finds values on a known scale (counts, linear or log1p) in ``X``, ``raw``
   or a layer, or refuses with what was found and what to do.
2. :func:`match_genes` pairs the genes of two objects by name.
3. :class:`Features`, fitted once per model, turns the expression of any object into its inputs:
   align, size factors on *all* genes that both sides share, log1p, then the selected genes. The
   order matters: size factors on each side's own genes cost up to a point of accuracy where the
   two gene sets differ.

Cells stay sparse and are read in chunks: backed files and lazy arrays go the same way.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

logger = logging.getLogger("sctool")

TARGET_SUM = 1e4
CHUNK = 8192
MIN_SHARED, FEW_SHARED = 200, 500
MIN_PRESENT, FEW_PRESENT = 0.5, 0.8
# The largest log2(CPM + 1) is log2(1e6) < 20; what exceeds this cannot be logarithmic.
LOG_MAX = 25.0
COUNT_LAYERS = ("counts", "raw_counts", "count", "umi_counts", "umis")
ENSEMBL = re.compile(r"^(ENS[A-Z]*[GTP]\d{6,})(\.\d+)?$")


def rows(matrix: Any, start: int, stop: int) -> sp.csr_matrix:
    """Rows ``start:stop`` of a dense, sparse, backed or lazy matrix as CSR in memory."""
    block = matrix[start:stop]
    if hasattr(block, "compute"):  # dask
        block = block.compute()
    if hasattr(block, "to_memory"):
        block = block.to_memory()
    return sp.csr_matrix(block if sp.issparse(block) else np.asarray(block))


@dataclass(frozen=True)
class Expression:
    """Expression values where they lie in an AnnData, and the scale that they are on."""

    matrix: Any
    var: pd.DataFrame
    slot: str
    scale: str  # "counts", "linear" or "log1p"
    base: float = np.e  # of the logarithm

    @property
    def n_cells(self) -> int:
        return self.matrix.shape[0]

    def linear(self, selector: sp.csr_matrix) -> Iterator[sp.csr_matrix]:
        """Chunks of cells on the linear scale, genes mapped by ``selector`` (genes x wanted).

        A selector column with several ones adds up duplicates of a gene.
        """
        for start in range(0, self.n_cells, CHUNK):
            x = rows(self.matrix, start, min(start + CHUNK, self.n_cells))
            x = sp.csr_matrix(x, dtype=np.float32, copy=x.dtype == np.float32)
            if self.scale == "log1p":
                x.data = np.expm1(x.data * np.float32(np.log(self.base)))
            yield sp.csr_matrix(x @ selector)


def detect_scale(matrix: Any) -> str:
    """Scale of a whole matrix, read in chunks.

    Returns
    -------
    ``"counts"`` (non-negative integers), ``"log1p"``, ``"linear"`` (non-negative, normalised but
    not logarithmic: CPM, TPM, RPKM), or why it cannot be used: ``"missing"`` (NaN or infinite
    values), ``"scaled"`` (negative values, or unit variance for every gene), ``"empty"``.
    """
    n_cells, n_genes = matrix.shape
    top, integer = 0.0, True
    totals: list[np.ndarray] = []
    first, second = np.zeros(n_genes), np.zeros(n_genes)
    for start in range(0, n_cells, CHUNK):
        x = rows(matrix, start, min(start + CHUNK, n_cells))
        data = x.data
        if not np.isfinite(data).all():
            return "missing"
        if data.size and data.min() < 0:
            return "scaled"
        top = max(top, float(data.max(initial=0)))
        integer = integer and bool(np.equal(np.mod(data, 1), 0).all())
        totals.append(np.asarray(x.sum(axis=1, dtype=np.float64)).ravel())
        if not integer:
            first += np.asarray(x.sum(axis=0, dtype=np.float64)).ravel()
            second += np.asarray(x.power(2).sum(axis=0, dtype=np.float64)).ravel()
    total = np.concatenate(totals) if totals else np.zeros(0)
    if top == 0:
        return "empty"
    if integer:
        return "counts"
    if n_cells > 1 and total.std() < 1e-3 * total.mean():
        return "linear"
    if top > LOG_MAX:
        return "linear"
    variance = (second - first**2 / n_cells) / max(n_cells - 1, 1)
    varying = variance > 0
    if n_cells > 20 and varying.any() and np.mean(np.abs(variance[varying] - 1) < 0.01) > 0.9:
        return "scaled"  # scanpy.pp.scale(zero_center=False) leaves no negative values behind
    return "log1p"


def find_expression(adata: AnnData, layer: str | None, side: str) -> tuple[Expression, list[str]]:
    """The usable expression values of ``adata``, and what was noted on the way.

    ``layer`` names where to look (``"raw"`` for ``adata.raw``). Without it ``X`` is taken, or, if
    ``X`` cannot be used, ``raw`` or a layer of counts.

    Raises
    ------
    KeyError
        ``layer`` is not there.
    ValueError
        No cells, or no values on a scale that can be used.
    """
    if adata.n_obs == 0:
        raise ValueError(f"{side} has no cells: found shape {adata.shape}.")
    base = (adata.uns.get("log1p") or {}).get("base") or np.e
    slots: list[tuple[str, Any, pd.DataFrame]] = []
    if layer == "raw" and adata.raw is not None:
        slots.append(("raw.X", adata.raw.X, adata.raw.var))
    elif layer is not None:
        if layer not in adata.layers:
            found = [*filter(None, adata.layers), *(["raw"] if adata.raw is not None else [])]
            raise KeyError(f"layer={layer!r} is not in the {side}'s layers; found {found!r}.")
        slots.append((f"layers[{layer!r}]", adata.layers[layer], adata.var))
    else:
        if adata.X is not None:
            slots.append(("X", adata.X, adata.var))
        if adata.raw is not None:
            slots.append(("raw.X", adata.raw.X, adata.raw.var))
        names = [n for n in adata.layers if isinstance(n, str) and n.lower() in COUNT_LAYERS]
        slots += [(f"layers[{name!r}]", adata.layers[name], adata.var) for name in names]

    reasons = {
        "missing": "missing or infinite values",
        "scaled": "scaled values (negative, or unit variance for every gene)",
        "empty": "only zeros",
    }
    refused: list[str] = []
    for slot, matrix, var in slots:
        if sp.issparse(matrix) and matrix.format != "csr":
            matrix = sp.csr_matrix(matrix)  # a CSC matrix is slow to read by rows
        scale = detect_scale(matrix)
        if scale not in reasons:
            notes = [f"{side}: read {scale} values from {slot}"]
            if refused:
                notes[0] += f", because {' and '.join(refused)}"
            return Expression(matrix, var, slot, scale, base), notes
        refused.append(f"{slot} holds {reasons[scale]}")
    raise ValueError(
        f"The {side} has no usable expression values: {'; '.join(refused) or 'X is empty'}. "
        "Pass raw counts or log1p-normalised values in X, in adata.raw, or in a layer named with "
        "layer=..."
    )


def _clean(names: Any, ignore_case: bool) -> np.ndarray:
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


def _selector(names: np.ndarray, wanted: pd.Index) -> sp.csr_matrix:
    """Matrix (genes x wanted) of ones where a gene carries a wanted name."""
    target = wanted.get_indexer(names)
    source = np.flatnonzero(target >= 0)
    ones = np.ones(len(source), dtype=np.float32)
    return sp.csr_matrix((ones, (source, target[source])), shape=(len(names), len(wanted)))


def match_genes(
    ref_var: pd.DataFrame, query_var: pd.DataFrame, ignore_case: bool = False
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Names under which the genes of both sides are compared.

    The index of each side, unless another column of ``var`` (symbols, Ensembl ids) makes at least
    half as many genes again match.

    Returns
    -------
    Name of each reference gene, name of each query gene, notes. A gene that repeats a name is
    added to its first occurrence.
    """

    def candidates(var: pd.DataFrame) -> dict[str, np.ndarray]:
        columns = identifiers(var)
        found = {"var_names": _clean(var.index, ignore_case)}
        return found | {f"var[{c!r}]": _clean(columns[c], ignore_case) for c in columns}

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


def _duplicates(names: np.ndarray, shared: pd.Index, side: str) -> list[str]:
    n = int(pd.Series(names)[pd.Series(names).isin(shared)].duplicated().sum())
    return [f"{side}: added up {n} duplicated genes"] if n else []


def _too_few(n: int, ref_var: pd.DataFrame, query_var: pd.DataFrame, ignore_case: bool) -> str:
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


def clean_labels(values: pd.Series) -> pd.Categorical:
    """Labels of any dtype as text, missing ones kept missing, unused categories dropped.

    Categories keep their order; other labels are sorted.
    """
    if isinstance(values.dtype, pd.CategoricalDtype):
        used = values.cat.remove_unused_categories()
        names = [str(c) for c in used.cat.categories]
        if len(set(names)) < len(names):
            raise ValueError(f"Labels that differ in type only, as text they are equal: {names!r}.")
        return pd.Categorical.from_codes(used.cat.codes.to_numpy(), names)
    present = values.notna().to_numpy()
    text = np.full(len(values), None, dtype=object)
    text[present] = values[present].astype(str).to_numpy()
    return pd.Categorical(text, categories=sorted(set(text[present])))


def batch_names(values: pd.Series) -> np.ndarray:
    """Batches of any dtype as text; cells without one are a batch of their own, "nan"."""
    return values.astype(object).where(values.notna(), "nan").astype(str).to_numpy(dtype=object)


def unlabelled_name(labels: pd.Categorical) -> str:
    """A name for unlabelled cells that no type bears."""
    name = "Unknown"
    while name in labels.categories:
        name = f"_{name}"
    return name


def join(
    adata: AnnData,
    ref: AnnData,
    *,
    labels_key: str,
    batch_key: str | None = None,
    layer: str | None = None,
    ignore_case: bool = False,
) -> tuple[AnnData, str, list[str]]:
    """One private AnnData of the reference's and the query's cells on their shared genes.

    Returns
    -------
    joint
        ``X`` CSR, float32, linear scale, reference cells first, genes in the reference's order;
        ``obs["labels"]`` the reference's labels; ``obs["domain"]`` which side (and which batch of
        it) a cell is from. Neither input is changed or kept.
    unlabelled
        The category of ``obs["labels"]`` that the query's cells, and reference cells without a
        label, have.
    audit
        What was found and repaired.
    """
    if labels_key not in ref.obs:
        raise KeyError(
            f"labels_key={labels_key!r} is not in ref.obs; found {list(ref.obs.columns)!r}."
        )
    labels = clean_labels(ref.obs[labels_key])
    if len(labels.categories) < 2:
        raise ValueError(
            f"ref.obs[{labels_key!r}] names {len(labels.categories)} type(s); 2 are needed."
        )
    audit: list[str] = []
    n_missing = int((labels.codes < 0).sum())
    if n_missing:
        audit.append(f"ref: {n_missing} cells without a label were used as unlabelled")

    sides = {}
    for side, side_adata in (("ref", ref), ("query", adata)):
        sides[side], notes = find_expression(side_adata, layer, side)
        audit += notes
    ref_names, query_names, notes = match_genes(sides["ref"].var, sides["query"].var, ignore_case)
    names = {"ref": ref_names, "query": query_names}
    audit += notes
    in_query = set(names["query"]) - {""}
    shared = pd.Index(pd.unique(np.array([g for g in names["ref"] if g in in_query], dtype=object)))
    if len(shared) < MIN_SHARED:
        raise ValueError(_too_few(len(shared), sides["ref"].var, sides["query"].var, ignore_case))
    if len(shared) < FEW_SHARED:
        note = f"genes: only {len(shared)} are shared"
        logger.warning("%s; fine types may not be told apart.", note)
        audit.append(note)

    blocks = []
    for side, expression in sides.items():
        audit += _duplicates(names[side], shared, side)
        x = sp.vstack(list(expression.linear(_selector(names[side], shared))), format="csr")
        if expression.scale != "counts":
            x.data *= np.float32(_to_target_sum(x))
        blocks.append(x)

    unlabelled = unlabelled_name(labels)
    categories = [*labels.categories, unlabelled]
    codes = np.where(labels.codes < 0, len(categories) - 1, labels.codes)
    codes = np.concatenate([codes, np.full(adata.n_obs, len(categories) - 1)])
    domain = np.repeat(np.array(["ref", "query"], dtype=object), [ref.n_obs, adata.n_obs])
    if batch_key is not None:
        batches = []
        for side, side_adata in (("ref", ref), ("query", adata)):
            if batch_key not in side_adata.obs:
                raise KeyError(
                    f"batch_key={batch_key!r} is not in the {side}'s obs; found "
                    f"{list(side_adata.obs.columns)!r}."
                )
            batches.append(batch_names(side_adata.obs[batch_key]))
        domain = domain + ":" + np.concatenate(batches)
    obs = pd.DataFrame(
        {"labels": pd.Categorical.from_codes(codes, categories), "domain": pd.Categorical(domain)},
        index=pd.Index(
            [*(f"ref-{i}" for i in range(ref.n_obs)), *(f"query-{i}" for i in range(adata.n_obs))]
        ),
    )
    first = pd.Series(np.arange(len(names["ref"])), index=names["ref"])
    first = first[~first.index.duplicated()].loc[shared].to_numpy()
    var = identifiers(sides["ref"].var.iloc[first])
    var.index = shared.astype(str)
    joint = AnnData(sp.vstack(blocks, format="csr"), obs=obs, var=var)
    palette = colors(ref, labels_key)
    if all(name in palette for name in labels.categories):
        # the last for the unlabelled cells, which are no type
        joint.uns["labels_colors"] = [*(palette[name] for name in labels.categories), "#808080"]
    return joint, unlabelled, audit


def alone(adata: AnnData, layer: str | None = None) -> tuple[AnnData, list[str]]:
    """A private AnnData of the expression of one object's cells, and what was found.

    ``X`` is CSR, float32, on a linear scale; no column of ``obs`` is in it.
    """
    expression, audit = find_expression(adata, layer, "data")
    names = _clean(expression.var.index, ignore_case=False)
    genes = pd.Index(pd.unique(names[names != ""]))
    audit += _duplicates(names, genes, "data")
    x = sp.vstack(list(expression.linear(_selector(names, genes))), format="csr")
    if expression.scale != "counts":
        x.data *= np.float32(_to_target_sum(x))
    first = pd.Series(np.arange(len(names)), index=names)
    first = first[~first.index.duplicated()].loc[genes].to_numpy()
    var = identifiers(expression.var.iloc[first])
    var.index = genes.astype(str)
    return AnnData(x, obs=pd.DataFrame(index=adata.obs_names.astype(str)), var=var), audit


def _to_target_sum(x: sp.csr_matrix) -> float:
    """The factor that brings the cells' median total to ``TARGET_SUM``.

    Cells are scaled to a common total later; a constant for all of them changes nothing, but keeps
    the matrix recognisable as linear.
    """
    total = np.asarray(x.sum(axis=1)).ravel()
    return TARGET_SUM / np.median(total[total > 0]) if x.nnz else 1.0


def colors(adata: AnnData, key: str) -> dict[str, str]:
    """Scanpy's colours of a categorical column, by category; empty if there are none."""
    colors = adata.uns.get(f"{key}_colors")
    if colors is None or not isinstance(adata.obs[key].dtype, pd.CategoricalDtype):
        return {}
    return dict(zip(map(str, adata.obs[key].cat.categories), map(str, colors), strict=False))


def normalize(x: sp.csr_matrix, target_sum: float = TARGET_SUM) -> sp.csr_matrix:
    """Log1p of each cell's values scaled to ``target_sum``, in place; empty cells stay empty."""
    total = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
    total[total == 0] = 1.0
    x.data = np.log1p(x.data * np.repeat(target_sum / total, np.diff(x.indptr))).astype(np.float32)
    return x


def informative_genes(x: sp.csr_matrix, domain: np.ndarray, n_top_genes: int) -> np.ndarray:
    """Indices of the genes that vary most, each domain given the same say (scanpy's "seurat").

    Domains of fewer than 50 cells, too few to estimate a dispersion, have no say, unless there
    is no other.
    """
    import scanpy as sc

    names, codes = np.unique(domain, return_inverse=True)
    large = np.flatnonzero(np.bincount(codes) >= 50)
    use = np.isin(codes, large) if len(large) else np.ones(len(codes), dtype=bool)
    obs = pd.DataFrame(
        {"domain": pd.Categorical(names[codes[use]])}, index=np.arange(use.sum()).astype(str)
    )
    cells = AnnData(x[use], obs=obs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scanpy warns of genes that no cell of a domain expresses
        table = sc.pp.highly_variable_genes(
            cells,
            n_top_genes=n_top_genes,
            flavor="seurat",
            batch_key="domain" if cells.obs["domain"].nunique() > 1 else None,
            inplace=False,
        )
    return np.flatnonzero(table["highly_variable"].to_numpy())


@dataclass
class Features:
    """How a model sees cells: learnt from its training data, applied to whatever it is given.

    Parameters
    ----------
    genes
        One row per gene that the size factors are computed on; the index is its name, the columns
        are other identifiers.
    selected
        Names of the genes that the network sees.
    mean
        Mean input of each selected gene over the labelled cells, for genes that are missing.
    target_sum
        Total that each cell is scaled to before the logarithm.
    ignore_case
        Whether gene names are compared without regard to case.
    """

    genes: pd.DataFrame
    selected: pd.Index
    mean: np.ndarray
    target_sum: float = TARGET_SUM
    ignore_case: bool = False

    @classmethod
    def fit(
        cls,
        expression: Expression,
        labelled: np.ndarray,
        domain: np.ndarray,
        n_top_genes: int | None,
        target_sum: float | None = TARGET_SUM,
        ignore_case: bool = False,
    ) -> tuple[Features, sp.csr_matrix, list[str]]:
        """Learn from the training cells; returns also their inputs (cells x selected) and notes.

        ``target_sum=None`` scales each cell to the median of their totals if they are counts, which
        alone say how deeply cells were sequenced, and else to ``TARGET_SUM``.
        """
        names = _clean(expression.var.index, ignore_case)
        genes = pd.Index(pd.unique(names))
        first = ~pd.Series(names).duplicated().to_numpy()
        table = identifiers(expression.var.iloc[first])
        table.index = genes
        x = sp.vstack(list(expression.linear(_selector(names, genes))), format="csr")
        notes = _empty_cells(x)
        if target_sum is None and expression.scale == "counts":
            total = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
            target_sum = float(np.median(total[total > 0]))
        elif target_sum is None:
            target_sum = TARGET_SUM
        x = normalize(x, target_sum)
        if n_top_genes is not None and n_top_genes < len(genes):
            keep = informative_genes(x, domain, n_top_genes)
        else:
            keep = np.flatnonzero(np.asarray(x.sum(axis=0)).ravel() > 0)
        # By name, so that the order of the genes in a file decides nothing.
        keep = keep[np.argsort(genes[keep].to_numpy().astype(str))]
        x = x[:, keep]
        mean = np.asarray(x[labelled].mean(axis=0), dtype=np.float32).ravel()
        return cls(table, genes[keep], mean, target_sum, ignore_case), x, notes

    def transform(
        self, adata: AnnData, layer: str | None = None
    ) -> tuple[Iterator[sp.csr_matrix], np.ndarray | None, list[str]]:
        """Inputs of the cells of any AnnData.

        Returns
        -------
        chunks
            Iterator over CSR blocks (cells x selected), log1p CP10k.
        fill
            What to add to every cell for the genes that ``adata`` lacks: the reference's mean
            there, 0 elsewhere; None if it has all.
        audit
            What was found and repaired.

        Raises
        ------
        ValueError
            Fewer than half of the selected genes are there, or no usable values.
        """
        expression, audit = find_expression(adata, layer, "query")
        ours, theirs, notes = match_genes(self.genes, expression.var, self.ignore_case)
        audit += notes
        wanted = pd.Index(ours)
        selector = _selector(theirs, wanted)
        audit += _duplicates(theirs, wanted, "query")
        columns = self.genes.index.get_indexer(self.selected)
        present = (np.diff(selector.tocsc().indptr) > 0)[columns]
        share = present.mean()
        n, of = int(present.sum()), len(present)
        text = f"{n} of the model's {of} genes ({share:.0%}) are in the query"
        if share < MIN_PRESENT:
            raise ValueError(
                f"Only {text}; at least {MIN_PRESENT:.0%} are needed. Model: "
                f"{list(self.selected[:3])!r}, query: {list(expression.var.index[:3])!r}. Give the "
                "query the same kind of gene names, or train on the genes that both have."
            )
        if share < 1:
            audit.append(f"genes: {text}; the others took the reference's mean")
        if share < FEW_PRESENT:
            logger.warning("Only %s; the others take the reference's mean.", text)
        fill = np.where(present, 0, self.mean).astype(np.float32) if share < 1 else None

        def chunks() -> Iterator[sp.csr_matrix]:
            for x in expression.linear(selector):
                audit.extend(note for note in _empty_cells(x) if note not in audit)
                yield normalize(x, self.target_sum)[:, columns]

        return chunks(), fill, audit

    def total_counts(self, adata: AnnData, layer: str | None = None) -> np.ndarray:
        """Counts of each cell over the genes of its size factor, (n_cells,) float32.

        Raises
        ------
        ValueError
            The values are no counts.
        """
        expression, _ = find_expression(adata, layer, "data")
        if expression.scale != "counts":
            raise ValueError(f"{expression.slot} holds {expression.scale} values.")
        ours, theirs, _ = match_genes(self.genes, expression.var, self.ignore_case)
        chunks = expression.linear(_selector(theirs, pd.Index(ours)))
        totals = [np.asarray(x.sum(axis=1), dtype=np.float32).ravel() for x in chunks]
        return np.concatenate(totals)

    def positions(self, var: pd.DataFrame) -> np.ndarray:
        """Position of each gene of ``var`` among the selected ones, (n_vars,); -1 if not there."""
        ours, theirs, _ = match_genes(self.genes, var, self.ignore_case)
        columns = self.genes.index.get_indexer(self.selected)
        return pd.Index(ours[columns]).get_indexer(theirs)


def _empty_cells(x: sp.csr_matrix) -> list[str]:
    n = int((np.diff(x.indptr) == 0).sum())
    if n:
        logger.warning("%d cells express none of the shared genes: their labels mean nothing.", n)
    return [f"cells: {n} express none of the shared genes; their labels mean nothing"] if n else []
