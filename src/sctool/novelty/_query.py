"""Search a query for novel cells, batch by batch, each by the evidence that suits it.

Every batch is judged by group (``_anchors.py``), and a batch that mixes with the reference also by
cell (``_cells.py``). ``docs/methods/auto.md`` describes the algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
from scipy.special import expit

from sctool._neighbors import principal_components
from sctool.novelty import _cells
from sctool.novelty._anchors import SURE, Groups, QueryGroups, group_query, means_and_errors
from sctool.novelty._episodes import MIN_CELLS
from sctool.novelty._n_types import (
    TypeSeparation,
    describe_number,
    learn_separation,
    split_into_types,
)

N_COMPONENTS = 30
#: Cells with a higher probability are novel.
THRESHOLD = 0.5
#: Threshold on the evidence on groups.
ENOUGH = 1.0
#: A group of clear type gives its name to its cells, except to those whose own probability of
#: another type is at least this: rare types survive.
OWN = 0.8
#: Minimum number of cells of a type that is hidden to measure the sensitivity.
MIN_HIDDEN = 50


@dataclass(frozen=True)
class QueryNovelty:
    """Result of the search.

    Attributes
    ----------
    proba
        Probability that a cell is novel, (n_cells,); None if no search was possible, for which
        ``audit`` gives the reason.
    names
        Type code assigned to each cell, (n_cells,): known types, then novel ones by size.
    mixed
        Share of the cells that mix with the reference.
    interval
        Number of novel types "n" and its interval, "low" to "high"; None if it was given.
    sensitivity
        For known types of the query, the share of their cells found novel if the type is hidden
        from the reference, by type code. Only of batches that are judged by group.
    audit
        Notes on what was found.
    """

    proba: np.ndarray | None
    names: np.ndarray
    mixed: float = 0.0
    interval: dict[str, int] | None = None
    sensitivity: dict[int, float] = field(default_factory=dict)
    audit: list[str] = field(default_factory=list)


def search(
    x_ref: sp.csr_matrix,
    labels: np.ndarray,
    x: sp.csr_matrix,
    proba: np.ndarray,
    n_novel: int | None,
    rng: np.random.Generator,
    batches: np.ndarray | None = None,
    progress: bool = False,
    programmes: Sequence[np.ndarray] = (),
) -> QueryNovelty:
    """Assign known and novel types to the cells of a query.

    Parameters
    ----------
    x_ref, x
        Reference and query, log1p CP10k, CSR (n_cells, n_genes).
    labels
        Type codes of the reference, from 0.
    proba
        Probabilities of the known types of the query's cells, (n_cells, n_types).
    n_novel
        Number of novel types; None estimates it.
    rng
        Random number generator.
    batches
        Batch codes of the query, (n_cells,); None looks for a second batch.
    progress
        Show progress bars.
    programmes
        Positions of genes that make a state and no type, see :func:`programme_genes`.
    """
    if why := _cells.unsearchable(x):
        return QueryNovelty(None, proba.argmax(axis=1), audit=[f"novel: not searched for: {why}"])

    def seed() -> int:
        return int(rng.integers(2**31))

    profiles, error = means_and_errors(x_ref, labels)
    z = principal_components(x, N_COMPONENTS, seed())
    if n_novel == 0:
        whole = group_query(x, z, proba, [TypeSeparation()], seed(), programmes)
        return QueryNovelty(None, name_by_group(whole.main, proba, profiles))
    # How far types lie apart depends on the depth of the data and on their technology, so it is
    # learnt from the query as well, with the types that the regressions predict.
    z_ref = principal_components(x_ref, N_COMPONENTS, seed())
    separation = learn_separation(x_ref, labels, rng, "umap", z_ref)
    predicted = np.unique(proba.argmax(axis=1), return_inverse=True)[1]
    separations = [separation, learn_separation(x, predicted, rng, "umap", z)]
    whole = group_query(x, z, proba, separations, seed(), programmes)
    parts, audit = _parts(whole, profiles, error, batches)

    learnt = None
    found, known_as = np.zeros(x.shape[0]), np.zeros(x.shape[0], dtype=np.int64)
    sensitivity: dict[int, float] = {}
    n_mixed = n_by_cell = 0
    for part in parts:
        groups = whole
        if not part.all():
            z = principal_components(x[part], N_COMPONENTS, seed())
            groups = group_query(x[part], z, proba[part], separations, seed(), programmes)
        known_as[part] = name_by_group(groups.main, proba[part], profiles)
        found[part], shares = judge_by_group(groups, proba[part], profiles, error)
        around = _cells.neighborhood_composition(x_ref, labels, x[part], seed())
        n_mixed += int(part.sum()) if around.mixed else 0
        if around.mixed and learnt is None:
            learnt = _cells.learn(x_ref, labels, rng, progress)
        if around.mixed and learnt is not None:
            by_cell = learnt.predict_proba(around.evidence)[:, 1]
            found[part] = (found[part] + by_cell) / 2
            n_by_cell += int(part.sum())
        else:
            sensitivity = shares | sensitivity  # of types in several parts, that of the largest
    audit += _how_judged(len(found), n_mixed, n_by_cell)

    novel = found > THRESHOLD
    if n_novel and novel.sum() < n_novel:
        novel = np.zeros(len(found), dtype=bool)
        novel[np.argsort(-found, kind="stable")[:n_novel]] = True
    names = known_as
    if novel.any():
        cells = np.flatnonzero(novel)
        codes, low, high = split_into_types(x[cells], separation, n_novel, seed())
        names[cells] = proba.shape[1] + codes
        n = int(codes.max()) + 1
        audit.append(describe_number(n, low, high, n_novel))
    else:
        n, low, high = 0, 0, 1
        audit.append("novel: number of types: 0; no novel cells were found")
    interval = None if n_novel else {"n": n, "low": low, "high": high}
    return QueryNovelty(found, names, n_mixed / len(found), interval, sensitivity, audit)


def name_by_group(groups: Groups, proba: np.ndarray, profiles: np.ndarray) -> np.ndarray:
    """Known type of each cell, (n_cells,), of its group where that is sure, else its own.

    Parameters
    ----------
    groups, proba
        The cells in groups, and their probabilities of the known types, (n_cells, n_types).
    profiles
        Mean log1p CP10k of the known types, (n_types, n_genes).
    """
    types, codes = groups.types(profiles), groups.codes
    overruled = types != groups.proba.argmax(axis=1)
    sure = groups.proba.max(axis=1) >= SURE
    pooled = overruled[codes] | sure[codes] & (proba.max(axis=1) < OWN)
    return np.where(pooled, types[codes], proba.argmax(axis=1))


def judge_by_group(
    groups: QueryGroups, proba: np.ndarray, profiles: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, dict[int, float]]:
    """Probability that each cell is novel, and how sensitive it is.

    Parameters
    ----------
    groups, proba
        The cells in groups, and their probabilities of the known types, (n_cells, n_types).
    profiles, error
        Mean log1p CP10k of the known types, (n_types, n_genes), and the errors of these means,
        (n_types,), see :func:`sctool.novelty._anchors.means_and_errors`.

    Returns
    -------
    Probabilities, (n_cells,); and by code of each known type that is predicted for at least 50
    cells, the share of these cells that would be found novel if the reference lacked the type.
    """
    evidence = groups.evidence(profiles, error)
    predicted = proba.argmax(axis=1)
    types, n = np.unique(predicted, return_counts=True)
    found_if_hidden = {}
    for t in types[n >= MIN_HIDDEN] if len(types) > 2 else []:
        without = profiles.copy()
        without[t] = np.nan
        hidden = groups.evidence(without, error)[predicted == t]
        found_if_hidden[int(t)] = float((hidden > ENOUGH).mean())
    return expit(evidence - ENOUGH), found_if_hidden


def _parts(
    whole: QueryGroups, profiles: np.ndarray, error: np.ndarray, batches: np.ndarray | None
) -> tuple[list[np.ndarray], list[str]]:
    """Masks (n_cells,) of the batches that are judged separately, by size; and audit notes."""
    everything = np.ones(len(whole.main.codes), dtype=bool)
    if batches is not None:
        codes, n = np.unique(batches, return_counts=True)
        large = codes[n >= MIN_CELLS][np.argsort(-n[n >= MIN_CELLS], kind="stable")]
        parts = [batches == code for code in large]
        rest = ~np.isin(batches, large)
        if len(large) and rest.any():  # batches too small to judge join the largest
            parts[0] = parts[0] | rest
        if len(parts) > 1:
            return parts, [f"novel: {len(parts)} batches judged separately"]
    second = whole.second_batch(profiles, error)
    if second is None or min(second.sum(), (~second).sum()) < MIN_CELLS:
        return [everything], []
    note = (
        f"novel: {int(second.sum())} cells resemble the known types only once a difference common "
        "to them is removed; they were judged separately, as a second batch"
    )
    return sorted([second, ~second], key=np.sum, reverse=True), [note]


def _how_judged(n: int, n_mixed: int, n_by_cell: int) -> list[str]:
    """Audit notes on how many of the cells were judged by cell and by group."""
    notes = []
    if n_by_cell:
        notes.append(
            f"novel: {n_by_cell} cells judged by cell and group, for they mix with the reference"
        )
    if n_mixed > n_by_cell:
        notes.append(
            f"novel: {n_mixed - n_by_cell} cells judged by group; they mix with the reference, but "
            "it has too few types or cells to learn from by hiding types"
        )
    if n > n_mixed:
        notes.append(
            f"novel: {n - n_mixed} cells judged by group, for a batch effect separates them from "
            "the reference"
        )
    return notes
