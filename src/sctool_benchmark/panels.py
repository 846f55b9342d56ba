"""What few genes can tell: ``python -m sctool_benchmark.panels -o results/panels``.

A reference and a query are cut to panels of 100 to 500 genes, as imaging measures them: genes drawn
at random among those that 1 % of the reference's cells express, or the best markers of the
reference's types; and to no panel. Only data that chose settings are used. The table also says
which share of the errors is between types that the alarm on few genes names, which is raised
without the truth.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

import sctool
from sctool import metrics
from sctool._data._features import marker_genes, normalize
from sctool_benchmark._markdown import table_lines
from sctool_benchmark._run import provenance

PAIRS = {
    "zheng-pbmc3k": "pbmc_zhengfacs_to_pbmc3k.h5ad",
    "pbmc3k-kang": "pbmc_pbmc3k_to_kangctrl.h5ad",
}
SIZES = (100, 200, 300, 500)
#: Cells of each side, drawn once for all panels.
N_CELLS = 2000


def read_pair(path: Path) -> tuple[ad.AnnData, ad.AnnData]:
    """Query and reference with counts, at most ``N_CELLS`` each."""
    cells = ad.read_h5ad(path)
    sides = []
    for side in ("query", "reference"):
        own = np.flatnonzero(cells.obs["split"] == side)
        own = np.random.default_rng(0).permutation(own)[:N_CELLS]
        sides.append(cells[np.sort(own)].copy())
    return sides[0], sides[1]


def panel(ref: ad.AnnData, kind: str, size: int, seed: int) -> np.ndarray:
    """Names of the genes of a panel."""
    x = sp.csr_matrix(ref.X, dtype=np.float32)
    rng = np.random.default_rng(seed)
    if kind == "random":
        genes = np.flatnonzero(x.getnnz(axis=0) >= 0.01 * ref.n_obs)
        return ref.var_names[np.sort(rng.choice(genes, size, replace=False))].to_numpy()
    some = np.sort(rng.choice(ref.n_obs, int(0.8 * ref.n_obs), replace=False))
    y = pd.factorize(ref.obs["cell_type"].astype(str).iloc[some])[0]
    return ref.var_names[marker_genes(normalize(x[some].copy()), y, size)].to_numpy()


def judge(query: ad.AnnData, ref: ad.AnnData, method: str, seed: int) -> dict[str, float]:
    """Annotate and compare with the truth, over cells of types that the reference has."""
    truth = query.obs["cell_type"].astype(str).to_numpy()
    known = np.isin(truth, ref.obs["cell_type"].astype(str).unique())
    found = sctool.tl.annotate(
        query,
        ref,
        method=method,
        novel=0,
        random_state=seed,
        copy=True,
        train_kwargs={"enable_progress_bar": False},
    )
    classes = np.array(found.uns["sctool"]["classes"], dtype=object)
    proba = np.asarray(found.obsm["sctool_proba"])[known]
    truth, names = truth[known], classes[proba.argmax(axis=1)]
    alarms = [a for a in found.uns["sctool"]["alarms"] if a.startswith("genes: only")]
    named = [set(p) for a in alarms for p in re.findall(r"'([^']+)' and '([^']+)'", a)]
    wrong = np.flatnonzero(names != truth)
    told = [{names[i], truth[i]} in named for i in wrong]
    return {
        "accuracy": metrics.seen_accuracy(truth, names, list(classes)),
        "macro_f1": metrics.macro_f1(truth, names, list(classes)),
        "ece": metrics.ece(truth, names, proba.max(axis=1)),
        "named": float(np.mean(told)) if told and named else np.nan,
    }


def run(folder: Path, method: str, seeds: int) -> pd.DataFrame:
    """One row for each pair, panel and seed."""
    rows = []
    for pair, file in PAIRS.items():
        query, ref = read_pair(folder / file)
        for kind in ("random", "markers"):
            for size in SIZES:
                for seed in range(seeds):
                    genes = panel(ref, kind, size, seed)
                    scores = judge(query[:, genes].copy(), ref[:, genes].copy(), method, seed)
                    rows.append({"pair": pair, "panel": kind, "genes": size, **scores})
                    print(rows[-1], flush=True)
        rows.append({"pair": pair, "panel": "all", "genes": ref.n_vars})
        rows[-1] |= judge(query, ref, method, 0)
    return pd.DataFrame(rows)


def write(table: pd.DataFrame, out: Path, argv: Sequence[str] | None) -> None:
    """The means over seeds as a table, below it the command, and the curves as a figure."""
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "panels.csv", index=False)
    scores = ["accuracy", "macro_f1", "ece", "named"]
    means = table.groupby(["pair", "panel", "genes"], sort=False)[scores].mean().reset_index()
    columns = ["pair", "panel", "genes", "accuracy", "macro-F1", "ECE"]
    rows = []
    for row in means.itertuples():
        values = [f"{value:.3f}" for value in (row.accuracy, row.macro_f1, row.ece)]
        named = "" if np.isnan(row.named) else f"{row.named:.0%}"
        rows.append([row.pair, row.panel, f"{row.genes:,}", *values, named])
    lines = table_lines([*columns, "errors that the alarm names"], rows)
    text = "\n".join(lines) + "\n" + provenance("panels", argv)
    (out / "panels.md").write_text(text, encoding="utf-8")
    plot(means, out / "panels.png")


def plot(means: pd.DataFrame, path: Path) -> None:
    """Draw accuracy and ECE against the number of genes; dotted lines are those of all genes.

    Parameters
    ----------
    means
        One row per ``pair``, ``panel`` ("random", "markers" or "all") and number of ``genes``, with
        ``accuracy`` and ``ece``.
    path
        File to write.
    """
    from matplotlib.figure import Figure

    styles = {"markers": "o-", "random": "s--"}
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, (score, title) in zip(
        axes, {"accuracy": "Accuracy", "ece": "ECE"}.items(), strict=True
    ):
        for i, (pair, own) in enumerate(means.groupby("pair", sort=False)):
            for panel, style in styles.items():
                line = own[own["panel"] == panel]
                ax.plot(line["genes"], line[score], style, c=f"C{i}", label=f"{pair}, {panel}")
            best = own.loc[own["panel"] == "all", score].item()
            ax.axhline(best, ls=":", c=f"C{i}", label=f"{pair}, all genes")
        ax.set(xlabel="genes", ylabel=title, ylim=(0, None), xticks=sorted(set(line["genes"])))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m sctool_benchmark.panels", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--method", default="logistic", help="method (default: logistic)")
    parser.add_argument("--seeds", type=int, default=3, help="draws of each panel (default: 3)")
    args = parser.parse_args(argv)
    if "SCTOOL_DATA_DIR" not in os.environ:
        parser.error("set SCTOOL_DATA_DIR to the folder that holds the data files")
    table = run(Path(os.environ["SCTOOL_DATA_DIR"]), args.method, args.seeds)
    write(table, args.output, argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
