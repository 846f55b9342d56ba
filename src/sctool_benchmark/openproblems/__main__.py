"""Open Problems' label projection: ``python -m sctool_benchmark.openproblems -o results/op``.

Its rule: a batch is held out, its cells lose their labels and a method trained on all others names
them; types that no other batch has count as errors. It draws a batch; here each is held out in
turn. Its metrics: accuracy, and F1 macro, micro and weighted, over the names in truth and
prediction. Its baselines: the most common type, and scikit-learn's nearest neighbours, logistic
regression and perceptron (two layers of 100, 1,000 iterations) with their defaults on 25 principal
components of log1p values, of training and test cells together. Ours are run through the component
in this folder, on files of its form.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier

from sctool_benchmark._markdown import frame_as_markdown
from sctool_benchmark._run import provenance
from sctool_benchmark._tasks import Task, known_data, locate, read

#: Data set of ``data.toml``, and the column of obs whose values are the batches.
DATA = {
    "kang": "batch",
    "cellbench": "batch",
    "baron_segerstolpe": "split",
    "zeisel_seqfish": "split",
}
N_COMPONENTS = 25
SCRIPT = Path(__file__).parent / "script.py"
METRICS = ("accuracy", "f1_macro", "f1_micro", "f1_weighted")


# -- The protocol --------------------------------------------------------------------------------


def dataset(cells: ad.AnnData, name: str, label: str, batch: str) -> ad.AnnData:
    """Return cells as Open Problems' data sets have them.

    Parameters
    ----------
    cells
        Counts in X; cells without a label are left out.
    name
        Name of the data set.
    label, batch
        Columns of obs.

    Returns
    -------
    ``layers["counts"]`` and ``layers["normalized"]`` (log1p of counts per 10,000), obs ``label``
    and ``batch``, var ``feature_id`` and ``feature_name``, ``hvg`` and ``hvg_score``, obsm
    ``X_pca``, and uns ``dataset_id`` and ``normalization_id``.
    """
    cells = cells[cells.obs[label].notna().to_numpy()]
    counts = sp.csr_matrix(cells.X, dtype=np.float32)
    obs = cells.obs[[label, batch]].astype(str).set_axis(["label", "batch"], axis=1)
    genes = cells.var_names.astype(str)
    var = pd.DataFrame({"feature_id": genes, "feature_name": genes}, index=genes)
    data = ad.AnnData(counts, obs=obs.astype("category"), var=var)
    sc.pp.normalize_total(data, target_sum=1e4)
    sc.pp.log1p(data)
    found = sc.pp.highly_variable_genes(data, n_top_genes=min(1000, data.n_vars), inplace=False)
    data.var["hvg"] = found["highly_variable"].to_numpy()
    data.var["hvg_score"] = found["dispersions_norm"].fillna(0).to_numpy()
    n = min(N_COMPONENTS, min(data.shape) - 1)
    data.obsm["X_pca"] = sc.pp.pca(data.X, n_comps=n, random_state=0)
    data.layers["counts"], data.layers["normalized"] = counts, data.X
    del data.X
    data.uns = {"dataset_id": name, "normalization_id": "log_cp10k"}
    return data


def triples(data: ad.AnnData) -> Iterator[tuple[str, ad.AnnData, ad.AnnData, ad.AnnData]]:
    """Yield each batch with training cells, test cells without labels, and their solution."""
    for batch in data.obs["batch"].cat.categories:
        held = (data.obs["batch"] == batch).to_numpy()
        train, solution = data[~held].copy(), data[held].copy()
        test = solution.copy()
        del test.obs["label"]
        yield str(batch), train, test, solution


def scores(truth: Sequence[str], prediction: Sequence[str]) -> dict[str, float]:
    """Return the metrics of Open Problems of names, by name, each within 0 and 1."""
    averages = {
        f"f1_{how}": float(f1_score(truth, prediction, average=how, zero_division=0))
        for how in ("macro", "micro", "weighted")
    }
    return {"accuracy": float(accuracy_score(truth, prediction))} | averages


# -- The methods ---------------------------------------------------------------------------------


def majority_vote(train: ad.AnnData, test: ad.AnnData) -> list[str]:
    """Name all cells by the most common type."""
    return [str(train.obs["label"].value_counts().index[0])] * test.n_obs


def on_components(classifier: Any) -> Callable[[ad.AnnData, ad.AnnData], list[str]]:
    """Return a method that classifies cells by their principal components."""

    def predict(train: ad.AnnData, test: ad.AnnData) -> list[str]:
        classifier.fit(train.obsm["X_pca"], train.obs["label"].astype(str))
        return list(classifier.predict(test.obsm["X_pca"]))

    return predict


def component(method: str) -> Callable[[ad.AnnData, ad.AnnData], list[str]]:
    """Return our component with this method of ours, run on files as Open Problems runs it."""

    def predict(train: ad.AnnData, test: ad.AnnData) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            par = {
                name: str(Path(folder, f"{name}.h5ad"))
                for name in ("input_train", "input_test", "output")
            }
            train.write_h5ad(par["input_train"])
            test.write_h5ad(par["input_test"])
            run_component(par | {"method": method}, {"name": "sctool"})
            found = ad.read_h5ad(par["output"])
        return found.obs["label_pred"].astype(str).tolist()

    return predict


def run_component(par: dict[str, Any], meta: dict[str, Any]) -> None:
    """Run ``script.py`` with its arguments put in place, as viash does when it builds one."""
    text = SCRIPT.read_text(encoding="utf-8")
    before, rest = text.split("## VIASH START\n")
    _, after = rest.split("## VIASH END\n")
    code = f"{before}par = {par!r}\nmeta = {meta!r}\n{after}"
    exec(compile(code, str(SCRIPT), "exec"), {"__name__": "__main__"})


METHODS: dict[str, Callable[[ad.AnnData, ad.AnnData], list[str]]] = {
    "majority vote": majority_vote,
    "kNN": on_components(KNeighborsClassifier()),
    "logistic regression": on_components(LogisticRegression()),
    "MLP": on_components(MLPClassifier((100, 100), max_iter=1000, random_state=0)),
    "sctool logistic": component("logistic"),
    "sctool auto": component("auto"),
}


# -- The command ---------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    top = argparse.ArgumentParser(prog="python -m sctool_benchmark.openproblems")
    top.add_argument("--data", action="append", choices=DATA, help="repeated; default: all")
    top.add_argument("--methods", help="comma-separated; default: all", metavar="A,B")
    top.add_argument("--batches", type=int, metavar="N", help="the first N of each data set")
    top.add_argument("-o", "--out", type=Path, metavar="DIR", required=True)
    args = top.parse_args(argv)
    methods = args.methods.split(",") if args.methods else list(METHODS)
    if unknown := set(methods) - set(METHODS):
        top.error(f"unknown methods {sorted(unknown)}: choose from {list(METHODS)}")
    rows: list[dict[str, Any]] = []
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.data or DATA:
        task = Task(name=name, data=name, kind="pair", **known_data()[name])
        try:
            cells = read(task, locate(task))
        except FileNotFoundError as error:
            print(f"skipped: {error}", file=sys.stderr)
            continue
        data = dataset(cells, name, task.labels_key, DATA[name])
        for batch, train, test, solution in list(triples(data))[: args.batches]:
            truth = solution.obs["label"].astype(str).tolist()
            for method in methods:
                start = time.perf_counter()
                prediction = METHODS[method](train.copy(), test.copy())
                seconds = time.perf_counter() - start
                row = {"data": name, "tuned": task.tuned, "batch": batch, "method": method}
                rows.append(row | scores(truth, prediction) | {"seconds": seconds})
                print(rows[-1], file=sys.stderr, flush=True)
                write(pd.DataFrame(rows), args.out, argv)
    return 0 if rows else 2


def write(runs: pd.DataFrame, out: Path, argv: Sequence[str] | None) -> None:
    """Write all runs, and their means over the batches of each data set, as a table."""
    runs.to_csv(out / "runs.csv", index=False)
    columns = [*METRICS, "seconds"]
    grouped = runs.groupby(["data", "method"], sort=False)
    table = grouped[columns].mean().join(grouped.size().rename("batches")).reset_index()
    table = table[["data", "method", "batches", *columns]]
    text = frame_as_markdown(table) + provenance("openproblems", argv)
    (out / "table.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
