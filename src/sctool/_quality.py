"""Evidence that a cell is a doublet or of low quality, so that neither is called novel.

Doublets are simulated from the query's own cells, so that a batch effect between reference and
query does not matter, and compared with the query as it is: a novel type is part of the query, and
hence does not resemble a doublet merely because no type of the reference fits it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.sparsefuncs import mean_variance_axis

from sctool._data._features import normalize, variable_genes
from sctool._neighbors import group_means

# -- Doublets ------------------------------------------------------------------------------------

#: Share of doublets before any evidence (scrublet's default), and the probability above which a
#: cell is called one.
EXPECTED, THRESHOLD = 0.05, 0.5
#: Doublets are sought among at most this many cells at a time: the search for neighbours is
#: exact, and its cost grows with the square of this number.
PART = 4000
#: Minimum number of cells in a part, of a type's cells in it, and of genes that vary among them,
#: for doublets to be simulated.
MIN_CELLS, MIN_OF_TYPE, MIN_GENES = 50, 10, 10
#: Number of highly variable genes, and of principal components (scrublet's default).
N_GENES, N_COMPONENTS = 2000, 30
#: Up to this many genes are centred, which takes little time and finds more of simulated doublets.
FEW_GENES = 1000
#: Minimum share of the counts of its two cells that a simulated doublet keeps.
MIN_KEPT = 0.5
#: Weight of the mean of all types in each type's profile: ambient RNA, and no gene at 0.
AMBIENT = 0.02
#: The classifier is fitted this many times, each time without the doublets found before.
FITS = 2


@dataclass(frozen=True)
class Doublets:
    """Evidence that cells are mixtures of two types.

    Attributes
    ----------
    proba
        Probability that a cell is a doublet of two types, (n_cells,); 0 where not judged.
    pair
        Codes of the two types of the reference whose mixture fits the cell best, (n_cells, 2); -1
        where not judged.
    judged
        Whether the cell could be judged, (n_cells,): there are enough cells of its predicted type,
        and of another type, in its batch.
    audit
        Notes on what was found.
    """

    proba: np.ndarray
    pair: np.ndarray
    judged: np.ndarray
    audit: list[str]

    @property
    def found(self) -> np.ndarray:
        """Whether the cell is called a doublet, (n_cells,) bool."""
        return self.proba > THRESHOLD

    def expand(self, kept: np.ndarray) -> Doublets:
        """The evidence on all cells, given a mask (n_cells,) of those it was made for."""
        pair = np.full((len(kept), 2), -1)
        proba, judged = np.zeros(len(kept)), np.zeros(len(kept), dtype=bool)
        pair[kept], proba[kept], judged[kept] = self.pair, self.proba, self.judged
        return Doublets(proba, pair, judged, self.audit)


def find_doublets(
    linear: sp.csr_matrix,
    proba: np.ndarray,
    is_counts: bool,
    batch: np.ndarray | None = None,
    seed: int = 0,
) -> Doublets:
    """Find the cells of a query that are mixtures of two types.

    As many doublets as there are cells are simulated from pairs of cells with different predicted
    types. Observed and simulated cells are told apart by a logistic regression on four features:
    scrublet's score (the share of simulated doublets among the neighbours); the gain in log
    likelihood of the best mixture of two types over the best single type, per count and per square
    root of the counts; and the depth relative to that type. The odds times those of ``EXPECTED``
    are the odds of being a doublet, because observed cells are singlets but for that share (Elkan
    and Noto 2008). Doublets of two cells of one type, or of two similar types, are not found.

    Time is linear in the number of cells. Memory is up to two copies of the values while genes are
    chosen, then about 100 MB for a part of ``PART`` cells and its doublets.

    Parameters
    ----------
    linear
        Query, counts or CP10k (linear scale), CSR (n_cells, n_genes).
    proba
        Probability of each type of the reference, (n_cells, n_types).
    is_counts
        Whether the values are counts. Otherwise depth is not used, and doublets are equal mixtures.
    batch
        Batch of each cell, (n_cells,): the two cells of a doublet come from one batch.
    seed
        Random seed.

    References
    ----------
    Wolock et al. 2019 (scrublet); Germain et al. 2021 (scDblFinder: observed against simulated
    cells, fitted repeatedly).
    """
    proba, n_cells = np.asarray(proba), len(proba)
    pair, judged = np.full((n_cells, 2), -1), np.zeros(n_cells, dtype=bool)
    probability = np.zeros(n_cells)
    total = np.maximum(np.asarray(linear.sum(axis=1, dtype=np.float64)).ravel(), 1)
    linear, named = linear[:, _genes(linear)], proba.argmax(axis=1)
    rng = np.random.default_rng(seed)
    features: list[np.ndarray] = []
    simulated: list[np.ndarray] = []
    parts = []
    for part in _parts(n_cells, batch, rng) if linear.shape[1] > 1 else []:
        types, sizes = np.unique(named[part], return_counts=True)
        types = types[sizes >= MIN_OF_TYPE]
        if len(part) < MIN_CELLS or len(types) < 2 or len(_varying(linear[part])) < MIN_GENES:
            continue
        codes = np.where(np.isin(named[part], types), np.searchsorted(types, named[part]), -1)
        of_cells, of_doublets, best = _compare(linear[part], total[part], codes, is_counts, rng)
        features.append(of_cells)
        simulated.append(of_doublets)
        parts.append(part)
        pair[part], judged[part] = types[best], codes >= 0
    if not parts:
        note = f"doublets: not judged, {n_cells} cells of the query are too few or of one type"
        return Doublets(probability, pair, judged, [note])
    probability[np.concatenate(parts)] = _classify(np.vstack(features), np.vstack(simulated))
    # a type too rare to have a profile is fitted by no single one, as a doublet is
    probability[~judged], pair[~judged] = 0, -1
    n, of = int((probability > THRESHOLD).sum()), int(judged.sum())
    audit = [f"doublets: {n} of {of} cells are mixtures of two types"]
    if of < n_cells:
        audit.append(f"doublets: {n_cells - of} cells not judged, their batch or type has too few")
    return Doublets(probability, pair, judged, audit)


def _genes(linear: sp.csr_matrix) -> np.ndarray:
    """Positions of the highly variable genes, or of all that are expressed if these are few."""
    genes = np.flatnonzero(np.asarray(linear.sum(axis=0)).ravel() > 0)
    if len(genes) <= N_GENES:
        return genes
    x = normalize(sp.csr_matrix(linear[:, genes], dtype=np.float32, copy=True))
    return genes[variable_genes(x, np.zeros(x.shape[0]), N_GENES)]


def _varying(x: sp.csr_matrix) -> np.ndarray:
    """Positions of the genes whose value is not the same in all cells."""
    return np.flatnonzero((x.max(axis=0) != x.min(axis=0)).toarray().ravel())


def _parts(
    n_cells: int, batch: np.ndarray | None, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Divide the cells of each batch at random into parts of at most ``PART``."""
    batch = np.zeros(n_cells) if batch is None else np.asarray(batch)
    for name in pd.unique(batch):
        cells = rng.permutation(np.flatnonzero(batch == name))
        yield from np.array_split(cells, -(-len(cells) // PART))


def _compare(
    x: sp.csr_matrix,
    total: np.ndarray,
    codes: np.ndarray,
    is_counts: bool,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of cells and of doublets simulated from them; and each cell's best pair of types.

    Parameters
    ----------
    x, total
        Values on a linear scale, (n_cells, n_genes), and their totals over all genes.
    codes
        Type of each cell, (n_cells,); -1 for types too rare to simulate doublets from.
    """
    mixed, mixed_total, parents = _simulate(x, total, codes, is_counts, rng)
    scores = _scrublet(
        normalize(x.copy(), total=total), normalize(mixed.copy(), total=mixed_total), parents, rng
    )
    typed = codes >= 0
    profiles = group_means(x[typed], codes[typed])
    depth = pd.Series(np.log(total[typed])).groupby(codes[typed]).median().to_numpy()
    sides = []
    for values, n, score in ((x, total, scores[0]), (mixed, mixed_total, scores[1])):
        gain, pair, single = _mixture_gain(values, profiles)
        sides.append(np.stack([score, gain / n, gain / np.sqrt(n), np.log(n) - depth[single]], 1))
        if values is x:
            pairs = pair
    return sides[0], sides[1], pairs


def _simulate(
    x: sp.csr_matrix,
    total: np.ndarray,
    codes: np.ndarray,
    is_counts: bool,
    rng: np.random.Generator,
) -> tuple[sp.csr_matrix, np.ndarray, np.ndarray]:
    """Simulate up to as many doublets as cells: values, totals and the two cells of each."""
    a, b = rng.choice(np.flatnonzero(codes >= 0), (2, 4 * len(codes)))
    kept = np.flatnonzero(codes[a] != codes[b])[: len(codes)]
    a, b = a[kept], b[kept]
    mixed = sp.csr_matrix(x[a] + x[b])
    share = rng.uniform(MIN_KEPT, 1, len(a)) if is_counts else np.full(len(a), 0.5)
    by_value = np.repeat(share, np.diff(mixed.indptr))
    if is_counts:  # a doublet is captured like a single cell, so that not all counts are found
        mixed.data = rng.binomial(np.rint(mixed.data).astype(np.int64), by_value)
        mixed.eliminate_zeros()
    else:
        mixed.data = mixed.data * by_value
    mixed = mixed.astype(np.float32)
    return mixed, np.maximum(share * (total[a] + total[b]), 1), np.stack([a, b], axis=1)


def _scrublet(
    x: sp.csr_matrix, mixed: sp.csr_matrix, parents: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Log odds of scrublet's score, of cells and of simulated doublets (log1p values)."""
    import scanpy as sc

    # Genes are scaled here and not by scrublet, which would make them dense. Many are not centred
    # either: the principal components are then found from sparse values, and serve as well.
    varying = _varying(x)
    x, mixed = x[:, varying], mixed[:, varying]
    variance = mean_variance_axis(x.astype(np.float64), axis=0)[1]
    scale = sp.diags(1 / np.sqrt(variance))
    cells = AnnData((x @ scale).astype(np.float32))
    doublets = AnnData((mixed @ scale).astype(np.float32), obsm={"doublet_parents": parents})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names of cells that are made unique
        sc.pp.scrublet(
            cells,
            doublets,
            threshold=THRESHOLD,
            expected_doublet_rate=EXPECTED,
            normalize_variance=False,
            mean_center=x.shape[1] <= FEW_GENES,
            n_prin_comps=min(N_COMPONENTS, min(x.shape) - 1),
            use_approx_neighbors=False,
            verbose=False,
            random_state=int(rng.integers(2**31)),
        )
    scores = cells.obs["doublet_score"].to_numpy(), cells.uns["scrublet"]["doublet_scores_sim"]
    return logit(np.clip(scores[0], 1e-4, 1 - 1e-4)), logit(np.clip(scores[1], 1e-4, 1 - 1e-4))


def _mixture_gain(
    x: sp.csr_matrix, profiles: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gain in multinomial log likelihood of the best mixture of two types over the best type.

    Parameters
    ----------
    x
        Values on a linear scale, (n_cells, n_genes).
    profiles
        Mean of each type, (n_types, n_genes), on the same scale: in a mixture, larger cells have
        more weight.

    Returns
    -------
    Gain, (n_cells,), negative for cells of one type; best pair, (n_cells, 2); best single type.
    """
    profiles = profiles + AMBIENT * profiles.mean(axis=0)
    pairs = np.stack(np.triu_indices(len(profiles), 1), axis=1)
    single = x @ _log_shares(profiles).T
    mixture = x @ _log_shares(profiles[pairs].sum(axis=1)).T
    gain = mixture.max(axis=1) - single.max(axis=1)
    return gain, pairs[mixture.argmax(axis=1)], single.argmax(axis=1)


def _log_shares(profiles: np.ndarray) -> np.ndarray:
    """Logarithm of each gene's share of a profile, floored where no type expresses it."""
    return np.log(profiles / np.maximum(profiles.sum(axis=1, keepdims=True), 1e-12) + 1e-12)


def _classify(observed: np.ndarray, simulated: np.ndarray) -> np.ndarray:
    """Probability that observed cells are doublets, (n_cells,).

    Repeated without the doublets that were found, which are observed cells too and would make
    doublets look like cells.
    """
    singlet = np.ones(len(observed), dtype=bool)
    for _ in range(FITS):
        x = np.vstack([observed[singlet], simulated])
        y = np.repeat([0, 1], [singlet.sum(), len(simulated)])
        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
        odds = model.decision_function(observed) - np.log(len(simulated) / singlet.sum())
        proba = expit(odds + logit(EXPECTED))
        singlet = proba <= THRESHOLD
    return proba


# -- Low quality ---------------------------------------------------------------------------------

#: Reasons for low quality, by code.
REASONS = ("", "few counts", "few genes")
#: Low quality is this many deviations (1.4826 MAD) below the median, or more.
DEVIATIONS = 3.5
#: The median of a group of this many cells counts as much as that of all cells.
PRIOR_CELLS = 10
#: Minimum deviation of log values, so that cells of equal depth are not judged by noise.
MIN_DEVIATION = 0.2
#: Minimum number of cells of a batch for the rule.
MIN_JUDGED = 20


@dataclass(frozen=True)
class LowQuality:
    """Evidence that cells are of low quality.

    Attributes
    ----------
    depth
        Deviations from the median depth, (n_cells,): counts or genes, whichever is lower; negative
        if shallow, 0 where not judged.
    reason
        Position in ``REASONS``, (n_cells,); 0 if nothing was found.
    judged
        Whether the cell could be judged, (n_cells,).
    audit
        Notes on what was found.
    """

    depth: np.ndarray
    reason: np.ndarray
    judged: np.ndarray
    audit: list[str]

    @property
    def found(self) -> np.ndarray:
        """Whether the cell is of low quality, (n_cells,) bool."""
        return self.reason > 0

    def expand(self, kept: np.ndarray) -> LowQuality:
        """The evidence on all cells, given a mask (n_cells,) of those it was made for."""
        depth, reason = np.zeros(len(kept)), np.zeros(len(kept), dtype=int)
        judged = np.zeros(len(kept), dtype=bool)
        depth[kept], reason[kept], judged[kept] = self.depth, self.reason, self.judged
        return LowQuality(depth, reason, judged, self.audit)


def find_low_quality(
    x: sp.csr_matrix,
    is_counts: bool,
    groups: np.ndarray,
    batch: np.ndarray | None = None,
) -> LowQuality:
    """Find the cells of a query with few counts or genes.

    A cell is of low quality if its log counts or log genes are low both among all cells of its
    batch and within its group: neither a cell of a small type (platelets, granulocytes), nor a
    large one whose group is larger still. Medians of small groups are drawn towards that of the
    batch. Time and memory are linear in the number of cells.

    Parameters
    ----------
    x
        Query, CSR (n_cells, n_genes): counts, or log1p CP10k (then genes alone are judged).
    is_counts
        Whether the values are counts.
    groups
        Group of each cell, (n_cells,), such as its most probable type.
    batch
        Batch of each cell, (n_cells,).

    References
    ----------
    Heumos et al. 2023 (deviations from the median); the rule within groups is ours.
    """
    batch = np.zeros(x.shape[0]) if batch is None else np.asarray(batch)
    judged = pd.Series(batch).groupby(batch).transform("size").to_numpy() >= MIN_JUDGED
    genes = _deviations((x > 0).sum(axis=1), groups, batch)
    counts = _deviations(x.sum(axis=1, dtype=np.float64), groups, batch) if is_counts else genes
    few_counts = (counts < -DEVIATIONS) & is_counts
    reason = np.select([~judged, few_counts, genes < -DEVIATIONS], [0, 1, 2], 0)
    depth = np.where(judged, np.minimum(counts, genes), 0.0)
    audit = [f"low quality: {int((reason > 0).sum())} of {int(judged.sum())} cells"]
    if not is_counts:
        audit.append(
            "low quality: judged by the number of genes alone, for query and reference do not both "
            "hold counts"
        )
    if not judged.all():
        audit.append(
            f"low quality: {int((~judged).sum())} cells not judged, fewer than {MIN_JUDGED} cells "
            "in their batch"
        )
    return LowQuality(depth, reason, judged, audit)


def _deviations(values: np.ndarray, groups: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Deviations of log values from the median, the higher of those in the batch and the group."""
    log = pd.Series(np.log1p(np.asarray(values, dtype=np.float64).ravel()))
    in_batch = log - log.groupby(batch).transform("median")
    by_group = in_batch.groupby([batch, groups])
    n = by_group.transform("size")
    in_group = in_batch - by_group.transform("median") * n / (n + PRIOR_CELLS)
    spread = max(1.4826 * in_group.abs().median(), MIN_DEVIATION)
    return (np.maximum(in_batch, in_group) / spread).to_numpy()
