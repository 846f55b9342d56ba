"""Which of many cells are used: all of rare types, some of common ones."""

from __future__ import annotations

import numpy as np
import pandas as pd

#: Largest number of a reference's cells that are held in memory, with those of no type; and number
#: of cells of a type that are held at least, if it has so many and there are not too many types.
MOST, LEAST = 100_000, 1_000


def sizes(n: np.ndarray, most: int, least: int) -> np.ndarray:
    """Number of cells to take of each type, (n_types,), ``most`` in all or a little less.

    The same share of each, so that the frequencies of common types, by which a model decides
    between similar ones, stay as they are; but at least ``least`` cells, or all of them.

    Parameters
    ----------
    n
        Number of cells of each type, (n_types,).
    """
    least = max(min(least, most // len(n)), 1)

    def taken(share: float) -> np.ndarray:
        return np.minimum(n, np.maximum(least, (share * n).astype(int)))

    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        low, high = (share, high) if taken(share).sum() <= most else (low, share)
    return taken(low)


def sample(
    codes: np.ndarray, most: int | None = None, least: int | None = None
) -> np.ndarray | None:
    """Choose the cells of a reference that are used; None if all are.

    Cells without a type count as one more type. Those of a type are evenly spaced over the
    reference, so that donors which follow each other in a file keep their shares.

    Parameters
    ----------
    codes
        Type codes, (n_cells,); -1 for cells without a type.
    most
        Number of cells to which the reference is reduced, default ``MOST``.
    least
        Number of cells of a type that are kept at least, if it has so many, default ``LEAST``.

    Returns
    -------
    Mask, (n_cells,).
    """
    most, least = most or MOST, least or LEAST
    if len(codes) <= most:
        return None
    kinds, n = np.unique(codes, return_counts=True)
    chosen = np.zeros(len(codes), dtype=bool)
    for kind, size in zip(kinds, sizes(n, most, least), strict=True):
        members = np.flatnonzero(codes == kind)
        chosen[members[np.arange(size) * len(members) // size]] = True
    return chosen


def note(codes: np.ndarray, chosen: np.ndarray) -> str:
    """Note for the audit on the cells that were chosen of a reference."""
    n, used = (np.bincount(c + 1) for c in (codes, codes[chosen]))
    share = used[n.argmax()] / n.max()
    whole = n[(n == used) & (n > 0)].max(initial=0)
    rare = f"all of types with up to {whole}, " if whole else ""
    return (
        f"ref: {chosen.sum()} of {len(codes)} cells were used, as no more are held in memory: "
        f"{rare}{share:.2g} of the cells of the most common type, evenly spaced"
    )


def at_most(types: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw up to ``n`` cells of each type; positions in ascending order.

    Parameters
    ----------
    types
        Type of each cell, names or codes, (n_cells,).
    """
    order, rank = _drawn(types, rng)
    return np.sort(order[rank < n])


def with_rare(types: np.ndarray, n: int, n_rare: int, rng: np.random.Generator) -> np.ndarray:
    """Draw up to ``n`` cells, among them ``n_rare`` of each type or all it has, if ``n`` allows.

    Returns
    -------
    Positions in random order.
    """
    order, rank = _drawn(types, rng)
    first = np.argsort(rank >= n_rare, kind="stable")[:n]
    return order[np.sort(first)]


def _drawn(types: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the cells in random order, and of how many of its type each comes after."""
    order = rng.permutation(len(types))
    return order, pd.Series(types[order]).groupby(types[order]).cumcount().to_numpy()
