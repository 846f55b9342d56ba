"""A trained :class:`AutoClassifier` adapts to a query, without the cells of its reference.

The steps are those of training on a reference and a query, but cells drawn from the model's
profiles stand for the reference, the networks continue from those of the model, and its regression
on all genes stays as it is. ``docs/methods/auto.md`` has the details.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from scipy.special import expit, logit, softmax

from sctool import _data, novelty
from sctool._batches import Cells, stratified_holdout
from sctool._regression import regress, set_linear
from sctool._sketch import sketch_regions
from sctool._train import TrainOptions, numpy_generator
from sctool.model._auto import FEW_CELLS, MARGIN, AutoClassifier
from sctool.model._base import AnnotationModel

#: A type of fewer labelled cells is rare.
RARE = 20


@dataclass(frozen=True)
class Adapted:
    """A model that has adapted to a query, and what else the search has said about it.

    Attributes
    ----------
    model
        The model, a copy, without cells.
    cells, kept
        The query's cells that express any of the model's genes, and their mask, (n_cells,).
    drawn, labels
        Cells drawn from the model's profiles, log1p CP10k of its variable genes, CSR
        (n_drawn, n_variable), and their type codes.
    by_group
        Codes of the types that groups of cells have, (n_kept,); -1 of cells that were not searched.
    audit
        Notes on what was read and found.
    """

    model: AutoClassifier
    cells: Cells
    kept: np.ndarray
    drawn: sp.csr_matrix
    labels: np.ndarray
    by_group: np.ndarray
    audit: list[str]


def adapt(
    trained: AnnotationModel,
    adata: AnnData,
    *,
    layer: str | None = None,
    batch_key: str | None = None,
    novel: str | int = "auto",
    progress: bool = True,
) -> Adapted:
    """Adapt a copy of a trained model to a query.

    Parameters
    ----------
    trained
        The model, which is not changed.
    adata, layer, batch_key, novel
        See :func:`sctool.tl.annotate`.
    progress
        Show progress bars.

    Raises
    ------
    ValueError
        The model is no :class:`AutoClassifier`, or has no profiles because an earlier version has
        saved it; or no cell expresses any of its genes.
    """
    if not isinstance(trained, AutoClassifier):
        raise ValueError(
            f"adapt=True: a {type(trained).__name__} cannot adapt without its reference. Pass the "
            "reference, or a model of method='auto'."
        )
    if trained.profiles_ is None:
        raise ValueError(
            "adapt=True: the model has no profiles of its types, as earlier versions of sctool "
            "have saved it. Leave out adapt, or train the model again."
        )
    everyone, kept, audit = _read(trained, adata, layer)
    s, variable, rng = trained.settings_, trained.variable_, numpy_generator()
    some = sketch_regions(everyone.x[:, variable])
    cells = Cells(everyone.x[some], {}, everyone.fill)
    n, batches = len(cells), None
    if n < len(everyone):
        audit.append(
            f"query: {n} of {len(everyone)} cells were grouped, searched and learnt from; the "
            "models that these have trained name the others"
        )
    if batch_key is not None:
        column = _data.obs_column(adata, batch_key, "batch_key", "query")
        batches = np.unique(_data.batch_names(column)[kept][some], return_inverse=True)[1]

    n_known = len(trained.classes_)
    profiles = trained.profiles_
    drawn, labels = profiles.draw(rng)
    if cells.fill is not None:  # genes that the query lacks separate nothing but the two sides
        drawn = sp.csr_matrix(drawn.multiply(cells.fill[variable] == 0))
        drawn.eliminate_zeros()
    x = cells.x[:, variable]
    first, _ = regress(drawn, labels, s.C, s.max_iter)
    proba = (_of_linear(trained, cells) + first.predict_proba(x)) / 2
    n_novel = None if novel == "auto" else int(novel)
    saved = trained._predict(cells, [])
    found = novelty.search(
        drawn, labels, x, proba, n_novel, rng, batches, progress, trained._programmes()
    )
    n_cells = np.bincount(profiles.types, profiles.n_cells, minlength=n_known)
    found = _with_rare_types(found, saved.proba[:, :n_known], n_cells)
    names = np.concatenate([labels, found.names])
    both = sp.vstack([drawn, x], format="csr")
    adapted, notes = regress(both, names, s.C, s.max_iter)
    audit.append(
        "model: a previously trained AutoClassifier, which has adapted to these cells without "
        "those of its reference"
    )
    audit += found.audit + notes

    model = copy.copy(trained)
    model._adata = model._adata_manager = model._cells = model.map_ = None
    model.settings_ = replace(s, n_novel=n_novel)
    model.audit_ = [*trained.audit_, *audit]
    model.n_novel_, model.searched_ = found.interval, found.proba is not None
    model.sensitivity_ = {model.classes_[t]: share for t, share in found.sensitivity.items()}
    model._name_novel(max(int(names.max()) + 1 - n_known, 0))
    of_query = np.ones(n, dtype=np.int64) if batches is None else 1 + batches
    domain = np.concatenate([np.zeros_like(labels), of_query])
    model.n_domains_ = int(domain.max()) + 1
    model._build()
    module = model.module
    module.load_state_dict(_what_stays(trained), strict=False)
    set_linear(module.adapted, adapted)
    score = np.zeros(len(names))
    if found.proba is not None:
        score[len(labels) :] = _with_saved(found.proba, trained._novel_score(saved))
    model._set_novelty(both, score)
    known = np.flatnonzero(found.names < n_known)
    arrays = {"label": np.concatenate([labels, np.full(n, -1)]), "domain": domain}
    fill = None if cells.fill is None else cells.fill[variable]
    model._train_networks(
        Cells(both, arrays, fill),
        stratified_holdout(labels, s.validation),
        len(labels) + known,
        TrainOptions(None, progress, {"accelerator": "auto", "devices": "auto"}),
    )
    model.module, model.is_trained_, model.trainer = module.cpu(), True, None
    few = profiles.n_cells.sum() < FEW_CELLS
    model._weigh(cells, known if len(known) else np.arange(n), few, found.mixed)
    by_group = np.full(len(everyone), -1)
    by_group[some] = found.names
    return Adapted(model, everyone, kept, drawn, labels, by_group, audit)


def _read(
    trained: AutoClassifier, adata: AnnData, layer: str | None
) -> tuple[Cells, np.ndarray, list[str]]:
    """The query's cells that express any of the model's genes, their mask, and audit notes."""
    chunks, audit = trained._read(adata, layer)
    parts = list(chunks)
    x = sp.vstack([part.x for part in parts], format="csr")
    kept = np.asarray(x.sum(axis=1)).ravel() > 0
    if not kept.any():
        raise ValueError(f"None of the {len(kept)} cells express any of the model's genes.")
    if not kept.all():
        n = int((~kept).sum())
        audit.append(f"cells: {n} express none of the model's genes and were not annotated")
    return Cells(x[kept], {}, parts[0].fill), kept, audit


def _of_linear(trained: AutoClassifier, cells: Cells) -> np.ndarray:
    """Probabilities by the regression on all genes, (n_cells, n_types)."""
    return softmax(trained._for_voters(cells).arrays["linear"], axis=1)


def _with_rare_types(
    found: novelty.QueryNovelty, saved: np.ndarray, n_cells: np.ndarray
) -> novelty.QueryNovelty:
    """What the search has found, without novel cells that the saved model takes for a rare type.

    The profile of a few cells is too inexact to tell the type's other cells from those of a new
    type. The saved model was trained on the cells themselves.

    Parameters
    ----------
    saved
        Probabilities of the known types by the saved model, (n_cells, n_types).
    n_cells
        Number of labelled cells of each type, (n_types,).
    """
    if found.proba is None:
        return found
    code = saved.argmax(axis=1)
    kept = (found.names >= saved.shape[1]) & (n_cells[code] < RARE) & (saved.max(axis=1) > 0.5)
    if not kept.any():
        return found
    names = np.where(kept, code, found.names)
    novel = names >= saved.shape[1]  # numbers stay without gaps
    left, names[novel] = np.unique(names[novel], return_inverse=True)
    names[novel] += saved.shape[1]
    interval = found.interval
    if interval is not None:
        interval = interval | {"n": len(left), "low": min(interval["low"], len(left))}
    note = (
        f"novel: {int(kept.sum())} cells keep the name that the saved model gives them, of types "
        f"with fewer than {RARE} labelled cells"
    )
    return replace(
        found,
        names=names,
        interval=interval,
        proba=np.where(kept, np.minimum(found.proba, 1 - found.proba), found.proba),
        audit=[*found.audit, note],
    )


def _with_saved(proba: np.ndarray, saved: np.ndarray) -> np.ndarray:
    """Probabilities of novelty by the search, (n_cells,), averaged as logits with the saved score.

    The search has only drawn cells to compare with. Where it finds little, the saved model, which
    has seen real ones, often ranks cells better.
    """
    both = np.clip(np.stack([proba, saved]), MARGIN, 1 - MARGIN)
    return expit(logit(both).mean(axis=0))


def _what_stays(trained: AutoClassifier) -> dict[str, torch.Tensor]:
    """What an adapted model starts with: all but the names, the novelty and the adversaries."""
    state = trained.module.state_dict()
    new = ("adapted.", "novelty.", *(f"networks.{n}.adversary." for n in trained.module.networks))
    return {name: value for name, value in state.items() if not name.startswith(new)}
