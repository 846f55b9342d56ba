"""Which cells of a query are of no known type: the whole search.

Where both sides mix like one experiment, each cell is judged by its neighbourhood in a joint
embedding; where a batch effect sets them apart, whole groups are judged (``_clusters.py``). Steps
and reasons are in ``docs/methods/scdet.md``.
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
#: Resolution of the groups of both sides' cells; fine, so that a group is of one type.
RESOLUTION = 4.0
#: Times that types are hidden, and cells used each time at most.
EPISODES, EPISODE_CELLS = 10, 2500
#: Logarithm of the factor that each side's cells of a type are thinned by at most; less if the
#: reference is small, and not at all if it has no more than ``ENOUGH`` cells.
MAX_LOG_THINNING, ENOUGH = 1.5, 500
#: Under a batch effect judgements vary with the groups: this many are averaged. The less the two
#: sides overlap, the surer they must be, so that what a technology does to a known type does not
#: pass for a new one: above 0.5 where they overlap as much as ``ENOUGH_OVERLAP``, and 0.8 where
#: they do not at all.
JUDGEMENTS, SURER, ENOUGH_OVERLAP = 4, 0.3, 0.1


@dataclass(frozen=True)
class Novelty:
    """What was found in a query.

    Attributes
    ----------
    sought
        False if nothing could be sought; ``audit`` says why, and every cell is of a known type.
    proba
        Probability of each cell of being of no known type, (n_cells,).
    known_as
        Code of the type that each cell has if it is of a known one, (n_cells,).
    names
        Code that each cell gets, (n_cells,): known types, then novel ones by size.
    n, low, high
        Number of novel types, and the interval of the numbers that hiding types leaves possible.
    mixed
        Whether query and reference lie among each other as cells of one experiment do.
    audit
        What was found, in words.
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
        """The number of novel types, and what it lies between."""
        return {"n": self.n, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class NeighborhoodComposition:
    """Which side a query's cells lie among, on joint principal components.

    Attributes
    ----------
    evidence
        (n_cells, 4): log odds that a neighbour is of the query, if both sides had as many cells:
        among the nearest cells, their mean over these, the mean's mean, and in the joint group.
    overlap
        Share of the query among the neighbours of a reference cell, if both sides had as many
        cells: median over cells, then over types.
    mixed
        Whether the two sides lie among each other as cells of one experiment do.
    """

    evidence: np.ndarray
    overlap: float
    mixed: bool


def neighborhood_composition(
    x_ref: sp.csr_matrix, labels: np.ndarray, x: sp.csr_matrix, seed: int
) -> NeighborhoodComposition:
    """Look at the neighbours of each cell.

    Cells of a new type have neighbours of the query alone, if there is no batch effect: with one,
    all cells have.

    Parameters
    ----------
    x_ref, x
        Reference and query, log1p CP10k, CSR (n_cells, n_genes).
    labels
        Types of the reference as codes from 0.
    """
    n_ref, n = x_ref.shape[0], x_ref.shape[0] + x.shape[0]
    z = principal_components(sp.vstack([x_ref, x], format="csr"), N_COMPONENTS, seed)
    graph = neighbor_graph(z, N_NEIGHBORS + 1, seed)
    codes = leiden(graph, RESOLUTION, seed)
    near = graph.obsp["distances"].astype(np.float64)
    # A cell's copies, at distance 0, are neighbours; itself, which then may be stored, is not.
    near.data[:] = near.indices != np.repeat(np.arange(n), np.diff(near.indptr))
    of_query = np.arange(n) >= n_ref
    weight = np.where(of_query, 1 / (n - n_ref), 1 / n_ref)
    share = (near @ (weight * of_query)) / np.maximum(near @ weight, 1e-12)
    degree = np.maximum(near @ np.ones(n), 1)
    once = near @ share / degree
    twice = near @ once / degree
    in_group = (np.bincount(codes, weight * of_query) / np.bincount(codes, weight))[codes]
    evidence = np.stack([np.log((s + 0.02) / (1.02 - s)) for s in (share, once, twice, in_group)])

    # Reference cells should have neighbours of the query as often as their neighbours of either
    # side do, and those of most types should have any at all.
    meets = near @ of_query / degree
    alike = meets[:n_ref].sum() > 0.93 * (near @ meets / degree)[:n_ref].sum()
    overlap = float(pd.Series(share[:n_ref]).groupby(labels).median().median())
    return NeighborhoodComposition(evidence.T[n_ref:], overlap, bool(alike and overlap > 0.05))


def learn(
    x: sp.csr_matrix, labels: np.ndarray, rng: np.random.Generator, progress: bool = False
) -> Pipeline | None:
    """Learn from the reference what sets the cells of a novel type apart.

    In each episode up to four fifths of the types are hidden from half of its cells, and looked
    for in the other half. A type that is common in the query alone is not novel: so the two halves
    hold the types in different proportions.

    Returns
    -------
    From :attr:`NeighborhoodComposition.evidence` to the probability of being novel; None if there
    are too few types or cells to learn from.
    """
    if labels.max() < 2:  # of two types none can be hidden
        return None
    thinning = float(np.clip(np.log(len(labels) / ENOUGH), 0, MAX_LOG_THINNING))
    evidence: list[np.ndarray] = []
    novel: list[np.ndarray] = []
    weight: list[np.ndarray] = []
    with progress_bar(total=EPISODES, desc="hiding types", enabled=progress) as bar:
        # Some draws leave too little of a small reference: others are made in their place.
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
            # (a rare type teaches more by the cell)
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
    """Code of the known type that each cell of ``x`` resembles, (n_cells,), by regression."""
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
    """Name the cells of a query: known types, and novel ones.

    Parameters
    ----------
    x_ref, x
        Reference and query, log1p CP10k, CSR (n_cells, n_genes).
    labels
        Types of the reference as codes from 0.
    n_novel
        Number of novel types; None estimates it.
    rng
        Draws what is random.
    progress
        Show progress bars.
    """
    n_types, n_cells = labels.max() + 1, x.shape[0]

    def not_sought(why: str) -> Novelty:
        names = known_types(x_ref, labels, x)
        audit = [f"novel: not sought, {why}"]
        return Novelty(False, np.zeros(n_cells), names, names, 0, 0, 0, True, audit)

    if why := unsearchable(x):
        return not_sought(why)
    model = learn(x_ref, labels, rng, progress)
    if model is None:
        return not_sought("the reference has too few types or cells to learn from by hiding some")
    around = neighborhood_composition(x_ref, labels, x, int(rng.integers(2**31)))
    if around.mixed:
        audit = ["novel: judged by cell, as query and reference mix like one experiment"]
        proba = model.predict_proba(around.evidence)[:, 1]
        known_as, threshold = known_types(x_ref, labels, x), 0.5
    else:
        audit = ["novel: judged by group, as query and reference differ by a batch effect"]
        judged = _judge_groups(x_ref, labels, x, rng, progress)
        if judged is None:
            return not_sought("hiding types of the reference taught nothing")
        proba, known_as = judged
        threshold = 0.5 + SURER * (1 - min(around.overlap / ENOUGH_OVERLAP, 1))
    novel = proba > threshold
    if n_novel and novel.sum() < n_novel:
        novel = np.zeros(n_cells, dtype=bool)
        novel[np.argsort(-proba, kind="stable")[:n_novel]] = True
    if not novel.any():
        audit.append("novel: types: 0; no cells were found to be of no known type")
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
    """Why no novel cells can be sought among the cells ``x``; empty if they can."""
    if x.shape[0] < MIN_CELLS:
        return f"{x.shape[0]} cells are too few to form groups ({MIN_CELLS} are needed)"
    return "all cells of the query are alike" if all_alike(x) else ""


def _judge_groups(
    x_ref: sp.csr_matrix,
    labels: np.ndarray,
    x: sp.csr_matrix,
    rng: np.random.Generator,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean of several judgements by group, and the type that most of them see in a cell.

    None if hiding types teaches nothing.
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
