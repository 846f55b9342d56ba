"""Names and types of all results; the only code that writes to a user's AnnData."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

#: Weights of red, green and blue in the luminance (Rec. 709), and the range of that of new colours.
LUMINANCE, DARKEST, LIGHTEST = np.array([0.2126, 0.7152, 0.0722]), 0.25, 0.7
#: Most bytes of a key: names of files may have 255, and endings are added to it.
LONGEST = 200


def writable(adata: AnnData, copy: bool) -> AnnData:
    """Return the object to write to: a copy, or ``adata`` itself, made actual if it is a view."""
    if not copy and not adata.is_view:
        return adata
    own = adata.to_memory() if adata.isbacked else adata.copy()
    if copy:
        return own
    adata._init_as_actual(own)
    return adata


def in_memory(adata: AnnData) -> None:
    """Bring ``obs`` of an AnnData that was read lazily to memory, so that it can be written to."""
    if not isinstance(adata.obs, pd.DataFrame):
        adata.obs = adata.obs.to_memory()


def check_key(adata: AnnData, key: str, name: str = "key_added") -> None:
    """Refuse a key that no file can store, or that would overwrite what others have written.

    Raises
    ------
    ValueError
        ``key`` is not a string, is empty, too long, or is not a valid name in a file; or slots of
        that name exist that are not an earlier result of sctool, or belong to a result under
        another key.
    """
    if not isinstance(key, str) or not key.strip():
        raise ValueError(f"{name}={key!r}: pass a non-empty string.")
    if "/" in key or "\0" in key or key in (".", "..", "_index"):
        raise ValueError(
            f"{name}={key!r} cannot be the name of a slot in a file: it must not contain '/' or be "
            "'.', '..' or '_index'."
        )
    if (n_bytes := len(key.encode())) > LONGEST:
        raise ValueError(
            f"{name}={key[:20] + '...'!r} has {n_bytes} bytes, too many for the name of a slot in "
            f"a file: pass at most {LONGEST}."
        )
    for other in adata.uns:
        if other == key or not is_result(adata.uns[other]):
            continue
        shared = [c for c in columns(other) if c in columns(key) and c in adata.obs]
        if shared:
            raise ValueError(
                f"{name}={key!r}: adata.obs[{shared[0]!r}] belongs to the result {other!r}. Pass "
                f"another {name}."
            )
    if is_result(adata.uns.get(key)) or _is_left_of_result(adata, key):
        return
    slots = [("uns", key), ("varm", key), ("uns", f"{key}_colors"), ("uns", f"{key}_evaluation")]
    slots += [("obs", column) for column in columns(key)]
    slots += [("obsm", slot) for slot in arrays(key)]
    for where, slot in slots:
        if slot in getattr(adata, where):
            raise ValueError(
                f"{name}={key!r}: adata.{where}[{slot!r}] exists and was not written by sctool. "
                f"Pass another {name}, or delete it first."
            )


def _is_left_of_result(adata: AnnData, key: str) -> bool:
    """Whether the slots under a name of ours are of a result whose ``uns`` was lost.

    ``anndata.concat`` keeps the columns of a result, which come together, but not ``uns``. One
    column alone is the user's.
    """
    if not key.startswith("sctool"):
        return False
    score, given = (adata.obs.get(f"{key}_{ending}") for ending in ("score", "given"))
    annotated = key in adata.obs and score is not None and score.dtype.kind == "f"
    checked = {f"{key}_suggested", f"{key}_suspect"} <= set(adata.obs) and given is not None
    no_column = not any(column in adata.obs for column in columns(key))
    explained = key in adata.varm and no_column
    placed = key.endswith("_umap") and f"X_{key}" in adata.obsm and no_column
    return annotated or checked or explained or placed


def is_result(value: Any) -> bool:
    """Whether an element of ``uns`` is a result of one of the tools."""
    return isinstance(value, Mapping) and ("audit" in value or {"names", "genes"} <= set(value))


def check_whole(adata: AnnData, key: str) -> None:
    """Refuse an annotation whose parts are of several, as ``concat`` may leave them.

    Raises
    ------
    ValueError
        The probabilities have not one column for each type in ``uns[key]["classes"]``.
    """
    n, proba = len(adata.uns[key]["classes"]), adata.obsm.get(f"{key}_proba")
    if proba is not None and proba.shape[1] != n:
        raise ValueError(
            f"adata.obsm['{key}_proba'] has {proba.shape[1]} columns, but adata.uns[{key!r}] names "
            f"{n} types: the parts are of different annotations, as after concat. Annotate the "
            "cells together."
        )


def columns(key: str) -> list[str]:
    """Names of the columns of ``obs`` that hold a result."""
    annotation = ["score", "novel", "novel_score", "status", "safe", "pooled", "ontology_term_id"]
    check = ["given", "suggested", "suspect"]
    return [key, *(f"{key}_{ending}" for ending in (*annotation, *check))]


def arrays(key: str) -> list[str]:
    """Names of the arrays of ``obsm`` that hold a result."""
    return [f"X_{key}", f"{key}_proba", f"{key}_set"]


def clear(adata: AnnData, key: str) -> None:
    """Remove the results of an earlier call under ``key``, so that results are not mixed."""
    in_memory(adata)
    for column in columns(key):
        if column in adata.obs:
            del adata.obs[column]
    for slot in arrays(key):
        adata.obsm.pop(slot, None)
    for slot in (key, f"{key}_colors", f"{key}_evaluation", f"{key}_ontology"):
        adata.uns.pop(slot, None)


def returned(adata: AnnData, model: Any, copy: bool, return_model: bool) -> Any:
    """Select what a tool returns: None, the annotated copy, the model, or both."""
    if copy and return_model:
        return adata, model
    return adata if copy else model if return_model else None


def storable(value: Any) -> Any:
    """Convert a value so that ``write_h5ad`` accepts it in ``uns``; drops None from mappings."""
    if isinstance(value, dict):
        return {str(k): storable(v) for k, v in value.items() if v is not None}
    if isinstance(value, str | bool | int | float | np.ndarray | np.generic):
        return value
    if isinstance(value, list | tuple) and all(isinstance(v, str | int | float) for v in value):
        return np.asarray(value)
    return str(value)


@dataclass(frozen=True)
class Verdicts:
    """What an annotation says beyond the most probable type.

    Attributes
    ----------
    status, reason
        Status of each cell, categorical, and its reason, both (n_cells,).
    sets, safe
        Types that are possible, (n_cells, n_classes) bool, and the most specific name, (n_cells,),
        at the requested risk; None without one.
    pooled, groups
        Codes of the names pooled by the user's groups, (n_cells,), -1 for none, and the table of
        these groups; None without them.
    alarms
        Why the result may be unsafe.
    """

    status: pd.Categorical
    reason: np.ndarray
    sets: np.ndarray | None
    safe: np.ndarray | None
    pooled: np.ndarray | None
    groups: pd.DataFrame | None
    alarms: list[str]


def write_annotation(
    adata: AnnData,
    key: str,
    *,
    classes: list[str],
    novel_classes: list[str],
    novel_table: pd.DataFrame,
    n_novel: dict[str, int] | None,
    colors: dict[str, str],
    proba: np.ndarray,
    latent: np.ndarray,
    novel_score: np.ndarray,
    novel: np.ndarray | None,
    unseen: np.ndarray,
    verdicts: Verdicts,
    params: dict[str, Any],
    versions: dict[str, str],
    audit: list[str],
    terms: Mapping[str, str] | None = None,
    alignment: pd.DataFrame | None = None,
) -> None:
    """Write the results documented in :func:`sctool.tl.annotate`.

    ``alignment`` is the table of the types of several references. ``terms`` are the Cell Ontology
    ids of the types, if they have any. ``unseen`` marks the cells, (n_cells,), that express no gene
    of the model: they get no label.
    """
    clear(adata, key)
    names = [*classes, *novel_classes]
    codes = np.where(unseen, -1, proba.argmax(axis=1))
    adata.obs[key] = pd.Categorical.from_codes(codes, names).remove_unused_categories()
    adata.obs[f"{key}_score"] = np.where(unseen, 0, proba.max(axis=1)).astype(np.float32)
    adata.obs[f"{key}_novel_score"] = np.where(unseen, 0, novel_score).astype(np.float32)
    if novel is not None:
        adata.obs[f"{key}_novel"] = novel.astype(bool) & ~unseen
    status = pd.Series(verdicts.status, index=adata.obs_names)
    adata.obs[f"{key}_status"] = status.cat.remove_unused_categories()
    if verdicts.safe is not None and verdicts.sets is not None:
        safe = pd.Series(verdicts.safe, index=adata.obs_names, dtype=object)
        adata.obs[f"{key}_safe"] = safe.astype("category")
        adata.obsm[f"{key}_set"] = verdicts.sets
    if terms:
        write_terms(adata, key, terms)
    if verdicts.pooled is not None:
        pooled = pd.Categorical.from_codes(verdicts.pooled, names)
        adata.obs[f"{key}_pooled"] = pooled.remove_unused_categories()
    adata.obsm[f"X_{key}"] = latent.astype(np.float32, copy=False)
    adata.obsm[f"{key}_proba"] = np.where(unseen[:, None], 0, proba).astype(np.float32)
    if all(name in colors for name in classes):
        known = [colors[name] for name in classes]
        by_name = dict(zip(names, [*known, *unused_colors(known, len(novel_classes))], strict=True))
        write_colors(adata, key, by_name)
    adata.uns[key] = {
        "classes": np.array(names, dtype=object),
        "params": storable(params),
        "versions": versions,
        "audit": np.array(audit, dtype=object),
        "novel_classes": np.array(novel_classes, dtype=object),
        "novel": novel_table,
        "alarms": np.array(verdicts.alarms, dtype=object),
        "reasons": _reasons(status, verdicts.reason),
    }
    if n_novel is not None:
        adata.uns[key]["n_novel"] = n_novel
    if alignment is not None:
        adata.uns[key]["alignment"] = alignment
    if verdicts.groups is not None:
        adata.uns[key]["groups"] = verdicts.groups


def write_terms(adata: AnnData, key: str, terms: Mapping[str, str]) -> None:
    """Write the Cell Ontology ids of the types in ``obs[key]``, "unknown" where there is none.

    That is the word of the CELLxGENE schema; cells without a type are unknown too.
    """
    names = adata.obs[key].astype(object)
    found = names.map(lambda name: terms.get(str(name).strip(), "unknown"), na_action="ignore")
    adata.obs[f"{key}_ontology_term_id"] = found.fillna("unknown").astype("category")


def is_ontology(value: Any) -> bool:
    """Whether a value of ``uns`` was written by :func:`write_ontology`."""
    return isinstance(value, Mapping) and {"terms", "unmapped", "version"} <= set(value)


def write_ontology(
    adata: AnnData,
    key: str,
    terms: Mapping[str, str],
    table: pd.DataFrame,
    unmapped: list[str],
    version: str,
) -> None:
    """Write the results documented in :func:`sctool.tl.map_to_ontology`."""
    in_memory(adata)
    write_terms(adata, key, terms)
    adata.uns[f"{key}_ontology"] = {
        "terms": table,
        "unmapped": np.array(unmapped, dtype=object),
        "version": version,
    }


def _reasons(status: pd.Series, reason: np.ndarray) -> pd.DataFrame:
    """Status and reason of the cells that are not assigned, by name of the cell."""
    told = (status.notna() & (status != "assigned")).to_numpy()
    columns = {"status": status[told].astype(object), "reason": reason[told]}
    index = pd.Index(status.index[told].astype(str), dtype=object)
    return pd.DataFrame({k: np.asarray(v, dtype=object) for k, v in columns.items()}, index=index)


def write_clusters(
    adata: AnnData,
    key: str,
    *,
    codes: np.ndarray,
    names: list[str],
    score: np.ndarray,
    latent: np.ndarray,
    unseen: np.ndarray,
    n_clusters: dict[str, int],
    params: dict[str, Any],
    versions: dict[str, str],
    audit: list[str],
) -> None:
    """Write the results documented in :func:`sctool.tl.cluster`."""
    clear(adata, key)
    adata.obs[key] = pd.Categorical.from_codes(np.where(unseen, -1, codes), names)
    adata.obs[f"{key}_score"] = np.where(unseen, 0, score).astype(np.float32)
    adata.obsm[f"X_{key}"] = latent.astype(np.float32)
    adata.uns[key] = {
        "n_clusters": n_clusters,
        "params": storable(params),
        "versions": versions,
        "audit": np.array(audit, dtype=object),
    }


def write_reference_check(
    adata: AnnData,
    key: str,
    *,
    used: np.ndarray,
    given: np.ndarray,
    suggested: np.ndarray,
    suspect: np.ndarray,
    names: list[str],
    types: pd.DataFrame,
    pairs: pd.DataFrame,
    params: dict[str, Any],
    versions: dict[str, str],
    audit: list[str],
) -> None:
    """Write the results documented in :func:`sctool.tl.check_reference`.

    ``used`` marks the cells, (n_cells,), that the arrays are about.
    """
    clear(adata, key)

    def of_all(values: np.ndarray, missing: float) -> np.ndarray:
        column = np.full(adata.n_obs, missing, dtype=values.dtype)
        column[used] = values
        return column

    adata.obs[f"{key}_given"] = of_all(given.astype(np.float32), np.nan)
    found = pd.Categorical.from_codes(of_all(suggested, -1), names)
    adata.obs[f"{key}_suggested"] = found.remove_unused_categories()
    adata.obs[f"{key}_suspect"] = of_all(suspect, False)
    adata.uns[key] = {
        "types": types,
        "pairs": pairs,
        "params": storable(params),
        "versions": versions,
        "audit": np.array(audit, dtype=object),
    }


def write_projection(
    adata: AnnData,
    key: str,
    *,
    positions: np.ndarray,
    params: dict[str, Any],
    versions: dict[str, str],
    audit: list[str],
) -> None:
    """Write the results documented in :func:`sctool.tl.project_umap`."""
    clear(adata, key)
    adata.obsm[f"X_{key}"] = positions.astype(np.float32)
    adata.uns[key] = {
        "params": storable(params),
        "versions": versions,
        "audit": np.array(audit, dtype=object),
    }


def write_evaluation(adata: AnnData, key: str, tables: dict[str, pd.DataFrame]) -> None:
    """Write the results documented in :func:`sctool.tl.evaluate`."""
    writable(adata, copy=False).uns[f"{key}_evaluation"] = tables


def unused_colors(used: list[str], n: int) -> list[str]:
    """Return ``n`` of scanpy's colours, neither too light nor too dark, and far from others.

    Each is the one whose nearest colour, of those used or returned before it, is farthest in RGB.
    """
    from matplotlib.colors import to_rgb
    from scanpy.plotting.palettes import default_102

    rgb = np.array([to_rgb(color) for color in default_102])
    luminance = rgb @ LUMINANCE
    legible = np.flatnonzero((luminance > DARKEST) & (luminance < LIGHTEST))
    taken = np.array([to_rgb(color) for color in used] or [(1.0, 1.0, 1.0)])
    distance = ((rgb[legible, None] - taken) ** 2).sum(axis=2).min(axis=1)
    chosen = []
    for _ in range(n):
        farthest = legible[distance.argmax()]
        chosen.append(default_102[farthest])
        distance = np.minimum(distance, ((rgb[legible] - rgb[farthest]) ** 2).sum(axis=1))
    return chosen


def write_colors(adata: AnnData, key: str, colors: dict[str, str]) -> None:
    """Scanpy's colours of a categorical column, in the order of its categories."""
    order = [colors[str(name)] for name in adata.obs[key].cat.categories]
    adata.uns[f"{key}_colors"] = np.array(order, dtype=object)


