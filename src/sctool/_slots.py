"""Names and types of all results; the only code that writes to a user's AnnData."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData


def writable(adata: AnnData, copy: bool) -> AnnData:
    """Return the object to write to: a copy, or ``adata`` itself, made actual if it is a view."""
    if not copy and not adata.is_view:
        return adata
    own = adata.to_memory() if adata.isbacked else adata.copy()
    if copy:
        return own
    adata._init_as_actual(own)
    return adata


def clear(adata: AnnData, key: str) -> None:
    """Remove the results of an earlier call under ``key``, so that results are not mixed."""
    for column in (key, f"{key}_score", f"{key}_novel", f"{key}_novel_score"):
        if column in adata.obs:
            del adata.obs[column]
    for slot in (f"X_{key}", f"{key}_proba"):
        adata.obsm.pop(slot, None)
    for slot in (key, f"{key}_colors", f"{key}_evaluation"):
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


def write_annotation(
    adata: AnnData,
    key: str,
    *,
    classes: list[str],
    novel_classes: list[str],
    novel_table: pd.DataFrame | None,
    n_novel: dict[str, int] | None,
    colors: dict[str, str],
    proba: np.ndarray,
    latent: np.ndarray,
    novel_score: np.ndarray,
    novel: np.ndarray | None,
    params: dict[str, Any],
    versions: dict[str, str],
    audit: list[str],
) -> None:
    """Write the results documented in :func:`sctool.tl.annotate`."""
    clear(adata, key)
    names = [*classes, *novel_classes]
    adata.obs[key] = pd.Categorical.from_codes(proba.argmax(axis=1), names)
    adata.obs[f"{key}_score"] = proba.max(axis=1).astype(np.float32)
    adata.obs[f"{key}_novel_score"] = novel_score.astype(np.float32)
    if novel is not None:
        adata.obs[f"{key}_novel"] = novel.astype(bool)
    adata.obsm[f"X_{key}"] = latent.astype(np.float32)
    adata.obsm[f"{key}_proba"] = proba.astype(np.float32)
    if all(name in colors for name in classes):
        known = [colors[name] for name in classes]
        adata.uns[f"{key}_colors"] = np.array(
            [*known, *unused_colors(known, len(novel_classes))], dtype=object
        )
    adata.uns[key] = {
        "classes": np.array(names, dtype=object),
        "params": storable(params),
        "versions": versions,
        "audit": np.array(audit, dtype=object),
    }
    if novel_classes:
        adata.uns[key]["novel_classes"] = np.array(novel_classes, dtype=object)
    if novel_table is not None:
        adata.uns[key]["novel"] = novel_table
    if n_novel is not None:
        adata.uns[key]["n_novel"] = n_novel


def write_clusters(
    adata: AnnData,
    key: str,
    *,
    codes: np.ndarray,
    names: list[str],
    score: np.ndarray,
    latent: np.ndarray,
    n_clusters: dict[str, int],
    params: dict[str, Any],
    versions: dict[str, str],
    audit: list[str],
) -> None:
    """Write the results documented in :func:`sctool.tl.cluster`."""
    clear(adata, key)
    adata.obs[key] = pd.Categorical.from_codes(codes, names)
    adata.obs[f"{key}_score"] = score.astype(np.float32)
    adata.obsm[f"X_{key}"] = latent.astype(np.float32)
    adata.uns[key] = {
        "n_clusters": n_clusters,
        "params": storable(params),
        "versions": versions,
        "audit": np.array(audit, dtype=object),
    }


def write_evaluation(adata: AnnData, key: str, tables: dict[str, pd.DataFrame]) -> None:
    """Write the results documented in :func:`sctool.tl.evaluate`."""
    writable(adata, copy=False).uns[f"{key}_evaluation"] = tables


def unused_colors(used: list[str], n: int) -> list[str]:
    """Return ``n`` of scanpy's colours, unused ones as long as there are any."""
    from scanpy.plotting.palettes import default_102

    taken = {color.lower()[:7] for color in used}
    free = [color for color in default_102 if color.lower()[:7] not in taken] or list(default_102)
    return [free[i % len(free)] for i in range(n)]


def rename_novel(adata: AnnData, key: str, names: dict[str, str]) -> None:
    """Rename novel groups, merging those with the same name or that of a known type."""
    result = adata.uns[key]
    old = [str(name) for name in result["classes"]]
    novel = [str(name) for name in result["novel_classes"]]
    renamed = [names.get(name, name) for name in old]
    new = list(dict.fromkeys(renamed))
    proba = adata.obsm[f"{key}_proba"]
    merged = np.zeros((len(proba), len(new)), dtype=np.float32)
    for column, name in enumerate(renamed):
        merged[:, new.index(name)] += proba[:, column]
    codes = np.array([new.index(name) for name in renamed])[adata.obs[key].cat.codes]
    remaining = [name for name in novel if name not in names]
    adata.obs[key] = pd.Categorical.from_codes(codes, new)
    adata.obs[f"{key}_score"] = merged[np.arange(len(codes)), codes]
    adata.obs[f"{key}_novel"] = adata.obs[key].isin(remaining).to_numpy()
    adata.obsm[f"{key}_proba"] = merged
    if f"{key}_colors" in adata.uns:
        first = [renamed.index(name) for name in new]
        adata.uns[f"{key}_colors"] = np.asarray(adata.uns[f"{key}_colors"], dtype=object)[first]
    result["classes"] = np.array(new, dtype=object)
    for slot, value in (
        ("novel_classes", np.array(remaining, dtype=object)),
        ("novel", result["novel"].loc[remaining] if "novel" in result else None),
    ):
        if remaining and value is not None:
            result[slot] = value
        else:
            result.pop(slot, None)
    said = ", ".join(f"{old!r} to {new!r}" for old, new in names.items())
    result["audit"] = np.array([*result["audit"], f"novel: user renamed {said}"], dtype=object)


def write_explanation(
    adata: AnnData,
    key: str,
    *,
    names: list[str],
    attribution: np.ndarray,
    genes: np.ndarray,
    scores: np.ndarray,
    params: dict[str, Any],
) -> None:
    """Write the results documented in :func:`sctool.tl.explain`."""
    adata.varm[key] = attribution.astype(np.float32)
    adata.uns[key] = {
        "names": np.array(names, dtype=object),
        "genes": genes.astype(object),
        "scores": scores.astype(np.float32),
        "params": storable(params),
    }
