"""The command line: ``python -m sctool_benchmark.pretrained -o DIR``.

Annotates data sets with models that others trained, and compares the terms of the Cell Ontology
with those of the published labels. Nothing is trained, and no label is read before the comparison.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from sctool import metrics, tl
from sctool._ontology import cell_ontology, compare, map_names
from sctool.model import load
from sctool_benchmark._run import provenance
from sctool_benchmark._tasks import Task, known_data, locate, published_terms, read

VERDICTS = ("right", "less specific", "wrong")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    top = argparse.ArgumentParser(prog="python -m sctool_benchmark.pretrained")
    top.add_argument(
        "--model",
        action="append",
        metavar="NAME|FILE",
        help="what sctool.model.load takes; repeated for several (default: human)",
    )
    top.add_argument(
        "--temperature",
        action="append",
        type=float,
        metavar="T",
        help="of the model 'human' instead of its own; repeated for several",
    )
    top.add_argument("-o", "--out", type=Path, metavar="DIR", required=True)
    args = top.parse_args(argv)
    truths = published_terms()
    known = {label: term for labels in truths.values() for label, term in labels.items()}
    known.pop("split")
    rows, by_type = [], []
    for name, labels in truths.items():
        task = Task(name=name, kind="pair", data=name, file=known_data()[name]["file"])
        try:
            adata = read(task, locate(task))
        except FileNotFoundError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        if (side := labels.pop("split", None)) is not None:
            adata = adata[adata.obs["split"] == side].copy()
        for model, temperature in product(args.model or ["human"], args.temperature or [None]):
            row, table = judge(adata, task.labels_key, labels, model, known, temperature)
            rows.append({"data": name, "tuned": known_data()[name].get("tuned", False), **row})
            by_type.append(table.assign(data=name, model=row["model"]))
    if not rows:
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    words = shlex.join(argv if argv is not None else sys.argv[1:])
    made = provenance(f"python -m sctool_benchmark.pretrained {words}")
    (args.out / "table.md").write_text(as_markdown(pd.DataFrame(rows)) + made, encoding="utf-8")
    pd.concat(by_type).to_csv(args.out / "by_type.csv", index=False)
    print((args.out / "table.md").read_text(encoding="utf-8"))
    return 0


def judge(
    adata: ad.AnnData,
    labels_key: str,
    labels: Mapping[str, str],
    source: str,
    known: Mapping[str, str],
    temperature: float | None = None,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Annotate cells and compare them with their labels.

    Parameters
    ----------
    labels
        Term of each label of ``adata.obs[labels_key]``.
    known
        Terms of names that a model without terms may use, where the ontology has no such name.
    temperature
        Divides the logits of the networks; None is the model's own.

    Returns
    -------
    One row of the table; and the number of cells by label, assigned type and verdict.
    """
    query = ad.AnnData(adata.X, var=adata.var)
    model = load(source)
    if temperature is not None:
        model.module.temperature = temperature
    name = Path(source).stem + ("" if temperature is None else f", temperature {temperature}")
    row: dict[str, Any] = {"model": name, "n_cells": query.n_obs}
    start = time.perf_counter()
    try:
        tl.annotate(query, model)
    except ValueError as error:  # what it would have said is measured all the same
        row["refused"] = str(error).split(" of the model's")[0] + " genes"
        model.features_.min_genes = 1
        start = time.perf_counter()
        tl.annotate(query, model)
    seconds = time.perf_counter() - start
    terms = dict(model.terms_)
    names = [name for name in model.names_ if name not in terms]
    terms |= map_names(names, {name: known[name] for name in names if name in known})
    found = query.obs["sctool"].astype(object)
    ontology = cell_ontology()
    truth = adata.obs[labels_key].astype(str)
    verdict = np.array(
        [
            compare(ontology, terms.get(name), labels[label])
            for name, label in zip(found, truth, strict=True)
        ]
    )
    score = query.obs["sctool_score"].to_numpy()
    row |= {name: (verdict == name).mean() for name in VERDICTS}
    row["ece"] = metrics.ece(verdict, np.full(len(verdict), "right"), score)
    # of the names being right, by which a temperature can be chosen
    right = np.where(verdict == "right", score, 1 - score)
    row["log likelihood"] = np.log(np.clip(right, 1e-6, None)).mean()
    row["score"] = score.mean()
    row["ambiguous"] = (query.obs["sctool_status"] == "ambiguous").mean()
    row["seconds"] = seconds
    of_cell = pd.DataFrame({"label": truth.to_numpy(), "type": found.to_numpy(), "is": verdict})
    return row, of_cell.value_counts().rename("n_cells").reset_index()


def as_markdown(table: pd.DataFrame) -> str:
    """The table, in Markdown; shares and ECE with three digits."""
    columns = ["data", "tuned", "model", "n_cells", *VERDICTS, "ece", "log likelihood"]
    columns += ["score", "ambiguous", "seconds", "refused"]
    lines = [columns, ["---"] * len(columns)]
    for row in table.reindex(columns=columns).to_dict("records"):
        values = ["" if pd.isna(value) else value for value in row.values()]
        lines.append([f"{v:.3f}" if isinstance(v, float) else str(v) for v in values])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
