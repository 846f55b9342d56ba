from __future__ import annotations

import numpy as np
from anndata import AnnData

from sctool import _data, _label_errors, _slots
from sctool._data._join import clean_labels, obs_column
from sctool.model._saving import versions


def check_reference(
    ref: AnnData,
    labels_key: str,
    *,
    layer: str | None = None,
    key_added: str = "sctool_reference",
    random_state: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Look for probably mislabelled cells, near-identical types and types too small to learn.

    Each cell is judged by a logistic regression on marker genes that was fitted to other cells:
    five folds, stratified by type, with the genes chosen inside each fold. A label that such a
    regression contradicts is worth a look. It may be wrong; the cell may also be a doublet, of low
    quality, or between two types. No label is changed.

    Parameters
    ----------
    ref
        Labelled reference, (n_cells, n_genes). May be backed or a view. Values are found as in
        :func:`annotate`.
    labels_key
        Column of ``ref.obs`` with the cell types, of any dtype. Cells with a missing label are left
        out.
    layer
        Layer with the values ("raw" for ``.raw``). Default: ``X`` or, if ``X`` is unusable, ``raw``
        or a counts layer.
    key_added
        Key under which results are stored.
    random_state
        Random seed of the folds.
    copy
        Return a copy with the results and leave ``ref`` unchanged.

    Returns
    -------
    None, or the copy if ``copy=True``. The following is written, with ``key`` for ``key_added``:

    ``obs[f"{key}_given"]`` : float32
        Probability of the cell's label; the lowest are the most doubtful. NaN for cells that are
        not judged: those without a label, those that express no gene, and the only cell of a type.
    ``obs[f"{key}_suggested"]`` : categorical
        The most probable type where it differs from the label, otherwise missing.
    ``obs[f"{key}_suspect"]`` : bool
        Whether the cell is probably mislabelled: the suggested type is at least as probable as it
        is, on average, for the cells labelled with it (confident learning).
    ``uns[key]`` : dict
        ``types``, a DataFrame with one row for each type: ``n_cells``; ``recall``, the share of its
        cells that are recognised; ``confused_with``, the type that most of the others are taken for
        ("" if none), and ``confused``, their share; ``suspect``, the share of suspects;
        ``too_small``, whether it has fewer than 10 cells. ``pairs``, a DataFrame with one row for
        each pair of similar types, the most similar first: ``first``, ``second``;
        ``first_as_second`` and ``second_as_first``, the shares of the cells of one that are taken
        for the other; ``overlap``, their sum, from 0.2, the least that is listed, to 1 for two
        names of the same cells, whatever their numbers. Also ``params``, ``versions`` and
        ``audit`` (notes on data checks).

    Raises
    ------
    KeyError
        The column or the layer is missing.
    ValueError
        Fewer than two types, or no type with two cells; unusable values (only scaled values, NaN,
        only zeros); a ``key_added`` that no file can store, or whose slots exist and were not
        written by sctool.
    TypeError
        ``ref`` has the wrong type.

    Notes
    -----
    The rule for suspects follows confident learning (Northcutt, Jiang and Chuang 2021, "Confident
    learning: estimating uncertainty in dataset labels", Journal of Artificial Intelligence Research
    70). Labels that are wrong in the same way throughout, as if a whole cluster had the wrong name,
    do not contradict each other and are not found.

    Examples
    --------
    >>> import sctool
    >>> _, ref = sctool.datasets.blood()
    >>> sctool.tl.check_reference(ref, "cell_type")
    >>> ref.uns["sctool_reference"]["pairs"].loc["0", ["first", "second"]].tolist()
    ['CD4+/CD25 T Reg', 'CD4+/CD45RO+ Memory']
    """
    if not isinstance(ref, AnnData):
        raise TypeError(f"ref must be an AnnData, not {type(ref).__name__}.")
    _slots.check_key(ref, key_added)
    labels = clean_labels(obs_column(ref, labels_key, "labels_key", "ref"))
    data = _data.read_cells(ref, layer, "ref")
    data.labels = labels
    _, x = _data.Features.fit(data, n_top_genes=None)
    labelled, empty = labels.codes >= 0, x.getnnz(axis=1) == 0
    used = labelled & ~empty
    codes, y = np.unique(labels.codes[used], return_inverse=True)
    names = [str(name) for name in labels.categories[codes]]
    n = np.bincount(y, minlength=len(names))
    if len(names) < 2 or n.max() < 2:
        raise ValueError(
            f"ref.obs[{labels_key!r}] has {len(names)} cell type(s), the largest with "
            f"{n.max(initial=0)} cell(s); at least 2 types are needed, and 2 cells of one of them."
        )
    proba = _label_errors.out_of_fold(x[used], y, random_state)
    given, best, suspect = _label_errors.find_suspects(proba, y)
    shares = _label_errors.confusion(y, best, len(names))
    types = _label_errors.describe_types(y, shares, suspect, names)
    lone, few = types.index[n == 1].tolist(), types.index[types["too_small"]].tolist()
    notes = [
        (f"ref: {int((~labelled).sum())} cells without a label were left out", (~labelled).any()),
        (f"ref: {int(empty.sum())} cells express no gene and were left out", empty.any()),
        (f"types: {lone!r} have a single cell, which cannot be judged", lone),
        (f"types: {few!r} have fewer than {_label_errors.MIN_CELLS} cells", few),
        (f"labels: {int(suspect.sum())} of {len(y)} cells are suspects", True),
    ]
    target = _slots.writable(ref, copy)
    _slots.write_reference_check(
        target,
        key_added,
        used=used,
        given=given,
        suggested=np.where(best == y, -1, best),
        suspect=suspect,
        names=names,
        types=types,
        pairs=_label_errors.describe_pairs(shares, names),
        params={"labels_key": labels_key, "layer": layer, "random_state": random_state},
        versions=versions(),
        audit=[*data.audit, *(note for note, holds in notes if holds)],
    )
    return target if copy else None
