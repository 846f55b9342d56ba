"""From probabilities to verdicts: status of cells, names of clusters, alarms.

Functions take and return arrays and tables and do not depend on a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from sctool._data import _genes
from sctool._expected import Fit
from sctool._label_errors import MIN_CELLS
from sctool._quality import REASONS, Doublets, LowQuality
from sctool._sets import UNKNOWN
from sctool.novelty import PROGRAMMES

STATUSES = ("assigned", "ambiguous", "unexpected", "novel", "doublet", "low_quality")
#: Below this probability of the assigned type a cell is ambiguous.
AMBIGUOUS = 0.5
#: Of this many types with few cells, all are named.
MANY = 20
#: In a cluster, a type of this many cells keeps its name.
MINORITY = 20
#: Number of markers that are compared with ``PROGRAMMES``, and matches that raise an alarm.
N_MARKERS, MATCHES = 20, 4
#: A type's share of the query is unlikely if it is this many times that of the reference, and at
#: least ``LARGE_SHARE`` of the query.
UNLIKELY_RATIO, LARGE_SHARE = 10, 0.05
#: Alarms: sensitivity below this; share of cells whose group has another name, and loss of the mean
#: score relative to the held-out cells, above these.
LOW_SENSITIVITY, MANY_DISAGREE, LOST_SCORE = 0.5, 0.15, 0.1
#: Alarms: share of cells of types that are not allowed, and half the sum of the differences between
#: expected and found shares, from these on.
MANY_UNEXPECTED, OTHER_SHARES = 0.05, 0.3
#: Pairs of types that the alarm on few genes names.
MAX_PAIRS = 5


# -- status --------------------------------------------------------------------------------------


def cell_status(
    score: np.ndarray,
    novel: np.ndarray | None,
    fit: Fit | None,
    safe: np.ndarray | None,
    specific: np.ndarray | None,
    doublets: Doublets | None,
    low_quality: LowQuality | None,
    classes: Sequence[str],
    disagreement: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Status of each cell and its reason.

    The first that applies of low quality, doublet, novel, unexpected, ambiguous, assigned.

    Parameters
    ----------
    score
        Probability of the assigned type, (n_cells,).
    novel
        Whether cells are called novel, (n_cells,); None if that was not judged.
    fit
        How cells fit the types that are allowed; None if all are.
    safe, specific
        Names that hold at the requested risk, and whether they are those of a single type,
        (n_cells,); None without a risk.
    doublets, low_quality
        Evidence on the cells; None if that was not judged.
    classes
        Names of the known types.
    disagreement
        What several references say of cells on which they disagree, "" for others, (n_cells,).

    Returns
    -------
    Codes of ``STATUSES`` and texts, both (n_cells,).
    """
    n = len(score)
    code, reason = np.zeros(n, dtype=np.int64), np.full(n, "", dtype=object)

    def mark(status: str, cells: np.ndarray, texts: Sequence[str] | np.ndarray) -> None:
        code[cells] = STATUSES.index(status)
        reason[cells] = texts

    unsure = score < AMBIGUOUS
    mark("ambiguous", unsure, [f"probability {p:.2f}" for p in score[unsure]])
    if safe is not None and specific is not None:
        mark("ambiguous", ~specific, [_not_specific(name) for name in safe[~specific]])
    if disagreement is not None:
        mark("ambiguous", disagreement != "", disagreement[disagreement != ""])
    if fit is not None:
        found = np.flatnonzero(fit.unexpected)
        told = zip(fit.outside[found], fit.other[found], strict=True)
        texts = [f"{p:.2f} on types not allowed, most on {classes[t]}" for p, t in told]
        mark("unexpected", found, texts)
    if novel is not None:
        mark("novel", novel, "unlike the known types")
    if doublets is not None:
        found = np.flatnonzero(doublets.found)
        pairs = [" + ".join(classes[i] for i in pair) for pair in doublets.pair[found]]
        mark("doublet", found, [f"mixture of {pair}" for pair in pairs])
    if low_quality is not None:
        found = np.flatnonzero(low_quality.found)
        mark("low_quality", found, np.array(REASONS, dtype=object)[low_quality.reason[found]])
    return code, reason


def _not_specific(safe: str) -> str:
    """Why a cell is ambiguous whose safe name is that of a group, or none."""
    return "no name is safe" if safe == UNKNOWN else f"no name more specific than {safe} is safe"


# -- clusters ------------------------------------------------------------------------------------


