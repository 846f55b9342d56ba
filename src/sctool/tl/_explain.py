from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from torch import Tensor, nn

from sctool import DISTRIBUTION, _data, _slots
from sctool._train import seeded
from sctool.model import AnnotationModel, load

METHODS = ("guided", "integrated_gradients", "expected_gradients")
RUNNER_UP = "runner-up"
CHUNK = 64


class _Targets(nn.Module):
    """Returns what is explained: the logits of types, or their margins over a rival type.

    Parameters
    ----------
    contrasts
        Logits that make up each target: 1 for its type and -1 for the rival, if there is one,
        (n_names, n_targets).
    """

    contrasts: Tensor

    def __init__(self, module: nn.Module, contrasts: Tensor):
        super().__init__()
        self.module = module
        self.register_buffer("contrasts", contrasts)

    def forward(self, x: Tensor) -> Tensor:
        """Targets (n_cells, n_targets) of log1p CP10k (n_cells, n_genes)."""
        return self.module(x)[0] @ self.contrasts


def explain(
    adata: AnnData,
    model: AnnotationModel | str | Path,
    *,
    types: str | Sequence[str] | None = None,
    cells: str | Sequence[str] | None = None,
    groupby: str | None = None,
    versus: str | None = None,
    method: str = "expected_gradients",
    layer: str | None = None,
    n_genes: int = 50,
    n_cells: int = 200,
    key_added: str = "sctool_explain",
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Attribute a model's predictions to genes, for cell types, single cells or groups of cells.

    Each cell is explained for the type, or the novel group, that the model predicts for it; cells
    of a group, for the type of the group. Attributions are averaged over the cells. With
    ``versus``, they answer why it is this type and not another one.

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
    groupby
        Column of ``adata.obs`` with groups of cells, such as "leiden", to explain instead of types.
        The type of a group is the one with the highest mean probability over its cells.
    versus
        None explains the logit of the type. "runner-up" explains by how much it exceeds that of the
        type with the second highest mean probability over the same cells; the name of a type, or
        of a novel group, by how much it exceeds that of this one.
    method
        "guided": guided backpropagation, the gradient of the logit (or of the difference of two)
        with negative gradients set to zero at each ReLU (Springenberg et al. 2014; scNym section
        3.3).
        "integrated_gradients": integrated gradients from the reference's mean expression
        (Sundararajan et al. 2017). "expected_gradients": the same, averaged over baselines drawn
        from the cells of ``adata`` (Erion et al. 2021), which highlights genes that distinguish a
        cell from the others.
    layer
        Layer with the values.
    n_genes
        Number of genes to list per type, cell or group.
    n_cells
        Maximum number of cells to average over; larger types and groups are sampled at random.
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
        Attribution of each gene, one column per type (or cell, or group); NaN for genes that the
        model does not use. With ``versus``, negative values speak for the rival. Integrated and
        expected gradients are in units of the logit (they sum over genes to the change of what is
        explained); "guided" is in logits per unit of log1p CP10k.
    ``uns[key]`` : dict
        ``names``, the types, cells or groups, and ``types``, what each is explained as, (n_names,);
        with ``versus`` also ``rivals``, the type that each is compared with; the ``genes`` with the
        highest attributions, their ``scores`` and their ``differences``, (n_names, n_genes),
        highest score first; and ``params``. A difference is the mean log1p CP10k of the explained
        cells minus that of the baseline: of the reference for "integrated_gradients", of cells
        drawn from ``adata`` for the other methods.

    Raises
    ------
    ImportError
        Captum is not installed: ``pip install "sctool-annotate[explain]"``.
    ValueError
        An unknown method; a type that is predicted for no cell; a cell that expresses none of the
        model's genes; no types or no cells; more than one of ``types``, ``cells`` and ``groupby``;
        names of cells that are not unique; a rival that the model does not know, or that is the
        predicted type itself.
    KeyError
        A cell or a column is not in ``adata``.
    TypeError
        ``adata`` or ``model`` has the wrong type.

    Notes
    -----
    A high score says that a gene is evidence for the type, but not that the cells express it. With
    integrated and expected gradients, which compare a cell with a baseline, the gene is evidence by
    its presence if its difference is positive, and by its absence if it is negative. "guided" has
    no baseline: its score says that higher expression would raise the logit, and the difference
    whether the cells express the gene more than others do.

    With ``versus``, a gene that the rival expresses and the cells lack speaks for the type by its
    absence, and genes that both express alike cancel out. The difference is still that from the
    baseline, not from the rival's cells.
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, not {type(adata).__name__}.")
    _slots.check_key(adata, key_added)
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; known methods: {list(METHODS)!r}.")
    for name, number in (("n_genes", n_genes), ("n_cells", n_cells)):
        if not isinstance(number, int | np.integer) or isinstance(number, bool):
            raise TypeError(f"{name}={number!r}: pass a whole number.")
    if n_genes < 1 or n_cells < 1:
        raise ValueError(f"n_genes={n_genes!r}, n_cells={n_cells!r}: both must be at least 1.")
    choices = {"types": types, "cells": cells, "groupby": groupby}
    if len(given := [name for name, value in choices.items() if value is not None]) > 1:
        raise ValueError(f"{' and '.join(given)} were given: pass one of them.")
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
    prediction = model._predict(data, [])
    codes = np.where(prediction.unseen, -1, prediction.proba.argmax(axis=1))
    new = _slots.renamed(adata, model.names_)
    names = [new.get(name, name) for name in model.names_]
    if cells is not None:
        groups = _single_cells(adata, _listed(cells, "cells"), codes)
    elif groupby is not None:
        groups = _groups(adata, groupby, codes)
    else:
        by_name = np.array([*names, ""], dtype=object)[codes]
        found = {name: np.flatnonzero(by_name == name) for name in dict.fromkeys(names)}
        groups = {name: found[name] for name in _types(found, types, new)}
    mean_proba = np.stack([prediction.proba[members].mean(axis=0) for members in groups.values()])
    explained = mean_proba.argmax(axis=1)  # of a type's cells, that type
    rivals = None
    if versus is not None:
        rivals = _rivals(names, new.get(versus, versus), explained, mean_proba)
        if (same := rivals == explained).any():
            itself = [name for name, is_same in zip(groups, same, strict=True) if is_same]
            if types is not None or cells is not None or same.all():
                raise ValueError(
                    f"versus={versus!r} is what {itself[:3]!r} are predicted to be: compare them "
                    f"with another type, or with {RUNNER_UP!r}."
                )
            groups = {name: members for name, members in groups.items() if name not in itself}
            explained, rivals = explained[~same], rivals[~same]
    rng = np.random.default_rng(random_state)
    if cells is None:
        groups = {name: np.sort(rng.permutation(m)[:n_cells]) for name, m in groups.items()}
    with seeded(random_state):
        index = np.unique(np.concatenate(list(groups.values())))
        background = np.sort(rng.permutation(np.flatnonzero(codes >= 0))[:n_cells])
        device = next(model.module.parameters()).device
        contrasts, target_of_group = _contrasts(len(model.names_), explained, rivals)
        network = _Targets(model.module, contrasts).to(device).eval()
        inputs = data[index]["x"].to(device)
        baselines = data[background]["x"].to(device)
        target = torch.empty(len(index), dtype=torch.long, device=device)
        for number, members in zip(target_of_group, groups.values(), strict=True):
            target[np.searchsorted(index, members)] = int(number)
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
    params = {
        "groupby": groupby,
        "versus": versus,
        "method": method,
        "layer": layer,
        "n_cells": n_cells,
        "random_state": random_state,
    }
    known_names = np.array(names, dtype=object)
    target_adata = _slots.writable(adata, copy)
    _slots.write_explanation(
        target_adata,
        key_added,
        names=list(groups),
        types=known_names[explained],
        rivals=None if rivals is None else known_names[rivals],
        attribution=attribution,
        genes=model.features_.selected.to_numpy()[order],
        scores=np.take_along_axis(mean_by_group, order, axis=1),
        differences=np.take_along_axis(differences, order, axis=1),
        params=params,
    )
    return target_adata if copy else None


def _listed(names: str | Sequence[str], what: str) -> list[str]:
    """One or several names as a list."""
    if not isinstance(names, Iterable):
        raise TypeError(f"{what}={names!r}: pass a name, or a list of names.")
    names = [names] if isinstance(names, str) else list(names)
    if not names:
        raise ValueError(f"{what}=[]: pass at least one name, or None to explain all types.")
    return names


def _types(
    found: dict[str, np.ndarray], types: str | Sequence[str] | None, new: dict[str, str]
) -> list[str]:
    """The types to explain, given the positions of the cells of each type that the model knows.

    ``new`` are the names that the user gave to novel groups; the old ones are taken too.
    """
    predicted = [name for name, members in found.items() if len(members)]
    if not predicted:
        raise ValueError("No cell of adata expresses a gene of the model: nothing to explain.")
    wanted = predicted if types is None else _listed(types, "types")
    wanted = list(dict.fromkeys(new.get(name, name) for name in wanted))
    if absent := [name for name in wanted if name not in predicted]:
        raise ValueError(f"types {absent!r} are predicted for no cell; found {predicted!r}.")
    return wanted


def _groups(adata: AnnData, groupby: str, codes: np.ndarray) -> dict[str, np.ndarray]:
    """Positions of the cells of each group that express a gene of the model."""
    labels = _data.clean_labels(_data.obs_column(adata, groupby, "groupby", "query"))
    members = {
        str(name): np.flatnonzero((labels.codes == i) & (codes >= 0))
        for i, name in enumerate(labels.categories)
    }
    if not any(map(len, members.values())):
        raise ValueError(
            f"groupby={groupby!r}: no cell with a group expresses a gene of the model: nothing to "
            "explain."
        )
    return {name: positions for name, positions in members.items() if len(positions)}


def _rivals(
    names: list[str], versus: str, explained: np.ndarray, mean_proba: np.ndarray
) -> np.ndarray:
    """Code of the type that each explained type is compared with, (n_groups,)."""
    if len(names) < 2:
        raise ValueError(f"versus={versus!r}: the model knows no type but {names[0]!r}.")
    if versus != RUNNER_UP:
        if versus not in names:
            raise ValueError(
                f"versus={versus!r} is no type that the model knows: pass {RUNNER_UP!r} or one of "
                f"{names!r}."
            )
        return np.full(len(explained), names.index(versus))
    others = mean_proba.copy()
    others[np.arange(len(explained)), explained] = -np.inf
    return others.argmax(axis=1)


def _contrasts(
    n_names: int, explained: np.ndarray, rivals: np.ndarray | None
) -> tuple[Tensor, np.ndarray]:
    """The distinct targets, as :class:`_Targets` takes them, and which of them is each group's."""
    codes = np.stack([explained, explained if rivals is None else rivals], axis=1)
    pairs, target_of_group = np.unique(codes, axis=0, return_inverse=True)
    contrasts = torch.zeros(n_names, len(pairs))
    columns = np.arange(len(pairs))
    if rivals is not None:
        contrasts[pairs[:, 1], columns] = -1
    contrasts[pairs[:, 0], columns] = 1
    return contrasts, target_of_group.ravel()


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
