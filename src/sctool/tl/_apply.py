"""Train a model, or take a trained one, and apply it to the query."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sctool import _data, novelty
from sctool._checks import check_dict
from sctool._data import _genes
from sctool._expected import Expected, Fit
from sctool._label_errors import confused_pairs
from sctool._quality import find_doublets, find_low_quality
from sctool._train import seeded
from sctool.model import METHODS, AnnotationModel, load
from sctool.model._adapt import Adapted
from sctool.model._base import Prediction, expand
from sctool.tl._consensus import Consensus
from sctool.tl._judge import Result, given_terms


def trained_model(ref: Any) -> AnnotationModel:
    """A trained model, loaded if a path is given."""
    model = load(ref) if isinstance(ref, str | Path) else ref
    if not isinstance(model, AnnotationModel):
        raise TypeError(
            f"ref must be an AnnData, a sctool model or a path, or a list of these, not "
            f"{type(ref).__name__}."
        )
    return model


def refuse_training_arguments(
    model: AnnotationModel,
    method: str,
    batch_key: str | None,
    model_kwargs: dict[str, Any] | None,
    train_kwargs: dict[str, Any] | None,
) -> None:
    if method != "auto" and type(model) is not METHODS[method]:
        raise ValueError(f"method={method!r}, but ref is a trained {type(model).__name__}.")
    training = {k: v for k, v in (train_kwargs or {}).items() if k != "enable_progress_bar"}
    given = {"batch_key": batch_key, "model_kwargs": model_kwargs, "train_kwargs": training}
    used = [name for name, value in given.items() if value]
    if used:
        raise ValueError(f"ref is a trained model, so nothing is trained: {used!r} cannot be used.")


def check_training_arguments(
    cls: type[AnnotationModel],
    novel: str | int,
    model_kwargs: dict[str, Any] | None,
    train_kwargs: dict[str, Any] | None,
) -> None:
    """Refuse settings that no model could use before any cell is read."""
    given = _settings(cls, novel, model_kwargs)
    others = inspect.signature(cls.__init__).parameters  # as "preset", "pretrained"
    changes = {name: value for name, value in given.items() if name not in others}
    settings = cls._resolve(given.get("preset", "default"), changes)
    cls._for_training(settings, **check_dict("train_kwargs", train_kwargs))


def _settings(
    cls: type[AnnotationModel], novel: str | int, model_kwargs: dict[str, Any] | None
) -> dict[str, Any]:
    """What a model is made with."""
    settings = check_dict("model_kwargs", model_kwargs)
    preset = settings.get("preset", "default")
    of_novel = cls._settings_for_novel(novel, preset)
    n = settings.get("n_novel", novel)
    if novel != "auto" and n != novel:
        raise ValueError(f"novel={novel!r}, but model_kwargs has n_novel={n!r}: pass one of them.")
    return of_novel | settings


def predict(
    adata: AnnData,
    model: AnnotationModel,
    layer: str | None,
    novel: str | int,
    expected: Expected | None,
    bar: bool,
) -> Result:
    """Apply a trained model, with a progress bar or without."""
    prediction = model.predict_cells(adata, layer, enable_progress_bar=bar)
    prediction.audit.extend(model._note_reuse(novel))
    if novel not in ("auto", 0) and novel != (n := len(model.novel_classes_)):
        prediction.audit.append(
            f"novel: {novel} groups were asked for, but nothing was trained: the model has {n}"
        )
    prediction, fit = reweigh(model, prediction, expected)
    found = np.array(model.names_, dtype=object)[prediction.proba.argmax(axis=1)]
    table = novelty.group_sizes(found[~prediction.unseen], model.novel_classes_)
    flags = None if novel == 0 else model._is_novel(prediction)
    return Result(model, prediction, flags, fit, table)


def predict_adapted(adapted: Adapted, novel: str | int, expected: Expected | None) -> Result:
    """Apply a model to the cells that it has adapted to."""
    model, kept = adapted.model, adapted.kept
    prediction = model._predict(adapted.cells, adapted.audit)
    prediction, fit = reweigh(model, prediction, expected)
    found = np.array(model.names_, dtype=object)[prediction.proba.argmax(axis=1)]
    # of the variable genes, which are all that is known of the reference
    genes = model.features_.selected[model.variable_]
    query, drawn = adapted.cells.x[:, model.variable_], adapted.drawn.copy()
    for x in (query, drawn):
        x.data = np.expm1(x.data)
    types = np.array(model.classes_, dtype=object)[adapted.labels]
    table = novelty.describe(query, genes, found, model.novel_classes_, drawn, types)
    flags = None if novel == 0 else model._is_novel(prediction)
    return Result(
        model,
        prediction.expand(kept),
        None if flags is None else expand(flags, kept),
        None if fit is None else fit.expand(kept),
        table,
        by_group=expand(adapted.by_group, kept, -1),
    )


def train_and_predict(
    adata: AnnData,
    ref: AnnData,
    cls: type[AnnotationModel],
    labels_key: str,
    clusters: pd.Categorical | None,
    expected: Expected | None,
    params: dict[str, Any],
    held_out: np.ndarray | None = None,
) -> Result:
    """Train a model, which is returned without its cells, and apply it to the query.

    ``held_out``: mask of cells of the reference that it is not trained on.
    """
    settings = _settings(cls, params["novel"], params["model_kwargs"])
    names = ("batch_key", "layer", "ignore_case")
    data = _data.join(
        adata,
        ref,
        labels_key=labels_key,
        in_part=True,
        held_out=held_out,
        **{name: params[name] for name in names},
    )
    part = np.ones(adata.n_obs, dtype=bool) if data.of_query is None else data.of_query
    kept = data.drop_empty(part.sum())
    n_cells = data.x.shape[0]
    query = np.arange(n_cells - kept.sum(), n_cells)
    with seeded(params["random_state"]):
        model = cls(data, **settings)  # type: ignore[arg-type]
        model.train(**(params["train_kwargs"] or {}))
        terms = given_terms(ref, labels_key)
        model.terms_ = {name: terms[name] for name in model.classes_ if name in terms}
        prediction = model.predict_cells(indices=query)
    linear, n_known = data.x[query], len(model.classes_)
    doublets = low_quality = None
    if data.of_query is None:
        known = _among_known(prediction, n_known)  # whatever is expected: any types can mix
        batch = None if params["batch_key"] is None else data.domain[query]
        doublets = find_doublets(linear, known, data.is_counts, batch, params["random_state"])
        low_quality = find_low_quality(linear, data.is_counts, known.argmax(axis=1), batch)
        prediction.audit.extend(doublets.audit + low_quality.audit)
    prediction, fit = reweigh(model, prediction, expected)
    novel = model._is_novel(prediction)
    if novel is not None and doublets is not None and low_quality is not None:
        neither = doublets.found | low_quality.found
        novel &= ~neither
        known = _among_known(prediction, n_known)[neither]
        prediction.proba[neither] = np.pad(known, ((0, 0), (0, len(model.novel_classes_))))

    labelled = np.flatnonzero(data.labels.codes >= 0)
    described = (linear, data.genes.index)
    reference = (data.x[labelled], np.asarray(data.labels[labelled]))
    found = np.array(model.names_, dtype=object)[prediction.proba.argmax(axis=1)]
    table = novelty.describe(*described, found, model.novel_classes_, *reference)
    group_table = None
    if clusters is not None:
        of_cell = np.asarray(clusters[part][kept].astype(object))
        ids = [str(name) for name in clusters.categories]
        group_table = novelty.describe(*described, of_cell, ids, *reference)
    by_group = model.names_by_group_
    codes, confused = data.labels.codes[labelled].astype(np.int64), None
    if len(data.genes) < _genes.FEW_SHARED:
        confused = confused_pairs(reference[0], codes, model.classes_, params["random_state"])
    model._release()
    result = Result(
        model,
        prediction.expand(kept),
        None if novel is None else expand(novel, kept),
        None if fit is None else fit.expand(kept),
        table,
        group_table,
        None if doublets is None else doublets.expand(kept),
        None if low_quality is None else low_quality.expand(kept),
        data.reference_codes,
        None if by_group is None else expand(by_group[-len(query) :], kept, -1),
        len(data.genes),
        confused,
        data.lost,
    )
    if data.of_query is None:
        return result
    return _name_all(adata, model, result, data.of_query, expected, params)


def _name_all(
    adata: AnnData,
    model: AnnotationModel,
    result: Result,
    of_query: np.ndarray,
    expected: Expected | None,
    params: dict[str, Any],
) -> Result:
    """Name all cells of a query that was too large to train with as a whole.

    What needs all cells at once is not looked for: doublets, cells of low quality.

    Parameters
    ----------
    result
        Of the cells that were read for training, ``of_query``, a mask.
    """
    audit = result.prediction.audit
    bar = (params["train_kwargs"] or {}).get("enable_progress_bar", True)
    layer = _data.layer_of(adata, params["layer"])  # the reference alone may have it
    prediction = model.predict_cells(adata, layer, enable_progress_bar=bar)
    prediction, fit = reweigh(model, prediction, expected)
    if n := int(prediction.unseen.sum()):
        audit.append(f"query: {n} cells express none of the genes used and get no label")
    audit.append("status: doublets and cells of low quality were not looked for")
    if result.group_table is not None:
        audit.append("groups: nearest types, distances and markers are of the cells that were read")
    found = np.array(model.names_, dtype=object)[prediction.proba.argmax(axis=1)]
    n_cells = novelty.group_sizes(found[~prediction.unseen], model.novel_classes_)["n_cells"]
    return replace(
        result,
        prediction=replace(prediction, audit=audit),
        novel=model._is_novel(prediction),
        fit=fit,
        novel_table=result.novel_table.assign(n_cells=n_cells),
        by_group=None if result.by_group is None else expand(result.by_group, of_query, -1),
    )


def reweigh(
    model: AnnotationModel | Consensus, prediction: Prediction, expected: Expected | None
) -> tuple[Prediction, Fit | None]:
    """The prediction for a query in which only some types, or some shares of them, are expected.

    The only place that changes probabilities: all that is said about cells follows from the result.
    """
    if expected is None:
        return prediction, None
    classes, usual = model.classes_, model.class_shares_
    proba, fit = expected.apply(
        prediction.proba, classes, None if usual is None else np.array(usual)
    )
    n = np.count_nonzero(fit.weights)
    prediction.audit.append(f"allowed: {n} of {len(classes)} known types may be named")
    if expected.shares is not None and usual is None:
        prediction.audit.append(
            "prior: the model does not say how frequent types were in its training; equal shares "
            "are assumed"
        )
    return replace(prediction, proba=proba), fit


def _among_known(prediction: Prediction, n_known: int) -> np.ndarray:
    """Probabilities of the known types given that the type is known, (n_cells, n_known)."""
    known = prediction.proba[:, :n_known]
    return known / np.maximum(known.sum(axis=1, keepdims=True), 1e-12)
