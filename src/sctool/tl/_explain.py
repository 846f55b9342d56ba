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
    """A module's logits alone, as Captum wants them."""

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
    """Genes that drive a model's decision for a type, or for single cells.

    Every cell is attributed for the type that the model gives it; a type's genes are the mean over
    (a sample of) its cells.

    Parameters
    ----------
    adata
        Cells to look at, such as the annotated query; read as by :func:`annotate`.
    model
        A trained sctool model.
    types
        Types to explain; default: every type that the model finds in ``adata``.
    cells
        Names of single cells to explain instead of types.
    method
        "guided": the rectified gradient of the type's logit, in which only what excites a unit is
        passed back (Springenberg et al. 2014; scNym section 3.3). "integrated_gradients": along
        the line from the reference's mean expression (Sundararajan et al. 2017).
        "expected_gradients": the same averaged over starting points drawn from ``adata``'s cells
        (Erion et al. 2021), so that a gene counts for what sets a cell apart from the others.
    layer
        Layer with the values.
    n_genes
        Genes to list by type or cell.
    n_cells
        Cells to average over by type, drawn at random where there are more.
    key_added
        Name of the slots.
    random_state
        Seed of the draws.
    copy
        Return a copy and leave ``adata`` as it is.

    Returns
    -------
    None, or with ``copy=True`` the copy. Written, with ``key`` for ``key_added``:

    ``varm[key]`` : float32, (n_vars, n_names)
        Attribution of each gene, one column a type (or cell); NaN for genes that the model does
        not see. For the two integrals in units of the logit (their sum over genes is the logit's
        change); for "guided" logit per log1p CP10k.
    ``uns[key]`` : dict
        ``names`` (types or cells, (n_names,)), ``genes`` and ``scores`` (n_names, n_genes), the
        highest first, and ``params``.

    Raises
    ------
    ImportError
        Captum is missing: it comes with ``pip install "sctool-annotate[explain]"``.
    ValueError
        An unknown method, or a type that the model finds in no cell.
    KeyError
        A cell that is not in ``adata``.
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
                raise ValueError(f"types {absent!r} are found in no cell; found {found!r}.")
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
                warnings.simplefilter("ignore")  # Captum tells of hooks that it removes again
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
