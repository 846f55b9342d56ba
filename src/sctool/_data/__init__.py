"""From a user's AnnData to the matrix that a model sees.

Each step leaves sentences in an audit that ends in ``uns[key]["audit"]``:

1. ``_expression.py`` finds values on a known scale (counts, linear or log1p) in ``X``, ``raw`` or
   a layer, or refuses with what was found and what to do.
2. ``_genes.py`` pairs the genes of two objects by name.
3. ``_join.py`` makes :class:`TrainingData` of them: the one object that a model is trained on.
4. ``_features.py``: :class:`Features`, fitted once per model, turns the expression of any object
   into the model's inputs.

Cells stay sparse and are read in chunks, each once: backed files and lazy arrays go the same way.
"""

from sctool._data._expression import Expression, find_expression
from sctool._data._features import Features
from sctool._data._join import TrainingData, batch_names, clean_labels, join, palette, read_cells

__all__ = [
    "Expression",
    "Features",
    "TrainingData",
    "batch_names",
    "clean_labels",
    "find_expression",
    "join",
    "palette",
    "read_cells",
]
