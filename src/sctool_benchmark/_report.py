"""The tables of a folder of results."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import ttest_rel

from sctool_benchmark._figures import plot_rejection
from sctool_benchmark._markdown import table_lines

SHORT = (
    "seen_accuracy",
    "seen_unflagged",
    "top_3_accuracy",
    "macro_f1",
    "balanced_accuracy",
    "overall_accuracy",
    "overall_accuracy_hungarian",
    "novel_accuracy",
    "novel_auroc",
    "novel_recall",
    "novel_precision",
    "false_novel",
    "ece",
    "rare_recall",
    "rare_precision",
    "rare_auprc",
    "others_accuracy",
    "doublet_novel",
    "doublet_found",
    "thinned_novel",
    "thinned_found",
    "others_doublet",
    "others_low_quality",
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
#: What a run has for each type, and what of it is compared between a method and its base.
BY_TYPE = ("auprc", "auroc", "n_labelled")
COMPARED = {"auprc": "AUPRC", "auroc": "AUROC"}
CURVE = "seen_at_recall."
SAFE = "safe_at."
#: Risks of the table by task; the others are of the curve alone.
SAFE_RISKS = ("0.05", "0.1")


def write_reports(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``results.csv``, ``table.md`` and, of names at a risk of error, ``rejection.png``.

    Parameters
    ----------
    out
        The folder.
    rows
        One run each, failed runs included. What has a value a type (`BY_TYPE`) goes into no
        column: runs are compared by it.
    """
    by_type = {name: {row["id"]: row.get(name) or {} for row in rows} for name in COMPARED}
    frame = pd.json_normalize([{k: v for k, v in row.items() if k not in BY_TYPE} for row in rows])
    frame.convert_dtypes().to_csv(out / "results.csv", index=False)
    (out / "table.md").write_text("\n".join(_report(frame, by_type)) + "\n", encoding="utf-8")
    if frame.filter(like=SAFE).notna().any(axis=None):
        plot_rejection(_by_risk(frame), out / "rejection.png")


def _report(frame: pd.DataFrame, by_type: dict[str, dict[str, dict[str, float]]]) -> Iterator[str]:
    """Yield the lines of the report: one block per protocol, then how it was made."""
    short: tuple[str, ...] = CLUSTERS if (frame["kind"] == "cluster").all() else SHORT
    frame = frame.assign(**frame.reindex(columns=list(short)).astype(float))
    # What no run has, because no task asks for it, would be an empty column.
    short = tuple(name for name in short if frame[name].notna().any())
    yield "# Benchmark"
    for protocol in sorted(frame["protocol"].unique()):
        runs = frame[frame["protocol"] == protocol]
        yield f"\n## Protocol `{protocol}`\n"
        yield "Mean ± standard deviation over the seeds.\n"
        yield from _per_task(runs, short)
        # Never pooled: where settings were chosen on the data, the numbers are optimistic.
        tuned = runs["tuned"].astype(bool)
        if tuned.any():
            names = ", ".join(sorted(runs.loc[tuned, "data"].unique()))
            yield f"\n### Mean over the tasks on data that may choose settings ({names})\n"
            yield from _per_method(runs[tuned], short)
        if not tuned.all():
            yield "\n### Mean over the tasks on other data\n"
            yield from _per_method(runs[~tuned], short)
        if runs.filter(like=CURVE).notna().any(axis=None):
            yield "\n### Seen accuracy against novel recall\n"
            yield from _curves(runs)
        if runs.filter(like=SAFE).notna().any(axis=None):
            yield "\n### Names and sets at a risk of error\n"
            yield from _safe(runs)
            yield "\n### Partial against full rejection\n"
            yield from _rejection(runs)
        if "novel_types_n" in runs and runs["novel_types_n"].notna().any():
            yield "\n### Number of novel types\n"
            yield from _numbers(runs[runs["novel_types_n"].notna()])
        for measure, title in COMPARED.items():
            pairs = pairs_by_type(runs, by_type[measure])
            if len(pairs):
                yield f"\n### {title} of each type, beside that of the method it is built on\n"
                yield from _paired(pairs, title)
        if absent := sorted(set(frame["method"]) - set(runs["method"])):
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
    yield f"- commit {', '.join(frame['commit'].unique())}"
    yield "- date " + " to ".join(sorted({frame["date"].min()[:10], frame["date"].max()[:10]}))
    for column in frame.filter(regex=r"^versions\.").columns:
        versions = sorted(frame[column].dropna().unique())
        yield f"- {column.removeprefix('versions.')} {', '.join(versions)}"


