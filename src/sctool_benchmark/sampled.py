"""What a part of a reference costs: ``python -m sctool_benchmark.sampled -o results/sampled``.

A reference is used as a whole and in part, as sctool does with references that are larger than it
holds: all cells of rare types and a share of those of common types. References: Kang's control
cells, of which a quarter are the query (two draws), and 40,000 cells that are made of a pair's
reference without copies (see ``sctool_benchmark.scale``). All are of studies that chose settings.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from sctool import metrics
from sctool._data import _sample
from sctool_benchmark._larger import larger
from sctool_benchmark._markdown import table_lines
from sctool_benchmark._run import provenance

SHARES = (0.5, 0.25, 0.1)
SIZE = 40_000


def parts_of_kang(folder: Path, draw: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Query and reference of one study."""
    cells = ad.read_h5ad(folder / "kang_pbmc_ctrl.h5ad")
    order = np.random.default_rng(draw).permutation(cells.n_obs)
    n = cells.n_obs // 4
    return cells[order[:n]].copy(), cells[np.sort(order[n:])].copy()


def enlarged(folder: Path, name: str, size: int = SIZE) -> tuple[ad.AnnData, ad.AnnData]:
    """The query of a pair, and a reference of ``size`` new cells with the shares of its own."""
    cells = ad.read_h5ad(folder / f"{name}.h5ad")
    query, ref = (cells[cells.obs["split"] == side].copy() for side in ("query", "reference"))
    labels = ref.obs["cell_type"].astype(str).to_numpy()
    x, drawn = larger(sp.csr_matrix(ref.X, dtype=np.float64), labels, size, seed=0)
    obs = pd.DataFrame({"cell_type": pd.Categorical(labels[drawn])}, np.arange(size).astype(str))
    return query, ad.AnnData(x, obs, ref.var[[]])


def scores(query: ad.AnnData, ref: ad.AnnData, method: str) -> tuple[float, float]:
    """Accuracy and macro-F1 of the query's cells of known types."""
    from sctool import tl

    found = tl.annotate(query, ref, method=method, novel=0, copy=True).obs
    true, named = (found[key].astype(str).to_numpy() for key in ("cell_type", "sctool"))
    known = set(ref.obs["cell_type"].astype(str))
    return metrics.seen_accuracy(true, named, known), metrics.macro_f1(true, named, known)


def rows(name: str, query: ad.AnnData, ref: ad.AnnData, method: str) -> Iterator[list[str]]:
    """Rows of the table, the first of which is of the whole reference."""
    codes = ref.obs["cell_type"].astype("category").cat.codes.to_numpy()
    for share in (1.0, *SHARES):
        chosen = _sample.sample(codes, int(share * ref.n_obs))
        part = ref if chosen is None else ref[chosen].copy()
        accuracy, f1 = scores(query, part, method)
        yield [name, method, f"{part.n_obs:,}", f"{accuracy:.4f}", f"{f1:.4f}"]


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m sctool_benchmark.sampled``."""
    parser = argparse.ArgumentParser(prog="python -m sctool_benchmark.sampled", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--methods", default="logistic", help="default: %(default)s")
    args = parser.parse_args(argv)
    folder = Path(os.environ.get("SCTOOL_DATA_DIR", "."))
    tasks = {
        "kang, draw 1": lambda: parts_of_kang(folder, 0),
        "kang, draw 2": lambda: parts_of_kang(folder, 1),
        "zheng -> pbmc3k, enlarged": lambda: enlarged(folder, "pbmc_zhengfacs_to_pbmc3k"),
        "pbmc3k -> kang, enlarged": lambda: enlarged(folder, "pbmc_pbmc3k_to_kangctrl"),
    }
    table = []
    for name, made in tasks.items():
        for method in args.methods.split(","):
            for row in rows(name, *made(), method):
                print(*row, sep="\t", file=sys.stderr, flush=True)
                table.append(row)
    args.out.mkdir(parents=True, exist_ok=True)
    lines = table_lines(["reference", "method", "cells", "accuracy", "macro-F1"], table)
    text = "\n".join(lines) + "\n" + provenance("sampled", argv)
    (args.out / "table.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
