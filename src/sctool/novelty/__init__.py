"""Cells of no known type: which these are, how many types, and what sets them apart. Ours.

Arrays in, arrays out; no model is known here. What tells novel from known is learnt from the
reference, by hiding some of its types in turn (``_episodes.py``).

- ``_cells.py``: :func:`find`, the whole search.
- ``_clusters.py``: evidence on groups of cells, for a query that a batch effect sets apart.
- ``_n_types.py``: how many types some cells are of, and which cell is of which.
- ``_describe.py``: size, nearest known type and marker genes of a group.

Steps and reasons are in ``docs/methods/scdet.md`` and ``docs/methods/gate.md``.
"""

from sctool.novelty._cells import Novelty, find, known_types
from sctool.novelty._describe import describe, group_sizes

__all__ = ["Novelty", "describe", "find", "group_sizes", "known_types"]
