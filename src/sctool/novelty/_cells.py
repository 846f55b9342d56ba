"""Find the novel cells of a query and assign them to novel types.

Without a batch effect, each cell is judged by the composition of its neighbourhood in a joint
embedding; with one, whole clusters are judged (``_clusters.py``). ``docs/methods/scdet.md``
describes the algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from sctool._neighbors import all_alike, leiden, neighbor_graph, principal_components
from sctool._progress import progress as progress_bar
from sctool.novelty import _clusters
from sctool.novelty._episodes import MIN_CELLS, hide_types
from sctool.novelty._n_types import describe_number, learn_separation, split_into_types

N_COMPONENTS = 30
N_NEIGHBORS = 30
#: A query of more than ``MAX_RATIO`` times the cells of the reference is compared in parts, of at
#: least ``MIN_PART`` cells.
MAX_RATIO, MIN_PART = 3, 200
#: Leiden resolution of the joint clusters; high, so that a cluster contains a single type.
RESOLUTION = 4.0
#: Number of training episodes, and maximum number of cells in each.
EPISODES, EPISODE_CELLS = 10, 2500
#: Maximum log factor by which the cells of each type are downsampled in each half; smaller for
#: small references, and 0 for at most ``ENOUGH_CELLS`` cells.
MAX_LOG_THINNING, ENOUGH_CELLS = 1.5, 500
#: With a batch effect, judgements depend on the clustering, so several are averaged. The smaller
#: the overlap of query and reference, the higher the threshold, so that the effect of a technology
#: on a known type is not mistaken for a novel type: 0.5 for an overlap of ``ENOUGH_OVERLAP`` or
#: more, up to 0.5 + ``EXTRA_CERTAINTY`` for none.
JUDGEMENTS, EXTRA_CERTAINTY, ENOUGH_OVERLAP = 4, 0.3, 0.1


@dataclass(frozen=True)
class Novelty:
    """Result of the search for novel types in a query.

    Attributes
    ----------
    sought
        False if no search was possible: ``audit`` says why, and all cells get known types.
    proba
        Probability that a cell is novel, (n_cells,).
    known_as
        Code of the best known type of each cell, (n_cells,).
    names
        Type code assigned to each cell, (n_cells,): known types, then novel ones by size.
    n, low, high
        Number of novel types, and its interval, estimated by hiding known types.
    mixed
        Whether query and reference mix, that is, no batch effect was found.
    audit
        Notes on what was found.
    """

    sought: bool
    proba: np.ndarray
    known_as: np.ndarray
    names: np.ndarray
    n: int
    low: int
    high: int
    mixed: bool
    audit: list[str]

    @property
    def interval(self) -> dict[str, int]:
        """Number of novel types and its interval."""
        return {"n": self.n, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class NeighborhoodComposition:
    """Neighbourhood composition of the query's cells on joint principal components.

    Attributes
    ----------
    evidence
        (n_cells, 4): log odds that a neighbour is a query cell, corrected for the sizes of query
        and reference: among the nearest cells, the mean of this share over these neighbours, the
        mean of that mean, and in the joint cluster.
    overlap
        Share of query cells among the neighbours of a reference cell, corrected for size: median
        over cells, then over types.
    mixed
        Whether query and reference mix, that is, no batch effect was found.
    """

    evidence: np.ndarray
    overlap: float
    mixed: bool


def neighborhood_composition(
    x_ref: sp.csr_matrix, labels: np.ndarray, x: sp.csr_matrix, seed: int
) -> NeighborhoodComposition:
    """Compute the neighbourhood composition of each query cell.

    Cells of a novel type have neighbours from the query only. With a batch effect, so do all query
    cells, and next to a small reference those of known types may. A query much larger than the
    reference is therefore compared in random parts.

    Parameters
    ----------
    x_ref, x
        Reference and query, log1p CP10k, CSR (n_cells, n_genes).
    labels
        Type codes of the reference, from 0.
    """
    n = x.shape[0]
    n_parts = -(-n // max(MAX_RATIO * len(labels), MIN_PART))
    if n_parts == 1:
        return _composition(x_ref, labels, x, seed)
    parts = np.array_split(np.random.default_rng(seed).permutation(n), n_parts)
    found = [_composition(x_ref, labels, x[part], seed) for part in parts]
    evidence = np.empty((n, 4))
    evidence[np.concatenate(parts)] = np.concatenate([f.evidence for f in found])
    overlap = float(np.median([f.overlap for f in found]))
    return NeighborhoodComposition(evidence, overlap, bool(np.mean([f.mixed for f in found]) > 0.5))


def _composition(
    x_ref: sp.csr_matrix, labels: np.ndarray, x: sp.csr_matrix, seed: int
) -> NeighborhoodComposition:
    """Neighbourhood composition next to all of the query's cells."""
    n_ref, n = x_ref.shape[0], x_ref.shape[0] + x.shape[0]
    z = principal_components(sp.vstack([x_ref, x], format="csr"), N_COMPONENTS, seed)
    graph = neighbor_graph(z, N_NEIGHBORS + 1, seed)
    codes = leiden(graph, RESOLUTION, seed)
    near = graph.obsp["distances"].astype(np.float64)
    # Duplicates of a cell (distance 0) count as neighbours, but the cell itself does not.
    near.data[:] = near.indices != np.repeat(np.arange(n), np.diff(near.indptr))
    of_query = np.arange(n) >= n_ref
    weight = np.where(of_query, 1 / (n - n_ref), 1 / n_ref)
    share = (near @ (weight * of_query)) / np.maximum(near @ weight, 1e-12)
    degree = np.maximum(near @ np.ones(n), 1)
    once = near @ share / degree
    twice = near @ once / degree
    in_group = (np.bincount(codes, weight * of_query) / np.bincount(codes, weight))[codes]
    evidence = np.stack([np.log((s + 0.02) / (1.02 - s)) for s in (share, once, twice, in_group)])

    # Without a batch effect, reference cells have about as many query neighbours as their
    # neighbours have, and those of most types have some.
    query_share = near @ of_query / degree
    alike = query_share[:n_ref].sum() > 0.93 * (near @ query_share / degree)[:n_ref].sum()
    overlap = float(pd.Series(share[:n_ref]).groupby(labels).median().median())
    return NeighborhoodComposition(evidence.T[n_ref:], overlap, bool(alike and overlap > 0.05))


