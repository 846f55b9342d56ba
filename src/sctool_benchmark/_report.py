"""The tables of a folder of results."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import ttest_rel

SHORT = (
    "seen_accuracy",
    "top_3_accuracy",
    "macro_f1",
    "balanced_accuracy",
    "overall_accuracy",
    "novel_accuracy",
    "novel_auroc",
    "false_novel",
    "ece",
    "rare_recall",
    "others_accuracy",
    "mixing",
    "seconds",
    "peak_rss_gb",
)
#: Of tasks without a reference.
CLUSTERS = (
    "ari",
    "nmi",
    "clustering_accuracy",
    "n_types",
    "n_clusters_n",
    "n_clusters_low",
    "n_clusters_high",
    "seconds",
    "peak_rss_gb",
)
DIGITS = {"seconds": 1, "peak_rss_gb": 2, "n_types": 0} | {
    f"n_clusters_{name}": 1 for name in ("n", "low", "high")
}
CURVE = "seen_at_recall."
#: The presets were chosen on data of these studies: what they say of a method is optimistic.
TUNING = ("zheng", "pbmc3k", "pbmc68k", "kang", "paul15")


def write_reports(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``results.csv`` and ``table.md``.

    Parameters
    ----------
    out
        The folder.
    rows
        One run each, failed runs included. ``auprc``, which has a value a type, goes into no
        column: runs are compared by it.
    """
    by_type = {row["id"]: row.get("auprc") or {} for row in rows}
    frame = pd.json_normalize([{k: v for k, v in row.items() if k != "auprc"} for row in rows])
    frame.convert_dtypes().to_csv(out / "results.csv", index=False)
    (out / "table.md").write_text("\n".join(_table(frame, by_type)) + "\n", encoding="utf-8")


def _table(frame: pd.DataFrame, by_type: dict[str, dict[str, float]]) -> Iterator[str]:
    """Yield the lines of the table: one block per protocol, then how it was made."""
    clusters = "kind" in frame and bool((frame["kind"] == "cluster").all())
    short = CLUSTERS if clusters else SHORT
    frame = frame.assign(**frame.reindex(columns=list(short)).astype(float))
    tuned = frame["data"].map(lambda data: any(family in data for family in TUNING))
    yield "# Benchmark"
    for protocol in sorted(frame["protocol"].unique()):
        of_protocol = frame["protocol"] == protocol
        yield f"\n## Protocol `{protocol}`\n"
        yield "Mean ± standard deviation over the seeds.\n"
        yield from _per_task(frame[of_protocol], short)
        for title, family in (
            (
                f"Mean over the tasks whose data may choose presets ({', '.join(TUNING)})",
                tuned,
            ),
            ("Mean over the other tasks", ~tuned),
        ):
            if (of_protocol & family).any():
                yield f"\n### {title}\n"
                yield from _per_method(frame[of_protocol & family], short)
        if frame.loc[of_protocol].filter(like=CURVE).notna().any(axis=None):
            yield "\n### Seen accuracy against novel recall\n"
            yield from _curves(frame[of_protocol])
        if "novel_types_n" in frame and frame.loc[of_protocol, "novel_types_n"].notna().any():
            yield "\n### Number of novel types\n"
            yield from _numbers(frame[of_protocol & frame["novel_types_n"].notna()])
        if "base" in frame and frame.loc[of_protocol, "base"].notna().any():
            yield "\n### AUPRC of each type, beside that of the method it is built on\n"
            yield from _paired(frame[of_protocol], by_type)
        if absent := sorted(set(frame["method"]) - set(frame.loc[of_protocol, "method"])):
            yield (
                f"\nWithout runs under `{protocol}` (no such preset, or not asked for): "
                + (", ".join(absent))
            )
    failed = frame[frame["error"].notna()]
    if len(failed):
        yield "\n## Failed runs\n"
        yield from (f"- `{row.id}`: {row.error}" for row in failed.itertuples())
    yield "\n## Made by\n"
    yield from (f"    {command}" for command in frame["made_by"].unique())
    yield ""
    for column in frame.filter(regex=r"^versions\.").columns:
        versions = sorted(frame[column].dropna().unique())
        yield f"- {column.removeprefix('versions.')} {', '.join(versions)}"


def _per_task(frame: pd.DataFrame, short: tuple[str, ...]) -> Iterator[str]:
    """Yield one row per task and method."""
    yield _row("task", "method", "runs", *short)
    yield _row(*["---"] * (len(short) + 3))
    for (task, method), runs in frame.groupby(["task", "method"], sort=False):
        cells = [_mean_sd(runs[name]) for name in short]
        yield _row(task, method, _count(runs["error"].isna().sum(), len(runs)), *cells)


