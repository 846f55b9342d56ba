"""The models, in scvi-tools' way: ``setup_anndata``, ``train``, ``predict``, ``save``, ``load``."""

from __future__ import annotations

from pathlib import Path

from sctool.model import _saving
from sctool.model._base import (
    AnnotationModel,
    CellModel,
    NetworkSettings,
    OpenWorldModel,
    Prediction,
    Settings,
)
from sctool.model._cicl import CICL, CICLSettings
from sctool.model._contrastive import ACTINN, SCDAE, ContrastiveClassifier, ContrastiveSettings
from sctool.model._gate import GroupNoveltyClassifier, GroupNoveltySettings
from sctool.model._logistic import LogisticClassifier, LogisticSettings
from sctool.model._scdet import SCDET, SCDETSettings
from sctool.model._scnym import SCNYM, SCNYMSettings
from sctool.model._sskm import SSKM, SSKMSettings

#: Name of each method of :func:`sctool.tl.annotate` to its model. A new one is a file and a line.
METHODS: dict[str, type[AnnotationModel]] = {
    "logistic": LogisticClassifier,
    "scnym": SCNYM,
    "scdet": SCDET,
    "gate": GroupNoveltyClassifier,
    "sskm": SSKM,
    "contrastive": ContrastiveClassifier,
    "actinn": ACTINN,
    "scdae": SCDAE,
}
#: Name of each method of :func:`sctool.tl.cluster` that is a model of ours to that model.
CLUSTER_METHODS: dict[str, type[CICL]] = {"cicl": CICL}
#: What ``method="auto"`` stands for.
AUTO = "scnym"

__all__ = [
    "ACTINN",
    "AUTO",
    "CICL",
    "CLUSTER_METHODS",
    "METHODS",
    "SCDAE",
    "SCDET",
    "SCNYM",
    "SSKM",
    "AnnotationModel",
    "CICLSettings",
    "CellModel",
    "ContrastiveClassifier",
    "ContrastiveSettings",
    "GroupNoveltyClassifier",
    "GroupNoveltySettings",
    "LogisticClassifier",
    "LogisticSettings",
    "NetworkSettings",
    "OpenWorldModel",
    "Prediction",
    "SCDETSettings",
    "SCNYMSettings",
    "SSKMSettings",
    "Settings",
    "load",
]


def load(dir_path: str | Path) -> CellModel:
    """Read a saved model of whichever class.

    Parameters
    ----------
    dir_path
        What a model's ``save`` wrote.

    Returns
    -------
    The model, ready to annotate or to cluster.

    Raises
    ------
    FileNotFoundError
        No model there.
    ValueError
        An unknown class, or files that hold more than JSON and plain tensors.
    """
    name = _saving.read(dir_path)[0]["model"]
    models: dict[str, type[CellModel]] = {**METHODS, **CLUSTER_METHODS}
    for model in models.values():
        if model.__name__ == name:
            return model.load(dir_path)
    known = sorted(m.__name__ for m in models.values())
    raise ValueError(f"{str(dir_path)!r} holds a {name!r}; this sctool knows {known!r}.")
