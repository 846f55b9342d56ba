from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sctool import _data, _slots, novelty
from sctool._data import _genes
from sctool._docs import docs
from sctool._expected import Expected, Fit
from sctool._label_errors import confused_pairs
from sctool._ontology import map_names
from sctool._quality import find_doublets, find_low_quality
from sctool._train import seeded
from sctool.model import METHODS, AnnotationModel, AutoClassifier, load
from sctool.model._adapt import Adapted
from sctool.model._adapt import adapt as adapt_model
from sctool.model._base import Prediction, expand
from sctool.model._saving import versions
from sctool.tl._consensus import Consensus
from sctool.tl._judge import (
    Result,
    check_risk,
    find_expected,
    find_tree,
    judge,
    parse_hierarchy,
)
from sctool.tl._several import answer, known_types, read_sources

docs.params["methods"] = "\n    ".join(
    f'- "{name}": {(cls.__doc__ or "").splitlines()[0]}' for name, cls in METHODS.items()
)


@docs.dedent
def annotate(
    adata: AnnData,
    ref: AnnData | AnnotationModel | str | Path | Sequence[AnnData | AnnotationModel | str | Path],
    *,
    labels_key: str | Sequence[str] = "cell_type",
    method: str = "auto",
    batch_key: str | None = None,
    layer: str | None = None,
    novel: str | int = "auto",
    risk: float | None = None,
    hierarchy: Mapping[str, str] | str | None = None,
    groupby: str | None = None,
    allowed: Iterable[str] | None = None,
    prior: Mapping[str, float] | None = None,
    ignore_case: bool = False,
    adapt: bool = False,
    key_added: str = "sctool",
    random_state: int = 0,
    copy: bool = False,
    return_model: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    train_kwargs: dict[str, Any] | None = None,
) -> AnnData | AnnotationModel | tuple[AnnData, AnnotationModel] | None:
    """Assign cell types to the cells of ``adata`` using a labelled reference.

    Genes are matched by name, also by earlier names and Ensembl ids, and between human and mouse by
    one-to-one orthologues; their order does not matter. Values may be counts, linear (CPM, TPM)
    or log1p. They are read from ``X`` or, if ``X`` is unusable, from ``raw`` or a counts layer, and
    log-normalised (10,000 counts per cell, over the shared genes) in a private copy. Data checks
    and repairs are recorded in ``uns[key_added]["audit"]``.

    Parameters
    ----------
    adata
        Query cells, (n_cells, n_genes). May be backed or a view. Existing labels are never read.
        Of a MuData, here as in ``ref``, the gene expression is used: the modality "rna", or the
        only one whose features are genes. Results are written into this modality.
    ref
        Labelled reference, a trained sctool model, or what :func:`sctool.model.load` takes: the
        directory of a saved model, a name in :func:`sctool.models` such as "human", a ``.pkl`` file
        of CellTypist, or a URL. A trained model is applied as it is, without training, unless
        ``adapt``. A list of several of these gives one answer, with the types of all of them: see
        Notes.
    labels_key
        Column of ``ref.obs`` with the cell types, of any dtype. Cells with a missing label are
        used as unlabelled cells. Several columns, from coarse to fine, are a hierarchy; the last
        one has the types.
    method
        One of the following, which are models in :mod:`sctool.model`:

        %(methods)s
    batch_key
        Column in ``obs`` of both query and reference with batches (such as donors or technologies),
        which "scnym" uses as domains; "auto" also judges each batch of the query on its own.
        Default: reference and query are the two domains.
    layer
        Layer of query and reference with the values ("raw" for ``.raw``). Default: as above.
    novel
        "auto": compute a novelty score for each cell and, if the method supports it, flag novel
        cells and group them; 0: treat every cell as one of the known types; a positive number: find
        that many groups of novel cells ("auto", "scdet", "gate", "sskm").
    risk
        Also name each cell as specifically as this risk of error allows, for example 0.05: by its
        type, a group of types or "unknown" (only for "auto", which holds out labelled cells). It
        holds for cells like those of the reference; under a shift it is approximate.
    hierarchy
        Groups of types for ``risk``, as ``{child: parent}``, of any depth, or "ontology": groups
        that have a name in the Cell Ontology, such as "T cell"; ids come from the column
        ``f"{labels_key}_ontology_term_id"`` of ``ref.obs``, which :func:`map_to_ontology` writes,
        else from the names of the types. Default: the columns of ``labels_key``, or a tree learnt
        from the profiles of the types. The model keeps it, also in a file, unless another is given
        when the model is used.
    groupby
        Column of ``adata.obs`` with clusters, such as "leiden", to describe and to pool names by.
    allowed
        Known types that may be in the query, such as those of its tissue; only these are named.
        Probabilities of known types are renormalised over them, those of novel groups stay as they
        are. Cells of which more than half of the probability of known types lay on other types have
        the status "unexpected", and many of them raise an alarm. Default: all types.
    prior
        Instead of ``allowed``: expected shares of the known types among the query's cells of known
        type, ``{type: share}``, scaled to a sum of 1; a type without a share is not allowed. By
        Bayes' rule probabilities are multiplied by this share over that among the labelled cells of
        training and renormalised (Saerens, Latinne & Decaestecker 2002). Shares far from those
        found without ``prior`` raise an alarm.
    ignore_case
        Ignore case when matching gene names, and compare names alone.
    adapt
        Adapt a trained model of "auto" to these cells and search them for novel types, with cells
        drawn from the model's profiles in place of its reference. The model itself is not changed;
        ``return_model`` returns the one that has adapted.
    key_added
        Key under which results are stored.
    random_state
        Random seed. Results are reproducible on the same machine.
    copy
        Return an annotated copy and leave ``adata`` unchanged.
    return_model
        Return the trained model, without its training cells, to save it, to annotate other cells
        or to pass to :func:`explain`.
    model_kwargs
        Passed to the model, such as ``preset="paper"`` or any field of its settings class.
    train_kwargs
        Passed to the model's ``train``, such as ``max_epochs`` or ``accelerator``. With a trained
        model only ``enable_progress_bar`` has a use.

    Returns
    -------
    None; the annotated copy if ``copy=True``, the model if ``return_model=True``, or the tuple
    (copy, model) if both. The following is written, with ``key`` for ``key_added``:

    ``obs[key]`` : categorical
        Most probable cell type. Categories are those that occur, in the reference's order, with its
        colours in ``uns[f"{key}_colors"]`` if it has any, followed by the novel groups "novel_1",
        "novel_2", ... by size, if the method ("auto", "scdet", "gate", "sskm") found any; rename
        them with :func:`rename_novel`. Cells that express none of the genes used are left missing,
        with scores and probabilities of 0.
    ``obs[f"{key}_score"]`` : float32
        Probability of the assigned type.
    ``obs[f"{key}_novel_score"]`` : float32
        Novelty score in [0, 1]: of "auto" the result of the search for novel types; else 1 - score,
        or the total probability of the novel groups if there are any.
    ``obs[f"{key}_novel"]`` : bool
        Whether the cell is flagged as novel, for methods that support it ("auto", "scnym", "scdet",
        "gate", "sskm").
    ``obs[f"{key}_status"]`` : categorical
        The first that applies of "low_quality" (few counts or genes for its type), "doublet" (a
        mixture of two types), "novel", "unexpected" (rather of a type that is not ``allowed``),
        "ambiguous" (score below 0.5, or with ``risk`` no single type is safe) and "assigned".
        Doublets and cells of low quality are not called novel, and
        are only looked for when a model is trained.
    ``obs[f"{key}_safe"]`` : categorical, with ``risk``
        The most specific name that holds at that risk; "unknown" for novel and unexpected cells.
    ``obs[f"{key}_ontology_term_id"]`` : categorical, of models that know these ids
        Cell Ontology id of the assigned type, "unknown" where there is none.
    ``obs[f"{key}_pooled"]`` : categorical, with ``groupby``
        Most frequent type of the cell's cluster; a type of at least 20 cells in a cluster is kept.
    ``obsm[f"X_{key}"]`` : float32, (n_cells, n_latent)
        Embedding of the model or of its component; for "logistic" without a component, the logits.
    ``obsm[f"{key}_proba"]`` : float32, (n_cells, n_classes)
        Probability of each type, with columns in the order of ``uns[key]["classes"]``.
    ``obsm[f"{key}_set"]`` : bool, (n_cells, n_classes), with ``risk``
        Types that are possible at that risk.
    ``uns[key]`` : dict
        ``classes``, the known types followed by the novel groups; ``params``, ``versions`` and
        ``audit`` (notes on data checks and training); ``novel_classes``, the names of the novel
        groups, and ``novel``, a DataFrame with one row per group: ``n_cells``; ``nearest`` known
        type and its ``distance`` (1 - correlation of mean log1p CP10k profiles); ``markers``, genes
        joined by ", ", best first. Both are empty if there are no novel groups. If their number was
        estimated, ``n_novel``: ``n`` and its interval, ``low`` to ``high``. ``alarms``, reasons why
        the result may be wrong, with numbers. ``reasons``, a DataFrame with the ``status`` and its
        ``reason`` of each cell that is not assigned. With ``groupby``, ``groups``, a DataFrame with
        one row per cluster: ``n_cells``; most frequent ``label`` and its ``share``,
        ``second_label`` and ``second_share``; ``entropy`` of the types in bits; mean
        ``novel_score``; shares of cells that are ``ambiguous``, ``unexpected``, ``novel``,
        ``doublet``, ``low_quality``; and, when a model is trained, ``nearest``, ``distance`` and
        ``markers``. With several references, ``alignment``, a DataFrame with one row per type of
        each: ``reference``; ``type``; its ``name`` in the answer, of a coarser type those that it
        holds, joined by " / "; ``part_of``, coarser types of other references; ``how`` that was
        found ("name", "ontology", "cells", or "only here"); ``n_cells`` that were compared, and
        the ``share`` of them that references with related types take for such.

    Raises
    ------
    KeyError
        A column or layer is missing.
    ValueError
        An unknown method or preset; too few shared genes; unusable values (only scaled values, NaN,
        only zeros); fewer than two cell types; a ``key_added`` that no file can store, or whose
        slots exist and were not written by sctool; a ``risk`` outside 0 to 1 or of another method
        than "auto"; a ``hierarchy`` that is none, or "ontology" for types
        that it does not group; ``allowed`` or ``prior`` that are empty, name a
        type that the model does not know, are both given, or hold shares that are negative, not
        finite or all 0; ``adapt`` with a reference, or with a model that cannot adapt; a MuData in
        which it is not clear which modality is gene expression.
    TypeError
        ``adata``, ``ref``, ``allowed`` or ``prior`` has the wrong type, or a setting is unknown.

    Notes
    -----
    With several references a model is trained on each that has cells, of which a tenth is held out.
    Types are the same, or parts of each other, by name, by the Cell Ontology, or by what the models
    call each other's cells; the answer has the finest. Probabilities are averaged with weights of
    each reference (how well it recognises held-out cells, how much of this confidence it keeps in
    the query, and how similar its expression is) and of each cell (how novel it is to the
    reference), and a temperature is fitted to the held-out cells. A cell is novel if it is so to
    every reference. Cells on which references disagree are "ambiguous". The embedding, novel groups
    and doublets are those of the reference with most types. ``return_model``, several
    ``labels_key`` and a number of ``novel`` types need a single reference.

    Time and memory grow linearly with the number of cells. Training holds a sparse copy of the
    shared genes of query and reference (8 bytes per nonzero value) and another of the model's
    genes; only minibatches are made dense. Of a reference of more than 100,000 cells, rare types
    are used as a whole and common ones in part, so that these many are held; of a query of more,
    100,000 are trained with, and then all are named. A backed one is read in chunks. With a trained
    model the query is read in chunks of
    8,192 cells and never held as a whole, so a backed file stays on disk.

    Examples
    --------
    >>> import sctool
    >>> adata, ref = sctool.datasets.blood()
    >>> sctool.tl.annotate(adata, ref, method="logistic")
    >>> adata.obs["sctool"].cat.categories[0]
    'CD4+/CD25 T Reg'
    """
    whole = None
    if _data.is_multimodal(adata):
        whole = adata.copy() if copy else adata
        adata = _data.rna_of(whole, "adata")
    ref = _data.rna_of(ref, "ref")
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, not {type(adata).__name__}.")
    _slots.check_key(adata, key_added)
    if novel != "auto" and (
        not isinstance(novel, int | np.integer) or isinstance(novel, bool) or novel < 0
    ):
        raise ValueError(f"novel={novel!r}: pass 'auto' or the number of novel cell types.")
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; known methods: {list(METHODS)!r}.")
    clusters = None
    if groupby is not None:
        clusters = _data.clean_labels(_data.obs_column(adata, groupby, "groupby", "query"))
    levels = _levels(labels_key)
    params = {
        "labels_key": labels_key if isinstance(labels_key, str) else levels,
        "batch_key": batch_key,
        "layer": layer,
        "novel": novel,
        "risk": risk,
        # arrays, for the names of types may contain "/", which names of slots may not
        "hierarchy": hierarchy
        if hierarchy is None or isinstance(hierarchy, str)
        else {"types": list(map(str, hierarchy)), "parents": list(map(str, hierarchy.values()))},
        "groupby": groupby,
        "ignore_case": ignore_case,
        "adapt": adapt,
        "random_state": random_state,
        "model_kwargs": model_kwargs,
        "train_kwargs": train_kwargs,
    }
    if isinstance(ref, AnnData):
        check_risk(risk, METHODS[method])
        if adapt:
            raise ValueError(
                "adapt=True: ref is a reference, and training on it adapts to the query anyway. "
                "Leave out adapt, or pass a trained model."
            )
        tree, notes = find_tree(ref, levels, hierarchy)
        expected = find_expected(ref, levels[-1], allowed, prior)
        result = _train_and_predict(
            adata, ref, METHODS[method], levels[-1], clusters, expected, params
        )
        if tree is not None:  # in place of the one learnt, and saved with the model
            result.model.hierarchy_ = tree(result.model.classes_)
    elif isinstance(ref, list | tuple):
        if adapt:
            raise ValueError("adapt=True needs a single trained model, not several references.")
        result, expected, tree, notes = _annotate_with_each(
            adata, ref, METHODS[method], levels, hierarchy, allowed, prior, return_model, params
        )
    else:
        trained = _trained_model(ref)
        check_risk(risk, type(trained))
        tree, notes = find_tree(trained, levels, hierarchy)
        expected = find_expected(trained, levels[-1], allowed, prior)
        batch = None if adapt else batch_key
        _refuse_training_arguments(trained, method, batch, model_kwargs, train_kwargs)
        bar = (train_kwargs or {}).get("enable_progress_bar", True)
        if adapt:
            with seeded(random_state):
                adapted = adapt_model(
                    trained, adata, layer=layer, batch_key=batch_key, novel=novel, progress=bar
                )
            result = _predict_adapted(adapted, novel, expected)
        else:
            result = _predict(adata, trained, layer, novel, expected, bar)
    model, prediction = result.model, result.prediction
    prediction.audit.extend(notes)
    verdicts = judge(result, clusters, risk, tree)

    target = _slots.writable(adata, copy and whole is None)
    registered = {cls: name for name, cls in METHODS.items()}
    _slots.write_annotation(
        target,
        key_added,
        classes=model.classes_,
        novel_classes=model.novel_classes_,
        novel_table=result.novel_table,
        n_novel=model.n_novel_ if adapt or isinstance(ref, AnnData) else None,
        colors=model.class_colors_,
        proba=prediction.proba,
        latent=prediction.latent,
        novel_score=model._novel_score(prediction),
        novel=None if novel == 0 else result.novel,
        unseen=prediction.unseen,
        verdicts=verdicts,
        params={
            "method": registered.get(type(model), type(model).__name__)
            if isinstance(model, AnnotationModel)
            else method,
            "preset": model.preset_,
            **params,
            **_expected_params(expected),
        },
        versions=versions(),
        audit=prediction.audit,
        terms=model.terms_,
        alignment=result.alignment,
    )
    return _slots.returned(target if whole is None else whole, model, copy, return_model)


