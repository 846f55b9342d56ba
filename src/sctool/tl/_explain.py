from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor, nn

from sctool import DISTRIBUTION, _slots
from sctool._train import seeded
from sctool.model import AnnotationModel

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
    model: AnnotationModel,
    *,
    types: Sequence[str] | None = None,
    cells: Sequence[str] | None = None,
    method: str = "expected_gradients",
    layer: str | None = None,
    n_genes: int = 50,
    n_cells: int = 200,
    key_added: str = "sctool_explain",
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Attribute a model's predictions to genes, for cell types or single cells.

    Each cell is explained for its predicted type. Attributions of a type are averaged over its
    cells.

    Parameters
    ----------
    adata
        Cells to explain, such as the annotated query; read as in :func:`annotate`.
    model
        A trained sctool model.
    types
        Types to explain. Default: all types predicted in ``adata``.
    cells
        Names of single cells to explain instead of types.
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
        ``names`` (types or cells, (n_names,)), ``genes`` and ``scores`` (n_names, n_genes), highest
        first, and ``params``.

    Raises
    ------
    ImportError
        Captum is not installed: ``pip install "sctool-annotate[explain]"``.
    ValueError
        An unknown method, or a type that is predicted for no cell.
    KeyError
        A cell is not in ``adata``.
    """
    _slots.check_key(adata, key_added)
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; known methods: {list(METHODS)!r}.")
    try:
        from captum.attr import GradientShap, GuidedBackprop, IntegratedGradients
    except ImportError as error:
        raise ImportError(
            f'sctool.tl.explain needs Captum: pip install "{DISTRIBUTION}[explain]".'
        ) from error

    labels = np.asarray(model.predict(adata, layer=layer))
    groups: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(random_state)
    with seeded(random_state):
        if cells is not None:
            positions = adata.obs_names.get_indexer(list(cells))
            if (positions < 0).any():
                missing = [c for c, i in zip(cells, positions, strict=True) if i < 0]
                raise KeyError(f"cells {missing[:3]!r} are not in adata.obs_names.")
            groups = {str(c): np.array([i]) for c, i in zip(cells, positions, strict=True)}
        else:
            found = [t for t in model.classes_ if (labels == t).any()]
            absent = [t for t in types or [] if t not in found]
            if absent:
                raise ValueError(f"types {absent!r} are predicted for no cell; found {found!r}.")
            for name in types or found:
                members = np.flatnonzero(labels == name)
                groups[name] = np.sort(rng.permutation(members)[:n_cells])

        index = np.unique(np.concatenate(list(groups.values())))
        background = np.sort(rng.permutation(adata.n_obs)[:n_cells])
        data, columns = model._inputs(adata, layer)
        device = next(model.module.parameters()).device
        network = _Logits(model.module).eval()
        inputs = data[index]["x"].to(device)
        target = torch.tensor([model.classes_.index(str(t)) for t in labels[index]], device=device)
        attribute: Any
        options: dict[str, Any] = {}
        if method == "guided":
            attribute = GuidedBackprop(network).attribute
        elif method == "integrated_gradients":
            attribute = IntegratedGradients(network).attribute
            mean = torch.from_numpy(model.features_.mean).to(device)
            options = {"baselines": mean[None], "n_steps": 32}
        else:
            attribute = GradientShap(network).attribute
            options = {
                "baselines": data[background]["x"].to(device),
                "n_samples": 32,
                "stdevs": 0.0,
            }
        parts = []
        for start in range(0, len(index), CHUNK):
            part = slice(start, start + CHUNK)
            x = inputs[part].clone().requires_grad_()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Captum warns about hooks that it removes again
                result = attribute(x, target=target[part], **options)
            parts.append(result.detach().cpu().numpy())
    by_cell = np.concatenate(parts)

    mean_by_group = np.stack(
        [by_cell[np.searchsorted(index, g)].mean(axis=0) for g in groups.values()]
    )
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
        params=params,
    )
    return target_adata if copy else None
