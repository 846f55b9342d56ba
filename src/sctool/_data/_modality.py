"""The gene expression within an object of several modalities (MuData)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anndata import AnnData

from sctool._data._gene_names import gene_names
from sctool._data._genes import GENE, NO_GENE, clean_names, other_features


def is_multimodal(data: Any) -> bool:
    """Whether this is a MuData, which need not be installed."""
    modalities = getattr(data, "mod", None)
    return isinstance(modalities, Mapping) and not isinstance(data, AnnData)


def rna_of(data: Any, name: str) -> Any:
    """The modality of a MuData that holds gene expression; anything else is returned as it is.

    It is the one called "rna" or the like, or the only one whose features are genes of human or
    mouse.

    Raises
    ------
    ValueError
        There is none, or several may be it.
    """
    return data.mod[rna_name(dict(data.mod), name)] if is_multimodal(data) else data


def rna_name(modalities: Mapping[str, AnnData], name: str) -> str:
    """Which of the modalities :func:`rna_of` chooses; of their cells nothing is looked at."""
    found = [key for key in modalities if key.strip().lower() in GENE]
    if not found:
        found = [
            key
            for key, adata in modalities.items()
            if key.strip().lower() not in NO_GENE and _has_genes(adata)
        ]
    if len(found) != 1:
        which = f"{found!r} of them may be" if found else "none of them is known to be"
        raise ValueError(
            f"{name} has the modalities {list(modalities)!r}; {which} gene expression. Pass that "
            "one alone, or call it 'rna'."
        )
    return found[0]


def _has_genes(adata: AnnData) -> bool:
    """Whether most features are genes, by what ``var`` says of them and by their names."""
    names = set(clean_names(adata.var_names[~other_features(adata.var)]))
    return 2 * len(names) > adata.n_vars and gene_names().species_of(names) is not None
