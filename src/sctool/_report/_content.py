"""From an annotated AnnData to the tables and sentences of the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sctool import _slots
from sctool._report import _words
from sctool._sets import UNKNOWN

#: Quantiles of the score that are shown for each type.
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}
#: Reasons listed for each status.
N_REASONS = 3
#: Cells without a type.
UNNAMED = "(no type)"


@dataclass(frozen=True)
class Content:
    """What the report says.

    Attributes
    ----------
    key
        Key of the annotation.
    summary
        Sentences.
    alarms
        Reasons why the result may be wrong, and what to do about each.
    cells
        One row per cell: "type", categorical, and "score"; "status" and "novel_score" if the
        annotation has them.
    types
        One row per type: "color", "n_cells", "share", whether it "is_novel", number of cells of
        each status, quantiles of the score, share of scores "below_half".
    statuses
        One row per status: "label", "meaning", "advice", "n_cells", "share", most frequent
        "reasons". No rows if the annotation has no status.
    colors
        Colour of each type, hexadecimal.
    expected_error
        Share of the known types' cells whose name is wrong if the score is calibrated.
    evaluation
        Scores against known types, with what they mean.
    risk, safe
        The risk that was asked for; and one row per safe name: "n_cells", "share", "kind" ("type",
        "group of types" or "unknown"). None and no rows without a risk.
    groups, novel
        Tables of the user's groups and of the novel groups; no rows if there are none.
    n_novel
        Estimated number of novel types, as a sentence; empty if none was estimated.
    audit
        Topics, how to read them, and their notes.
    call, params, versions
        The call, what was recorded of it, and the versions of packages.
    """

    key: str
    summary: list[str]
    alarms: list[tuple[str, str]]
    cells: pd.DataFrame
    types: pd.DataFrame
    statuses: pd.DataFrame
    colors: dict[str, str]
    expected_error: float
    evaluation: list[tuple[str, float, str]]
    risk: float | None
    safe: pd.DataFrame
    groups: pd.DataFrame
    novel: pd.DataFrame
    n_novel: str
    audit: list[tuple[str, str, list[str]]]
    call: str
    params: dict[str, Any]
    versions: dict[str, str]


def describe(adata: AnnData, key: str) -> Content:
    """Describe an annotation; see :class:`Content`.

    Raises
    ------
    KeyError
        ``key`` was not written by :func:`sctool.tl.annotate`, or its columns are missing.
    ValueError
        There are no cells.
    """
    result = _annotation(adata, key)
    obs = adata.obs if isinstance(adata.obs, pd.DataFrame) else adata.obs.to_memory()
    cells = _cells(obs, key)
    novel_classes = [str(name) for name in result.get("novel_classes", [])]
    colors = _colors(adata, key, list(cells["type"].cat.categories))
    types = count_types(cells, novel_classes)
    types.insert(0, "color", pd.Series(colors))
    statuses = count_statuses(cells, result.get("reasons"))
    novel = _novel_groups(result, types)
    alarms = _words.advise(result.get("alarms", []))
    params = {str(name): _words.plain(value) for name, value in result.get("params", {}).items()}
    known = ~cells["type"].isin([*novel_classes, UNNAMED])
    return Content(
        key=key,
        summary=summarize(types, statuses, len(novel), len(alarms)),
        alarms=alarms,
        cells=cells,
        types=types,
        statuses=statuses,
        colors=colors,
        expected_error=float((1 - cells["score"][known]).mean()),
        evaluation=_evaluation(adata.uns.get(f"{key}_evaluation", {})),
        risk=params.get("risk"),
        safe=_safe_names(obs.get(f"{key}_safe"), [str(name) for name in result["classes"]]),
        groups=result.get("groups", pd.DataFrame()),
        novel=novel,
        n_novel=_number_of_types(result.get("n_novel")),
        audit=_words.sort_audit(result.get("audit", [])),
        call=_words.call(params, key) if params else "",
        params=params,
        versions={str(k): str(v) for k, v in result.get("versions", {}).items()},
    )


def count_types(cells: pd.DataFrame, novel_classes: list[str]) -> pd.DataFrame:
    """Numbers of cells and confidence of each type, the most frequent first; see ``Content``."""
    by_type = cells.groupby("type", observed=True)
    n = by_type.size()
    score = by_type["score"]
    table = pd.DataFrame({"n_cells": n, "share": n / len(cells)})
    table["is_novel"] = table.index.isin(novel_classes)
    if "status" in cells:
        status = cells["status"].cat.categories
        table[list(status)] = pd.crosstab(cells["type"], cells["status"]).reindex(
            index=table.index, columns=status, fill_value=0
        )
    for name, q in QUANTILES.items():
        table[name] = score.quantile(q)
    table["below_half"] = (cells["score"] < 0.5).groupby(cells["type"], observed=True).mean()
    table.index = table.index.astype(object)
    return table.sort_values("n_cells", ascending=False, kind="stable")


def count_statuses(cells: pd.DataFrame, reasons: pd.DataFrame | None) -> pd.DataFrame:
    """Number of cells of each status that occurs, and its most frequent reasons."""
    columns = ["label", "meaning", "advice", "n_cells", "share", "reasons"]
    if "status" not in cells:
        return pd.DataFrame(columns=columns)
    told = pd.DataFrame(columns=["status", "reason"]) if reasons is None else reasons
    told = told[told.index.isin(cells.index)]  # cells may have been removed since
    rows = {}
    for name, n in cells["status"].value_counts(sort=False).items():
        label, meaning, advice = _words.STATUS_WORDS.get(str(name), (str(name), "", ""))
        often = told["reason"][told["status"] == name].map(_words.short_reason).value_counts()
        often = list(often.head(N_REASONS).items()) if name != "novel" else []
        rows[str(name)] = [label, meaning, advice, int(n), n / len(cells), often]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def summarize(
    types: pd.DataFrame, statuses: pd.DataFrame, n_novel: int, n_alarms: int
) -> list[str]:
    """The result in a few sentences."""
    named = types.drop(index=UNNAMED, errors="ignore")
    n_cells, n_named = int(types["n_cells"].sum()), int(named["n_cells"].sum())
    n_known = int((~named["is_novel"]).sum())
    found = [_words.some(n_known, "known cell type")]
    if n_novel:
        found.append(_words.some(n_novel, "novel group"))
    said = [f"{_words.some(n_cells, 'cell')}: {_words.join_words(found)}."]
    if len(named):
        most = [
            f"{name} ({_words.percent(share)})" for name, share in named["share"].head(3).items()
        ]
        said.append(f"The most frequent: {_words.join_words(most)}.")
    if len(statuses):
        each = [
            f"{_words.percent(row.share)} {row.label}"
            for row in statuses.itertuples()
            if row.n_cells
        ]
        said.append(f"By status: {_words.join_words(each)}.")
    if n_named < n_cells:
        said.append(
            f"{_words.some(n_cells - n_named, 'cell')} without a type, for they express none of "
            "the genes that were used."
        )
    if n_alarms:
        said.append(f"{_words.some(n_alarms, 'alarm')} to look at first.")
    return said


def _annotation(adata: AnnData, key: str) -> Mapping[str, Any]:
    """The entry of ``uns`` of an annotation."""
    result = adata.uns.get(key)
    if not (_slots.is_result(result) and "classes" in result):  # type: ignore[operator]
        others = [k for k, v in adata.uns.items() if _slots.is_result(v) and "classes" in v]
        raise KeyError(
            f"key={key!r} is not an annotation in adata: "
            + (
                f"found the annotations {others!r}."
                if others
                else "found none. Call sctool.tl.annotate first."
            )
        )
    for column in (key, f"{key}_score"):
        if column not in adata.obs:
            raise KeyError(
                f"adata.obs[{column!r}] is missing, but the report needs it: call "
                "sctool.tl.annotate again."
            )
    if adata.n_obs == 0:
        raise ValueError(f"adata has no cells: found shape {adata.shape}.")
    _slots.check_whole(adata, key)
    return result  # type: ignore[return-value]


def _cells(obs: pd.DataFrame, key: str) -> pd.DataFrame:
    """Type, score and, if they were written, status and novelty score of each cell."""
    named = obs[key].astype("category")
    named = named.cat.rename_categories(lambda name: str(name)).cat.remove_unused_categories()
    if named.isna().any():
        named = named.cat.add_categories(UNNAMED).fillna(UNNAMED)
    cells = pd.DataFrame({"type": named, "score": obs[f"{key}_score"].astype(float)})
    if f"{key}_novel_score" in obs:
        cells["novel_score"] = obs[f"{key}_novel_score"].astype(float)
    if f"{key}_status" in obs:
        status = obs[f"{key}_status"].astype(object)
        others = sorted({str(name) for name in status.dropna()} - set(_words.STATUS_WORDS))
        order = [name for name in _words.STATUS_WORDS if (status == name).any()] + others
        cells["status"] = pd.Categorical(status, order)
    return cells


def _colors(adata: AnnData, key: str, names: list[str]) -> dict[str, str]:
    """The colour of each type: those that scanpy shows, or else those that it would choose."""
    from matplotlib.colors import is_color_like, to_hex
    from scanpy.plotting import palettes

    palette = palettes.default_20 if len(names) <= 20 else palettes.default_102
    colors = {name: palette[i % len(palette)] for i, name in enumerate(names)}
    given = adata.uns.get(f"{key}_colors", [])
    categories = adata.obs[key].astype("category").cat.categories.astype(str)
    pairs = given.items() if isinstance(given, Mapping) else zip(categories, given, strict=False)
    colors |= {str(k): v for k, v in pairs if str(k) in colors and is_color_like(v)}
    if UNNAMED in colors:
        colors[UNNAMED] = "lightgray"
    # Hexadecimal: what is written into the page is a colour and nothing else.
    return {name: to_hex(color) for name, color in colors.items()}


def _novel_groups(result: Mapping[str, Any], types: pd.DataFrame) -> pd.DataFrame:
    """The table of novel groups that still have cells, with their present numbers of cells."""
    table = result.get("novel", pd.DataFrame())
    table = table[table.index.isin(types.index[types["is_novel"]])].copy()
    table["n_cells"] = types["n_cells"].reindex(table.index)
    table["share"] = types["share"].reindex(table.index)
    for column, missing in {"nearest": "", "distance": np.nan, "markers": ""}.items():
        if column not in table:
            table[column] = missing
    table["markers"] = [[g for g in str(genes).split(", ") if g] for genes in table["markers"]]
    return table


def _number_of_types(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    n, low, high = (int(found[name]) for name in ("n", "low", "high"))
    return f"The number of novel types was estimated as {n}, with an interval from {low} to {high}."


def _safe_names(names: pd.Series | None, classes: list[str]) -> pd.DataFrame:
    """Number of cells of each safe name, the most frequent first."""
    n = pd.Series(dtype=int) if names is None else names.astype(object).value_counts()
    kinds = [
        "type" if name in classes else "unknown" if name == UNKNOWN else "group of types"
        for name in map(str, n.index)
    ]
    share = n / max(int(n.sum()), 1)
    return pd.DataFrame({"n_cells": n, "share": share, "kind": kinds}, index=n.index.astype(str))


def _evaluation(tables: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Scores of an evaluation that was written, with what they mean."""
    if "scores" not in tables:
        return []
    value = tables["scores"]["value"]
    return [
        (name, float(value[name]), meaning)
        for name, meaning in _words.SCORES.items()
        if name in value and np.isfinite(value[name])
    ]
