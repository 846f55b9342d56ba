"""Preparation of a user's AnnData as model input.

Each step adds notes to an audit that is stored in ``uns[key]["audit"]``:

1. ``_expression.py`` finds values on a known scale (counts, linear or log1p) in ``X``, ``raw`` or
   a layer, or raises an error.
2. ``_genes.py`` matches the genes of two objects by name.
3. ``_join.py`` combines them into :class:`TrainingData`, the only object that models train on;
   ``_sample.py`` chooses the cells of a reference that is larger than should be held.
4. ``_features.py`` has :class:`Features`, fitted once per model, which transforms the expression of
   any object into model inputs.

Cells stay sparse and are read once, in chunks; backed files and lazy arrays are treated alike.
"""

from sctool._data._expression import Expression, find_expression
from sctool._data._features import Features, Reader
from sctool._data._join import (
    TrainingData,
    batch_names,
    clean_labels,
    find_query,
    join,
    layer_of,
    obs_column,
    palette,
    read_cells,
)
from sctool._data._modality import is_multimodal, rna_name, rna_of
from sctool._data._sample import MOST
from sctool._data._workers import client_of, map_rows

__all__ = [
    "MOST",
    "Expression",
    "Features",
    "Reader",
    "TrainingData",
    "batch_names",
    "clean_labels",
    "client_of",
    "find_expression",
    "find_query",
    "is_multimodal",
    "join",
    "layer_of",
    "map_rows",
    "obs_column",
    "palette",
    "read_cells",
    "rna_name",
    "rna_of",
]
