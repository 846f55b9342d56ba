"""Models with the scvi-tools interface: ``setup_anndata``, ``train``, ``predict``, ``save``."""

from __future__ import annotations

from pathlib import Path

from sctool.model import _saving
from sctool.model._actinn import HierarchicalACTINN, HierarchicalACTINNSettings
from sctool.model._auto import AutoClassifier, AutoSettings
from sctool.model._base import (
    AnnotationModel,
    CellModel,
    NetworkSettings,
    OpenWorldModel,
    Prediction,
    Settings,
)
from sctool.model._celltypist import CellTypistModel, CellTypistSettings
from sctool.model._cicl import CICL, CICLSettings
from sctool.model._contrastive import ACTINN, SCDAE, ContrastiveClassifier, ContrastiveSettings
from sctool.model._gate import GroupNoveltyClassifier, GroupNoveltySettings
from sctool.model._logistic import LogisticClassifier, LogisticSettings
from sctool.model._pretrained import PretrainedModel
from sctool.model._registry import load, models, register_model
from sctool.model._scdet import SCDET, SCDETSettings
from sctool.model._scnym import SCNYM, SCNYMSettings
from sctool.model._sskm import SSKM, SSKMSettings

#: Model class of each method of :func:`sctool.tl.annotate`; new methods are registered here.
METHODS: dict[str, type[AnnotationModel]] = {
    "auto": AutoClassifier,
    "logistic": LogisticClassifier,
    "scnym": SCNYM,
    "scdet": SCDET,
    "gate": GroupNoveltyClassifier,
    "sskm": SSKM,
    "contrastive": ContrastiveClassifier,
    "actinn": ACTINN,
    "scdae": SCDAE,
}
#: Model class of each method of :func:`sctool.tl.cluster` that trains a model.
CLUSTER_METHODS: dict[str, type[CICL]] = {"cicl": CICL}
#: Model classes that are made of what others trained.
PRETRAINED: dict[str, type[PretrainedModel]] = {
    "actinn_hierarchy": HierarchicalACTINN,
    "celltypist": CellTypistModel,
}

__all__ = [
    "ACTINN",
    "CICL",
    "CLUSTER_METHODS",
    "METHODS",
    "PRETRAINED",
    "SCDAE",
    "SCDET",
    "SCNYM",
    "SSKM",
    "AnnotationModel",
    "AutoClassifier",
    "AutoSettings",
    "CICLSettings",
    "CellModel",
    "CellTypistModel",
    "CellTypistSettings",
    "ContrastiveClassifier",
    "ContrastiveSettings",
    "GroupNoveltyClassifier",
    "GroupNoveltySettings",
    "HierarchicalACTINN",
    "HierarchicalACTINNSettings",
    "LogisticClassifier",
    "LogisticSettings",
    "NetworkSettings",
    "OpenWorldModel",
    "Prediction",
    "PretrainedModel",
    "SCDETSettings",
    "SCNYMSettings",
    "SSKMSettings",
    "Settings",
    "load",
    "models",
    "register_model",
]


def load_saved(dir_path: Path) -> CellModel:
    """The model in a directory written by ``save``; raises as :func:`load`."""
    name = _saving.read(dir_path)[0]["model"]
    models: dict[str, type[CellModel]] = {**METHODS, **CLUSTER_METHODS, **PRETRAINED}
    for model in models.values():
        if model.__name__ == name:
            return model.load(dir_path)
    known = sorted(m.__name__ for m in models.values())
    raise ValueError(
        f"{str(dir_path)!r} contains a {name!r} model, which is unknown to this version of sctool; "
        f"known models: {known!r}."
    )
