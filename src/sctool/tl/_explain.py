from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor, nn

from sctool import DISTRIBUTION, _slots
from sctool._train import seeded
from sctool.model import AnnotationModel, load

METHODS = ("guided", "integrated_gradients", "expected_gradients")
CHUNK = 64


class _Logits(nn.Module):
    """Returns only the module's logits, as Captum requires."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0]


def explain(
    adata: AnnData,
    model: AnnotationModel | str | Path,
    *,
    types: str | Sequence[str] | None = None,
    cells: str | Sequence[str] | None = None,
    method: str = "expected_gradients",
    layer: str | None = None,
    n_genes: int = 50,
    n_cells: int = 200,
    key_added: str = "sctool_explain",
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Attribute a model's predictions to genes, for cell types or single cells.

    Each cell is explained for the type, or the novel group, that the model predicts for it.
    Attributions of a type are averaged over its cells.

    Parameters
    ----------
    adata
        Cells to explain, such as the annotated query; read as in :func:`annotate`.
    model
        A trained sctool model, or the directory of a saved one.
    types
        Types to explain, one or several; novel groups by the model's names, such as "novel_1".
        Default: all types predicted in ``adata``.
    cells
        Names of single cells to explain instead of types, one or several.
    method
        "guided": guided backpropagation, the gradient of the type's logit with negative gradients
        set to zero at each ReLU (Springenberg et al. 2014; scNym section 3.3).
        "integrated_gradients": integrated gradients from the reference's mean expression
        (Sundararajan et al. 2017). "expected_gradients": the same, averaged over baselines drawn
        from the cells of ``adata`` (Erion et al. 2021), which highlights genes that distinguish a
        cell from the others.
    layer
        Layer with the values.
    n_genes
        Number of genes to list per type or cell.
    n_cells
        Maximum number of cells to average over per type; larger types are sampled at random.
    key_added
        Key under which results are stored.
    random_state
        Random seed.
    copy
        Return a copy and leave ``adata`` unchanged.

    Returns
    -------
    None, or the copy if ``copy=True``. The following is written, with ``key`` for ``key_added``:

    ``varm[key]`` : float32, (n_vars, n_names)
        Attribution of each gene, one column per type (or cell); NaN for genes that the model does
        not use. Integrated and expected gradients are in units of the logit (they sum over genes to
        the change of the logit); "guided" is in logits per unit of log1p CP10k.
    ``uns[key]`` : dict
        ``names``, the types or cells, (n_names,); the ``genes`` with the highest attributions,
        their ``scores`` and their ``differences``, (n_names, n_genes), highest score first; and
        ``params``. A difference is the mean log1p CP10k of the explained cells minus that of the
        baseline: of the reference for "integrated_gradients", of cells drawn from ``adata`` for the
        other methods.

    Raises
    ------
    ImportError
        Captum is not installed: ``pip install "sctool-annotate[explain]"``.
    ValueError
        An unknown method; a type that is predicted for no cell; a cell that expresses none of the
        model's genes; no types or no cells, or both; names of cells that are not unique.
    KeyError
        A cell is not in ``adata``.
    TypeError
        ``adata`` or ``model`` has the wrong type.

    Notes
    -----
    A high score says that a gene is evidence for the type, but not that the cells express it. With
    integrated and expected gradients, which compare a cell with a baseline, the gene is evidence by
    its presence if its difference is positive, and by its absence if it is negative. "guided" has
    no baseline: its score says that higher expression would raise the logit, and the difference
    whether the cells express the gene more than others do.
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, not {type(adata).__name__}.")
    _slots.check_key(adata, key_added)
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; known methods: {list(METHODS)!r}.")
    if n_genes < 1 or n_cells < 1:
        raise ValueError(f"n_genes={n_genes!r}, n_cells={n_cells!r}: both must be at least 1.")
    if types is not None and cells is not None:
        raise ValueError("types and cells were both given: pass one of them.")
    model = load(model) if isinstance(model, str | Path) else model  # type: ignore[assignment]
    if not isinstance(model, AnnotationModel):
        raise TypeError(
            f"model must be a model that annotates cells, or its path, not {type(model).__name__}."
        )
    try:
        from captum.attr import GradientShap, GuidedBackprop, IntegratedGradients
    except ImportError as error:
        raise ImportError(
            f'sctool.tl.explain needs Captum: pip install "{DISTRIBUTION}[explain]".'
        ) from error

    data, columns = model._inputs(adata, layer)
    prediction = model._predict([data], [])
    codes = np.where(prediction.unseen, -1, prediction.proba.argmax(axis=1))
    rng = np.random.default_rng(random_state)
    if cells is not None:
        groups = _single_cells(adata, _listed(cells, "cells"), codes)
    else:
        groups = {}
        for name in _types(model, codes, types):
            members = np.flatnonzero(codes == model.names_.index(name))
            groups[name] = np.sort(rng.permutation(members)[:n_cells])
    with seeded(random_state):
        index = np.unique(np.concatenate(list(groups.values())))
        background = np.sort(rng.permutation(np.flatnonzero(codes >= 0))[:n_cells])
        device = next(model.module.parameters()).device
        network = _Logits(model.module).eval()
        inputs = data[index]["x"].to(device)
        baselines = data[background]["x"].to(device)
        target = torch.from_numpy(codes[index]).to(device)
        attribute: Any
        options: dict[str, Any] = {}
        if method == "guided":
            attribute = GuidedBackprop(network).attribute
        elif method == "integrated_gradients":
            attribute = IntegratedGradients(network).attribute
            baselines = torch.from_numpy(model.features_.mean)[None].to(device)
            options = {"baselines": baselines, "n_steps": 32}
        else:
            attribute = GradientShap(network).attribute
            options = {"baselines": baselines, "n_samples": 32, "stdevs": 0.0}
        parts = []
        for start in range(0, len(index), CHUNK):
            part = slice(start, start + CHUNK)
            x = inputs[part].clone().requires_grad_()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Captum warns about hooks that it removes again
                result = attribute(x, target=target[part], **options)
            parts.append(result.detach().cpu().numpy())
    by_cell = np.concatenate(parts)

    def averaged(values: np.ndarray) -> np.ndarray:
        """Mean over the cells of each group, (n_names, n_genes)."""
        return np.stack([values[np.searchsorted(index, g)].mean(axis=0) for g in groups.values()])

    mean_by_group = averaged(by_cell)
    differences = averaged((inputs - baselines.mean(dim=0)).cpu().numpy())
    attribution = np.full((adata.n_vars, len(groups)), np.nan, dtype=np.float32)
    known = columns >= 0
    attribution[known] = mean_by_group[:, columns[known]].T
    order = np.argsort(-mean_by_group, axis=1, kind="stable")[:, :n_genes]
    params = {"method": method, "layer": layer, "n_cells": n_cells, "random_state": random_state}
    target_adata = _slots.writable(adata, copy)
    _slots.write_explanation(
        target_adata,
        key_added,
        names=list(groups),
        attribution=attribution,
        genes=model.features_.selected.to_numpy()[order],
        scores=np.take_along_axis(mean_by_group, order, axis=1),
        differences=np.take_along_axis(differences, order, axis=1),
        params=params,
    )
    return target_adata if copy else None


def _listed(names: str | Sequence[str], what: str) -> list[str]:
    """One or several names as a list."""
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError(f"{what}=[]: pass at least one name, or None to explain all types.")
    return names


def _types(
    model: AnnotationModel, codes: np.ndarray, types: str | Sequence[str] | None
) -> list[str]:
    """The types to explain, given the predicted code of each cell, -1 for none."""
    found = [name for code, name in enumerate(model.names_) if (codes == code).any()]
    if not found:
        raise ValueError("No cell of adata expresses a gene of the model: nothing to explain.")
    wanted = found if types is None else _listed(types, "types")
    if absent := [name for name in wanted if name not in found]:
        raise ValueError(f"types {absent!r} are predicted for no cell; found {found!r}.")
    return wanted


def _single_cells(adata: AnnData, cells: list[str], codes: np.ndarray) -> dict[str, np.ndarray]:
    """Position of each cell, (1,), by name."""
    if not adata.obs_names.is_unique:
        raise ValueError(
            "adata.obs_names are not unique, so cells cannot be chosen by name: call "
            "adata.obs_names_make_unique() first."
        )
    positions = adata.obs_names.get_indexer(cells)
    if missing := [c for c, i in zip(cells, positions, strict=True) if i < 0]:
        raise KeyError(f"cells {missing[:3]!r} are not in adata.obs_names.")
    if empty := [c for c, i in zip(cells, positions, strict=True) if codes[i] < 0]:
        raise ValueError(
            f"cells {empty[:3]!r} express none of the model's genes: nothing to explain."
        )
    return {str(c): np.array([i]) for c, i in zip(cells, positions, strict=True)}
