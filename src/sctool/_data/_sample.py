"""Which cells of a large reference are used: all of rare types, some of common ones."""

from __future__ import annotations

import numpy as np

#: Largest number of a reference's cells that are held in memory, with those of no type.
MOST = 100_000


def highest(n: np.ndarray, most: int) -> int:
    """Number of cells of each type up to which at most ``most`` are left, at least 1.

    Parameters
    ----------
    n
        Number of cells of each type, (n_types,).
    """
    left = most
    for i, size in enumerate(np.sort(n)):
        share = left // (len(n) - i)
        if size > share:
            return max(share, 1)
        left -= int(size)
    return int(n.max(initial=1))


def sample(codes: np.ndarray, most: int | None = None) -> np.ndarray | None:
    """Choose the cells of a reference that are used; None if all are.

    Of each type, and of the cells without one, as many as :func:`highest` allows, evenly spaced
    over the reference, so that donors which follow each other in a file keep their shares.

    Parameters
    ----------
    codes
        Type codes, (n_cells,); -1 for cells without a type.
    most
        Number of cells to which the reference is reduced, default ``MOST``.

    Returns
    -------
    Mask, (n_cells,).
    """
    most = MOST if most is None else most
    if len(codes) <= most:
        return None
    n = np.bincount(codes + 1)
    cap = highest(n[n > 0], most)
    chosen = np.zeros(len(codes), dtype=bool)
    order = np.argsort(codes, kind="stable")
    for members in np.split(order, np.cumsum(n)[:-1]):
        size = min(len(members), cap)
        chosen[members[np.arange(size) * len(members) // max(size, 1)]] = True
    return chosen


def note(codes: np.ndarray, chosen: np.ndarray) -> str:
    """Note for the audit on the cells that were chosen of a reference."""
    cap = np.bincount(codes[chosen] + 1).max()
    return (
        f"ref: {chosen.sum()} of {len(codes)} cells were used, which is the most that are held in "
        f"memory: at most {cap} of a type, evenly spaced, and all of types with fewer"
    )
