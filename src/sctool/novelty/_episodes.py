"""Reference types hidden in turn, to learn what a novel type looks like."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Fewer unlabelled cells than this are not searched: their groups are of too few cells to judge.
MIN_CELLS = 200
#: Share of the types that is hidden at most.
MAX_HIDDEN = 0.8


@dataclass(frozen=True)
class Episode:
    """Labelled cells that play a reference and a query.

    Attributes
    ----------
    reference, query
        Positions of the cells of either side.
    known
        Codes of the types that the reference holds, sorted.
    """

    reference: np.ndarray
    query: np.ndarray
    known: np.ndarray


def hide_types(
    labels: np.ndarray,
    rng: np.random.Generator,
    n_cells: int,
    max_log_thinning: float | None = None,
) -> Episode:
    """Half of some cells play the reference, half the query, and some types are hidden.

    Parameters
    ----------
    labels
        Types as codes from 0, (n_labelled,).
    n_cells
        Cells that take part, at most.
    max_log_thinning
        On each side every type keeps a random share of its cells, whose logarithm lies between
        minus this and 0: so the sides hold the types in different proportions, as reference and
        query do. None keeps all.
    """
    n_types = int(labels.max()) + 1
    cells = rng.permutation(len(labels))[:n_cells]
    n_hidden = min(int(rng.integers(0, max(int(MAX_HIDDEN * n_types), 1) + 1)), n_types - 2)
    hidden = rng.permutation(n_types)[: max(n_hidden, 0)]
    in_ref = rng.random(len(cells)) < 0.5
    kept = np.ones(len(cells), dtype=bool)
    if max_log_thinning is not None:
        share = np.exp(-rng.uniform(0, max_log_thinning, (2, n_types)))
        kept = rng.random(len(cells)) < share[in_ref.astype(int), labels[cells]]
    reference = cells[in_ref & kept & ~np.isin(labels[cells], hidden)]
    return Episode(reference, cells[~in_ref & kept], np.unique(labels[reference]))
