from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sctool import _data, _slots, novelty
from sctool._docs import docs
from sctool._quality import Doublets, LowQuality, find_doublets, find_low_quality
from sctool._sets import UNKNOWN, Hierarchy, label_shift, prediction_sets, safe_names
from sctool._train import seeded
from sctool._verdicts import (
    STATUSES,
    alarm_agreement,
    alarm_genes,
    alarm_programmes,
    alarm_sensitivity,
    alarm_shares,
    alarm_shift,
    cell_status,
    describe_groups,
    pool_names,
)
from sctool.model import METHODS, AnnotationModel, AutoClassifier, Prediction, load
from sctool.model._base import expand
from sctool.model._saving import versions

logger = logging.getLogger("sctool")

docs.params["methods"] = "\n    ".join(
    f'- "{name}": {(cls.__doc__ or "").splitlines()[0]}' for name, cls in METHODS.items()
)


@docs.dedent
def annotate(
    adata: AnnData,
    ref: AnnData | AnnotationModel | str | Path,
    *,
    labels_key: str | Sequence[str] = "cell_type",
    method: str = "auto",
    batch_key: str | None = None,
    layer: str | None = None,
    novel: str | int = "auto",
    risk: float | None = None,
    hierarchy: Mapping[str, str] | None = None,
    groupby: str | None = None,
    ignore_case: bool = False,
    key_added: str = "sctool",
    random_state: int = 0,
    copy: bool = False,
    return_model: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    train_kwargs: dict[str, Any] | None = None,
) -> AnnData | AnnotationModel | tuple[AnnData, AnnotationModel] | None:
    """Assign cell types to the cells of ``adata`` using a labelled reference.

    Genes are matched by name; their order does not matter. Values may be counts, linear (CPM, TPM)
    or log1p. They are read from ``X`` or, if ``X`` is unusable, from ``raw`` or a counts layer, and
    log-normalised (10,000 counts per cell, over the shared genes) in a private copy. Data checks
    and repairs are recorded in ``uns[key_added]["audit"]``.

    Parameters
    ----------
    adata
        Query cells, (n_cells, n_genes). May be backed or a view. Existing labels are never read.
    ref
        Labelled reference, a trained sctool model, or the directory of a saved model. A trained
        model is applied as it is, without training.
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
        Groups of types for ``risk``, as ``{child: parent}``, of any depth. Default: the columns of
        ``labels_key``, or a tree learnt from the profiles of the types.
    groupby
        Column of ``adata.obs`` with clusters, such as "leiden", to describe and to pool names by.
    ignore_case
        Ignore case when matching gene names, as between mouse (Cd79a) and human (CD79A).
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
        Passed to the model's ``train``, such as ``max_epochs`` or ``accelerator``.

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
        mixture of two types), "novel", "ambiguous" (score below 0.5, or with ``risk`` no single
        type is safe) and "assigned". Doublets and cells of low quality are not called novel, and
        are only looked for when a model is trained.
    ``obs[f"{key}_safe"]`` : categorical, with ``risk``
        The most specific name that holds at that risk; "unknown" for novel cells too.
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
        ``novel_score``; shares of cells that are ``ambiguous``, ``novel``, ``doublet``,
        ``low_quality``; and, when a model is trained, ``nearest``, ``distance`` and ``markers``.

    Raises
    ------
    KeyError
        A column or layer is missing.
    ValueError
        An unknown method or preset; too few shared genes; unusable values (only scaled values, NaN,
        only zeros); fewer than two cell types; a ``key_added`` that no file can store, or whose
        slots exist and were not written by sctool; a ``risk`` outside 0 to 1 or of another method
        than "auto"; a ``hierarchy`` that is none.
    TypeError
        ``adata`` or ``ref`` has the wrong type, or a setting is unknown.

    Notes
    -----
    Time and memory grow linearly with the number of cells. Training holds a sparse copy of the
    shared genes of query and reference (8 bytes per nonzero value) and another of the model's
    genes; only minibatches are made dense. With a trained model the query is read in chunks of
    8,192 cells and never held as a whole, so a backed file stays on disk.

    Examples
    --------
    >>> import sctool
    >>> adata, ref = sctool.datasets.blood()
    >>> sctool.tl.annotate(adata, ref, method="logistic")
    >>> adata.obs["sctool"].cat.categories[0]
    'CD4+/CD25 T Reg'
    """
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
    levels = [labels_key] if isinstance(labels_key, str) else list(labels_key)
    params = {
        "labels_key": labels_key if isinstance(labels_key, str) else levels,
        "batch_key": batch_key,
        "layer": layer,
        "novel": novel,
        "risk": risk,
        "hierarchy": None if hierarchy is None else dict(hierarchy),
        "groupby": groupby,
        "ignore_case": ignore_case,
        "random_state": random_state,
        "model_kwargs": model_kwargs,
        "train_kwargs": train_kwargs,
    }
    model = None if isinstance(ref, AnnData) else _trained_model(ref)
    _check_risk(risk, METHODS[method] if model is None else type(model))
    tree = _tree(ref, levels, hierarchy, model)
    if isinstance(ref, AnnData):
        result = _train_and_predict(adata, ref, METHODS[method], levels[-1], clusters, params)
    else:
        assert model is not None
        _refuse_training_arguments(model, method, batch_key, model_kwargs, train_kwargs)
        result = _predict(adata, model, layer, novel)
    model, prediction = result.model, result.prediction
    verdicts = _judge(result, clusters, risk, tree)

    target = _slots.writable(adata, copy)
    registered = {cls: name for name, cls in METHODS.items()}
    _slots.write_annotation(
        target,
        key_added,
        classes=model.classes_,
        novel_classes=model.novel_classes_,
        novel_table=result.novel_table,
        n_novel=model.n_novel_ if isinstance(ref, AnnData) else None,
        colors=model.class_colors_,
        proba=prediction.proba,
        latent=prediction.latent,
        novel_score=model._novel_score(prediction),
        novel=None if novel == 0 else result.novel,
        unseen=prediction.unseen,
        verdicts=verdicts,
        params={
            "method": registered.get(type(model), type(model).__name__),
            "preset": model.preset_,
            **params,
        },
        versions=versions(),
        audit=prediction.audit,
    )
    return _slots.returned(target, model, copy, return_model)


