"""Programmes of genes that cells of any type may run: they make a state, not a type."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sctool._neighbors import group_means

# Dissociation and stress (van den Brink et al. 2017; O'Flanagan et al. 2019).
STRESS = """
ATF3 BTG1 BTG2 DNAJA1 DNAJB1 DNAJB4 DUSP1 EGR1 FOS FOSB HSP90AA1 HSP90AB1 HSPA1A HSPA1B HSPA5
HSPA6 HSPA8 HSPB1 HSPD1 HSPE1 HSPH1 IER2 IER3 JUN JUNB JUND NFKBIA NR4A1 PPP1R15A SOCS3 UBB UBC
ZFP36
"""
# The cell cycle (Tirosh et al. 2016).
CELL_CYCLE = """
AURKA AURKB BIRC5 BUB1 CCNA2 CCNB1 CCNB2 CDC20 CDK1 CENPF CKS1B CKS2 GMNN H2AFZ HMGB2 HMMR MCM2
MCM3 MCM4 MCM5 MCM6 MCM7 MKI67 NUSAP1 PCNA RRM1 RRM2 SMC4 STMN1 TOP2A TPX2 TUBA1B TUBB TYMS
UBE2C
"""
#: Genes by programme, as symbols in capitals.
PROGRAMMES = {
    "stress": frozenset(STRESS.split()),
    "cell cycle": frozenset(CELL_CYCLE.split()),
}
#: A programme of which fewer genes are measured has no score.
MIN_GENES = 5


def programme_genes(genes: pd.DataFrame) -> list[np.ndarray]:
    """Positions of the genes of each programme of which at least 5 are there.

    Parameters
    ----------
    genes
        Names in the index and other identifiers in the columns, (n_genes, ...). Case is ignored.
    """
    columns = [genes.index, *(genes[column] for column in genes.columns)]
    names = [np.char.upper(np.asarray(column).astype(str)) for column in columns]
    found = [
        np.flatnonzero(np.any([np.isin(column, list(known)) for column in names], axis=0))
        for known in PROGRAMMES.values()
    ]
    return [positions for positions in found if len(positions) >= MIN_GENES]


def programme_scores(x: sp.csr_matrix, programmes: Sequence[np.ndarray]) -> np.ndarray:
    """Mean log1p CP10k of each programme's genes, (n_cells, n_programmes), the median cell at 0.

    Parameters
    ----------
    x
        Cells, log1p CP10k, CSR (n_cells, n_genes).
    programmes
        Positions of the genes, see :func:`programme_genes`.
    """
    scores = np.zeros((x.shape[0], len(programmes)))
    for column, genes in enumerate(programmes):
        scores[:, column] = np.asarray(x[:, genes].mean(axis=1)).ravel()
    return scores - np.median(scores, axis=0)


def programme_slopes(x: sp.csr_matrix, scores: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """By how much each gene rises with each programme's score, (n_programmes, n_genes).

    Least squares within groups, so that what differs between the groups has no effect.

    Parameters
    ----------
    x
        Cells, log1p CP10k, CSR (n_cells, n_genes).
    scores
        Of :func:`programme_scores`.
    codes
        Group of each cell, (n_cells,).
    """
    within = scores - group_means(scores, codes)[codes]
    ridge = 1e-6 * len(codes) * np.eye(scores.shape[1])  # a score that is the same in all cells
    return np.linalg.solve(within.T @ within + ridge, (x.T @ within).T)
