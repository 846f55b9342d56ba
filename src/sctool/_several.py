"""Several references: which types of one are which of another, and one answer out of theirs.

Functions take and return arrays and tables and do not depend on a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from sctool._ontology import cell_ontology

#: Joins the names of the types that a coarser type holds.
JOIN = " / "
#: A type is compared by its cells with the type that more than this share of them resemble.
MOST = 0.5
#: A part has more than this share of the cells of the whole, so that confusions are no parts.
SOME = 0.05
#: Pooled probabilities are improved in at most so many steps, until none changes by more than this.
MAX_STEPS, CONVERGED = 200, 1e-4
#: Share of what a reference says of types that it does not know that is not believed.
OPEN = 0.5
#: Power of the confidence that a reference retains in the query, in its weight.
RETAINED = 8
#: A reference to which a cell is novel still counts for this much of what it would count.
LEAST = 0.01
#: Range of the temperature.
TEMPERATURES = (0.25, 10)
#: Cells that are pooled at once.
CHUNK = 8192


# -- Alignment -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alignment:
    """The types of several references under the names of one answer.

    Attributes
    ----------
    names
        Types of the answer, the finest that any reference has, in the order of the references.
    members
        Of each reference, the types of the answer that each of its own types holds,
        (n_types, n_names) bool.
    table
        One row for each type of each reference: "reference"; "type"; its "name" in the answer, of
        a coarser type those that it holds; "part_of", coarser types of other references; "how"
        that was found: "name", "ontology", "cells" or "only here".
    """

    names: list[str]
    members: list[np.ndarray]
    table: pd.DataFrame


def align(
    references: Sequence[str],
    types: Sequence[Sequence[str]],
    terms: Sequence[Mapping[str, str]],
    shares: Mapping[tuple[int, int], np.ndarray],
) -> Alignment:
    """Find out which types of several references are the same, and which are parts of others.

    Types are the same if their names are, or else their terms in the Cell Ontology; one is a part
    of another whose term is more general. What is left is compared by cells: a type is part of the
    type that another reference takes most of its cells for, provided that the cells of this one are
    mostly taken for such parts; a single part is the same type. Not compared by cells are two types
    that both have a term. Each step compares only types that
    the steps before have not related to the other reference.

    Parameters
    ----------
    references
        Their names, for the table.
    types
        Types of each reference.
    terms
        Cell Ontology ids that a reference brings for its types, by name; where it brings none, its
        names are looked up.
    shares
        For pairs of references (i, j), the share of the cells of each type of i that j takes for
        each of its types, (n_types_i, n_types_j); NaN for types without cells.
    """
    owner = np.repeat(np.arange(len(types)), [len(own) for own in types])
    name = np.array([name for own in types for name in own], dtype=object)
    of = [np.flatnonzero(owner == i) for i in range(len(types))]
    pairs = list(permutations(range(len(types)), 2))
    how = np.full(len(name), "only here", dtype=object)

    def close(within: np.ndarray, step: str) -> np.ndarray:
        """What follows from the relations; and note by which step types were first related."""
        closed = within
        for _ in range(len(types)):
            closed = (closed.astype(int) @ closed) > 0
        related = (closed | closed.T) & (owner[:, None] != owner)
        how[related.any(axis=1) & (how == "only here")] = step
        return closed

    def without_equal(within: np.ndarray, i: int, j: int) -> np.ndarray:
        """Types of i of which j has no equal."""
        a, b = of[i], of[j]
        return a[~(within[np.ix_(a, b)] & within[np.ix_(b, a)].T).any(axis=1)]

    def unrelated(within: np.ndarray, i: int, j: int) -> np.ndarray:
        """Types of i of which j has no equal, no part and no whole."""
        a, b = of[i], of[j]
        return a[~(within[np.ix_(a, b)] | within[np.ix_(b, a)].T).any(axis=1)]

    # 1. By name
    within = close(name[:, None] == name, "name")

    # 2. By term: first the same, then parts, of the most specific type that has them
    ontology = cell_ontology()
    term: Any = np.array(
        [
            given.get(n) or ontology.find(n)
            for given, own in zip(terms, types, strict=True)
            for n in own
        ],
        dtype=object,
    )
    step = within.copy()
    for i, j in pairs:
        free = np.ix_(without_equal(within, i, j), without_equal(within, j, i))
        ours, theirs = term[free[0]], term[free[1]]
        equal = (ours == theirs) & (ours != None)  # noqa: E711
        step[free] |= equal
        step.T[free] |= equal
    within = close(step, "ontology")
    step = within.copy()
    for i, j in pairs:
        for a in unrelated(within, i, j):
            above = ontology.ancestors(term[a]) if term[a] in ontology.labels else {}
            wholes = [b for b in without_equal(within, j, i) if term[b] in above]
            if wholes:
                step[a, min(wholes, key=lambda b: above[term[b]])] = True
    within = close(step, "ontology")

    # 3. By cells: types of most parts first
    step = within.copy()
    has_term = np.array([t in ontology.labels for t in term])
    found = []
    for i, j in pairs:
        if (i, j) not in shares or (j, i) not in shares:
            continue
        # what the ontology keeps apart may look alike to a model that knows only one of the two
        apart = np.outer(has_term[of[i]], has_term[of[j]])
        there = np.where(apart, 0, np.nan_to_num(shares[i, j]))
        back = np.where(apart.T, 0, np.nan_to_num(shares[j, i]))
        for b in without_equal(within, j, i):
            t, free = b - of[j][0], unrelated(within, i, j) - of[i][0]
            parts = free[(there[free, t] > MOST) & (back[t, free] > SOME)]
            if back[t, parts].sum() > MOST:
                found.append((parts + of[i][0], b))
    taken: set[tuple[int, int]] = set()  # a type, and a reference with which it was compared
    for parts, b in sorted(found, key=lambda pair: -len(pair[0])):
        i, j = owner[parts[0]], owner[b]
        if (b, i) in taken or any((a, j) in taken for a in parts):
            continue
        taken |= {(b, i), *((a, j) for a in parts)}
        step[parts, b] = True
        step[b, parts] |= len(parts) == 1
    within = close(step, "cells")

    return _answer(references, name, owner, within, how)


def _answer(
    references: Sequence[str],
    name: np.ndarray,
    owner: np.ndarray,
    within: np.ndarray,
    how: np.ndarray,
) -> Alignment:
    """The finest types, given which type of all is within which, (n_types, n_types) bool."""
    equal = within & within.T
    first = equal.argmax(axis=0)  # of the types that are the same
    finest = ~(within & ~equal).any(axis=0)
    leaves = np.flatnonzero(finest & (first == np.arange(len(name))))
    holds = within[leaves].T
    names = [str(n) for n in name[leaves]]
    table = pd.DataFrame(
        {
            "reference": np.array(references, dtype=object)[owner],
            "type": name,
            "name": [JOIN.join(np.array(names, dtype=object)[row]) for row in holds],
            "part_of": [
                JOIN.join(dict.fromkeys(name[within[a] & ~within[:, a]])) for a in range(len(name))
            ],
            "how": how,
        }
    )
    return Alignment(names, [holds[owner == i] for i in range(len(references))], table)


def shares_by_type(codes: np.ndarray, found: np.ndarray, n: int, n_found: int) -> np.ndarray:
    """Share of the cells of each type that are taken for each of another reference's types.

    Parameters
    ----------
    codes, found
        Type of each cell, and the type that it is taken for; -1 or ``n_found`` and above for none.
    n, n_found
        Number of types of the one and of the other reference.

    Returns
    -------
    (n, n_found); NaN for types without cells.
    """
    known = (codes >= 0) & (found >= 0) & (found < n_found)
    counts = np.zeros((n, n_found))
    np.add.at(counts, (codes[known], found[known]), 1)
    total = np.bincount(codes[codes >= 0], minlength=n).astype(float)
    return counts / np.where(total > 0, total, np.nan)[:, None]


# -- Pooling -------------------------------------------------------------------------------------


def pool(
    probas: Sequence[np.ndarray],
    members: Sequence[np.ndarray],
    weights: np.ndarray,
    novelty: np.ndarray,
) -> np.ndarray:
    """One probability of each type out of those of several references.

    Where all references know the same types, this is their weighted mean. Of a coarser type, a
    reference says nothing about its parts, and of types that it does not know it says no more than
    that the cell is, or is not, novel. Half of that is believed, for a cell of a type that was not
    known often bears the name of a similar one. What a reference leaves open is as in the pooled
    answer, which is found by iteration.

    Parameters
    ----------
    probas
        Of each reference, probabilities of its own types, (n_cells, n_types).
    members
        Of each reference, the types of the answer that each of its types holds,
        (n_types, n_names).
    weights
        Of each reference in each cell, (n_references, n_cells).
    novelty
        How novel each reference finds each cell, (n_references, n_cells).

    Returns
    -------
    (n_cells, n_names); rows sum to 1.
    """
    n = len(probas[0])
    parts = [slice(start, start + CHUNK) for start in range(0, max(n, 1), CHUNK)]
    each = [_pool([p[c] for p in probas], members, weights[:, c], novelty[:, c]) for c in parts]
    return np.concatenate(each)


def _pool(
    probas: Sequence[np.ndarray],
    members: Sequence[np.ndarray],
    weights: np.ndarray,
    novelty: np.ndarray,
) -> np.ndarray:
    given = [p / np.maximum(p.sum(axis=1, keepdims=True), 1e-12) for p in probas]
    holds = [m.astype(float) for m in members]
    known: list[Any] = [m.any(axis=0) for m in members]
    w = weights / np.maximum(weights.sum(axis=0), 1e-12)
    pooled = np.full((len(given[0]), len(known[0])), 1e-9)
    for wi, p, m in zip(w, given, holds, strict=True):
        pooled += wi[:, None] * (p / m.sum(axis=1) @ m)
    pooled /= pooled.sum(axis=1, keepdims=True)
    for _ in range(MAX_STEPS):
        new = np.zeros_like(pooled)
        for wi, p, m, k, v in zip(w, given, holds, known, novelty, strict=True):
            inside, outside = pooled * k, pooled * ~k
            within, without = inside.sum(axis=1), outside.sum(axis=1)
            share = np.ones(len(p)) if k.all() else OPEN * within + (1 - OPEN) * (1 - v)
            spread = inside * ((p / np.maximum(inside @ m.T, 1e-12)) @ m)
            new += (wi * share)[:, None] * spread
            new += (wi * (1 - share) / np.maximum(without, 1e-12))[:, None] * outside
        new /= np.maximum(new.sum(axis=1, keepdims=True), 1e-12)
        change = np.abs(new - pooled).max(initial=0)
        pooled = new
        if change < CONVERGED:
            break
    return pooled


def weigh(
    reliability: np.ndarray,
    transfer: np.ndarray,
    retained: np.ndarray,
    distance: np.ndarray,
    novelty: np.ndarray,
    unseen: np.ndarray,
) -> np.ndarray:
    """How much each reference counts for each cell, (n_references, n_cells); columns sum to 1.

    Parameters
    ----------
    reliability
        How well a reference recognises its held-out cells, from 0 for chance to 1,
        (n_references,); NaN if unknown.
    transfer
        How well it recognises cells of the other references, likewise. The query is such a
        stranger too, and a reference may know its own cells well and no others.
    retained
        Mean probability of the assigned types in the query relative to that in held-out cells,
        (n_references,); NaN if unknown. A model that loses confidence errs more often.
    distance
        Between the expression of a reference and of the query, (n_references,); NaN if unknown.
    novelty
        How novel a reference finds a cell, (n_references, n_cells).
    unseen
        Cells that express no gene of a reference's model, (n_references, n_cells).
    """
    # what is unknown is as in the typical reference
    known = (reliability * _complete(transfer), np.minimum(retained, 1), distance)
    trust, kept, far = map(_complete, known)
    of_reference = np.maximum(trust**2 * kept**RETAINED, 1e-4) / np.maximum(far, 1e-3)
    weights = of_reference[:, None] * (1 - novelty + LEAST)
    weights = np.where(unseen, 0, weights)
    total = weights.sum(axis=0)
    return np.where(total > 0, weights / np.where(total > 0, total, 1), 1 / len(weights))


def _complete(values: np.ndarray) -> np.ndarray:
    """The median of the known values in place of unknown ones; 1 if there are none."""
    known = values[~np.isnan(values)]
    return np.where(np.isnan(values), np.median(known) if len(known) else 1.0, values)


def sharpen(proba: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (n_cells, n_types) with their logits divided by a temperature."""
    raised = np.maximum(proba, 1e-12) ** (1 / temperature)
    return raised / raised.sum(axis=1, keepdims=True)


def fit_temperature(proba: np.ndarray, codes: np.ndarray) -> float:
    """The temperature at which cells (n_cells, n_types) of known types (n_cells,) are likeliest.

    It may lie below 1: a mean of calibrated probabilities is less sure than it should be (Ranjan &
    Gneiting 2010).
    """
    cells = np.arange(len(codes))

    def loss(temperature: float) -> float:
        return float(-np.log(np.maximum(sharpen(proba, temperature)[cells, codes], 1e-12)).mean())

    return float(minimize_scalar(loss, bounds=TEMPERATURES, method="bounded").x)


def confusions(proba: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Mean log probability of each type in the cells of each, (n_types, n_types).

    Similar types have similar rows. Types without cells are like no other.
    """
    n = proba.shape[1]
    log_proba = np.log(np.maximum(proba, 1e-6))
    rows = [log_proba[codes == t].mean(axis=0) if (codes == t).any() else None for t in range(n)]
    mean = log_proba.mean(axis=0)
    return np.stack([np.eye(n)[t] if row is None else row - mean for t, row in enumerate(rows)])