def _per_method(frame: pd.DataFrame, short: tuple[str, ...]) -> Iterator[str]:
    """Yield one row per method: the mean over tasks of the means over seeds."""
    done = frame[frame["error"].isna()]
    means = done.groupby(["method", "task"], sort=False)[list(short)].mean()
    yield _row("method", "tasks", *short)
    yield _row(*["---"] * (len(short) + 2))
    for method in frame["method"].unique():
        tasks = means[means.index.get_level_values("method") == method]
        cells = [_number(tasks[name].mean(), name) for name in short]
        yield _row(method, _count(len(tasks), frame["task"].nunique()), *cells)


def _curves(frame: pd.DataFrame) -> Iterator[str]:
    """Yield one row per method: the seen accuracy that each novel recall leaves, over tasks."""
    columns = list(frame.filter(like=CURVE).columns)
    yield (
        "Share of the seen cells with the right name, where cells are called novel by the novelty "
        "score, from the highest on, until the share of the novel cells above each column is found."
    )
    yield "Mean over the tasks of the means over the seeds; at 0 no cell is called novel.\n"
    yield _row("method", "tasks", *(column.removeprefix(CURVE) for column in columns))
    yield _row(*["---"] * (len(columns) + 2))
    done = frame[frame["error"].isna()].dropna(subset=columns)
    for method, runs in done.groupby("method", sort=False):
        tasks = runs.groupby("task")[columns].mean()
        yield _row(method, len(tasks), *(_number(tasks[name].mean(), name) for name in columns))


def _numbers(frame: pd.DataFrame) -> Iterator[str]:
    """Yield one row per method: how far its number is off, beside guesses that need no data."""
    true, seen = frame["n_novel_types"], frame["n_types"]
    yield "Mean absolute error over the runs, and the share of runs whose interval holds the truth."
    yield "The constant is the one that fits the true numbers best.\n"
    yield _row("estimate", "runs", "error", "in interval")
    yield _row(*["---"] * 4)
    for method, runs in frame.groupby("method", sort=False):
        error = (runs["novel_types_n"] - runs["n_novel_types"]).abs().mean()
        held = runs["n_novel_types"].between(runs["novel_types_low"], runs["novel_types_high"])
        yield _row(method, len(runs), f"{error:.2f}", f"{held.mean():.2f}")
    one = frame.drop_duplicates(["task", "seed"]).index
    for name, guess in (
        ("a constant", true[one].median()),
        ("half of the seen", seen[one] / 2),
        ("as many as the seen", seen[one]),
    ):
        yield _row(name, len(one), f"{(guess - true[one]).abs().mean():.2f}", "-")


def _paired(frame: pd.DataFrame, by_type: dict[str, dict[str, float]]) -> Iterator[str]:
    """Yield one row per method that has a base: a paired t-test over types and seeds."""
    yield "A pair is a type of a task under a seed; t and p are of the paired t-test over them.\n"
    yield _row("method", "base", "pairs", "base AUPRC", "difference", "t", "p")
    yield _row(*["---"] * 7)
    runs = {(row.task, row.method, row.seed): by_type[row.id] for row in frame.itertuples()}
    bases = frame.dropna(subset="base").drop_duplicates("method")
    for name, base in zip(bases["method"], bases["base"], strict=True):
        pairs = [
            (auprc[kind], other[kind])
            for (task, method, seed), auprc in runs.items()
            if method == name
            for other in [runs.get((task, base, seed), {})]
            for kind in auprc.keys() & other.keys()
        ]
        if len(pairs) < 2:
            continue
        ours, theirs = np.array(pairs).T
        test = ttest_rel(ours, theirs)
        means = f"{theirs.mean():.3f}", f"{ours.mean() - theirs.mean():+.3f}"
        yield _row(name, base, len(pairs), *means, f"{test.statistic:.1f}", f"{test.pvalue:.2g}")


def _row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _count(done: int, total: int) -> str:
    return str(total) if done == total else f"{done} of {total}"


def _number(value: float, name: str) -> str:
    return "-" if pd.isna(value) else f"{value:.{DIGITS.get(name, 3)}f}"


def _mean_sd(values: pd.Series) -> str:
    name = str(values.name)
    mean = _number(values.mean(), name)
    return f"{mean} ± {_number(values.std(), name)}" if values.count() > 1 else mean