@dataclass
class _Result:
    """The prediction for all cells of the query, and what only training can tell about them.

    Attributes
    ----------
    novel
        Whether cells are called novel, (n_cells,); None if that is not judged.
    novel_table, group_table
        Descriptions of the novel groups and of the user's clusters.
    doublets, low_quality
        Evidence on the cells.
    labels
        Codes of the labelled cells' types.
    by_group
        Codes of the types that groups of cells have, (n_cells,), of methods that group them.
    n_shared
        Number of shared genes.
    """

    model: AnnotationModel
    prediction: Prediction
    novel: np.ndarray | None
    novel_table: pd.DataFrame
    group_table: pd.DataFrame | None = None
    doublets: Doublets | None = None
    low_quality: LowQuality | None = None
    labels: np.ndarray | None = None
    by_group: np.ndarray | None = None
    n_shared: int | None = None


def _trained_model(ref: Any) -> AnnotationModel:
    """A trained model, loaded if a path is given."""
    model = load(ref) if isinstance(ref, str | Path) else ref
    if not isinstance(model, AnnotationModel):
        raise TypeError(
            f"ref must be an AnnData, a sctool model or a path, not {type(ref).__name__}."
        )
    return model


def _check_risk(risk: float | None, cls: type[AnnotationModel]) -> None:
    if risk is None:
        return
    if not isinstance(risk, Real) or not 0 < risk < 1:
        raise ValueError(f"risk={risk!r} must lie between 0 and 1, for example 0.05.")
    if not issubclass(cls, AutoClassifier):
        raise ValueError(
            f"risk={risk!r}: {cls.__name__} holds out no labelled cells to measure a risk on; use "
            "method='auto', or its model."
        )


