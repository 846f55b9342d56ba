"""The command line: ``python -m sctool_benchmark.pretrained -o DIR``.

Annotates data sets with models that others trained, and compares the terms of the Cell Ontology
with those of the published labels. Nothing is trained, and no label is read before the comparison.
"""

import argparse
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
from sctool.model import AnnotationModel, load
from sctool.model._actinn import HierarchicalACTINN
from sctool_benchmark._markdown import frame_as_markdown
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
    models = list(product(args.model or ["human"], args.temperature or [None]))
    if args.temperature:  # said before anything is measured
        try:
            for model, temperature in models:
                load_at(model, temperature)
        except ValueError as error:
            top.error(str(error))
    truths = published_terms()
    known = {name: term for truth in truths.values() for name, term in truth.terms.items()}
    rows, by_type = [], []
    for name, truth in truths.items():
        task = Task(name=name, kind="pair", data=name, file=known_data()[name]["file"])
        try:
            adata = read(task, locate(task))
        except FileNotFoundError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        if truth.side is not None:
            adata = adata[adata.obs["split"] == truth.side].copy()
        for model, temperature in models:
            row, table = judge(adata, task.labels_key, truth.terms, model, known, temperature)
            rows.append({"data": name, "tuned": known_data()[name].get("tuned", False), **row})
            by_type.append(table.assign(data=name, model=row["model"]))
    if not rows:
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    made = provenance("pretrained", argv)
    (args.out / "table.md").write_text(as_markdown(pd.DataFrame(rows)) + made, encoding="utf-8")
    pd.concat(by_type).to_csv(args.out / "by_type.csv", index=False)
    print((args.out / "table.md").read_text(encoding="utf-8"))
    return 0


def load_at(source: str, temperature: float | None) -> AnnotationModel:
    """A model whose networks' logits are divided by a temperature; None is its own.

    Raises
    ------
    ValueError
        The model is no hierarchy of networks as "human" is, which alone has such a temperature.
    """
    model = load(source)
    if temperature is None:
        return model
    if not isinstance(model, HierarchicalACTINN):
        raise ValueError(
            f"--temperature {temperature:g} is of the model 'human' alone, but {source!r} is a "
            f"{type(model).__name__}: leave it out, or give that model a call of its own."
        )
    model.module.temperature = temperature
    return model


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
    model = load_at(source, temperature)
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
    terms: dict[str, str | None] = dict(model.terms_)
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
    return frame_as_markdown(table.reindex(columns=columns))


if __name__ == "__main__":
    sys.exit(main())
