"""scNym's table 1 from the runs of its suite: ``python -m sctool_benchmark.scnym_table1 DIR``.

``DIR`` is the folder of results of the suite ``scnym_table1``. ``published.md`` in it has our
accuracies in the form of the paper's table, the published ones beside them, tests of scNym against
each rival, and how well each marks cells of types that the reference lacks.
"""

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from scipy.stats import ranksums, wilcoxon

from sctool_benchmark._markdown import table_lines
from sctool_benchmark._tasks import HERE, load_suite

OURS = "scnym"


def read_rows(folder: Path) -> pd.DataFrame:
    """The runs that succeeded, the last of each task, method and fold."""
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    rows = pd.json_normalize([json.loads(line) for line in lines])
    rows = rows[rows["error"].isna()]
    return rows.drop_duplicates(["task", "method", "seed"], keep="last")


def lines(rows: pd.DataFrame, order: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the page.

    Parameters
    ----------
    rows
        One run each: ``task``, ``method``, ``seed`` (the fold), ``seen_accuracy``,
        ``novel_recall``, ``novel_precision``, ``false_novel``, ``made_by``, ``commit``, ``date``.
    order
        Names of the methods, in the order of the columns.
    """
    tasks = list(dict.fromkeys(rows["task"]))
    methods = [name for name in order if name in set(rows["method"])]
    mean = 100 * rows.pivot_table("seen_accuracy", "task", "method", aggfunc="mean")
    mean = mean.reindex(index=tasks, columns=methods)
    published = tomllib.loads((HERE / "published.toml").read_text(encoding="utf-8"))["scnym_table1"]

    yield "### Accuracy\n"
    folds = rows.groupby("task")["seed"].nunique()
    low, high = folds.min(), folds.max()
    yield "Percent of the cells of known types, mean over the training splits that were run"
    yield f"({low if low == high else f'{low} to {high}'} of five). A cell without a name counts as"
    yield "wrong. Rows in italics are the paper's: of other data, but for kang_stim.\n"
    yield from table_lines(["task", *methods], _accuracies(mean, published))

    yield "\n### scNym against each rival\n"
    yield "Pairs are data sets (means over their splits; some share a study, so that p is too low):"
    yield "how many scNym wins, the median difference in points, and p of Wilcoxon's signed rank"
    yield "test. The paper's own test, rank sums of five splits of one data set, takes splits of"
    yield "the same cells for independent; its p is the largest over the data sets with two splits"
    yield "or more.\n"
    columns = ["rival", "data sets", "scNym better", "median difference", "p", "p of rank sums"]
    yield from table_lines(columns, _tests(rows, mean))

    yield "\n### Cells of types that the reference lacks\n"
    yield "Recall, precision and false alarms (share of the cells of known types) of the flag; for"
    yield "the rivals, of no name at all. The paper says of scNym: above 95 % recall (Tabula Muris,"
    yield "brain cells by a model of other tissues; precision not stated).\n"
    novel = rows[rows["novel_recall"].notna()]
    columns = [
        "method",
        *(f"{task}: recall / precision / false" for task in novel["task"].unique()),
    ]
    yield from table_lines(columns, _flags(novel, methods))

    yield "\nMade by\n"
    yield from (f"    {command}" for command in rows["made_by"].unique())
    yield f"\n- commit {', '.join(rows['commit'].unique())}"
    yield "- date " + " to ".join(sorted({rows["date"].min()[:10], rows["date"].max()[:10]}))


def _accuracies(mean: pd.DataFrame, published: dict[str, dict]) -> Iterator[list[str]]:
    """Yield our row of each task, the paper's row after it where the data are the same."""
    beside = {entry.get("task"): name for name, entry in published.items()}
    for task, row in mean.iterrows():
        yield [str(task), *map(_number, row)]
        if task in beside:
            yield _italic(beside[task], published, list(mean))
    for name, entry in published.items():
        if entry.get("task") not in mean.index:
            yield _italic(name, published, list(mean))


def _italic(name: str, published: dict[str, dict], methods: list[str]) -> list[str]:
    values = (published[name].get(method) for method in methods)
    return [f"*{name}*", *("-" if v is None else f"*{v:.1f}*" for v in values)]


def _tests(rows: pd.DataFrame, mean: pd.DataFrame) -> Iterator[list[str]]:
    if OURS not in mean:
        return
    for rival in mean.columns.drop(OURS):
        pairs = mean[[OURS, rival]].dropna()
        difference = pairs[OURS] - pairs[rival]
        p = wilcoxon(difference).pvalue if (difference != 0).any() else 1.0
        by_task = []
        for task in pairs.index:
            of_task = rows[rows["task"] == task].set_index("method")["seen_accuracy"]
            ours, theirs = (of_task.loc[[name]] for name in (OURS, rival))
            if min(len(ours), len(theirs)) > 1:
                by_task.append(ranksums(ours, theirs).pvalue)
        better = f"{(difference > 0).sum()} of {len(pairs)}"
        worst = f"{max(by_task):.2g}" if by_task else "-"
        yield [rival, str(len(pairs)), better, f"{difference.median():+.1f}", f"{p:.2g}", worst]


def _flags(novel: pd.DataFrame, methods: list[str]) -> Iterator[list[str]]:
    measures = ["novel_recall", "novel_precision", "false_novel"]
    for method in methods:
        of_method = novel[novel["method"] == method].groupby("task")[measures].mean()
        cells = of_method.reindex(novel["task"].unique())
        yield [method, *(" / ".join(map(_share, row)) for row in cells.to_numpy())]


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.1f}"


def _share(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    top = argparse.ArgumentParser(prog="python -m sctool_benchmark.scnym_table1")
    top.add_argument("folder", type=Path, metavar="DIR", help="results of the suite scnym_table1")
    args = top.parse_args(argv)
    if not (args.folder / "results.jsonl").is_file():
        print(f"{args.folder} holds no results: run the suite scnym_table1", file=sys.stderr)
        return 2
    order = [method.name for method in load_suite("scnym_table1").methods]
    text = "\n".join(lines(read_rows(args.folder), order)) + "\n"
    (args.folder / "published.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
