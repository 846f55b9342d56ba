"""What an annotation says beyond the most probable type: status, safe and pooled names, alarms."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sctool import _data, _slots
from sctool._expected import Expected, Fit
from sctool._ontology import cell_ontology, map_names, nested_groups
from sctool._quality import Doublets, LowQuality
from sctool._sets import UNKNOWN, Calibration, Hierarchy, label_shift, prediction_sets, safe_names
from sctool._verdicts import (
    STATUSES,
    alarm_agreement,
    alarm_genes,
    alarm_labels,
    alarm_lost,
    alarm_prior,
    alarm_programmes,
    alarm_sensitivity,
    alarm_shares,
    alarm_shift,
    alarm_unexpected,
    cell_status,
    describe_groups,
    pool_names,
)
from sctool.model import AnnotationModel, AutoClassifier, Prediction
from sctool.tl._consensus import Consensus

logger = logging.getLogger("sctool")

#: The hierarchy that is taken from the Cell Ontology.
ONTOLOGY = "ontology"


@dataclass
class Result:
    """The prediction for all cells of the query, and what only training can tell about them.

    Attributes
    ----------
    novel
        Whether cells are called novel, (n_cells,); None if that is not judged.
    fit
        How the cells fit the types that may be there; None if all may.
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
    confused
        Pairs of types that these genes hardly tell apart, if they are few.
    lost
        Types of the reference whose cells express none of them.
    alignment, disagreement, alarms
        Of several references: the table of their types; what they say of each cell on which they
        disagree, else "", (n_cells,); and what raises an alarm.
    """

    model: AnnotationModel | Consensus
    prediction: Prediction
    novel: np.ndarray | None
    fit: Fit | None
    novel_table: pd.DataFrame
    group_table: pd.DataFrame | None = None
    doublets: Doublets | None = None
    low_quality: LowQuality | None = None
    labels: np.ndarray | None = None
    by_group: np.ndarray | None = None
    n_shared: int | None = None
    confused: pd.DataFrame | None = None
    lost: Sequence[str] = ()
    alignment: pd.DataFrame | None = None
    disagreement: np.ndarray | None = None
    alarms: Sequence[str] = ()


def check_risk(risk: float | None, cls: type[AnnotationModel]) -> None:
    if risk is None:
        return
    if not isinstance(risk, Real) or not 0 < risk < 1:
        raise ValueError(f"risk={risk!r} must lie between 0 and 1, for example 0.05.")
    if not issubclass(cls, AutoClassifier):
        raise ValueError(
            f"risk={risk!r}: {cls.__name__} holds out no labelled cells to measure a risk on; use "
            "method='auto', or its model."
        )


def read_hierarchy(hierarchy: Any) -> dict[str, str] | str | None:
    """The user's hierarchy with names that are text, as those of types are.

    Raises
    ------
    TypeError
        It is neither a dictionary nor a text, or a parent is no name.
    ValueError
        The parent of a name is missing.
    """
    if hierarchy is None or isinstance(hierarchy, str):
        return hierarchy
    if not isinstance(hierarchy, Mapping):
        raise TypeError(
            f"hierarchy={hierarchy!r}: pass a dictionary, {{child: parent}}, or {ONTOLOGY!r}."
        )
    given = list(hierarchy.values())
    if wrong := [p for p in given if not isinstance(p, str | Real | None)]:
        raise TypeError(f"hierarchy has {wrong[0]!r} as a parent: pass a name for each.")
    names = [str(name).strip() for name in hierarchy]
    parents = _data.clean_labels(pd.Series(given, dtype=object))
    if without := [name for name, code in zip(names, parents.codes, strict=True) if code < 0]:
        raise ValueError(
            f"hierarchy names no parent for {without!r}. Leave names without a parent out."
        )
    if len(set(names)) < len(names):
        raise ValueError(f"hierarchy has names that are equal as text: {names!r}.")
    return dict(zip(names, map(str, parents), strict=True))


def find_tree(
    ref: AnnData | AnnotationModel, levels: list[str], hierarchy: Mapping[str, str] | str | None
) -> tuple[Callable[[list[str]], Hierarchy] | None, list[str]]:
    """How to build the user's hierarchy of some types, None if there is none; and audit notes.

    Built once before training, so that what is wrong with it is said at once; the model may have
    fewer types. A trained model keeps the hierarchy that it was trained with.
    """
    if hierarchy is not None and len(levels) > 1:
        raise ValueError("hierarchy and several labels_key were given: pass one of them.")
    if hierarchy is None and len(levels) == 1:
        return None, []
    if not isinstance(ref, AnnData):
        if hierarchy is None:
            raise ValueError(
                f"labels_key={levels!r}: ref is a trained model, which has no columns. Leave "
                "labels_key out to use the hierarchy that it was trained with, or pass hierarchy."
            )
        types, labels = ref.classes_, pd.DataFrame()
    else:
        columns = {
            level: _data.clean_labels(_data.obs_column(ref, level, "labels_key", "ref"))
            for level in levels
        }
        types = list(map(str, columns[levels[-1]].categories))
        labels = pd.DataFrame({name: v.astype(object) for name, v in columns.items()})

    if hierarchy is not None:
        asked = isinstance(hierarchy, str)
        return parse_hierarchy(hierarchy, types, _terms(ref, levels[-1], types) if asked else {})
    _, notes = Hierarchy.from_levels(types, labels)
    return lambda types: Hierarchy.from_levels(types, labels)[0], notes


def parse_hierarchy(
    hierarchy: Mapping[str, str] | str, types: list[str], terms: Mapping[str, str | None]
) -> tuple[Callable[[list[str]], Hierarchy], list[str]]:
    """How to build the hierarchy that the user gives of some types, and audit notes.

    Parameters
    ----------
    terms
        Ids of the types in the Cell Ontology, if the hierarchy is to be taken from it.
    """
    if isinstance(hierarchy, str):
        groups, note = _ontology_groups(hierarchy, types, terms)
        return lambda types: Hierarchy.from_groups(types, groups), [note]
    Hierarchy.from_parents(types, hierarchy)
    return (
        lambda learnt: Hierarchy.from_parents(
            learnt, without_types(hierarchy, set(types) - set(learnt))
        )
    ), []


def without_types(hierarchy: Mapping[str, str], gone: set[str]) -> dict[str, str]:
    """The hierarchy without types that could not be learnt, and without groups of these alone."""
    kept = {child: parent for child, parent in hierarchy.items() if child not in gone}
    empty = set(hierarchy.values()) & set(kept) - set(kept.values())
    return without_types(kept, empty) if empty else kept


def given_terms(ref: AnnData, labels_key: str) -> dict[str, str]:
    """Terms of types by the column of ids beside their labels, as in files of CELLxGENE.

    A type's most common id that the ontology has counts.
    """
    column = f"{labels_key}_ontology_term_id"
    if column not in ref.obs:
        return {}
    ids = _data.obs_column(ref, column, "labels_key", "ref").astype(str).str.replace("_", ":")
    labels = np.asarray(_data.clean_labels(_data.obs_column(ref, labels_key, "labels_key", "ref")))
    valid = ids.isin(cell_ontology().labels).to_numpy() & ~pd.isna(labels)
    by_type = ids[valid].groupby(labels[valid].astype(str))
    return {str(name): str(own.mode()[0]) for name, own in by_type}


def _terms(
    ref: AnnData | AnnotationModel, labels_key: str, types: list[str]
) -> dict[str, str | None]:
    """Term of each type: that of the model or of the column of ids, or that of its name."""
    own = given_terms(ref, labels_key) if isinstance(ref, AnnData) else ref.terms_
    return map_names(types) | {name: own[name] for name in types if name in own}


def _ontology_groups(
    asked: str, types: list[str], terms: Mapping[str, str | None]
) -> tuple[list[tuple[str, list[str]]], str]:
    """Named groups of types in the Cell Ontology, and an audit note."""
    if asked != ONTOLOGY:
        raise ValueError(f"hierarchy={asked!r}: pass {ONTOLOGY!r}, or the parent of each type.")
    groups = nested_groups(terms, cell_ontology())
    unknown = [name for name in types if terms[name] is None]
    if not groups:
        raise ValueError(
            f"hierarchy={asked!r}: the Cell Ontology has no name for any group of these types. "
            f"Types without a term: {unknown!r}. Give them terms with "
            "sctool.tl.map_to_ontology(ref, labels_key, mapping=...), or pass the parent of each."
        )
    note = f"hierarchy: {len(groups)} groups of types with a name in the Cell Ontology"
    return groups, note + (f"; not in it, and in no group: {unknown!r}" if unknown else "")


def find_expected(
    ref: AnnData | AnnotationModel,
    labels_key: str,
    allowed: Iterable[str] | None,
    prior: Mapping[str, float] | None,
) -> Expected | None:
    """Which types the user says may be there, checked before training; None if all may."""
    if allowed is None and prior is None:
        return None
    if isinstance(ref, AnnotationModel):
        return Expected.read(allowed, prior, ref.classes_)
    column = _data.obs_column(ref, labels_key, "labels_key", "ref")
    types = list(map(str, _data.clean_labels(column).categories))
    return Expected.read(allowed, prior, types)


def judge(
    result: Result,
    clusters: pd.Categorical | None,
    risk: float | None,
    tree: Callable[[list[str]], Hierarchy] | None,
) -> _slots.Verdicts:
    """Status, safe names, pooled names and alarms."""
    model, prediction, fit = result.model, result.prediction, result.fit
    seen, n_known = ~prediction.unseen, len(model.classes_)
    names = np.where(seen, prediction.proba.argmax(axis=1), -1)
    score = prediction.proba.max(axis=1)
    is_known = seen & (names < n_known)
    known = prediction.proba[:, :n_known].astype(float)
    known /= np.maximum(known.sum(axis=1, keepdims=True), 1e-12)
    calibration = _expected_cells(model.calibration_, fit)
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
            which = "too few cells" if result.alignment is not None else "no cell"
            alarms.append(
                "risk: no name is safe, because "
                + ("a type is called 'unknown'" if calibration else f"{which} could be held out")
                + ("" if fit is None or calibration else " of these types")
            )
        elif is_known.any():
            sets[np.ix_(is_known, np.arange(n_known))] = prediction_sets(
                known[is_known], calibration, risk
            )
            safe[is_known] = safe_names(known[is_known], calibration, hierarchy, risk)[0]
            if fit is not None:
                sets[:, :n_known] &= fit.weights > 0
                elsewhere = is_known & fit.unexpected
                sets[elsewhere, :n_known], safe[elsewhere] = True, UNKNOWN
            specific[is_known] = np.isin(safe[is_known], model.classes_)
        safe[~seen] = None

    code, reason = cell_status(
        score,
        result.novel,
        fit,
        safe,
        specific,
        result.doublets,
        result.low_quality,
        model.classes_,
        result.disagreement,
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
        few = alarm_genes(result.n_shared, result.confused)
        prediction.audit.extend(few)
        alarms += few
    alarms += [*alarm_lost(result.lost), *result.alarms]
    if fit is not None:
        alarms += alarm_unexpected(fit, is_known, model.classes_) + alarm_prior(fit, model.classes_)
    if calibration is not None:
        alarms += alarm_shift(known[is_known].max(axis=1), calibration.proba.max(axis=1))
    if result.labels is not None:
        few = alarm_labels(result.labels, model.classes_)
        prediction.audit.extend(few)
        alarms += few
        if fit is None or fit.expected is None:  # shares that are given are no surprise
            labels = result.labels if fit is None else result.labels[fit.weights[result.labels] > 0]
            alarms += alarm_shares(names[is_known], labels, corrected, model.classes_)
    if result.by_group is not None:
        both = is_known & (result.by_group >= 0) & (result.by_group < n_known)
        if fit is not None:  # groups of types that are not allowed contradict any name
            both[both] &= fit.weights[result.by_group[both]] > 0
        alarms += alarm_agreement(names[both], result.by_group[both], model.classes_)
    if result.by_group is not None or result.alignment is not None:  # measured on these cells
        alarms += alarm_sensitivity(model.sensitivity_)
    alarms += alarm_programmes(result.novel_table)
    for alarm in alarms:
        logger.warning("%s.", alarm)
    return _slots.Verdicts(status, reason, sets, safe, pooled, groups, alarms)


def _expected_cells(calibration: Calibration | None, fit: Fit | None) -> Calibration | None:
    """The held-out cells of types that may be there, with probabilities like the query's."""
    if calibration is None or fit is None:
        return calibration
    kept = fit.weights[calibration.codes] > 0
    if not kept.any():
        return None
    return Calibration(fit.reweigh(calibration.proba[kept]), calibration.codes[kept])