def learn(
    x: sp.csr_matrix, labels: np.ndarray, rng: np.random.Generator, progress: bool = False
) -> Pipeline | None:
    """Learn from the reference to recognise cells of novel types.

    In each episode up to four fifths of the types are hidden from half of the cells, and searched
    for in the other half. The proportions of types differ between the halves, so that a type that
    is merely more frequent in the query does not count as novel.

    Returns
    -------
    A classifier from :attr:`NeighborhoodComposition.evidence` to the probability of being novel;
    None if there are too few types or cells.
    """
    if labels.max() < 2:  # with two types, none can be hidden
        return None
    thinning = float(np.clip(np.log(len(labels) / ENOUGH_CELLS), 0, MAX_LOG_THINNING))
    evidence: list[np.ndarray] = []
    novel: list[np.ndarray] = []
    weight: list[np.ndarray] = []
    with progress_bar(total=EPISODES, desc="hiding types", enabled=progress) as bar:
        # Draws that leave too few cells of a small reference are replaced by others.
        for _ in range(5 * EPISODES):
            if len(evidence) == EPISODES:
                break
            episode = hide_types(labels, rng, EPISODE_CELLS, thinning)
            ref, query = episode.reference, episode.query
            if len(episode.known) < 2 or min(len(ref), len(query)) < MIN_CELLS // 4:
                continue
            bar.update()
            seed = int(rng.integers(2**31))
            around = neighborhood_composition(x[ref], labels[ref], x[query], seed)
            evidence.append(around.evidence)
            novel.append(~np.isin(labels[query], episode.known))
            # cells of rare types weigh more
            weight.append(1 / np.sqrt(np.bincount(labels[query])[labels[query]]))
    if len(novel) < EPISODES or len(np.unique(np.concatenate(novel))) < 2:
        return None
    w = np.concatenate(weight)
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(
        np.concatenate(evidence),
        np.concatenate(novel),
        logisticregression__sample_weight=w / w.mean(),
    )


