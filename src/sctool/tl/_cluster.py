from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from sctool import _data, _neighbors, _slots
from sctool._checks import check_dict
from sctool._train import seeded
from sctool.model import CICL, CLUSTER_METHODS, Prediction, Settings, load
from sctool.model._base import expand
from sctool.model._saving import versions


def cluster(
    adata: AnnData,
    *,
    n_clusters: int | None = None,
    method: str = "cicl",
    model: CICL | str | Path | None = None,
    layer: str | None = None,
    key_added: str | None = None,
    random_state: int = 0,
    copy: bool = False,
    return_model: bool = False,
    model_kwargs: dict[str, Any] | None = None,
    train_kwargs: dict[str, Any] | None = None,
) -> AnnData | CICL | tuple[AnnData, CICL | None] | None:
    """Cluster the cells of ``adata`` without a reference.

    Values may be counts, linear (CPM, TPM) or log1p. They are read from ``X`` or, if ``X`` is
    unusable, from ``raw`` or a counts layer, and log-normalised in a private copy: for CICL, counts
    are scaled to their median total per cell, all other values to 10,000. Data checks and repairs
    are recorded in ``uns[key]["audit"]``.

    Parameters
    ----------
    adata
        Cells, (n_cells, n_genes). May be backed or a view. Existing labels are never read.
    n_clusters
        Number of clusters; None to estimate it. "leiden" searches for the resolution whose number
        of clusters comes closest.
    method
        "cicl" (contrastive learning of an embedding with separated clusters) or "leiden" (scanpy's
        pipeline with default settings: highly variable genes, principal components, neighbours,
        Leiden).
    model
        A trained :class:`sctool.model.CICL`, or the directory of a saved one. Cells are assigned
        to its clusters without training.
    layer
        Layer with the values ("raw" for ``.raw``). Default: as above.
    key_added
        Key under which results are stored. Default: the method's name.
    random_state
        Random seed. Results are reproducible on the same machine.
    copy
        Return a clustered copy and leave ``adata`` unchanged.
    return_model
        Return the model without its training cells; None for "leiden", which has no model.
    model_kwargs
        Passed to the model, such as ``preset="paper"`` or any of its settings.
    train_kwargs
        Passed to the model's ``train``, such as ``max_epochs`` or ``accelerator``.

    Returns
    -------
    None; the clustered copy if ``copy=True``, the model if ``return_model=True``, or the tuple
    (copy, model) if both. The following is written, with ``key`` for ``key_added``:

    ``obs[key]`` : categorical
        Cluster, numbered by decreasing size in the training data. Missing, with a score of 0, for
        cells that express no gene.
    ``obs[f"{key}_score"]`` : float32
        Confidence in [0, 1]: for "cicl" the Student's t assignment, for "leiden" the fraction of
        the cell's neighbours in the same cluster.
    ``obsm[f"X_{key}"]`` : float32, (n_cells, n_latent)
        Embedding, for ``scanpy.pp.neighbors(adata, use_rep=...)``; for "leiden" the principal
        components.
    ``uns[key]`` : dict
        ``n_clusters``, with the number ``n`` and, if it was estimated, its interval, ``low`` to
        ``high``; ``params``, ``versions`` and ``audit`` (notes on data checks and training).

    Raises
    ------
    KeyError
        The layer is missing.
    ValueError
        An unknown method or preset; unusable values (only scaled values, NaN, only zeros); too few
        cells or genes; identical cells; training arguments where nothing is trained; a
        ``key_added`` that no file can store, or whose slots exist and were not written by sctool.
    TypeError
        ``adata`` or ``model`` has the wrong type, or a setting is unknown.

    See Also
    --------
    sctool.tl.annotate : Annotation with a labelled reference.

    Notes
    -----
    The interval shows how much the number of Leiden clusters varies with the sample of cells and
    the resolution (0.5 to 2). It is not a confidence interval for the number of cell types, which
    unlabelled data cannot provide. Except for the neighbour search, time grows linearly with the
    number of cells.

    Examples
    --------
    >>> import sctool
    >>> adata, _ = sctool.datasets.blood()
    >>> sctool.tl.cluster(adata, method="leiden", n_clusters=5)
    >>> adata.obs["leiden"].cat.categories.tolist()
    ['0', '1', '2', '3', '4']
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, not {type(adata).__name__}.")
    if method not in (known := ["leiden", *CLUSTER_METHODS]):
        raise ValueError(f"method={method!r} is unknown; known methods: {known!r}.")
    key = method if key_added is None else key_added
    _slots.check_key(adata, key)
    if n_clusters is not None and (
        not isinstance(n_clusters, int | np.integer)
        or isinstance(n_clusters, bool)
        or n_clusters < 1
    ):
        raise ValueError(f"n_clusters={n_clusters!r}: pass the number of clusters, or None.")
    given = {"n_clusters": n_clusters, "model_kwargs": model_kwargs, "train_kwargs": train_kwargs}
    params: dict[str, Any] = {"method": method, "layer": layer, "random_state": random_state}
    found: dict[str, Any]
    trained: CICL | None = None
    if model is not None:
        if isinstance(model, str | Path):
            model = load(model)  # type: ignore[assignment]
        if not isinstance(model, CICL):
            raise TypeError(
                "model must be a sctool model that clusters, or the path to one, not "
                f"{type(model).__name__}."
            )
        _refuse("model is already trained, so nothing is trained", given)
        if method != "cicl":
            raise ValueError(f"method={method!r}, but model is a trained CICL.")
        prediction = model.predict_cells(adata, layer)
        prediction.audit.append("model: a previously trained CICL; nothing was trained")
        found, trained = _of_model(model, prediction), model
    elif method == "leiden":
        _refuse("method='leiden' has no settings", given, "model_kwargs", "train_kwargs")
        found = _leiden_clusters(adata, layer, n_clusters, random_state)
    else:
        found, trained = _train(
            adata,
            layer,
            n_clusters,
            random_state,
            CLUSTER_METHODS[method],
            model_kwargs,
            train_kwargs,
        )
    if trained is not None:
        params["preset"] = trained.preset_
    target = _slots.writable(adata, copy)
    _slots.write_clusters(target, key, params=params | given, versions=versions(), **found)
    return _slots.returned(target, trained, copy, return_model)


def _train(
    adata: AnnData,
    layer: str | None,
    n_clusters: int | None,
    seed: int,
    cls: type[CICL],
    model_kwargs: dict[str, Any] | None,
    train_kwargs: dict[str, Any] | None,
) -> tuple[dict[str, Any], CICL]:
    settings = check_dict("model_kwargs", model_kwargs)
    if n_clusters is not None:
        settings = {"n_clusters": int(n_clusters)} | settings
    data = _data.read_cells(adata, layer, "data")
    kept = data.drop_empty(adata.n_obs)
    with seeded(seed):
        model = cls(data, **settings)  # type: ignore[arg-type]
        model.train(**check_dict("train_kwargs", train_kwargs))
        prediction = model.predict_cells().expand(kept)
    model._release()
    return _of_model(model, prediction), model


def _of_model(model: CICL, prediction: Prediction) -> dict[str, Any]:
    return {
        "codes": prediction.proba.argmax(axis=1),
        "names": model.names_,
        "score": prediction.proba.max(axis=1),
        "unseen": prediction.unseen,
        "latent": prediction.latent,
        "n_clusters": model.n_clusters_,
        "audit": prediction.audit,
    }


def _leiden_clusters(
    adata: AnnData, layer: str | None, n_clusters: int | None, seed: int
) -> dict[str, Any]:
    data = _data.read_cells(adata, layer, "data")
    kept = data.drop_empty(adata.n_obs)
    _, x = _data.Features.fit(data, Settings().n_top_genes)
    _neighbors.check_clusterable(x)
    with seeded(seed):
        found = _neighbors.leiden_clusters(x, n_clusters, seed)
        n = {"n": int(found.codes.max()) + 1}
        if n_clusters is None:
            counted = _neighbors.count_clusters(found.z, np.random.default_rng(seed))
            n |= {"low": min(counted["low"], n["n"]), "high": max(counted["high"], n["n"])}
    audit = [*data.audit, f"clusters: Leiden with resolution {found.resolution:.4g}"]
    if n_clusters is not None and n["n"] != n_clusters:
        audit.append(f"clusters: no resolution gave {n_clusters}; found {n['n']} instead")
    return {
        "codes": expand(found.codes, kept),
        "names": [str(code) for code in range(n["n"])],
        "score": expand(found.score, kept),
        "latent": expand(found.z, kept),
        "unseen": ~kept,
        "n_clusters": n,
        "audit": audit,
    }


def _refuse(why: str, given: dict[str, Any], *names: str) -> None:
    """Refuse arguments that would have no effect."""
    used = [name for name, value in given.items() if value and (not names or name in names)]
    if used:
        raise ValueError(f"{why}: {used!r} cannot be used.")
