"""Detection of novel cell types. Developed for this package.

Functions take and return arrays and do not depend on a model. The difference between novel and
known types is learnt from the reference, by hiding some of its types in turn (``_episodes.py``).

- ``_cells.py``: :func:`find`, the complete search.
- ``_clusters.py``: evidence on clusters, for a query with a batch effect.
- ``_n_types.py``: estimates the number of novel types and assigns cells to them.
- ``_describe.py``: size, nearest known type and marker genes of novel types.

``docs/methods/scdet.md`` and ``docs/methods/gate.md`` describe the algorithms.
"""

from sctool.novelty._cells import Novelty, find, known_types
from sctool.novelty._describe import describe, group_sizes

__all__ = ["Novelty", "describe", "find", "group_sizes", "known_types"]
