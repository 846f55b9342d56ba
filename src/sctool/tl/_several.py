"""One answer from several references: each annotates the query, and the answers are pooled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sctool import _data, _several
from sctool._expected import Expected
from sctool._ontology import map_names
from sctool._sets import UNKNOWN, Calibration, Hierarchy
from sctool.model import METHODS, AnnotationModel, AutoClassifier, Prediction
from sctool.tl._apply import (
    predict,
    refuse_training_arguments,
    reweigh,
    train_and_predict,
)
from sctool.tl._consensus import Consensus
from sctool.tl._judge import Result, check_risk, parse_hierarchy, without_types
from sctool.tl._sources import (
    SURE,
    Source,
    are_unreliable,
    compare_types,
    cross_predict,
    known_types,
    novel_score,
    own_novelty,
    pool_held_out,
    profile_distance,
    read_sources,
    recognised_shares,
    reliabilities,
    retained_confidence,
    single_types,
    transfer_to_others,
)

#: Minimum number of held-out cells to calibrate with.
MIN_CALIBRATION = 20
#: References disagree on a cell if, of the weight of those that know its type, less than this share
#: is on those that give it to the cell.
AGREE = 2 / 3
#: Alarms: types of one name, of at least so many cells that are compared, that other references
#: recognise in a smaller share of them.
MIN_CELLS, OTHER_TYPE = 10, 0.3


def annotate_with_each(
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
    sources = read_sources(refs, levels[0], params["layer"], params["random_state"])
    trained = [s.training for s in sources if isinstance(s.training, AnnotationModel)]
    if risk is not None and len(trained) == len(sources):
        raise ValueError(
            f"risk={risk!r}: trained models hold no labelled cells to measure a risk on; pass at "
            "least one reference with cells."
        )
    check_risk(risk, AutoClassifier)  # cells are held out of any method's references
    known = known_types(sources)
    asked = Expected.read(allowed, prior, known)
    tree, notes = None, list[str]()
    if isinstance(hierarchy, str):
        terms = map_names(known)
        for source in sources:
            terms |= source.terms
        tree, notes = parse_hierarchy(hierarchy, known, terms)
    elif (
        hierarchy is not None
    ):  # of types by their own names, some of which may be groups of others
        above = set(hierarchy.values())
        parse_hierarchy(hierarchy, [name for name in known if name not in above], {})
    if len(trained) == len(sources):
        arguments = [params[name] for name in ("batch_key", "model_kwargs", "train_kwargs")]
        method = next(name for name, known_cls in METHODS.items() if known_cls is cls)
        for model in trained:
            refuse_training_arguments(model, method, *arguments)
    bar = (params["train_kwargs"] or {}).get("enable_progress_bar", True)
    layer = params["layer"]
    having = any(s.has(layer) for s in sources)
    for source in sources:
        ref = source.training
        # a layer that neither this reference nor the query has belongs to the others
        lacking = having and not source.has(layer) and _data.layer_of(adata, layer) is None
        own = params | {"layer": None if lacking else layer}
        try:
            if isinstance(ref, AnnData):
                source.result = train_and_predict(
                    adata, ref, cls, levels[0], None, None, own, source.left_out
                )
            else:
                source.result = predict(adata, ref, own["layer"], novel, None, bar)
        except (KeyError, ValueError) as error:
            if type(error) in (KeyError, ValueError):  # others need other arguments
                raise type(error)(f"{source.name}: {error.args[0]}") from error
            raise
    result, aligned = _answer(adata, sources, params["layer"])
    consensus = result.model
    consensus.preset_ = (params["model_kwargs"] or {}).get("preset", "default")
    parts = _parts(sources, aligned)
    expected = None if asked is None else _of_answer(asked, parts)
    if isinstance(hierarchy, Mapping):
        learnt = without_types(hierarchy, set(known) - set(parts))
        tree, notes = parse_hierarchy(_of_parts(learnt, parts), consensus.classes_, {})
    result.prediction, result.fit = reweigh(consensus, result.prediction, expected)
    if expected is not None and expected.shares is not None:
        unknown = [s.name for s in sources if s.model.class_shares_ is None]
        if unknown:
            result.prediction.audit.append(
                f"prior: {unknown!r} do not say how frequent types were in their training; equal "
                "shares of their types are assumed"
            )
    return result, expected, tree, notes


def _parts(sources: list[Source], aligned: _several.Alignment) -> dict[str, list[str]]:
    """Types of the answer that each type of a reference, by its own name, is or holds."""
    parts: dict[str, list[str]] = {}
    for source, members in zip(sources, aligned.members, strict=True):
        for name, own in zip(source.model.classes_, members, strict=True):
            parts.setdefault(name, []).extend(aligned.names[k] for k in np.flatnonzero(own))
    return {name: list(dict.fromkeys(own)) for name, own in parts.items()}


def _of_answer(asked: Expected, parts: dict[str, list[str]]) -> Expected:
    """What is expected of the types of the answer; parts of a type get equal parts of its share.

    Types that no reference could learn are left out, and raise an alarm of their own.
    """
    given = dict(zip(asked.names, asked.shares or [1.0] * len(asked.names), strict=True))
    shares: dict[str, float] = {}
    for name, share in given.items():
        own = parts.get(name, [])
        for part in own:
            shares[part] = shares.get(part, 0.0) + share / len(own)
    if not shares:
        raise ValueError(f"None of the allowed types {asked.names!r} could be learnt.")
    total = sum(shares.values())
    return Expected(
        list(shares), None if asked.shares is None else [s / total for s in shares.values()]
    )


def _of_parts(hierarchy: Mapping[str, str], parts: dict[str, list[str]]) -> dict[str, str]:
    """The hierarchy of the types of the answer; a type that is a group of them stays one."""
    found: dict[str, str] = {}
    for child, parent in hierarchy.items():
        group = child in hierarchy.values()
        for name in [child] if group else parts[child]:
            found.setdefault(name, parent)
    return found


def _answer(
    adata: AnnData, sources: list[Source], layer: str | None
) -> tuple[Result, _several.Alignment]:
    """Pool what references that have annotated the query say of it."""
    audit = [f"{s.name}: {note}" for s in sources for note in s.result.prediction.audit]
    seen_by = cross_predict(adata, sources, layer, audit)
    types = [s.model.classes_ for s in sources]
    shares = compare_types(sources, seen_by)
    aligned = _several.align(
        [s.name for s in sources], types, [s.model.terms_ for s in sources], shares
    )
    n_compared = [
        np.bincount(s.codes[s.codes >= 0], minlength=len(s.model.classes_)) for s in sources
    ]
    table = aligned.table.assign(
        n_cells=np.concatenate(n_compared), share=recognised_shares(aligned, shares)
    )

    reliability = reliabilities(sources, seen_by)
    labelled = [s.cells is not None for s in sources]
    transfer = transfer_to_others(
        aligned, shares, np.where(labelled, np.nan_to_num(reliability), 0)
    )
    distance = np.array([profile_distance(adata, s, layer) for s in sources])
    weights = _several.weigh(
        reliability,
        transfer,
        retained_confidence(sources, seen_by),
        distance,
        np.stack([own_novelty(s) for s in sources]),
        np.stack([s.result.prediction.unseen for s in sources]),
    )
    of_query = [s.known(s.result.prediction) for s in sources]
    novelty = np.stack([novel_score(s, s.result.prediction) for s in sources])
    known = _several.pool(of_query, aligned.members, weights, novelty)
    believed = weights.mean(axis=1) * ~are_unreliable(reliability)
    proba_held, codes_held, right = pool_held_out(sources, seen_by, aligned, believed)
    calibration, tree = None, None
    if len(codes_held) >= MIN_CALIBRATION:
        temperature = _several.fit_temperature(proba_held, codes_held)
        known = _several.sharpen(known, temperature)
        proba_held = _several.sharpen(proba_held, temperature)
        calibration = Calibration(proba_held, codes_held)
        audit.append(f"references: {len(codes_held)} cells held out; temperature {temperature:.2f}")
        if UNKNOWN not in aligned.names:
            profiles = _several.confusions(proba_held, codes_held)
            tree = Hierarchy.from_profiles(aligned.names, profiles)
    else:
        audit.append(
            f"references: {len(codes_held)} cells could be held out and judged by all references, "
            "too few to fit a temperature to; scores are means that were not calibrated"
        )
    shown = ", ".join(
        f"{s.name!r} {w:.0%}" for s, w in zip(sources, weights.mean(axis=1), strict=True)
    )
    audit.insert(0, f"references: {len(sources)} were pooled, with mean weights of {shown}")

    lead = _lead(sources, aligned)
    groups, novel_classes, novel_table = _novel_groups(sources, aligned, known, lead)
    proba = np.hstack([(1 - groups.sum(axis=1, keepdims=True)) * known, groups])
    judges = [s for s in sources if s.result.novel is not None]
    flags = [np.asarray(s.result.novel) for s in judges if not s.model.novel_classes_]
    novel = None
    if judges:
        novel = proba.argmax(axis=1) >= len(aligned.names)
        if len(flags) == len(judges) and not novel_classes and any(f.any() for f in flags):
            novel = np.logical_and.reduce(flags)
    unseen = np.logical_and.reduce([s.result.prediction.unseen for s in sources])
    consensus = Consensus(
        aligned.names,
        novel_classes,
        _novel_scores(sources, proba),
        _colors(sources, aligned),
        _class_shares(sources, aligned),
        {str(n): i for s in reversed(sources) for n, i in s.model.terms_.items()},
        calibration,
        tree,
        _sensitivity(judges, [aligned.members[sources.index(s)] for s in judges], aligned.names),
    )
    with_shared = [s.result for s in sources if s.result.n_shared]
    with_cells = [s.result for s in sources if s.result.doublets is not None]
    best = lead.result if lead.result.doublets is not None else (with_cells or [lead.result])[0]
    fewest = min(with_shared, key=lambda r: r.n_shared) if with_shared else None
    result = Result(
        consensus,
        Prediction(proba.astype(np.float32), lead.result.prediction.latent, unseen, audit),
        novel,
        None,
        novel_table,
        doublets=_renamed_pairs(best, sources, aligned),
        low_quality=best.low_quality,
        labels=_labels(sources, aligned),
        n_shared=None if fewest is None else fewest.n_shared,
        confused=None if fewest is None else fewest.confused,
        lost=_lost(sources),
        alignment=table,
        disagreement=_disagreement(sources, aligned, of_query, known, weights),
        alarms=[*_alarms(sources, table, reliability), *_alarm_overruled(aligned.names, right)],
    )
    return result, aligned


# -- Novel cells ---------------------------------------------------------------------------------


def _novel_mass(source: Source) -> np.ndarray:
    """Probability of the novel groups, (n_cells,); 0 where other evidence speaks against it."""
    proba = source.result.prediction.proba[:, len(source.model.classes_) :]
    return np.where(source.result.novel, proba.sum(axis=1), 0)


def _lead(sources: list[Source], aligned: _several.Alignment) -> Source:
    """The reference that knows most types, if possible one that groups novel cells."""
    n = [m.any(axis=0).sum() for m in aligned.members]
    grouping = [bool(s.model.novel_classes_) for s in sources]
    trained = [s.cells is not None for s in sources]
    return sources[max(range(len(sources)), key=lambda i: (grouping[i], trained[i], n[i], -i))]


def _novel_groups(
    sources: list[Source], aligned: _several.Alignment, known: np.ndarray, lead: Source
) -> tuple[np.ndarray, list[str], pd.DataFrame]:
    """Probabilities, names and descriptions of the groups that are novel to every reference.

    A cell is as novel as the reference says that finds it least so, and not novel at all if one
    that cannot judge novelty gives it a type that only it knows. Groups are those of one reference.
    """
    judges = [s for s in sources if s.result.novel is not None]
    none: tuple[np.ndarray, list[str], pd.DataFrame]
    none = np.zeros((len(known), 0)), [], lead.result.novel_table.iloc[:0]
    if not judges or not all(s.model.novel_classes_ for s in judges):
        return none
    mass = np.min([_novel_mass(s) for s in judges], axis=0)
    judged = np.any(
        [m.any(axis=0) for s, m in zip(sources, aligned.members, strict=True) if s in judges],
        axis=0,
    )
    mass = np.where(known[:, ~judged].sum(axis=1) > _several.MOST, 0, mass)
    groups = lead.result.prediction.proba[:, len(lead.model.classes_) :].astype(float)
    groups = groups / np.maximum(groups.sum(axis=1, keepdims=True), 1e-12) * mass[:, None]
    best = (1 - mass) * known.max(axis=1)
    n = np.bincount(groups.argmax(axis=1)[groups.max(axis=1) > best], minlength=groups.shape[1])
    kept = [g for g in np.argsort(-n, kind="stable") if n[g] > 0]
    if not kept:
        return none
    free = (x for i in range(1, len(known) + 1) if (x := f"novel_{i}") not in aligned.names)
    names = [next(free) for _ in kept]
    table = lead.result.novel_table.iloc[kept].copy()
    table.index = pd.Index(names, dtype=object)
    table["n_cells"] = n[kept]
    own = aligned.members[sources.index(lead)]
    holds = dict(zip(lead.model.classes_, own, strict=True))
    answer_names = np.array(aligned.names, dtype=object)
    table["nearest"] = [
        _several.JOIN.join(answer_names[holds[t]]) if t in holds else t for t in table["nearest"]
    ]
    return groups[:, kept], names, table


def _novel_scores(sources: list[Source], proba: np.ndarray) -> np.ndarray:
    """The least novelty score of the references that judge it; else 1 - score, (n_cells,)."""
    each = [own_novelty(s) for s in sources if s.result.novel is not None]
    return np.min(each, axis=0) if each else 1 - proba.max(axis=1)


def _sensitivity(
    judges: list[Source], members: list[np.ndarray], names: list[str]
) -> dict[str, float]:
    """Share of a type's cells that would be found if it were hidden: the least of all judges."""
    least: dict[str, float] = {}
    for source, own in zip(judges, members, strict=True):
        for name, share in source.model.sensitivity_.items():
            for k in np.flatnonzero(own[source.model.classes_.index(name)]):
                least[names[k]] = min(least.get(names[k], 1.0), share)
    return least


