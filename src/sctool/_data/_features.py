"""Transformation of expression values to model inputs: normalisation and gene selection."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from sklearn.feature_selection import f_classif

from sctool._ahead import read_ahead
from sctool._data._expression import Expression, genes_of
from sctool._data._genes import advice, locate, match_genes, note_duplicates
from sctool._data._inputs import COUNTED, OTHER, to_inputs
from sctool._data._join import TrainingData

logger = logging.getLogger("sctool")

TARGET_SUM = 1e4
#: Fractions of a model's genes that a query must have, and below which a warning is given.
MIN_PRESENT, FEW_PRESENT = 0.5, 0.8
#: Advice where names match, but a selection of genes is too small for a model of others.
FEW = "Pass all genes that were measured, as a layer or raw may have them, or train on a reference."


def normalize(
    x: sp.csr_matrix, target_sum: float = TARGET_SUM, total: np.ndarray | None = None
) -> sp.csr_matrix:
    """Scale each cell to a total of ``target_sum`` and apply log1p, in place.

    Empty cells stay empty. ``total`` gives the cells' totals, (n_cells,), if ``x`` has only some of
    their genes.
    """
    if total is None:
        total = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
    total = np.where(total == 0, 1.0, total)
    x.data = np.log1p(x.data * np.repeat(target_sum / total, np.diff(x.indptr))).astype(np.float32)
    return x


def variable_genes(x: sp.csr_matrix, domain: np.ndarray, n_top_genes: int) -> np.ndarray:
    """Positions of highly variable genes, with domains as batches (scanpy's "seurat").

    Domains of fewer than 50 cells, too few to estimate dispersions, are ignored unless all are.

    Parameters
    ----------
    x
        Log1p values, CSR (n_cells, n_genes).
    domain
        Domain codes, (n_cells,).
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
        warnings.simplefilter("ignore")  # about genes not expressed in a domain
        table = sc.pp.highly_variable_genes(
            cells,
            n_top_genes=n_top_genes,
            flavor="seurat",
            batch_key="domain" if cells.obs["domain"].nunique() > 1 else None,
            inplace=False,
        )
    return np.flatnonzero(table["highly_variable"].to_numpy())


def marker_genes(x: sp.csr_matrix, y: np.ndarray, n: int) -> np.ndarray:
    """Positions of the ``n`` genes with the highest F statistic between types.

    Parameters
    ----------
    x, y
        Log1p values, CSR (n_cells, n_genes), and type codes, (n_cells,).
    """
    x = x.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about constant genes
        score = np.nan_to_num(f_classif(x, y)[0], posinf=np.inf)
    # With a single cell per type the F statistic is undefined; ties are broken by the variance.
    variance = np.asarray(x.multiply(x).mean(axis=0) - np.square(x.mean(axis=0))).ravel()
    return np.sort(np.lexsort((-variance, -score))[:n])


def filter_genes_by_percentile(x: sp.csr_matrix) -> np.ndarray:
    """Positions of the genes that pass ACTINN's filter.

    Expressed genes between the 1st and 99th percentile of total expression and then of the
    coefficient of variation.

    Parameters
    ----------
    x
        Log1p values, CSR (n_cells, n_genes).
    """
    x = x.astype(np.float64)
    total = np.asarray(x.sum(axis=0)).ravel()
    square = np.asarray(x.multiply(x).sum(axis=0)).ravel()
    mean = total / x.shape[0]
    deviation = np.sqrt(np.clip(square / x.shape[0] - mean**2, 0, None))
    keep = np.flatnonzero(total > 0)
    for value in (total, deviation / np.where(mean > 0, mean, 1)):
        low, high = np.percentile(value[keep], [1, 99])
        keep = keep[(value[keep] >= low) & (value[keep] <= high)]
    return keep


@dataclass
class Features:
    """Transformation to model inputs, fitted to the training data and applied to any cells.

    Size factors are computed on *all* shared genes before genes are selected. Computing them on
    each dataset's own genes costs up to one percentage point of accuracy if the gene sets differ.

    Attributes
    ----------
    genes
        Genes used for size factors: names in the index, other identifiers in the columns.
    selected
        Names of the genes that the model uses.
    mean
        Mean input of each selected gene over the labelled cells, used for missing genes.
    target_sum
        Total that each cell is scaled to before the logarithm.
    ignore_case
        Whether case is ignored when matching gene names.
    min_genes
        Number of the selected genes that a query must have; None for half of them.
    all_genes
        Whether size factors are computed on all genes of a query, as models of others may ask for.
    """

    genes: pd.DataFrame
    selected: pd.Index
    mean: np.ndarray
    target_sum: float = TARGET_SUM
    ignore_case: bool = False
    min_genes: int | None = None
    all_genes: bool = False

    @classmethod
    def fit(
        cls, data: TrainingData, n_top_genes: int | None, target_sum: float | None = TARGET_SUM
    ) -> tuple[Features, sp.csr_matrix]:
        """Fit to the training cells; also returns their inputs (cells x selected).

        ``target_sum=None`` scales counts to their median total per cell, and other values, which do
        not reflect sequencing depth, to ``TARGET_SUM``.
        """
        if target_sum is None:
            target_sum = TARGET_SUM
            if data.is_counts:
                total = np.asarray(data.x.sum(axis=1, dtype=np.float64)).ravel()
                target_sum = float(np.median(total[total > 0]))
        x = normalize(data.x.copy(), target_sum)
        genes = data.genes.index
        if n_top_genes is not None and n_top_genes < len(genes):
            keep = variable_genes(x, data.domain, n_top_genes)
        else:
            keep = np.flatnonzero(np.asarray(x.sum(axis=0)).ravel() > 0)
        # Sorted by name, so that the order of the genes in a file has no effect.
        keep = keep[np.argsort(genes[keep].to_numpy().astype(str))]
        x = x[:, keep]
        labelled = np.flatnonzero(data.labels.codes >= 0)
        mean = np.asarray((x[labelled] if len(labelled) else x).mean(axis=0), dtype=np.float32)
        return cls(data.genes, genes[keep], mean.ravel(), target_sum, data.ignore_case), x

    def keep(self, positions: np.ndarray) -> None:
        """Keep only the genes at the given positions of ``selected``."""
        self.selected, self.mean = self.selected[positions], self.mean[positions]

    def transform(
        self, expression: Expression
    ) -> tuple[Iterator[sp.csr_matrix], np.ndarray | None, list[str]]:
        """Transform any cells to model inputs.

        Returns
        -------
        chunks
            Iterator over CSR blocks (cells x selected), log1p CP10k.
        fill
            Values to add to every cell: the reference's mean for missing genes, 0 for others; None
            if no genes are missing.
        audit
            Notes on data checks and repairs, complete once all chunks are read.

        Raises
        ------
        ValueError
            Fewer of the selected genes are present than are needed.
        """
        place, n_columns, columns, fill, audit = self._match(expression)

        def chunks() -> Iterator[sp.csr_matrix]:
            for x in expression.linear(place, n_columns):
                total = np.asarray(x.sum(axis=1, dtype=np.float64)).ravel()
                yield normalize(x[:, columns], self.target_sum, total)

        return chunks(), fill, audit

    def reader(self, expression: Expression) -> tuple[Reader, list[str]]:
        """As :meth:`transform`, in one compiled step, with chunks that can be read ahead."""
        place, n_columns, columns, fill, audit = self._match(expression)
        genes = genes_of(expression.var)
        own = place if genes is None else place[genes]
        found = own[(own >= 0) & (own < len(self.genes))]
        summed = len(np.unique(found)) < len(found)
        if summed:
            own = np.arange(n_columns)
        input_of = np.full(n_columns, COUNTED)
        input_of[columns] = np.arange(len(columns))
        column = np.where(own < 0, OTHER, input_of[own])
        first = (place, n_columns) if summed else None
        return Reader(expression, first, column, self.target_sum, fill, len(columns)), audit

    def _match(
        self, expression: Expression
    ) -> tuple[np.ndarray, int, np.ndarray, np.ndarray | None, list[str]]:
        """Find the model's genes among those of some cells.

        Returns
        -------
        Column of each of the cells' genes, (n_vars,): its position among ``genes``, -1 if it is
        none of them or, with ``all_genes``, one column more for these; the number of columns;
        positions of ``selected`` among ``genes``; fill and audit of :meth:`transform`.
        """
        ours, theirs, audit = match_genes(self.genes, expression.var, self.ignore_case)
        audit += note_duplicates(theirs, pd.Index(ours), expression.side)
        columns = self.genes.index.get_indexer(self.selected)
        present = pd.Index(ours[columns]).isin(theirs)
        share = present.mean()
        n, of = int(present.sum()), len(present)
        text = f"{n} of the model's {of} genes ({share:.0%}) are in the query"
        too_few = share < MIN_PRESENT if self.min_genes is None else n < self.min_genes
        if too_few:
            needed = f"{MIN_PRESENT:.0%}" if self.min_genes is None else str(self.min_genes)
            raise ValueError(
                f"Only {text}; at least {needed} are needed. Model: "
                f"{list(self.selected[:3])!r}, query: {list(expression.var.index[:3])!r}. "
                + (
                    FEW
                    if n and self.min_genes
                    else advice(self.genes, expression.var, self.ignore_case)
                )
            )
        value = "the reference's mean" if self.mean.any() else "0"
        audit.append(
            f"genes: {text}" + (f"; missing genes were set to {value}" if share < 1 else "")
        )
        if share < FEW_PRESENT:
            logger.warning("Only %s; missing genes are set to %s.", text, value)
        fill = np.where(present, 0, self.mean).astype(np.float32) if share < 1 else None
        place, n_columns = locate(theirs, ours), len(ours)
        if self.all_genes:  # the other genes' sum is one more column
            place, n_columns = np.where(place < 0, n_columns, place), n_columns + 1
        return place, n_columns, columns, fill, audit

    def positions(self, var: pd.DataFrame) -> np.ndarray:
        """Position of each gene of ``var`` among the selected genes, (n_vars,); -1 if absent."""
        ours, theirs, _ = match_genes(self.genes, var, self.ignore_case)
        columns = self.genes.index.get_indexer(self.selected)
        return locate(theirs, ours[columns])


@dataclass(frozen=True)
class Reader:
    """Reads cells as a model sees them; without the cells, it can be sent to another process.

    Attributes
    ----------
    expression
        The cells.
    summed
        Column of each of their genes, and number of columns, if genes of one name are summed first.
    column, target_sum, n_inputs
        As in :func:`to_inputs`.
    fill
        Values of the inputs that are not among the genes, (n_inputs,).
    """

    expression: Expression
    summed: tuple[np.ndarray, int] | None
    column: np.ndarray
    target_sum: float
    fill: np.ndarray | None
    n_inputs: int

    def __iter__(self) -> Iterator[sp.csr_matrix]:
        """Chunks of cells, CSR (n_cells, n_inputs) float32."""
        own = self.expression
        for x in own.chunks() if self.summed is None else own.linear(*self.summed):
            yield to_inputs(x, self.column, self.target_sum, self.n_inputs)

    def ahead(self) -> Iterator[sp.csr_matrix]:
        """Chunks of cells, the next of which is read while one is used."""
        return read_ahead(iter(self))

    def of(self, rows: Any, first: int = 0) -> Reader:
        """The same for other rows of the matrix, the first of which is at position ``first``."""
        return replace(self, expression=replace(self.expression, matrix=rows, first=first))
