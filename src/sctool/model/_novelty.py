"""Which cells of a query are of no known type, and how many types these are. Ours.

What tells the cells of a novel type from the others is learnt from the reference, by hiding some of
its types. Steps and reasons are
in ``docs/methods/scdet.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from sctool.model import _gate
from sctool.model._parting import (
    learn_parting,
    leiden,
    neighbour_graph,
    note_on_number,
    part,
    principal_components,
)

N_COMPONENTS = 30
N_NEIGHBORS = 30
#: Resolution of the groups of both sides' cells; fine, so that a group is of one type.
GROUPS = 4.0
#: Times that types are hidden, and cells used each time at most.
EPISODES, EPISODE_CELLS = 10, 2500
#: Logarithm of the factor that each side's cells of a type are thinned by at most; less if the
#: reference is small, and not at all if it has no more than ``ENOUGH`` cells.
THINNED, ENOUGH = 1.5, 500
#: Under a batch effect judgements vary with the groups: this many are averaged. The less the two
#: sides meet, the surer they must be, so that what a technology does to a known type does not pass
#: for a new one: above 0.5 where they meet as much as ``MET``, and 0.8 where they do not at all.
JUDGEMENTS, SURER, MET = 4, 0.3, 0.1


@dataclass(frozen=True)
class Novelty:
    """What was found in a query.

    Attributes
    ----------
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

    proba: np.ndarray
    known_as: np.ndarray
    names: np.ndarray
    n: int
    low: int
    high: int
    mixed: bool
    audit: list[str]

    def interval(self) -> dict[str, int]:
        """The number of novel types, and what it lies between."""
        return {"n": self.n, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Surroundings:
    """Who a query's cells lie among, when both sides are put on joint principal components.

    Attributes
    ----------
    evidence
        (n_cells, 4): log odds that a neighbour is of the query, if both sides had as many cells:
        among the nearest cells, their mean over these, the mean's mean, and in the joint group.
    met
        Share of the query among the neighbours of a reference cell, if both sides had as many
        cells: median over cells, then over types.
    mixed
        Whether the two sides lie among each other as cells of one experiment do.
    """

    evidence: np.ndarray
    met: float
    mixed: bool


def surroundings(
    x_ref: sp.csr_matrix, labels: np.ndarray, x: sp.csr_matrix, seed: int
) -> Surroundings:
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
    graph = neighbour_graph(z, N_NEIGHBORS + 1, seed)
    codes = leiden(graph, GROUPS, seed)
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

    # Reference cells should meet the query as often as their neighbours of either side do, and
    # those of most types should meet it at all.
    meets = near @ of_query / degree
    alike = meets[:n_ref].sum() > 0.93 * (near @ meets / degree)[:n_ref].sum()
    met = float(pd.Series(share[:n_ref]).groupby(labels).median().median())
    return Surroundings(evidence.T[n_ref:], met, bool(alike and met > 0.05))


def learn(
    x: sp.csr_matrix, labels: np.ndarray, rng: np.random.Generator, progress: bool = False
) -> Pipeline | None:
    """Learn from the reference what sets the cells of a novel type apart.

    In each episode up to four fifths of the types are hidden from half of its cells, and looked
    for in the other half. The two halves hold the types in different proportions, as reference and
    query do: a type that is common in the query alone is not novel.

    Returns
    -------
    From :attr:`Surroundings.evidence` to the probability of being novel; None if there are too few
    types or cells to learn from.
    """
    n_types = labels.max() + 1
    thinned = np.clip(np.log(len(labels) / ENOUGH), 0, THINNED)
    evidence: list[np.ndarray] = []
    novel: list[np.ndarray] = []
    weight: list[np.ndarray] = []
    bar = tqdm(total=EPISODES, desc="hiding types", leave=False, disable=not progress)
    # Some draws leave too little of a small reference: others are made in their place.
    for _ in range(5 * EPISODES):
        if len(evidence) == EPISODES:
            break
        cells = rng.permutation(len(labels))[:EPISODE_CELLS]
        n_hidden = min(int(rng.integers(0, max(int(0.8 * n_types), 1) + 1)), n_types - 2)
        hidden = rng.permutation(n_types)[: max(n_hidden, 0)]
        in_ref = rng.random(len(cells)) < 0.5
        kept = np.exp(-rng.uniform(0, thinned, (2, n_types)))[in_ref.astype(int), labels[cells]]
        kept = rng.random(len(cells)) < kept
        ref = cells[in_ref & kept & ~np.isin(labels[cells], hidden)]
        query = cells[~in_ref & kept]
        known = np.unique(labels[ref])
        if len(known) < 2 or min(len(ref), len(query)) < _gate.MIN_CELLS // 4:
            continue
        bar.update()
        around = surroundings(x[ref], labels[ref], x[query], int(rng.integers(2**31)))
        evidence.append(around.evidence)
        novel.append(~np.isin(labels[query], known))
        # (a rare type teaches more by the cell)
        weight.append(1 / np.sqrt(np.bincount(labels[query])[labels[query]]))
    bar.close()
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
    return LogisticRegression(max_iter=300, tol=1e-3).fit(x_ref, labels).predict(x)


def find(
    x_ref: sp.csr_matrix,
    labels: np.ndarray,
    x: sp.csr_matrix,
    n_novel: int | None,
    rng: np.random.Generator,
    progress: bool = False,
) -> Novelty | str:
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

    Returns
    -------
    What was found; or why nothing could be sought, in words.
    """
    n_types, n_cells = labels.max() + 1, x.shape[0]
    if n_cells < _gate.MIN_CELLS:
        return (
            f"novel: not sought, {n_cells} cells are too few to form groups "
            f"({_gate.MIN_CELLS} are needed)"
        )
    if (x.max(axis=0) != x.min(axis=0)).nnz == 0:
        return "novel: not sought, all cells of the query are alike"
    model = learn(x_ref, labels, rng, progress)
    if model is None:
        return (
            "novel: not sought, the reference has too few types or cells to learn from by hiding "
            "some"
        )
    around = surroundings(x_ref, labels, x, int(rng.integers(2**31)))
    if around.mixed:
        audit = ["novel: judged by cell, as query and reference mix like one experiment"]
        proba = model.predict_proba(around.evidence)[:, 1]
        known_as, threshold = known_types(x_ref, labels, x), 0.5
    else:
        audit = ["novel: judged by group, as query and reference differ by a batch effect"]
        judged = _judge_groups(x_ref, labels, x, rng, progress)
        if isinstance(judged, str):
            return judged
        (proba, known_as), threshold = judged, 0.5 + SURER * (1 - min(around.met / MET, 1))
    novel = proba > threshold
    if n_novel and novel.sum() < n_novel:
        novel = np.zeros(n_cells, dtype=bool)
        novel[np.argsort(-proba, kind="stable")[:n_novel]] = True
    if not novel.any():
        audit.append("novel: types: 0; no cells were found to be of no known type")
        return Novelty(proba, known_as, known_as, 0, 0, 1, around.mixed, audit)
    names = known_as.copy()
    cells = np.flatnonzero(novel)
    parting = learn_parting(x_ref, labels, rng)
    codes, low, high = part(x[cells], parting, n_novel, int(rng.integers(2**31)))
    names[novel] = n_types + codes
    n = int(codes.max()) + 1
    audit.append(note_on_number(n, low, high, n_novel))
    return Novelty(proba, known_as, names, n, low, high, around.mixed, audit)


def _judge_groups(
    x_ref: sp.csr_matrix,
    labels: np.ndarray,
    x: sp.csr_matrix,
    rng: np.random.Generator,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray] | str:
    """Mean of several of the gate's judgements, and the type that most of them see in a cell."""
    settings = _gate.GateSettings()
    n_types = labels.max() + 1
    proba = np.zeros(x.shape[0])
    votes = np.zeros((x.shape[0], n_types), dtype=int)
    fitted = _gate.regression(x_ref, labels, settings)
    for _ in range(JUDGEMENTS):
        gate = _gate.learn(x_ref, labels, settings, rng, progress)
        if gate is None:
            return "novel: not sought, hiding types of the reference taught nothing"
        groups = _gate.judge(x_ref, labels, x, settings, int(rng.integers(2**31)), fitted)
        proba += gate.predict_proba(groups.evidence)[groups.codes, 1] / JUDGEMENTS
        votes[np.arange(x.shape[0]), groups.known_as] += 1
    return proba, votes.argmax(axis=1)