def known_types(x_ref: sp.csr_matrix, labels: np.ndarray, x: sp.csr_matrix) -> np.ndarray:
    """Known type of each cell of ``x``, (n_cells,), predicted by logistic regression."""
    if not x.shape[0]:
        return np.zeros(0, dtype=labels.dtype)
    return LogisticRegression(max_iter=300, tol=1e-3).fit(x_ref, labels).predict(x)


def find(
    x_ref: sp.csr_matrix,
    labels: np.ndarray,
    x: sp.csr_matrix,
    n_novel: int | None,
    rng: np.random.Generator,
    progress: bool = False,
) -> Novelty:
    """Assign known and novel types to the cells of a query.

    Parameters
    ----------
    x_ref, x
        Reference and query, log1p CP10k, CSR (n_cells, n_genes).
    labels
        Type codes of the reference, from 0.
    n_novel
        Number of novel types; None estimates it.
    rng
        Random number generator.
    progress
        Show progress bars.
    """
    n_types, n_cells = labels.max() + 1, x.shape[0]

    def not_searched(why: str) -> Novelty:
        names = known_types(x_ref, labels, x)
        audit = [f"novel: not searched for: {why}"]
        return Novelty(False, np.zeros(n_cells), names, names, 0, 0, 0, True, audit)

    if why := unsearchable(x):
        return not_searched(why)
    model = learn(x_ref, labels, rng, progress)
    if model is None:
        return not_searched(
            "the reference has too few types or cells to learn from by hiding types"
        )
    around = neighborhood_composition(x_ref, labels, x, int(rng.integers(2**31)))
    if around.mixed:
        audit = ["novel: judged by cell, no batch effect found between query and reference"]
        proba = model.predict_proba(around.evidence)[:, 1]
        known_as, threshold = known_types(x_ref, labels, x), 0.5
    else:
        audit = ["novel: judged by cluster, batch effect found between query and reference"]
        judged = _judge_groups(x_ref, labels, x, rng, progress)
        if judged is None:
            return not_searched(
                "too few clusters to learn from when types of the reference were hidden"
            )
        proba, known_as = judged
        threshold = 0.5 + EXTRA_CERTAINTY * (1 - min(around.overlap / ENOUGH_OVERLAP, 1))
    novel = proba > threshold
    if n_novel and novel.sum() < n_novel:
        novel = np.zeros(n_cells, dtype=bool)
        novel[np.argsort(-proba, kind="stable")[:n_novel]] = True
    if not novel.any():
        audit.append("novel: number of types: 0; no novel cells were found")
        return Novelty(True, proba, known_as, known_as, 0, 0, 1, around.mixed, audit)
    names = known_as.copy()
    cells = np.flatnonzero(novel)
    separation = learn_separation(x_ref, labels, rng)
    codes, low, high = split_into_types(x[cells], separation, n_novel, int(rng.integers(2**31)))
    names[novel] = n_types + codes
    n = int(codes.max()) + 1
    audit.append(describe_number(n, low, high, n_novel))
    return Novelty(True, proba, known_as, names, n, low, high, around.mixed, audit)


def unsearchable(x: sp.csr_matrix) -> str:
    """Reason why the cells ``x`` cannot be searched for novel types; empty if they can."""
    if x.shape[0] < MIN_CELLS:
        return f"{x.shape[0]} cells are too few to cluster (at least {MIN_CELLS} are needed)"
    return "all cells of the query have the same values" if all_alike(x) else ""


def _judge_groups(
    x_ref: sp.csr_matrix,
    labels: np.ndarray,
    x: sp.csr_matrix,
    rng: np.random.Generator,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean probability of several judgements by cluster, and the majority known type of each cell.

    None if there is nothing to learn from.
    """
    proba = np.zeros(x.shape[0])
    votes = np.zeros((x.shape[0], labels.max() + 1), dtype=int)
    regression = _clusters.fit_regression(x_ref, labels)
    for _ in range(JUDGEMENTS):
        model = _clusters.learn_to_judge(x_ref, labels, rng, progress=progress)
        if model is None:
            return None
        seed = int(rng.integers(2**31))
        judged = _clusters.judge(x_ref, labels, x, seed, regression=regression)
        proba += model.predict_proba(judged.evidence)[judged.codes, 1] / JUDGEMENTS
        votes[np.arange(x.shape[0]), judged.known_as] += 1
    return proba, votes.argmax(axis=1)