def _tree(
    ref: Any,
    levels: list[str],
    hierarchy: Mapping[str, str] | None,
    model: AnnotationModel | None,
) -> Callable[[list[str]], Hierarchy] | None:
    """How to build the user's hierarchy of some types; None if there is none.

    Built once before training, so that what is wrong with it is said at once.
    """
    build: Callable[[list[str]], Hierarchy]
    if hierarchy is not None:
        if len(levels) > 1:
            raise ValueError("hierarchy and several labels_key were given: pass one of them.")
        parents = dict(hierarchy)

        def build(types: list[str]) -> Hierarchy:
            return Hierarchy.from_parents(types, parents)

    elif len(levels) > 1 and isinstance(ref, AnnData):
        columns = {
            level: _data.clean_labels(_data.obs_column(ref, level, "labels_key", "ref"))
            for level in levels
        }
        labels = pd.DataFrame({k: v.astype(object) for k, v in columns.items()})

        def build(types: list[str]) -> Hierarchy:
            return Hierarchy.from_levels(types, labels)[0]

    elif len(levels) > 1:
        raise ValueError(
            f"labels_key={levels!r}: ref is a trained model, which has no columns; pass hierarchy."
        )
    else:
        return None
    if model is not None:
        build(model.classes_)
    else:
        values = _data.obs_column(ref, levels[-1], "labels_key", "ref")
        build(list(map(str, _data.clean_labels(values).categories)))
    return build


def _predict(
    adata: AnnData, model: AnnotationModel, layer: str | None, novel: str | int
) -> _Result:
    """Apply a trained model."""
    prediction = model.predict_cells(adata, layer)
    prediction.audit.extend(model._note_reuse(novel))
    found = np.array(model.names_, dtype=object)[prediction.proba.argmax(axis=1)]
    table = novelty.group_sizes(found[~prediction.unseen], model.novel_classes_)
    flags = None if novel == 0 else model._is_novel(prediction)
    return _Result(model, prediction, flags, table)


def _train_and_predict(
    adata: AnnData,
    ref: AnnData,
    cls: type[AnnotationModel],
    labels_key: str,
    clusters: pd.Categorical | None,
    params: dict[str, Any],
) -> _Result:
    """Train a model, which is returned without its cells, and apply it to the query."""
    settings = dict(params["model_kwargs"] or {})
    preset = settings.get("preset", "default")
    settings = cls._settings_for_novel(params["novel"], preset) | settings
    names = ("batch_key", "layer", "ignore_case")
    data = _data.join(adata, ref, labels_key=labels_key, **{name: params[name] for name in names})
    kept = data.drop_empty(adata.n_obs)
    n_cells = data.x.shape[0]
    query = np.arange(n_cells - kept.sum(), n_cells)
    with seeded(params["random_state"]):
        model = cls(data, **settings)  # type: ignore[arg-type]
        model.train(**(params["train_kwargs"] or {}))
        prediction = model.predict_cells(indices=query)
    linear, n_known = data.x[query], len(model.classes_)
    known = prediction.proba[:, :n_known]
    known = known / np.maximum(known.sum(axis=1, keepdims=True), 1e-12)
    batch = None if params["batch_key"] is None else data.domain[query]
    doublets = find_doublets(linear, known, data.is_counts, batch, params["random_state"])
    low_quality = find_low_quality(linear, data.is_counts, known.argmax(axis=1), batch)
    prediction.audit.extend(doublets.audit + low_quality.audit)
    novel = model._is_novel(prediction)
    if novel is not None:
        neither = doublets.found | low_quality.found
        novel &= ~neither
        prediction.proba[neither] = np.pad(known[neither], ((0, 0), (0, len(model.novel_classes_))))

    labelled = np.flatnonzero(data.labels.codes >= 0)
    described = (linear, data.genes.index)
    reference = (data.x[labelled], np.asarray(data.labels[labelled]))
    found = np.array(model.names_, dtype=object)[prediction.proba.argmax(axis=1)]
    table = novelty.describe(*described, found, model.novel_classes_, *reference)
    group_table = None
    if clusters is not None:
        of_cell = np.asarray(clusters[kept].astype(object))
        ids = [str(name) for name in clusters.categories]
        group_table = novelty.describe(*described, of_cell, ids, *reference)
    by_group = model.names_by_group_
    model._release()
    return _Result(
        model,
        prediction.expand(kept),
        None if novel is None else expand(novel, kept),
        table,
        group_table,
        doublets.expand(kept),
        low_quality.expand(kept),
        data.labels.codes[labelled],
        None if by_group is None else expand(by_group[-len(query) :], kept, -1),
        len(data.genes),
    )


