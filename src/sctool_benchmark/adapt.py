"""What adapting is worth to a saved model: ``python -m sctool_benchmark.adapt -o results/adapt``.

For each task of the suite ``adapt`` a model is trained on the reference alone, saved and loaded.
It annotates the query as it is and adapted to it, beside a model that is trained on the reference
and the query.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd

from sctool import metrics, tl
from sctool._train import seeded
from sctool.model import AutoClassifier, load
from sctool_benchmark._markdown import frame_as_markdown
from sctool_benchmark._run import provenance
from sctool_benchmark._tasks import LABELS, Split, load_suite, locate, read, split

ANSWERS = ("saved", "adapted", "retrained")
SCORES = ("macro_f1", "novel_auroc", "novel_recall", "false_novel", "ece")
QUIET = {"enable_progress_bar": False}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    top = argparse.ArgumentParser(prog="python -m sctool_benchmark.adapt")
    top.add_argument("--task", action="append", metavar="NAME", help="one of the suite's; repeated")
    top.add_argument("--seeds", type=int, default=1, metavar="N", help="number (default: 1)")
    top.add_argument("-o", "--out", type=Path, metavar="DIR", required=True)
    args = top.parse_args(argv)
    rows = []
    for task in load_suite("adapt").tasks:
        if args.task and task.name not in args.task:
            continue
        try:
            adata = read(task, locate(task))
        except FileNotFoundError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        for seed in range(args.seeds):
            parts = split(adata, task, seed)
            for row in compare(parts, seed):
                rows.append({"task": task.name, "seed": seed, **row})
                print(rows[-1], file=sys.stderr, flush=True)
    if not rows:
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    made = provenance("adapt", argv)
    pd.DataFrame(rows).to_csv(args.out / "runs.csv", index=False)
    (args.out / "table.md").write_text(as_markdown(pd.DataFrame(rows)) + made, encoding="utf-8")
    print((args.out / "table.md").read_text(encoding="utf-8"))
    return 0


def train_alone(reference: ad.AnnData, seed: int) -> AutoClassifier:
    """A model of a reference that has seen no query."""
    cells = reference.copy()
    AutoClassifier.setup_anndata(cells, LABELS)
    with seeded(seed):
        model = AutoClassifier(cells)
        model.train(**QUIET)
    return model


def compare(parts: Split, seed: int) -> list[dict[str, Any]]:
    """Scores of the three answers, with the seconds they took; of a saved model, also its size."""
    with tempfile.TemporaryDirectory() as folder:
        train_alone(parts.reference, seed).save(folder, overwrite=True)
        sizes = [path.stat().st_size for path in Path(folder).iterdir()]
        model = load(folder)
    rows = []
    for name in ANSWERS:
        query = parts.query.copy()
        ref = parts.reference if name == "retrained" else model
        kwargs = {"labels_key": LABELS} if name == "retrained" else {}
        start = time.perf_counter()
        tl.annotate(
            query, ref, adapt=name == "adapted", random_state=seed, train_kwargs=QUIET, **kwargs
        )
        seconds = time.perf_counter() - start
        scored = parts.truth.notna().to_numpy()
        obs = query.obs[scored]
        scores = metrics.summary(
            parts.truth[scored].to_numpy(dtype=str),
            obs["sctool"].to_numpy(dtype=str),
            parts.seen,
            score=obs["sctool_score"].to_numpy(),
            novel_score=obs["sctool_novel_score"].to_numpy(),
            novel=obs.get("sctool_novel", pd.Series(False, obs.index)).to_numpy(),
        )
        row = {"answer": name, **{score: scores[score] for score in SCORES}, "seconds": seconds}
        rows.append(row | ({"megabytes": sum(sizes) / 1e6} if name == "saved" else {}))
    return rows


def as_markdown(runs: pd.DataFrame) -> str:
    """Means over the seeds of each task and answer, and means over tasks, in Markdown."""
    columns = [c for c in (*SCORES, "seconds", "megabytes") if c in runs]
    table = runs.groupby(["task", "answer"], sort=False)[columns].mean().reset_index()
    mean = table.groupby("answer", sort=False)[columns].mean().reset_index()
    return frame_as_markdown(pd.concat([table, mean.assign(task="mean")]))


if __name__ == "__main__":
    sys.exit(main())
