from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sctool import _data, _slots, novelty
from sctool._docs import docs
from sctool._train import seeded
from sctool.model import AUTO, METHODS, AnnotationModel, Prediction, load
from sctool.model._saving import versions

docs.params["methods"] = "\n    ".join(
    f'- "{name}": {(cls.__doc__ or "").splitlines()[0]}' for name, cls in METHODS.items()
)


@docs.dedent
def annotate(
    adata: AnnData,
    ref: AnnData | AnnotationModel | str | Path,
    *,
    labels_key: str = "cell_type",
    method: str = "auto",
    batch_key: str | None = None,
    layer: str | None = None,
    novel: str | int = "auto",
    ignore_case: bool = False,
    key_added: str = "sctool",
    random_state: int = 0,
    copy: bool = False,
    return_model: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    train_kwargs: dict[str, Any] | None = None,
) -> AnnData | AnnotationModel | tuple[AnnData, AnnotationModel] | None:
    """Name the cells of ``adata`` after the types of a labelled reference.

    Genes are matched by name, in whatever order. Values may be counts, linear (CPM, TPM) or log1p;
    they are found in ``X``, or where ``X`` cannot be used in ``raw`` or a layer of counts, and
    brought to log1p counts per 10,000 over the shared genes in a private copy. What was found and
    repaired is in ``uns[key_added]["audit"]``.

    Parameters
    ----------
    adata
        The query, (n_cells, n_genes). May be backed or a view; an earlier column of labels in it
        is never read.
    ref
        The labelled reference; or a trained sctool model, or the directory of a saved one, and
        then nothing is trained.
    labels_key
        Column of ``ref.obs`` with the types, of any dtype; cells with a missing label are used as
        unlabelled ones.
    method
        "auto", for the one we recommend, which is "scnym"; or one of the following, all of them
        models in :mod:`sctool.model`:

        %(methods)s
    batch_key
        Column of both ``obs`` with donors or technologies, each a domain that "scnym" adapts to.
        Default: reference and query are the two domains.
    layer
        Layer of both sides with the values ("raw" for ``.raw``). Default: found as said above.
    novel
        "auto": score every cell for being of no known type, and where the method can, flag those
        cells, and group them; 0: every cell is taken to be of a known type; a number: that many
        groups of novel cells ("scdet", "gate", "sskm").
    ignore_case
        Match gene names without regard to case, for a reference of another species (Cd79a, CD79A).
    key_added
        Name of the slots.
    random_state
        Seed; the same seed on the same machine gives the same result.
    copy
        Return an annotated copy and leave ``adata`` as it is.
    return_model
        Return the trained model, without its cells: to save it, to annotate other cells with it,
        or for :func:`explain`.
    model_kwargs
        Passed on to the model, such as ``preset="paper"`` or any of its settings, which the model's
        settings class lists.
    train_kwargs
        Passed on to the model's ``train``, such as ``max_epochs`` or ``accelerator``.

    Returns
    -------
    None; with ``copy=True`` the annotated copy, with ``return_model=True`` the model, with both the
    pair of them. Written, with ``key`` for ``key_added``:

    ``obs[key]`` : categorical
        The most probable type, in the reference's order, with its colours in
        ``uns[f"{key}_colors"]`` if it has any. After the types, "novel_1", "novel_2", ... by size,
        if the method ("scdet", "gate", "sskm") found such groups; :func:`rename_novel` names them.
    ``obs[f"{key}_score"]`` : float32
        Its probability.
    ``obs[f"{key}_novel_score"]`` : float32
        How unlike every known type the cell is, in [0, 1]: 1 - score, or the probability of all
        novel groups if there are any.
    ``obs[f"{key}_novel"]`` : bool
        Cells judged to be of no known type, by methods that can say so ("scnym", "scdet", "gate",
        "sskm").
    ``obsm[f"X_{key}"]`` : float32, (n_cells, n_latent)
        The model's embedding, of its component if it has one; for plain "logistic" its logits.
    ``obsm[f"{key}_proba"]`` : float32, (n_cells, n_classes)
        Probability of each type, columns in the order of ``uns[key]["classes"]``.
    ``uns[key]`` : dict
        ``classes``, ``params``, ``versions`` and ``audit`` (sentences on what was found). If there
        are novel groups, also ``novel_classes``, their names, and ``novel``, a DataFrame with a row
        for each: ``n_cells``; ``nearest`` known type and its ``distance`` (1 - correlation of mean
        log1p CP10k profiles); ``markers``, genes joined by ", ", best first. If their number was
        estimated, ``n_novel``: ``n``, and the interval from ``low`` to ``high``.

    Raises
    ------
    KeyError
        A column or layer is not there.
    ValueError
        An unknown method or preset; too few shared genes; values that cannot be used (scaled
        values alone, NaN, only zeros); fewer than two types.
    TypeError
        ``adata`` or ``ref`` is something else, or a setting is unknown.

    Notes
    -----
    Time and memory grow linearly with the number of cells. While it runs, a private sparse copy of
    the shared genes of both sides is held (8 bytes per nonzero value), and one of the genes that
    the model sees; cells become dense by minibatch only. With a trained model the query is read in
    chunks of 8,192 cells and never held as a whole, so that a backed file stays on disk.

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
        raise ValueError(f"novel={novel!r}: pass 'auto' or the number of novel types.")
    if method != "auto" and method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; known methods: {['auto', *METHODS]!r}.")
    params = {
        "labels_key": labels_key,
        "batch_key": batch_key,
        "layer": layer,
        "novel": novel,
        "ignore_case": ignore_case,
        "random_state": random_state,
        "model_kwargs": model_kwargs,
        "train_kwargs": train_kwargs,
    }
    if isinstance(ref, AnnData):
        cls = METHODS[AUTO if method == "auto" else method]
        model, prediction, table = _train_and_predict(adata, ref, cls, params)
    else:
        model = load(ref) if isinstance(ref, str | Path) else ref
        if not isinstance(model, AnnotationModel):
            raise TypeError(
                f"ref must be an AnnData, a sctool model or a path, not {type(ref).__name__}."
            )
        _refuse_training_arguments(model, method, batch_key, model_kwargs, train_kwargs)
        prediction = model.predict_cells(adata, layer)
        prediction.audit.extend(model._note_reuse(novel))
        found = np.array(model.names_, dtype=object)[prediction.proba.argmax(axis=1)]
        table = novelty.group_sizes(found[~prediction.unseen], model.novel_classes_)

    target = _slots.writable(adata, copy)
    registered = {cls: name for name, cls in METHODS.items()}
    _slots.write_annotation(
        target,
        key_added,
        classes=model.classes_,
        novel_classes=model.novel_classes_,
        novel_table=table,
        n_novel=model.n_novel_ if isinstance(ref, AnnData) else None,
        colors=model.class_colors_,
        proba=prediction.proba,
        latent=prediction.latent,
        novel_score=model._novel_score(prediction.proba),
        novel=None if novel == 0 else model._is_novel(prediction.proba),
        unseen=prediction.unseen,
        params={
            "method": registered.get(type(model), type(model).__name__),
            "preset": model.preset_,
            **params,
        },
        versions=versions(),
        audit=prediction.audit,
    )
    return _slots.returned(target, model, copy, return_model)


def _train_and_predict(
    adata: AnnData, ref: AnnData, cls: type[AnnotationModel], params: dict[str, Any]
) -> tuple[AnnotationModel, Prediction, pd.DataFrame]:
    """The model, without its cells; what it says of the query; a table of novel groups."""
    settings = dict(params["model_kwargs"] or {})
    preset = settings.get("preset", "default")
    settings = cls._settings_for_novel(params["novel"], preset) | settings
    names = ("labels_key", "batch_key", "layer", "ignore_case")
    data = _data.join(adata, ref, **{name: params[name] for name in names})
    kept = data.drop_empty(adata.n_obs)
    n_cells = data.x.shape[0]
    query = np.arange(n_cells - kept.sum(), n_cells)
    with seeded(params["random_state"]):
        model = cls(data, **settings)  # type: ignore[arg-type]
        model.train(**(params["train_kwargs"] or {}))
        prediction = model.predict_cells(indices=query)
    labelled = np.flatnonzero(data.labels.codes >= 0)
    table = novelty.describe(
        data.x[query],
        data.genes.index,
        np.array(model.names_, dtype=object)[prediction.proba.argmax(axis=1)],
        model.novel_classes_,
        data.x[labelled],
        np.asarray(data.labels[labelled]),
    )
    model._release()
    return model, prediction.expand(kept), table


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
        raise ValueError(f"ref is a trained model, nothing is trained: {used!r} cannot be used.")
