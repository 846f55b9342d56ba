from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from sctool import _data, _slots
from sctool._checks import Seed, check, check_dict
from sctool._docs import docs
from sctool._expected import Expected
from sctool._train import seeded
from sctool.model import METHODS, AnnotationModel
from sctool.model._adapt import adapt as adapt_model
from sctool.model._saving import versions
from sctool.tl._apply import (
    check_training_arguments,
    predict,
    predict_adapted,
    refuse_training_arguments,
    train_and_predict,
    trained_model,
)
from sctool.tl._judge import check_risk, find_expected, find_tree, judge, read_hierarchy
from sctool.tl._several import annotate_with_each

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
        left out. Several columns, from coarse to fine, are a hierarchy; the last
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
        type, a group of types or "unknown" (for "auto" and for several references). It
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
        "ambiguous" (score below 0.5, with ``risk`` no single type is safe, or several references
        disagree) and "assigned". Doublets and cells of low quality are not called novel, and
        are only looked for when a model is trained, in at most 100,000 cells.
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
        than "auto"; a setting or an argument of training out of range; a ``hierarchy`` that names
        no parent, is none, or "ontology" for types
        that it does not group; ``allowed`` or ``prior`` that are empty, name a
        type that the model does not know, are both given, or hold shares that are negative, not
        finite or all 0; ``adapt`` with a reference, or with a model that cannot adapt; a MuData in
        which it is not clear which modality is gene expression.
    TypeError
        ``adata``, ``ref``, ``hierarchy``, ``allowed``, ``prior``, ``model_kwargs`` or
        ``train_kwargs`` has the wrong type, or a setting is unknown.

    Notes
    -----
    With several references a model is trained on each that has cells, of which a tenth is held out.
    Types are the same, or parts of each other, by name, by the Cell Ontology, or by what the models
    call each other's cells; the answer has the finest. Probabilities are averaged with weights of
    each reference (how well it recognises held-out cells and cells of the other references, how
    much of this confidence it keeps in the query, and how similar its expression is) and of each
    cell (how novel it is to the reference), and a temperature is fitted to the held-out cells. A
    cell is novel if it is so to every reference. Cells on which references disagree are
    "ambiguous". The embedding, novel groups and doublets are those of the reference with most
    types. ``return_model``, several ``labels_key`` and a number of ``novel`` types need a single
    reference.

    Time and memory grow linearly with the number of cells. Training holds a sparse copy of the
    shared genes of query and reference (8 bytes per nonzero value) and another of the model's
    genes; only minibatches are made dense. Of a reference of more than 100,000 cells, rare types
    are used as a whole and common ones in part, so that these many are held; of a query of more,
    100,000 are read for training, and then all are named. Of more than 10,000 unlabelled cells
    "auto" and "scdet" group, search and learn from 10,000. A backed one is read in chunks. With a
    trained model the query is read in chunks of 8,192 cells and, unless it adapts, never held as a
    whole, so a backed file stays on disk.

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
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; known methods: {list(METHODS)!r}.")
    clusters = None
    if groupby is not None:
        clusters = _data.clean_labels(_data.obs_column(adata, groupby, "groupby", "query"))
        if not len(clusters.categories):
            raise ValueError(
                f"groupby={groupby!r}: no cell has a value in that column of adata.obs. Cluster "
                "the cells first, for example with sc.tl.leiden, or leave groupby out."
            )
    levels = _levels(labels_key)
    flags = {"ignore_case": ignore_case, "adapt": adapt, "copy": copy, "return_model": return_model}
    for name, flag in flags.items():  # "no" would be true
        check(name, flag, bool)
    for name, text in {"batch_key": batch_key, "layer": layer}.items():
        check(name, text, str | None)
    check("random_state", random_state, Seed | None)
    model_kwargs = check_dict("model_kwargs", model_kwargs) or None
    train_kwargs = check_dict("train_kwargs", train_kwargs) or None
    bar = check("enable_progress_bar", (train_kwargs or {}).get("enable_progress_bar", True), bool)
    if isinstance(ref, AnnData | list | tuple):
        check_training_arguments(METHODS[method], novel, model_kwargs, train_kwargs)
    hierarchy = read_hierarchy(hierarchy)
    params = {
        "labels_key": labels_key if isinstance(labels_key, str) else levels,
        "batch_key": batch_key,
        "layer": layer,
        "novel": novel,
        "risk": risk,
        # arrays, for the names of types may contain "/", which names of slots may not
        "hierarchy": hierarchy
        if hierarchy is None or isinstance(hierarchy, str)
        else {"types": list(hierarchy), "parents": list(hierarchy.values())},
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
        result = train_and_predict(
            adata, ref, METHODS[method], levels[-1], clusters, expected, params
        )
        if tree is not None:  # in place of the one learnt, and saved with the model
            result.model.hierarchy_ = tree(result.model.classes_)
    elif isinstance(ref, list | tuple):
        if adapt:
            raise ValueError("adapt=True needs a single trained model, not several references.")
        result, expected, tree, notes = annotate_with_each(
            adata, ref, METHODS[method], levels, hierarchy, allowed, prior, return_model, params
        )
    else:
        trained = trained_model(ref)
        check_risk(risk, type(trained))
        tree, notes = find_tree(trained, levels, hierarchy)
        expected = find_expected(trained, levels[-1], allowed, prior)
        batch = None if adapt else batch_key
        refuse_training_arguments(trained, method, batch, model_kwargs, train_kwargs)
        if adapt:
            with seeded(random_state):
                adapted = adapt_model(
                    trained, adata, layer=layer, batch_key=batch_key, novel=novel, progress=bar
                )
            result = predict_adapted(adapted, novel, expected)
            if risk is not None:
                notes.append(
                    "risk: measured on the model's held-out cells, by what it said of them before "
                    "it adapted"
                )
        else:
            result = predict(adata, trained, layer, novel, expected, bar)
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


def _expected_params(expected: Expected | None) -> dict[str, Any]:
    """What may be there; names of types are values and never keys, which may not hold a "/"."""
    if expected is None:
        return {}
    if expected.shares is None:
        return {"allowed": expected.names}
    return {"prior": {"types": expected.names, "shares": expected.shares}}