def _per_task(frame: pd.DataFrame, short: tuple[str, ...]) -> Iterator[str]:
    """Yield one row per task and method."""
    rows = (
        [
            task,
            method,
            _count(runs["error"].isna().sum(), len(runs)),
            *(_mean_sd(runs[name]) for name in short),
        ]
        for (task, method), runs in frame.groupby(["task", "method"], sort=False)
    )
    yield from table_lines(["task", "method", "runs", *short], rows)


def _per_method(frame: pd.DataFrame, short: tuple[str, ...]) -> Iterator[str]:
    """Yield one row per method: the mean over tasks of the means over seeds."""
    done = frame[frame["error"].isna()]
    means = done.groupby(["method", "task"], sort=False)[list(short)].mean()
    rows = []
    for method in frame["method"].unique():
        tasks = means[means.index.get_level_values("method") == method]
        count = _count(len(tasks), frame["task"].nunique())
        rows.append([method, count, *(_number(tasks[name].mean(), name) for name in short)])
    yield from table_lines(["method", "tasks", *short], rows)


def _curves(frame: pd.DataFrame) -> Iterator[str]:
    """Yield one row per method: the seen accuracy that each novel recall leaves, over tasks."""
    columns = list(frame.filter(like=CURVE).columns)
    yield (
        "Share of the seen cells with the right name, where cells are called novel by the novelty "
        "score, from the highest on, until the share of the novel cells above each column is found."
    )
    yield "Mean over the tasks of the means over the seeds; at 0 no cell is called novel.\n"
    done = frame[frame["error"].isna()].dropna(subset=columns)
    rows = []
    for method, runs in done.groupby("method", sort=False):
        tasks = runs.groupby("task")[columns].mean()
        rows.append([method, len(tasks), *(_number(tasks[name].mean(), name) for name in columns)])
    yield from table_lines(["method", "tasks", *(c.removeprefix(CURVE) for c in columns)], rows)


