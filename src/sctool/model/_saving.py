"""Saved models: JSON and plain tensors, independent of the versions of Python and of packages.

A directory contains ``model.json`` and ``weights.pt``. Loading them executes no code. Replacing
``model.json`` is the one step that turns an earlier model into a new one, whatever interrupts it:
until the new weights have their name, they are found under a temporary one by their checksum.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import platform
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sctool import __version__
from sctool._data import Features
from sctool._umap import ReferenceMap

if TYPE_CHECKING:
    from sctool.model._base import CellModel

FORMAT = 2
#: Endings of files of cells, which are taken for models where one is asked for.
CELLS = (".h5ad", ".h5mu", ".h5", ".zarr", ".loom")
#: Name of weights that are being saved.
PENDING = ".weights.pt.tmp"
#: What every description of a model has.
NEEDED = {"format", "genes", "model", "preset", "selected", "settings"}
#: Classes and settings of format 1 that were renamed, and their new names.
CLASSES_1 = {"LOGISTIC": "LogisticClassifier", "GATE": "GroupNoveltyClassifier"}
SETTINGS_1 = {
    "SCDET": {"guided": "initial_names"},
    "ContrastiveClassifier": {"guided": "init_from_linear"},
}


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    packages = ("scvi-tools", "torch", "anndata", "scanpy", "scikit-learn", "numpy")
    own = {"python": platform.python_version(), "sctool": __version__}
    return own | {name: version(name) for name in packages}


def save(model: CellModel, dir_path: str | Path, overwrite: bool) -> None:
    """See :meth:`sctool.model.CellModel.save`."""
    path = Path(dir_path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{str(path)!r} exists: pass overwrite=True to replace it.")
    path.mkdir(parents=True, exist_ok=True)
    features = model.features_
    tensors = {f"module.{k}": v.cpu() for k, v in model.module.state_dict().items()}
    tensors["features.mean"] = torch.from_numpy(features.mean)
    if model.map_ is not None:
        tensors["map.latent"] = torch.from_numpy(model.map_.latent)
        tensors["map.positions"] = torch.from_numpy(model.map_.positions)
    tensors |= model._tensors()
    buffer = io.BytesIO()  # in memory, for on a full disk torch does not raise OSError
    torch.save(tensors, buffer)
    weights = buffer.getvalue()
    state = {
        "format": FORMAT,
        "model": type(model).__name__,
        "versions": versions(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "preset": model.preset_,
        "settings": asdict(model.settings_),
        "genes": list(features.genes.index),
        "gene_identifiers": {c: list(features.genes[c]) for c in features.genes},
        "selected": list(features.selected),
        "ignore_case": features.ignore_case,
        "target_sum": features.target_sum,
        "registry": model.registry,
        "audit": model.audit_,
        **model._outputs(),
    }
    text = json.dumps(state, default=_plain, ensure_ascii=False, indent=1)
    pending = path / ".model.json.tmp"
    _settle(path)  # an earlier save may have been interrupted
    try:
        (path / PENDING).write_bytes(weights)
        pending.write_bytes(text.encode())
        os.replace(pending, path / "model.json")
    finally:
        pending.unlink(missing_ok=True)
        _settle(path)


def read(dir_path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the two files of a saved model and convert them to the current format.

    Raises
    ------
    FileNotFoundError
        The directory contains no saved model.
    ValueError
        Written by a newer version, or the files contain more than JSON and plain tensors.
    """
    path = Path(dir_path)
    weights = _weights_of(path)
    for file in (path / "model.json", weights):
        if not file.is_file():
            what = f"{file.name} is missing" if path.exists() else "there is no such folder"
            if path.suffix.lower() in CELLS:
                what = "this is a file of cells: pass it as an AnnData (or with --ref)"
            raise FileNotFoundError(f"No saved sctool model in {str(path)!r}: {what}.")
    try:
        state = json.loads((path / "model.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{str(path / 'model.json')!r} is not JSON: {error}. Copy or download the model again."
        ) from error
    if not isinstance(state, dict) or not set(state) >= NEEDED or type(state["format"]) is not int:
        raise ValueError(f"{str(path / 'model.json')!r} does not describe an sctool model.")
    if state["format"] > FORMAT:
        raise ValueError(
            f"The model in {str(path)!r} has format {state['format']}, but this version of sctool "
            f"reads formats up to {FORMAT}: update sctool."
        )
    try:
        tensors = torch.load(weights, weights_only=True, map_location="cpu")
    except Exception as error:
        raise ValueError(
            f"{str(path / 'weights.pt')!r} is not a file of plain tensors and was not loaded "
            f"({type(error).__name__}). Copy or download the model again; if that does not help, "
            "do not trust its source."
        ) from error
    checksum = state.get("weights_sha256")
    if checksum and hashlib.sha256(weights.read_bytes()).hexdigest() != checksum:
        raise ValueError(
            f"model.json and weights.pt in {str(path)!r} are not of the same model, or one of them "
            "was changed: copy both files again."
        )
    return (_from_format_1(state) if state["format"] == 1 else state), tensors


def _weights_of(path: Path) -> Path:
    """The weights that belong to ``model.json``; those of an interrupted save are pending."""
    pending = path / PENDING
    try:
        checksum = json.loads((path / "model.json").read_bytes())["weights_sha256"]
        if hashlib.sha256(pending.read_bytes()).hexdigest() == checksum:
            return pending
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing is pending, or an older or damaged model
    return path / "weights.pt"


def _settle(path: Path) -> None:
    """Give pending weights their name if they belong to ``model.json``; remove them otherwise."""
    if _weights_of(path) == path / PENDING:
        os.replace(path / PENDING, path / "weights.pt")
    else:
        (path / PENDING).unlink(missing_ok=True)


def restore(model: CellModel, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Restore a model, created without cells, from the output of :func:`read`."""
    default = model.PRESETS["default"]
    known = {f.name for f in fields(default)}
    model.preset_ = state["preset"]
    saved = {k: v for k, v in state["settings"].items() if k in known}
    try:
        model.settings_ = replace(default, **saved)
    except ValueError:  # an earlier version took what is refused now; the model is trained
        model.settings_ = copy.copy(default)
        vars(model.settings_).update(saved)
    model.audit_ = state["audit"]
    model._set_outputs(state)
    model.features_ = Features(
        pd.DataFrame(state["gene_identifiers"], index=pd.Index(state["genes"], dtype=object)),
        pd.Index(state["selected"], dtype=object),
        tensors["features.mean"].numpy(),
        state["target_sum"],
        state["ignore_case"],
    )
    if "map.positions" in tensors:
        model.map_ = ReferenceMap(tensors["map.latent"].numpy(), tensors["map.positions"].numpy())
    model._set_tensors(tensors)
    model._build()
    weights = {k: v for k, v in tensors.items() if k.startswith("module.")}
    try:
        model.module.load_state_dict({k.removeprefix("module."): v for k, v in weights.items()})
    except RuntimeError as error:  # (a list of all tensors of other shapes)
        raise ValueError(
            "model.json describes another network than that of weights.pt: one of them was "
            "changed. Copy or download the model again."
        ) from error
    model.module.eval()
    model.is_trained_ = True


def _from_format_1(state: dict[str, Any]) -> dict[str, Any]:
    """Convert the state of a model from format 1 to the current format."""
    name = state["model"]
    settings = dict(state["settings"])
    # In format 1, a regression with a component was a LOGISTIC.
    if name == "LOGISTIC" and settings.get("component"):
        name = "ContrastiveClassifier"
    name = CLASSES_1.get(name, name)
    same = {"ACTINN": "ContrastiveClassifier", "SCDAE": "ContrastiveClassifier"}
    for old, new in SETTINGS_1.get(same.get(name, name), {}).items():
        if old in settings:
            settings[new] = settings.pop(old)
    state = state | {"model": name, "settings": settings}
    return {"target_sum": settings.get("target_sum", 1e4)} | state


def _plain(value: Any) -> Any:
    """Convert numpy values in scvi-tools' registry to JSON."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot save {type(value).__name__} as JSON")