def _levels(labels_key: Any) -> list[str]:
    """Columns of labels, from coarse to fine."""
    levels = [labels_key] if isinstance(labels_key, str) else labels_key
    if not isinstance(levels, list | tuple) or not all(isinstance(key, str) for key in levels):
        raise TypeError(
            f"labels_key={labels_key!r}: pass the name of a column of ref.obs, or a list of them "
            "from coarse to fine."
        )
    if not levels:
        raise ValueError(f"labels_key={labels_key!r} is empty: pass at least one column's name.")
    return list(levels)


def _trained_model(ref: Any) -> AnnotationModel:
    """A trained model, loaded if a path is given."""
    model = load(ref) if isinstance(ref, str | Path) else ref
    if not isinstance(model, AnnotationModel):
        raise TypeError(
            f"ref must be an AnnData, a sctool model or a path, not {type(ref).__name__}."
        )
    return model


def _expected_params(expected: Expected | None) -> dict[str, Any]:
    """What may be there; names of types are values and never keys, which may not hold a "/"."""
    if expected is None:
        return {}
    if expected.shares is None:
        return {"allowed": expected.names}
    return {"prior": {"types": expected.names, "shares": expected.shares}}


def _reweigh(
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


def _predict(
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
    prediction, fit = _reweigh(model, prediction, expected)
    found = np.array(model.names_, dtype=object)[prediction.proba.argmax(axis=1)]
    table = novelty.group_sizes(found[~prediction.unseen], model.novel_classes_)
    flags = None if novel == 0 else model._is_novel(prediction)
    return Result(model, prediction, flags, fit, table)


def _predict_adapted(adapted: Adapted, novel: str | int, expected: Expected | None) -> Result:
    """Apply a model to the cells that it has adapted to."""
    model, kept = adapted.model, adapted.kept
    prediction = model._predict(adapted.cells, adapted.audit)
    prediction, fit = _reweigh(model, prediction, expected)
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


def _train_and_predict(
    adata: AnnData,
    ref: AnnData,
    cls: type[AnnotationModel],
    labels_key: str,
    clusters: pd.Categorical | None,
    expected: Expected | None,
    params: dict[str, Any],
) -> Result:
    """Train a model, which is returned without its cells, and apply it to the query."""
    settings = dict(params["model_kwargs"] or {})
    preset = settings.get("preset", "default")
    settings = cls._settings_for_novel(params["novel"], preset) | settings
    names = ("batch_key", "layer", "ignore_case")
    settings_of_data = {name: params[name] for name in names}
    data = _data.join(adata, ref, labels_key=labels_key, in_part=True, **settings_of_data)
    part = np.ones(adata.n_obs, dtype=bool) if data.of_query is None else data.of_query
    kept = data.drop_empty(part.sum())
    n_cells = data.x.shape[0]
    query = np.arange(n_cells - kept.sum(), n_cells)
    with seeded(params["random_state"]):
        model = cls(data, **settings)  # type: ignore[arg-type]
        model.train(**(params["train_kwargs"] or {}))
        prediction = model.predict_cells(indices=query)
    linear, n_known = data.x[query], len(model.classes_)
    doublets = low_quality = None
    if data.of_query is None:
        known = _among_known(prediction, n_known)  # whatever is expected: any types can mix
        batch = None if params["batch_key"] is None else data.domain[query]
        doublets = find_doublets(linear, known, data.is_counts, batch, params["random_state"])
        low_quality = find_low_quality(linear, data.is_counts, known.argmax(axis=1), batch)
        prediction.audit.extend(doublets.audit + low_quality.audit)
    prediction, fit = _reweigh(model, prediction, expected)
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
    return result if data.of_query is None else _name_all(adata, model, result, expected, params)


def _name_all(
    adata: AnnData,
    model: AnnotationModel,
    result: Result,
    expected: Expected | None,
    params: dict[str, Any],
) -> Result:
    """Name all cells of a query that was too large to train with as a whole.

    What needs all cells at once is not looked for: doublets, cells of low quality.
    """
    audit = result.prediction.audit
    bar = (params["train_kwargs"] or {}).get("enable_progress_bar", True)
    prediction = model.predict_cells(adata, params["layer"], enable_progress_bar=bar)
    prediction, fit = _reweigh(model, prediction, expected)
    audit.append("status: doublets and cells of low quality were not looked for")
    found = np.array(model.names_, dtype=object)[prediction.proba.argmax(axis=1)]
    n_cells = novelty.group_sizes(found[~prediction.unseen], model.novel_classes_)["n_cells"]
    return replace(
        result,
        prediction=replace(prediction, audit=audit),
        novel=model._is_novel(prediction),
        fit=fit,
        novel_table=result.novel_table.assign(n_cells=n_cells),
        by_group=None,
    )


def _annotate_with_each(
    adata: AnnData,
    refs: Sequence[Any],
    cls: type[AnnotationModel],
    levels: list[str],
    hierarchy: Mapping[str, str] | str | None,
    allowed: Iterable[str] | None,
    prior: Mapping[str, float] | None,
    return_model: bool,
    params: dict[str, Any],
) -> tuple[Result, Expected | None, Any, list[str]]:
    """Annotate the query with each of several references, and pool the answers."""
    novel, risk = params["novel"], params["risk"]
    if return_model:
        raise ValueError(
            "return_model=True: several references have no single model. Train one model of each "
            "with return_model=True, and pass the list of models as ref."
        )
    if len(levels) > 1:
        raise ValueError(
            f"labels_key={levels!r}: with several references pass one column, and groups of types "
            "as hierarchy."
        )
    if novel not in ("auto", 0):
        raise ValueError(f"novel={novel!r}: with several references pass 'auto' or 0.")
    if any(isinstance(ref, list | tuple) for ref in refs):
        raise TypeError("ref is a list within a list: pass one list of references.")
    sources = read_sources(refs, levels[0], _trained_model, params["random_state"])
    trained = [s.training for s in sources if isinstance(s.training, AnnotationModel)]
    if risk is not None and len(trained) == len(sources):
        raise ValueError(
            f"risk={risk!r}: trained models hold no labelled cells to measure a risk on; pass at "
            "least one reference with cells."
        )
    check_risk(risk, AutoClassifier)  # cells are held out of any method's references
    known = known_types(sources)
    Expected.read(allowed, prior, known)
    tree, notes = None, list[str]()
    if hierarchy is not None:
        tree, notes = parse_hierarchy(hierarchy, known, map_names(known))
    if len(trained) == len(sources):
        arguments = (params[name] for name in ("batch_key", "model_kwargs", "train_kwargs"))
        _refuse_training_arguments(trained[0], "auto", *arguments)
    bar = (params["train_kwargs"] or {}).get("enable_progress_bar", True)
    for source in sources:
        ref, layer = source.training, params["layer"]
        if isinstance(ref, AnnData):
            source.result = _train_and_predict(adata, ref, cls, levels[0], None, None, params)
        else:
            source.result = _predict(adata, ref, layer, novel, None, bar)
    result = answer(adata, sources, params["layer"])
    consensus = result.model
    consensus.preset_ = (params["model_kwargs"] or {}).get("preset", "default")
    expected = Expected.read(allowed, prior, consensus.classes_)
    result.prediction, result.fit = _reweigh(consensus, result.prediction, expected)
    return result, expected, tree, notes


def _among_known(prediction: Prediction, n_known: int) -> np.ndarray:
    """Probabilities of the known types given that the type is known, (n_cells, n_known)."""
    known = prediction.proba[:, :n_known]
    return known / np.maximum(known.sum(axis=1, keepdims=True), 1e-12)


def _refuse_training_arguments(
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
