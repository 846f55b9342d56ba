"""Detection of novel cell types. Developed for this package.

Functions take and return arrays and do not depend on a model. The difference between novel and
known types is learnt from the reference, by hiding some of its types in turn (``_episodes.py``).

- ``_query.py``: :func:`search`, the search of the default method, batch by batch.
- ``_anchors.py``: its evidence on groups, for a query with a batch effect.
- ``_cells.py``: :func:`find`, the search of scDET, and evidence on cells.
- ``_clusters.py``: its evidence on clusters, for a query with a batch effect.
- ``_n_types.py``: estimates the number of novel types and assigns cells to them.
- ``_programmes.py``: stress and the cell cycle, which make a state of a type.
- ``_describe.py``: size, nearest known type and marker genes of novel types.

``docs/methods/auto.md``, ``scdet.md`` and ``gate.md`` in that folder describe the algorithms.
"""

from sctool.novelty._cells import Novelty, find, known_types
from sctool.novelty._describe import describe, group_sizes
from sctool.novelty._programmes import PROGRAMMES, programme_genes
from sctool.novelty._query import QueryNovelty, search

__all__ = [
    "PROGRAMMES",
    "Novelty",
    "QueryNovelty",
    "describe",
    "find",
    "group_sizes",
    "known_types",
    "programme_genes",
    "search",
]
