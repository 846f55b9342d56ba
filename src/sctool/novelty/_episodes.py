"""Training episodes in which reference types are hidden, to learn to recognise novel types."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Minimum number of unlabelled cells for a search: fewer give clusters too small to judge.
MIN_CELLS = 200
#: Maximum share of hidden types.
MAX_HIDDEN = 0.8


@dataclass(frozen=True)
class Episode:
    """Labelled cells split into a reference and a simulated query.

    Attributes
    ----------
    reference, query
        Positions of the cells.
    known
        Codes of the types in the reference, sorted.
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
    """Split labelled cells into a reference and a query, and hide some types from the reference.

    Parameters
    ----------
    labels
        Type codes from 0, (n_labelled,).
    n_cells
        Maximum number of cells to use.
    max_log_thinning
        On each side every type is downsampled to a random share of its cells, with a logarithm
        between minus this and 0, so that proportions of types differ as between reference and
        query. None keeps all cells.
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
