from __future__ import annotations

import logging
from collections.abc import Mapping

import pandas as pd
from anndata import AnnData

from sctool import _data, _slots
from sctool._ontology import cell_ontology, map_names

logger = logging.getLogger("sctool")


def map_to_ontology(
    adata: AnnData, key: str, *, mapping: Mapping[str, str] | None = None, copy: bool = False
) -> AnnData | None:
    """Map cell types to ids of the Cell Ontology.

    A name is looked for among the labels of the ontology, then among its exact synonyms, then in a
    normalised form, in which case, punctuation, the plural, the order of words, "cell" and
    "positive" or its sign "+" have no effect: "CD4+ T cells" is found as "CD4-positive, alpha-beta
    T cell". No guesses are made: what is not found is listed, and ``mapping`` is the place for it.

    Parameters
    ----------
    adata
        Cells, (n_cells, n_genes).
    key
        Column of ``obs`` with the cell types, such as the ``key_added`` of :func:`annotate`.
    mapping
        Terms of some types, by their ids ("CL:0000084") or names ("T cell"). They come first.
    copy
        Return a copy with the ids and leave ``adata`` unchanged.

    Returns
    -------
    None, or the copy if ``copy=True``. The following is written:

    ``obs[f"{key}_ontology_term_id"]`` : categorical
        Id of each cell's type; "unknown", the word of the CELLxGENE schema, for types that were not
        found and for missing ones.
    ``uns[f"{key}_ontology"]`` : dict
        ``terms``, a DataFrame with one row per type that was found: its ``name``, the term's
        ``ontology_term_id`` and ``label``, and ``n_cells``; ``unmapped``, the names that were not
        found; and ``version``, the release and licence of the ontology.

    Raises
    ------
    KeyError
        There is no such column.
    ValueError
        ``mapping`` gives what is no term of the ontology; or the column of ids exists and was not
        written by sctool, as in files of CELLxGENE.
    TypeError
        ``adata`` has the wrong type.

    Notes
    -----
    The names are those of the Cell Ontology (Diehl et al. 2016, CC BY 4.0), where an exact synonym
    may belong to another tissue: "alpha cell" is one of a cell of the retina. Read the table of
    terms, and correct it by ``mapping``.

    Examples
    --------
    >>> import sctool
    >>> adata, ref = sctool.datasets.blood()
    >>> map_to_ontology(ref, "cell_type", mapping={"CD34+": "hematopoietic precursor cell"})
    >>> ref.obs["cell_type_ontology_term_id"][ref.obs["cell_type"] == "CD19+ B"].unique().tolist()
    ['CL:0001201']
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, not {type(adata).__name__}.")
    names = _data.clean_labels(_data.obs_column(adata, key, "key", "data"))
    column, slot = f"{key}_ontology_term_id", f"{key}_ontology"
    earlier = _slots.is_ontology(adata.uns.get(slot))
    ours = earlier or _slots.is_result(adata.uns.get(key))
    for name, theirs in (
        (f"obs[{column!r}]", column in adata.obs and not ours),
        (f"uns[{slot!r}]", slot in adata.uns and not earlier),
    ):
        if theirs:
            raise ValueError(
                f"adata.{name} exists and was not written by sctool. Delete it first if it should "
                "be replaced."
            )
    found = map_names(map(str, names.categories), mapping)
    if idle := [str(name) for name in mapping or {} if str(name).strip() not in found]:
        logger.warning("mapping: obs[%r] has no types of the names %r.", key, idle)
    terms = {name: term for name, term in found.items() if term is not None}
    unmapped = [name for name in found if name not in terms]
    if unmapped:
        logger.warning(
            "%d of %d types of obs[%r] were not found in the Cell Ontology: %r. Pass their terms "
            "as mapping.",
            *(len(unmapped), len(found), key, unmapped),
        )
    ontology, n_cells = cell_ontology(), names.value_counts()
    table = pd.DataFrame(
        {
            "name": list(terms),
            "ontology_term_id": list(terms.values()),
            "label": [ontology.labels[term] for term in terms.values()],
            "n_cells": [int(n_cells[name]) for name in terms],
        },
        index=[str(i) for i in range(len(terms))],
    )
    target = _slots.writable(adata, copy)
    _slots.write_ontology(target, key, terms, table, unmapped, ontology.version)
    return target if copy else None