def rename_novel(adata: AnnData, key: str, names: dict[str, str]) -> None:
    """Rename novel groups, merging those with the same name or that of a known type.

    Cells are matched by name, never by category code: cells, categories and colours may have been
    subset or reordered since. Nothing is written before everything is computed.
    """
    check_whole(adata, key)
    result, values = adata.uns[key], adata.obs[key].astype("category")
    classes = [names.get(str(name), str(name)) for name in result["classes"]]
    merged = list(dict.fromkeys(classes))
    membership = np.array([[name == other for other in merged] for name in classes], np.float32)
    proba = np.asarray(adata.obsm[f"{key}_proba"]) @ membership
    old = [str(name) for name in values.cat.categories]
    new = [names.get(name, name) for name in old]
    categories = list(dict.fromkeys(new))
    codes = np.append(pd.Index(categories).get_indexer(new), -1)[values.cat.codes]
    renamed = pd.Categorical.from_codes(codes, categories)
    column = pd.Index(merged).get_indexer(renamed.astype(object))
    score = np.where(
        column < 0, adata.obs[f"{key}_score"], proba[np.arange(adata.n_obs), column]
    ).astype(np.float32)
    remaining = [name for name in map(str, result["novel_classes"]) if name not in names]
    if remaining:
        novel_score = proba[:, pd.Index(merged).get_indexer(remaining)].sum(axis=1)
    else:  # cells without any probability express no gene of the model
        novel_score = np.where(proba.any(axis=1), 1 - score, 0)
    given = adata.uns.get(f"{key}_colors", [])
    colors: dict[str, str] = dict(
        given if isinstance(given, Mapping) else zip(old, given, strict=False)
    )
    # A known type's own colour stays, where it has one.
    by_name = {str(names.get(name, name)): color for name, color in colors.items()} | colors
    said = ", ".join(f"{before!r} to {after!r}" for before, after in names.items())
    changed: dict[str, Any] = {
        "classes": np.array(merged, dtype=object),
        "novel_classes": np.array(remaining, dtype=object),
        # Merging results may have dropped these.
        "audit": np.array([*result.get("audit", []), f"novel: user renamed {said}"], dtype=object),
    }
    renamed_before = dict(result.get("renamed", {}))
    changed["renamed"] = {**renamed_before, **names}
    if "novel" in result:
        changed["novel"] = result["novel"].loc[remaining]
    known = ~renamed.isin(remaining)
    status = adata.obs.get(f"{key}_status")
    if status is not None and status.notna().any():
        status = status.astype(object).where(~(known & (status == "novel")), "assigned")
        if "reasons" in result:
            reason = pd.Series("", index=adata.obs_names, dtype=object)
            told = result["reasons"]["reason"]
            reason.update(told[~told.index.duplicated()])
            changed["reasons"] = _reasons(status, reason.to_numpy())
    pooled = adata.obs.get(f"{key}_pooled")
    sets = adata.obsm.get(f"{key}_set")

    adata.obs[key] = renamed
    adata.obs[f"{key}_score"] = score
    adata.obs[f"{key}_novel_score"] = novel_score.astype(np.float32)
    adata.obs[f"{key}_novel"] = renamed.isin(remaining)
    adata.obsm[f"{key}_proba"] = proba
    if status is not None:
        adata.obs[f"{key}_status"] = status.astype("category")
    if pooled is not None:
        changed_pooled = pooled.astype(object).map(lambda name: names.get(name, name))
        adata.obs[f"{key}_pooled"] = changed_pooled.astype("category")
    if sets is not None:
        adata.obsm[f"{key}_set"] = (np.asarray(sets) @ membership) > 0
    adata.uns.pop(f"{key}_evaluation", None)
    adata.uns.pop(f"{key}_colors", None)
    if set(categories) <= set(by_name):
        write_colors(adata, key, by_name)
    adata.uns[key] = {**result, **changed}


def renamed(adata: AnnData, names: list[str]) -> dict[str, str]:
    """New names of a model's novel groups, by old name, from the result that has all its types.

    Parameters
    ----------
    names
        Types that the model knows, and its novel groups.
    """
    for value in adata.uns.values():
        new = value.get("renamed", {}) if is_result(value) else {}
        if new and {new.get(name, name) for name in names} == set(map(str, value["classes"])):
            return {old: str(name) for old, name in new.items()}
    return {}


def write_explanation(
    adata: AnnData,
    key: str,
    *,
    names: list[str],
    types: np.ndarray,
    rivals: np.ndarray | None,
    attribution: np.ndarray,
    genes: np.ndarray,
    scores: np.ndarray,
    differences: np.ndarray,
    params: dict[str, Any],
) -> None:
    """Write the results documented in :func:`sctool.tl.explain`."""
    adata.varm[key] = attribution.astype(np.float32)
    adata.uns[key] = {
        "names": np.array(names, dtype=object),
        "types": types,
        **({} if rivals is None else {"rivals": rivals}),
        "genes": genes.astype(object),
        "scores": scores.astype(np.float32),
        "differences": differences.astype(np.float32),
        "params": storable(params),
    }
