from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sctool import _data, _keys, _novel
from sctool._train import seeded
from sctool.model import AUTO, METHODS, AnnotationModel, Prediction, load
from sctool.model._base import versions


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
    model_kwargs: dict[str, Any] | None = None,
    train_kwargs: dict[str, Any] | None = None,
) -> AnnData | None:
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
        "scnym" (semi-supervised, adapts to the query), "scdet" (semi-supervised, finds and groups
        cells of no known type), "logistic" (logistic regression on the reference alone), "actinn"
        and "scdae" (networks on the reference alone), each also with ``model_kwargs={"component":
        "mls"}`` or "mlp", "contrastive" ("logistic" with "mls", for rare types), "gate" (logistic
        regression that also finds and groups cells of no known type), "sskm" (k-means with centres
        that the reference holds, and free ones), or "auto" for
        the one we recommend, which is "scnym".
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
    model_kwargs
        Passed on to the model, such as ``preset="paper"`` or any of its settings.
    train_kwargs
        Passed on to the model's ``train``, such as ``max_epochs`` or ``accelerator``.

    Returns
    -------
    None, or with ``copy=True`` the annotated copy. Written, with ``key`` for ``key_added``:

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
    result, _ = annotate_with_model(
        adata,
        ref,
        labels_key=labels_key,
        method=method,
        batch_key=batch_key,
        layer=layer,
        novel=novel,
        ignore_case=ignore_case,
        key_added=key_added,
        random_state=random_state,
        copy=copy,
        model_kwargs=model_kwargs,
        train_kwargs=train_kwargs,
    )
    return result if copy else None


def annotate_with_model(
    adata: AnnData,
    ref: AnnData | AnnotationModel | str | Path,
    *,
    labels_key: str,
    method: str,
    batch_key: str | None,
    layer: str | None,
    novel: str | int,
    ignore_case: bool,
    key_added: str,
    random_state: int,
    copy: bool,
    model_kwargs: dict[str, Any] | None,
    train_kwargs: dict[str, Any] | None,
) -> tuple[AnnData, AnnotationModel]:
    """:func:`annotate`, returning also the model, without its training cells."""
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, not {type(adata).__name__}.")
    if novel != "auto" and (not isinstance(novel, int) or isinstance(novel, bool) or novel < 0):
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
        model, prediction, table = _train_and_predict(
            adata, ref, METHODS[AUTO if method == "auto" else method], params
        )
    else:
        model = load(ref) if isinstance(ref, str | Path) else ref
        if not isinstance(model, AnnotationModel):
            raise TypeError(
                f"ref must be an AnnData, a sctool model or a path, not {type(ref).__name__}."
            )
        table = None
        _refuse_training_arguments(model, method, batch_key, model_kwargs, train_kwargs)
        prediction = model.annotate_cells(adata, layer)
        prediction.audit.extend(model.audit_when_reused(novel))

    target = _keys.writable(adata, copy)
    name = next(name for name, cls in METHODS.items() if cls is type(model))
    _keys.write_annotation(
        target,
        key_added,
        classes=model.classes_,
        novel_classes=model.novel_classes_,
        novel_table=table,
        n_novel=model.n_novel_ if isinstance(ref, AnnData) else None,
        colors=model.class_colors_,
        proba=prediction.proba,
        latent=prediction.latent,
        novel_score=model.novel_score(prediction),
        novel=None if novel == 0 else model.is_novel(prediction),
        params={"method": name, "preset": model.preset_, **params},
        versions=versions(),
        audit=prediction.audit,
    )
    return target, model


def _train_and_predict(
    adata: AnnData, ref: AnnData, cls: type[AnnotationModel], params: dict[str, Any]
) -> tuple[AnnotationModel, Prediction, pd.DataFrame | None]:
    settings = dict(params["model_kwargs"] or {})
    preset = settings.get("preset", "default")
    settings = cls.settings_for_novel(params["novel"], preset) | settings
    joint, unlabelled, audit = _data.join(
        adata,
        ref,
        labels_key=params["labels_key"],
        batch_key=params["batch_key"],
        layer=params["layer"],
        ignore_case=params["ignore_case"],
    )
    with seeded(params["random_state"]):
        cls.setup_anndata(joint, "labels", unlabelled, batch_key="domain")
        try:
            model = cls(joint, ignore_case=params["ignore_case"], **settings)
            model.train(**(params["train_kwargs"] or {}))
            query = np.arange(ref.n_obs, joint.n_obs)
            prediction = model.annotate_cells(indices=query)
            table = None
            if model.novel_classes_:
                table = _describe_novel(model, prediction, joint, query, unlabelled)
            model.release()
        finally:
            cls.forget(joint)
    # The joint object is ours: of its audit only what training added concerns the user.
    prediction.audit[:] = audit + [
        note for note in model.audit_ if not note.startswith("training data:")
    ]
    return model, prediction, table


def _describe_novel(
    model: AnnotationModel,
    prediction: Prediction,
    joint: AnnData,
    query: np.ndarray,
    unlabelled: str,
) -> pd.DataFrame:
    labels = joint.obs["labels"].astype(str).to_numpy()
    labelled = labels != unlabelled
    return _novel.describe(
        joint.X[query],
        joint.var_names,
        np.array(model.names_, dtype=object)[prediction.proba.argmax(axis=1)],
        model.novel_classes_,
        joint.X[np.flatnonzero(labelled)],
        labels[labelled],
    )


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