def _judge(
    result: _Result,
    clusters: pd.Categorical | None,
    risk: float | None,
    tree: Callable[[list[str]], Hierarchy] | None,
) -> _slots.Verdicts:
    """Status, safe names, pooled names and alarms."""
    model, prediction = result.model, result.prediction
    seen, n_known = ~prediction.unseen, len(model.classes_)
    names = np.where(seen, prediction.proba.argmax(axis=1), -1)
    score = prediction.proba.max(axis=1)
    is_known = seen & (names < n_known)
    known = prediction.proba[:, :n_known].astype(float)
    known /= np.maximum(known.sum(axis=1, keepdims=True), 1e-12)
    calibration = model.calibration_
    corrected = None
    alarms: list[str] = []
    if calibration is not None and is_known.any():
        weights = label_shift(known[is_known], calibration)
        usual = np.bincount(calibration.codes, minlength=n_known) / len(calibration.codes)
        corrected = weights * usual

    safe = specific = sets = None
    if risk is not None:
        safe = np.full(len(names), UNKNOWN, dtype=object)
        sets = np.zeros(prediction.proba.shape, dtype=bool)
        specific = ~is_known
        sets[np.arange(len(names)), names] = seen & ~is_known
        hierarchy = tree(model.classes_) if tree is not None else model.hierarchy_
        if calibration is None or hierarchy is None:
            sets[is_known, :n_known] = True
            alarms.append(
                "risk: no name is safe, because "
                + ("a type is called 'unknown'" if calibration else "no cell could be held out")
            )
        elif is_known.any():
            sets[np.ix_(is_known, np.arange(n_known))] = prediction_sets(
                known[is_known], calibration, risk
            )
            safe[is_known] = safe_names(known[is_known], calibration, hierarchy, risk)[0]
            specific[is_known] = np.isin(safe[is_known], model.classes_)
        safe[~seen] = None

    code, reason = cell_status(
        score, result.novel, safe, specific, result.doublets, result.low_quality, model.classes_
    )
    status = pd.Categorical.from_codes(np.where(seen, code, -1), list(STATUSES))
    pooled = groups = None
    if clusters is not None:
        pooled = np.where(clusters.codes < 0, names, pool_names(names, clusters.codes))
        novel_score = model._novel_score(prediction)
        groups = describe_groups(clusters, names, model.names_, novel_score, code)
        if result.group_table is not None:
            groups = groups.join(result.group_table.drop(columns="n_cells"))

    if result.n_shared is not None:
        alarms += alarm_genes(result.n_shared)
    if calibration is not None:
        alarms += alarm_shift(known[is_known].max(axis=1), calibration.proba.max(axis=1))
    if result.labels is not None:
        alarms += alarm_shares(names[is_known], result.labels, corrected, model.classes_)
    if result.by_group is not None:
        both = is_known & (result.by_group >= 0) & (result.by_group < n_known)
        alarms += alarm_agreement(names[both], result.by_group[both], model.classes_)
    if result.labels is not None:  # measured on the cells of training
        alarms += alarm_sensitivity(model.sensitivity_)
    alarms += alarm_programmes(result.novel_table)
    for alarm in alarms:
        logger.warning("%s.", alarm)
    return _slots.Verdicts(status, reason, sets, safe, pooled, groups, alarms)


def _refuse_training_arguments(
    model: AnnotationModel,
    method: str,
    batch_key: str | None,
    model_kwargs: dict[str, Any] | None,
    train_kwargs: dict[str, Any] | None,
) -> None:
    if method != "auto" and type(model) is not METHODS[method]:
        raise ValueError(f"method={method!r}, but ref is a trained {type(model).__name__}.")
    given = {"batch_key": batch_key, "model_kwargs": model_kwargs, "train_kwargs": train_kwargs}
    used = [name for name, value in given.items() if value]
    if used:
        raise ValueError(f"ref is a trained model, so nothing is trained: {used!r} cannot be used.")