# -- What is said about the answer ---------------------------------------------------------------


def _disagreement(
    sources: list[Source],
    aligned: _several.Alignment,
    probas: list[np.ndarray],
    known: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """What the references say of cells on which they disagree, "" for others, (n_cells,)."""
    best = known.argmax(axis=1)
    own = [p.argmax(axis=1) for p in probas]
    known_to: list[np.ndarray] = [np.asarray(m.any(axis=0)) for m in aligned.members]
    knows = np.stack([k[best] for k in known_to])
    says = np.stack([m[o, best] for m, o in zip(aligned.members, own, strict=True)])
    total = (weights * knows).sum(axis=0)
    differ = np.flatnonzero((weights * says).sum(axis=0) < AGREE * total)
    text = np.full(len(known), "", dtype=object)
    for c in differ:
        said = [
            f"{s.name} says {s.model.classes_[o[c]]}" for s, o in zip(sources, own, strict=True)
        ]
        text[c] = "references disagree: " + ", ".join(said)
    return text


def _alarms(sources: list[Source], table: pd.DataFrame, reliability: np.ndarray) -> list[str]:
    """References and types to be checked."""
    alarms, unreliable = [], are_unreliable(reliability)
    best = np.nanmax(np.append(reliability, 0))
    for source, kappa, is_bad in zip(sources, reliability, unreliable, strict=True):
        if is_bad:
            alarms.append(
                f"references: the labels of {source.name!r} are hardly found again in its own "
                f"held-out cells (kappa {kappa:.2f}, another reference {best:.2f}"
                "): they may be wrong, and count little"
            )
    for source in sources:
        for name, n in source.twice.items():
            alarms.append(
                f"references: about {n} cells are in both {name!r} and {source.name!r}. They count "
                "twice, and those held out of one are known to the other, so that scores and names "
                "at a risk are surer than they should be. Leave them out of one"
            )
    bad = [s.name for s, is_bad in zip(sources, unreliable, strict=True) if is_bad]
    other = table[(table["share"] < OTHER_TYPE) & table["how"].isin(["name", "ontology"])]
    other = other[(other["n_cells"] >= MIN_CELLS) & ~other["reference"].isin(bad)]
    if len(sources) - len(bad) < 2:
        other = other.iloc[:0]
    if len(other):
        each = ", ".join(
            f"{row.type!r} of {row.reference!r} {row.share:.0%}" for row in other.itertuples()
        )
        alarms.append(
            "references: types of the same name that other references take for something else; "
            f"cells recognised: {each}. Rename one of them if they are different types"
        )
    by_cells = table[(table["how"] == "cells") & (table["share"] < SURE)]
    if len(by_cells):
        each = ", ".join(
            f"{row.type!r} of {row.reference!r} is {row.name!r} ({row.share:.0%})"
            for row in by_cells[["type", "reference", "name", "share"]].itertuples(index=False)
        )
        alarms.append(
            "references: types that were matched by their cells alone, of which so many are "
            f"recognised: {each}. Rename them if they are different types"
        )
    return alarms


def _alarm_overruled(names: list[str], right: np.ndarray) -> list[str]:
    """Types that a reference recognises alone and the answer does not, as others lack them.

    ``right``: held-out cells of each type, and how many are named right alone and together.
    """
    n, alone, together = right.T
    lost = (n >= MIN_CELLS) & (alone > n / 2) & (together < alone / 2)
    if not lost.any():
        return []
    each = ", ".join(f"{names[t]!r} {together[t] / n[t]:.0%}" for t in np.flatnonzero(lost))
    return [
        "references: held-out cells that their own reference recognises are called something else "
        f"by all together, for the others lack the type or disagree; recognised: {each}. "
        "Join the cells of the references into one, or annotate with each alone and compare"
    ]


def _lost(sources: list[Source]) -> list[str]:
    """Types that no reference could learn."""
    learnt = {name for s in sources for name in s.model.classes_}
    return sorted({name for s in sources for name in s.result.lost} - learnt)


def _colors(sources: list[Source], aligned: _several.Alignment) -> dict[str, str]:
    """The first colour that a reference has for each type of the answer."""
    colors: dict[str, str] = {}
    for source, members in zip(sources, aligned.members, strict=True):
        for name, k in zip(source.model.classes_, single_types(members), strict=True):
            if k >= 0 and name in source.model.class_colors_:
                colors.setdefault(aligned.names[k], source.model.class_colors_[name])
    return colors


def _class_shares(sources: list[Source], aligned: _several.Alignment) -> list[float]:
    """Mean share of each type in training, in equal parts for what a coarser type holds.

    Models that do not say it count as trained on equal shares: without them, types that only they
    know would seem to have had no cells at all.
    """
    each = []
    for source, members in zip(sources, aligned.members, strict=True):
        own = source.model.class_shares_
        shares = np.full(len(members), 1 / len(members)) if own is None else np.asarray(own)
        each.append(shares / members.sum(axis=1) @ members)
    return list(np.mean(each, axis=0))


def _labels(sources: list[Source], aligned: _several.Alignment) -> np.ndarray | None:
    """Types of all labelled cells, for alarms about their number; None if no model was trained."""
    each = [
        single_types(m)[s.result.labels]
        for s, m in zip(sources, aligned.members, strict=True)
        if s.result.labels is not None
    ]
    if not each:
        return None
    labels = np.concatenate(each)
    return labels[labels >= 0]


def _renamed_pairs(result: Result, sources: list[Source], aligned: _several.Alignment) -> Any:
    """Evidence on doublets, with the types of the answer."""
    if result.doublets is None:
        return None
    i = next(i for i, s in enumerate(sources) if s.result is result)
    codes = np.append(aligned.members[i].argmax(axis=1), -1)
    return replace(result.doublets, pair=codes[result.doublets.pair])
