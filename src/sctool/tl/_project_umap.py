from __future__ import annotations

from pathlib import Path

import numpy as np
from anndata import AnnData

from sctool import _slots
from sctool._data._sample import with_rare
from sctool._umap import ReferenceMap
from sctool.model import AnnotationModel, load
from sctool.model._saving import versions

#: At most so many cells of the reference are on the map, and of each predicted type so many even
#: if it is rare: neighbours are searched exactly, and a saved model stays small.
N_CELLS, N_RARE = 50_000, 500
#: Fewer cells make no map.
MIN_CELLS = 10


def project_umap(
    adata: AnnData,
    ref: AnnData | AnnotationModel | str | Path,
    *,
    model: AnnotationModel | str | Path | None = None,
    layer: str | None = None,
    key_added: str = "sctool_umap",
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Place cells on a UMAP of the reference.

    The UMAP is fitted to the model's embedding of the reference's cells, and the cells of ``adata``
    are placed among them. The reference does not move: every query that is placed on the same map
    can be compared. The model keeps the map, also in a file.

    Parameters
    ----------
    adata
        Cells to place; read as in :func:`annotate`. May be backed or a view.
    ref
        Reference to make a map of, which is not changed; its labels are not read. Or the model, or
        its directory, that has a map already.
    model
        With a reference: the model that embeds the cells, such as the one that :func:`annotate`
        returns with ``return_model=True``, or the directory of a saved one. A map that it has is
        replaced; save the model to keep the new one.
    layer
        Layer with the values ("raw" for ``.raw``), of the cells and of the reference. Default: as
        in :func:`annotate`.
    key_added
        Key under which results are stored.
    random_state
        Random seed. Results are reproducible on the same machine.
    copy
        Return a copy and leave ``adata`` unchanged.

    Returns
    -------
    None, or the copy if ``copy=True``. The following is written, with ``key`` for ``key_added``:

    ``obsm[f"X_{key}"]`` : float32, (n_cells, 2)
        Positions on the map; NaN for cells that express none of the model's genes.
    ``uns[key]`` : dict
        ``params``, ``versions`` and ``audit`` (notes on data checks).

    Raises
    ------
    TypeError
        ``adata``, ``ref`` or ``model`` has the wrong type.
    ValueError
        A reference without a model, or a model twice; a model without a map; too few cells in the
        reference; too few of the model's genes or no usable values; a ``key_added`` that no file
        can store, or whose slots exist and were not written by sctool.
    KeyError
        The layer is missing.
    FileNotFoundError
        The directory contains no saved model.

    Notes
    -----
    A cell of a type that the reference lacks is placed as well, near what resembles it most: ask
    ``obs["sctool_novel"]`` whether it belongs there. A map of a model's embedding shows what the
    model was trained to separate, and is no evidence for the names.

    A larger reference is represented by 50,000 of its cells, at least 500 of each predicted type or
    all that it has. The first call of a process compiles UMAP, which takes about 20 s.

    Examples
    --------
    Place the reference itself on the map to draw it beside the query::

        model = sctool.tl.annotate(adata, ref, return_model=True)
        sctool.tl.project_umap(adata, ref, model=model)
        sctool.tl.project_umap(ref, model)
        sc.pl.embedding(ref, "sctool_umap", color="cell_type")
        sc.pl.embedding(adata, "sctool_umap", color="sctool")
    """
    if not isinstance(adata, AnnData):
        raise TypeError(f"adata must be an AnnData, not {type(adata).__name__}.")
    _slots.check_key(adata, key_added)
    trained = _model(ref, model)
    prediction = trained.predict_cells(adata, layer)
    if isinstance(ref, AnnData):
        trained.map_ = _fit(ref, trained, layer, random_state)
    drawn = trained.map_
    if drawn is None:
        raise ValueError(
            f"This {type(trained).__name__} has no map of its reference: pass the reference and "
            "model=, once."
        )
    seen = ~prediction.unseen
    positions = np.full((adata.n_obs, 2), np.nan, dtype=np.float32)
    if seen.any():
        positions[seen] = drawn.place(prediction.latent[seen], random_state)
    target = _slots.writable(adata, copy)
    _slots.write_projection(
        target,
        key_added,
        positions=positions,
        params={"layer": layer, "random_state": random_state},
        versions=versions(),
        audit=[*prediction.audit, f"map: {len(drawn.positions)} cells of the reference"],
    )
    return target if copy else None


def _model(
    ref: AnnData | AnnotationModel | str | Path, model: AnnotationModel | str | Path | None
) -> AnnotationModel:
    """The model that embeds the cells, whichever way it was given."""
    if isinstance(ref, AnnData):
        if model is None:
            raise ValueError(
                "ref is a reference, which needs a model to embed it: pass model=, such as what "
                "annotate(..., return_model=True) returns."
            )
        name, given = "model", model
    else:
        if model is not None:
            raise ValueError("model= goes with a reference, but ref is a model: pass one of them.")
        name, given = "ref", ref
    trained = load(given) if isinstance(given, str | Path) else given
    if not isinstance(trained, AnnotationModel):
        raise TypeError(
            f"{name} must be {'an AnnData, ' * (name == 'ref')}a model that annotates cells, or "
            f"its path, not {type(trained).__name__}."
        )
    return trained


def _fit(ref: AnnData, model: AnnotationModel, layer: str | None, seed: int) -> ReferenceMap:
    """Map of the cells of a reference, or of some of them if there are many."""
    prediction = model.predict_cells(ref, layer)
    cells = np.flatnonzero(~prediction.unseen)
    if len(cells) < MIN_CELLS:
        raise ValueError(
            f"{len(cells)} cells of ref express genes of the model, too few for a map: at least "
            f"{MIN_CELLS} are needed."
        )
    if len(cells) > N_CELLS:
        types = prediction.proba[cells].argmax(axis=1)
        some = with_rare(types, N_CELLS, N_RARE, np.random.default_rng(seed))
        cells = cells[np.sort(some)]
    return ReferenceMap.fit(prediction.latent[cells], seed)