def _by_risk(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row per run and risk, from columns such as ``safe_at.0.05.error``."""
    index = ["task", "tuned", "method", "protocol", "seed"]
    long = frame.melt(index, list(frame.filter(like=SAFE).columns)).dropna(subset="value")
    parts = long["variable"].str.removeprefix(SAFE).str.rsplit(".", n=1)
    long = long.assign(risk=parts.str[0], measure=parts.str[1], value=long["value"].astype(float))
    return long.pivot(index=[*index, "risk"], columns="measure", values="value").reset_index()


def _group(tuned: bool) -> str:
    return "data that may choose settings" if tuned else "other data"


def _safe(frame: pd.DataFrame) -> Iterator[str]:
    """Yield one row per task, method and risk, and one per group of data."""
    yield "On cells of known types: the share whose safe name is wrong, and how far it exceeds the"
    yield "risk; the mean share of the other types that the name rules out; the shares of cells"
    yield "named by a type, and not at all; the share of sets without the true type; their size.\n"
    runs = _by_risk(frame)
    runs = runs[runs["risk"].isin(SAFE_RISKS)]
    columns = ["error", "specificity", "named", "unknown", "missed", "set_size"]
    rows = []
    for (task, method, risk), some in runs.groupby(["task", "method", "risk"], sort=False):
        excess = f"{some['error'].mean() - float(risk):+.3f}"
        error, *others = (_mean_sd(some[name]) for name in columns)
        rows.append([task, method, len(some), risk, error, excess, *others])
    means = runs.groupby(["tuned", "task", "method", "risk"])[columns].mean()
    for (tuned, method, risk), some in means.groupby(["tuned", "method", "risk"]):
        excess = f"{some['error'].mean() - float(risk):+.3f}"
        error, *others = (_number(some[name].mean(), name) for name in columns)
        title = f"mean of {len(some)} tasks on {_group(tuned)}"
        rows.append([title, method, "", risk, error, excess, *others])
    yield from table_lines(
        ["task", "method", "runs", "risk", "error", "excess", *columns[1:]], rows
    )


def _rejection(frame: pd.DataFrame) -> Iterator[str]:
    """Yield one row per method, group of data and risk: what two ways to reject leave."""
    yield "Partial: names along a hierarchy, as specific as the risk allows. Full: the name of a"
    yield "type or none, by the score, with the threshold at which as many names are wrong as of"
    yield "the partial ones. Specificity is the mean share of the other types that a name rules"
    yield "out. Mean over the tasks of the means over the seeds.\n"
    columns = ["error", "specificity", "named", "unknown", "rejection"]
    means = _by_risk(frame).groupby(["tuned", "task", "method", "risk"])[columns].mean()
    rows = []
    for (tuned, method, risk), some in means.groupby(["tuned", "method", "risk"]):
        values = (_number(some[name].mean(), name) for name in columns)
        rows.append([_group(tuned), method, len(some), risk, *values])
    titles = ["error", "specificity, partial", "named", "unknown", "specificity, full"]
    yield from table_lines(["data", "method", "tasks", "risk", *titles], rows)


def _numbers(frame: pd.DataFrame) -> Iterator[str]:
    """Yield one row per method: how far its number is off, beside guesses that need no data."""
    true, seen = frame["n_novel_types"], frame["n_types"]
    yield "Mean absolute error over the runs, and the share of runs whose interval holds the truth."
    yield "The constant is the one that fits the true numbers best.\n"
    rows = []
    for method, runs in frame.groupby("method", sort=False):
        error = (runs["novel_types_n"] - runs["n_novel_types"]).abs().mean()
        held = runs["n_novel_types"].between(runs["novel_types_low"], runs["novel_types_high"])
        rows.append([method, len(runs), f"{error:.2f}", f"{held.mean():.2f}"])
    one = frame.drop_duplicates(["task", "seed"]).index
    for name, guess in (
        ("a constant", true[one].median()),
        ("half of the seen", seen[one] / 2),
        ("as many as the seen", seen[one]),
    ):
        rows.append([name, len(one), f"{(guess - true[one]).abs().mean():.2f}", "-"])
    yield from table_lines(["estimate", "runs", "error", "in interval"], rows)


def pairs_by_type(frame: pd.DataFrame, by_type: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Return what is measured of each type under each method with a base, and under its base.

    Parameters
    ----------
    frame
        One run each.
    by_type
        The measured values by type, by the id of the run.

    Returns
    -------
    A row a type and run: ``task``, ``seed``, ``method``, ``base``, ``type``, ``value`` and
    ``value_base``.
    """
    measured = pd.DataFrame(
        [
            (row.task, row.seed, row.method, row.base, name, value)
            for row in frame.reindex(columns=["id", "task", "seed", "method", "base"]).itertuples()
            for name, value in by_type[row.id].items()
        ],
        columns=["task", "seed", "method", "base", "type", "value"],
    ).astype({"base": object})
    names = {"method": "base", "value": "value_base"}
    of_base = measured.drop(columns="base").rename(columns=names)
    return measured.dropna(subset="base").merge(of_base, on=["task", "seed", "base", "type"])


def _paired(pairs: pd.DataFrame, title: str) -> Iterator[str]:
    """Yield one row per method that has a base: a paired t-test over types and seeds."""
    yield "A pair is a type of a task under a seed; t and p are of the paired t-test over them.\n"
    rows = []
    for (method, base), some in pairs.groupby(["method", "base"], sort=False):
        ours, theirs = some["value"], some["value_base"]
        if len(some) > 1:
            test = ttest_rel(ours, theirs)
            means = f"{theirs.mean():.3f}", f"{ours.mean() - theirs.mean():+.3f}"
            values = f"{test.statistic:.1f}", f"{test.pvalue:.2g}"
            rows.append([method, base, len(some), *means, *values])
    yield from table_lines(
        ["method", "base", "pairs", f"base {title}", "difference", "t", "p"], rows
    )


def _count(done: int, total: int) -> str:
    return str(total) if done == total else f"{done} of {total}"


def _number(value: float, name: str) -> str:
    return "-" if pd.isna(value) else f"{value:.{DIGITS.get(name, 3)}f}"


def _mean_sd(values: pd.Series) -> str:
    name = str(values.name)
    mean = _number(values.mean(), name)
    return f"{mean} ± {_number(values.std(), name)}" if values.count() > 1 else mean
