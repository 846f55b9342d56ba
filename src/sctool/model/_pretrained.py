"""Models that others trained: what they share, from the genes of a query to their attribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from sctool._data._gene_names import gene_names
from sctool._data._genes import clean_names, kind_of_names
from sctool.model._base import AnnotationModel, Prediction

#: Prefix of the Ensembl ids of each species.
ENSEMBL_PREFIX = {"human": "ENSG", "mouse": "ENSMUSG"}


class PretrainedModel(AnnotationModel):
    """Base class of models that others trained.

    They are made by :func:`sctool.model.load` and annotate, save and load as any other. They have
    no training cells, so that novelty cannot be judged.
    """

    #: Genes of the model that a query must have; None for half of them.
    MIN_GENES: ClassVar[int | None]
    #: Whether cells are normalised over all genes of the query, and not those of the model alone.
    ALL_GENES: ClassVar[bool]

    #: Cell Ontology id of each type, where one is known.
    terms_: dict[str, str]
    #: "name", "species", "licence", "from" and "attribution".
    source_: dict[str, str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError(
            f"{type(self).__name__} is not trained but loaded: call sctool.model.load with a name "
            "of sctool.models(), a file or a URL."
        )

    @classmethod
    def _make(
        cls,
        genes: pd.DataFrame,
        selected: list[str],
        mean: np.ndarray,
        outputs: dict[str, Any],
        tensors: dict[str, Tensor],
    ) -> Self:
        """Make a model from what a file of others says.

        Parameters
        ----------
        genes, selected, mean
            As in :class:`sctool._data.Features`.
        outputs
            Values of ``_outputs`` that differ from those of a model of one domain.
        tensors
            Weights of the module.
        """
        state = {
            "preset": "default",
            "settings": {},
            "registry": {"setup_args": None, "field_registries": {}},
            "audit": [],
            "class_colors": {},
            "n_domains": 1,
            "genes": list(genes.index),
            "gene_identifiers": {name: list(genes[name]) for name in genes},
            "selected": selected,
            "ignore_case": False,
            "target_sum": cls.PRESETS["default"].target_sum,
            **outputs,
        }
        weights = {f"module.{name}": value for name, value in tensors.items()}
        weights["features.mean"] = torch.from_numpy(np.asarray(mean, dtype=np.float32))
        return cls._restore(state, weights)

    def _build(self) -> None:
        super()._build()
        self.features_.min_genes, self.features_.all_genes = self.MIN_GENES, self.ALL_GENES

    def _outputs(self) -> dict[str, Any]:
        return super()._outputs() | {"terms": self.terms_, "source": self.source_}

    def _set_outputs(self, state: dict[str, Any]) -> None:
        super()._set_outputs(state)
        self.terms_, self.source_ = state["terms"], state["source"]

    def train(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise RuntimeError: others trained the model, and its cells are not here."""
        raise RuntimeError(f"{type(self).__name__} was trained by others and cannot be trained.")

    def predict_cells(self, adata: AnnData | None = None, *args: Any, **kwargs: Any) -> Prediction:
        """Predict as other models do, but refuse genes of another species (ValueError)."""
        if adata is not None:
            self._check_species(adata.var)
        return super().predict_cells(adata, *args, **kwargs)

    def _check_species(self, var: pd.DataFrame) -> None:
        """Raise ValueError if the genes are of another species than the model's."""
        species = self.source_["species"]
        kind = kind_of_names(var)
        if kind not in ("symbols", ENSEMBL_PREFIX.get(species, kind)):
            raise ValueError(
                f"The model {self.source_['name']!r} is for {species} cells, but the query's genes "
                f"have ids such as {str(var.index[0])!r}. Use a model of that species; "
                "sctool.models() lists those there are."
            )
        found = gene_names().species_of(set(clean_names(var.index)))
        if found not in (species, None) and species in ENSEMBL_PREFIX:
            raise ValueError(
                f"The model {self.source_['name']!r} is for {species} cells, but names such as "
                f"{str(var.index[0])!r} are those of another species, {found}. Use a model of that "
                "species; sctool.models() lists those there are."
            )

    def _note_reuse(self, novel: str | int) -> list[str]:
        self._settings_for_novel(novel)
        source = self.source_
        notes = [
            f"model: {source['name']!r}, trained by others; nothing was trained. From "
            f"{source['from']}",
            *self.audit_,
            "novel: not judged, for the cells that the model was trained on are not at hand. A "
            "cell of an unknown type gets the name of the most similar known one",
        ]
        if source["attribution"]:
            notes.append(f"attribution: {source['attribution']}. Licence: {source['licence']}")
        return notes

    def _is_novel(self, prediction: Prediction) -> None:
        return None


def file_size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(file.stat().st_size for file in files)