def pool_names(names: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Give each cell the most frequent name of its group, except to minorities.

    A name that at least ``MINORITY`` cells of a group have is kept there: rare types are not voted
    away.

    Parameters
    ----------
    names, groups
        Name code, -1 for none, and group code of each cell, (n_cells,).
    """
    pooled = names.copy()
    for group in np.unique(groups):
        cells = np.flatnonzero((groups == group) & (names >= 0))
        if len(cells):
            n = np.bincount(names[cells])
            pooled[cells] = np.where(n[names[cells]] >= MINORITY, names[cells], n.argmax())
    return pooled


def describe_groups(
    groups: pd.Categorical,
    names: np.ndarray,
    classes: Sequence[str],
    novel_score: np.ndarray,
    status: np.ndarray,
) -> pd.DataFrame:
    """Summarise the names of each group's cells.

    Parameters
    ----------
    groups
        Group of each cell, (n_cells,).
    names, classes
        Name code of each cell, -1 for none, (n_cells,), and the names.
    novel_score
        Novelty score of each cell, (n_cells,).
    status
        Codes of ``STATUSES``, (n_cells,).

    Returns
    -------
    One row per group: "n_cells"; "label", the most frequent name, and its "share"; "second_label"
    and "second_share"; "entropy" of the names in bits; mean "novel_score"; and the shares of cells
    whose status is one of ``STATUSES``, except "assigned".
    """
    rows = []
    for group in groups.categories:
        cells = np.asarray(groups == group)
        n = np.bincount(names[cells & (names >= 0)], minlength=len(classes))
        share = n / max(n.sum(), 1)
        first, second = map(int, np.argsort(-n, kind="stable")[:2])
        present = share[share > 0]
        row: dict[str, object] = {
            "n_cells": int(cells.sum()),
            "label": classes[first] if n[first] else "",
            "share": share[first],
            "second_label": classes[second] if n[second] else "",
            "second_share": share[second],
            "entropy": float((present * -np.log2(present)).sum()) + 0.0,  # never -0
            "novel_score": float(novel_score[cells].mean()),
        }
        for code, name in enumerate(STATUSES[1:], start=1):
            row[name] = float((status[cells] == code).mean())
        rows.append(row)
    return pd.DataFrame(rows, index=pd.Index(groups.categories.astype(str), dtype=object))


# -- alarms --------------------------------------------------------------------------------------


def alarm_shares(
    names: np.ndarray, labels: np.ndarray, corrected: np.ndarray | None, classes: Sequence[str]
) -> list[str]:
    """Types of which the query seems to have far more than the reference.

    Parameters
    ----------
    names
        Codes of the known types of the query's cells, (n_cells,).
    labels
        Those of the labelled cells, (n_labelled,).
    corrected
        Shares of the types in the query, corrected for confusions among held-out cells.
    """
    if not len(names):
        return []
    k = len(classes)
    share, usual = (np.bincount(v, minlength=k) / len(v) for v in (names, labels))
    unlikely = (share >= LARGE_SHARE) & (share >= UNLIKELY_RATIO * usual) & (usual > 0)
    notes = []
    for t in map(int, np.flatnonzero(unlikely)):
        also = "" if corrected is None else f"; {corrected[t]:.1%} after correction for confusions"
        notes.append(
            f"shares: {classes[t]!r} are {share[t]:.1%} of the query's known cells and "
            f"{usual[t]:.1%} of the reference{also}: check their markers"
        )
    return notes


def alarm_sensitivity(sensitivity: Mapping[str, float]) -> list[str]:
    """Types that would have gone unnoticed had the reference lacked them."""
    low = {name: share for name, share in sensitivity.items() if share < LOW_SENSITIVITY}
    if not low:
        return []
    each = ", ".join(f"{name!r} {share:.0%}" for name, share in low.items())
    return [
        "novel: low sensitivity: hidden from the reference, these types would be found novel in "
        f"so many of their cells: {each}. A novel type that resembles a known one as much as these "
        "do may bear its name"
    ]


def alarm_programmes(novel: pd.DataFrame) -> list[str]:
    """Novel groups whose markers are those of stress or of the cell cycle."""
    notes = []
    for name, markers in novel["markers"].items():
        genes = {gene.upper() for gene in str(markers).split(", ")[:N_MARKERS]}
        for programme, known in PROGRAMMES.items():
            if len(found := sorted(genes & known)) >= MATCHES:
                notes.append(
                    f"novel: {name!r} may be known cells in another state: {len(found)} of its "
                    f"{len(genes)} markers are genes of {programme} ({', '.join(found)})"
                )
    return notes


def alarm_agreement(names: np.ndarray, by_group: np.ndarray, classes: Sequence[str]) -> list[str]:
    """A vote that contradicts the names of the groups.

    Parameters
    ----------
    names, by_group
        Codes of the known types of the cells that both name, (n_cells,).
    """
    differ = names != by_group
    if not len(names) or differ.mean() < MANY_DISAGREE:
        return []
    pairs = pd.Series(list(zip(names[differ], by_group[differ], strict=True))).value_counts()
    (first, second), n = pairs.index[0], int(pairs.iloc[0])
    return [
        f"names: {differ.mean():.0%} of the cells have another name than their group, most often "
        f"{classes[first]!r} in a group of {classes[second]!r} ({n} cells)"
    ]


def alarm_shift(score: np.ndarray, held_out: np.ndarray) -> list[str]:
    """Scores far below those of held-out cells of the reference.

    Parameters
    ----------
    score, held_out
        Highest probability of the query's cells and of the held-out cells.
    """
    if not len(score) or not len(held_out) or held_out.mean() - score.mean() < LOST_SCORE:
        return []
    return [
        f"shift: the mean score is {score.mean():.2f}, but {held_out.mean():.2f} for held-out "
        "cells of the reference: query and reference differ, and names err more often than the "
        "reference suggests"
    ]


def alarm_labels(labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Types with too few labelled cells to learn.

    Parameters
    ----------
    labels
        Codes of the labelled cells' types, (n_labelled,).
    """
    n = np.bincount(labels, minlength=len(classes))
    # (of several references, types without labelled cells are those of trained models)
    few = [f"{classes[t]!r} ({n[t]})" for t in map(int, np.flatnonzero((n > 0) & (n < MIN_CELLS)))]
    if not few:
        return []
    if len(few) > MANY:  # as where a column of other things was taken for that of the types
        few = [*few[:MANY], f"and {len(few) - MANY} others of {len(classes)} types"]
    return [
        f"labels: too few labelled cells, fewer than {MIN_CELLS}, to learn the types "
        f"{', '.join(few)}: their cells may bear another name or be called novel"
    ]


def alarm_unexpected(fit: Fit, cells: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Many cells whose types are not allowed.

    Parameters
    ----------
    cells
        Cells of known types, (n_cells,) bool.
    """
    n_cells, other = int(cells.sum()), fit.other[cells & fit.unexpected]
    if not n_cells or len(other) < MANY_UNEXPECTED * n_cells:
        return []
    n = np.bincount(other, minlength=len(classes))
    most = [t for t in map(int, np.argsort(-n, kind="stable")[:3]) if n[t]]
    return [
        f"allowed: {len(other) / n_cells:.1%} of the query's known cells ({len(other)}) fit types "
        "that are not allowed better, most often "
        + ", ".join(f"{classes[t]!r} ({n[t]})" for t in most)
        + ": they are there after all, or the model mistakes allowed types for them; check their "
        "markers"
    ]


def alarm_prior(fit: Fit, classes: Sequence[str]) -> list[str]:
    """Expected shares far from those that the model finds without them."""
    if fit.expected is None:
        return []
    difference = fit.found - fit.expected
    if (half := np.abs(difference).sum() / 2) < OTHER_SHARES:
        return []
    t = int(np.abs(difference).argmax())
    return [
        f"prior: {half:.1%} of the query would have to be of other types to have these shares, "
        f"most of all {classes[t]!r}, of which {fit.expected[t]:.1%} are expected and "
        f"{fit.found[t]:.1%} found without them: check its markers"
    ]


def alarm_lost(names: Sequence[str]) -> list[str]:
    """Types that no cell can be named, because their reference cells are empty."""
    if not names:
        return []
    return [
        f"types: no reference cell of {list(names)!r} expresses a gene that is used: query cells "
        "of these types are called something else, or novel"
    ]


def alarm_genes(n_shared: int, pairs: pd.DataFrame | None = None) -> list[str]:
    """Too few shared genes, and the types that they cannot tell apart.

    Parameters
    ----------
    pairs
        Pairs of types that are confused in cells of the reference that are held out, given these
        genes alone, as :func:`sctool._label_errors.confused_pairs` returns them.
    """
    if n_shared >= _genes.FEW_SHARED:
        return []
    text = f"genes: only {n_shared} are shared: similar types may be confused"
    if pairs is None or pairs.empty:
        return [text]
    told = [
        f"{row.first!r} and {row.second!r} ({row.first_as_second:.0%} of the one and "
        f"{row.second_as_first:.0%} of the other)"
        for row in pairs.head(MAX_PAIRS).itertuples()
    ]
    more = f", and {len(pairs) - MAX_PAIRS} more pairs" if len(pairs) > MAX_PAIRS else ""
    return [f"{text}, in held-out cells of the reference {', '.join(told)}{more}"]
